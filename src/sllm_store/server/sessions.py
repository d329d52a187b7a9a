"""Sessions and leases: what a client holds, given back when its connection ends, however it ends.

A host load gives the session a lease. The client takes it to the descriptor socket, and from then
on it belongs to that connection, which lives exactly as long as the client's mapping.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A hold on a model's chunks in somebody's name."""

    residency: Residency
    holder: str


@dataclass(slots=True, eq=False)
class Session:
    """One client connection: its running loads, and the leases that it has yet to take away."""

    session_id: str
    client: str
    leases: dict[str, Lease] = field(default_factory=dict)
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
        self._attached = 0

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
            _, lease = session.leases.popitem()
            self._host.release(lease.residency, lease.holder)

    def lease(self, session: Session, residency: Residency) -> str | None:
        """Make a hold of the session's a lease; None if the session has ended meanwhile."""
        if session.session_id not in self._sessions:
            return None
        lease_id = uuid.uuid4().hex
        session.leases[lease_id] = Lease(residency=residency, holder=session.holder)
        return lease_id

    def attach(self, lease_id: str) -> Lease | None:
        """Take a lease away from its session, to be detached in the end; None if there is none."""
        for session in self._sessions.values():
            lease = session.leases.pop(lease_id, None)
            if lease is not None:
                self._attached += 1
                return lease
        return None

    def detach(self, lease: Lease) -> None:
        """Give an attached lease back."""
        self._attached -= 1
        self._host.release(lease.residency, lease.holder)

    @property
    def count(self) -> int:
        """Open sessions."""
        return len(self._sessions)

    @property
    def lease_count(self) -> int:
        """Leases of all sessions."""
        waiting = sum(len(session.leases) for session in self._sessions.values())
        return self._attached + waiting
