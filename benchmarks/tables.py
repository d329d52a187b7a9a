"""Results as Markdown: the conditions in a sentence, loaders by states in a table."""

from __future__ import annotations

import hashlib
import json
from typing import Any

FROM = {
    "cold disk": "a cold disk",
    "mixed": "half in the page cache",
    "page cache": "the page cache",
    "tmpfs": "tmpfs",
    "host pool": "the store's memory",
    "resident": "the GPU's memory",
}

Rows = list[dict[str, Any]]


def digest(results: dict[str, Any]) -> str:
    """Return what ties a picture to the figures that it shows."""
    return hashlib.sha256(json.dumps(results).encode()).hexdigest()


def rows_of(results: dict[str, Any], checkpoint: str) -> Rows:
    """Return the rows of one checkpoint."""
    return [row for row in results["rows"] if row["checkpoint"] == checkpoint]


def rates_of(rows: Rows, figure: str) -> dict[tuple[str, str], float]:
    """Return a figure of every row that has it, by loader and state."""
    return {(row["loader"], row["state"]): row[figure] for row in rows if figure in row}


def loaders_of(rows: Rows) -> list[str]:
    """Return the loaders in their order, ours first."""
    named = dict.fromkeys(row["loader"] for row in rows)
    return sorted(named, key=lambda loader: not loader.startswith("ours"))


def load_times(results: dict[str, Any], checkpoint: str) -> str:
    """Return what was measured and a table of it; the best of each column is bold."""
    rows = rows_of(results, checkpoint)
    rates = rates_of(rows, "gb_per_s_median")
    firsts = rates_of(rows, "gb_per_s_first")
    states = [state for state in FROM if any(where == state for _, where in rates)]
    best = {
        state: max(round(rate, 1) for (_, where), rate in rates.items() if where == state)
        for state in states
    }
    lines = [*conditions(results, checkpoint), ""]
    lines += [line(["", *(FROM[state] for state in states)])]
    lines += [line(["---", *("---:" for _ in states)])]
    for loader in loaders_of(rows):
        cells = [""] * len(states)
        for place, state in enumerate(states):
            rate = rates.get((loader, state))
            if rate is not None:
                shown = f"**{rate:.1f}**" if round(rate, 1) == best[state] else f"{rate:.1f}"
                cells[place] = f"{shown} ({firsts[loader, state]:.1f})"
        lines.append(line([named(loader, results["versions"]), *cells]))
    return "\n".join([*lines, *_limits(results)])


def made_by(results: dict[str, Any]) -> str:
    """Return the command, and whether the run ended before it had all that was asked for."""
    cut = ", a run that was cut short" if results.get("cut_short") else ""
    return f"Made by `{results['command']}`{cut}."


def conditions(results: dict[str, Any], checkpoint: str) -> list[str]:
    """Return in what unit, of what, on what."""
    described = results["checkpoints"][checkpoint]
    counts = {len(row["seconds"]) for row in rows_of(results, checkpoint) if "seconds" in row}
    loads = " or ".join(str(count) for count in sorted(counts))
    size_gb = described["size_bytes"] / 1e9
    return [
        f"GB/s, the median of {loads} loads, and in brackets the first, each verified: a",
        f"checkpoint of {size_gb:.1f} GB in {described['tensors']} tensors of bfloat16, as",
        "published safetensors files, from the call to tensors",
        f"on {machine(results['hardware'])}, commit {results['commit']}.",
    ]


def machine(hardware: dict[str, Any], *, gpus: int = 1) -> str:
    """Return what it ran on."""
    count = "one" if gpus == 1 else str(gpus)
    return (
        f"{count} {hardware['device']} ({hardware['cores']} cores, Linux "
        f"{hardware['kernel'].partition('-')[0]}, PyTorch {hardware['torch'].partition('+')[0]})"
    )


def named(loader: str, versions: dict[str, str]) -> str:
    """Return a loader with its version, where the results have one for its name."""
    package = loader.lower().replace("run:ai streamer", "runai-model-streamer")
    return f"{loader} {versions[package]}" if package in versions else loader


def line(cells: list[str]) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def _limits(results: dict[str, Any]) -> list[str]:
    """Return what the links were measured to do in the same run, where they were."""
    words = {
        "disk_gb_per_s": "the disk, read directly",
        "link_gb_per_s": "the link, out of pinned memory",
    }
    limits = results.get("limits", {})
    told = [f"{what} {limits[name]:.1f}" for name, what in words.items() if name in limits]
    return ["", f"Limits measured in the same run, GB/s: {'; '.join(told)}."] if told else []
