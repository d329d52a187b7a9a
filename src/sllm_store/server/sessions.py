"""Sessions: what a client holds, given back when its connection ends, however it ends.

All of it belongs to the event loop; nothing here is called from another thread.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sllm_store.errors import InvalidRequestError

if TYPE_CHECKING:
    from sllm_store.native import Control
    from sllm_store.tiers.host import HostTier, Residency

SESSIONS_MAX = 4096
CLIENT_NAME_MAX = 128


@dataclass(slots=True, eq=False)
class Session:
    """One client connection: its leases on host memory and its running loads."""

    session_id: str
    client: str
    leases: dict[str, Residency] = field(default_factory=dict)
    running: set[Control] = field(default_factory=set)

    @property
    def holder(self) -> str:
        """How messages name this client."""
        return f"client {self.client}"


class Sessions:
    """All open sessions."""

    def __init__(self, host: HostTier) -> None:
        """Leases are holds on `host`."""
        self._host = host
        self._sessions: dict[str, Session] = {}

    def open(self, client: str) -> Session:
        """Start a session; raise InvalidRequestError when there are too many."""
        if len(self._sessions) >= SESSIONS_MAX:
            raise InvalidRequestError(f"{SESSIONS_MAX} sessions are open: close some clients")
        name = "".join(c for c in client if c.isprintable())[:CLIENT_NAME_MAX] or "unnamed"
        session = Session(uuid.uuid4().hex, name)
        self._sessions[session.session_id] = session
        return session

    def get(self, session_id: str) -> Session:
        """Return an open session; raise InvalidRequestError for any other."""
        try:
            return self._sessions[session_id]
        except KeyError:
            raise InvalidRequestError(
                f"no session {session_id!r}: open one and keep its stream open"
            ) from None

    def close(self, session: Session) -> None:
        """Cancel the session's loads and give its leases back."""
        self._sessions.pop(session.session_id, None)
        for control in session.running:
            control.cancel()
        self._host.wake()
        while session.leases:
            _, residency = session.leases.popitem()
            self._host.release(residency, session.holder)

    def lease(self, session: Session, residency: Residency) -> str | None:
        """Make a hold of the session's a lease; None if the session has ended meanwhile."""
        if session.session_id not in self._sessions:
            return None
        lease_id = uuid.uuid4().hex
        session.leases[lease_id] = residency
        return lease_id

    def release(self, session_id: str, lease_id: str) -> None:
        """Give one lease back; raise InvalidRequestError for one that the session has not."""
        session = self.get(session_id)
        residency = session.leases.pop(lease_id, None)
        if residency is None:
            raise InvalidRequestError(f"session {session_id!r} has no lease {lease_id!r}")
        self._host.release(residency, session.holder)

    @property
    def count(self) -> int:
        """Open sessions."""
        return len(self._sessions)

    @property
    def lease_count(self) -> int:
        """Leases of all sessions."""
        return sum(len(session.leases) for session in self._sessions.values())
