"""Each end of a Unix socket knows the other."""

from __future__ import annotations

import os
import socket

from sllm_store.local_wire import find_peer


def test_the_peer_of_a_socket_is_the_process_that_made_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        assert find_peer(ours) == (os.getpid(), os.getuid(), os.getgid())
