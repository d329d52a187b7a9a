"""Results as pictures: SVG, the same bytes for the same results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.tables import FROM, digest, loaders_of, named, rates_of, rows_of

if TYPE_CHECKING:
    from pathlib import Path

OURS, PEER, FIRST, LIMIT = "#1f6f8b", "#b8b8b8", "#222222", "#c0392b"
_BOUND = {
    "cold disk": "disk_gb_per_s",
    "page cache": "link_gb_per_s",
    "tmpfs": "link_gb_per_s",
    "host pool": "link_gb_per_s",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "serverless-llm",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw_load_times(results: dict[str, Any], checkpoint: str, path: Path) -> None:
    """Draw one panel a state: a bar for each loader's median, a dot for its first load."""
    rows = rows_of(results, checkpoint)
    rates = rates_of(rows, "gb_per_s_median")
    firsts = rates_of(rows, "gb_per_s_first")
    states = [state for state in FROM if any(where == state for _, where in rates)]
    loaders = [loader for loader in loaders_of(rows) if any(one == loader for one, _ in rates)][
        ::-1
    ]
    limits = results.get("limits", {})
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.0 + 2.1 * len(states), 0.9 + 0.27 * len(loaders)))
        panels = figure.subplots(1, len(states), sharey=True, squeeze=False)[0]
        for panel, state in zip(panels, states, strict=True):
            for place, loader in enumerate(loaders):
                if (loader, state) not in rates:
                    continue
                color = OURS if loader.startswith("ours") else PEER
                panel.barh(place, rates[loader, state], color=color, height=0.7)
                panel.plot(firsts[loader, state], place, "o", color=FIRST, markersize=3)
            limit = limits.get(_BOUND.get(state, ""))
            if limit is not None:
                panel.axvline(limit, color=LIMIT, linewidth=1, linestyle="--")
            panel.set_title(f"from {FROM[state]}", fontsize=9)
            panel.set_xlabel("GB/s")
            panel.set_xlim(left=0)
        names = [named(loader, results["versions"]) for loader in loaders]
        panels[0].set_yticks(range(len(loaders)), names)
        _save(figure, path, results)


def draw_estimates(results: dict[str, Any], path: Path) -> None:
    """Draw predicted against measured seconds, one dot a load."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.5, 4.2))
        panel = figure.subplots()
        for tier in dict.fromkeys(row["tier"] for row in results["rows"]):
            rows = [row for row in results["rows"] if row["tier"] == tier]
            panel.loglog(
                [row["seconds"] for row in rows],
                [row["estimate_s"] for row in rows],
                "o",
                markersize=4,
                label=tier,
            )
        ends = [row["seconds"] for row in results["rows"]]
        line = [min(ends, default=0.01), max(ends, default=1.0)]
        panel.plot(line, line, color=FIRST, linewidth=0.8)
        panel.set_xlabel("measured, s")
        panel.set_ylabel("estimated before, s")
        panel.legend(frameon=False)
        _save(figure, path, results)


def _save(figure: Figure, path: Path, results: dict[str, Any]) -> None:
    """Write a picture whose description says which results it shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"Date": None, "Creator": "benchmarks.report", "Description": digest(results)}
    figure.savefig(path, format="svg", bbox_inches="tight", metadata=facts)
