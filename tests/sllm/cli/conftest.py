"""The command in a home of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from sllm.cli.environment import VARIABLES
from sllm.cli.root import cli
from tests.sllm.cli.fake_ollama import serve_ollama
from tests.sllm.library.checkpoints import make_computable_gguf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

    from tests.sllm.cli.fake_ollama import FakeOllama


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of this user's is seen or changed; the working directory is the home."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name, place in (("CONFIG", ".config"), ("STATE", ".state"), ("DATA", ".data")):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(home / place))
    monkeypatch.setenv("GDSLLM_MODEL_ROOT", str(home / "models"))
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def tiny(home: Path) -> Path:
    """A GGUF in the working directory."""
    return make_computable_gguf(home / "tiny.gguf")


@pytest.fixture
def run() -> Callable[..., Result]:
    """The command, in this process."""

    def run(*arguments: str, code: int = 0, stdin: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(cli, list(arguments), input=stdin)
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    """A server with a model `tiny` that repeats what it is told."""
    with serve_ollama() as fake:
        yield fake
