"""`limner keys bootstrap`, which works on the database itself."""

import json
import os

import pytest
import typer
from typer.testing import CliRunner

from services.gateway.cli import bootstrap
from services.gateway.key_format import is_well_formed
from services.gateway.pepper import load_or_create_pepper
from tests.gateway.harness import PEPPER


@pytest.fixture
def run(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("LIMNER_"):
            monkeypatch.delenv(name)
    url = f"sqlite+aiosqlite:///{tmp_path}/data/gateway.db"
    monkeypatch.setenv("LIMNER_GATEWAY_DATABASE_URL", url)
    app = typer.Typer()
    app.command()(bootstrap)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_the_new_key_alone_is_on_stdout(run):
    result = run()
    assert result.exit_code == 0, result.output
    assert is_well_formed(result.stdout.strip())
    assert "account admin, scopes admin" in result.stderr
    assert "not shown again" in result.stderr
    assert result.stdout.strip() not in result.stderr


def test_as_json_with_options(run):
    arguments = ("--account", "ops", "--name", "ci", "--scopes", "train,admin", "--json")
    made = json.loads(run(*arguments, "--expires-in-days", "30").stdout)
    assert is_well_formed(made["key"])
    assert (made["account"], made["name"], made["scopes"]) == ("ops", "ci", ["admin", "train"])
    assert made["expires_at"] > made["created"]
    assert json.loads(run(*arguments).stdout)["id"] != made["id"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--account", "Not Good"), "--account: an account's name"),
        (("--name", "a\nb"), "--name: a key's name"),
        (("--scopes", "root,admin"), "no scope: root; the scopes are admin, generate"),
        (("--scopes", "[/x]"), "no scope: [/x]; the scopes are"),
    ],
)
def test_a_bad_option_is_an_error_and_makes_nothing(run, tmp_path, arguments, said):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("days", ["0", "3651", "99999999", "99999999999999"])
def test_a_lifetime_is_bounded_as_it_is_by_the_gateway(run, days):
    result = run("--expires-in-days", days)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--expires-in-days" in result.stderr


def test_without_a_pepper_variable_the_file_beside_the_database_is_used(run, tmp_path):
    pepper = load_or_create_pepper(tmp_path / "data")
    assert run().exit_code == 0
    assert load_or_create_pepper(tmp_path / "data") == pepper


def test_a_pepper_variable_leaves_no_file(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMNER_GATEWAY_KEY_PEPPER", PEPPER)
    assert run().exit_code == 0
    assert not (tmp_path / "data" / "pepper").exists()


def test_a_database_without_a_file_needs_the_pepper_variable(run, monkeypatch):
    monkeypatch.setenv("LIMNER_GATEWAY_DATABASE_URL", "postgresql+asyncpg://nowhere/limner")
    result = run()
    assert result.exit_code == 1
    assert "LIMNER_GATEWAY_KEY_PEPPER is required" in result.stderr


def test_a_bad_database_is_one_line(run, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a database, not at all" * 100)
    for url in ("nonsense", f"sqlite+aiosqlite:///{tmp_path}/file"):
        monkeypatch.setenv("LIMNER_GATEWAY_DATABASE_URL", url)
        result = run()
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error:")
        assert result.stderr.count("\n") == 1
