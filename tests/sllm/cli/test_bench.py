"""A model is measured through a real server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sllm.library.models import Library

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

SHORT = ("--runs", "1", "--tokens", "4", "--words", "5", "--batch", "2")


@pytest.fixture(autouse=True)
def library(home: Path, smollm2: Path) -> None:
    """SmolLM2 as `real`, where its file is."""
    Library(home / "models").create("real", source=smollm2)


@pytest.mark.slow
def test_figures_are_told_as_json_and_as_a_table(run: Callable[..., Result]) -> None:
    found = json.loads(run("bench", "real", "--json", *SHORT).stdout)
    assert (found["model"], found["runs"], found["batch"]) == ("real", 1, 2)
    assert found["prompt_tokens"] >= 5
    assert all(value > 0 for key, value in found.items() if key not in {"model", "bound"})
    assert found["bound"] == "device"
    rate, most = found["answer_tokens_per_s"], found["bound_tokens_per_s"]
    assert found["share_of_bound"] == pytest.approx(rate / most)
    lines = run("bench", "real", *SHORT).stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "load",
        "first token",
        "prompt",
        "answer",
        "2 answers with their prompts",
    ]
    assert "that memory allows" in lines[4]


def test_what_is_not_there_is_not_measured(run: Callable[..., Result]) -> None:
    assert "absent" in run("bench", "absent", *SHORT, code=1).stderr
