"""Errors end as one line and an exit code."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from sllm_store.cli.edge import EdgeGroup
from sllm_store.cli.options import verbose_option
from sllm_store.errors import PoolExhaustedError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path


def group_that_raises(error: BaseException) -> EdgeGroup:
    group = EdgeGroup()

    @group.command()
    @verbose_option
    def go() -> None:
        raise error

    return group


def test_a_failure_is_one_line_on_stderr_and_exit_code_1() -> None:
    done = CliRunner().invoke(group_that_raises(PoolExhaustedError("no room\n  in it")), ["go"])
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "error: no room in it\n")


def test_a_failure_is_red_on_a_terminal() -> None:
    done = CliRunner().invoke(group_that_raises(PoolExhaustedError("x")), ["go"], color=True)
    assert done.stderr == "\x1b[31merror: x\x1b[0m\n"


def test_an_error_of_the_system_names_the_file() -> None:
    error = PermissionError(13, "Permission denied", "/models")
    done = CliRunner().invoke(group_that_raises(error), ["go"])
    assert (done.exit_code, done.stderr) == (1, "error: [Errno 13] Permission denied: '/models'\n")


def test_verbose_shows_the_traceback_too() -> None:
    done = CliRunner().invoke(group_that_raises(PoolExhaustedError("full")), ["go", "--verbose"])
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("error: full\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interruption_exits_with_130(error: BaseException) -> None:
    done = CliRunner().invoke(group_that_raises(error), ["go"])
    assert (done.exit_code, done.stderr) == (130, "interrupted\n")


def test_a_bug_keeps_its_traceback() -> None:
    done = CliRunner().invoke(group_that_raises(ZeroDivisionError()), ["go"])
    assert isinstance(done.exception, ZeroDivisionError)


def test_ctrl_c_at_a_question_leaves_no_traceback_and_removes_nothing(
    spawn: Callable[..., subprocess.Popen[str]],
    write_safetensors: Callable[..., object],
    storage: Path,
) -> None:
    write_safetensors(storage / "m")
    process = spawn("rm", "m", "--storage-path", storage)
    assert process.stderr is not None
    asked = process.stderr.read(len("Remove m"))
    while not asked.endswith("[y/N]"):
        asked += process.stderr.read(1)
        assert process.poll() is None, asked
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert (storage / "m" / "model.safetensors").exists()
