from __future__ import annotations

import asyncio
import json
import logging
import urllib.request

import pytest

from services.runtime.context import RequestContext, set_current_request
from services.runtime.logs import configure_logging
from services.runtime.metrics import CallMetrics, new_registry, serve_metrics


async def test_the_endpoint_exposes_the_registry_and_frees_its_port() -> None:
    registry = new_registry("diffusion")
    CallMetrics(registry)
    with serve_metrics("127.0.0.1:0", registry) as endpoint:
        text = await asyncio.to_thread(fetch, f"http://127.0.0.1:{endpoint.port}/metrics")
    assert 'build_info{python="' in text
    assert 'service="diffusion",version="' in text
    assert "process_resident_memory_bytes" in text
    for name in ("started_total", "handled_total", "handling_seconds"):
        assert f"# TYPE grpc_server_{name.removesuffix('_total')}" in text
    serve_metrics(f"127.0.0.1:{endpoint.port}", registry).close()


def fetch(url: str) -> str:
    with urllib.request.urlopen(url) as response:
        return str(response.read().decode())


@pytest.fixture
def _restored_logging() -> object:
    root = logging.getLogger()
    handlers, level, source = root.handlers[:], root.level, logging._srcfile
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = True
    logging._srcfile = source


@pytest.mark.usefixtures("_restored_logging")
async def test_every_line_is_json_and_knows_its_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("info")
    logger = logging.getLogger("limner.test")
    logger.debug("not this one")
    logger.info("outside of a call")
    set_current_request(RequestContext(request_id="r-1", account="", priority=0, deadline=None))
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        logger.exception("with a\ntraceback", extra={"model": "sd15"})
    captured = capsys.readouterr()
    assert captured.out == ""
    outside, inside = (json.loads(line) for line in captured.err.splitlines())
    assert outside["message"] == "outside of a call"
    assert "request_id" not in outside
    assert (inside["level"], inside["request_id"], inside["model"]) == ("ERROR", "r-1", "sd15")
    assert "ZeroDivisionError" in inside["exc_info"]
