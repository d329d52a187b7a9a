"""The table of load times in README.md, made from benchmarks/results/load_time-llama-8b.json.

`python -m benchmarks.report` writes it between its marks; a test says when it is out of date.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "load_time-llama-8b.json"
BEGIN = "<!-- made by `python -m benchmarks.report`; do not edit -->"
END = "<!-- end of what it made -->"

_FROM = {
    "cold disk": "a cold disk",
    "host pool": "the store's memory",
    "page cache": "the page cache",
    "tmpfs": "tmpfs",
}


def figures(results: dict[str, Any]) -> str:
    """Return what was measured and a table of it, loaders by states; the best of each is bold."""
    rows: list[dict[str, Any]] = results["rows"]
    rates = {
        (row["loader"], row["state"]): f"{row['gb_per_s_median']:.1f}"
        for row in rows
        if "gb_per_s_median" in row
    }
    states = [state for state in _FROM if any(row["state"] == state for row in rows)]
    best = {
        state: max(float(rate) for (_, where), rate in rates.items() if where == state)
        for state in states
    }
    lines = [*_conditions(results), ""]
    lines += [_line(["", *(_FROM[state] for state in states)])]
    lines += [_line(["---", *("---:" for _ in states)])]
    for loader in dict.fromkeys(row["loader"] for row in rows):
        cells = [rates.get((loader, state), "") for state in states]
        shown = [
            f"**{cell}**" if cell and float(cell) == best[state] else cell
            for state, cell in zip(states, cells, strict=True)
        ]
        lines.append(_line([_named(loader, results["versions"]), *shown]))
    return "\n".join(lines)


def with_figures(text: str, made: str) -> str:
    """Return a document with what is between the marks replaced."""
    pattern = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
    replaced, count = re.subn(
        pattern, lambda _: f"{BEGIN}\n\n{made}\n\n{END}", text, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"the marks for the figures are there {count} times, not once")
    return replaced


def _conditions(results: dict[str, Any]) -> list[str]:
    hardware, checkpoint = results["hardware"], results["checkpoint"]
    runs = {len(row["seconds"]) for row in results["rows"] if "seconds" in row}
    loads = " or ".join(str(count) for count in sorted(runs))
    return [
        f"GB/s, the median of {loads} loads, each verified: a checkpoint of "
        f"{checkpoint['size_bytes'] / 1e9:.1f} GB in {checkpoint['tensors']} tensors of bfloat16, "
        "as published safetensors files,",
        f"from the call to tensors on one {hardware['device']} ({hardware['cores']} cores, Linux "
        f"{hardware['kernel'].partition('-')[0]}, PyTorch {hardware['torch'].partition('+')[0]}, "
        f"commit {results['commit']}).",
    ]


def _named(loader: str, versions: dict[str, str]) -> str:
    """Return a loader with its version, where the results have one for its name."""
    package = loader.lower().replace("run:ai streamer", "runai-model-streamer")
    return f"{loader} {versions[package]}" if package in versions else loader


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def main() -> None:
    """Write the table into README.md."""
    made = figures(json.loads(RESULTS.read_text()))
    README.write_text(with_figures(README.read_text(), made))


if __name__ == "__main__":
    main()
