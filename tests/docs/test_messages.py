"""The error messages that docs/operations.md quotes are the ones that the source has."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.docs.documents import DOCS, ROOT, code_cell, table_rows

ELLIPSIS = "…"
MESSAGES = [
    code_cell(row[0])
    for row in table_rows(DOCS / "operations.md", "## Error messages")
    if row[0] != "message"
]


@cache
def _templates() -> tuple[tuple[int, re.Pattern[str]], ...]:
    """Return what every text of the Python source can become, and how long its fixed parts are.

    What is filled in at run time is an ellipsis in a text.
    """
    texts = set()
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.add("".join(_part(value) for value in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
    return tuple((len(text.replace(ELLIPSIS, "")), _pattern(text)) for text in texts)


@cache
def _native_texts() -> tuple[str, ...]:
    return tuple(path.read_text() for path in sorted((ROOT / "csrc").rglob("*.cpp")))


def _part(value: ast.expr) -> str:
    return str(value.value) if isinstance(value, ast.Constant) else ELLIPSIS


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in text.split(ELLIPSIS)))


def _makes(fixed: int, pattern: re.Pattern[str], message: str) -> bool:
    """Return whether a text, filled in, is the message; one of few letters makes nothing."""
    enough = fixed >= len(message.replace(ELLIPSIS, "")) / 2
    return enough and pattern.fullmatch(message) is not None


def _in_order(text: str, message: str) -> bool:
    """Return whether the message's fixed parts are in a text, in order."""
    at = 0
    for part in message.split(ELLIPSIS):
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_in_the_source(message: str) -> None:
    assert any(_makes(*text, message) for text in _templates()) or any(
        _in_order(text, message) for text in _native_texts()
    )
