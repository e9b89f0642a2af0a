"""Credits of training jobs: reserved for a whole attempt, settled by the steps that were done.

An attempt outlasts every call, so that no lease can stand for it. `reserved` admits an attempt and
opens a hold (see `training_holds`) around the call that asks the trainer for it; `heed` closes it
as soon as an ended job passes by; `run` asks the trainer what became of all holds that are open,
which brings every one to its end exactly once, whoever died in between. ADR 0014 has the cases.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc
import grpc.aio
from sqlalchemy.exc import SQLAlchemyError

from limner.v1 import training_pb2
from services.gateway.admission import Admission, AdmissionRequest, Admitted
from services.gateway.metrics import GatewayMetrics
from services.gateway.outage import refused_as_unavailable
from services.gateway.tiers import Tier
from services.gateway.trainer_link import TrainerLink, is_unanswered
from services.gateway.training_holds import SERVICE, Hold, TrainingHolds
from services.runtime.context import RequestContext, outgoing_metadata
from services.runtime.errors import LimnerError
from services.storage.database import explain, is_outage

RESERVING_TIMEOUT_S = 480.0
"""How long the trainer may take to take an attempt, whatever time its caller has."""
_UNKNOWN_GRACE = timedelta(seconds=RESERVING_TIMEOUT_S + 120.0)
"""How long the trainer may still come to know of an attempt that it was asked for."""
_TIMEOUT_S = 10.0
_REMEMBERED = 10_000

FINAL_STATES = frozenset(
    {
        training_pb2.TrainingJob.STATE_SUCCEEDED,
        training_pb2.TrainingJob.STATE_FAILED,
        training_pb2.TrainingJob.STATE_CANCELLED,
    }
)

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Reservation:
    """An attempt on its way to the trainer."""

    hold: Hold
    taken: bool = False
    """The trainer has it, under this very hold."""


class TrainingCredits:
    """Reserves and settles; everything that it must not forget is in `holds`."""

    def __init__(
        self,
        holds: TrainingHolds,
        link: TrainerLink,
        *,
        admission: Admission,
        metrics: GatewayMetrics,
        interval_s: float,
    ) -> None:
        self._holds, self._link, self._admission = holds, link, admission
        self._metrics, self._interval_s = metrics, interval_s
        self._paid: set[str] = set()
        self._closed: dict[str, None] = {}

    @asynccontextmanager
    async def reserved(
        self, hold: Hold, request: RequestContext, tier: Tier
    ) -> AsyncIterator[Reservation]:
        """Reserve for the block that asks the trainer; it sets `taken` when the trainer agrees.

        A block that the trainer refused consumes nothing; one that ends without an answer is paid
        for until it is known what became of it. Raises as admission does, and UnavailableError
        while the database is away: training is not done on credit.
        """
        question = AdmissionRequest(
            request_id=request.request_id,
            charge_id=hold.charge_id,
            account=hold.account,
            tier=tier,
            service=SERVICE,
            model=hold.model,
            artifact_millicredits=hold.millicredits,
            artifact_count=1,
        )
        async with Admitted(self._admission, question) as running:
            async with refused_as_unavailable(self._metrics):
                await self._holds.open(hold)
            reservation = Reservation(hold=hold)
            try:
                yield reservation
            except LimnerError as error:
                if not is_unanswered(error):
                    await self._drop(hold)
                    raise
                await running.charge(0)
                raise
            if reservation.taken:
                await running.charge(0)
            else:
                await self._drop(hold)

    async def heed(self, jobs: Iterable[training_pb2.TrainingJob]) -> None:
        """Settle those that have ended; what cannot be settled now is settled by `run`."""
        for job in jobs:
            if job.state not in FINAL_STATES or not job.reservation:
                continue
            if job.reservation in self._closed:
                continue
            try:
                await self._close(job.reservation, job.step)
            except (SQLAlchemyError, OSError) as error:
                self._outage(error)

    async def paid_step(self, account: str, job: training_pb2.TrainingJob) -> int:
        """The step up to which a job that goes on is paid for.

        An attempt that went back to a checkpoint and ended early leaves a job at a step before it.
        Raises UnavailableError while the database is away.
        """
        async with refused_as_unavailable(self._metrics):
            return max(job.step, await self._holds.paid_step(account, job.id))

    async def settle(self, job: training_pb2.TrainingJob) -> None:
        """Settle a job that has ended, before it goes on or is gone.

        Raises UnavailableError while the database is away.
        """
        if job.state in FINAL_STATES and job.reservation:
            async with refused_as_unavailable(self._metrics):
                await self._close(job.reservation, job.step)

    async def run(self) -> None:
        """Look after the open holds until cancelled."""
        while True:
            try:
                for hold in await self._holds.list_open():
                    await self._look_after(hold)
            except (SQLAlchemyError, OSError) as error:
                self._outage(error)
            await asyncio.sleep(self._interval_s)

    async def _look_after(self, hold: Hold) -> None:
        try:
            job = await self._job_of(hold)
        except LimnerError as error:
            extra = {"job": hold.job_id, "reason": error.reason}
            _log.warning("the trainer does not tell of a job", extra=extra)
            return
        if job is None or job.reservation != hold.id:
            if datetime.now(UTC) - hold.opened_at > _UNKNOWN_GRACE:
                extra = {"job": hold.job_id, "hold": hold.id}
                _log.warning("the trainer never took an attempt; it is refunded", extra=extra)
                await self._holds.abandon(hold.id)
                await self._admission.reconcile(hold.account)
            return
        if hold.id not in self._paid:
            # The call that asked for it may have died before it paid.
            if await self._holds.pay(hold):
                await self._admission.reconcile(hold.account)
            self._paid.add(hold.id)
        if job.state in FINAL_STATES:
            await self._close(hold.id, job.step)

    async def _job_of(self, hold: Hold) -> training_pb2.TrainingJob | None:
        """The job as the trainer has it; None: it has none. Raises LimnerError."""
        request = RequestContext(
            request_id=f"settle-{uuid.uuid4().hex}", account=hold.account, priority=0, deadline=None
        )
        payload = training_pb2.GetTrainingJobRequest(id=hold.job_id).SerializeToString()
        try:
            answer = await self._link.call(
                "GetTrainingJob",
                payload,
                metadata=outgoing_metadata(request),
                timeout_s=_TIMEOUT_S,
            )
        except LimnerError as error:
            if error.status_code is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return training_pb2.GetTrainingJobResponse.FromString(answer).job

    async def _close(self, hold_id: str, step: int) -> None:
        hold = await self._holds.close(hold_id, step)
        self._paid.discard(hold_id)
        self._closed[hold_id] = None
        while len(self._closed) > _REMEMBERED:
            del self._closed[next(iter(self._closed))]
        if hold is None:
            return
        extra = {"job": hold.job_id, "step": step, "millicredits": hold.cost(step)}
        _log.info("a training was settled", extra=extra)
        self._metrics.count_credits("refunded", hold.millicredits - hold.cost(step))
        await self._admission.reconcile(hold.account)

    async def _drop(self, hold: Hold) -> None:
        """Forget a hold that was refused; `run` ends one that cannot be forgotten now."""
        try:
            await self._holds.drop(hold)
        except (SQLAlchemyError, OSError) as error:
            self._outage(error)

    def _outage(self, error: Exception) -> None:
        """Log an outage; raise what is none."""
        if not is_outage(error):
            raise error
        self._metrics.store_errors.inc()
        _log.warning("trainings cannot be settled now", extra={"why": explain(error)})
