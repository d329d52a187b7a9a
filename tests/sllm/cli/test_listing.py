"""Models are listed and shown as people expect from Ollama."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sllm.library.checkpoints import TEMPLATE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result


def test_an_empty_list_says_how_to_fill_it(run: Callable[..., Result]) -> None:
    result = run("list")
    assert result.stdout == ""
    assert "gdsllm pull smollm2" in result.stderr


def test_models_are_listed(run: Callable[..., Result], tiny: Path, home: Path) -> None:
    run("pull", "./tiny.gguf")
    run("cp", "tiny", "other:v1")
    lines = [line.split() for line in run("ls").stdout.splitlines() if line.strip()]
    assert lines[0] == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert [line[0] for line in lines[1:]] == ["other:v1", "tiny:latest"]
    assert len(lines[1][1]) == 12
    assert lines[1][1] == lines[2][1]
    assert "tiny" not in run("list", "oth").stdout
    assert "no model's name begins with zzz" in run("list", "zzz").stderr
    (home / "models" / "manifests" / "tiny@latest.json").write_text("{")
    damaged = run("list")
    assert "other:v1" in damaged.stdout
    assert "tiny@latest.json is damaged" in damaged.stderr
    tiny.unlink()
    assert "cannot be used" in run("list").stderr


def test_a_model_is_shown(run: Callable[..., Result], tiny: Path) -> None:
    run("create", "mine", "--from", "./tiny.gguf", "--system", "be kind")
    shown = run("show", "mine").stdout
    for part in ("llama", "30.9K", "Q8_0", "64", str(tiny), "be kind", "mit"):
        assert part in shown
    assert run("show", "mine", "--template").stdout == f"{TEMPLATE}\n"
    assert run("show", "mine", "--system").stdout == "be kind\n"
    assert run("show", "mine", "--license").stdout == "mit\n"
    assert f"FROM {tiny}" in run("show", "mine", "--modelfile").stdout
    assert run("show", "mine", "--parameters").stdout == "\n"
    tiny.unlink()
    assert "is gone" in run("show", "mine").stderr


def test_a_name_that_is_not_there_is_one_red_line(run: Callable[..., Result], tiny: Path) -> None:
    run("pull", str(tiny))
    result = run("show", "tini", code=1)
    assert result.stderr == ("error: no model 'tini' on this machine: did you mean tiny:latest?\n")
