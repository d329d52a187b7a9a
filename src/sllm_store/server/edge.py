"""The gRPC edge: errors become statuses, tokens are checked, blocking work leaves the loop."""

from __future__ import annotations

import asyncio
import functools
import hmac
import logging
from typing import TYPE_CHECKING, Any

import grpc

from sllm_store.errors import DeadlineError, StoreError, UnauthenticatedError
from sllm_store.rpc_errors import ERROR_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sllm_store.server.metrics import StoreMetrics

OPTIONS = [
    ("grpc.max_receive_message_length", 512 << 20),
    ("grpc.max_send_message_length", 512 << 20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
]

log = logging.getLogger(__name__)


def unary(method: Callable[[Any, Any, Any], Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Translate what a unary handler raises."""

    @functools.wraps(method)
    async def handler(self: Any, request: Any, context: Any) -> Any:
        try:
            return await method(self, request, context)
        except Exception as error:  # noqa: BLE001 - the edge that translates
            await abort(context, method.__name__, error, self.metrics)

    return handler


async def abort(context: Any, method: str, error: Exception, metrics: StoreMetrics) -> None:
    """End an RPC with the status, the message and the class name of an error."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    name, message, status = describe_failure(method, error, metrics)
    metadata = ((ERROR_KEY, name),) if name else ()
    await context.abort(getattr(grpc.StatusCode, status), message, metadata)


def describe_failure(method: str, error: Exception, metrics: StoreMetrics) -> tuple[str, str, str]:
    """Count and log a failed call; return its error's class name, a message and a gRPC status.

    The name is empty for what no caller can be blamed for.
    """
    metrics.failures.labels(method, type(error).__name__).inc()
    if isinstance(error, StoreError):
        log.warning("request failed", extra={"method": method, "error": str(error)})
        return type(error).__name__, str(error), error.status
    log.error("request crashed", extra={"method": method}, exc_info=error)
    return "", f"{type(error).__name__}: {error} (see the store's log)", "INTERNAL"


async def before_deadline(work: asyncio.Future[Any], timeout_s: float, what: str) -> Any:
    """Wait for work that others may share; raise DeadlineError without cancelling it."""
    done, _ = await asyncio.wait({work}, timeout=timeout_s)
    if not done:
        raise DeadlineError(f"{what} did not end within {timeout_s:.1f} s")
    return work.result()


def remaining_s(context: Any, default_s: float) -> float:
    """Return the seconds that the client gives this RPC, or the default."""
    remaining = context.time_remaining()
    return default_s if remaining is None else min(float(remaining), default_s)


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Requires 'authorization: Bearer TOKEN' of every call that comes over TCP."""

    def __init__(self, token: str) -> None:
        """The token is compared in constant time."""
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Refuse the call unless its metadata has the token."""
        metadata = dict(details.invocation_metadata or ())
        given = str(metadata.get("authorization", "")).encode()
        if hmac.compare_digest(given, self._expected):
            return await continuation(details)
        handler = await continuation(details)
        return _checked_by_peer(handler)


def _checked_by_peer(handler: Any) -> Any:
    """Let Unix-socket peers through, whom the file system has checked; refuse the others."""
    if handler is None:
        return None
    refuse = UnauthenticatedError(
        "this store wants a token: set SLLM_STORE_TOKEN to the one it was started with"
    )

    async def require_local(context: Any) -> None:
        if not context.peer().startswith("unix:"):
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                str(refuse),
                ((ERROR_KEY, type(refuse).__name__),),
            )

    if handler.response_streaming:

        async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
            await require_local(context)
            async for response in handler.unary_stream(request, context):
                yield response

        return grpc.unary_stream_rpc_method_handler(
            streaming, handler.request_deserializer, handler.response_serializer
        )

    async def single(request: Any, context: Any) -> Any:
        await require_local(context)
        return await handler.unary_unary(request, context)

    return grpc.unary_unary_rpc_method_handler(
        single, handler.request_deserializer, handler.response_serializer
    )
