"""What the store is meant to reach, and whether the results say that it does.

A target is judged within one run: rates of a virtual disk are compared with nothing older.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from benchmarks.tables import rates_of, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Results = list[dict[str, Any]]

MAIN = "llama-8b"
IN_PROCESS, STORE, SHARED = "ours, in-process", "ours, store", "ours, shared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One target: what was asked for and what came out. `margin` is positive where it is met."""

    column: str
    target: str
    measured: str
    margin: float

    @property
    def is_met(self) -> bool:
        """Whether the target is reached."""
        return self.margin >= 0


class Columns:
    """The figures of one checkpoint in one run."""

    def __init__(self, results: dict[str, Any], checkpoint: str) -> None:
        """Index the rows."""
        rows = rows_of(results, checkpoint)
        self.limits: dict[str, float] = results.get("limits", {})
        self._medians = rates_of(rows, "gb_per_s_median")
        self._firsts = rates_of(rows, "gb_per_s_first")
        self._seconds = rates_of(rows, "seconds")
        self._extra = rates_of(rows, "extra_device_bytes")
        self._disk = rates_of(rows, "disk_gb_per_s")

    def median(self, loader: str, state: str) -> float | None:
        """Return a loader's median rate."""
        return self._medians.get((loader, state))

    def first(self, loader: str, state: str) -> float | None:
        """Return a loader's first rate."""
        return self._firsts.get((loader, state))

    def seconds(self, loader: str, state: str) -> float | None:
        """Return the median seconds of a loader's loads."""
        taken: Any = self._seconds.get((loader, state))
        return statistics.median(taken) if taken else None

    def rounds(self, loader: str, state: str) -> list[float]:
        """Return a loader's rate in each round."""
        taken: Any = self._seconds.get((loader, state), [])
        first = self.first(loader, state) or 0.0
        return [first * taken[0] / seconds for seconds in taken]

    def disk_rounds(self, loader: str, state: str) -> list[float]:
        """Return what the disk gave directly in each round of a loader."""
        rates: Any = self._disk.get((loader, state), [])
        return list(rates)

    def peer_rounds(self, state: str) -> list[float]:
        """Return the best rate of all the others in each round."""
        peers = [
            self.rounds(loader, state)
            for loader, where in self._seconds
            if where == state and not loader.startswith("ours")
        ]
        return [max(rates) for rates in zip(*peers, strict=False)]

    def extra_device_bytes(self, loader: str, state: str) -> float | None:
        """Return the device memory that a load took beyond its tensors."""
        return self._extra.get((loader, state))

    def ours(self, state: str) -> str:
        """Return the one of the store and the in-process load that has the better median."""
        return max((IN_PROCESS, STORE), key=lambda loader: self.median(loader, state) or 0.0)

    def best_peer(self, state: str) -> float | None:
        """Return the best median of all the others."""
        return max(
            (
                rate
                for (loader, where), rate in self._medians.items()
                if where == state and not loader.startswith("ours")
            ),
            default=None,
        )


def verdicts(results: Results) -> list[Verdict]:
    """Judge every target that the results have figures for, each by the first that has them."""
    judged = [
        verdict
        for judge, checkpoint in _JUDGES
        for one in results
        if checkpoint in one.get("checkpoints", {})
        for verdict in judge(one)
    ]
    for one in results:
        judged += [*_estimates(one), *_links(one), *_saves(one), *_busy(one), *_in_gpu_memory(one)]
        judged += [*_decoding(one), *_products(one), *_streams(one), *_on_a_cpu(one), *_starts(one)]
    first: dict[tuple[str, str], Verdict] = {}
    for verdict in judged:
        first.setdefault((verdict.column, verdict.target), verdict)
    return list(first.values())


def at_least(
    column: str, target: str, got: float | None, wanted: float | None, *, unit: str = "GB/s"
) -> Iterator[Verdict]:
    """Judge a rate that should be at least another; nothing where one of them is missing."""
    if got is not None and wanted:
        yield Verdict(
            column=column,
            target=target,
            measured=f"{got:.1f} of {wanted:.1f} {unit}",
            margin=got / wanted - 1,
        )


def in_rounds(
    column: str, target: str, got: Sequence[float], wanted: Sequence[float]
) -> Iterator[Verdict]:
    """Judge rates of a disk that drifts: each by its own round, and all by the middle one."""
    known = [pair for pair in zip(got, wanted, strict=False) if pair[1] > 0]
    pairs = sorted(known, key=lambda pair: pair[0] / pair[1])
    if pairs:
        yield from at_least(column, target, *pairs[(len(pairs) - 1) // 2])


def at_most(
    column: str, target: str, got: float | None, wanted: float | None, *, unit: str = ""
) -> Iterator[Verdict]:
    """Judge a cost that should be at most another; nothing where one of them is missing."""
    if got is not None and wanted:
        yield Verdict(
            column=column,
            target=target,
            measured=f"{got:.3g}{unit}, at most {wanted:.3g}{unit}",
            margin=1 - got / wanted,
        )


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _main_columns(results: dict[str, Any]) -> list[Verdict]:
    columns = Columns(results, MAIN)
    link = columns.limits.get("link_gb_per_s")
    ours, tmpfs = columns.ours("cold disk"), columns.median(IN_PROCESS, "tmpfs")
    cold = columns.rounds(ours, "cold disk")
    cached, pool = columns.median(IN_PROCESS, "page cache"), columns.first(STORE, "host pool")
    extra = columns.extra_device_bytes(IN_PROCESS, "page cache")
    fresh = columns.first(IN_PROCESS, "page cache")
    return [
        *in_rounds("cold disk", "the best peer", cold, columns.peer_rounds("cold disk")),
        *_of_the_disk(columns, "cold disk"),
        *_twice_safetensors(columns, ours),
        *at_least("page cache", "the best peer", cached, columns.best_peer("page cache")),
        *at_least("page cache", "45 GB/s, the first load of a process", fresh, 45.0),
        *at_most(
            "page cache", "256 MiB of extra device memory", _scaled(extra, 2**-20), 256, unit=" MiB"
        ),
        *at_least("tmpfs", "the best peer", tmpfs, columns.best_peer("tmpfs")),
        *at_least("host pool", "97 % of the link, the first load", pool, _scaled(link, 0.97)),
        *_mixed(columns),
        *_resident(columns, "16 GB in 291 tensors in 10 ms", wanted_ms=10.0),
    ]


def _of_the_disk(columns: Columns, column: str) -> Iterator[Verdict]:
    """Judge cold loads by the disk; if all of them were faster, it was not measured well."""
    ours = columns.ours("cold disk")
    got, disk = columns.rounds(ours, "cold disk"), columns.disk_rounds(ours, "cold disk")
    if any(loaded <= raw for loaded, raw in zip(got, disk, strict=False)):
        wanted = [0.95 * rate for rate in disk]
        yield from in_rounds(column, "95 % of the best raw direct rate", got, wanted)


def _twice_safetensors(columns: Columns, ours: str) -> Iterator[Verdict]:
    """Judge it, and say where twice what safetensors does is more than the disk gives."""
    wanted = [2 * rate for rate in columns.rounds("safetensors", "cold disk")]
    got = columns.rounds(ours, "cold disk")
    raw = columns.disk_rounds(ours, "cold disk")  # The disk gave what a load had, too.
    disk = statistics.median([*map(max, got, raw)] or [math.inf])
    for verdict in in_rounds("cold disk", "twice safetensors", got, wanted):
        beyond = disk < statistics.median(wanted)
        told = f"{verdict.measured}; the disk gave {disk:.1f}" if beyond else verdict.measured
        yield replace(verdict, measured=told)


def _mixed(columns: Columns) -> Iterator[Verdict]:
    modes = [columns.rounds(f"ours, {mode} reads", "mixed") for mode in ("direct", "buffered")]
    best = [max(pair) for pair in zip(*modes, strict=False)]
    got = columns.rounds(IN_PROCESS, "mixed")
    yield from in_rounds("mixed", "better than both pure modes", got, best)


def _resident(columns: Columns, target: str, *, wanted_ms: float) -> Iterator[Verdict]:
    taken_ms = _scaled(columns.seconds(SHARED, "resident"), 1000)
    yield from at_most("resident", target, taken_ms, wanted_ms, unit=" ms")


def _many_columns(results: dict[str, Any]) -> list[Verdict]:
    many, few = Columns(results, "many"), Columns(results, "few")
    judged = [
        verdict
        for loader, state in (
            (IN_PROCESS, "page cache"),
            (STORE, "host pool"),
        )
        for verdict in at_most(
            f"20,000 tensors, {state}",
            "1.1 times the time of 300 tensors",
            many.seconds(loader, state),
            _scaled(few.seconds(loader, state), 1.1),
            unit=" s",
        )
    ]
    return [*judged, *_resident(many, "4 GB in 20,000 tensors in 100 ms", wanted_ms=100.0)]


def _estimates(results: dict[str, Any]) -> Iterator[Verdict]:
    for name, words, wanted in (
        ("error_median", "a median error of 5 %", 0.05),
        ("error_worst", "a worst error of 20 %", 0.2),
    ):
        if name in results:
            yield from at_most("estimates", words, results[name] * 100, wanted * 100, unit=" %")


def _links(results: dict[str, Any]) -> Iterator[Verdict]:
    """Judge several links by the one of the same run, for the largest number of them."""
    rows = _rows(results, "case")
    rates = {(row["case"], row["path"]): row["gb_per_s_median"] for row in rows}
    gpus = results.get("gpus", 0)
    for checkpoint in dict.fromkeys(row.get("checkpoint", "") for row in rows):
        loads = {
            row["case"]: row["gb_per_s_median"]
            for row in rows
            if row["path"] == "store" and row.get("checkpoint", "") == checkpoint
        }
        one_link = rates.get(("one link", "native"), loads.get("one link"))
        for case, times in (
            (f"split over {gpus} GPUs", 0.75 * gpus),
            (f"fan-in over {gpus} links", 0.75 * gpus),
            (f"fan-in over {gpus} links, coded", float(gpus)),
        ):
            column = ", ".join(filter(None, (case, checkpoint, "store")))
            wanted = _scaled(one_link, times)
            yield from at_least(column, f"{times:g} times one link", loads.get(case), wanted)
    between = rates.get(("from GPU 0 to GPU 1", "native"))
    yield from at_least("between GPUs", "350 GB/s", between, 350.0)


def _saves(results: dict[str, Any]) -> Iterator[Verdict]:
    if "save_gb_per_s" in results:
        saved = statistics.median(results["save_gb_per_s"])
        best = saved / results["share_of_raw"]
        yield from at_least("save", "90 % of the disk's raw write rate", saved, 0.9 * best)


def _busy(results: dict[str, Any]) -> Iterator[Verdict]:
    for row in _rows(results, "slowdown"):
        column = f"busy interpreter, {row['checkpoint']}, {row['loader']}"
        yield from at_most(column, "5 % slower", row["slowdown"] * 100, 5.0, unit=" %")


def _in_gpu_memory(results: dict[str, Any]) -> Iterator[Verdict]:
    for row in _rows(results, "resident_bytes"):
        if (row["checkpoint"], row["loader"], row["processes"]) == (MAIN, SHARED, 1):
            taken_ms = statistics.median(row["seconds"]) * 1000
            target = "16 GB in 291 tensors in 10 ms"
            yield from at_most("resident", target, taken_ms, 10.0, unit=" ms")


def _share(column: str, target: str, got: float, wanted: float) -> Verdict:
    """Judge a part of a limit, both as fractions."""
    return Verdict(column=column, target=target, measured=f"{got:.0%}", margin=got / wanted - 1)


def _decoding(results: dict[str, Any]) -> Iterator[Verdict]:
    """Judge the steps of the engine, with all that is around them; older runs have bare ones."""
    for row in _rows(results, "step_ms"):
        of_copy = row.get("engine_of_copy", row["of_copy"])
        column = f"decoding, Llama-8B shapes in {row['format']}, {row['batch']} requests"
        if row["batch"] == 1:
            yield _share(column, "70 % of a copy's rate", of_copy, 0.7)
        if (row["format"], row["batch"]) == ("Q4_0", 1):
            measured = f"{row['tokens_per_s']:.0f}"
            margin = row["tokens_per_s"] / 150 - 1
            yield Verdict(column=column, target="150 tokens/s", measured=measured, margin=margin)
        if (row["format"], row["batch"]) == ("bf16", 32):
            yield _share(column, "60 % of a copy's rate", of_copy, 0.6)


def _products(results: dict[str, Any]) -> Iterator[Verdict]:
    for row in _rows(results, "us"):
        if (row["format"], row["rows"], row["columns"], row["tokens"]) == ("Q4_0", 8192, 8192, 1):
            column = "product of 8192 x 8192 in Q4_0 and one token"
            yield _share(column, "75 % of a copy's rate", row["of_copy"], 0.75)


def _streams(results: dict[str, Any]) -> Iterator[Verdict]:
    for row in _rows(results, "streamed"):
        if row.get("books") == "host":
            continue  # The device's are the default.
        if row["streamed"] == "experts":
            column = f"experts from the host, {row['slots_per_layer']} slots a layer"
            yield _share(column, "80 % of the bound", row["fraction_of_bound"], 0.8)
        else:
            column = f"70B Q4_0 from the {row['tier']}, {row['batch']} requests"
            yield _share(column, "90 % of the bound", row["fraction_of_bound"], 0.9)


def _on_a_cpu(results: dict[str, Any]) -> Iterator[Verdict]:
    rates = {
        row["way"]: row["tokens_per_s_median"] for row in _rows(results, "tokens_per_s_median")
    }
    if "ours, resident" in rates:
        wanted = rates.get("Transformers, float32")
        yield from at_least(
            "SmolLM2 on the CPU",
            "Transformers in float32",
            rates["ours, resident"],
            wanted,
            unit="tokens/s",
        )
    for row in _rows(results, "share_of_bound"):
        if row["way"] == "ours, streamed":
            column = "SmolLM2 on the CPU, from the disk"
            yield _share(column, "90 % of the bound", row["share_of_bound"], 0.9)


def _starts(results: dict[str, Any]) -> Iterator[Verdict]:
    """Judge starts by the median of the processes that found kernels compiled."""
    taken_s = [
        row["first_token_s"]
        for row in _rows(results, "first_token_s")
        if row["process"] == "second process"
    ]
    if taken_s:
        column = "warm start of a second process" + (", --for-gpu" if results["for_gpu"] else "")
        yield from at_most(column, "2 s", statistics.median(taken_s), 2.0, unit=" s")


def _rows(results: dict[str, Any], figure: str) -> list[dict[str, Any]]:
    return [row for row in results.get("rows", ()) if figure in row]


def _weights_columns(results: dict[str, Any], checkpoint: str = "weights") -> list[Verdict]:
    columns = Columns(results, checkpoint)
    target = "1.35 times the rate without compression"
    return [
        verdict
        for loader, state in (
            (IN_PROCESS, "cold disk"),
            (STORE, "cold disk"),
            (STORE, "host pool"),
        )
        for verdict in in_rounds(
            f"compressed, {state}, {'store' if loader == STORE else 'in-process'}",
            target,
            columns.rounds(f"{loader}, compressed", state),
            [1.35 * rate for rate in columns.rounds(loader, state)],
        )
    ]


def _small_weights_columns(results: dict[str, Any]) -> list[Verdict]:
    columns = Columns(results, "weights-4gb")
    disk = _of_the_disk(columns, "cold disk, four layers")
    return [*disk, *_weights_columns(results, "weights-4gb"), *_mixed(columns)]


_JUDGES: tuple[tuple[Callable[[dict[str, Any]], list[Verdict]], str], ...] = (
    (_main_columns, MAIN),
    (_many_columns, "many"),
    (_small_weights_columns, "weights-4gb"),
    (_weights_columns, "weights"),
)
