"""How the command words what it, or a server, refuses: in the options that were typed."""

from __future__ import annotations

import grpc
import pytest
import typer
from google.rpc import error_details_pb2

from limner.v1 import generation_pb2, upscale_pb2
from services.client import ArgumentError, Client
from services.client.cli.app import app
from services.client.cli.field_names import FieldNames
from tests.client import scripted_server as script
from tests.client.conftest import Limner
from tests.client.scripted_server import ScriptedServer


def refuse(server: ScriptedServer, *fields: str) -> None:
    """Have the server refuse these fields of every generation."""

    def answer(request: object, context: grpc.ServicerContext) -> script.Responses:
        bad = error_details_pb2.BadRequest()
        for field in fields:
            bad.field_violations.add(field=field, description="is bad")
        script.fail(context, grpc.StatusCode.INVALID_ARGUMENT, "bad", bad)
        yield from ()

    server.generate = answer


def test_every_field_of_a_generation_has_the_name_of_its_option(
    limner: Limner, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse(server, *generation_pb2.GenerateImageRequest.DESCRIPTOR.fields_by_name)
    assert limner("generate", "dog", "-n", "2") == 1
    assert set(capsys.readouterr().err.splitlines()[1:]) == {
        f"  {name}: is bad"
        for name in (
            *("PROMPT", "--model", "--negative", "--width", "--height", "--steps", "--guidance"),
            *("--seed", "--sampler", "--samples", "--format", "--preview-every"),
        )
    }


def test_an_option_for_several_fields_is_named_where_it_was_typed(
    limner: Limner, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse(server, "width", "height", "metadata.priority", "prompt[3].weight", "")
    assert limner("generate", "dog", "--size", "8x9") == 1
    assert capsys.readouterr().err.splitlines() == [
        "limner: the request is not valid",
        "  --size (width): is bad",
        "  --size (height): is bad",
        "  metadata.priority: is bad",
        "  PROMPT ([3].weight): is bad",
        "  is bad",
    ]


def test_fields_of_an_upscaling_have_the_names_of_its_options() -> None:
    command = typer.main.get_command(app).commands["upscale"]  # type: ignore[attr-defined]
    name_of = FieldNames(command.context_class(command))
    fields = upscale_pb2.UpscaleImageRequest.DESCRIPTOR.fields_by_name
    assert {field: name_of(field) for field in fields} == {
        "image": "IMAGE",
        "model": "--model",
        "scale": "--scale",
        "output_format": "--format",
        "denoise_strength": "--denoise",
    }


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("--steps 99999999999", "--steps"),
        ("--size 99999999999x8", "--size (width)"),
        ("--guidance 1 --seed -99999999999999999999", "--seed"),
        ("--sampler plms", "--sampler"),
        ("--negative \udcff", "--negative"),
    ],
)
def test_what_no_request_can_hold_is_wrong_usage_of_its_option(
    limner: Limner,
    server: ScriptedServer,
    capsys: pytest.CaptureFixture[str],
    line: str,
    option: str,
) -> None:
    assert limner("generate", "dog", *line.split()) == 2
    assert f"Invalid value for {option}: " in capsys.readouterr().err
    assert server.call_count == 0


@pytest.mark.parametrize(
    "address",
    [
        *("host:99999", "127.0.0.1:65536", "host:-1", "host:0", "host:", "host", ":50051", ""),
        *("http://host:50051", "host:50051/", "::1:50051", "[::1]", "a b:1", "host:٣", "unix:/s"),
    ],
)
def test_an_address_that_grpc_would_take_for_another_is_refused(
    limner: Limner, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    with pytest.raises(ArgumentError, match=r"address: must be HOST:PORT"):
        Client(address)
    assert limner("whoami", "--address", address) == 2
    assert "Invalid value for --address: must be HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["a-b.c:1", "[::1]:65535", "[fe80::1%eth0]:8", "dns:///pod:50"])
def test_addresses_of_every_kind_are_taken(address: str) -> None:
    with Client(address) as client:
        assert client.address == address
