"""The record of a running server: enough to find it, and never to stop somebody else.

A process id is used again once its process is gone. With it goes the time at which the process
started, and the signal goes through a handle that stays with that process.
"""

from __future__ import annotations

import json
import os
import select
import signal
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sllm.cli.terminal import note
from sllm.core.errors import ServerError
from sllm.library.places import state_directory
from sllm.library.storage import write_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

STOP_TIMEOUT_S = 60.0
_START_FIELD = 19  # Of /proc/<pid>/stat, counted behind the name, which may hold anything.


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRecord:
    """A server of this person's. `started` is when its process was, in the kernel's clock ticks."""

    pid: int
    started: int
    url: str
    root: str

    @property
    def is_alive(self) -> bool:
        """Return whether the process runs, and is the one that wrote this."""
        return _started(self.pid) == self.started


@contextmanager
def recorded(environment: Mapping[str, str], url: str, root: Path) -> Iterator[None]:
    """Keep a record of a server in this process for as long as the context is open.

    Where none can be kept it serves all the same, and a note says what that means.
    """
    pid = os.getpid()
    record = ServerRecord(pid=pid, started=_started(pid) or 0, url=url, root=str(root))
    path = _directory(environment) / f"{pid}.json"
    try:
        write_file(path, json.dumps(asdict(record)).encode())
    except OSError as error:
        note(
            f"{path.parent} cannot be written ({error.strerror}): other commands will not find "
            "this server unless --host or LLM_SERVER_URL names it; Ctrl-C ends it"
        )
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def find_servers(environment: Mapping[str, str]) -> list[ServerRecord]:
    """Return the servers that run; records of others are removed."""
    found = []
    for path in sorted(_directory(environment).glob("*.json")):
        try:
            record = ServerRecord(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            continue  # Being removed, or not ours.
        if record.is_alive:
            found.append(record)
        else:
            path.unlink(missing_ok=True)
    return found


def stop_server(record: ServerRecord) -> None:
    """End a server, and wait until it is gone. Raises ServerError if it does not go."""
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(record.pid)
        try:
            if not record.is_alive:
                return
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            waiting = select.poll()
            waiting.register(handle, select.POLLIN)
            if not waiting.poll(STOP_TIMEOUT_S * 1000):
                raise ServerError(
                    f"the server {record.pid} at {record.url} is still there after "
                    f"{STOP_TIMEOUT_S:.0f} s: look at its output"
                )
        finally:
            os.close(handle)


def _directory(environment: Mapping[str, str]) -> Path:
    return state_directory(environment) / "servers"


def _started(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[_START_FIELD])
