import json
import os

import pytest
from typer.testing import CliRunner

from services.gateway.cli import app
from services.gateway.key_format import is_well_formed
from services.gateway.pepper import load_or_create_pepper
from tests.gateway.harness import PEPPER


@pytest.fixture
def keys(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("LIMNER_"):
            monkeypatch.delenv(name)
    url = f"sqlite+aiosqlite:///{tmp_path}/data/gateway.db"
    monkeypatch.setenv("LIMNER_GATEWAY_DATABASE_URL", url)
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_a_new_key_alone_is_on_stdout(keys):
    result = keys("create", "--account", "acme", "--name", "ci")
    assert result.exit_code == 0, result.output
    assert is_well_formed(result.stdout.strip())
    assert "not shown again" in result.stderr


def test_create_list_and_revoke_as_json(keys):
    created = json.loads(
        keys("create", "--account", "acme", "--expires-in-days", "30", "--json").stdout
    )
    assert is_well_formed(created["key"])
    listed = json.loads(keys("list", "--json").stdout)
    assert [each["id"] for each in listed] == [created["id"]]
    assert listed[0]["state"] == "active"
    assert listed[0]["expires_at"] == created["expires_at"] is not None
    assert "key" not in listed[0]
    revoked = json.loads(keys("revoke", created["id"], "--json").stdout)
    assert revoked["state"] == "revoked"
    assert json.loads(keys("list", "--account", "nobody", "--json").stdout) == []


def test_the_table_shows_id_account_name_and_state_but_no_key(keys):
    key = keys("create", "--account", "acme", "--name", "ci").stdout.strip()
    table = keys("list").stdout
    assert all(text in table for text in (key.split("_")[2], "acme", "ci", "active", "never"))
    assert key.split("_")[3] not in table


def test_an_empty_list_says_so(keys):
    assert "There are no keys." in keys("list").stdout


def test_revoking_an_unknown_or_revoked_key_is_an_error(keys):
    unknown = keys("revoke", "nothing")
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert "no key with the id 'nothing'" in unknown.stderr
    key_id = json.loads(keys("create", "--account", "acme", "--json").stdout)["id"]
    assert keys("revoke", key_id).exit_code == 0
    again = keys("revoke", key_id)
    assert again.exit_code == 1
    assert "was revoked already" in again.stderr


def test_a_bad_account_is_an_error(keys):
    result = keys("create", "--account", "Not Good")
    assert result.exit_code == 1
    assert "account's name" in result.stderr


def test_without_a_pepper_variable_the_file_beside_the_database_is_used(keys, tmp_path):
    pepper = load_or_create_pepper(tmp_path / "data")
    assert keys("create", "--account", "acme").exit_code == 0
    assert load_or_create_pepper(tmp_path / "data") == pepper


def test_a_pepper_variable_leaves_no_file(keys, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMNER_GATEWAY_KEY_PEPPER", PEPPER)
    assert keys("create", "--account", "acme").exit_code == 0
    assert not (tmp_path / "data" / "pepper").exists()


def test_a_database_without_a_file_needs_the_pepper_variable(keys, monkeypatch):
    monkeypatch.setenv("LIMNER_GATEWAY_DATABASE_URL", "sqlite+aiosqlite://")
    result = keys("create", "--account", "acme")
    assert result.exit_code == 1
    assert "LIMNER_GATEWAY_KEY_PEPPER is required" in result.stderr


def test_a_bad_database_is_one_line(keys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a database, not at all" * 100)
    for url in ("nonsense", f"sqlite+aiosqlite:///{tmp_path}/file"):
        monkeypatch.setenv("LIMNER_GATEWAY_DATABASE_URL", url)
        result = keys("list")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error:")
        assert result.stderr.count("\n") == 1
