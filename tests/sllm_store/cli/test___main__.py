"""`python -m sllm_store.cli`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def test_the_module_is_the_command(run_apart: Callable[..., Any]) -> None:
    done = run_apart("--version")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("serverless-llm ")


def test_the_console_script_is_the_same_command() -> None:
    script = Path(sys.executable).with_name("sllm-store")
    done = subprocess.run([script, "start", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: sllm-store start [OPTIONS]")


def test_it_is_called_by_its_name_however_it_is_run(run_apart: Callable[..., Any]) -> None:
    assert run_apart("--help").out.startswith("Usage: sllm-store [OPTIONS]")
