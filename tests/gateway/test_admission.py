"""That a lease ends exactly once, whatever happens to the call."""

import asyncio

import pytest

from services.gateway.admission import AdmissionRequest, Admitted
from services.gateway.tiers import BUILT_IN_TIERS
from services.runtime.errors import QueueFullError

REQUEST = AdmissionRequest(
    request_id="r",
    charge_id="r:0",
    account="acme",
    tier=BUILT_IN_TIERS["free"],
    service="generation",
    model="dots",
    artifact_millicredits=7,
    artifact_count=1,
)


class SlowLease:
    """A lease whose store takes its time, until `gate` opens."""

    is_immediate = False

    def __init__(self, gate):
        self.gate = gate
        self.begun = []
        self.done = []

    async def charge(self, index):
        await self._close(f"charge {index}")

    async def settle(self, delivered):
        await self._close("settle")

    async def refund(self):
        await self._close("refund")

    def metadata(self):
        return ()

    async def _close(self, name):
        self.begun.append(name)
        await self.gate.wait()
        self.done.append(name)


class SlowAdmission:
    is_immediate = False

    def __init__(self):
        self.admit_gate, self.close_gate = asyncio.Event(), asyncio.Event()
        self.lease = SlowLease(self.close_gate)
        self.asked = asyncio.Event()

    async def admit(self, request):
        self.asked.set()
        await self.admit_gate.wait()
        return self.lease


async def run(admission, artifact_count=0, then=None):
    async with Admitted(admission, REQUEST) as running:
        for index in range(artifact_count):
            await running.charge(index)
        if then is not None:
            await then


@pytest.fixture
def slow():
    return SlowAdmission()


@pytest.mark.parametrize(
    ("artifact_count", "done"), [(0, ["refund"]), (2, ["charge 0", "charge 1", "settle"])]
)
async def test_what_was_charged_decides_how_a_lease_is_closed(slow, artifact_count, done):
    slow.admit_gate.set()
    slow.close_gate.set()
    await run(slow, artifact_count)
    assert slow.lease.done == done


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
    task = asyncio.create_task(run(slow))
    for _ in range(5):
        await asyncio.sleep(0.01)
        assert slow.lease.begun == ["refund"]
        task.cancel()
    slow.close_gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.lease.done == ["refund"]


async def test_a_charge_that_a_cancellation_meets_counts(slow):
    """The ledger may have it already: the lease must know."""
    slow.admit_gate.set()
    task = asyncio.create_task(run(slow, 1))
    for _ in range(3):
        await asyncio.sleep(0.01)
        assert slow.lease.begun == ["charge 0"]
        task.cancel()
    slow.close_gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.lease.done == ["charge 0", "settle"]


async def test_a_rejection_leaves_no_lease(slow):
    class Full:
        is_immediate = False

        async def admit(self, request):
            raise QueueFullError(1)

    entered = False
    with pytest.raises(QueueFullError):
        async with Admitted(Full(), REQUEST):
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
