"""Models in GPU memory that real processes share, and copies of them."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from sllm_store import native
from sllm_store.torch import load_dict
from sllm_store.transformers import load_model
from tests.store_process import StoreProcess, start_process, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Tensors = dict[str, torch.Tensor]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MB = 1 << 20
ARENA_BYTES = 1 << 30

# Loads m, says what a kernel makes of it, and holds it until told to go on: "again" says it once
# more, "write" writes first, anything else ends.
CLIENT = """
import sys, torch
from sllm_store.torch import load_dict
torch.zeros(1, device="cuda:0")
loaded = load_dict("m", "cuda:0", store=sys.argv[1], shared=True)
def told():
    return sum(t.float().sum().item() for t in loaded.values())
print(loaded.tier, told(), flush=True)
for line in sys.stdin:
    if line.strip() == "write":
        next(iter(loaded.values())).fill_(7)
        torch.cuda.synchronize()
    elif line.strip() != "again":
        break
    print(told(), flush=True)
"""


class Client:
    """A process that shares m."""

    def __init__(self, store: StoreProcess) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, store.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.tier, total = self.line().split()
        self.total = float(total)

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.process.communicate()[1]
        return line

    def ask(self, what: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return float(self.line())

    def end(self) -> int:
        self.process.communicate("end\n", timeout=60)
        return self.process.returncode


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    torch.manual_seed(0)
    count = ARENA_BYTES // 2 // 8
    return {f"layers.{i}.w": torch.randn(count).to(torch.bfloat16) for i in range(8)}


@pytest.fixture
def store(tensors: Tensors, tmp_path: Path) -> Iterator[StoreProcess]:
    (tmp_path / "models" / "m").mkdir(parents=True)
    save_file(tensors, str(tmp_path / "models" / "m" / "model.safetensors"))
    started = start_process(
        tmp_path / "models", tmp_path, pool_bytes=2 << 30, chunk_bytes=32 * MB, threads=8
    )
    yield started
    started.stop()


def on_gpu(device: int = 0) -> dict[str, str]:
    return {"": native.device_uuid(device)}


def same(loaded: Tensors, tensors: Tensors) -> None:
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name].cpu().view(torch.int16), tensor.view(torch.int16)), name


def test_processes_share_one_copy_and_it_goes_with_the_last(
    store: StoreProcess, tensors: Tensors
) -> None:
    first = Client(store)
    assert first.tier == "disk"
    free, _ = native.device_memory(0)
    mine = load_dict("m", "cuda:0", store=store.address, shared=True)
    twice = load_dict("m", "cuda:0", store=store.address, shared=True)
    assert (mine.tier, twice.tier) == ("device", "device")
    assert mine["layers.3.w"].data_ptr() == twice["layers.3.w"].data_ptr()
    assert free - native.device_memory(0)[0] < ARENA_BYTES // 4
    same(mine, tensors)
    del mine
    same(twice, tensors)
    assert first.end() == 0
    same(twice, tensors)
    client = store.client()
    assert client.status().resident_bytes[native.device_uuid(0)] >= ARENA_BYTES
    free, _ = native.device_memory(0)
    del twice
    wait_until(lambda: client.status().leases == 0)
    wait_until(lambda: native.device_memory(0)[0] - free > ARENA_BYTES * 3 // 4)


def test_what_one_process_writes_the_others_see(store: StoreProcess) -> None:
    """Why the documents say: treat it as read-only."""
    writer, reader = Client(store), Client(store)
    assert writer.total == reader.total
    written = writer.ask("write")
    assert written != reader.total
    assert reader.ask("again") == written
    assert (writer.end(), reader.end()) == (0, 0)


def test_a_killed_client_frees_its_share(store: StoreProcess) -> None:
    client = store.client()
    victim, other = Client(store), Client(store)
    victim.process.kill()
    victim.process.communicate()
    wait_until(lambda: client.status().leases == 1)
    assert other.ask("again") == other.total
    other.process.kill()
    other.process.communicate()
    wait_until(lambda: client.status().resident_bytes[native.device_uuid(0)] == 0)


def test_a_private_load_copies_what_is_resident(store: StoreProcess, tensors: Tensors) -> None:
    client = store.client()
    client.set_pinned("m", pinned=True, device_map=on_gpu())
    client.unload_from_cpu("m")
    for device in range(min(2, native.device_count())):
        loaded = load_dict("m", f"cuda:{device}", store=store.address)
        assert loaded.tier == "device"
        same(loaded, tensors)
        loaded["layers.0.w"].zero_()
        torch.cuda.synchronize(device)
        del loaded
    same(load_dict("m", "cuda:0", store=store.address, shared=True), tensors)
    assert client.status().pool_used_bytes == 0


def test_a_kernel_that_still_runs_when_its_tensors_go_has_read_what_was_there(
    store: StoreProcess,
) -> None:
    loaded = load_dict("m", "cuda:0", store=store.address, shared=True)
    expected = loaded["layers.0.w"].double().sum()
    total = torch.zeros((), dtype=torch.float64, device="cuda:0")
    sleep: Any = torch.cuda._sleep
    sleep(2_000_000_000)
    total += loaded["layers.0.w"].double().sum()
    del loaded
    wait_until(lambda: store.client().status().leases == 0, timeout_s=30)
    filler = torch.full((ARENA_BYTES,), 255, dtype=torch.uint8, device="cuda:0")
    assert total.item() == expected.item()
    del filler


def test_clients_of_a_killed_store_know_where_they_stand(store: StoreProcess) -> None:
    """CUDA promises nothing here; a client that ends cleanly or with an error is told."""
    holder = Client(store)
    store.stop(signal.SIGKILL)
    told, errors = holder.process.communicate("again\n", timeout=60)
    sys.stdout.write(f"after the store was killed: {told or 'an error'}, before: {holder.total}\n")
    assert told.strip() or "CUDA" in errors


def test_a_shared_model_answers_as_a_private_one(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config: Any = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    made: Any = LlamaForCausalLM(config)
    made.to(torch.bfloat16).save_pretrained(tmp_path / "models" / "llama")
    store = start_process(tmp_path / "models", tmp_path)
    try:
        ids = torch.arange(40, device="cuda:0").view(2, 20)
        outputs = []
        for shared in (False, True, True):
            model: Any = load_model("llama", "cuda:0", store=store.address, shared=shared)
            assert all(p.requires_grad is not shared for p in model.parameters())
            with torch.no_grad():
                outputs.append(model(ids).logits)
        assert torch.equal(outputs[0], outputs[1])
        assert torch.equal(outputs[0], outputs[2])
    finally:
        store.stop()
