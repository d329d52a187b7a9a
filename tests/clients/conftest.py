"""A real `gdsllm serve` with SmolLM2, and with SmolLM2 under a template that has it call tools.

These run where the clients are installed, and nothing of this project: `make test-clients`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENTS = ("langchain_ollama", "litellm", "llm_ollama", "schemathesis")
if not all(importlib.util.find_spec(client) for client in CLIENTS):
    collect_ignore_glob = ["test_*.py"]

# Before litellm reads it: it asks a network for prices otherwise.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["LANGSMITH_TRACING"] = "false"

_MODEL, _CALLER = "smollm2", "caller"
_SAID = ("Rome", "sunny"), ("Berlin", "cold"), ("Madrid", "hot")
_EXAMPLES = "".join(
    f"<|im_start|>user\nWhat is the weather in {city}?<|im_end|>\n"
    f'<|im_start|>assistant\n<tool_call>\n{{"name": "get_weather", "arguments": '
    f'{{"city": "{city}"}}}}\n</tool_call><|im_end|>\n'
    f"<|im_start|>tool\n{weather}<|im_end|>\n"
    f"<|im_start|>assistant\nIt is {weather} in {city}.<|im_end|>\n"
    for city, weather in _SAID
)
# SmolLM2 has never been taught to call tools; shown how, it does.
_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nCall tools, as in <tool_call>{{ tools | tojson }}"
    f"</tool_call><|im_end|>\n{_EXAMPLES}{{% endif %}}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_START_S = 120.0


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs. caller: the name of the model that calls tools."""

    url: str
    model: str = _MODEL
    caller: str = _CALLER


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """A server of its own process and model root, on a free port of loopback."""
    python = os.environ.get("GDSLLM_PYTHON")
    if python is None:
        pytest.fail("GDSLLM_PYTHON does not say whose gdsllm to serve with: run make test-clients")
    with tempfile.TemporaryDirectory(prefix="gdsllm-clients-") as home:
        environment = {
            **os.environ,
            "XDG_STATE_HOME": f"{home}/state",
            "GDSLLM_MODEL_ROOT": f"{home}/models",
            "OLLAMA_KEEP_ALIVE": "-1",
        }
        command = [python, "-m", "sllm.cli"]
        subprocess.run([*command, "pull", _MODEL], env=environment, check=True)
        options = ["--port", "0", "--context", "1024", "--max-loaded", "2", "--preload"]
        with _running([*command, "serve", _MODEL, *options], environment, Path(home)) as url:
            _create_caller(url)
            yield Served(url)


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str], home: Path) -> Iterator[str]:
    with subprocess.Popen(
        command, env=environment, cwd=home, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            said = server.stderr.readline()
            assert said.startswith("serving"), said
            yield said.split()[-1]
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=_START_S)


def _create_caller(url: str) -> None:
    asked = {
        "model": _CALLER,
        "from": _MODEL,
        "template": _TEMPLATE,
        "parameters": {"temperature": 0},
        "stream": False,
    }
    httpx.post(f"{url}/api/create", json=asked).raise_for_status()


@pytest.fixture(scope="session")
def weather() -> dict[str, Any]:
    """A tool, as all APIs describe one."""
    city = {"type": "string", "description": "The name of a city"}
    return {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tell what the weather is in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": city},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
