"""One answer on stdout, whatever server gives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from tests.sllm.cli.fake_ollama import FakeOllama


@pytest.fixture(autouse=True)
def named(ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is the one that the environment names."""
    monkeypatch.setenv("LLM_SERVER_URL", ollama.url)


def test_a_prompt_is_answered_on_stdout(run: Callable[..., Result], ollama: FakeOllama) -> None:
    assert run("run", "tiny", "--prompt", "Is it so?").stdout == "Is it so? \n"
    assert run("run", "tiny", "Is", "it?").stdout == "Is it? \n"
    assert run("run", "tiny", "Sum up:", stdin="a text\n").stdout == "a text\n\nSum up: \n"
    assert ollama.bodies("/api/generate")[0] == {
        "model": "tiny",
        "prompt": "Is it so?",
        "options": {},
    }


def test_every_option_reaches_the_server(run: Callable[..., Result], ollama: FakeOllama) -> None:
    run(
        *("run", "tiny", "hi", "--max-tokens", "5", "--temperature", "0", "--top-p", "0.5"),
        *("--top-k", "3", "--min-p", "0.1", "--repeat-penalty", "1.2", "--seed", "7"),
        *("--system", "be kind", "--format", "json", "--no-think", "--keepalive", "10m"),
    )
    assert ollama.bodies("/api/generate")[-1] == {
        "model": "tiny",
        "prompt": "hi",
        "system": "be kind",
        "format": "json",
        "think": False,
        "keep_alive": "10m",
        "options": {
            "num_predict": 5,
            "temperature": 0.0,
            "top_p": 0.5,
            "top_k": 3,
            "min_p": 0.1,
            "repeat_penalty": 1.2,
            "seed": 7,
        },
    }


def test_bytes_that_are_no_text_are_marked_in_a_prompt(
    run: Callable[..., Result], ollama: FakeOllama
) -> None:
    run("run", "tiny", "caf\udce9 \N{EURO SIGN}")  # As Python reads Latin-1 where UTF-8 is usual.
    assert ollama.bodies("/api/generate")[-1]["prompt"] == "caf\ufffd \N{EURO SIGN}"
    run("run", "tiny", "--max-tokens", "9", stdin=b"caf\xe9")
    assert ollama.bodies("/api/generate")[-1]["prompt"] == "caf\ufffd"


def test_a_schema_is_text_or_a_file(
    run: Callable[..., Result], ollama: FakeOllama, home: Path
) -> None:
    schema = {"type": "object"}
    (home / "schema.json").write_text(json.dumps(schema))
    for given in (json.dumps(schema), "schema.json"):
        run("run", "tiny", "hi", "--format", given)
        assert ollama.bodies("/api/generate")[-1]["format"] == schema
    (home / "schema.json").write_text("[]")
    assert "is an object" in run("run", "tiny", "hi", "--format", "schema.json", code=1).stderr
    unread = run("run", "tiny", "hi", "--format", "none.json", code=1).stderr
    assert "--format: none.json cannot be read" in unread


def test_thoughts_and_figures_are_beside_the_answer(run: Callable[..., Result]) -> None:
    result = run("run", "tiny", "hi", "--think", "--verbose")
    assert result.stdout == "hi \n"
    assert "Thinking...\nhm\n...done thinking." in result.stderr
    lines = [" ".join(line.split()) for line in result.stderr.splitlines()]
    assert lines[-8:] == [
        "total duration: 2.500s",
        "load duration: 100.0ms",
        "prompt eval count: 10 token(s)",
        "prompt eval duration: 100.0ms",
        "prompt eval rate: 100.00 tokens/s",
        "eval count: 40 token(s)",
        "eval duration: 2.000s",
        "eval rate: 20.00 tokens/s",
    ]
    assert run("run", "tiny", "hi", "--think", "--hidethinking").stderr == ""


def test_a_model_that_is_not_there_is_fetched(
    run: Callable[..., Result], ollama: FakeOllama
) -> None:
    result = run("run", "smollm2", "hi")
    assert result.stdout == "hi \n"
    assert result.stderr.splitlines() == ["pulling abc", "success"]
    assert "'gpt5' not found" in run("run", "gpt5", "hi", code=1).stderr
    assert ollama.bodies("/api/pull") == [{"model": "smollm2"}]


def test_what_the_server_says_is_one_red_line(
    run: Callable[..., Result], ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "error: the model broke\n" in run("run", "tiny", "fail", code=1).stderr
    ollama.token = "secret"
    assert "error: a token is needed\n" in run("run", "tiny", "hi", code=1).stderr
    monkeypatch.setenv("GDSLLM_API_TOKEN", "secret")
    assert run("run", "tiny", "hi").stdout == "hi \n"
    error = run("run", "tiny", "hi", "--host", "http://127.0.0.1:9", code=1).stderr
    assert "no server answers at http://127.0.0.1:9" in error
    assert "no server answers at wss://" in run("ps", "--host", "wss://127.0.0.1", code=1).stderr


def test_an_address_and_a_token_that_are_none_are_told(
    run: Callable[..., Result], ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = run("ps", "--host", "a:b:c", code=1).stderr
    assert "is not the address of a server: give --host" in told
    for token in ("t\u00f6k", "a\nb"):
        monkeypatch.setenv("GDSLLM_API_TOKEN", token)
        told = run("ps", "--host", ollama.url, code=1).stderr
        assert told.startswith("error: GDSLLM_API_TOKEN is empty or not plain ASCII")
        assert told.count("\n") == 1


def test_there_has_to_be_a_prompt(run: Callable[..., Result]) -> None:
    assert "there is no prompt" in run("run", "tiny", code=1).stderr


@pytest.mark.parametrize(("words", "said"), [(["hi"], "hi"), ([], "there is no prompt")])
def test_a_closed_input_has_nothing_to_say(ollama: FakeOllama, words: list[str], said: str) -> None:
    command = [sys.executable, "-m", "sllm.cli", "run", "tiny", *words]
    closed = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
    done = subprocess.run(closed, capture_output=True, text=True, check=False)
    assert said in done.stdout + done.stderr
    assert done.returncode == (0 if words else 1)
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_the_answer_here_and_there(ollama: FakeOllama) -> None:
    ollama.models.add("slow")
    command = [sys.executable, "-m", "sllm.cli", "run", "slow", "hi"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 3) == b"hi "
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert ollama.left.wait(30)
