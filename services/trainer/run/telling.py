"""Tells the service how a run goes, where the run was told whom to tell: in a cluster.

Opened by `process`, fed by `reporting`. It neither stops nor slows a run: calls are made on a
thread of their own, of several statuses that wait the newest alone is sent, and a call that fails
is logged and forgotten. What counts is the status file.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from services.trainer.run.reporting import RunStatus

if TYPE_CHECKING:
    import grpc

    from limner.v1 import training_run_pb2

Tell: TypeAlias = Callable[[RunStatus], None]

_LOGGER = logging.getLogger(__name__)
_LEAST_INTERVAL_S = 2.0
_CALL_TIMEOUT_S = 5.0
_RECONNECT_MS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Listener:
    """Whom to tell, and as whom."""

    target: str
    token: str
    job_id: str
    attempt: int
    ca: bytes | None
    """Authority of a listener that speaks TLS; None: plain text."""

    @classmethod
    def find(cls, environment: Mapping[str, str]) -> Listener | None:
        """What `services.trainer.cluster.manifests` puts into the environment; None: nobody.

        Raises KeyError, ValueError or OSError where that is not whole.
        """
        target = environment.get("LIMNER_RUN_REPORTS_TARGET")
        if target is None:
            return None
        ca = environment.get("LIMNER_RUN_REPORTS_CA")
        return cls(
            target=target,
            token=Path(environment["LIMNER_RUN_TOKEN_FILE"]).read_text(encoding="ascii"),
            job_id=environment["LIMNER_RUN_JOB"],
            attempt=int(environment["LIMNER_RUN_ATTEMPT"]),
            ca=None if ca is None else Path(ca).read_bytes(),
        )


@contextmanager
def telling(environment: Mapping[str, str] = os.environ) -> Iterator[Tell | None]:
    """What to call with each status, for the length of a block; None: there is nobody to tell."""
    try:
        listener = Listener.find(environment)
    except (KeyError, ValueError, OSError) as error:
        _LOGGER.warning("the service is not told of this run: %r", error)
        listener = None
    if listener is None:
        yield None
        return
    teller = Teller(listener)
    try:
        yield teller.tell
    finally:
        teller.close()


class Teller:
    """A thread that sends the newest status."""

    def __init__(self, listener: Listener, *, least_interval_s: float = _LEAST_INTERVAL_S) -> None:
        self._listener, self._least_interval_s = listener, least_interval_s
        self._changed = threading.Condition()
        self._newest: RunStatus | None = None
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._send_all, name="telling", daemon=True)
        self._thread.start()

    def tell(self, status: RunStatus) -> None:
        """Have a status sent; returns at once."""
        with self._changed:
            self._newest = status
            self._changed.notify()

    def close(self) -> None:
        """Send what waits, for as long as one call may take."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(2 * _CALL_TIMEOUT_S)

    def _send_all(self) -> None:
        status = self._next()
        if status is None:
            return  # not the run's first process: it says nothing, and needs no channel
        with _channel(self._listener) as channel:
            while status is not None:
                self._send(channel, status)
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, self._least_interval_s)
                status = self._next()

    def _next(self) -> RunStatus | None:
        """The next status to send; None: there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._newest is not None)
            status, self._newest = self._newest, None
            return status

    def _send(self, channel: grpc.Channel, status: RunStatus) -> None:
        # Not before it is needed: runs elsewhere tell nobody.
        import grpc

        from limner.v1 import training_run_pb2_grpc

        try:
            training_run_pb2_grpc.TrainingRunServiceStub(channel).ReportProgress(
                _message(self._listener, status),
                metadata=(("authorization", f"Bearer {self._listener.token}"),),
                timeout=_CALL_TIMEOUT_S,
            )
        except grpc.RpcError as error:
            if not self._failing:
                _LOGGER.warning("the service was not told: %s", _summary(error))
            self._failing = True
        else:
            self._failing = False


def _channel(listener: Listener) -> grpc.Channel:
    import grpc

    # A service that was away is found again in seconds, not in the two minutes of the default.
    options = [("grpc.max_reconnect_backoff_ms", _RECONNECT_MS)]
    if listener.ca is None:
        return grpc.insecure_channel(listener.target, options)
    credentials = grpc.ssl_channel_credentials(listener.ca)
    return grpc.secure_channel(listener.target, credentials, options)


def _message(listener: Listener, status: RunStatus) -> training_run_pb2.ReportProgressRequest:
    from limner.v1 import training_run_pb2

    message = training_run_pb2.ReportProgressRequest(
        job_id=listener.job_id,
        attempt=listener.attempt,
        step=status.step,
        step_count=status.step_count,
        class_picture_count=status.class_picture_count,
        validation_loss=status.validation_loss,
        samples=status.samples,
    )
    if status.losses is not None:
        message.instance_loss = status.losses.instance_loss
        message.learning_rate = status.losses.learning_rate
        if status.losses.prior_loss is not None:
            message.prior_loss = status.losses.prior_loss
    if status.eta_s is not None:
        message.eta.FromTimedelta(timedelta(seconds=status.eta_s))
    return message


def _summary(error: grpc.RpcError) -> str:
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    return f"{code().name if code else ''} {details() if details else error}"
