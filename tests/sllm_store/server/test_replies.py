"""Replies that threads send beside the event loop: with room for them, without, to nobody."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from sllm_store.local_wire import LENGTH
from sllm_store.server.replies import ClientGoneError, Replies

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGE = bytes(range(256)) * 8192  # More than a socket has room for.


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    server, client = socket.socketpair()
    server.settimeout(0.0)
    client.settimeout(10)
    with server, client:
        yield server, client


def framed(*replies: bytes) -> bytes:
    return b"".join(LENGTH.pack(len(reply)) + reply for reply in replies)


def test_a_thread_sends_without_the_event_loop(ends: tuple[socket.socket, socket.socket]) -> None:
    server, client = ends
    with Replies(server) as replies:
        thread = threading.Thread(target=replies.try_send, args=(b"planned",))
        thread.start()
        thread.join()
        assert client.recv(100) == framed(b"planned")


def test_what_there_is_no_room_for_is_flushed_in_order(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    server, client = ends
    expected = framed(LARGE, b"second", b"third")
    received = bytearray()

    def read() -> None:
        while len(received) < len(expected):
            received.extend(client.recv(1 << 16))

    async def send() -> None:
        with Replies(server) as replies:
            replies.try_send(LARGE)
            replies.try_send(b"second")
            flushing = asyncio.create_task(replies.flush())
            await asyncio.sleep(0)
            replies.try_send(b"third")  # While the rest of the first is on its way.
            reader = threading.Thread(target=read)
            reader.start()
            await flushing
            await asyncio.to_thread(reader.join)

    asyncio.run(send())
    assert bytes(received) == expected


def test_who_is_gone_is_told_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    server, client = ends
    client.close()
    with Replies(server) as replies:
        replies.try_send(b"done")
        asyncio.run(replies.flush())
        descriptor = os.dup(0)
        with pytest.raises(ClientGoneError):
            replies.send_descriptor(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_who_leaves_while_there_is_no_room_is_found_gone(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    server, client = ends
    with Replies(server) as replies:
        replies.try_send(LARGE)
        client.close()
        with pytest.raises(ClientGoneError):
            asyncio.run(replies.flush())


def test_a_thread_that_is_late_sends_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    server, client = ends
    with Replies(server) as replies:
        pass
    replies.try_send(b"late")
    server.close()
    assert client.recv(100) == b""
