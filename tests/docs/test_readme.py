"""Every example of the README, the first page and the API page, run in order by a new user.

The user has an empty home, no network, and a tiny model where the README names one of the hub.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.docs.documents import DOCS, ROOT, read_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.docs.documents import Block

HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TIMEOUT_S = 240
OURS = ("SLLM_", "GDSLLM_", "OLLAMA_", "XDG_")
SERVING_AT = ("127.0.0.1", 8000)
# Checked by test_facts, or by everything else that CI runs.
NOT_RUN = ("make ", "source ", "pip install ")


class User:
    """Somebody in a directory of their own, with a shell and a Python prompt."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.work = home / "work"
        self.work.mkdir()
        (home / "run").mkdir(mode=0o700)
        self._python: subprocess.Popen[str] | None = None
        self._stores: list[subprocess.Popen[str]] = []
        binaries = Path(sys.executable).parent
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(OURS)},
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home / "run"),
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.env.pop("STORAGE_PATH", None)

    def run(self, block: Block) -> None:
        """Do what a block says; fail with its place."""
        if block.language == "python":
            self._run_python(block)
        for command in block.commands():
            if command.startswith("sllm-store start"):
                self._start(command, block.where)
            elif command.startswith("gdsllm serve"):
                self._serve(command, block.where)
            elif not command.startswith(NOT_RUN):
                self._run_command(command, block.where)

    def leave(self) -> None:
        """End everything."""
        with ExitStack() as stack:
            for process in (*self._stores, *([self._python] if self._python else ())):
                stack.callback(_end, process)

    def _run_python(self, block: Block) -> None:
        if self._python is None:
            self._python = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("block_cases.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=self.work,
                env=self.env,
            )
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        self._python.stdin.write(json.dumps(block.text) + "\n")
        self._python.stdin.flush()
        failure = json.loads(self._python.stdout.readline())
        assert not failure, f"{block.where}: {failure}"

    def _start(self, command: str, where: str) -> None:
        with (self.home / "store.log").open("w") as log:
            store = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.work,
                env=self.env,
            )
        self._stores.append(store)
        assert store.stdout is not None
        line = store.stdout.readline()
        while line and not line.startswith("ready at"):
            line = store.stdout.readline()
        assert line, f"{where}: {command}: {(self.home / 'store.log').read_text()}"

    def _serve(self, command: str, where: str) -> None:
        log = self.home / "server.log"
        with log.open("w") as file:
            server = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                stdout=file,
                stderr=file,
                text=True,
                cwd=self.work,
                env=self.env,
            )
        self._stores.append(server)
        deadline_s = time.monotonic() + TIMEOUT_S
        while "serving " not in log.read_text() or not _is_answered(SERVING_AT):
            assert server.poll() is None, f"{where}: {command}: {log.read_text()}"
            assert time.monotonic() < deadline_s, f"{where}: {command}: {log.read_text()}"
            time.sleep(0.1)

    def _run_command(self, command: str, where: str) -> None:
        done = subprocess.run(
            ["bash", "-c", command],
            capture_output=True,
            text=True,
            cwd=self.work,
            env=self.env,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{where}: {command}: {done.stdout}{done.stderr}"


@pytest.fixture
def user() -> Iterator[User]:
    # Not tmp_path: the path of a Unix socket has at most 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="user-"))
    somebody = User(home)
    try:
        yield somebody
    finally:
        somebody.leave()
        shutil.rmtree(home)


def _publish_tiny(directory: Path) -> None:
    """Make a random model with a tokenizer, as a hub would give it."""
    words = ["once", "upon", "a", "time", "the", "capital", "of", "france", "is", "paris"]
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    wrap: Any = PreTrainedTokenizerFast
    tokenizer = wrap(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", [ROOT / "README.md", DOCS / "index.md", DOCS / "python-api.md"])
def test_every_example_works_line_by_line(
    path: Path, user: User, request: pytest.FixtureRequest
) -> None:
    _publish_tiny(user.work / HUB_MODEL)
    blocks = [block for block in read_blocks(path) if block.language != "py"]
    if any(command.startswith("gdsllm") for block in blocks for command in block.commands()):
        fetched: Path = request.getfixturevalue("smollm2")
        cache = user.home / ".cache" / "serverless-llm"
        cache.mkdir(parents=True)
        (cache / fetched.name).symlink_to(fetched)
    assert any(block.language == "python" for block in blocks)
    for block in blocks:
        user.run(block)


def test_blocks_are_in_languages_that_a_test_knows() -> None:
    for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))):
        for block in read_blocks(path):
            known = {"python", "py", "sh", "console", "text", "ini", "json", ""}
            assert block.language in known, block.where


def _is_answered(address: tuple[str, int]) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(address) == 0


def _end(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    elif process.poll() is None:
        process.terminate()
    try:
        process.wait(timeout=30)
    finally:
        process.kill()
        if process.stdout is not None:
            process.stdout.close()
