"""What both ends of a store's local socket go by: lengths before messages, and who is there."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

LENGTH = struct.Struct("<I")  # Of the message that follows.
_CREDENTIALS = struct.Struct("3i")


class Peer(NamedTuple):
    """The process at the other end of a Unix socket; pid is 0 for one in another container."""

    pid: int
    uid: int
    gid: int


def find_peer(connection: socket.socket) -> Peer:
    """Return who connected, or made the socket that was connected to. Raises OSError."""
    size = _CREDENTIALS.size
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return Peer(*_CREDENTIALS.unpack(raw))
