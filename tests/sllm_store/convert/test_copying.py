"""Safetensors and checkpoints of ours are copied byte for byte, or cast."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.checkpoint.writer import CheckpointWriter, Source
from sllm_store.convert.importer import import_checkpoint
from sllm_store.errors import InvalidRequestError
from sllm_store.torch import save_dict

if TYPE_CHECKING:
    from pathlib import Path

TENSORS = {
    "w": torch.arange(1000, dtype=torch.float32).reshape(10, 100) / 7,
    "half": torch.full((3,), 0.5, dtype=torch.float16),
    "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
    "empty": torch.empty(0, 4),
    "ids": torch.arange(5),
    "mask": torch.tensor([True, False]),
    "fp8": torch.arange(4, dtype=torch.float32).to(torch.float8_e4m3fn),
}


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def expected(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        name: (str(value.dtype).removeprefix("torch."), tuple(value.shape), as_bytes(value))
        for name, value in tensors.items()
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    first = {name: TENSORS[name] for name in ("w", "half", "scalar")}
    save_file(first, directory / "model-00001-of-00002.safetensors")
    rest = {name: value for name, value in TENSORS.items() if name not in first}
    save_file(rest, directory / "model-00002-of-00002.safetensors")
    weight_map = {
        name: f"model-0000{1 if name in first else 2}-of-00002.safetensors" for name in TENSORS
    }
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text('{"torch_dtype":"float32",  "x": 1}')
    (directory / "chat_template.jinja").write_text("{{ x }}")
    return directory


def test_safetensors_are_copied_as_they_are_with_their_small_files(
    source: Path, workshop: Any
) -> None:
    report = import_checkpoint(source, workshop.imported)

    assert workshop.read() == expected(TENSORS)
    assert report.source_format == "safetensors"
    assert report.tensors_total == len(TENSORS)
    assert report.small_files == ("chat_template.jinja", "config.json")
    for name in report.small_files:
        assert (workshop.imported / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_safetensors_are_compressed_without_loss(tmp_path: Path, workshop: Any, dtype: str) -> None:
    torch.manual_seed(0)
    tensors = {
        "large": torch.randn(400, 300).bfloat16(),
        "half": torch.randn(70_000).half(),
        "single": torch.randn(50_000),
        "ids": torch.arange(100_000),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    report = import_checkpoint(
        tmp_path / "model.safetensors", workshop.imported, dtype=dtype, compress=True
    )
    if dtype != "auto":
        tensors |= {name: tensors[name].bfloat16() for name in ("half", "single")}
    assert workshop.read() == expected(tensors)
    assert open_checkpoint(workshop.imported).is_compressed
    assert report.compression is not None
    kept = {"int64": 800_000} | ({"float32": 200_000} if dtype == "auto" else {})
    assert report.compression.kept == kept
    assert report.compression.stored_bytes < report.size_bytes == report.compression.raw_bytes


def test_a_compressed_checkpoint_of_ours_can_be_made_plain_and_cast(
    tmp_path: Path, workshop: Any
) -> None:
    torch.manual_seed(0)
    tensors = {"w": torch.randn(700, 900).bfloat16(), "b": torch.ones(5)}
    save_dict(tensors, tmp_path / "small", compress=True)
    assert import_checkpoint(tmp_path / "small", workshop.imported).compression is None
    assert workshop.read() == expected(tensors)
    assert not open_checkpoint(workshop.imported).is_compressed
    import_checkpoint(tmp_path / "small", tmp_path / "wide", dtype="float32")
    wide = {name: value.float() for name, value in tensors.items()}
    assert workshop.read(tmp_path / "wide") == expected(wide)


def test_a_dtype_casts_floats_and_leaves_the_rest(source: Path, workshop: Any) -> None:
    import_checkpoint(source, workshop.imported, dtype="bfloat16")

    floats = ("w", "half", "scalar", "empty")
    cast = {name: value.bfloat16() if name in floats else value for name, value in TENSORS.items()}
    assert workshop.read() == expected(cast)
    config = json.loads((workshop.imported / "config.json").read_text())
    assert config == {"torch_dtype": "bfloat16", "x": 1}


def test_a_single_file_does_not_bring_its_neighbours(tmp_path: Path, workshop: Any) -> None:
    save_file({"w": TENSORS["w"]}, tmp_path / "model.safetensors")
    (tmp_path / "letter.txt").write_text("private")

    report = import_checkpoint(tmp_path / "model.safetensors", workshop.imported)

    assert report.small_files == ()
    assert workshop.read() == expected({"w": TENSORS["w"]})


def save_views(path: Path) -> Any:
    """Save two overlapping views, a buffer and an alias; return the memory."""
    memory = np.arange(100, dtype=np.float32)
    shared: dict[str, Any] = {
        "dtype": "float32",
        "storage": 1,
        "address": memory.ctypes.data,
        "size_bytes": memory.nbytes,
    }
    other = np.arange(8, dtype=np.float32)
    buffer = shared | {"storage": 2, "address": other.ctypes.data, "size_bytes": other.nbytes}
    with CheckpointWriter(path) as writer:
        writer.write(
            [
                Source(name="rows", shape=(8, 10), stride=(10, 1), storage_offset=20, **shared),
                Source(name="columns", shape=(10, 10), stride=(1, 10), storage_offset=0, **shared),
            ],
            buffers=[Source(name="inv", shape=(8,), stride=(1,), storage_offset=0, **buffer)],
            aliases={"tied": "rows"},
        )
    return memory


def test_our_own_format_keeps_views_buffers_and_aliases(workshop: Any) -> None:
    saved = workshop.directory / "saved"
    save_views(saved)

    import_checkpoint(saved, workshop.imported)

    before, after = open_checkpoint(saved), open_checkpoint(workshop.imported)
    assert after.tensors == before.tensors
    assert after.buffers == before.buffers
    assert after.aliases == before.aliases
    assert workshop.read() == workshop.read(saved)


def test_a_dtype_casts_a_shared_storage_once_and_no_buffer(workshop: Any) -> None:
    memory = save_views(workshop.directory / "saved")

    import_checkpoint(workshop.directory / "saved", workshop.imported, dtype="float16")

    checkpoint = open_checkpoint(workshop.imported)
    found = workshop.read()
    half = memory.astype(np.float16).tobytes()
    assert found["rows"] == ("float16", (8, 10), half)
    assert found["columns"] == ("float16", (10, 10), half)
    assert checkpoint.tensors["rows"].storage_offset == 20
    assert checkpoint.tensors["rows"].extent == checkpoint.tensors["columns"].extent
    assert found["inv"][0] == "float32"


def test_views_of_different_dtypes_cannot_be_cast(workshop: Any) -> None:
    memory = np.arange(16, dtype=np.float32)
    shared: dict[str, Any] = {
        "storage": 1,
        "storage_offset": 0,
        "address": memory.ctypes.data,
        "size_bytes": memory.nbytes,
    }
    with CheckpointWriter(workshop.directory / "saved") as writer:
        writer.write(
            [
                Source(name="a", dtype="float32", shape=(16,), stride=(1,), **shared),
                Source(name="b", dtype="bfloat16", shape=(32,), stride=(1,), **shared),
            ]
        )
    with pytest.raises(InvalidRequestError, match="shares its storage with tensors of another"):
        import_checkpoint(workshop.directory / "saved", workshop.imported, dtype="float16")
