"""How a kernel is cut into programs, for a shape: a good guess where nothing was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_WARP = 32
_PROGRAMS_PER_PROCESSOR = 4  # Enough reads under way to keep the memory busy.
_WARPS_ENOUGH = 16  # Of a processor, for the same where each reads 16 bytes a thread.
_GROUPS_OF_WARP = 4  # On the matrix units, of a tile's rows.
_ROWS_OF_TILE = 16
_WORDS_AND_SCALES = 2  # Planes of a format that needs no other.
_TOKENS_AT_ONCE = 2
_REGISTERS, _LEAN_REGISTERS = 65536, 72  # Of a processor, and of a thread with few sums.
_TOKENS_OF_TILE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class GemvLaunch:
    """Rows of a program, its warps, buffers of its loop, and programs that share each row."""

    rows: int
    warps: int
    stages: int = 1
    shares: int = 1

    @property
    def groups(self) -> int:
        """Loads of 16 bytes that a program makes of a row at a time: one by each thread."""
        return _WARP * self.warps

    def options(self, groups: int) -> dict[str, int]:
        """Return what a kernel over so many groups is compiled and launched with."""
        return {
            "block_rows": self.rows,
            "block_groups": self.groups,
            "even": groups % self.groups == 0,
            "stages": self.stages,
            "num_warps": self.warps,
            "enable_fp_fusion": True,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmLaunch:
    """Rows, groups and tokens of a tile, the program's warps, and programs that share a tile."""

    rows: int = 64
    groups: int = 8
    tokens: int = 16
    warps: int = 4
    shares: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NibbleLaunch:
    """Warps of a program of 16 rows, programs that share them, and how words are brought.

    ahead: into registers, a step before they are multiplied. registers: at most, of a thread.
    """

    warps: int
    shares: int = 1
    ahead: bool = False
    registers: int | None = None

    @property
    def groups(self) -> int:
        """Groups of each row that a program multiplies at a time: four by each warp."""
        return _GROUPS_OF_WARP * self.warps


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnsLaunch:
    """Warps of a program, beside each other in rows and in groups, and programs that share rows.

    tiles: of sixteen rows, of each warp.
    """

    tall: int
    deep: int
    tiles: int = 1
    shares: int = 1

    @property
    def groups(self) -> int:
        """Groups of each row that a program multiplies at a time: four by each warp."""
        return _GROUPS_OF_WARP * self.deep


def guess_gemm(rows: int, groups: int, *, tokens: int, processors: int) -> GemmLaunch:
    """Return a launch that shares tiles along their rows where there would be too few programs."""
    launch = GemmLaunch(tokens=16 if tokens <= 16 else 32 if tokens <= 32 else 64)
    tiles = -(-rows // launch.rows) * -(-tokens // launch.tokens)
    shares = 1
    while 2 * shares * launch.groups <= groups and tiles * shares < 2 * processors:
        shares *= 2
    return replace(launch, shares=shares)


def candidate_gemms(groups: int, *, tokens: int) -> Iterator[GemmLaunch]:
    """Yield the launches that are worth measuring."""
    wide = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
    for rows in (32, 64, 128):
        for deep in (4, 8, 16):
            for warps in (4, 8):
                for shares in (1, 2, 4, 8, 16):
                    if shares == 1 or deep * shares <= groups:
                        yield GemmLaunch(
                            rows=rows, groups=deep, tokens=wide, warps=warps, shares=shares
                        )


def guess_gemv(rows: int, groups: int, *, tokens: int, processors: int) -> GemvLaunch:
    """Return a launch for planes, with fewer rows to a program where there would be too few.

    What a program prepares of x serves all of its rows, so there are many.
    """
    warps = 2 if groups > _WARP else 1
    each = max(8 // tokens, 1)
    while each > 1 and rows < each * processors * _PROGRAMS_PER_PROCESSOR:
        each //= 2
    shares = 1
    most = -(-groups // (_WARP * warps))
    while 2 * shares <= most and rows * shares < each * processors * _PROGRAMS_PER_PROCESSOR:
        shares *= 2
    stages = 2 if shares < most else 1
    return GemvLaunch(rows=each, warps=warps, stages=stages, shares=shares)


def guess_nibbles(
    rows: int, groups: int, *, tokens: int, planes: int, processors: int
) -> NibbleLaunch:
    """Return a launch whose programs are all on the device at once, and nearly fill it.

    What does not fit at once would be a second round, with most of it empty. With scales alone and
    one token or two, 72 registers a thread are enough, and 64 where that makes a round less; with
    eight tokens 128 are, for 16 warps of a processor. Where words are brought ahead, a chain has
    the first of them on the way while the kernel before it ends.
    """
    plain = planes == _WORDS_AND_SCALES
    lean = plain and tokens <= _TOKENS_AT_ONCE
    most = 32 if lean else 24 if tokens <= _TOKENS_AT_ONCE else 16
    tiles = -(-rows // _ROWS_OF_TILE)
    warps = 16 if lean else 8
    while warps > 4 and tiles * warps > most * processors:
        warps //= 2
    while warps > 1 and _GROUPS_OF_WARP * warps > groups:
        warps //= 2
    shares = 1
    while (
        2 * shares * _GROUPS_OF_WARP * warps <= groups
        and 2 * tiles * shares * warps <= most * processors
    ):
        shares *= 2
    registers: int | None = None
    if lean:
        programs = -(-tiles * shares // processors)  # Of a processor.
        fewer = _rounds(programs, warps, 64) < _rounds(programs, warps, _LEAN_REGISTERS)
        registers = 64 if fewer else None
    elif plain and tokens > 2 * _TOKENS_AT_ONCE:
        registers = 128
    return NibbleLaunch(warps=warps, shares=shares, ahead=lean, registers=registers)


def _rounds(programs: int, warps: int, registers: int) -> int:
    """Return in how many rounds a processor has its programs, of so many registers a thread."""
    return -(-programs // (_REGISTERS // (registers * _WARP * warps)))


def candidate_nibbles(groups: int, *, tokens: int) -> Iterator[NibbleLaunch]:
    """Yield the launches that are worth measuring."""
    for warps in (4, 8, 16):
        for shares in (1, 2, 4):
            if _GROUPS_OF_WARP * warps * shares > groups:
                continue
            for registers in (None, 64) if tokens <= _TOKENS_AT_ONCE else (None, 128):
                for ahead in (False, True):
                    yield NibbleLaunch(warps=warps, shares=shares, ahead=ahead, registers=registers)


def guess_columns(rows: int, groups: int, *, tokens: int, processors: int) -> ColumnsLaunch:
    """Return a launch with two or three programs to a processor, of eight warps.

    Tiles of a warp share x in registers, and warps beside each other in rows in the cache, so the
    more tokens, the more of those; a row is shared where there would be too few programs.
    """
    each = 1 if tokens <= _TOKENS_OF_TILE else 2
    tiles = -(-rows // (_ROWS_OF_TILE * each))
    tall = 1 if tokens <= 2 * _TOKENS_OF_TILE else 2
    while tall < 8 and tiles >= 6 * tall * processors:
        tall *= 2
    deep = 8 // tall
    while deep > 1 and _GROUPS_OF_WARP * deep > groups:
        deep //= 2
    programs, shares = -(-tiles // tall), 1
    while 2 * programs * shares <= 3 * processors and 2 * shares * _GROUPS_OF_WARP * deep <= groups:
        shares *= 2
    return ColumnsLaunch(tall=tall, deep=deep, tiles=each, shares=shares)


def candidate_columns(groups: int) -> Iterator[ColumnsLaunch]:
    """Yield the launches that are worth measuring."""
    for warps in (4, 8, 16):
        for tall in (1, 2, 4):
            for shares in (1, 2, 4):
                if _GROUPS_OF_WARP * warps // tall * shares <= groups:
                    for tiles in (1, 2):
                        yield ColumnsLaunch(
                            tall=tall, deep=warps // tall, tiles=tiles, shares=shares
                        )


def guess_dense(rows: int, groups: int, *, processors: int) -> GemvLaunch:
    """Return a launch for floats: a row to a program, of a warp where rows alone are enough.

    Floats need no preparing, so the more programs, the more reads are under way.
    """
    warps = 1
    while warps < 4 and 2 * _WARP * warps <= groups and rows * warps < processors * _WARPS_ENOUGH:
        warps *= 2
    shares = 1
    most = -(-groups // (_WARP * warps))
    while 2 * shares <= most and rows * shares < processors * _PROGRAMS_PER_PROCESSOR:
        shares *= 2
    return GemvLaunch(rows=1, warps=warps, shares=shares)


def candidate_gemvs(groups: int) -> Iterator[GemvLaunch]:
    """Yield the launches for planes that are worth measuring."""
    for warps in (1, 2, 4):
        for shares in (1, 2):
            if shares > 1 and shares * _WARP * warps > groups:
                continue
            for rows in (2, 4, 8):
                for stages in (1, 2, 3):
                    if stages == 1 or _WARP * warps * shares < groups:
                        yield GemvLaunch(rows=rows, warps=warps, stages=stages, shares=shares)


def candidate_denses(groups: int) -> Iterator[GemvLaunch]:
    """Yield the launches for floats that are worth measuring."""
    for warps in (1, 2, 4):
        for shares in (1, 2, 4):
            if shares == 1 or shares * _WARP * warps <= groups:
                for rows in (1, 2):
                    yield GemvLaunch(rows=rows, warps=warps, shares=shares)


@cache
def processors_of(device: torch.device) -> int:
    """Return how many multiprocessors a device has; 1 for a CPU, where kernels are interpreted."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
