"""load_dict keeps upstream's signature, and gives every byte or raises."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sllm_store import interpreter
from sllm_store.checkpoint.loaded import Placed
from sllm_store.errors import DeadlineError, InvalidRequestError, StoreError
from sllm_store.torch import load, load_dict, save_dict
from sllm_store.torch.views import view_tensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("small_heap")


@pytest.fixture(params=["in-process", "store"])
def where(
    request: pytest.FixtureRequest, tmp_path: Path, start_store: Callable[..., Any]
) -> dict[str, Any]:
    """Each test runs without a store and with one that serves tmp_path/models."""
    if request.param == "in-process":
        return {"store": "in-process"}
    (tmp_path / "models").mkdir()
    return {"store": start_store(tmp_path / "models").address}


def test_upstreams_call_gives_the_state_dict(tmp_path: Path, where: dict[str, Any]) -> None:
    state = {f"layers.{i}.w": torch.randn(32, 8, dtype=torch.bfloat16) for i in range(20)}
    save_dict(state, tmp_path / "models" / "m")
    loaded = load_dict("m", {"": "cpu"}, tmp_path / "models", **where)
    assert isinstance(loaded, dict)
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert all(tensor.data_ptr() % 256 == 0 for tensor in loaded.values())
    module = torch.nn.Linear(8, 32, dtype=torch.bfloat16, bias=False)
    module.load_state_dict({"weight": loaded["layers.3.w"]})


def test_compressed_tensors_are_the_plain_ones(tmp_path: Path, where: dict[str, Any]) -> None:
    state = {f"layers.{i}.w": torch.randn(300, 400 + i).to(torch.bfloat16) for i in range(6)}
    state["layers.0.t"] = state["layers.0.w"].T
    state["norm"] = torch.ones(300)
    for name in ("plain", "small"):
        save_dict(state, tmp_path / "models" / name, compress=name == "small")
    plain, small = (
        load_dict(tmp_path / "models" / name, "cpu", **where) for name in ("plain", "small")
    )
    assert list(small) == list(plain)
    assert all(torch.equal(small[name], plain[name]) for name in plain)
    assert all(small[name].stride() == plain[name].stride() for name in plain)
    assert small["layers.0.t"].data_ptr() == small["layers.0.w"].data_ptr()
    small["norm"][0] = 5  # Memory of its own, whoever loaded it.
    assert torch.equal(
        load_dict(tmp_path / "models" / "small", "cpu", **where)["norm"], plain["norm"]
    )


def test_wb5_a_prefix_matches_whole_names_of_modules(tmp_path: Path, where: dict[str, Any]) -> None:
    state = {"layers.1.w": torch.ones(1), "layers.10.w": torch.ones(1), "head": torch.ones(1)}
    save_dict(state, tmp_path / "models" / "m")
    path = tmp_path / "models" / "m"
    with pytest.raises(InvalidRequestError, match=r"layers\.10\.w"):
        load_dict(path, {"layers.1": "cpu", "head": "cpu"}, **where)
    whole = {"layers.1": "cpu", "layers.10": "cpu", "head": "cpu"}
    assert load_dict(path, whole, **where).keys() == state.keys()


def test_wa9_every_tensor_is_aligned_whatever_comes_before_it(
    tmp_path: Path, where: dict[str, Any]
) -> None:
    state = {
        str(size): torch.ones(size, dtype=dtype)
        for size, dtype in ((1, torch.uint8), (3, torch.float32), (5, torch.bfloat16))
    }
    state["last"] = torch.ones(4, dtype=torch.complex128)
    save_dict(state, tmp_path / "models" / "m")
    loaded = load_dict(tmp_path / "models" / "m", "cpu", **where)
    assert all(tensor.data_ptr() % 256 == 0 for tensor in loaded.values())


def test_wa10_tensors_outlive_the_dictionary_and_each_other(
    tmp_path: Path, where: dict[str, Any]
) -> None:
    state = {str(i): torch.full((5000,), i) for i in range(30)}
    save_dict(state, tmp_path / "models" / "m")
    loaded = load_dict(tmp_path / "models" / "m", "cpu", **where)
    entries = list(loaded.items())
    del loaded
    random.Random(0).shuffle(entries)
    while entries:
        gc.collect()
        for name, tensor in entries:
            assert torch.equal(tensor, state[name])
        entries.pop()


def test_writing_to_a_tensor_changes_neither_the_checkpoint_nor_other_loads(
    tmp_path: Path, where: dict[str, Any]
) -> None:
    save_dict({"w": torch.ones(5000)}, tmp_path / "models" / "m")
    first = load_dict(tmp_path / "models" / "m", "cpu", **where)
    second = load_dict(tmp_path / "models" / "m", "cpu", **where)
    first["w"].mul_(3)
    assert torch.equal(second["w"], torch.ones(5000))
    third = load_dict(tmp_path / "models" / "m", "cpu", **where)
    assert torch.equal(third["w"], torch.ones(5000))


def test_progress_is_reported(tmp_path: Path, where: dict[str, Any]) -> None:
    save_dict({"w": torch.ones(1 << 22)}, tmp_path / "models" / "m")
    seen: list[tuple[int, int]] = []
    load_dict(
        tmp_path / "models" / "m", "cpu", on_progress=lambda *step: seen.append(step), **where
    )
    assert all(0 <= done <= total for done, total in seen)


def test_wa8_every_failure_is_raised(tmp_path: Path, where: dict[str, Any]) -> None:
    path = tmp_path / "models" / "m"
    save_dict({"w": torch.ones(1 << 16)}, path)
    data = path / "tensor.data_0"
    os.truncate(data, data.stat().st_size - 4096)
    with pytest.raises(StoreError):
        load_dict(path, "cpu", **where)


def test_a_deadline_that_passes_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_dict({"w": torch.ones(1 << 22)}, tmp_path / "m")
    with pytest.raises(DeadlineError, match="within"):
        load_dict(tmp_path / "m", "cpu", store="in-process", timeout_s=0.0)


def test_a_checkpoint_replaced_while_it_is_open_is_read_anew(
    tmp_path: Path, where: dict[str, Any]
) -> None:
    path = tmp_path / "models" / "m"
    save_dict({"w": torch.ones(1000)}, path)
    old = load_dict(path, "cpu", **where)
    save_dict({"w": torch.zeros(2000), "v": torch.ones(1)}, path)
    new = load_dict(path, "cpu", **where)
    assert torch.equal(old["w"], torch.ones(1000))
    assert torch.equal(new["w"], torch.zeros(2000))


def test_safetensors_are_read_in_place(tmp_path: Path, where: dict[str, Any]) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = {"b": torch.randn(3, 5), "a": torch.arange(7, dtype=torch.int16), "c": torch.zeros(0)}
    (tmp_path / "models" / "s").mkdir(parents=True)
    safetensors.save_file(state, tmp_path / "models" / "s" / "model.safetensors")
    loaded = load_dict(tmp_path / "models" / "s", "cpu", **where)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_gguf_tensors_are_dequantised_under_their_own_names(
    tmp_path: Path, where: dict[str, Any]
) -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.Q4_1
    weights = torch.randn(8, 64).numpy()
    blocks = gguf.quants.quantize(weights, kind)
    path = tmp_path / "models" / "tiny.gguf"
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.ffn_up.weight", blocks, raw_dtype=kind)
    writer.add_tensor("output_norm.weight", weights[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = load_dict(path, "cpu", **where)
    expected = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
    assert torch.equal(loaded["blk.0.ffn_up.weight"], expected)
    assert torch.equal(loaded["output_norm.weight"], torch.from_numpy(weights[0]))
    assert loaded.directory == path.parent


def test_the_report_tells_where_the_bytes_were(tmp_path: Path, where: dict[str, Any]) -> None:
    save_dict({"w": torch.ones(10)}, tmp_path / "models" / "m")
    loaded = load_dict(tmp_path / "models" / "m", "cpu", **where)
    assert loaded.store == where["store"]
    assert loaded.tier == "disk"
    assert loaded.directory == tmp_path / "models" / "m"
    assert loaded.buffers == {}
    assert isinstance(loaded, load.LoadedDict)


def test_a_load_waits_a_few_times_for_a_busy_interpreter_and_then_not_long(
    tmp_path: Path, where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With turns of 50 ms, which no noise makes, the time of a load counts how often it waits.

    That is never once per tensor, even where every system call costs a turn.
    """
    state = {f"layers.{i}.w": torch.randn(4, 8) for i in range(300)}
    save_dict(state, tmp_path / "models" / "m")
    stop = threading.Event()
    kept = []  # PyTorch gives the lock away for each tensor that it frees: not while we measure.

    def compute() -> None:
        number = 0
        while not stop.is_set():
            number += 1

    def best_s() -> float:
        times_s = []
        for _ in range(3):
            started_s = time.perf_counter()
            kept.append(load_dict(tmp_path / "models" / "m", "cpu", **where))
            times_s.append(time.perf_counter() - started_s)
        return min(times_s)

    best_s()
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(0.05)
    busy = threading.Thread(target=compute)
    busy.start()
    try:
        short_s = best_s()
        monkeypatch.setattr(interpreter, "SWITCH_INTERVAL_S", 1.0)  # As if nobody cared.
        long_s = best_s()
    finally:
        stop.set()
        busy.join()
        sys.setswitchinterval(interval_s)
    assert long_s / 0.05 < 100
    assert short_s < long_s or short_s < 0.05


def test_views_are_made_once_of_memory_whose_bytes_may_be_on_the_way(
    tmp_path: Path, where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"a": torch.randn(4, 8), "b": torch.arange(3)}
    save_dict(state, tmp_path / "models" / "m")
    viewed: list[Placed] = []

    def view(placed: Placed) -> Any:
        viewed.append(placed)
        return view_tensors(placed)

    monkeypatch.setattr(load, "view_tensors", view)
    loaded = load_dict(tmp_path / "models" / "m", "cpu", **where)
    assert [type(placed) for placed in viewed] == [Placed]
    assert all(torch.equal(loaded[name], state[name]) for name in state)
