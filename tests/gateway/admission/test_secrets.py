"""No key, prompt or image in any log line, metric or error, whatever happens to a request.

The same for upscaling and training is in `test_upscale` and `test_training`.
"""

import logging

import grpc
from prometheus_client import generate_latest

from limner.v1 import upscale_pb2, upscale_pb2_grpc
from tests.gateway.admission.doors import door, finished, outcome
from tests.gateway.fake_backend import backend
from tests.gateway.harness import failure
from tests.gateway.unspoken import log_lines, spoken

PROMPT = "a portrait of the minister's secret guest"
IMAGE = b"not a picture, but what would be one"


async def errors_of(gate, *prompts, **fields):
    """Everything that the failing calls tell: message and metadata."""
    told = []
    for prompt in prompts:
        call = gate.generate(prompt, negative_prompt=PROMPT, **fields)
        try:
            await finished(call)
        except grpc.aio.AioRpcError as error:
            told.append(f"{error.details()} {error.initial_metadata()} {error.trailing_metadata()}")
    return told


async def test_neither_key_nor_prompt_nor_image_reaches_a_log_a_metric_or_an_error(
    tmp_path, redis_url, redis_server, caplog
):
    caplog.set_level(logging.DEBUG)
    tier = {"max_step_count": 5, "monthly_millicredits": 1000}
    async with backend() as fake, door(tmp_path, fake, redis_url=redis_url, **tier) as gate:
        await finished(gate.generate(negative_prompt=PROMPT))
        told = await errors_of(gate, "refuse", "queue full", "fail after picture")
        told += await errors_of(gate, "picture", step_count=6)
        told += await errors_of(gate, "picture", model="no such model")
        told += await errors_of(gate, "picture", width=2000, height=1000, step_count=5)
        told += await errors_of(gate, *["picture"] * 4, width=2000, height=1000, step_count=5)
        upscale = upscale_pb2_grpc.UpscaleServiceStub(gate.channel).UpscaleImage
        call = upscale(upscale_pb2.UpscaleImageRequest(image=IMAGE), metadata=gate.authorization)
        told.append(str(await failure(call)))
        forged = [("authorization", f"Bearer {gate.key[:-1]}x")]
        assert await outcome(gate.generate(metadata=forged)) == "UNAUTHENTICATED"
        redis_server.kill()
        told += await errors_of(gate, "picture")
        redis_server.restart()
        metrics = generate_latest(gate.registry).decode()
        key = gate.key
    assert len(told) >= 7
    logged = log_lines(caplog.records)
    assert len(logged) > 10
    assert spoken([*told, *logged, metrics], key=key, prompts=[PROMPT], data=IMAGE) == []
    assert "acme" not in metrics
