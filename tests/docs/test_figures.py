"""Speed is claimed only where benchmarks/results/ has it, and as it is there."""

from __future__ import annotations

import re
from typing import Any

import pytest

from benchmarks.report import (
    BEGIN,
    END,
    PAGE,
    README,
    page_part,
    read_results,
    readme_part,
    with_part,
)
from benchmarks.tables import load_times, made_by
from benchmarks.targets import in_rounds
from tests.docs.documents import DOCUMENTS, without_blocks

RATE = re.compile(r"\d+(\.\d+)?\s*(GB/s|GiB/s)")
ADVICE = "run `make report` and commit what it writes"


def test_the_table_has_every_loader_in_every_state_ours_first_and_marks_the_best(
    results: dict[str, Any],
) -> None:
    table = [line for line in load_times(results, "llama-8b").splitlines() if line[:1] == "|"]
    assert table == [
        "| | a cold disk | the page cache |",
        "| --- | ---: | ---: |",
        "| ours, in-process | 1.0 (1.0) | **1.0** (1.0) |",
        "| safetensors 0.8.0 | **3.0** (3.0) | |",
    ]


def test_the_table_says_how_its_figures_were_taken(results: dict[str, Any]) -> None:
    text = " ".join(load_times(results, "llama-8b").split())
    for fact in ("median of 2 loads", "1.5 GB", "3 tensors", "one GPU (2 cores", "commit abc"):
        assert fact in text
    assert "the disk, read directly 4.0; the link, out of pinned memory 50.0" in text


def test_the_report_says_which_targets_are_met_and_by_how_much(results: dict[str, Any]) -> None:
    text = page_part({"load_time": results})
    assert "| cold disk | the best peer | 1.0 of 6.0 GB/s | **misses** it by 83% |" in text
    assert "| cold disk | 95 % of the best raw direct rate | 1.0 of 3.8 GB/s |" in text


def test_a_drifting_disk_is_compared_round_by_round_and_the_middle_one_counts() -> None:
    (verdict,) = in_rounds("cold disk", "95 %", [4.0, 1.0, 3.0], [2.0, 1.6, 2.5])
    assert verdict.measured == "3.0 of 2.5 GB/s"
    assert list(in_rounds("cold disk", "95 %", [4.0], [])) == []


def test_other_questions_are_answered_with_their_machine_and_their_command() -> None:
    row = {"checkpoint": "few", "tier": "host pool", "estimate_s": 1.0, "seconds": 1.1}
    estimates = {
        "question": "How well?",
        "commit": "abc",
        "command": "python -m benchmarks.estimates",
        "cores": 2,
        "error_median": 0.05,
        "error_worst": 0.3,
        "rows": [row | {"error": -0.05}, row | {"error": 0.3}],
    }
    saves = {
        "question": "How fast?",
        "commit": "abc",
        "command": "python -m benchmarks.save_rate",
        "cores": 2,
        "raw_gb_per_s": [
            {"threads": 1, "depth": 16, "size_bytes": 1 << 20, "gb_per_s": [3.0, 3.2, 3.1]}
        ],
        "save_gb_per_s": [2.9, 2.95, 3.0],
        "share_of_raw": 2.95 / 3.1,
    }
    text = page_part({"estimates": estimates, "save_rate-gpu": saves})
    for said in (
        "### Estimates\n\nHow well? On 2 cores, commit abc.",
        "| few | host pool | 2 | 17.5% | 30.0% |",
        "| raw, 1 thread, 16 writes of 1024 KiB | 3.10 |",
        "| save_dict, 95% of the best of these | 2.95 |",
        "Made by `python -m benchmarks.save_rate`.",
        "| save | 90 % of the disk's raw write rate | 3.0 of 2.8 GB/s | meets it by 6% |",
        "| estimates | a worst error of 20 % |",
    ):
        assert said in text


def test_a_run_that_was_cut_short_says_so() -> None:
    command = "python -m benchmarks.kernels"
    assert made_by({"command": command}) == f"Made by `{command}`."
    assert made_by({"command": command, "cut_short": True}).endswith(", a run that was cut short.")


def test_a_document_without_the_marks_is_not_touched() -> None:
    with pytest.raises(ValueError, match="0 times"):
        with_part("nothing", "figures")
    assert with_part(f"a {BEGIN} old {END} b", "new") == f"a {BEGIN}\n\nnew\n\n{END} b"


def test_figures_in_the_documents_are_those_of_the_results() -> None:
    results = read_results()
    for path, made in ((README, readme_part(results)), (PAGE, page_part(results))):
        assert path.read_text() == with_part(path.read_text(), made), ADVICE


def test_no_other_page_claims_a_rate() -> None:
    """docs/log.md tells what was tried, with its own conditions; it is no claim."""
    for path in DOCUMENTS:
        text = without_blocks(path)
        if path == PAGE:
            text = with_part(text, "")
        if path.name not in {"README.md", "log.md"}:
            assert not RATE.search(text), f"{path.name} claims a speed"
