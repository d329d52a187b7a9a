"""`llm` with `llm-ollama`: the command that people type, with its home in a directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.clients.conftest import Served

pytestmark = pytest.mark.clients
QUESTION = "What is the capital of France?"
GREEDY = ("-o", "temperature", "0", "-o", "num_predict", "48")
TOOL = '''
def get_weather(city: str) -> str:
    """Tell what the weather is in a city."""
    return "rainy"
'''


@pytest.fixture
def llm(served: Served, tmp_path: Path) -> Callable[..., str]:
    """The command; returns what it wrote."""
    environment = {**os.environ, "OLLAMA_HOST": served.url, "LLM_USER_PATH": str(tmp_path)}

    def run(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "llm", *arguments]
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


def test_models_are_listed_with_what_they_can(llm: Callable[..., str]) -> None:
    lines = {line.split()[0]: line for line in llm("ollama", "models").splitlines()[1:]}
    assert "completion" in lines["smollm2:latest"]
    assert "tools" not in lines["smollm2:latest"]
    assert "tools" in lines["caller:latest"]


@pytest.mark.parametrize("whole", [(), ("--no-stream",)])
def test_a_question_is_answered(llm: Callable[..., str], whole: tuple[str, ...]) -> None:
    said = llm("-m", "ollama/smollm2:latest", *GREEDY, *whole, QUESTION)
    assert said == "The capital of France is Paris.\n"


def test_a_system_message_and_usage_are_logged(llm: Callable[..., str]) -> None:
    llm("-m", "ollama/smollm2", *GREEDY, "-s", "You answer briefly.", QUESTION)
    (logged,) = json.loads(llm("logs", "--json"))
    assert logged["model"] == "ollama/smollm2:latest"
    assert logged["system"] == "You answer briefly."
    assert logged["input_tokens"] > 10
    assert logged["output_tokens"] > 2


def test_a_conversation_goes_on(llm: Callable[..., str]) -> None:
    llm("-m", "ollama/smollm2", *GREEDY, QUESTION)
    assert "Paris" in llm("-c", *GREEDY, "Say that again.")


def test_an_answer_has_the_schema_that_is_asked_for(llm: Callable[..., str]) -> None:
    asked = ("--schema", "capital str, inhabitants int", QUESTION)
    found = json.loads(llm("-m", "ollama/smollm2", "-o", "temperature", "0", *asked))
    assert isinstance(found["capital"], str)
    assert isinstance(found["inhabitants"], int)


def test_a_tool_is_called_and_its_result_told(llm: Callable[..., str]) -> None:
    asked = ("--functions", TOOL, "What is the weather in Paris?")
    assert llm("-m", "ollama/caller", *GREEDY, *asked) == "It is rainy in Paris.\n"


def test_a_tool_for_a_model_without_tools_is_an_error(llm: Callable[..., str]) -> None:
    asked = ("--functions", TOOL, "What is the weather in Paris?")
    assert "does not support tools" in llm("-m", "ollama/smollm2", *asked, code=1)
