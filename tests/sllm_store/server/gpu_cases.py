"""Clients that load to (fake) GPUs, one case a process: CASE ADDRESS [ARGUMENT…]."""

from __future__ import annotations

import ctypes
import shutil
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from sllm_store import client as client_module, errors, native
from sllm_store.checkpoint.dtype import contiguous_bytes
from sllm_store.checkpoint.reader import guess_arena_bytes
from sllm_store.client import SllmStoreClient
from sllm_store.local_connection import LocalConnection
from sllm_store.proto import storage_pb2 as pb
from sllm_store.server import start_rates
from sllm_store.stream import load_checkpoint
from sllm_store.tiers.device import visible_gpus
from tests.raising import raises
from tests.store_process import (
    random_tensors,
    read_tensors,
    wait_until,
    weight_tensors,
    write_upstream,
)

if TYPE_CHECKING:
    from sllm_store.checkpoint.loaded import Loaded


COUNT, SIZE = 6, 700_001  # Of the model in test_shared.py.


def on_device(buffer: native.DeviceBuffer | native.DeviceMapping, offset: int, size: int) -> bytes:
    host = ctypes.create_string_buffer(size)
    native.copy_from_device(buffer.device, buffer.address + offset, ctypes.addressof(host), size)
    return host.raw


def check(client: SllmStoreClient, device_map: dict[str, str], count: int, size: int) -> str:
    expected = random_tensors(count, size)
    loaded = client.load("m", device_map, timeout_s=60)
    assert {t.name for t in loaded.tensors} == set(expected)
    for tensor in loaded.tensors:
        arena = loaded.arenas[tensor.arena]
        assert isinstance(arena, native.DeviceBuffer)
        assert tensor.offset_bytes % 256 == 0
        content = on_device(arena, tensor.offset_bytes, len(expected[tensor.name]))
        assert content == expected[tensor.name], tensor.name
    return loaded.tier


def load(address: str, count: str, size: str) -> None:
    with SllmStoreClient(address) as client:
        first = check(client, {"": native.device_uuid(0)}, int(count), int(size))
        second = check(client, {"": native.device_uuid(1)}, int(count), int(size))
        print(first, second)


def load_again(address: str, model: str) -> None:
    """What is allocated before the plan is known fits, or goes."""
    whole = {"": native.device_uuid(0)}
    with SllmStoreClient(address) as client:
        free = native.device_memory(0)[0]
        for count, size in ((6, 700_001), (9, 500_003), (2, 300_001)):
            shutil.rmtree(model, ignore_errors=True)
            write_upstream(Path(model), random_tensors(count, size))
            for _ in range(2):
                check(client, whole, count, size)
        shutil.rmtree(model)
        with raises(errors.CheckpointNotFoundError) as gone:
            client.load("m", whole)
        assert gone.value.__traceback__ is not None
        assert native.device_memory(0)[0] == free


def load_guessed(address: str, directory: str) -> None:
    """The first load takes memory by the sizes of the files, which are a little more."""
    from unittest.mock import patch

    model = Path(directory)
    sizes = []
    with patch.object(client_module, "GUESSED_BYTES_MIN", 0), SllmStoreClient(address) as client:
        client.storage_path()  # From now on the client knows where the files are.
        for _ in range(2):
            loaded = client.load(model.name, {"": native.device_uuid(0)})
            (arena,) = loaded.arenas
            assert isinstance(arena, native.DeviceBuffer)
            sizes.append(arena.size)
            for tensor in loaded.tensors:
                content = on_device(arena, tensor.offset_bytes, tensor.shape[0])
                assert content == tensor.name[-1:].encode() * tensor.shape[0]
            del loaded, arena
    assert sizes[0] == guess_arena_bytes(model)
    assert sizes[0] - 10_000 < sizes[1] < sizes[0]


def split(address: str, count: str, size: str) -> None:
    spread = {"": native.device_uuid(0), "layers.1": native.device_uuid(1)}
    with SllmStoreClient(address) as client:
        check(client, spread, int(count), int(size))


def parallel(address: str, count: str, size: str) -> None:
    def run(device: int) -> None:
        with SllmStoreClient(address) as client:
            check(client, {"": native.device_uuid(device)}, int(count), int(size))

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(run, index % 2) for index in range(6)]:
            done.result()


def no_memory(address: str) -> None:
    with (
        SllmStoreClient(address) as client,
        raises(errors.OutOfDeviceMemoryError, match="free"),
    ):
        client.load("m", {"": native.device_uuid(0)})


def forever(address: str) -> None:
    """Start a slow load and say so; the parent kills this process."""
    with SllmStoreClient(address) as client:
        client.load("m", {"": native.device_uuid(0)}, on_progress=lambda _a, _b: print("loading"))


def upstream(address: str, count: str, size: str) -> None:
    """Plan the copies as ServerlessLLM's client does, and load through its own methods."""
    expected = random_tensors(int(count), int(size))
    gpu = native.device_uuid(1)
    buffer = native.DeviceBuffer(1, sum(len(t) + 64 for t in expected.values()))
    chunks, places = [], {}
    source = target = 0
    for name, content in expected.items():
        chunks.append((source, len(content), target, 0))
        places[name] = target
        source += len(content) + -len(content) % 8
        target += len(content) + 8
    with SllmStoreClient(address) as client:
        replica = str(uuid.uuid4())
        assert client.register_model("m") == source
        client.load_into_gpu("m", replica, {gpu: chunks}, {gpu: [buffer.ipc_handle()]})
        client.confirm_model_loaded("m", replica)
        for name, content in expected.items():
            assert on_device(buffer, places[name], len(content)) == content, name
        client.unload_from_gpu("m", replica)


def refused(address: str) -> None:
    """Everything that ServerlessLLM's server trusts and ours checks."""
    gpu = native.device_uuid(0)
    buffer = native.DeviceBuffer(0, 2 << 20)
    handle = buffer.ipc_handle()
    stranger = str(uuid.uuid4())
    cases = {
        "past the end of m": ({gpu: [(1 << 60, 8, 0, 0)]}, {gpu: [handle]}),
        "past the end of the": ({gpu: [(0, (2 << 20) + 1, 0, 0)]}, {gpu: [handle]}),
        "past the end of the ": ({gpu: [(0, 8, (1 << 64) - 8, 0)]}, {gpu: [handle]}),
        "handle_idx 1": ({gpu: [(0, 8, 0, 1)]}, {gpu: [handle]}),
        "handle_idx 0": ({gpu: [(0, 8, 0, 0)]}, {}),
        "has 3": ({gpu: [(0, 8, 0, 0)]}, {gpu: [b"abc"]}),
        "cannot open the IPC handle": ({gpu: [(0, 8, 0, 0)]}, {gpu: [bytes(64)]}),
        "no GPU": ({stranger: [(0, 8, 0, 0)]}, {stranger: [handle]}),
        "chunks is empty": ({}, {}),
    }
    with SllmStoreClient(address) as client:
        for message, (chunks, handles) in cases.items():
            with raises((errors.InvalidRequestError, errors.DeviceError), match=message):
                client.load_into_gpu("m", str(uuid.uuid4()), chunks, handles)
        for replica in ("", "never loaded"):
            with raises(errors.InvalidRequestError, match="LoadModelAsync first"):
                client.confirm_model_loaded("m", replica, timeout_s=5)
        assert client.status().loads_running == 0


def late(address: str) -> None:
    """What a client needs between the store's last word and the load's end counts."""
    device_map = {"": native.device_uuid(0)}

    def busy(_done: int, _total: int) -> None:
        began_s = time.monotonic()
        wait_until(lambda: time.monotonic() - began_s > 0.3)

    with SllmStoreClient(address) as client:
        client.set_pinned("m", pinned=True)
        assert client.estimate_load("m", device_map).seconds < 0.2
        for _ in range(2):
            client.load("m", device_map, on_progress=busy)
        wait_until(lambda: client.estimate_load("m", device_map).seconds > 0.2)


def link_rates(_address: str) -> None:
    """What a store measures of its links when it starts."""
    pool = native.SharedPool(8 << 20)
    gpus = visible_gpus()
    assert start_rates.link_rates(pool, gpus, {}) == {}
    pool.populate(1)
    pool.pin()
    alone = start_rates.link_rates(pool, gpus, {})
    assert set(alone) == set(gpus)
    assert all(1e7 < rate < 1e13 for rate in alone.values())
    lent = start_rates.link_rates(pool, gpus, {0: (1,), 1: ()})
    assert lent[gpus[0]] > lent[gpus[1]]


def no_link_rates(_address: str) -> None:
    pool = native.SharedPool(8 << 20)
    pool.pin()
    assert start_rates.link_rates(pool, visible_gpus(), {}) == {}


def fails_once(address: str, message: str, count: str = "4") -> None:
    """The first load fails with the store's error, the next one works."""
    with SllmStoreClient(address) as client:
        with raises(errors.StoreError, match=message):
            check(client, {"": native.device_uuid(0)}, int(count), 3_000_000)
        check(client, {"": native.device_uuid(0)}, int(count), 3_000_000)


def read_shared(loaded: Loaded, expected: dict[str, bytes]) -> None:
    assert {t.name for t in loaded.tensors} == set(expected)
    for tensor in loaded.tensors:
        arena = loaded.arenas[tensor.arena]
        if isinstance(arena, native.PoolMapping):
            continue
        assert isinstance(arena, native.DeviceMapping)
        content = on_device(arena, tensor.offset_bytes, len(expected[tensor.name]))
        assert content == expected[tensor.name], tensor.name


def hold_shared(address: str, device: str = "0", seed: str = "0") -> None:
    """Share a model, say where it came from, and keep it without a client until told to end."""
    expected = random_tensors(COUNT, SIZE, seed=int(seed))
    with SllmStoreClient(address) as client:
        gpu = native.device_uuid(int(device))
        loaded = client.load("m", {"": gpu}, shared=True, timeout_s=60)
    read_shared(loaded, expected)
    print(loaded.tier, flush=True)
    sys.stdin.readline()
    read_shared(loaded, expected)
    print("still there", flush=True)


def share_twice(address: str) -> None:
    expected = random_tensors(COUNT, SIZE)
    gpu = native.device_uuid(0)
    with SllmStoreClient(address) as client:
        loads = [client.load("m", {"": gpu}, shared=True) for _ in range(3)]
        addresses = {arena.address for load in loads for arena in load.arenas}  # type: ignore[union-attr]
        assert len(addresses) == 1
        assert client.status().leases == 3
        for left in (2, 1):
            loads.pop()
            wait_until(lambda left=left: client.status().leases == left)  # type: ignore[misc]
            read_shared(loads[0], expected)
        loads.clear()
        wait_until(lambda: client.status().leases == 0)
        read_shared(client.load("m", {"": gpu}, shared=True), expected)


def share_split(address: str) -> None:
    """A map over two GPUs and the host: two shared arenas and a private mapping, one lease."""
    expected = random_tensors(COUNT, SIZE)
    spread = {"": native.device_uuid(0), "layers.1": native.device_uuid(1), "layers.0": "cpu"}
    with SllmStoreClient(address) as client:
        for _ in range(2):
            loaded = client.load("m", spread, shared=True)
            read_shared(loaded, expected)
            kinds = [type(arena).__name__ for arena in loaded.arenas]
            assert sorted(kinds) == ["DeviceMapping", "DeviceMapping", "PoolMapping"]
            assert client.status().leases == 1
            del loaded
            wait_until(lambda: client.status().leases == 0)


def private(address: str, device: str, tier: str) -> None:
    with SllmStoreClient(address) as client:
        gpu = native.device_uuid(int(device))
        assert check(client, {"": gpu}, COUNT, SIZE) == tier


def private_part(address: str, tier: str) -> None:
    """Some tensors of a model, at other places than in the arena that has them all."""
    expected = random_tensors(COUNT, SIZE)
    some = {"": "cpu", "layers.1": native.device_uuid(0), "layers.3": native.device_uuid(0)}
    with SllmStoreClient(address) as client:
        loaded = client.load("m", some)
        found = 0
        for tensor in loaded.tensors:
            arena = loaded.arenas[tensor.arena]
            if isinstance(arena, native.DeviceBuffer):
                content = on_device(arena, tensor.offset_bytes, len(expected[tensor.name]))
                assert content == expected[tensor.name], tensor.name
                found += 1
        assert found == 2
        assert loaded.tier == tier


def shared_forever(address: str) -> None:
    """Start a slow shared load and say so; the parent kills this process."""
    with SllmStoreClient(address) as client:
        gpu = native.device_uuid(0)
        client.load("m", {"": gpu}, shared=True, on_progress=lambda _a, _b: print("loading"))


def share_fails(address: str, message: str) -> None:
    with SllmStoreClient(address) as client:
        with raises(errors.StoreError, match=message) as caught:
            client.load("m", {"": native.device_uuid(0)}, shared=True)
        print(type(caught.value).__name__)


def held_and_not_mapped(address: str) -> None:
    """A client that is told of what it holds and dies before it maps it; then bad requests."""
    question = pb.PlanLoadRequest(model="m", device_map={"": native.device_uuid(0)})
    with SllmStoreClient(address) as client:
        local_socket = client.status().local_socket
        with LocalConnection(local_socket, address=address) as connection:
            request = pb.LoadRequest(question=question, shared=True)
            events = list(connection.load(request))
            assert events[0].plan.path
            assert events[-1].held
            assert client.status().leases == 1
        wait_until(lambda: client.status().leases == 0)
        target = pb.DeviceTarget(device="gpu", ipc_handle=bytes(64))
        wrong = pb.LoadRequest(question=question, shared=True, targets=[target])
        for message, request in {"no targets": wrong, "model is empty": pb.LoadRequest()}.items():
            with (
                LocalConnection(local_socket, address=address) as connection,
                raises(errors.InvalidRequestError, match=message),
            ):
                next(connection.load(request))
        assert client.status().sessions == 0


def content_of(loaded: Loaded) -> dict[str, bytes]:
    """Return the bytes of every tensor, wherever it is."""
    content = {}
    for number, arena in enumerate(loaded.arenas):
        if isinstance(arena, native.DeviceBuffer | native.DeviceMapping):
            for tensor in loaded.tensors:
                if tensor.arena == number:
                    size = contiguous_bytes(tensor.dtype, tensor.shape)
                    content[tensor.name] = on_device(arena, tensor.offset_bytes, size)
        elif arena is not None:
            content |= read_tensors(loaded, arena=number)
    return content


def compressed(address: str, path: str, count: str, size: str) -> None:
    """Load a compressed checkpoint to one GPU, to two, and to a GPU and the host, both ways."""
    expected = weight_tensors(int(count), int(size))
    first, second = native.device_uuid(0), native.device_uuid(1)
    with SllmStoreClient(address) as client:
        for device_map in (
            {"": first},
            {"": first, "layers.1": second, "norm": second},
            {"": second, "layers.0": "cpu", "layers.2": "cpu"},
            {"": "cpu"},
        ):
            assert content_of(client.load("m", device_map)) == expected, device_map
            loaded = load_checkpoint(Path(path), device_map, threads=2)
            assert content_of(loaded) == expected, device_map
        wait_until(lambda: client.status().leases == 0)


def alike(address: str, root: str) -> None:
    """Two checkpoints have the same bytes, through every path."""
    first, second = native.device_uuid(0), native.device_uuid(1)
    with SllmStoreClient(address) as client:
        for device_map in (
            {"": first},
            {"": first, "model.layers.1": second, "model.layers.2": "cpu"},
            {"": "cpu"},
        ):
            plain = content_of(load_checkpoint(Path(root, "plain"), device_map))
            assert content_of(load_checkpoint(Path(root, "small"), device_map)) == plain
            assert content_of(client.load("small", device_map)) == plain
            assert content_of(client.load("small", device_map)) == plain


def compressed_shared(address: str, count: str, size: str) -> None:
    """What is resident is decoded; another GPU's arena and a private one are copies of it."""
    expected = weight_tensors(int(count), int(size))
    first, second = native.device_uuid(0), native.device_uuid(1)
    with SllmStoreClient(address) as client:
        shared = client.load("m", {"": first}, shared=True)
        assert content_of(shared) == expected
        for device in (second, first):
            loaded = client.load("m", {"": device})
            assert loaded.tier == "device"
            assert content_of(loaded) == expected
        mixed = client.load("m", {"": first, "layers.1": "cpu"}, shared=True)
        assert content_of(mixed) == expected


def compressed_fails_once(address: str, message: str, count: str, size: str) -> None:
    """A load whose decoding the driver refuses fails with its error, and the next one works."""
    with SllmStoreClient(address) as client:
        device_map = {"": native.device_uuid(0)}
        with raises(errors.DeviceError, match=message):
            client.load("m", device_map)
        assert content_of(client.load("m", device_map)) == weight_tensors(int(count), int(size))


def compressed_to_gpus(address: str, count: str, size: str) -> None:
    """Load a compressed checkpoint through a ring, again and again."""
    first, second = native.device_uuid(0), native.device_uuid(1)
    with SllmStoreClient(address) as client:
        for device_map in ({"": first}, {"": second, "layers.1": first}):
            loaded = client.load("m", device_map)
            assert content_of(loaded) == weight_tensors(int(count), int(size))


def corrupt(address: str) -> None:
    """A segment that no decoder takes fails the load, and nothing else."""
    with SllmStoreClient(address) as client:
        for device in (native.device_uuid(0), "cpu", native.device_uuid(1)):
            with raises(errors.ChecksumError, match=r"corrupt.*verify the checkpoint"):
                client.load("m", {"": device})
        wait_until(lambda: client.status().leases == 0)
        assert content_of(client.load("n", {"": native.device_uuid(0)})) == weight_tensors(
            2, 500_000
        )


def refused_compressed(address: str, message: str) -> None:
    """ServerlessLLM's client plans with offsets that a compressed checkpoint does not have."""
    gpu = native.device_uuid(0)
    handle = native.DeviceBuffer(0, 2 << 20).ipc_handle()
    with (
        SllmStoreClient(address) as client,
        raises(errors.InvalidRequestError, match=message),
    ):
        client.load_into_gpu("m", str(uuid.uuid4()), {gpu: [(0, 8, 0, 0)]}, {gpu: [handle]})


def estimates(address: str) -> None:
    """Estimate before and after each kind of load; say where the bytes were expected."""
    device_map = {"": native.device_uuid(0)}
    with SllmStoreClient(address) as client:

        def expected(*, shared: bool = False) -> str:
            estimate = client.estimate_load("m", device_map, shared=shared)
            moved = {
                "disk": estimate.disk_bytes,
                "cached": estimate.cached_bytes,
                "host": estimate.host_bytes,
                "copy": estimate.device_bytes,
            }
            where = [name for name, size in moved.items() if size] or ["mapped"]
            assert estimate.seconds > 0
            return "+".join(where)

        said = [expected()]
        client.load("m", device_map)
        said.append(expected(shared=True))
        held = client.load("m", device_map, shared=True)
        said += [expected(), expected(shared=True)]
        assert client.estimate_load("m", device_map).samples == 0
        client.load("m", device_map)
        assert client.estimate_load("m", device_map).samples == 1
        del held
    print(*said)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
