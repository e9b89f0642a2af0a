import asyncio

import pytest
from prometheus_client import CollectorRegistry

from services.gateway.admission import (
    AdmissionRequest,
    Delivery,
    MeteredAdmission,
    OpenAdmission,
    admitted,
)
from services.gateway.metrics import GatewayMetrics
from services.runtime.errors import QueueFullError

REQUEST = AdmissionRequest(
    request_id="r", account="acme", key_id="k", service="generation", model="dots"
)


class SlowLease:
    """A lease whose store takes its time, until `gate` opens."""

    def __init__(self, gate):
        self.gate = gate
        self.begun = []
        self.done = []

    async def settle(self, delivered):
        await self._close("settle")

    async def refund(self):
        await self._close("refund")

    async def _close(self, name):
        self.begun.append(name)
        await self.gate.wait()
        self.done.append(name)


class SlowAdmission:
    def __init__(self):
        self.admit_gate, self.close_gate = asyncio.Event(), asyncio.Event()
        self.lease = SlowLease(self.close_gate)
        self.asked = asyncio.Event()

    async def admit(self, request):
        self.asked.set()
        await self.admit_gate.wait()
        return self.lease


async def run(admission, artifact_count=0, then=None):
    async with admitted(admission, REQUEST) as delivered:
        delivered.artifact_count = artifact_count
        if then is not None:
            await then


@pytest.fixture
def slow():
    return SlowAdmission()


@pytest.mark.parametrize(("artifact_count", "closing"), [(0, "refund"), (1, "settle")])
async def test_what_was_delivered_decides_how_a_lease_is_closed(slow, artifact_count, closing):
    slow.admit_gate.set()
    slow.close_gate.set()
    await run(slow, artifact_count)
    assert slow.lease.done == [closing]


async def test_an_error_in_the_block_is_passed_on_after_the_refund(slow):
    slow.admit_gate.set()
    slow.close_gate.set()
    broken = asyncio.get_running_loop().create_future()
    broken.set_exception(LookupError("of the block"))
    with pytest.raises(LookupError, match="of the block"):
        await run(slow, then=broken)
    assert slow.lease.done == ["refund"]


async def test_a_cancelled_admission_gives_its_lease_back(slow):
    task = asyncio.create_task(run(slow))
    await slow.asked.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    slow.admit_gate.set()
    slow.close_gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.lease.done == ["refund"]


async def test_closing_a_lease_outlives_any_number_of_cancellations(slow):
    slow.admit_gate.set()
    task = asyncio.create_task(run(slow, 1))
    for _ in range(5):
        await asyncio.sleep(0.01)
        assert slow.lease.begun == ["settle"]
        task.cancel()
    slow.close_gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.lease.done == ["settle"]


async def test_a_rejection_leaves_no_lease(slow):
    class Full:
        async def admit(self, request):
            raise QueueFullError(1)

    entered = False
    with pytest.raises(QueueFullError):
        async with admitted(Full(), REQUEST):
            entered = True
    assert not entered


async def test_a_lease_that_cannot_be_closed_under_cancellation_is_logged(slow, caplog):
    class Broken(SlowLease):
        async def _close(self, name):
            await self.gate.wait()
            raise OSError("the store is gone")

    slow.lease = Broken(slow.close_gate)
    slow.admit_gate.set()
    task = asyncio.create_task(run(slow))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.01)
    slow.close_gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "the store is gone" in caplog.text


async def test_open_admission_lets_all_in_and_is_counted():
    registry = CollectorRegistry()
    admission = MeteredAdmission(OpenAdmission(), GatewayMetrics(registry))
    for _ in range(100):
        lease = await admission.admit(REQUEST)
        await lease.settle(Delivery(artifact_count=1))
    labels = {"tier": "", "service": "generation", "decision": "allowed"}
    assert registry.get_sample_value("gateway_admissions_total", labels) == 100
    assert registry.get_sample_value("gateway_admission_seconds_count") == 100
