"""TrainingService at the door: who asks, may they, what will it cost; the rest is the trainer's.

Requests and answers pass as the bytes they are. Creating and resuming a job reserves credits for
all of its steps; uploads count as requests; looking, cancelling and deleting cost nothing, and are
neither counted nor slowed down.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from limner.v1 import training_pb2 as pb
from services.gateway.admission import Admission, AdmissionRequest, Admitted
from services.gateway.admission.headers import ESTIMATE_KEY, credits_text
from services.gateway.authentication import Caller, current_caller
from services.gateway.pricing import Prices
from services.gateway.tiers import Tier, TierCatalog, UnknownTierError
from services.gateway.trainer_link import TRAINING_SERVICE, MetadataPairs, TrainerLink
from services.gateway.training_credits import (
    FINAL_STATES,
    RESERVING_TIMEOUT_S,
    Reservation,
    TrainingCredits,
)
from services.gateway.training_holds import SERVICE, Hold, new_hold
from services.runtime.context import (
    ATTEMPT_KEY,
    RESERVATION_KEY,
    current_request,
    outgoing_metadata,
    response_metadata,
)
from services.runtime.errors import (
    DeadlineExceededError,
    FieldViolation,
    InvalidRequestError,
    LimnerError,
    PermissionDeniedError,
    StateError,
    UnavailableError,
)

_Context: TypeAlias = object
_M = TypeVar("_M", bound=Message)

_MAX_DISCARDED_BYTES = 512 * 2**20
_RESUMABLE = frozenset({pb.TrainingJob.STATE_FAILED, pb.TrainingJob.STATE_CANCELLED})


class TrainingServicer:
    """Serves TrainingService from the trainer behind `link`."""

    def __init__(
        self,
        link: TrainerLink,
        credits: TrainingCredits,
        *,
        admission: Admission,
        tiers: TierCatalog,
        prices: Prices,
    ) -> None:
        self._link, self._credits, self._admission = link, credits, admission
        self._tiers, self._prices = tiers, prices

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to `server`, with bytes in and bytes out."""
        unary = grpc.unary_unary_rpc_method_handler
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "UploadDataset": grpc.stream_unary_rpc_method_handler(self.upload),
            "CreateTrainingJob": unary(self.create),
            "GetTrainingJob": unary(self.get),
            "ListTrainingJobs": unary(self.list),
            "WatchTrainingJob": grpc.unary_stream_rpc_method_handler(self.watch),
            "CancelTrainingJob": unary(self.cancel),
            "ResumeTrainingJob": unary(self.resume),
            "DeleteTrainingJob": unary(self.delete),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(TRAINING_SERVICE, handlers),)
        )

    async def upload(self, payloads: AsyncIterator[bytes], _context: _Context) -> bytes:
        """Relays pictures one piece at a time; an upload counts as a request."""
        try:
            caller, tier = self._caller()
            question = self._free_question(caller, tier)
            async with Admitted(self._admission, question):
                return await self._link.upload(
                    "UploadDataset", payloads, metadata=_metadata(), timeout_s=_remaining_s()
                )
        except LimnerError:
            await _discard_rest(payloads)
            raise

    async def create(self, payload: bytes, _context: _Context) -> bytes:
        """Checks with the trainer, reserves the price of all steps, and has the job created."""
        caller, tier = self._caller()
        asked = _parse(pb.CreateTrainingJobRequest, payload)
        planned = await self._planned(asked, tier)
        hold = self._hold(caller, planned)
        if asked.validate_only or planned.id:
            estimate = 0 if planned.id else hold.millicredits
            response_metadata().trailing.append((ESTIMATE_KEY, credits_text(estimate)))
            return pb.CreateTrainingJobResponse(job=planned).SerializeToString()
        request = current_request()
        async with self._credits.reserved(hold, request, tier) as reservation:
            answer = await self._reserving("CreateTrainingJob", payload, reservation)
            job = pb.CreateTrainingJobResponse.FromString(answer).job
            reservation.taken = job.reservation == hold.id
        return answer

    async def get(self, payload: bytes, _context: _Context) -> bytes:
        """Relays; an ended job is settled first."""
        self._caller()
        answer = await self._call("GetTrainingJob", payload)
        await self._credits.heed([pb.GetTrainingJobResponse.FromString(answer).job])
        return answer

    async def list(self, payload: bytes, _context: _Context) -> bytes:
        """Relays; ended jobs are settled first."""
        self._caller()
        answer = await self._call("ListTrainingJobs", payload)
        await self._credits.heed(pb.ListTrainingJobsResponse.FromString(answer).jobs)
        return answer

    async def watch(self, payload: bytes, _context: _Context) -> AsyncIterator[bytes]:
        """Relays; a job is settled before its end is told."""
        self._caller()
        messages = self._link.stream(
            "WatchTrainingJob", payload, metadata=_metadata(), timeout_s=_remaining_s()
        )
        async with aclosing(messages):
            async for message in messages:
                await self._credits.heed([pb.WatchTrainingJobResponse.FromString(message).job])
                yield message

    async def cancel(self, payload: bytes, _context: _Context) -> bytes:
        """Relays; a job that had not begun is settled at once."""
        self._caller()
        answer = await self._call("CancelTrainingJob", payload)
        await self._credits.heed([pb.CancelTrainingJobResponse.FromString(answer).job])
        return answer

    async def resume(self, payload: bytes, _context: _Context) -> bytes:
        """Reserves the price of the steps that are left, and has the job go on."""
        caller, tier = self._caller()
        asked = _parse(pb.ResumeTrainingJobRequest, payload)
        job = await self._job(asked.id)
        # Not left to the trainer: the job may have ended by then, and would go on unpaid.
        if job.state not in _RESUMABLE:
            message = f"The job is {_state(job)}; only one that failed or was cancelled can go on."
            raise StateError(message, reason="JOB_NOT_RESUMABLE")
        await self._credits.settle(job)
        first_step = await self._credits.paid_step(caller.account, job)
        hold = self._hold(caller, job, first_step=first_step)
        request = current_request()
        async with self._credits.reserved(hold, request, tier) as reservation:
            answer = await self._reserving("ResumeTrainingJob", payload, reservation, _settled(job))
            resumed = pb.ResumeTrainingJobResponse.FromString(answer).job
            reservation.taken = resumed.reservation == hold.id
        return answer

    async def delete(self, payload: bytes, _context: _Context) -> bytes:
        """Settles, for afterwards nobody knows how far the job came, and relays."""
        self._caller()
        asked = _parse(pb.DeleteTrainingJobRequest, payload)
        job = await self._job(asked.id)
        # Not left to the trainer: the job may have ended by then, and would be gone unsettled.
        if job.state not in FINAL_STATES:
            raise StateError(f"The job is {_state(job)}; cancel it first.", reason="JOB_NOT_ENDED")
        await self._credits.settle(job)
        return await self._call("DeleteTrainingJob", payload, _settled(job))

    def _caller(self) -> tuple[Caller, Tier]:
        caller = current_caller()
        caller.require("train")
        if not self._link.serving:
            raise UnavailableError("the trainer does not answer now", reason="NO_BACKEND")
        try:
            return caller, self._tiers.get(caller.tier_name)
        except UnknownTierError as error:
            raise StateError(
                f"the account's tier {error.name!r} does not exist any more", reason="TIER_UNKNOWN"
            ) from error

    async def _planned(self, asked: pb.CreateTrainingJobRequest, tier: Tier) -> pb.TrainingJob:
        """The job as the trainer would create it, or has it; refuses what the tier excludes."""
        plan = pb.CreateTrainingJobRequest()
        plan.CopyFrom(asked)
        plan.validate_only = True
        answer = await self._call("CreateTrainingJob", plan.SerializeToString())
        if not (tier.allows_model(asked.base_model) or tier.shadow):
            message = f"the tier {tier.name!r} does not include the model {asked.base_model!r}"
            raise PermissionDeniedError(message, reason="MODEL_NOT_ALLOWED")
        return pb.CreateTrainingJobResponse.FromString(answer).job

    def _hold(self, caller: Caller, job: pb.TrainingJob, *, first_step: int = 0) -> Hold:
        return new_hold(
            account=caller.account,
            model=job.base_model,
            step_millicredits=self._prices.current.price_training(
                model=job.base_model, step_count=1
            ),
            step_count=job.step_count,
            job_id=job.id,
            first_step=first_step,
        )

    async def _reserving(
        self, name: str, payload: bytes, reservation: Reservation, *told: tuple[str, str]
    ) -> bytes:
        metadata = (*_metadata(), (RESERVATION_KEY, reservation.hold.id), *told)
        # Nothing may be taken once it counts as never taken, and is refunded.
        timeout_s = min(_remaining_s() or RESERVING_TIMEOUT_S, RESERVING_TIMEOUT_S)
        return await self._link.call(name, payload, metadata=metadata, timeout_s=timeout_s)

    async def _job(self, job_id: str) -> pb.TrainingJob:
        payload = pb.GetTrainingJobRequest(id=job_id).SerializeToString()
        return pb.GetTrainingJobResponse.FromString(await self._call("GetTrainingJob", payload)).job

    async def _call(self, name: str, payload: bytes, *told: tuple[str, str]) -> bytes:
        metadata = (*_metadata(), *told)
        return await self._link.call(name, payload, metadata=metadata, timeout_s=_remaining_s())

    def _free_question(self, caller: Caller, tier: Tier) -> AdmissionRequest:
        request = current_request()
        return AdmissionRequest(
            request_id=request.request_id,
            charge_id=f"{request.request_id}:{secrets.token_hex(16)}",
            account=caller.account,
            tier=tier,
            service=SERVICE,
            model="",
            artifact_millicredits=0,
            artifact_count=0,
        )


async def _discard_rest(payloads: AsyncIterator[bytes]) -> None:
    """Read what is still to come, within bounds: gRPC loses a refusal that overtakes the writer."""
    size = 0
    async for payload in payloads:
        size += len(payload)
        if size > _MAX_DISCARDED_BYTES:
            return


def _state(job: pb.TrainingJob) -> str:
    return pb.TrainingJob.State.Name(job.state).removeprefix("STATE_").lower()


def _settled(job: pb.TrainingJob) -> tuple[str, str]:
    """Has the trainer refuse where an attempt came between: it would be paid twice or never."""
    return ATTEMPT_KEY, str(job.attempt)


def _metadata() -> MetadataPairs:
    return tuple(outgoing_metadata(current_request()))


def _remaining_s() -> float | None:
    deadline = current_request().deadline
    if deadline is None:
        return None
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise DeadlineExceededError
    return remaining_s


def _parse(kind: type[_M], payload: bytes) -> _M:
    try:
        return kind.FromString(payload)
    except DecodeError:
        violation = FieldViolation(
            field="", reason="MALFORMED", description=f"is not a {kind.DESCRIPTOR.name}"
        )
        raise InvalidRequestError([violation]) from None
