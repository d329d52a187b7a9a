"""Loads on a real GPU: every byte, every path, and what the driver says when asked for too much.

Run with `pytest -m gpu` on a machine with a CUDA device and a CUDA build of torch.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from sllm_store import native
from sllm_store.client import SllmStoreClient
from sllm_store.errors import DeviceError, OutOfDeviceMemoryError
from sllm_store.torch import load_dict, save_dict
from tests.store_process import StoreProcess, start_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MB = 1 << 20

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    torch.manual_seed(0)
    shapes = {f"layers.{i}.w": (1000 + i, 333) for i in range(200)}
    made: Tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    made |= {f"half.{i}": torch.randn(77, 5 + i).to(torch.bfloat16) for i in range(50)}
    made |= {"flag": torch.rand(31) > 0.5, "scalar": torch.tensor(3.5)}
    made["weights"] = (torch.randn(3000, 1111) / 50).to(torch.bfloat16)
    made["half"] = (torch.randn(999, 1500) / 50).to(torch.float16)
    made["noise"] = torch.randint(-(2**15), 2**15, (700_001,), dtype=torch.int16).view(
        torch.float16
    )
    made["eight"] = torch.randn(64, 3).to(torch.float8_e4m3fn)
    return made


@pytest.fixture(scope="module")
def store(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    root = tmp_path_factory.mktemp("models")
    (root / "st").mkdir()
    save_file(tensors, str(root / "st" / "model.safetensors"))
    save_dict(tensors, root / "ours")
    save_dict(tensors, root / "small", compress=True)
    started = start_process(
        root, tmp_path_factory.mktemp("run"), pool_bytes=1 << 30, chunk_bytes=8 * MB
    )
    yield started
    started.stop()


@pytest.mark.parametrize("name", ["st", "ours", "small"])
@pytest.mark.parametrize("how", ["store", "in-process"])
def test_every_byte_arrives(store: StoreProcess, tensors: Tensors, name: str, how: str) -> None:
    path = store_root(store) / name
    for _ in range(3):
        loaded = load_dict(path, "cuda:0", store=store.address if how == "store" else how)
        same_tensors(loaded, tensors)


def test_the_pool_is_pinned(store: StoreProcess) -> None:
    assert store.client().status().pool_pinned


def test_memory_is_freed_with_the_last_tensor_in_any_order(store: StoreProcess) -> None:
    """Upstream frees a block under its other tensors when the first one dies (WA10)."""
    torch.zeros(1, device="cuda:0")
    loaded = dict(load_dict(store_root(store) / "st", "cuda:0", store=store.address))
    free, _ = native.device_memory(0)
    last = loaded.pop("layers.7.w")
    expected = last.cpu()
    loaded.clear()
    gc.collect()
    filler = torch.empty(1 << 28, dtype=torch.uint8, device="cuda:0").fill_(255)
    assert torch.equal(last.cpu(), expected)
    del last, filler
    gc.collect()
    torch.cuda.empty_cache()
    assert native.device_memory(0)[0] > free


def test_a_loaded_tensor_is_a_normal_tensor(store: StoreProcess, tensors: Tensors) -> None:
    loaded = load_dict(store_root(store) / "st", "cuda:0", store=store.address)
    product = loaded["layers.0.w"] @ loaded["layers.0.w"].T
    expected = tensors["layers.0.w"].double() @ tensors["layers.0.w"].double().T
    assert torch.allclose(product.double().cpu(), expected, rtol=1e-2, atol=1e-1)
    assert loaded["layers.1.w"].half().dtype == torch.float16


def test_four_processes_load_at_once(store: StoreProcess) -> None:
    code = (
        "import sys; from sllm_store.torch import load_dict; import torch\n"
        "loaded = load_dict(sys.argv[1], 'cuda:0', store=sys.argv[2])\n"
        "print(sum(t.float().nansum().item() for t in loaded.values()))"
    )
    command = [sys.executable, "-c", code, str(store_root(store) / "st"), store.address]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({process.communicate(timeout=120)[0] for process in running}) == 1
    assert all(process.returncode == 0 for process in running)


def test_too_large_a_load_says_how_much_there_was() -> None:
    _, total = native.device_memory(0)
    from sllm_store.tiers.device import allocate_device

    with pytest.raises(OutOfDeviceMemoryError, match="free of"):
        allocate_device(0, 2 * total)


def test_a_made_up_handle_harms_nothing(store: StoreProcess, tensors: Tensors) -> None:
    """Upstream's server exits (WC1)."""
    gpu = native.device_uuid(0)
    with SllmStoreClient(store.address) as client:
        for handle in (bytes(64), bytes(range(64))):
            with pytest.raises(DeviceError, match="IPC handle"):
                client.load_into_gpu(
                    "ours", str(uuid.uuid4()), {gpu: [(0, 8, 0, 0)]}, {gpu: [handle]}
                )
    same_tensors(load_dict(store_root(store) / "st", 0, store=store.address), tensors)


def same_tensors(loaded: Tensors, tensors: Tensors) -> None:
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        got = loaded[name]
        assert got.device == torch.device("cuda:0")
        assert got.data_ptr() % 256 == 0
        assert got.dtype == tensor.dtype
        assert got.shape == tensor.shape
        left, right = got.cpu().reshape(-1), tensor.reshape(-1)
        assert torch.equal(left.view(torch.uint8), right.view(torch.uint8)), name


def store_root(store: StoreProcess) -> Path:
    from pathlib import Path

    return Path(store.client().status().storage_path)
