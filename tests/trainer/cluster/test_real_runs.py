"""Real runs as pods: whatever disturbs them changes nothing of what they learn."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.v1 import training_pb2
from tests.trainer.cluster.harness import Cluster, State, cluster, seen, until
from tests.trainer.cluster.job_controller import REAL_RUN
from tests.trainer.run.runs import digest
from tests.trainer.service.harness import ALICE, Stub, create_request, upload

pytestmark = pytest.mark.timeout(900)

_STEP_COUNT = 60
"""Enough that a run is still on when what disturbs it comes, some steps late."""
_CONFIGURATION = f"""
optimization: {{step_count: {_STEP_COUNT}, learning_rate: 1.0e-3}}
pictures: {{side: 64, caption_dropout: 0.25}}
lora: {{rank: 4, dropout: 0.1}}
prior: {{image_count: 2, step_count: 2, guidance_scale: 1.0}}
validation: {{interval: 0, step_count: 2}}
checkpoint_interval: 7
"""


async def _create(stub: Stub, photos: Path, key: str) -> str:
    request = create_request(
        await upload(stub, photos), idempotency_key=key, configuration_yaml=_CONFIGURATION
    )
    return (await stub.CreateTrainingJob(request, metadata=ALICE)).job.id


def _step(up: Cluster, job_id: str) -> int:
    """Steps that a run has done, service or not."""
    losses = up.output(job_id) / "losses.jsonl"
    return losses.read_bytes().count(b"\n") if losses.is_file() else 0


async def _ended(stub: Stub, job_id: str, state: int) -> State:
    return await seen(stub, job_id, lambda job: job.state == state)


async def test_eviction_without_the_service_and_sudden_death_leave_the_same_weights(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    async with cluster(plain_model, tmp_path, REAL_RUN) as up:
        async with up.serving() as stub:
            whole = await _create(stub, photos, "whole")
            await _ended(stub, whole, State.STATE_SUCCEEDED)
            parts = await _create(stub, photos, "parts")
            await until(lambda: _step(up, parts) >= 3)
        up.controller.evict()
        await until(lambda: 143 in up.controller.exit_codes)
        step = _step(up, parts)
        async with up.serving() as stub:
            await until(lambda: _step(up, parts) >= step + 7)
            up.controller.run_out_of_memory()
            failed = await _ended(stub, parts, State.STATE_FAILED)
            out_of_memory = training_pb2.TRAINING_FAILURE_REASON_OUT_OF_MEMORY
            assert failed.failure_reason == out_of_memory
            request = training_pb2.ResumeTrainingJobRequest(id=parts)
            await stub.ResumeTrainingJob(request, metadata=ALICE)
            ended = await _ended(stub, parts, State.STATE_SUCCEEDED)
        assert (ended.step, ended.attempt) == (_STEP_COUNT, 2)
        assert up.controller.exit_codes == [0, 143, 137, 0]
        assert digest(up.output(parts)) == digest(up.output(whole))


@pytest.mark.soak
async def test_a_run_on_two_nodes_survives_the_loss_of_one(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    two = cluster(plain_model, tmp_path, REAL_RUN, kubernetes_node_count=2)
    async with two as up, up.serving() as stub:
        whole = await _create(stub, photos, "whole")
        await _ended(stub, whole, State.STATE_SUCCEEDED)
        assert up.controller.exit_codes == [0, 0]
        parts = await _create(stub, photos, "parts")
        await until(lambda: _step(up, parts) >= 5)
        up.controller.evict(index=1)
        await _ended(stub, parts, State.STATE_SUCCEEDED)
        assert up.controller.exit_codes == [0, 0, 143, 143, 0, 0]
        assert digest(up.output(parts)) == digest(up.output(whole))
