"""Sessions and leases: clients whose loads run, and those who hold what a load brought them.

A connection to the local socket is a session from the beginning of its load to the end, and a
lease from then on if there is something to hold. It ends with the connection, however that ends.

All of it belongs to the event loop; nothing here is called from another thread.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sllm_store.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Gauge

    from sllm_store.server.loads import LoadResult

SESSIONS_MAX = 4096
CLIENT_NAME_MAX = 128


class Sessions:
    """Counts who is there."""

    def __init__(self, gauge: Gauge) -> None:
        """Keep `gauge` at the number of sessions."""
        self._gauge = gauge
        self.count = 0
        self.lease_count = 0

    @contextmanager
    def session(self, client: str) -> Iterator[str]:
        """Have a session; yield how messages name the client.

        Raises InvalidRequestError when there are too many.
        """
        if self.count >= SESSIONS_MAX:
            raise InvalidRequestError(f"{SESSIONS_MAX} sessions are open: close some clients")
        name = "".join(c for c in client if c.isprintable())[:CLIENT_NAME_MAX] or "unnamed"
        self.count += 1
        self._gauge.inc()
        try:
            yield f"client {name}"
        finally:
            self.count -= 1
            self._gauge.dec()

    @contextmanager
    def lease(self, result: LoadResult) -> Iterator[None]:
        """Have a lease on what a load holds, if it does; given back on leaving."""
        held = bool(result.holds)
        self.lease_count += held
        try:
            yield
        finally:
            self.lease_count -= held
            result.release()
