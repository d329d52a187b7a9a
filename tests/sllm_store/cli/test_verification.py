"""`sllm-store verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.store_process import weight_tensors, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_compressed_checkpoint_is_compared_decoded(
    storage: Path, run: Callable[..., Any]
) -> None:
    write_checkpoint(storage / "c", weight_tensors(3, 200_000), compress=True)
    done = run("verify", "c", "--storage-path", storage)
    assert done.code == 0
    assert done.out.startswith("c: all 5 extents are as they were saved; ")
    assert done.out.endswith(" of them are compressed and were decoded\n")
    value = run("verify", "c", "--storage-path", storage, "--json").value
    assert value["bytes_read"] < value["bytes_decoded"]


@pytest.fixture
def saved(
    storage: Path,
    tmp_path: Path,
    write_safetensors: Callable[..., object],
    run: Callable[..., Any],
) -> Path:
    write_safetensors(tmp_path / "m")
    assert run("save", "--source", tmp_path / "m", "--storage-path", storage).code == 0
    return storage


def test_a_good_checkpoint_is_good(saved: Path, run: Callable[..., Any]) -> None:
    done = run("verify", "m", "--storage-path", saved)
    assert (done.code, done.out) == (0, "m: all 3 extents are as they were saved\n")


def test_a_wrong_byte_is_found_and_its_tensor_named(saved: Path, run: Callable[..., Any]) -> None:
    with (saved / "m" / "tensor.data_0").open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))
    done = run("verify", "m", "--storage-path", saved)
    assert done.code == 1
    assert "('layers.0.weight'): CRC-32C is" in done.out
    assert done.err.startswith(f"error: {saved}/m/tensor.data_0: ")
    done = run("verify", "m", "--storage-path", saved, "--json")
    assert done.code == 1
    assert not done.value["good"]
    assert done.value["problems"][0]["tensors"] == ["layers.0.weight"]


def test_a_format_without_checksums_is_read_and_says_so(
    storage: Path, write_safetensors: Callable[..., object], run: Callable[..., Any]
) -> None:
    write_safetensors(storage / "st")
    done = run("verify", "st", "--storage-path", storage, "--num-threads", 2, "--json")
    assert done.code == 0
    assert (done.value["good"], done.value["extents_compared"]) == (True, 0)
    assert done.value["bytes_read"] == 4 * (1000 + 1001 + 1002)
