"""What save_dict writes, load_dict gives back: every dtype, every view, every byte."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sllm_store.checkpoint.dtype import ITEM_SIZES
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.errors import InvalidRequestError
from sllm_store.torch import load_dict, save_dict

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = [
    name
    for name in ITEM_SIZES
    if isinstance(getattr(torch, name, None), torch.dtype) and not name.startswith(("q", "bits"))
]
BITS = [name for name in ITEM_SIZES if name.startswith("bits") and hasattr(torch, name)]


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor's elements in order."""
    whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    size = tensor.element_size()
    elements = torch.arange(tensor.numel()).reshape(tensor.shape)
    index = tensor.storage_offset() + sum(
        (elements // max(1, _after(tensor.shape, dim)) % max(1, length)) * stride
        for dim, (length, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))
    )
    index = torch.as_tensor(index).reshape(-1)
    return torch.stack([whole[index * size + byte] for byte in range(size)])


def _after(shape: torch.Size, dim: int) -> int:
    total = 1
    for length in shape[dim + 1 :]:
        total *= length
    return total


def round_trip(state: dict[str, torch.Tensor], path: Path, **options: Any) -> dict[str, Any]:
    save_dict(state, path, **options)
    return load_dict(path, "cpu", store="in-process")


def require_equal(found: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(raw(found[name]), raw(tensor)), name


def test_compressed_state_dicts_come_back_with_their_views_and_say_what_was_gained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weight = torch.randn(700, 500).to(torch.bfloat16)
    state = {
        "weight": weight,
        "transposed": weight.T,
        "rows": weight[3:90:2, 7:],
        "half": torch.randn(300_000, dtype=torch.float16),
        "single": torch.randn(1000),
        "fp8": torch.randn(100_000).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3, dtype=torch.bfloat16),
    }
    with caplog.at_level("INFO", logger="sllm_store.torch.save"):
        found = round_trip(state, tmp_path / "m", compress=True)
    require_equal(found, state)
    assert found["weight"].data_ptr() == found["transposed"].data_ptr()
    assert open_checkpoint(tmp_path / "m").is_compressed
    (record,) = caplog.records
    assert "compressed to" in record.message
    assert "97.7 KB of float8_e4m3fn" in record.message


def test_progress_of_a_compressed_save_counts_tensors_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    state = {str(number): torch.randn(200_000).to(torch.bfloat16) for number in range(5)}
    save_dict(
        state,
        tmp_path / "m",
        compress=True,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (2_000_000, 2_000_000)


@pytest.mark.parametrize("dtype", PLAIN + BITS)
def test_wa5_every_dtype_comes_back_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    source = torch.randint(0, 256, (4, 6, 16), dtype=torch.uint8)
    if dtype == "bool":
        source = source % 2
    tensor = source.view(getattr(torch, dtype))
    require_equal(
        round_trip({"a": tensor, "s": tensor[0, 0, 0]}, tmp_path / "c"),
        {
            "a": tensor,
            "s": tensor[0, 0, 0],
        },
    )


def test_wa4_views_of_one_storage_come_back_from_their_own_offsets(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "row0": base[0],
        "row1": base[1],
        "row2": base[2],
        "column": base[:, 1],
        "transposed": base.T,
        "overlapping": base.flatten().as_strided((5, 4), (2, 1), 0),
        "expanded": base[1, 2].expand(5, 6),
        "whole": base,
        "same": base,
        "later": base[1:, 2:],
    }
    found = round_trip(state, tmp_path / "c")
    require_equal(found, state)
    for name, tensor in state.items():
        if tensor.numel() > 1:
            assert found[name].stride() == tensor.stride(), name
    assert found["same"].data_ptr() == found["whole"].data_ptr()
    size = sum(p.stat().st_size for p in (tmp_path / "c").glob("tensor.data_*"))
    assert size < 4096 + 64


def test_a_slice_of_a_large_tensor_does_not_save_the_whole(tmp_path: Path) -> None:
    base = torch.arange(1 << 20, dtype=torch.float32)
    state = {"slice": base[5:15]}
    require_equal(round_trip(state, tmp_path / "c"), state)
    assert (tmp_path / "c" / "tensor.data_0").stat().st_size <= 8192


def test_views_of_different_dtypes_share_one_storage(tmp_path: Path) -> None:
    base = torch.arange(64, dtype=torch.int32)
    state = {"i": base, "f": base.view(torch.float32)[8:], "b": base.view(torch.uint8)[4:]}
    require_equal(round_trip(state, tmp_path / "c"), state)


def test_empty_and_scalar_tensors_come_back(tmp_path: Path) -> None:
    state = {
        "e0": torch.empty(0),
        "e1": torch.empty(3, 0, 5, dtype=torch.bfloat16),
        "s": torch.tensor(3.5, dtype=torch.float64),
        "i": torch.tensor(7),
    }
    require_equal(round_trip(state, tmp_path / "c"), state)
    require_equal(round_trip({"e": torch.empty(0)}, tmp_path / "only"), {"e": torch.empty(0)})


def test_conjugated_and_negated_views_are_saved_as_they_read(tmp_path: Path) -> None:
    value = torch.tensor([1 + 2j, 3 - 4j])
    found = round_trip({"c": value.conj(), "n": value.conj().imag}, tmp_path / "c")
    assert torch.equal(found["c"], torch.tensor([1 - 2j, 3 + 4j]))
    assert torch.equal(found["n"], torch.tensor([-2.0, 4.0]))


def test_shards_are_no_larger_than_asked_and_no_tensor_spans_two(tmp_path: Path) -> None:
    state = {f"t{i}": torch.full((1000,), float(i)) for i in range(10)}
    require_equal(round_trip(state, tmp_path / "c", max_shard_size="9KB"), state)
    sizes = [p.stat().st_size for p in (tmp_path / "c").glob("tensor.data_*")]
    assert len(sizes) >= 5
    assert max(sizes) <= 9 << 10


def test_saving_over_an_old_checkpoint_replaces_it_whole(tmp_path: Path) -> None:
    save_dict({f"t{i}": torch.ones(1000) for i in range(4)}, tmp_path / "c", max_shard_size=4096)
    state = {"a": torch.zeros(3)}
    require_equal(round_trip(state, tmp_path / "c"), state)
    assert [p.name for p in sorted((tmp_path / "c").glob("tensor.data_*"))] == ["tensor.data_0"]


def test_parameters_are_saved_as_tensors_and_the_caller_keeps_his_own(tmp_path: Path) -> None:
    module = torch.nn.Linear(4, 3)
    state: dict[str, torch.Tensor] = dict(module.named_parameters())
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in state.items()}
    found = round_trip(state, tmp_path / "c")
    for name, (address, value) in before.items():
        assert state[name].data_ptr() == address
        assert state[name].requires_grad
        assert torch.equal(state[name], value)
        assert torch.equal(found[name], value)
        assert not found[name].requires_grad


def test_the_index_is_upstreams(tmp_path: Path) -> None:
    save_dict({"a": torch.ones(2, 3), "b": torch.ones(2, dtype=torch.int8)}, tmp_path / "c")
    index = json.loads((tmp_path / "c" / "tensor_index.json").read_text())
    assert index["a"][1:] == [24, [2, 3], [3, 1], "torch.float32"]
    assert index["b"][4] == "torch.int8"


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    save_dict(
        {"a": torch.ones(100_000), "b": torch.ones(5)},
        tmp_path / "c",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (400_020, 400_020)


def sparse() -> Any:
    return torch.eye(3).to_sparse()


def sparse_rows() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.eye(3).to_sparse_csr()


def nested() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def quantized() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: 5,
        lambda: "text",
        lambda: None,
        lambda: [torch.ones(1)],
        sparse,
        sparse_rows,
        nested,
        quantized,
        lambda: torch.ones(2, device="meta"),
    ],
)
def test_what_cannot_be_saved_is_named(make: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"model\.bad"):
        save_dict({"good": torch.ones(1), "model.bad": make()}, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_names_must_be_strings_and_there_must_be_some(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="name 5"):
        save_dict({5: torch.ones(1)}, tmp_path / "c")  # type: ignore[dict-item]
    with pytest.raises(InvalidRequestError, match="no tensors"):
        save_dict({}, tmp_path / "c")


def test_a_nonsense_shard_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="max_shard_size"):
        save_dict({"a": torch.ones(1)}, tmp_path / "c", max_shard_size="ten")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.gpu
def test_gpu_tensors_are_staged_one_after_another_and_stay_where_they_are(tmp_path: Path) -> None:
    base = torch.arange(64.0, device="cuda")
    state = {"a": base[3:], "b": base.reshape(8, 8).T, "c": torch.ones(3)}
    state |= {f"x{i}": torch.randn(i * 300_000 + 1, device="cuda") for i in range(9)}
    found = round_trip(state, tmp_path / "c")
    require_equal(found, {name: tensor.cpu() for name, tensor in state.items()})
    assert state["a"].is_cuda
    assert found["b"].stride() == state["b"].stride()
