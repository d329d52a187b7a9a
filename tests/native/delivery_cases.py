"""What test_deliveries.py runs: raw and coded bytes, to host memory and to GPUs."""

from __future__ import annotations

import ctypes
import os
import random
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sllm_store import native
from tests.native.segments import bfloat16, coded

KIB = 1 << 10
CHUNK = 1 << 20
HOST = -1


def fake() -> Any:
    return ctypes.CDLL(os.environ["SLLM_CUDA_LIBRARY"])


def assert_nothing_is_left(arenas: int) -> None:
    """Only the test's own arenas, the pages that it pinned and nothing else are alive."""
    assert fake().fake_cuda_live_streams() == fake().fake_cuda_live_events() == 0
    assert fake().fake_cuda_live_allocations() == arenas
    assert fake().fake_cuda_registrations() == 0
    assert fake().fake_cuda_context_depth() == 0


@dataclass
class Load:
    """A random image of raw and coded pieces in chunks, and where they go."""

    seed: int
    ordinals: tuple[int, ...]
    via: dict[int, tuple[int, ...]] = field(default_factory=dict)
    pieces: int | None = None
    stored: bytearray = field(default_factory=bytearray)
    copies: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    decodes: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)
    expected: list[bytearray] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = random.Random(self.seed)
        raws = [bfloat16(16 * KIB, 1), bfloat16(64 * KIB, 2) * 2, bfloat16(30 * KIB + 7, 3)]
        segments = [(raw, coded(raw)) for raw in raws]
        self.expected = [bytearray() for _ in self.ordinals]
        for _ in range(self.pieces or generator.randrange(1, 150)):
            device = generator.randrange(len(self.ordinals))
            if generator.random() < 0.5:
                raw, stored = generator.choice(segments)
                place = self._place(stored, generator.choice([16, 4096]))
                self._decode(device, place, raw, len(stored))
            else:
                raw = generator.randbytes(generator.choice([1, 100, 256 * 17, 200 * KIB]))
                step, offset = self._place(raw, generator.choice([1, 256]))
                self._copy(device, step, offset, raw)

    def _place(self, piece: bytes, alignment: int) -> tuple[int, int]:
        """Append to the image, within one chunk."""
        at = -(-len(self.stored) // alignment) * alignment
        if at // CHUNK != (at + len(piece) - 1) // CHUNK:
            at = -(-at // CHUNK) * CHUNK
        self.stored.extend(bytes(at - len(self.stored)) + piece)
        return divmod(at, CHUNK)

    def _room(self, device: int, alignment: int) -> int:
        arena = self.expected[device]
        arena.extend(bytes(-len(arena) % alignment))
        return len(arena)

    def _decode(self, device: int, place: tuple[int, int], raw: bytes, stored_size: int) -> None:
        step, offset = place
        at = self._room(device, 16)
        self.expected[device].extend(raw)
        self.decodes.append((step, device, at, len(raw), stored_size, offset))

    def _copy(self, device: int, step: int, offset: int, raw: bytes) -> None:
        at = self._room(device, random.Random(len(self.stored)).choice([1, 256]))
        self.expected[device].extend(raw)
        self.copies.append((step, device, at, len(raw), offset))

    @property
    def steps(self) -> int:
        return -(-len(self.stored) // CHUNK)


class Arenas:
    """Memory for a load's devices; host memory where the ordinal is -1."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.buffers = [
            native.HostBuffer(len(content) + 1)
            if ordinal == HOST
            else native.DeviceBuffer(ordinal, len(content) + 1)
            for ordinal, content in zip(load.ordinals, load.expected, strict=True)
        ]

    def devices(self) -> list[tuple[int, int] | tuple[int, int, tuple[int, ...]]]:
        via = self.load.via
        return [
            (ordinal, buffer.address, via[ordinal]) if ordinal in via else (ordinal, buffer.address)
            for ordinal, buffer in zip(self.load.ordinals, self.buffers, strict=True)
        ]

    def check(self) -> None:
        for buffer, content in zip(self.buffers, self.load.expected, strict=True):
            host = ctypes.create_string_buffer(max(len(content), 1))
            if isinstance(buffer, native.DeviceBuffer):
                native.copy_from_device(
                    buffer.device, buffer.address, ctypes.addressof(host), len(content)
                )
            else:
                ctypes.memmove(host, buffer.address, len(content))
            assert host.raw[: len(content)] == bytes(content)

    @property
    def on_gpus(self) -> int:
        return sum(isinstance(buffer, native.DeviceBuffer) for buffer in self.buffers)


def run_from_memory(load: Load, arenas: Arenas, stock: native.LinkStock | None = None) -> None:
    """All chunks are in host memory already."""
    pool = native.HostBuffer(len(load.stored))
    ctypes.memmove(pool.address, bytes(load.stored), len(load.stored))
    report = native.run_transfer(
        [],
        [(pool.address + step * CHUNK, -1) for step in range(load.steps)],
        [],
        load.copies,
        arenas.devices(),
        decodes=load.decodes,
        mode="auto",
        threads=3,
        control=native.Control(),
        stock=stock,
    )
    assert report.bytes_copied == sum(entry[3] for entry in (*load.copies, *load.decodes))


def run_through_a_ring(
    load: Load,
    arenas: Arenas,
    path: Path,
    *,
    control: native.Control | None = None,
    threads: int = 3,
) -> None:
    """Chunks are read through three slots."""
    path.write_bytes(load.stored)
    slots = 3
    ring = native.HostBuffer(slots * CHUNK)
    size = len(load.stored)
    native.run_transfer(
        [native.File(str(path))],
        [
            (ring.address + step % slots * CHUNK, step - slots if step >= slots else -1)
            for step in range(load.steps)
        ],
        [(i, 0, i * CHUNK, min(CHUNK, size - i * CHUNK), 0) for i in range(load.steps)],
        load.copies,
        arenas.devices(),
        decodes=load.decodes,
        mode="auto",
        threads=threads,
        control=control or native.Control(),
    )


PLACES: list[tuple[tuple[int, ...], dict[int, tuple[int, ...]]]] = [
    ((HOST,), {}),
    ((0,), {}),
    ((0, 1), {}),
    ((HOST, 1), {}),
    ((0, 0), {}),
    ((0,), {0: (1,)}),
    ((1, 0), {0: (1,), 1: (0, 2)}),
    ((2, HOST, 0), {2: (0, 1, 3), 0: (3,)}),
]


def bytes_are_those_of_a_plain_load(directory: Path) -> None:
    for seed in range(24):
        ordinals, via = PLACES[seed % len(PLACES)]
        load = Load(seed, ordinals, via)
        arenas = Arenas(load)
        run_from_memory(load, arenas)
        arenas.check()
        again = Arenas(load)
        run_through_a_ring(load, again, directory / "image", threads=1 + seed % 4)
        again.check()
        assert_nothing_is_left(arenas.on_gpus + again.on_gpus)


def what_links_need_is_kept_for_the_next_transfer(_: Path) -> None:
    """Of a load that is made again, nothing is made again but its arenas."""
    for seed, (ordinals, via) in enumerate(PLACES):
        stock = native.LinkStock()
        made = []
        for _run in range(3):
            load = Load(seed, ordinals, via, pieces=100)
            arenas = Arenas(load)
            run_from_memory(load, arenas, stock)
            arenas.check()
            links = {ordinal for ordinal in ordinals if ordinal != HOST}.union(*via.values())
            assert stock.idle == len(links)
            del arenas
            made.append((fake().fake_cuda_live_streams(), fake().fake_cuda_live_allocations()))
        assert made[1:] == made[:1] * 2
        del stock
        assert_nothing_is_left(0)


def what_is_kept_for_links_is_bounded(_: Path) -> None:
    """Every set of neighbours takes other memory of GPU 0's link."""
    stock = native.LinkStock()
    raw = bfloat16(64 * KIB, 2)
    segment = coded(raw)
    pool = native.HostBuffer(len(segment), pinned=False)
    ctypes.memmove(pool.address, segment, len(segment))
    arena = native.DeviceBuffer(0, len(raw))
    before = fake().fake_cuda_live_allocations()
    for via in ((), (1,), (2,), (3,), (1, 2), (2, 3), (1, 3), (1, 2, 3)) * 2:
        native.run_transfer(
            [],
            [(pool.address, -1)],
            [],
            [],
            [(0, arena.address, via)],
            decodes=[(0, 0, 0, len(raw), len(segment), 0)],
            mode="auto",
            threads=1,
            control=native.Control(),
            stock=stock,
        )
        assert 1 <= stock.idle <= 4 * 4
        assert fake().fake_cuda_live_allocations() - before <= 2 * stock.idle
    del stock, arena
    assert_nothing_is_left(0)


def what_a_failed_transfer_used_is_not_kept(_: Path) -> None:
    load = Load(7, (0, 1, HOST), {0: (1,), 1: (0, 2)})
    arenas = Arenas(load)
    stock = native.LinkStock()
    for _again in range(2):
        with pytest.raises(native.CudaError):
            run_from_memory(load, arenas, stock)
    del stock
    assert_nothing_is_left(arenas.on_gpus)


def a_link_that_met_a_corrupt_segment_is_not_kept(_: Path) -> None:
    stock = native.LinkStock()
    load = Load(1, (0,))
    step, _device, _at, _raw_size, stored_size, offset = load.decodes[0]
    at = step * CHUNK + offset
    whole = bytes(load.stored[at : at + stored_size])
    load.stored[at : at + stored_size] = bytes(stored_size)
    arenas = Arenas(load)
    with pytest.raises(native.NativeError, match="is corrupt"):
        run_from_memory(load, arenas, stock)
    assert stock.idle == 0
    load.stored[at : at + stored_size] = whole
    run_from_memory(load, arenas, stock)
    arenas.check()
    assert stock.idle == 1


def big_steps_are_cut(_: Path) -> None:
    """More than fits into a link's slots, in one step: raw bytes, then segments of a megabyte."""
    raw = random.Random(4).randbytes(70 << 20)
    segment = bfloat16(64 * KIB, 5) * 16
    stored = coded(segment)
    stride = -(-len(stored) // 4096) * 4096
    count = 60
    image = raw + b"".join(stored.ljust(stride, b"\0") for _ in range(count))
    pool = native.HostBuffer(len(image))
    ctypes.memmove(pool.address, image, len(image))
    for via in ((), (1,), (1, 2, 3)):
        arena = native.DeviceBuffer(0, len(raw) + count * len(segment))
        control = native.Control()
        native.run_transfer(
            [],
            [(pool.address, -1)],
            [],
            [(0, 0, 0, len(raw), 0)],
            [(0, arena.address, via)],
            decodes=[
                (
                    0,
                    0,
                    len(raw) + i * len(segment),
                    len(segment),
                    len(stored),
                    len(raw) + i * stride,
                )
                for i in range(count)
            ],
            mode="auto",
            threads=1,
            control=control,
        )
        assert control.bytes_done == arena.size
        host = ctypes.create_string_buffer(arena.size)
        native.copy_from_device(0, arena.address, ctypes.addressof(host), arena.size)
        assert host.raw[: len(raw)] == raw
        assert host.raw[len(raw) :] == segment * count
        del arena
        assert_nothing_is_left(0)


def a_corrupt_segment_is_named(directory: Path) -> None:
    for seed in range(16):
        ordinals, via = PLACES[seed % len(PLACES)]
        load = Load(seed, ordinals, via)
        if not load.decodes:
            continue
        step, _, _, _, stored_size, offset = random.Random(seed).choice(load.decodes)
        at = step * CHUNK + offset
        load.stored[at : at + stored_size] = bytes(stored_size)
        arenas = Arenas(load)
        with pytest.raises(native.NativeError, match="is corrupt") as caught:
            run_from_memory(load, arenas)
        assert f"step {step}: the coded segment at {offset} " in str(caught.value)
        assert caught.value.filename is None
        path = directory / "image"
        with pytest.raises(native.NativeError, match="is corrupt") as caught:
            run_through_a_ring(load, arenas, path)
        assert f"step {step}: the coded segment at {offset} " in str(caught.value)
        assert f"(at {at} of the file)" in str(caught.value)
        assert caught.value.filename == str(path)
        assert_nothing_is_left(arenas.on_gpus)


def a_driver_failure_ends_the_transfer(directory: Path) -> None:
    load = Load(7, (0, 1, HOST), {0: (1,), 1: (0, 2)})
    arenas = Arenas(load)
    with pytest.raises(native.CudaError) as caught:
        run_through_a_ring(load, arenas, directory / "image")
    assert caught.value.args[1] == 999, caught.value
    assert_nothing_is_left(arenas.on_gpus)
    with pytest.raises(native.CudaError):
        run_from_memory(load, arenas)


def a_cancel_ends_a_slow_transfer(directory: Path) -> None:
    for seed, (ordinals, via) in enumerate(PLACES):
        if HOST in ordinals:
            continue
        load = Load(seed, ordinals, via, pieces=400)
        arenas = Arenas(load)
        control = native.Control()

        def cancel_after_the_first_bytes(control: native.Control = control) -> None:
            assert control.wait(0, 30.0) > 0
            control.cancel()

        watcher = threading.Thread(target=cancel_after_the_first_bytes)
        watcher.start()
        with pytest.raises(native.Cancelled):
            run_through_a_ring(load, arenas, directory / "image", control=control)
        watcher.join()
        assert_nothing_is_left(arenas.on_gpus)


def a_neighbour_without_peer_access_is_refused(_: Path) -> None:
    load = Load(3, (0,), {0: (1,)})
    arenas = Arenas(load)
    with pytest.raises(native.CudaError, match="device 1 cannot reach the memory of device 0") as e:
        run_from_memory(load, arenas)
    assert "leave it out of the fan-in" in str(e.value)
    assert_nothing_is_left(1)


def all_links_of_a_fan_in_are_used(_: Path) -> None:
    """Copies are slow: the neighbours take most of what one link would send alone."""
    size = 256 << 20
    pool = native.HostBuffer(size)
    arena = native.DeviceBuffer(0, size)
    native.run_transfer(
        [],
        [(pool.address + at, -1) for at in range(0, size, 32 << 20)],
        [],
        [(i, 0, at, 32 << 20, 0) for i, at in enumerate(range(0, size, 32 << 20))],
        [(0, arena.address, (1, 2))],
        mode="auto",
        threads=1,
        control=native.Control(),
    )
    sent = [fake().fake_cuda_mib_sent_to(device) for device in range(3)]
    assert 253 <= sum(sent) <= 256  # each is rounded down
    assert all(mib >= 32 for mib in sent), sent


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
