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
def _templates() -> tuple[str, ...]:
    """Return every text of the Python source; what is filled in at run time is an ellipsis."""
    texts = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(_part(value) for value in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return tuple(texts)


@cache
def _native_texts() -> tuple[str, ...]:
    return tuple(path.read_text() for path in sorted((ROOT / "csrc").rglob("*.cpp")))


def _part(value: ast.expr) -> str:
    return str(value.value) if isinstance(value, ast.Constant) else ELLIPSIS


def _makes(template: str, message: str) -> bool:
    """Return whether a template, filled in, is the message; one of few words makes nothing."""
    fixed = template.replace(ELLIPSIS, "")
    if len(fixed) < len(message.replace(ELLIPSIS, "")) / 2:
        return False
    pattern = ".*".join(re.escape(part) for part in template.split(ELLIPSIS))
    return re.fullmatch(pattern, message) is not None


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
    assert any(_makes(template, message) for template in _templates()) or any(
        _in_order(text, message) for text in _native_texts()
    )
