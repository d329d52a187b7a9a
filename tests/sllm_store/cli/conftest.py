"""Commands run in this process or in their own, storage paths, and small checkpoints."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from sllm_store.cli.root import cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        """What --json printed."""
        return json.loads(self.out)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A directory for a socket, whose path is of 101 bytes at most: pytest's own may be longer."""
    with tempfile.TemporaryDirectory(prefix="sllm-") as directory:
        yield Path(directory)


@pytest.fixture
def environment(tmp_path: Path, runtime: Path) -> dict[str, str]:
    """Environment variables that keep commands away from the user's own store and models."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLLM_", "STORAGE_PATH", "HF_"))
    }
    return kept | {
        "XDG_RUNTIME_DIR": str(runtime),
        "HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hub"),
    }


@pytest.fixture
def run(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a command in this process."""
    for name in list(os.environ):
        if name not in environment and name.startswith(("SLLM_", "STORAGE_PATH")):
            monkeypatch.delenv(name)

    def run(*args: object, stdin: str | None = None) -> Outcome:
        result = CliRunner(env=environment).invoke(cli, [str(arg) for arg in args], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def spawn(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Run a command in a process of its own, which is gone when the test ends."""
    spawned: list[subprocess.Popen[str]] = []

    def spawn(*args: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "sllm_store.cli", *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | (env or {}),
        )
        spawned.append(process)
        return process

    yield spawn
    for process in spawned:
        with process:
            if process.poll() is None:
                process.kill()


@pytest.fixture
def run_apart(spawn: Callable[..., subprocess.Popen[str]]) -> Callable[..., Outcome]:
    """Run a command in a process of its own and wait for its end."""

    def run_apart(*args: object, env: dict[str, str] | None = None) -> Outcome:
        process = spawn(*args, env=env)
        out, err = process.communicate(timeout=120)
        return Outcome(process.returncode, out, err)

    return run_apart


@pytest.fixture
def start(spawn: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
    """Run `sllm-store start` with a small pool, until it says that it is ready."""

    def start(*args: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        process = spawn("start", "--mem-pool-size", "32MB", "--chunk-size", "2MB", *args, env=env)
        assert process.stdout is not None
        line = process.stdout.readline()
        while line and not line.startswith("ready at "):
            line = process.stdout.readline()
        if not line:
            _, err = process.communicate()
            pytest.fail(f"the store did not start: {err}")
        return process

    return start


@pytest.fixture
def write_safetensors() -> Callable[..., dict[str, bytes]]:
    """Write a directory as a publisher would: float32 tensors, and small files."""

    def write(directory: Path, *, tensors: int = 3, size: int = 1000) -> dict[str, bytes]:
        directory.mkdir(parents=True)
        random = Random(str(directory))
        contents = {
            f"layers.{i}.weight": struct.pack(
                f"<{size + i}f", *(random.random() for _ in range(size + i))
            )
            for i in range(tensors)
        }
        header: dict[str, object] = {}
        offset = 0
        for name, content in contents.items():
            header[name] = {
                "dtype": "F32",
                "shape": [len(content) // 4],
                "data_offsets": [offset, offset + len(content)],
            }
            offset += len(content)
        head = json.dumps(header).encode()
        (directory / "model.safetensors").write_bytes(
            struct.pack("<Q", len(head)) + head + b"".join(contents.values())
        )
        (directory / "config.json").write_text('{"model_type": "llama", "dtype": "float32"}')
        (directory / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
        return contents

    return write
