"""Pictures in the documents are of the results in benchmarks/results/."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.report import FIGURES, draw, load_times_of, picture_name, read_results
from benchmarks.tables import digest

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("matplotlib", reason="pictures are drawn with matplotlib: make install")


def test_a_picture_is_drawn_for_every_checkpoint_and_names_its_results(
    results: dict[str, Any], tmp_path: Path
) -> None:
    (picture,) = draw({"load_time": results}, tmp_path)
    assert picture.name == picture_name("load_time", "llama-8b") == "load_time-llama-8b.svg"
    assert digest(results) in picture.read_text()
    again = picture.read_bytes()
    draw({"load_time": results}, tmp_path)
    assert picture.read_bytes() == again


def test_pictures_in_the_documents_are_of_the_results() -> None:
    shown = {
        picture_name(name, checkpoint): one
        for name, one in load_times_of(read_results()).items()
        for checkpoint in one.get("checkpoints", {})
    }
    for name, one in shown.items():
        assert digest(one) in (FIGURES / name).read_text(), (
            "run `make report` and commit what it writes"
        )
