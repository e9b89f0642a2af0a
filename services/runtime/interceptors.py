"""What happens around every call: context, identity, drain gate, error mapping, log, metrics.

One interceptor does it all, in one frame around the handler, so that a call is refused, mapped,
logged and counted at one place whatever its kind. Registered by `services.runtime.server`.
Handlers are coroutines (one response) or async generators (a stream) that raise LimnerError; they
never touch the status nor the metadata. Metadata goes out with the status, of answers as of
refusals: apart, before the first response, it would take as long to send as a response does, and a
client could not retry what has begun. Health and reflection pass.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

import grpc

from services.runtime.calls import CallsInFlight
from services.runtime.context import (
    REQUEST_ID_KEY,
    Announce,
    Identify,
    Metadata,
    announce_nothing,
    current_request,
    new_request_context,
    response_metadata,
    set_current_request,
)
from services.runtime.errors import (
    DeadlineExceededError,
    InternalError,
    LimnerError,
    UnavailableError,
)
from services.runtime.metrics import CallMetrics, CallType, Method, MethodMetrics
from services.runtime.status import fitting, wire_status

T = TypeVar("T")

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

# How long after a failed write the cancellation of the call may come.
_CANCELLATION_S = 1.0

_INFRASTRUCTURE = ("/grpc.health.", "/grpc.reflection.")

_LOGGER = logging.getLogger(__name__)
_ACCESS_LOGGER = logging.getLogger("limner.access")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of all four kinds."""

    def __init__(
        self,
        *,
        calls: CallsInFlight,
        metrics: CallMetrics,
        identify: Identify,
        announce: Announce = announce_nothing,
    ) -> None:
        self._calls = calls
        self._metrics = metrics
        self._identify = identify
        self._announce = announce
        self._served: dict[str, tuple[_Handler, _Handler]] = {}
        """By path: the handler, and the same wrapped."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Return the wrapped handler of the call; None, for UNIMPLEMENTED, when there is none."""
        handler = await continuation(handler_call_details)
        path = handler_call_details.method
        if handler is None or path.startswith(_INFRASTRUCTURE):
            return handler
        served = self._served.get(path)
        if served is None or served[0] is not handler:
            service, _, name = path.removeprefix("/").partition("/")
            method = Method(service=service, name=name, type=_call_type(handler))
            served = self._served[path] = (handler, self._wrapped(handler, method))
        return served[1]

    def _wrapped(self, handler: _Handler, method: Method) -> _Handler:
        behaviour = _behaviour(handler)
        metrics = self._metrics.of(method)
        respond = partial(_write_stream, behaviour) if handler.response_streaming else behaviour

        # A coroutine even for a stream: a cancelled write is raised here, where the handler's
        # generator is closed at once, instead of whenever the garbage collector finds it.
        async def serve(request: Any, context: _Context) -> Any:
            return await self._serve(metrics, context, lambda: respond(request, context))

        return _WRAPPERS[method.type](
            serve, handler.request_deserializer, handler.response_serializer
        )

    async def _serve(
        self, metrics: MethodMetrics, context: _Context, respond: Callable[[], Awaitable[T]]
    ) -> T:
        started = time.perf_counter()
        metrics.started.inc()
        # At runtime a tuple of pairs, whatever the stubs say.
        metadata = cast("Metadata", context.invocation_metadata() or ())
        # The task is the call's own: nothing needs to be reset.
        set_current_request(new_request_context(metadata, context.time_remaining()))
        try:
            with self._calls.entered():
                set_current_request(current_request().made_by(await self._identify(metadata)))
                response = await respond()
                context.set_trailing_metadata(
                    ((REQUEST_ID_KEY, current_request().request_id), *await self._told())
                )
        except BaseException as error:  # every end of a call is counted and logged
            code, refusal = self._outcome(error, context)
            _record(metrics, code, time.perf_counter() - started)
            if refusal is not None:
                told = response_metadata().trailing if refusal.tells_all else await self._told()
                await _abort(context, refusal, told)
            raise
        duration_s = time.perf_counter() - started
        # Once the status is on its way, so that no client waits for counting and logging.
        asyncio.get_running_loop().call_soon(_record, metrics, grpc.StatusCode.OK, duration_s)
        return response

    async def _told(self) -> Sequence[tuple[str, str]]:
        """What the handler adds to its answer, and what every answer of the server carries."""
        added = response_metadata()
        if not added.is_announced:
            added.is_announced = True
            await self._announce()
        return added.trailing

    def _outcome(
        self, error: BaseException, context: _Context
    ) -> tuple[grpc.StatusCode, LimnerError | None]:
        """Return the code that the call ends with, and what to tell a client that listens."""
        refusal: LimnerError | None = None
        verdict = self._calls.verdict()
        match error:
            case LimnerError():
                refusal = error
            case BaseExceptionGroup(exceptions=(only,)):
                # A TaskGroup in a handler.
                return self._outcome(only, context)
            case grpc.aio.AbortError():
                return context.code(), None
            case grpc.aio.InternalError():
                # A read or write failed in the transport: the client has gone.
                return grpc.StatusCode.CANCELLED, None
            case asyncio.CancelledError() if verdict is not None:
                refusal = verdict
            case asyncio.CancelledError() if self._calls.cancelling:
                refusal = UnavailableError(reason="SHUTTING_DOWN")
            case asyncio.CancelledError() if _is_cancelled_from_outside():
                return _cancellation_code(), None
            case Exception() | asyncio.CancelledError():
                # A stray CancelledError is one too: grpc would leave the client without an end.
                _LOGGER.error("unexpected error in a handler", exc_info=error)
                refusal = InternalError()
            case _:
                return grpc.StatusCode.UNKNOWN, None
        return refusal.status_code, refusal


def _record(metrics: MethodMetrics, code: grpc.StatusCode, duration_s: float) -> None:
    metrics.handled(code, duration_s)
    request = current_request()
    _ACCESS_LOGGER.info(
        "call",
        extra={
            "method": metrics.method.path,
            "code": code.name,
            "duration_ms": round(duration_s * 1000, 3),
            "request_id": request.request_id,
            "account": request.account,
        },
    )


async def _write_stream(
    behaviour: Callable[..., AsyncGenerator[Any, None]], request: Any, context: _Context
) -> None:
    async with aclosing(behaviour(request, context)) as responses:
        async for response in responses:
            await _while_client_listens(context.write(response))


async def _while_client_listens(sending: Awaitable[None]) -> None:
    try:
        await sending
    except grpc.aio.InternalError:
        # The client has gone, and grpc is about to cancel this task. Take it here: a moment later
        # it would hit the handler's clean-up.
        await asyncio.sleep(_CANCELLATION_S)
        raise


async def _abort(context: _Context, error: LimnerError, told: Sequence[tuple[str, str]]) -> None:
    status = wire_status(error, current_request().request_id)
    trailers = (*status.trailers, *fitting(status, told))
    await context.abort(status.code, status.message, trailers)


def _is_cancelled_from_outside() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _cancellation_code() -> grpc.StatusCode:
    """A deadline that passes cancels the handler just as a client does."""
    deadline = current_request().deadline
    if deadline is not None and time.monotonic() >= deadline:
        return DeadlineExceededError.code
    return grpc.StatusCode.CANCELLED


def _call_type(handler: _Handler) -> CallType:
    if handler.request_streaming:
        return "bidi_stream" if handler.response_streaming else "client_stream"
    return "server_stream" if handler.response_streaming else "unary"


def _behaviour(handler: _Handler) -> Callable[..., Any]:
    behaviour = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    assert behaviour is not None
    return behaviour


_WRAPPERS: dict[CallType, Callable[..., _Handler]] = {
    "unary": grpc.unary_unary_rpc_method_handler,
    "server_stream": grpc.unary_stream_rpc_method_handler,
    "client_stream": grpc.stream_unary_rpc_method_handler,
    "bidi_stream": grpc.stream_stream_rpc_method_handler,
}
