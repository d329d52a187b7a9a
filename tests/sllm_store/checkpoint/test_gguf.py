"""GGUF in place: files of the gguf package are read as it reads them, and wrong ones are named."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import gguf as reference
import numpy as np
import pytest

from sllm_store.checkpoint.gguf import open_gguf
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.errors import InvalidCheckpointError
from tests.checkpoint_memory import read_back

if TYPE_CHECKING:
    from pathlib import Path

    from sllm_store.checkpoint.model import Checkpoint


def open_(path: Path) -> Checkpoint:
    return open_gguf(path, root=None)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str, dims: tuple[int, ...], *, kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<{len(dims)}Q", *dims)
    return text(name) + struct.pack("<I", len(dims)) + sizes + struct.pack("<IQ", kind, offset)


def file_of(
    infos: list[bytes],
    pairs: list[bytes] | None = None,
    *,
    data: bytes = bytes(64),
    counts: tuple[int, int] | None = None,
    start: bytes = b"GGUF\x03\0\0\0",
) -> bytes:
    """Return the bytes of a file with any header, right or wrong."""
    tensors_total, keys_total = counts or (len(infos), len(pairs or []))
    header = start + struct.pack("<QQ", tensors_total, keys_total)
    header += b"".join(pairs or []) + b"".join(infos)
    return header + bytes(-len(header) % 32) + data


def write_reference(path: Path) -> dict[str, np.ndarray]:
    writer = reference.GGUFWriter(path, "llama")
    random = np.random.default_rng(0)
    plain: dict[str, np.ndarray] = {
        "w32": random.standard_normal((3, 64)).astype(np.float32),
        "w16": random.standard_normal((2, 5, 7)).astype(np.float16),
        "steps": np.arange(5, dtype=np.int32),
    }
    writer.add_block_count(7)
    writer.add_float32("an.f32", 0.5)
    writer.add_bool("a.bool", val=True)
    writer.add_int64("an.i64", -(2**40))
    writer.add_token_list([f"token {n} ☃" for n in range(300)])
    writer.add_token_scores([float(n) for n in range(300)])
    writer.add_array("booleans", [True, False])
    for name, array in plain.items():
        writer.add_tensor(name, array)
    for kind in ("Q4_0", "Q4_1", "Q8_0", "Q6_K"):
        number = reference.GGMLQuantizationType[kind]
        elements, size = reference.GGML_QUANT_SIZES[number]
        raw = random.integers(0, 256, (4, 512 // elements * size)).astype(np.uint8)
        plain[kind] = raw
        writer.add_tensor(kind, raw, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return plain


def test_a_file_of_the_reference_comes_back(tmp_path: Path) -> None:
    arrays = write_reference(tmp_path / "m.gguf")
    checkpoint = open_checkpoint(tmp_path)
    content = read_back(checkpoint)
    assert content.keys() == arrays.keys()
    for name, array in arrays.items():
        raw, shape, dtype = content[name]
        assert raw == array.tobytes()
        if name.startswith("Q"):
            assert (shape, dtype) == ((4, 512), f"gguf:{name}")
            assert checkpoint.tensors[name].span_bytes() == array.nbytes
        else:
            assert (shape, dtype) == (array.shape, str(array.dtype))


def test_metadata_is_as_the_reference_wrote_it(tmp_path: Path) -> None:
    write_reference(tmp_path / "m.gguf")
    metadata = open_(tmp_path / "m.gguf").metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 7
    assert (metadata["an.f32"], metadata["a.bool"], metadata["an.i64"]) == (0.5, True, -(2**40))
    assert metadata["booleans"] == (True, False)
    assert metadata["tokenizer.ggml.scores"] == tuple(float(n) for n in range(300))
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, Sequence)
    assert tokens[:2] == ("token 0 ☃", "token 1 ☃")
    assert (len(tokens), tokens[-1]) == (300, "token 299 ☃")


def split(directory: Path, *, total: int = 2, numbers: tuple[int, ...] = (0, 1)) -> None:
    for position, number in enumerate(numbers):
        pairs = [
            pair("split.no", 2, struct.pack("<H", number)),
            pair("split.count", 2, struct.pack("<H", total)),
            pair("split.tensors.count", 5, struct.pack("<i", len(numbers))),
        ]
        name = f"m-{position + 1:05d}-of-{len(numbers):05d}.gguf"
        content = file_of([info(f"t{position}", (16,))], pairs, data=bytes([position]) * 64)
        (directory / name).write_bytes(content)


def test_the_parts_of_a_model_are_one_checkpoint(tmp_path: Path) -> None:
    split(tmp_path)
    for path in (tmp_path, tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"):
        content = read_back(open_checkpoint(path))
        assert {name: raw[0] for name, (raw, _, _) in content.items()} == {"t0": 0, "t1": 1}


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    split(tmp_path, total=3)
    with pytest.raises(InvalidCheckpointError, match=r"split\.count is 3 where there are 2"):
        open_checkpoint(tmp_path)
    split(tmp_path, numbers=(0, 0))
    with pytest.raises(InvalidCheckpointError, match=r"00002-of-00002.gguf: split\.no is 0, not 1"):
        open_checkpoint(tmp_path)
    split(tmp_path)
    first = tmp_path / "m-00001-of-00002.gguf"
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(InvalidCheckpointError, match=r"00002-of-00002.gguf: missing"):
        open_checkpoint(tmp_path)
    first.rename(tmp_path / "m-00001-of-00001.gguf")
    with pytest.raises(InvalidCheckpointError, match=r"split\.count is 2 where there are 1"):
        open_checkpoint(tmp_path)


GOOD = [info("a", (16,))]
ATTACKS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the header ends.* in magic"),
    "other magic": (file_of(GOOD, start=b"GGML\x03\0\0\0"), "does not begin with 'GGUF'"),
    "version 1": (file_of(GOOD, start=b"GGUF\x01\0\0\0"), "version is 1"),
    "big-endian": (file_of(GOOD, start=b"GGUF\0\0\0\x03"), "a big-endian file"),
    "a billion tensors": (file_of(GOOD, counts=(2**30, 0)), "tensor count is 1073741824"),
    "a billion keys": (file_of(GOOD, counts=(1, 2**30)), "key count is 1073741824"),
    "fewer tensors than said": (file_of(GOOD, counts=(2, 0), data=b""), "ends"),
    "cut": (file_of(GOOD)[:40], "the header ends"),
    "past the end": (file_of([info("a", (17,))]), "'a': offset 0 .*past the end.*truncated"),
    "offset past the end": (file_of([info("a", (16,), offset=32)]), "'a': offset 32 .*past"),
    "huge offset": (file_of([info("a", (16,), offset=2**64 - 32)]), "'a': offset 184467.*past"),
    "unaligned": (file_of([info("a", (8,), offset=8)]), "'a': offset 8 is not aligned to 32"),
    "overlap": (
        file_of([info("a", (16,)), info("b", (8,), offset=32)]),
        "tensors 'a' and 'b' overlap",
    ),
    "same place": (file_of([info("a", (16,)), info("b", (16,))]), "'a' and 'b' overlap"),
    "twice": (file_of(GOOD * 2), "tensor 'a' occurs twice"),
    "five dimensions": (file_of([info("a", (1,) * 5)]), "'a' has 5 dimensions"),
    "huge shape": (file_of([info("a", (2**40, 2**40))]), "'a': shape .* is too large"),
    "unknown type": (file_of([info("a", (16,), kind=4)]), "'a': type is 4, which is not known"),
    "broken block": (file_of([info("a", (16,), kind=2)]), "'a': shape .* blocks of 32"),
    "block of none": (file_of([info("a", (), kind=2)]), "'a': shape .* blocks of 32"),
    "name not UTF-8": (
        file_of([text(b"\xff") + info("", (16,))[8:]]),
        "a tensor name is not UTF-8",
    ),
    "huge name": (file_of([struct.pack("<Q", 2**63)]), "length of a tensor name is 92233"),
    "key twice": (
        file_of(GOOD, [pair("k", 0, b"\1")] * 2),
        "key 'k' occurs twice",
    ),
    "unknown value": (file_of(GOOD, [pair("k", 13, b"")]), "value of 'k' has unknown type 13"),
    "nested array": (
        file_of(GOOD, [pair("k", 9, struct.pack("<IQ", 9, 1))]),
        "value of 'k' is a list of unknown type 9",
    ),
    "huge array": (
        file_of(GOOD, [pair("k", 9, struct.pack("<IQ", 12, 2**28))]),
        "length of value of 'k' is 268435456; at most",
    ),
    "missing array": (
        file_of(GOOD, [pair("k", 9, struct.pack("<IQ", 12, 2**22))]),
        "the header ends",
    ),
    "huge array of strings": (
        file_of(GOOD, [pair("k", 9, struct.pack("<IQ", 8, 2**22))]),
        "the header ends",
    ),
    "huge string": (file_of(GOOD, [pair("k", 8, struct.pack("<Q", 2**62))]), "length of value"),
    "array of huge strings": (
        file_of(GOOD, [pair("k", 9, struct.pack("<IQQ", 8, 2, 2**63))]),
        "the header ends",
    ),
    "alignment zero": (
        file_of(GOOD, [pair("general.alignment", 4, bytes(4))]),
        r"general\.alignment is 0, not a power of two",
    ),
    "alignment 48": (
        file_of(GOOD, [pair("general.alignment", 4, struct.pack("<I", 48))]),
        r"general\.alignment is 48",
    ),
    "alignment text": (
        file_of(GOOD, [pair("general.alignment", 8, text("32"))]),
        r"general\.alignment is '32'",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_wrong_file_is_named_with_its_field(tmp_path: Path, attack: str) -> None:
    content, message = ATTACKS[attack]
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(InvalidCheckpointError, match=message) as caught:
        open_(path)
    assert str(tmp_path) in str(caught.value)


def test_every_cut_of_a_file_is_an_error_and_no_crash(tmp_path: Path) -> None:
    write_reference(tmp_path / "whole.gguf")
    content = (tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for size in [*range(0, 2000, 37), *range(2000, len(content), 997)]:
        path.write_bytes(content[:size])
        with pytest.raises(InvalidCheckpointError):
            open_(path)


def test_any_flipped_byte_of_a_header_is_read_or_refused(tmp_path: Path) -> None:
    write_reference(tmp_path / "whole.gguf")
    content = bytearray((tmp_path / "whole.gguf").read_bytes())
    path = tmp_path / "flipped.gguf"
    for position in range(0, 700, 3):
        for bit in (0x01, 0x80):
            content[position] ^= bit
            path.write_bytes(content)
            content[position] ^= bit
            with suppress(InvalidCheckpointError):
                open_(path)
