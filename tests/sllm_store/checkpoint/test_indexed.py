"""Our format and upstream's: what is right is read, and what is wrong is named."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from sllm_store.checkpoint.checksum import crc32c
from sllm_store.checkpoint.indexed import open_indexed
from sllm_store.checkpoint.writer import CheckpointWriter
from sllm_store.errors import InvalidCheckpointError
from tests.checkpoint_memory import read_back, write_as_upstream

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sllm_store.checkpoint.model import Checkpoint
    from tests.checkpoint_memory import Memory


TENSORS = {
    "a": (bytes(range(10)), (5,), "float16"),
    "b": (bytes(range(3)), (3,), "bool"),
    "c": (bytes(range(100, 148)), (3, 4), "float32"),
    "z": (b"", (0, 4), "float32"),
}


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """A checkpoint as upstream writes it: a at 0, b at 16, c at 24 of 72 bytes."""
    write_as_upstream(tmp_path / "up", TENSORS)
    return tmp_path / "up"


@pytest.fixture
def ours(tmp_path: Path, memory: Memory) -> Path:
    """A checkpoint of ours: w and part share an extent, v has its own, buf is a buffer."""
    memory.storage("base", bytes(range(64)))
    with CheckpointWriter(tmp_path / "ours") as writer:
        writer.write(
            [
                memory.view("w", "float32", (4, 4), storage="base"),
                memory.view("part", "float32", (4,), storage="base", offset=4),
                memory.tensor("v", b"12345678"),
            ],
            buffers=[memory.tensor("buf", b"b" * 8, "float32")],
            aliases={"head": "w"},
        )
    return tmp_path / "ours"


def open_(directory: Path) -> Checkpoint:
    return open_indexed(directory, root=None)


def change(path: Path, edit: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    replaced = edit(value)
    path.write_text(json.dumps(value if replaced is None else replaced))


def change_index(directory: Path, edit: Callable[[Any], object]) -> None:
    """Change an index, and the checksum that ours has of it."""
    path = directory / "tensor_index.json"
    change(path, edit)
    manifest = directory / "checkpoint.json"
    if manifest.exists():
        change(manifest, lambda m: m.update(index_crc32c=crc32c(path.read_bytes())))


def test_upstreams_checkpoint_is_read_without_conversion(upstream: Path) -> None:
    checkpoint = open_(upstream)
    assert read_back(checkpoint) == TENSORS
    assert all(extent.crc32c is None for extent in checkpoint.extents)


@pytest.mark.parametrize("partition_bytes", [1, 20, 48])
def test_upstreams_partitions_are_found_by_their_lengths(
    tmp_path: Path, partition_bytes: int
) -> None:
    write_as_upstream(tmp_path, TENSORS, partition_bytes=partition_bytes)
    assert len(open_(tmp_path).files) > 1
    assert read_back(open_(tmp_path)) == TENSORS


def test_the_dictionary_form_of_upstreams_documents_is_read(upstream: Path) -> None:
    def to_dictionaries(index: Any) -> object:
        return {
            name: {"offset": e[0], "size": e[1], "shape": e[2], "dtype": e[4].split(".")[1]}
            for name, e in index.items()
        }

    change_index(upstream, to_dictionaries)
    assert read_back(open_(upstream)) == TENSORS


def test_tensors_at_one_place_share_one_extent(upstream: Path) -> None:
    change_index(upstream, lambda index: index.update(tied=index["c"]))
    checkpoint = open_(upstream)
    assert checkpoint.tensors["tied"].extent == checkpoint.tensors["c"].extent
    assert len(checkpoint.extents) == len(TENSORS)


def test_ours_without_its_manifest_is_a_checkpoint_of_upstreams(
    tmp_path: Path, memory: Memory
) -> None:
    with CheckpointWriter(tmp_path / "m", max_shard_bytes=300) as writer:
        writer.write([memory.tensor(f"t{n}", bytes([n]) * 200) for n in range(4)])
    with_manifest = read_back(open_(tmp_path / "m"))
    (tmp_path / "m/checkpoint.json").unlink()
    assert read_back(open_(tmp_path / "m")) == with_manifest


def put(name: str, position: int, value: object) -> Callable[[Any], object]:
    def edit(index: Any) -> None:
        index[name][position] = value

    return edit


INDEX_ATTACKS: dict[str, tuple[Callable[[Any], object], str]] = {
    "offset past the end": (put("c", 0, 1000), r"'c': offset: .*past the end"),
    "end past the end": (put("c", 0, 32), r"'c': offset: .*past the end"),
    "huge offset": (put("c", 0, 2**63), r"'c': offset is 9223372036854775808"),
    "negative offset": (put("c", 0, -8), r"'c': offset is -8"),
    "offset true": (put("c", 0, value=True), r"'c': offset is True, not an integer"),
    "offset float": (put("c", 0, 24.0), r"'c': offset is 24.0, not an integer"),
    "offset text": (put("c", 0, "24"), r"'c': offset is '24', not an integer"),
    "negative size": (put("c", 1, -1), r"'c': size is -1"),
    "size too small": (put("c", 1, 47), r"'c': size is 47, but shape"),
    "size null": (put("c", 1, None), r"'c': size is None"),
    "overlap": (put("c", 0, 17), r"tensors 'b' and 'c' overlap"),
    "overlap of two": (put("b", 0, 8), r"tensors 'a' and 'b' overlap"),
    "negative dimension": (put("c", 2, [-3, 4]), r"'c': an element of shape is -3"),
    "huge shape": (put("c", 2, [2**40, 2**40]), r"'c': shape .* more elements than any memory"),
    "huge empty shape": (put("z", 2, [0, 2**62, 2**62]), r"'z': shape .* more elements"),
    "shape text": (put("c", 2, "34"), r"'c': shape is '34'"),
    "shape of 65": (put("c", 2, [1] * 65), r"'c': shape has 65 dimensions"),
    "stride missing": (put("c", 3, None), r"'c': stride is None"),
    "stride short": (put("c", 3, [4]), r"'c': stride has 1 elements, shape 2"),
    "stride huge": (put("c", 3, [2**62, 1]), r"'c': size is 48, but shape"),
    "negative stride": (put("c", 3, [-4, 1]), r"'c': an element of stride is -4"),
    "wrong dtype": (put("c", 4, "torch.float99"), r"'c': dtype is 'torch.float99'"),
    "wider dtype": (put("c", 4, "torch.float64"), r"'c': size is 48, but shape .* spans 96"),
    "dtype list": (put("c", 4, ["float32"]), r"'c': dtype is"),
    "short entry": (lambda index: index.update(c=[0, 8]), r"'c': is \[0, 8\]"),
    "entry text": (lambda index: index.update(c="x"), r"'c': is 'x'"),
    "dictionary without size": (lambda index: index.update(c={"offset": 0}), r"'c': has no .*size"),
    "list": (lambda index: [1, 2], r"the index is \[1, 2\], not an object"),
    "surrogate": (lambda index: index.update({"\ud800": index["c"]}), r"surrogate"),
}


@pytest.mark.parametrize("attack", INDEX_ATTACKS)
@pytest.mark.parametrize("kind", ["upstream", "ours"])
def test_a_wrong_index_names_file_and_field(
    attack: str, kind: str, request: pytest.FixtureRequest, upstream: Path
) -> None:
    edit, message = INDEX_ATTACKS[attack]
    directory = upstream
    if kind == "ours":
        # The same tensors, with a manifest that is right about everything else.
        directory = request.getfixturevalue("ours_of_upstream")
    change_index(directory, edit)
    if kind == "ours":
        message += r"|no extent starts at|beyond its extent"
    with pytest.raises(InvalidCheckpointError, match=message) as caught:
        open_(directory)
    assert str(directory) in str(caught.value)


@pytest.fixture
def ours_of_upstream(upstream: Path) -> Path:
    index = (upstream / "tensor_index.json").read_bytes()
    manifest = {
        "format": "sllm-checkpoint",
        "version": 1,
        "encoding": "raw",
        "index_crc32c": crc32c(index),
        "partitions": [{"file": "tensor.data_0", "size_bytes": 72}],
        "extents": [[0, 10, 0], [16, 3, 0], [24, 48, 0]],
    }
    (upstream / "checkpoint.json").write_text(json.dumps(manifest))
    assert len(open_(upstream).tensors) == 4
    return upstream


JSON_ATTACKS = {
    "empty": (b"", "not valid JSON"),
    "cut short": (b'{"a": [0, 8', "not valid JSON"),
    "two values": (b"{} {}", "not valid JSON"),
    "NaN": (b'{"a": [NaN, 8, [1], [1], "torch.int64"]}', "NaN is not JSON"),
    "infinity": (b'{"a": [-Infinity, 8, [1], [1], "torch.int64"]}', "Infinity is not JSON"),
    "duplicate key": (b'{"a": 1, "a": 2}', "'a' occurs twice"),
    "duplicate key inside": (b'{"a": {"offset": 1, "offset": 2}}', "'offset' occurs twice"),
    "nested lists": (b"[" * 200_000, "nested too deeply"),
    "nested objects": (b'{"a":' * 200_000, "nested too deeply"),
    "long number": (b'{"a": [' + b"9" * 10_000 + b"]}", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "not valid JSON"),
    "binary": (bytes(range(256)), "not valid JSON"),
}


@pytest.mark.parametrize("attack", JSON_ATTACKS)
@pytest.mark.parametrize("name", ["tensor_index.json", "checkpoint.json"])
def test_malformed_json_names_the_file(attack: str, name: str, ours: Path) -> None:
    content, message = JSON_ATTACKS[attack]
    (ours / name).write_bytes(content)
    with pytest.raises(InvalidCheckpointError, match=message) as caught:
        open_(ours)
    assert str(ours / name) in str(caught.value)


@pytest.mark.slow
def test_a_million_entries_are_read(tmp_path: Path) -> None:
    (tmp_path / "tensor.data_0").write_bytes(bytes(8))
    total = 1 << 20
    entry = '[0, 8, [1], [1], "torch.int64"]'
    names = (f'"layers.{n}.weight": {entry}' for n in range(total))
    (tmp_path / "tensor_index.json").write_text(f"{{{', '.join(names)}}}")
    assert len(open_(tmp_path).tensors) == total


def test_more_than_a_million_entries_are_refused_before_they_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "tensor.data_0").write_bytes(bytes(8))
    names = (f'"{n}": 0' for n in range((1 << 20) + 1))
    (tmp_path / "tensor_index.json").write_text(f"{{{', '.join(names)}}}")
    with pytest.raises(InvalidCheckpointError, match="has 1048577 entries; at most 1048576"):
        open_(tmp_path)


def test_a_truncated_partition_is_refused(upstream: Path, ours: Path) -> None:
    (upstream / "tensor.data_0").write_bytes(bytes(71))
    with pytest.raises(InvalidCheckpointError, match=r"'c': offset: .*past the end.*truncated"):
        open_(upstream)
    (ours / "tensor.data_0").write_bytes(bytes(4095))
    with pytest.raises(InvalidCheckpointError, match=r"tensor.data_0: has 4095 bytes where"):
        open_(ours)


def test_a_tensor_across_two_partitions_is_refused(upstream: Path) -> None:
    (upstream / "tensor.data_0").write_bytes(bytes(40))
    (upstream / "tensor.data_1").write_bytes(bytes(32))
    with pytest.raises(InvalidCheckpointError, match=r"'c': offset: .* cross the end of tensor"):
        open_(upstream)


@pytest.mark.parametrize("kind", ["upstream", "ours"])
def test_a_missing_partition_is_named(kind: str, tmp_path: Path, memory: Memory) -> None:
    directory = tmp_path / kind
    if kind == "ours":
        with CheckpointWriter(directory, max_shard_bytes=1) as writer:
            writer.write([memory.tensor(f"t{n}", b"12345678") for n in range(3)])
    else:
        write_as_upstream(directory, TENSORS, partition_bytes=1)
    (directory / "tensor.data_1").unlink()
    with pytest.raises(InvalidCheckpointError, match=r"tensor\.data_1: missing"):
        open_(directory)
    (directory / "tensor.data_2").unlink()
    with pytest.raises(InvalidCheckpointError, match=r"tensor\.data_1|past the end"):
        open_(directory)


def test_partitions_of_an_older_longer_save_are_noticed(upstream: Path, ours: Path) -> None:
    data = (upstream / "tensor.data_0").read_bytes()
    # Upstream overwrote a longer file in place, and did not cut it.
    (upstream / "tensor.data_0").write_bytes(data + bytes(5000))
    with pytest.raises(InvalidCheckpointError, match="files of an older save are mixed in"):
        open_(upstream)
    (upstream / "tensor.data_0").write_bytes(data + bytes(1000))
    assert open_(upstream).size_bytes == 61
    (ours / "tensor.data_1").write_bytes(bytes(4096))
    with pytest.raises(InvalidCheckpointError, match=r"tensor.data_1: not listed"):
        open_(ours)


def test_an_index_that_another_program_wrote_over_ours_is_noticed(ours: Path) -> None:
    write_as_upstream(ours, TENSORS)
    with pytest.raises(InvalidCheckpointError, match=r"index_crc32c differs.*remove checkpoint"):
        open_(ours)


def set_field(field: str, value: object) -> Callable[[Any], object]:
    return lambda manifest: manifest.update({field: value})


def drop(field: str) -> Callable[[Any], object]:
    return lambda manifest: {key: value for key, value in manifest.items() if key != field}


BUFFER = [0, 8, [2], [1], "torch.float32"]
EXTENT_END = 2**40
MANIFEST_ATTACKS: dict[str, tuple[Callable[[Any], object], str]] = {
    "other format": (set_field("format", "zip"), "format is 'zip'"),
    "newer version": (
        set_field("version", 3),
        "version is 3, and this release reads versions 1 and 2",
    ),
    "another version's encoding": (
        set_field("version", 2),
        "encoding is 'raw', and in version 2 this release reads 'rans-f16'",
    ),
    "version true": (set_field("version", value=True), "version is True"),
    "other encoding": (set_field("encoding", "zstd"), "encoding is 'zstd'"),
    "no version": (drop("version"), "has no version"),
    "no partitions": (drop("partitions"), "has no partitions"),
    "no extents": (drop("extents"), "has no extents"),
    "no index checksum": (drop("index_crc32c"), "has no index_crc32c"),
    "index checksum huge": (set_field("index_crc32c", 2**32), "index_crc32c is 4294967296"),
    "list": (lambda manifest: [manifest], "the manifest is"),
    "empty partitions": (set_field("partitions", []), "partitions has 0 entries"),
    "traversal": (
        set_field("partitions", [{"file": "../../etc/passwd", "size_bytes": 4096}]),
        r"partitions\[0\]\.file is '\.\./\.\./etc/passwd', not 'tensor.data_0'",
    ),
    "absolute": (
        set_field("partitions", [{"file": "/etc/passwd", "size_bytes": 4096}]),
        r"partitions\[0\]\.file is '/etc/passwd'",
    ),
    "size float": (
        set_field("partitions", [{"file": "tensor.data_0", "size_bytes": 4096.0}]),
        r"partitions\[0\]\.size_bytes is 4096\.0",
    ),
    "partition not there": (
        set_field(
            "partitions",
            [{"file": f"tensor.data_{n}", "size_bytes": 4096} for n in range(2)],
        ),
        "lists tensor.data_1, which is missing",
    ),
    "extent past the end": (set_field("extents", [[0, EXTENT_END, 0]]), r"extents\[0\].*past"),
    "extents overlap": (set_field("extents", [[0, 64, 0], [63, 8, 0]]), r"extents\[1\] at 63"),
    "extents unsorted": (set_field("extents", [[256, 8, 0], [0, 64, 0]]), r"extents\[1\] at 0"),
    "extent of none": (set_field("extents", [[0, 0, 0]]), r"extents\[0\] is empty"),
    "extent negative": (set_field("extents", [[-1, 64, 0]]), r"extents\[0\] offset is -1"),
    "extent short": (set_field("extents", [[0, 64]]), r"extents\[0\] is \[0, 64\]"),
    "checksum text": (set_field("extents", [[0, 64, "0"]]), r"extents\[0\] crc32c is '0'"),
    "extent missing": (set_field("extents", [[0, 64, 0]]), r"tensor 'v': no extent starts at 256"),
    "extent too small": (
        set_field("extents", [[0, 32, 0], [256, 8, 0], [512, 8, 0]]),
        r"tensor 'w': ends at 64, beyond",
    ),
    "storage offset wrong": (
        set_field("storage_offsets", {"part": 3}),
        r"tensor 'part': no extent starts at 4",
    ),
    "storage offset huge": (
        set_field("storage_offsets", {"part": 2**63 - 1}),
        r"tensor 'part': no extent",
    ),
    "storage offset negative": (
        set_field("storage_offsets", {"part": -4}),
        r"storage_offsets of 'part' is -4",
    ),
    "storage offset of nobody": (
        set_field("storage_offsets", {"part": 4, "x": 1}),
        r"storage_offsets: no tensor is named 'x'",
    ),
    "buffer twice": (set_field("buffers", {"w": BUFFER}), r"buffers: 'w' is in tensor_index"),
    "buffer wrong": (set_field("buffers", {"q": [0]}), r"buffers: tensor 'q': is \[0\]"),
    "buffers list": (set_field("buffers", []), r"buffers: the index is \[\]"),
    "alias of nobody": (set_field("aliases", {"head": "x"}), "aliases: 'head' for 'x'"),
    "alias of itself": (set_field("aliases", {"w": "w"}), "aliases: 'w' for 'w'"),
    "alias number": (set_field("aliases", {"head": 1}), "alias 'head' is 1"),
    "producer number": (set_field("producer", 1), "producer is 1"),
}


@pytest.mark.parametrize("attack", MANIFEST_ATTACKS)
def test_a_wrong_manifest_names_file_and_field(attack: str, ours: Path) -> None:
    edit, message = MANIFEST_ATTACKS[attack]
    change(ours / "checkpoint.json", edit)
    with pytest.raises(InvalidCheckpointError, match=message) as caught:
        open_(ours)
    assert str(ours / "checkpoint.json") in str(caught.value)


def test_fields_that_a_later_release_adds_are_ignored(ours: Path) -> None:
    change(ours / "checkpoint.json", set_field("comment", {"by": "a later release"}))
    assert list(open_(ours).tensors) == ["w", "part", "v"]


def test_a_link_out_of_the_root_is_refused(ours: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (ours / "tensor.data_0").rename(secret)
    (ours / "tensor.data_0").symlink_to(secret)
    assert len(open_indexed(ours, root=tmp_path).files) == 1
    with pytest.raises(InvalidCheckpointError, match=r"tensor.data_0: is a link to outside of"):
        open_indexed(ours, root=ours)


def test_a_manifest_that_is_a_broken_link_is_not_taken_for_none(ours: Path) -> None:
    (ours / "checkpoint.json").unlink()
    (ours / "checkpoint.json").symlink_to("nowhere")
    with pytest.raises(InvalidCheckpointError, match=r"checkpoint\.json: missing"):
        open_(ours)


def test_an_index_over_the_limit_is_not_even_read(ours: Path) -> None:
    with (ours / "tensor_index.json").open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(
        InvalidCheckpointError, match=r"tensor_index\.json: 1\.0 TB of JSON; at most"
    ):
        open_(ours)


def test_a_checkpoint_of_upstreams_that_was_written_once_stays_readable(golden: Path) -> None:
    """The files were made by the oracle of upstream's writer, and never change."""
    checkpoint = open_(golden / "upstream-0.8")
    content = read_back(checkpoint)
    assert content == {
        "model.embed": (bytes(range(24)), (3, 4), "float16"),
        "model.bias": (b"\1\2\3", (3,), "uint8"),
        "model.norm": (bytes(range(100, 120)), (5,), "float32"),
        "lm_head": (bytes(range(24)), (3, 4), "float16"),
    }
    assert len(checkpoint.files) == 2
    assert checkpoint.tensors["lm_head"].extent == checkpoint.tensors["model.embed"].extent


@pytest.mark.parametrize("name", ["tensor_index.json", "checkpoint.json", "tensor.data_0"])
def test_what_is_no_regular_file_is_refused_without_waiting(ours: Path, name: str) -> None:
    (ours / name).unlink()
    os.mkfifo(ours / name)
    with pytest.raises(InvalidCheckpointError, match=f"{name}: not a regular file"):
        open_(ours)
