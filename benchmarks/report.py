"""The report: tables and pictures out of benchmarks/results/, for README.md and docs/benchmarks.md.

`python -m benchmarks.report` writes them; a test says when they are out of date.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.questions import is_known, section
from benchmarks.tables import line, load_times, made_by
from benchmarks.targets import MAIN, verdicts

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "benchmarks.md"
FIGURES = ROOT / "docs" / "figures"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN = "<!-- made by `python -m benchmarks.report`; do not edit -->"
LOAD_TIME = "load_time"
END = "<!-- end of what it made -->"

_TITLES = {
    MAIN: "Llama-8B shapes, random bits",
    "weights": "Llama-8B shapes, numbers like a trained model's",
    "weights-4gb": "Four layers of them: compressed, and half in the page cache",
    "many": "20,000 small tensors",
    "few": "The same bytes in 300 tensors",
    "smollm2": "SmolLM2-135M-Instruct",
}

_CAPTION = (
    "Bars are medians, dots first loads; a dashed line is the limit of the disk or of the link, "
    "where the\nsame run measured it."
)

Results = dict[str, dict[str, Any]]


def read_results(directory: Path = RESULTS) -> Results:
    """Return the results that the report shows, by the name of their file."""
    return {
        path.stem: json.loads(path.read_text())
        for path in sorted(directory.glob("*.json"))
        if path.stem.startswith(LOAD_TIME) or is_known(path.stem)
    }


def load_times_of(results: Results) -> Results:
    """Return those with loaders side by side."""
    return {name: one for name, one in results.items() if name.startswith(LOAD_TIME)}


def readme_part(results: Results) -> str:
    """Return the picture and the table of the main checkpoint."""
    name = f"{LOAD_TIME}-{MAIN}"
    picture = f"![Load times by loader and state](docs/figures/{picture_name(name, MAIN)})"
    return f"{picture}\n\n{_CAPTION}\n\n{load_times(results[name], MAIN)}"


def page_part(results: Results) -> str:
    """Return the targets, a picture and a table for every checkpoint of every run, and the rest."""
    parts = ["## Targets", *_targets(results), "## Load times", _CAPTION]
    for name, one in load_times_of(results).items():
        for checkpoint in one.get("checkpoints", {}):
            title = _TITLES.get(checkpoint, checkpoint)
            parts += [
                f"### {title}",
                f"![{title}: load times](figures/{picture_name(name, checkpoint)})",
                load_times(one, checkpoint),
                made_by(one),
            ]
    others = [(name, one) for name, one in results.items() if is_known(name)]
    parts += ["## Other questions"] if others else []
    for name, one in others:
        parts += section(name, one)
        if name == "estimates":
            parts.append("![Estimated and measured](figures/estimates.svg)")
    return "\n\n".join(parts)


def with_part(text: str, made: str) -> str:
    """Return a document with what is between the marks replaced."""
    pattern = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
    replaced, count = re.subn(
        pattern, lambda _: f"{BEGIN}\n\n{made}\n\n{END}", text, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"the marks for the figures are there {count} times, not once")
    return replaced


def draw(results: Results, directory: Path = FIGURES) -> list[Path]:
    """Draw every picture; return where they are. Needs matplotlib, which nothing else does."""
    from benchmarks.plots import draw_estimates, draw_load_times

    drawn: list[Path] = []
    for name, one in load_times_of(results).items():
        for checkpoint in one.get("checkpoints", {}):
            drawn.append(directory / picture_name(name, checkpoint))
            draw_load_times(one, checkpoint, drawn[-1])
    if "estimates" in results:
        drawn.append(directory / "estimates.svg")
        draw_estimates(results["estimates"], drawn[-1])
    return drawn


def picture_name(name: str, checkpoint: str) -> str:
    """Return the file name of the picture of one checkpoint's part of a result."""
    return f"{name}.svg" if name.endswith(checkpoint) else f"{name}-{checkpoint}.svg"


def _targets(results: Results) -> list[str]:
    judged = verdicts(list(results.values()))
    if not judged:
        return ["None of the results has what the targets are about."]
    rows = [line(["column", "target", "measured", ""]), line(["---", "---", "---", "---"])]
    for one in judged:
        word = "meets" if one.is_met else "**misses**"
        by = f"by {abs(one.margin):.0%}" if abs(one.margin) >= 0.005 else "just"
        rows.append(line([one.column, one.target, one.measured, f"{word} it {by}"]))
    return ["\n".join(rows)]


def main() -> None:
    """Write README.md's part, docs/benchmarks.md's and the pictures."""
    results = read_results()
    README.write_text(with_part(README.read_text(), readme_part(results)))
    PAGE.write_text(with_part(PAGE.read_text(), page_part(results)))
    kept = set(draw(results))
    for path in FIGURES.glob("*.svg"):
        if path not in kept:
            path.unlink()


if __name__ == "__main__":
    main()
