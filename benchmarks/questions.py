"""Results of the benchmarks that time no loaders side by side, each as a paragraph and a table."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.tables import line, machine, made_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Result = dict[str, Any]


def is_known(name: str) -> bool:
    """Whether a result's name, without what follows a hyphen, is one of these benchmarks."""
    return _kind(name) in _TABLES


def section(name: str, one: Result) -> list[str]:
    """Return the title, the question with its conditions, the table and the command."""
    title, table = _TABLES[_kind(name)]
    part = name.partition("-")[2]
    title += f", {part}" if part else ""
    gpus = one.get("gpus", 1)
    where = machine(one["hardware"], gpus=gpus) if "hardware" in one else f"{one['cores']} cores"
    asked = f"{one['question']} On {where}, commit {one['commit']}."
    return [f"### {title}", asked, table(one), made_by(one)]


def _kind(name: str) -> str:
    return name.partition("-")[0]


def _table(columns: list[str], rows: Iterable[list[str]]) -> str:
    """Return a table; a column whose name begins with '>' is aligned to the right."""
    marks = ["---:" if column.startswith(">") else "---" for column in columns]
    head = [column.removeprefix(">") for column in columns]
    return "\n".join([line(head), line(marks), *map(line, rows)])


def _resident(one: Result) -> str:
    return _table(
        ["checkpoint", "loader", ">processes", ">first, ms", ">median, ms"],
        [
            [
                row["checkpoint"],
                row["loader"],
                str(row.get("processes", 1)),
                f"{row['seconds'][0] * 1e3:.1f}",
                f"{statistics.median(row['seconds']) * 1e3:.1f}",
            ]
            for row in one["rows"]
            if "seconds" in row
        ],
    )


def _links(one: Result) -> str:
    return _table(
        ["case", "by", ">first, GB/s", ">median, GB/s"],
        [
            [
                row["case"],
                _by(row),
                f"{row['gb_per_s_first']:.1f}",
                f"{row['gb_per_s_median']:.1f}",
            ]
            for row in one["rows"]
        ],
    )


def _by(row: dict[str, Any]) -> str:
    who = {"native": "the engine", "store": "the store", "in-process": "the process itself"}
    return ", ".join([who[row["path"]], *([row["checkpoint"]] if "checkpoint" in row else [])])


def _codec_rate(one: Result) -> str:
    return _table(
        ["what", "with", ">median, GB/s", ">best, GB/s"],
        [
            [
                row["what"],
                f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
                if "threads" in row
                else f"{row['segments']} segments a launch",
                f"{row['gb_per_s_median']:.1f}",
                f"{row['gb_per_s_best']:.1f}",
            ]
            for row in one["rows"]
        ],
    )


def _busy_interpreter(one: Result) -> str:
    return _table(
        ["checkpoint", "loader", ">alone, ms", ">beside a busy thread, ms", ">slower by"],
        [
            [
                row["checkpoint"],
                row["loader"],
                f"{statistics.median(row['seconds']) * 1e3:.1f}",
                f"{statistics.median(row['busy_seconds']) * 1e3:.1f}",
                f"{row['slowdown']:.1%}",
            ]
            for row in one["rows"]
        ],
    )


def _save_rate(one: Result) -> str:
    raw = [
        [
            f"raw, {row['threads']} thread, {row['depth']} writes of {row['size_bytes'] >> 10} KiB",
            f"{statistics.median(row['gb_per_s']):.2f}",
        ]
        for row in one["raw_gb_per_s"]
    ]
    saved = f"save_dict, {one['share_of_raw']:.0%} of the best of these"
    ours = [[saved, f"{statistics.median(one['save_gb_per_s']):.2f}"]]
    return _table(["how", ">median, GB/s"], raw + ours)


def _raw_disk(one: Result) -> str:
    rows = []
    for what, best in one["best"].items():
        how = f"{best['threads']} threads, {best['depth']} in flight of {best['size_bytes'] >> 10}"
        rate = statistics.mean(best["gb_per_s"])
        rows.append([f"best {what}", f"{how} KiB", f"{rate:.2f}"])
    for what, ours in one.get("ours", {}).items():
        rows.append([f"ours, {what}", "as learnt", f"{statistics.median(ours['gb_per_s']):.2f}"])
    return _table(["what", "how", ">GB/s"], rows)


def _cold_ways(one: Result) -> str:
    return _table(
        ["way", ">median, GB/s"],
        [[row["way"], f"{row['gb_per_s_median']:.2f}"] for row in one["rows"]],
    )


def _estimates(one: Result) -> str:
    kinds = dict.fromkeys((row["checkpoint"], row["tier"]) for row in one["rows"])
    rows = []
    for checkpoint, tier in kinds:
        errors = [
            abs(row["error"])
            for row in one["rows"]
            if (row["checkpoint"], row["tier"]) == (checkpoint, tier)
        ]
        middle, worst = statistics.median(errors), max(errors)
        rows.append([checkpoint, tier, str(len(errors)), f"{middle:.1%}", f"{worst:.1%}"])
    median, worst = (f"{one[name]:.1%}" for name in ("error_median", "error_worst"))
    rows.append(["all", "", str(len(one["rows"])), median, worst])
    return _table(["checkpoint", "from", ">loads", ">median error", ">worst"], rows)


def _decode_gpu(one: Result) -> str:
    return _table(
        [
            "weights",
            "asked by",
            ">requests",
            ">tokens/s",
            ">step, ms",
            ">part of a copy's rate",
            ">the engine's",
        ],
        [
            [
                row["format"],
                row["way"],
                str(row["batch"]),
                f"{row['tokens_per_s']:.0f}",
                f"{row['step_ms']:.2f}",
                f"{row['of_copy']:.0%}",
                f"{row['engine_of_copy']:.0%}" if "engine_of_copy" in row else "",
            ]
            for row in one["rows"]
        ],
    )


def _kernels(one: Result) -> str:
    return _table(
        ["weights", "shape", ">tokens", ">µs", ">GB/s", ">part of a copy's rate"],
        [
            [
                row["format"],
                f"{row['rows']} x {row['columns']}",
                str(row["tokens"]),
                f"{row['us']:.1f}",
                f"{row['gb_s']:.0f}",
                f"{row['of_copy']:.0%}",
            ]
            for row in one["rows"]
        ],
    )


def _streaming(one: Result) -> str:
    rows = []
    for row in one["rows"]:
        if row["streamed"] == "layers":
            what = f"layers from {row['tier']}, {row['batch']} requests"
        else:
            what = f"experts, {row['slots_per_layer']} slots a layer, {row['hit_rate']:.0%} hits"
            what += f", the {row['books']}'s books" if "books" in row else ""
        rate = f"{row['tokens_per_s_of_whole']:.2f}"
        rows.append([what, rate, f"{row['fraction_of_bound']:.0%}"])
    return _table(["what", ">tokens/s of the whole model", ">part of the bound"], rows)


def _warm_start(one: Result) -> str:
    rows = []
    for row in one["rows"]:
        stages = sorted(row["stages"].items(), key=lambda stage: -stage[1])
        longest = ", ".join(f"{name} {seconds:.2f}" for name, seconds in stages[:4])
        rows.append([row["process"], f"{row['first_token_s']:.2f}", longest])
    return _table(["process", ">first token, s", "longest stages, s"], rows)


def _decode_cpu(one: Result) -> str:
    return _table(
        ["way", ">tokens/s", ">part of the bound"],
        [
            [
                row["way"],
                f"{row['tokens_per_s_median']:.1f}",
                f"{row['share_of_bound']:.0%}" if "share_of_bound" in row else "",
            ]
            for row in one["rows"]
        ],
    )


_TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {
    "resident": ("Models in GPU memory already", _resident),
    "links": ("Several links", _links),
    "codec_rate": ("The codec alone", _codec_rate),
    "busy_interpreter": ("Beside a thread that computes", _busy_interpreter),
    "save_rate": ("Saving", _save_rate),
    "raw_disk": ("The disk by itself", _raw_disk),
    "cold_ways": ("Ways to read a cold file", _cold_ways),
    "estimates": ("Estimates", _estimates),
    "decode_gpu": ("Decoding on a GPU", _decode_gpu),
    "kernels": ("Products with stored weights", _kernels),
    "streaming": ("Weights streamed to a GPU", _streaming),
    "warm_start": ("From nothing to a first token", _warm_start),
    "decode_cpu": ("Decoding on a CPU", _decode_cpu),
}
