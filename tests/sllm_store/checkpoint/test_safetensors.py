"""safetensors in place: what the reference implementation reads we read, and nothing more."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import save_file

from sllm_store.checkpoint.dtype import SAFETENSORS_NAMES
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.checkpoint.safetensors import likely_files, open_safetensors
from sllm_store.errors import InvalidCheckpointError
from tests.checkpoint_memory import read_back

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from sllm_store.checkpoint.model import Checkpoint


def header_file(path: Path, header: object, data: bytes = b"", *, raw: bytes | None = None) -> Path:
    """Write a file with any header, right or wrong."""
    content = json.dumps(header).encode() if raw is None else raw
    path.write_bytes(len(content).to_bytes(8, "little") + content + data)
    return path


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def open_(path: Path) -> Checkpoint:
    return open_safetensors(path, root=None)


def test_every_tensor_of_a_published_file_is_found(tmp_path: Path) -> None:
    tensors = {
        "weight": torch.arange(12, dtype=torch.bfloat16).reshape(3, 4),
        "mask": torch.tensor([True, False]),
        "scale": torch.ones(3, dtype=torch.float8_e4m3fn),
        "step": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "phase": torch.ones(2, dtype=torch.complex64),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path)
    content = read_back(checkpoint)
    assert content.keys() == tensors.keys()
    for name, tensor in tensors.items():
        raw, shape, dtype = content[name]
        assert raw == bytes(tensor.contiguous().flatten().view(torch.uint8).numpy())
        assert (shape, f"torch.{dtype}") == (tuple(tensor.shape), str(tensor.dtype))
    assert checkpoint.metadata == {"format": "pt"}


@pytest.mark.parametrize("code", [code for code in SAFETENSORS_NAMES if code != "F4"])
def test_every_element_type_has_a_size_the_reference_agrees_with(tmp_path: Path, code: str) -> None:
    dtype = getattr(torch, SAFETENSORS_NAMES[code])
    size = torch.empty(0, dtype=dtype).element_size()
    path = header_file(tmp_path / "a.safetensors", {"a": entry(code, [2], 0, 2 * size)}, bytes(32))
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) - 32 + 2 * size])
    tensor = open_(path).tensors["a"]
    assert (tensor.shape, tensor.dtype) == ((2,), SAFETENSORS_NAMES[code])


def test_two_four_bit_elements_share_a_byte(tmp_path: Path) -> None:
    path = header_file(tmp_path / "a.safetensors", {"a": entry("F4", [3, 4], 0, 6)}, bytes(6))
    tensor = open_(path).tensors["a"]
    assert (tensor.dtype, tensor.shape, tensor.stride) == ("float4_e2m1fn_x2", (3, 2), (2, 1))


HEADER_ATTACKS: dict[str, tuple[object, str]] = {
    "past the end": ({"a": entry("U8", [9], 0, 9)}, "data_offsets end at 9, but the data has 8"),
    "bytes left": ({"a": entry("U8", [7], 0, 7)}, "data_offsets end at 7, but the data has 8"),
    "hole": ({"a": entry("U8", [7], 1, 8)}, "'a': data_offsets: leaves a hole"),
    "overlap": (
        {"a": entry("U8", [5], 0, 5), "b": entry("U8", [4], 4, 8)},
        "'b': data_offsets: overlaps",
    ),
    "same place": (
        {"a": entry("U8", [8], 0, 8), "b": entry("U8", [8], 0, 8)},
        "'b': data_offsets: overlaps",
    ),
    "backwards": ({"a": entry("U8", [0], 8, 0)}, r"'a': data_offsets is \[8, 0\]"),
    "negative": ({"a": entry("U8", [8], -8, 0)}, "'a': an element of data_offsets is -8"),
    "huge": ({"a": entry("U8", [8], 0, 2**64)}, "'a': an element of data_offsets is 18446"),
    "float": (
        {"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8.0]}},
        "'a': an element of data_offsets is 8.0",
    ),
    "bool": (
        {"a": {"dtype": "U8", "shape": [8], "data_offsets": [False, 8]}},
        "'a': an element of data_offsets is False",
    ),
    "three offsets": (
        {"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 4, 8]}},
        "'a': data_offsets is",
    ),
    "wrong size": ({"a": entry("F32", [1], 0, 8)}, "'a': data_offsets span 8 bytes, but shape"),
    "wrong dtype": ({"a": entry("F99", [8], 0, 8)}, "'a': dtype is 'F99'"),
    "six bits": ({"a": entry("F6_E2M3", [8], 0, 6)}, "'a': dtype is 'F6_E2M3'"),
    "dtype list": (
        {"a": {"dtype": [], "shape": [8], "data_offsets": [0, 8]}},
        r"'a': dtype is \[\]",
    ),
    "odd F4": ({"a": entry("F4", [15], 0, 8)}, "'a': shape is .* share a byte"),
    "huge shape": ({"a": entry("U8", [2**40, 2**40], 0, 8)}, "'a': shape .* more elements"),
    "negative shape": ({"a": entry("U8", [-8], 0, 8)}, "'a': an element of shape is -8"),
    "no dtype": ({"a": {"shape": [8], "data_offsets": [0, 8]}}, "'a': has no dtype"),
    "no shape": ({"a": {"dtype": "U8", "data_offsets": [0, 8]}}, "'a': has no shape"),
    "entry list": ({"a": [0, 8]}, "'a': its entry is"),
    "metadata list": ({"__metadata__": []}, "__metadata__ is"),
    "metadata number": ({"__metadata__": {"x": 1}}, "__metadata__.'x' is 1"),
}


@pytest.mark.parametrize("attack", HEADER_ATTACKS)
def test_a_wrong_header_names_file_and_field(tmp_path: Path, attack: str) -> None:
    header, message = HEADER_ATTACKS[attack]
    path = header_file(tmp_path / "a.safetensors", header, bytes(8))
    with pytest.raises(InvalidCheckpointError, match=message) as caught:
        open_(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("attack", HEADER_ATTACKS)
def test_one_wrong_entry_among_many_is_the_one_that_is_named(tmp_path: Path, attack: str) -> None:
    header, message = HEADER_ATTACKS[attack]
    assert isinstance(header, dict)
    sound = {f"sound.{number}": entry("BF16", [number, 0], 0, 0) for number in range(50)}
    path = header_file(tmp_path / "a.safetensors", {**sound, **header}, bytes(8))
    with pytest.raises(InvalidCheckpointError, match=message):
        open_(path)


# Of numbers from 2**63 up to 2**64 the two judge differently: see the test after the one below.
ODD: st.SearchStrategy[object] = st.sampled_from(
    [True, 1.0, -1, 0, 3, 2**64, "8", None, [], [1], {}, "F32", "U8"]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 3), min_size=1, max_size=8),
    data=st.data(),
    order=st.randoms(use_true_random=False),
)
def test_many_entries_are_judged_as_the_reference_judges_them(
    tmp_path: Path, sizes: list[int], data: st.DataObject, order: Random
) -> None:
    header, end = {}, 0
    for number, size in enumerate(sizes):
        code = data.draw(st.sampled_from(["U8", "F32", "BF16"]))
        start, end = end, end + 6 * size * {"U8": 1, "F32": 4, "BF16": 2}[code]
        header[f"t{number}"] = entry(code, [2, size, 3], start, end)
    if data.draw(st.booleans()):
        wrong = header[data.draw(st.sampled_from(sorted(header)))]
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "other"]))
        if field in {"shape", "data_offsets"} and data.draw(st.booleans()):
            wrong[field][data.draw(st.integers(0, 1))] = data.draw(ODD)
        else:
            wrong[field] = data.draw(ODD)
    shuffled = list(header.items())
    order.shuffle(shuffled)
    path = header_file(tmp_path / "a.safetensors", dict(shuffled), bytes(end))
    try:
        with safetensors.safe_open(path, "pt") as reference:
            shapes = {name: tuple(reference.get_slice(name).get_shape()) for name in header}
    except safetensors.SafetensorError:
        with pytest.raises(InvalidCheckpointError):
            open_(path)
        return
    checkpoint = open_(path)
    assert list(checkpoint.tensors) == [name for name, _ in shuffled]
    for name, tensor in checkpoint.tensors.items():
        start, stop = header[name]["data_offsets"]
        extent = checkpoint.extents[tensor.extent]
        assert (tensor.name, tensor.shape) == (name, shapes[name])
        assert (extent.offset, extent.size_bytes) == (
            path.stat().st_size - end + start,
            stop - start,
        )


def test_a_dimension_that_no_framework_can_hold_is_refused(tmp_path: Path) -> None:
    """The reference takes it in a tensor without elements; PyTorch's sizes are signed."""
    header = {"t": entry("U8", [2**63, 0], 0, 0)}
    path = header_file(tmp_path / "a.safetensors", header, b"")
    with pytest.raises(InvalidCheckpointError, match="not between 0 and 9223372036854775807"):
        open_(path)


@pytest.mark.parametrize(
    "attack",
    [name for name in HEADER_ATTACKS if name not in ("six bits", "huge")],
)
def test_the_reference_refuses_the_same_headers(tmp_path: Path, attack: str) -> None:
    path = header_file(tmp_path / "a.safetensors", HEADER_ATTACKS[attack][0], bytes(8))
    with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(path, "pt"):
        pass


RAW_ATTACKS = {
    "duplicate": (
        b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},'
        b'"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}',
        "the key 'a' occurs twice",
    ),
    "duplicate in an entry": (
        b'{"a":{"dtype":"U8","shape":[9],"shape":[8],"data_offsets":[0,8]}}',
        "the key 'shape' occurs twice",
    ),
    "duplicate in the metadata": (
        b'{"__metadata__":{"x":"1","x":"2"},"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}',
        "the key 'x' occurs twice",
    ),
    "duplicate by escape": (
        b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},'
        b'"\\u0061":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}',
        "the key 'a' occurs twice",
    ),
    "duplicate and deep": (
        b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8],"x":{"y":{"z":1}}},'
        b'"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}',
        "the key 'a' occurs twice",
    ),
    "NaN": (b'{"__metadata__":{"x":NaN}}', "NaN is not JSON"),
    "list": (b"[]", "header does not begin"),
    "leading space": (b" {}", "header does not begin"),
    "empty": (b"", "header does not begin"),
    "nested": (b'{"a":' * 100_000, "nested too deeply"),
    "not UTF-8": (b'{"\xff":1}', "not valid JSON"),
    "surrogate": (b'{"\\ud800":1}', "surrogate"),
    "surrogate in the metadata": (b'{"__metadata__":{"\\udfff":"1"}}', "surrogate"),
}


@pytest.mark.parametrize("attack", RAW_ATTACKS)
def test_a_malformed_header_names_the_file(tmp_path: Path, attack: str) -> None:
    raw, message = RAW_ATTACKS[attack]
    path = header_file(tmp_path / "a.safetensors", None, bytes(8), raw=raw)
    with pytest.raises(InvalidCheckpointError, match=message) as caught:
        open_(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x01", bytes(7), (2**63).to_bytes(8, "little"), (9).to_bytes(8, "little") + b"{}"],
    ids=["empty", "one byte", "seven bytes", "huge length", "cut header"],
)
def test_a_file_without_a_whole_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(InvalidCheckpointError, match="header length is"):
        open_(tmp_path / "a.safetensors")


def test_a_header_over_the_limit_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(1 << 40)
    with pytest.raises(InvalidCheckpointError, match="header length is 100000001"):
        open_(path)


def shards(directory: Path, weight_map: dict[str, object]) -> Path:
    header_file(directory / "one.safetensors", {"a": entry("U8", [2], 0, 2)}, b"aa")
    header_file(
        directory / "two.safetensors",
        {"b": entry("U8", [2], 0, 2), "c": entry("U8", [1], 2, 3)},
        b"bbc",
    )
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def test_shards_are_read_as_their_index_says(tmp_path: Path) -> None:
    shards(tmp_path, {"b": "two.safetensors", "a": "one.safetensors"})
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.tensors) == ["b", "a"]
    assert read_back(checkpoint)["b"] == (b"bb", (2,), "uint8")
    assert [file.path.name for file in checkpoint.files] == ["one.safetensors", "two.safetensors"]


def test_files_without_an_index_are_one_checkpoint(tmp_path: Path) -> None:
    shards(tmp_path, {})
    (tmp_path / "model.safetensors.index.json").unlink()
    assert sorted(open_checkpoint(tmp_path).tensors) == ["a", "b", "c"]
    header_file(tmp_path / "three.safetensors", {"b": entry("U8", [1], 0, 1)}, b"x")
    with pytest.raises(InvalidCheckpointError, match=r"'b' is in three.safetensors too"):
        open_checkpoint(tmp_path)
    header_file(tmp_path / "model.safetensors", {"m": entry("U8", [1], 0, 1)}, b"x")
    assert list(open_checkpoint(tmp_path).tensors) == ["m"]


INDEX_ATTACKS: dict[str, tuple[object, str]] = {
    "no weight map": ({"metadata": {}}, "has no weight_map"),
    "list": ([], "the index is"),
    "weight map list": ({"weight_map": []}, "weight_map is"),
    "number": ({"weight_map": {"a": 1}}, "weight_map of 'a' is 1"),
    "traversal": ({"weight_map": {"a": "../secret"}}, r"weight_map names '\.\./secret'"),
    "inner traversal": ({"weight_map": {"a": "x/../../s"}}, "weight_map names"),
    "absolute": ({"weight_map": {"a": "/etc/passwd"}}, "weight_map names '/etc/passwd'"),
    "NUL": ({"weight_map": {"a": "one\0"}}, "weight_map names"),
    "empty": ({"weight_map": {"a": ""}}, "weight_map names ''"),
    "directory": ({"weight_map": {"a": "."}}, "weight_map names '.'"),
    "missing file": ({"weight_map": {"a": "three.safetensors"}}, "three.safetensors: missing"),
    "missing tensor": (
        {"weight_map": {"x": "one.safetensors"}},
        "weight_map: 'x' is not in one.safetensors",
    ),
}


@pytest.mark.parametrize("attack", INDEX_ATTACKS)
def test_a_wrong_shard_index_names_file_and_field(tmp_path: Path, attack: str) -> None:
    index, message = INDEX_ATTACKS[attack]
    shards(tmp_path, {})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidCheckpointError, match=message) as caught:
        open_(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_links_as_the_hub_cache_has_them_are_followed_inside_the_root(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    header_file(blobs / "abc", {"a": entry("U8", [2], 0, 2)}, b"aa")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert list(open_checkpoint(snapshot, root=tmp_path).tensors) == ["a"]
    with pytest.raises(InvalidCheckpointError, match="is a link to outside of"):
        open_checkpoint(snapshot, root=snapshot)


SHARDS = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]


@pytest.mark.parametrize(
    ("read", "beside", "indexed"),
    [
        (["model.safetensors"], ["consolidated.safetensors"], False),
        (SHARDS, ["consolidated.safetensors"], True),
        (SHARDS, [], False),
        (["a.safetensors"], [], False),
    ],
)
def test_the_likely_files_are_those_that_are_read(
    tmp_path: Path, read: list[str], beside: list[str], *, indexed: bool
) -> None:
    for name in [*read, *beside, "notes.txt"]:
        header_file(tmp_path / name, {name: entry("U8", [1], 0, 1)}, b"x")
    if indexed:
        index = {"weight_map": {name: name for name in read}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert sorted(likely_files([path.name for path in tmp_path.iterdir()])) == read
    assert [file.path.name for file in open_(tmp_path).files] == read
