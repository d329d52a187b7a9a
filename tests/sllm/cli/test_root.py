"""The command as a whole: quick help, one version, errors as exit codes."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import click
import pytest

from sllm.cli import cli

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

HEAVY = ("torch", "transformers", "fastapi", "huggingface_hub", "prompt_toolkit", "httpx", "numpy")


def test_the_version_is_the_distributions(run: Callable[..., Result]) -> None:
    assert run("--version").stdout == f"gdsllm {version('serverless-llm')}\n"


@pytest.mark.parametrize("name", [[], *([name] for name in cli.commands)])
def test_help_is_light(name: list[str]) -> None:
    code = (
        "import sys; from sllm.cli import cli\n"
        f"cli({[*name, '--help']!r}, standalone_mode=False)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_interruption_is_130(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(**options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.commands["list"], "callback", interrupt)
    assert "interrupted" in run("list", code=130).stderr


def test_wrong_usage_is_2(run: Callable[..., Result]) -> None:
    assert "No such command" in run("nonsense", code=2).stderr


def test_every_option_is_explained() -> None:
    for name, command in cli.commands.items():
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.name}"
