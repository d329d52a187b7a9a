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
_TOKENS_OF_TILE = 8
_STEPS_AT_ONCE = 32  # Of a row, that a program asks for at a time.


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
    """Warps of a program of 16 rows, and how words are brought.

    ahead: into registers, a step before they are multiplied.
    """

    warps: int
    ahead: bool = False

    @property
    def groups(self) -> int:
        """Groups of each row that a program multiplies at a time: four by each warp."""
        return _GROUPS_OF_WARP * self.warps


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedLaunch:
    """Warps of a program, programs that share rows, and what a warp has under way.

    tiles: of sixteen rows, of each warp. unroll: steps of four groups that are asked for at once.
    registers: at most, of a thread.
    """

    warps: int
    shares: int = 1
    tiles: int = 1
    unroll: int = 4
    registers: int | None = None

    @property
    def groups(self) -> int:
        """Groups of each row that all its programs ask for at a time."""
        return _GROUPS_OF_WARP * self.warps * self.shares * self.unroll

    def passes(self, groups: int) -> int:
        """Return how many times each does for a row of so many groups."""
        return -(-groups // self.groups)


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


def guess_fixed(rows: int, groups: int, *, tokens: int, processors: int) -> FixedLaunch:
    """Return a launch with some 64 KB of a processor on their way: 32 warps, of two steps each.

    A row that is asked for at once, by eight warps of four steps each, needs no loop. Programs are
    large where longer rows are few. Registers are not bounded: what is put off to memory has to be
    there first.
    """
    steps, tiles = -(-groups // _GROUPS_OF_WARP), -(-rows // _ROWS_OF_TILE)
    unroll = 4 if steps <= _STEPS_AT_ONCE else 2
    large = tokens == 1 and steps > _STEPS_AT_ONCE and tiles <= 2 * processors
    warps = 16 if large else 8
    while warps > 1 and warps * unroll > steps:
        warps //= 2
    shares = 1
    while 2 * shares * warps * unroll <= steps and 2 * tiles * shares <= processors:
        shares *= 2
    return FixedLaunch(warps=warps, unroll=unroll, shares=shares)


def candidate_fixed(groups: int) -> Iterator[FixedLaunch]:
    """Yield the launches that are worth measuring."""
    steps = -(-groups // _GROUPS_OF_WARP)
    for warps in (4, 8, 16):
        for shares in (1, 2):
            for unroll in (2, 4, 8):
                if warps * shares * unroll < 2 * steps:
                    for registers in (None, 120):
                        yield FixedLaunch(
                            warps=warps, shares=shares, unroll=unroll, registers=registers
                        )


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
