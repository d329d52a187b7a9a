"""A model of the PTX that kernels have in them, for Triton's interpreter, which runs none."""

from __future__ import annotations

import ctypes
import re
from typing import Any

import numpy as np
from triton import language
from triton.runtime.interpreter import TensorHandle

LANES, OWN = 32, 4
_WORD_BYTES = 4
_TABLE_OF_AND_OR = "0xea"


def model_asm(asm: Any, constraints: Any, args: Any, dtype: Any, **_kind: Any) -> Any:
    """Stand in for `inline_asm_elementwise`: of tensors (lanes, 4), or of (lanes,) each."""
    text = getattr(asm, "value", asm)
    places = getattr(constraints, "value", constraints).split(",")
    results = sum(place.startswith("=") for place in places)
    kinds = getattr(dtype, "value", dtype)
    shape = args[0].handle.data.shape
    given = [np.broadcast_to(arg.handle.data, shape).reshape(shape[0], -1) for arg in args]
    assert len(places) == results + sum(part.shape[1] for part in given)
    out = np.zeros((shape[0], results), np.uint32)
    for first in range(0, shape[0], LANES):
        columns = [part[first : first + LANES].T for part in given]
        operands = [_bits(one) for part in columns for one in part]
        out[first : first + LANES] = _run(text, operands, results)
    if len(shape) > 1:
        return _tensor(out, kinds)
    if not isinstance(kinds, tuple):
        return _tensor(out[:, 0], kinds)
    return tuple(_tensor(one, kind) for one, kind in zip(out.T, kinds, strict=True))


def _tensor(bits: Any, kind: Any) -> Any:
    data = np.ascontiguousarray(bits).view(np.float32 if kind.is_floating() else np.int32)
    shape = language.block_type(kind, list(data.shape))
    return language.core.tensor(TensorHandle(data, kind), shape)


def _bits(values: Any) -> Any:
    whole = np.ascontiguousarray(values)
    return whole.view(np.uint32) if whole.itemsize == _WORD_BYTES else whole  # Or an address.


def _run(text: str, operands: list[Any], results: int) -> Any:
    """Return what a warp has in its first operands, having run every line."""
    registers = {f"${place}": value for place, value in enumerate(operands, results)}
    for line in re.split(r"[;\n]+", text.strip("{} \n")):
        name, _, rest = line.strip().partition(" ")
        if name and name != ".reg":
            _OPERATIONS[name.split(".")[0]](registers, name, rest)
    return np.stack([registers[f"${place}"] for place in range(results)], axis=1)


def _value(registers: dict[str, Any], name: str) -> Any:
    if name in registers:
        return registers[name]
    number = int(name[2:], 16) if name.startswith("0f") else int(name, 0)
    return np.full(LANES, number, np.uint32)


def _operands(registers: dict[str, Any], rest: str) -> tuple[str, list[Any]]:
    target, *others = (part.strip() for part in rest.split(","))
    return target, [_value(registers, other) for other in others]


def _move(registers: dict[str, Any], _name: str, rest: str) -> None:
    target, (value,) = _operands(registers, rest)
    registers[target] = value


def _shift(registers: dict[str, Any], name: str, rest: str) -> None:
    target, (value, by) = _operands(registers, rest)
    registers[target] = value >> by if name.startswith("shr") else value << by


def _join(registers: dict[str, Any], _name: str, rest: str) -> None:
    assert rest.endswith(_TABLE_OF_AND_OR)
    target, (value, mask, more, _) = _operands(registers, rest)
    registers[target] = (value & mask) | more


def _permute(registers: dict[str, Any], _name: str, rest: str) -> None:
    target, (low, high, picked) = _operands(registers, rest)
    eight = [word >> np.uint32(8 * byte) & 0xFF for word in (low, high) for byte in range(4)]
    found = np.zeros(LANES, np.uint32)
    for byte in range(4):
        found |= eight[int(picked[0]) >> 4 * byte & 7] << np.uint32(8 * byte)
    registers[target] = found


def _compare(registers: dict[str, Any], name: str, rest: str) -> None:
    assert name == "setp.ne.s32"
    target, (value, other) = _operands(registers, rest)
    registers[target] = value != other


def _where(registers: dict[str, Any], name: str, rest: str) -> None:
    """Run a line in the lanes that a predicate names; it reads memory in no other."""
    kind, _, operands = rest.partition(" ")
    _load(registers, kind, operands, registers[name[1:]])


def _multiply(registers: dict[str, Any], name: str, rest: str) -> None:
    """By the pages of PTX that say which lane has what."""
    if name.startswith("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32"):
        _multiply_bytes(registers, rest)
    else:
        _multiply_halves(registers, name, rest)


def _multiply_bytes(registers: dict[str, Any], rest: str) -> None:
    target, rows, columns, sums = _fragments(rest)
    left, right = np.zeros((16, 32), np.int64), np.zeros((32, 8), np.int64)
    total = np.zeros((16, 8), np.int64)
    g, q = np.arange(LANES) // 4, np.arange(LANES) % 4
    for byte in range(_WORD_BYTES):
        shift = np.uint32(8 * byte)
        for place, name in enumerate(rows):
            word = _value(registers, name) >> shift & np.uint32(0xFF)
            left[g + place % 2 * 8, 4 * q + byte + place // 2 * 16] = word
        for place, name in enumerate(columns):
            word = _value(registers, name) >> shift & np.uint32(0xFF)
            right[4 * q + byte + place * 16, g] = word.astype(np.uint8).view(np.int8)
    places = [(g + place // 2 * 8, 2 * q + place % 2) for place in range(OWN)]
    for at, name in zip(places, sums, strict=True):
        total[at] = _value(registers, name).view(np.int32)
    found = (left @ right + total).astype(np.int32)
    for register, at in zip(target, places, strict=True):
        registers[register] = _bits(found[at])


def _fragments(rest: str) -> list[list[str]]:
    return [[part.strip() for part in found.split(",")] for found in re.findall("{(.*?)}", rest)]


def _multiply_halves(registers: dict[str, Any], name: str, rest: str) -> None:
    assert name.startswith("mma.sync.aligned.m16n8k16.row.col.f32.")
    is_bfloat = ".bf16.bf16." in name
    target, *given = _fragments(rest)
    rows, columns, sums = ([_value(registers, part) for part in parts] for parts in given)
    left, right, total = np.zeros((16, 16)), np.zeros((16, 8)), np.zeros((16, 8))
    g, q = np.arange(LANES) // 4, np.arange(LANES) % 4
    for half in range(2):
        for place, pair in enumerate(rows):
            left[g + place % 2 * 8, 2 * q + half + place // 2 * 8] = _half(pair, half, is_bfloat)
        for place, pair in enumerate(columns):
            right[2 * q + half + place * 8, g] = _half(pair, half, is_bfloat)
    places = [(g + place // 2 * 8, 2 * q + place % 2) for place in range(OWN)]
    for at, value in zip(places, sums, strict=True):
        total[at] = value.view(np.float32)
    found = (left @ right + total).astype(np.float32)
    for register, at in zip(target, places, strict=True):
        registers[register] = _bits(found[at])


def _load(
    registers: dict[str, Any], name: str, rest: str, lanes: Any = np.ones(LANES, bool)
) -> None:
    assert name.startswith("ld.global.")
    if not name.endswith(".v4.b32"):
        target, address = (part.strip("[] ") for part in rest.split(","))
        kind = {".u16": ctypes.c_uint16, ".u8": ctypes.c_uint8}[name[name.rindex(".") :]]
        found = [kind.from_address(int(one)).value for one in registers[address]]
        registers[target] = np.array(found, np.uint32)
        return
    (targets,), (address,) = _fragments(rest), re.findall(r"\[(.*?)\]", rest)
    base, _, further = address.partition("+")
    for lane in np.flatnonzero(lanes):
        room = (ctypes.c_uint32 * OWN).from_address(int(registers[base][lane]) + int(further or 0))
        for place, target in enumerate(targets):
            found = registers.setdefault(target, np.zeros(LANES, np.uint32)).copy()
            found[lane] = room[place]
            registers[target] = found


def _half(pair: Any, half: int, is_bfloat: bool) -> Any:  # noqa: FBT001 - one of two types
    bits = pair >> np.uint32(16 * half) & np.uint32(0xFFFF)
    if is_bfloat:
        return (bits << np.uint32(16)).view(np.float32)
    return bits.astype(np.uint16).view(np.float16)


_OPERATIONS = {
    "mov": _move,
    "shr": _shift,
    "shl": _shift,
    "lop3": _join,
    "prmt": _permute,
    "mma": _multiply,
    "ld": _load,
    "setp": _compare,
    "@p": _where,
}
