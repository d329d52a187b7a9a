"""The table tells the truth: every load is compared, and what is wrong is said."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
import torch
from rich.console import Console

from examples.load_times import Contest, LoadTime, are_equal, copied_version, evict, show
from examples.quickstart import copy_as_safetensors, running_store
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.torch import save_dict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def contest(tmp_path: Path) -> Iterator[Contest]:
    """A checkpoint in a store, and its copy."""
    directory = tmp_path / "models" / "tiny"
    torch.manual_seed(0)
    save_dict({f"layers.{i}": torch.randn(300, 50 + i) for i in range(5)}, directory)
    copy = copy_as_safetensors(open_checkpoint(directory), tmp_path / "tiny.safetensors")
    with running_store(directory.parent, 128 << 20) as address:
        yield Contest(
            address=address, name="tiny", directory=directory, safetensors=copy, device="cpu"
        )


def test_every_loader_is_timed_cold_and_warm_and_gives_the_files_bytes(contest: Contest) -> None:
    times = contest.run(runs=2)
    assert [(one.loader, one.state) for one in times] == [
        ("store", "cold"),
        ("store", "warm"),
        ("safetensors", "cold"),
        ("safetensors", "warm"),
    ]
    for one in times:
        assert one.equal
        assert 0 < one.usable_s <= one.read_s
        assert 0 <= one.cached <= 1


def test_one_other_bit_in_the_store_is_noticed(contest: Contest) -> None:
    (file,) = open_checkpoint(contest.directory).files
    data = bytearray(file.path.read_bytes())
    data[100] ^= 1
    file.path.write_bytes(data)
    equal = {one.loader: one.equal for one in contest.run(runs=1)}
    assert equal == {"store": False, "safetensors": True}


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"a": torch.tensor([1.0, 2.0, -0.0])},
        {"a": torch.tensor([[1.0, 2.0, 0.0]])},
        {"a": torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)},
        {"a": torch.tensor([1.0, 2.0, 0.0]), "b": torch.tensor(1)},
        {"b": torch.tensor([1.0, 2.0, 0.0])},
    ],
    ids=["nothing", "sign of zero", "shape", "dtype", "one more", "name"],
)
def test_equal_means_names_types_shapes_and_bytes(other: dict[str, torch.Tensor]) -> None:
    tensors = {"a": torch.tensor([1.0, 2.0, 0.0])}
    assert are_equal(tensors, {"a": tensors["a"].clone()})
    assert not are_equal(other, tensors)


def test_equal_holds_for_nan_scalars_and_empty_tensors() -> None:
    odd = {"nan": torch.tensor([float("nan")]), "one": torch.tensor(1), "none": torch.empty(0, 3)}
    assert are_equal(odd, {name: tensor.clone() for name, tensor in odd.items()})


def test_evicting_says_how_much_stayed(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    assert evict([empty]) == 0.0
    assert 0.0 <= evict([empty, _written(tmp_path / "full")]) <= 1.0


def test_what_was_never_copied_has_no_version(tmp_path: Path) -> None:
    assert copied_version(tmp_path / "absent.safetensors") is None


@pytest.mark.parametrize(("device", "rate"), [("cpu", "0.50"), ("cuda:0", "1.00")])
def test_the_rate_counts_all_bytes_by_when_they_have_all_arrived(device: str, rate: str) -> None:
    console = Console(file=io.StringIO(), width=120)
    fine = LoadTime(loader="store", state="cold", usable_s=0.5, read_s=1.0, equal=True)
    bad = LoadTime(loader="safetensors", state="cold", usable_s=0.5, read_s=1.0, equal=False)
    partly = LoadTime(
        loader="store", state="cold", usable_s=0.5, read_s=1.0, equal=True, cached=0.25
    )
    show([fine, bad, partly], 500_000_000, device, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count(rate) == 3
    assert text.count(" yes") == 2
    assert text.count(" NO") == 1
    assert "cold (25% cached)" in text


def _written(path: Path) -> Path:
    path.write_bytes(bytes(1 << 20))
    return path
