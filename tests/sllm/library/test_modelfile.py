"""A Modelfile is read as Ollama reads it, and what is written is read back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sllm.core.errors import InvalidRequestError
from sllm.library.modelfile import format_modelfile, format_parameters, parse_modelfile
from tests.sllm.library.checkpoints import make_gguf

if TYPE_CHECKING:
    from pathlib import Path

    from sllm.library.models import Library

TEXT = '''
# A comment
FROM smollm2
PARAMETER temperature 0.5
parameter stop "<|im_end|>"
PARAMETER stop two words
PARAMETER top_k 10
PARAMETER use_mmap false
TEMPLATE """{{ a }}
# not a comment
{{ b }}"""
SYSTEM You are kind.
LICENSE "MIT"
MESSAGE user """Is it
so?"""
MESSAGE assistant Yes.
'''


def test_every_instruction_is_read() -> None:
    found = parse_modelfile(TEXT)
    assert found.source == "smollm2"
    assert found.parameters == {
        "temperature": 0.5,
        "stop": ["<|im_end|>", "two words"],
        "top_k": 10,
        "use_mmap": False,
    }
    assert found.template == "{{ a }}\n# not a comment\n{{ b }}"
    assert found.system == "You are kind."
    assert found.license == "MIT"
    assert found.messages == [("user", "Is it\nso?"), ("assistant", "Yes.")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ADAPTER ./lora", "line 2.*ADAPTER is not supported"),
        ("PARAMETER heat 1", "line 2.*unknown parameter 'heat'"),
        ("PARAMETER top_k many", "line 2.*top_k is 'many', expected a number"),
        ("PARAMETER use_mmap maybe", "line 2.*expected true or false"),
        ("MESSAGE robot hi", "line 2.*the role is one of"),
        ("HELLO there", "line 2.*'HELLO' is unknown"),
        ('SYSTEM """never', "line 2.*never closed"),
    ],
)
def test_a_line_that_is_wrong_is_named(line: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse_modelfile(f"FROM a\n{line}\n")


def test_a_modelfile_needs_a_source() -> None:
    with pytest.raises(InvalidRequestError, match="no FROM"):
        parse_modelfile("SYSTEM hi")


def test_what_is_written_is_read_back(library: Library, tmp_path: Path) -> None:
    model = library.create(
        "a",
        source=make_gguf(tmp_path / "a.gguf"),
        system='say "hi"\nand more',
        parameters={"temperature": 0.25, "stop": ["x", "y z"], "use_mmap": True},
        messages=[("user", "one\ntwo")],
    )
    found = parse_modelfile(format_modelfile(model))
    assert found.source == str(model.path)
    assert found.system == model.system
    assert found.parameters == model.parameters
    assert found.template == model.published_template
    assert found.license == "mit"
    assert tuple(found.messages) == model.messages
    assert format_parameters(replace(model, parameters={"top_k": 3})) == ["top_k 3"]
