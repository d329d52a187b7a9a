"""`sllm-store save`: paths, hubs, adapters, names, quotas."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.checkpoint.verify import verify_checkpoint
from tests.store_process import weight_tensors, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.store_process import StoreProcess


@pytest.fixture
def source(tmp_path: Path, write_safetensors: Callable[..., object]) -> Path:
    write_safetensors(tmp_path / "source" / "tiny")
    return tmp_path / "source" / "tiny"


def bytes_of(directory: Path) -> dict[str, bytes]:
    """Return every tensor's bytes, read from the files."""
    checkpoint = open_checkpoint(directory)
    contents = {}
    for name, tensor in checkpoint.tensors.items():
        extent = checkpoint.extents[tensor.extent]
        data = checkpoint.files[extent.file].path.read_bytes()
        contents[name] = data[extent.offset : extent.offset + extent.size_bytes]
    return contents


def test_a_directory_of_safetensors_becomes_a_checkpoint(
    source: Path, storage: Path, run: Callable[..., Any]
) -> None:
    done = run("save", "--source", source, "--storage-path", storage)
    assert done.code == 0
    assert done.out == (f"saved tiny: 3 tensors, 11.7 KB, from safetensors, at {storage}/tiny\n")
    assert open_checkpoint(storage / "tiny").format == "sllm"
    assert bytes_of(storage / "tiny") == bytes_of(source)
    for name in ("config.json", "tokenizer_config.json"):
        assert (storage / "tiny" / name).read_bytes() == (source / name).read_bytes()
    assert not verify_checkpoint(open_checkpoint(storage / "tiny")).problems


def test_model_takes_a_path_too(source: Path, storage: Path, run: Callable[..., Any]) -> None:
    done = run("save", "--model", source, "--storage-path", storage, "--json")
    assert done.code == 0
    assert done.value == {
        "name": "tiny",
        "path": str(storage / "tiny"),
        "source": str(source),
        "source_format": "safetensors",
        "tensors": 3,
        "size_bytes": 12012,
        "small_files": ["config.json", "tokenizer_config.json"],
        "compression": None,
    }


def test_compress_says_what_was_gained_and_what_was_not(
    tmp_path: Path, storage: Path, run: Callable[..., Any]
) -> None:
    tensors = weight_tensors(3, 400_000)
    write_checkpoint(tmp_path / "source", tensors, compress=False)
    options = ("save", "--source", tmp_path / "source", "--storage-path", storage, "--compress")
    done = run(*options)
    assert done.code == 0
    saved, gained = done.out.splitlines()
    assert saved.startswith("saved source: 5 tensors, 1.1 MB, from sllm, at ")
    assert re.fullmatch(r"compressed to \d\d\.\d%; stored as they are: 208 B of bfloat16", gained)
    checkpoint = open_checkpoint(storage / "source")
    assert checkpoint.is_compressed
    value = run(*options, "--json").value["compression"]
    assert value == {
        "raw_bytes": checkpoint.size_bytes,
        "stored_bytes": checkpoint.stored_bytes,
        "kept": {"bfloat16": 208},
    }


def test_compressing_what_does_not_compress_is_said(
    source: Path, storage: Path, run: Callable[..., Any]
) -> None:
    done = run("save", "--source", source, "--storage-path", storage, "--compress")
    assert done.code == 0
    assert done.out.splitlines()[1] == (
        "not compressed: coding gains nothing on 11.7 KB of float32"
    )
    assert not open_checkpoint(storage / "tiny").is_compressed


def test_a_compressed_checkpoint_is_made_plain_by_saving_it_again(
    tmp_path: Path, storage: Path, run: Callable[..., Any]
) -> None:
    tensors = weight_tensors(3, 1_200_000)
    write_checkpoint(tmp_path / "source", tensors, compress=True)
    assert run("save", "--source", tmp_path / "source", "--storage-path", storage).code == 0
    assert bytes_of(storage / "source") == tensors


def test_dtype_is_kept_unless_another_is_asked_for(
    source: Path, storage: Path, run: Callable[..., Any]
) -> None:
    options = ("--source", source, "--storage-path", storage, "--name")
    assert run("save", *options, "org/same").code == 0
    assert run("save", *options, "org/half", "--dtype", "bfloat16").code == 0
    same, half = (open_checkpoint(storage / "org" / name) for name in ("same", "half"))
    assert {tensor.dtype for tensor in same.tensors.values()} == {"float32"}
    assert {tensor.dtype for tensor in half.tensors.values()} == {"bfloat16"}
    assert half.size_bytes * 2 == same.size_bytes


def test_shards_are_no_larger_than_asked(
    source: Path, storage: Path, run: Callable[..., Any]
) -> None:
    done = run("save", "--source", source, "--storage-path", storage, "--max-shard-size", "9KB")
    assert done.code == 0
    files = open_checkpoint(storage / "tiny").files
    assert len(files) == 2
    assert all(file.size_bytes <= 9 << 10 for file in files)


def test_the_quota_is_kept(source: Path, storage: Path, run: Callable[..., Any]) -> None:
    options = ("--source", source, "--storage-path", storage, "--disk-size", "20KB")
    assert run("save", *options).code == 0
    assert run("save", *options).code == 0, "the one that is replaced does not count"
    done = run("save", *options, "--name", "again")
    assert done.code == 1
    assert "of the 20.0 KB that --disk-size allows" in done.err
    assert run("save", *options, "--name", "again", "--dtype", "float16").code == 0
    assert {path.name for path in storage.iterdir()} == {"tiny", "again"}


def test_a_hub_name_comes_from_the_hubs_cache(
    source: Path,
    storage: Path,
    environment: dict[str, str],
    run_apart: Callable[..., Any],
) -> None:
    cache = Path(environment["HF_HOME"]) / "hub" / "models--org--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    shutil.copytree(source, cache / "snapshots" / ("0" * 40))
    done = run_apart("save", "--model", "org/tiny", "--storage-path", storage)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("saved org/tiny: 3 tensors")
    assert bytes_of(storage / "org" / "tiny") == bytes_of(source)


def test_a_hub_name_that_nobody_knows_is_one_line(
    storage: Path, run_apart: Callable[..., Any]
) -> None:
    done = run_apart("save", "--model", "org/none", "--storage-path", storage)
    assert done.code == 1
    assert done.err.startswith("error: org/none is no path here, and the Hugging Face hub does not")
    assert done.err.count("\n") == 1


def test_files_on_this_machine_stand_for_a_hubs(
    source: Path, storage: Path, run: Callable[..., Any]
) -> None:
    options = ("--model", "org/tiny", "--local-model-path", source, "--storage-path", storage)
    assert run("save", *options).code == 0
    assert bytes_of(storage / "org" / "tiny") == bytes_of(source)


@pytest.mark.parametrize("flags", [[], ["--adapter"], ["--adapter", "--model", "org/base"]])
def test_an_adapter_is_saved_with_its_configuration(
    tmp_path: Path, source: Path, run: Callable[..., Any], flags: list[str]
) -> None:
    adapter = tmp_path / "lora"
    source.rename(adapter)
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    storage = tmp_path / "models"
    done = run("save", *flags, "--adapter-name", adapter, "--storage-path", storage)
    assert done.code == 0
    assert bytes_of(storage / "lora") == bytes_of(adapter)
    assert json.loads((storage / "lora" / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "say once what to save"),
        (["--source", "a", "--model", "b"], "say once what to save"),
        (["--adapter", "--model", "b"], "--adapter needs --adapter-name"),
        (["--model", "b", "--tensor-parallel-size", "2"], "leave it out"),
        (["--source", "a", "--name", "../b"], "use a relative path without '..'"),
        (["--source", "a", "--name", "/b"], "use a relative path without '..'"),
        (["--source", "a", "--name", ".b"], "use a relative path without '..'"),
        (["--source", "a", "--dtype", "int3"], "'int3' is not one of"),
        (["--model", "b", "--backend", "vllm"], "'vllm' is planned, and no part of this release"),
    ],
)
def test_wrong_usage_says_what_is_right(
    run: Callable[..., Any], args: list[str], says: str
) -> None:
    done = run("save", *args)
    assert done.code == 2
    assert says in done.err


def test_a_source_that_is_not_there_is_an_error(storage: Path, run: Callable[..., Any]) -> None:
    done = run("save", "--source", "/none/here", "--storage-path", storage)
    assert (done.code, done.err) == (1, "error: /none/here does not exist\n")


def test_a_model_goes_to_the_running_store_unless_told_otherwise(
    source: Path,
    storage: Path,
    start_store: Callable[..., StoreProcess],
    *,
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = start_store(storage)
    monkeypatch.setattr("sllm_store.cli.connection._default", lambda: store.address)
    assert run("save", "--source", source).code == 0
    assert [model.name for model in store.client().list_models()] == ["tiny"]


def test_what_is_no_adapter_is_not_saved_as_one(
    source: Path, storage: Path, run: Callable[..., Any]
) -> None:
    done = run("save", "--adapter-name", source, "--storage-path", storage)
    assert done.code == 1
    assert "has no adapter_config.json, so it is no adapter" in done.err
    assert list(storage.iterdir()) == []
