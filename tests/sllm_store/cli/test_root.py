"""The command as a whole: its help, what that imports, its version."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from sllm_store.cli.root import cli
from tests.interrupted_imports import interrupt_import

if TYPE_CHECKING:
    from collections.abc import Callable


HEAVY = ("torch", "transformers", "grpc", "numpy", "peft", "huggingface_hub", "google")
HELP_OF_ALL = f"""
import contextlib, io, json, sys
from sllm_store.cli.root import cli
with contextlib.redirect_stdout(io.StringIO()):
    for args in [["--help"], *([name, "--help"] for name in cli.commands)]:
        assert cli.main(args, "sllm-store", standalone_mode=False) == 0
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""


def test_help_of_every_command_imports_no_framework() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_ALL], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_and_every_option_explains_itself(name: str, run: Callable[..., Any]) -> None:
    done = run(name, "--help")
    assert done.code == 0
    assert cli.commands[name].help
    for parameter in cli.commands[name].params:
        if parameter.param_type_name == "option":
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_the_list_of_commands_is_not_cut_short(run: Callable[..., Any]) -> None:
    assert "..." not in run("--help").out.partition("Commands:")[2]


def test_an_unknown_command_is_wrong_usage(run: Callable[..., Any]) -> None:
    done = run("lst")
    assert done.code == 2
    assert "No such command 'lst'" in done.err


@pytest.mark.parametrize("module", ["click", "sllm_store.cli.root", "sllm_store.cli.bench"])
def test_ctrl_c_while_commands_are_imported_ends_quietly(module: str) -> None:
    assert interrupt_import("sllm_store.cli", module) == (130, "", "")
