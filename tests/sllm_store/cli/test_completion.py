"""`sllm-store completion`."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(run: Callable[..., Any], shell: str) -> None:
    done = run("completion", shell)
    assert done.code == 0
    assert f"_SLLM_STORE_COMPLETE={shell}_complete" in done.out


def test_bash_accepts_its_script(run: Callable[..., Any]) -> None:
    script = run("completion", "bash").out + "\ncomplete -p sllm-store"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert "_sllm_store_completion sllm-store" in done.stdout


def test_another_shell_is_wrong_usage(run: Callable[..., Any]) -> None:
    assert run("completion", "tcsh").code == 2
