"""Sessions and leases: what a client holds, given back when its connection ends, however it ends.

A host load or a shared one gives the session a lease. The client takes it to the descriptor socket,
and from then on it belongs to that connection, which lives exactly as long as the client's mapping.

All of it belongs to the event loop; nothing here is called from another thread.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sllm_store.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sllm_store.native import Control

SESSIONS_MAX = 4096
CLIENT_NAME_MAX = 128


@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """A client's holds on pool chunks and resident arenas; each is called once, to end it."""

    holds: tuple[Callable[[], None], ...]

    def release(self) -> None:
        """Give it all back."""
        for end_hold in self.holds:
            end_hold()


@dataclass(slots=True, eq=False)
class Session:
    """One client's call: its running load, and the leases that it has yet to take away."""

    client: str
    leases: dict[str, Lease] = field(default_factory=dict)
    running: set[Control] = field(default_factory=set)

    @property
    def holder(self) -> str:
        """How messages name this client."""
        return f"client {self.client}"


class Sessions:
    """All open sessions."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """Call `wake` when loads were cancelled that may be waiting."""
        self._wake = wake
        self._sessions: set[Session] = set()
        self._attached = 0

    def open(self, client: str) -> Session:
        """Start a session; raise InvalidRequestError when there are too many."""
        if len(self._sessions) >= SESSIONS_MAX:
            raise InvalidRequestError(f"{SESSIONS_MAX} sessions are open: close some clients")
        name = "".join(c for c in client if c.isprintable())[:CLIENT_NAME_MAX] or "unnamed"
        session = Session(name)
        self._sessions.add(session)
        return session

    def close(self, session: Session) -> None:
        """Cancel the session's loads and give its leases back."""
        self._sessions.discard(session)
        for control in session.running:
            control.cancel()
        self._wake()
        while session.leases:
            _, lease = session.leases.popitem()
            lease.release()

    def lease(self, session: Session, lease: Lease) -> str:
        """Give a lease to a session; raise InvalidRequestError if that has ended meanwhile."""
        if session not in self._sessions:
            lease.release()
            raise InvalidRequestError("the session ended while its load was running")
        lease_id = uuid.uuid4().hex
        session.leases[lease_id] = lease
        return lease_id

    def attach(self, lease_id: str) -> Lease | None:
        """Take a lease away from its session, to be detached in the end; None if there is none."""
        for session in self._sessions:
            lease = session.leases.pop(lease_id, None)
            if lease is not None:
                self._attached += 1
                return lease
        return None

    def detach(self, lease: Lease) -> None:
        """Give an attached lease back."""
        self._attached -= 1
        lease.release()

    @property
    def count(self) -> int:
        """Open sessions."""
        return len(self._sessions)

    @property
    def lease_count(self) -> int:
        """Leases of all sessions."""
        waiting = sum(len(session.leases) for session in self._sessions)
        return self._attached + waiting
