"""Manifests of compressed checkpoints: every number is checked, and nothing wrong gets through."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sllm_store import native
from sllm_store.checkpoint.checksum import crc32c
from sllm_store.checkpoint.indexed import open_indexed
from sllm_store.checkpoint.manifest import Manifest, StoredExtent, dump_manifest, parse_manifest
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.checkpoint.verify import verify_checkpoint
from sllm_store.checkpoint.writer import CheckpointWriter
from sllm_store.errors import InvalidCheckpointError
from tests.checkpoint_memory import weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.checkpoint_memory import Memory

MIB = 1 << 20


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compressed")


@pytest.fixture
def compressed(tmp_path: Path, memory: Memory) -> Path:
    """Extent 0 has two segments, extent 1 is short and as it is, extent 2 has one segment."""
    with CheckpointWriter(tmp_path / "m", compress=True) as writer:
        writer.write(
            [
                memory.tensor("a", weights(600_000), "bfloat16"),
                memory.tensor("b", b"b" * 300),
                memory.tensor("c", weights(100_000, seed=1), "float16"),
            ]
        )
    return tmp_path / "m"


def change(path: Path, edit: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def put(extent: int, *places: int, value: object) -> Callable[[Any], object]:
    """Replace a number of an extent, or of one of its lists."""

    def edit(manifest: Any) -> None:
        item = manifest["extents"][extent]
        for place in places[:-1]:
            item = item[place]
        item[places[-1]] = value

    return edit


def stored_as_they_are(manifest: Any) -> None:
    manifest["extents"][2][4] = [200_000]


def drop_segment(manifest: Any) -> None:
    manifest["extents"][0][4].pop()


ATTACKS: dict[str, tuple[Callable[[Any], object], str]] = {
    "three numbers": (
        lambda manifest: manifest["extents"].__setitem__(1, [0, 8, 0]),
        r"extents\[1\] is \[0, 8, 0\], not \[offset, size, crc32c, stored offset\]",
    ),
    "one list": (lambda manifest: manifest["extents"][0].pop(), r"extents\[0\] is \["),
    "no list": (put(0, 4, value=7), r"extents\[0\] stored sizes is 7, not a list"),
    "too few sizes": (
        drop_segment,
        r"stored sizes has 1 entries, and 1200000 bytes have 2 segments",
    ),
    "too few checksums": (
        lambda manifest: manifest["extents"][0][5].pop(),
        r"extents\[0\] checksums has 1 entries",
    ),
    "size zero": (put(0, 4, 1, value=0), r"extents\[0\] segment 1 is stored in 0 bytes"),
    "size negative": (put(0, 4, 0, value=-1), r"an entry of extents\[0\] stored sizes is -1"),
    "size float": (put(0, 4, 0, value=5.0), r"an entry of extents\[0\] stored sizes is 5\.0"),
    "size true": (put(0, 4, 0, value=True), r"an entry of extents\[0\] stored sizes is True"),
    "size huge": (put(0, 4, 0, value=2**40), r"stored sizes is 1099511627776, not between"),
    "size of the last beyond its bytes": (
        put(0, 4, 1, value=200_000),
        r"segment 1 is stored in 200000 bytes, more than its own 151424",
    ),
    "no segment coded": (stored_as_they_are, r"extents\[2\] lists segments, but none"),
    "checksum huge": (put(0, 5, 0, value=2**32), r"an entry of extents\[0\] checksums is"),
    "checksum text": (put(0, 5, 0, value="0"), r"an entry of extents\[0\] checksums is '0'"),
    "raw checksum huge": (put(2, 2, value=2**32), r"extents\[2\] crc32c is 4294967296"),
    "larger than its segments": (
        put(0, 1, value=2 * MIB + 1),
        r"stored sizes has 2 entries, and 2097153 bytes have 3 segments",
    ),
    "raw overlap": (put(1, 0, value=1_199_999), r"extents\[1\] at 1199999 overlaps the one before"),
    "stored overlap": (put(1, 3, value=4096), r"extents\[1\] is stored at 4096, where the one"),
    "not aligned": (
        lambda manifest: manifest["extents"][2].__setitem__(3, manifest["extents"][2][3] - 256),
        r"extents\[2\]: its segments start at \d+ of tensor.data_0, no multiple of 4096",
    ),
    "past the end": (put(2, 3, value=2**40), r"extents\[2\]: bytes .* are past the end"),
    "empty": (put(1, 1, value=0), r"extents\[1\] is empty"),
    "empty and cut": (
        lambda manifest: manifest["extents"].__setitem__(0, [0, 0, 0, 0, [], []]),
        r"extents\[0\] is empty",
    ),
    "smaller than its tensor": (
        put(1, 1, value=299),
        r"tensor 'b': ends at 1200428, beyond its extent's end at 1200427",
    ),
    "version 1": (
        lambda manifest: manifest.update(version=1),
        r"encoding is 'rans-f16', and in version 1 this release reads 'raw'",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_wrong_manifest_names_file_and_field(attack: str, compressed: Path) -> None:
    edit, message = ATTACKS[attack]
    change(compressed / "checkpoint.json", edit)
    with pytest.raises(InvalidCheckpointError, match=message) as caught:
        open_indexed(compressed, root=None)
    assert str(compressed / "checkpoint.json") in str(caught.value)


def test_another_index_than_the_one_that_was_saved_is_noticed(compressed: Path) -> None:
    change(compressed / "compressed_index.json", lambda index: index["a"].__setitem__(1, 8))
    with pytest.raises(InvalidCheckpointError, match=r"compressed_index\.json: is not the one"):
        open_checkpoint(compressed)


def test_an_upstream_save_over_a_compressed_one_is_noticed(compressed: Path) -> None:
    (compressed / "tensor_index.json").write_text("{}")
    with pytest.raises(InvalidCheckpointError, match="another program saved over it"):
        open_checkpoint(compressed)


@pytest.mark.parametrize("missing", ["checkpoint.json", "compressed_index.json", "tensor.data_0"])
def test_a_missing_file_is_named(compressed: Path, missing: str) -> None:
    (compressed / missing).unlink()
    with pytest.raises(InvalidCheckpointError, match=missing.replace(".", r"\.")):
        open_checkpoint(compressed)


def test_a_partition_cut_short_is_named(compressed: Path) -> None:
    with (compressed / "tensor.data_0").open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(InvalidCheckpointError, match=r"tensor\.data_0: has 4096 bytes where"):
        open_checkpoint(compressed)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_numbers_changed_at_random_are_refused_or_found_by_verifying(
    memory: Memory, directory: Path, data: st.DataObject
) -> None:
    if not (directory / "m").exists():
        with CheckpointWriter(directory / "m", compress=True) as writer:
            writer.write([memory.tensor("a", weights(600_000), "bfloat16")])
    path = directory / "m" / "checkpoint.json"
    original = path.read_text()
    value = json.loads(original)
    numbers = [value["extents"][0], *value["extents"][0][4:]]
    chosen = data.draw(st.sampled_from(numbers))
    place = data.draw(st.integers(0, min(len(chosen), 4) - 1))
    old = chosen[place]
    near = st.integers(-4097, 4097).map(lambda change: old + change if change else old + 1)
    chosen[place] = data.draw(st.one_of(near, st.integers(-1, 2**64), st.just(None)))
    path.write_text(json.dumps(value))
    try:
        if chosen[place] != old:
            assert not is_good(directory / "m")
    finally:
        path.write_text(original)


def is_good(path: Path) -> bool:
    try:
        checkpoint = open_checkpoint(path)
    except InvalidCheckpointError:
        return False
    return not verify_checkpoint(checkpoint).problems


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_bytes_changed_at_random_with_a_forged_checksum_are_found_by_decoding(
    memory: Memory, directory: Path, data: st.DataObject
) -> None:
    if not (directory / "f").exists():
        with CheckpointWriter(directory / "f", compress=True) as writer:
            writer.write([memory.tensor("a", weights(50_000), "bfloat16")])
    (segment,) = open_checkpoint(directory / "f").extents[0].segments
    original = (directory / "f" / "tensor.data_0").read_bytes()
    manifest = (directory / "f" / "checkpoint.json").read_text()
    content = bytearray(original)
    places = st.one_of(st.integers(0, 800), st.integers(0, segment.stored_bytes - 1))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(places)] = data.draw(st.integers(0, 255))
    stored = crc32c(bytes(content[: segment.stored_bytes]))
    (directory / "f" / "tensor.data_0").write_bytes(content)
    forged = manifest.replace(str(segment.crc32c), str(stored))
    (directory / "f" / "checkpoint.json").write_text(forged)
    try:
        changed = content[: segment.stored_bytes] != original[: segment.stored_bytes]
        decodes_alike = not changed or is_same(content, segment.stored_bytes, segment.raw_bytes)
        assert is_good(directory / "f") == decodes_alike
    finally:
        (directory / "f" / "tensor.data_0").write_bytes(original)
        (directory / "f" / "checkpoint.json").write_text(manifest)


def is_same(content: bytearray, stored_bytes: int, raw_bytes: int) -> bool:
    """Whether changed bytes decode to the same weights: padding means nothing."""
    import numpy as np

    source = np.frombuffer(bytes(content[:stored_bytes]), dtype=np.uint8)
    raw = np.empty(raw_bytes, dtype=np.uint8)
    try:
        native.decode_segment(source.ctypes.data, stored_bytes, raw.ctypes.data, raw_bytes)
    except native.NativeError:
        return False
    return raw.tobytes() == weights(50_000)


@given(st.data())
def test_a_manifest_comes_back_as_it_was_written(data: st.DataObject) -> None:
    extents: list[StoredExtent] = []
    raw = stored = 0
    for _ in range(data.draw(st.integers(0, 5))):
        size = data.draw(st.sampled_from([1, 300, 70_000, MIB, MIB + 1, 3 * MIB]))
        segments = -(-size // MIB) if data.draw(st.booleans()) and size >= 70_000 else 0
        sizes = tuple(
            data.draw(st.integers(1, min(MIB, size - number * MIB))) for number in range(segments)
        )
        extent = StoredExtent(raw, size, 2**32 - 1, stored, sizes, tuple(range(segments)))
        if segments and not extent.is_coded:
            extent = StoredExtent(raw, size, 0, stored)
        extents.append(extent)
        raw += size + 255
        stored = -(-(stored + extent.span_bytes) // 4096) * 4096
    manifest = Manifest(
        partitions=(stored,), extents=tuple(extents), index_crc32c=5, encoding="rans-f16"
    )
    assert parse_manifest(json.loads(dump_manifest(manifest)), source="m") == manifest


def test_a_large_models_manifest_is_small(memory: Memory) -> None:
    """Eight billion parameters: 15,300 segments in 291 extents."""
    size = 16_060_000_000 // 291
    segments = -(-size // MIB)
    extents = tuple(
        StoredExtent(
            number * size,
            size,
            2**32 - 1,
            number * size,
            (600_000,) * segments,
            (2**32 - 1,) * segments,
        )
        for number in range(291)
    )
    manifest = Manifest(
        partitions=(size * 291,), extents=extents, index_crc32c=5, encoding="rans-f16"
    )
    text = dump_manifest(manifest)
    assert len(text) < 400_000
    assert parse_manifest(json.loads(text), source="m") == manifest
