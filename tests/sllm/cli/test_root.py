"""The command as a whole: quick help, one version, errors as exit codes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import click
import pytest

from sllm.cli.root import cli
from tests.interrupted_imports import interrupt_import

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

HEAVY = ("torch", "transformers", "fastapi", "huggingface_hub", "prompt_toolkit", "httpx", "numpy")


def test_the_version_is_the_distributions(run: Callable[..., Result]) -> None:
    assert run("--version").stdout == f"gdsllm {version('serverless-llm')}\n"


def test_help_is_light() -> None:
    """In one process, in which each command in turn would be seen to import more."""
    code = (
        "import sys; from sllm.cli.root import cli\n"
        "for name in [[], *([name] for name in cli.commands)]:\n"
        "    cli([*name, '--help'], standalone_mode=False)\n"
        f"    found = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]\n"
        "    assert not found, (name, found)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_interruption_is_130(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(**options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.commands["list"], "callback", interrupt)
    assert "interrupted" in run("list", code=130).stderr


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "No space left on device; free some space, or choose another place"),
        (errno.EACCES, "Permission denied; ask its owner"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_the_system_refuses_is_told_with_what_to_do(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuse(**options: object) -> None:
        raise OSError(number, os.strerror(number), "/there")

    monkeypatch.setattr(cli.commands["list"], "callback", refuse)
    assert run("list", code=1).stderr.startswith(f"error: /there: {said}")


def test_words_that_are_not_the_systems_are_kept(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(cli.commands["list"], "callback", refuse)
    assert "No usable temporary directory found" in run("list", code=1).stderr


def test_wrong_usage_is_2(run: Callable[..., Result]) -> None:
    assert "No such command" in run("nonsense", code=2).stderr


def test_every_option_is_explained() -> None:
    for name, command in cli.commands.items():
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.name}"


@pytest.mark.parametrize("module", ["click", "sllm.cli.root", "sllm.cli.bench"])
def test_ctrl_c_while_commands_are_imported_ends_quietly(module: str) -> None:
    assert interrupt_import("sllm.cli", module) == (130, "", "")
