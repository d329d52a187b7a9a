"""A message is a line, or several between triple quotes."""

from __future__ import annotations

import pytest

from sllm.cli.typing_in import read_message


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["hello "], "hello"),
        (["/set system a"], "/set system a"),
        (['"""a', "b", 'c"""'], "a\nb\nc"),
        (['"""', "a", '"""'], "a"),
        (['say """x', 'y""" now'], 'say """x\ny""" now'),
        (['"""a"""'], "a"),
        (['/set system """a', 'b"""'], '/set system """a\nb"""'),
        ([""], ""),
    ],
)
def test_triple_quotes_hold_lines_together(lines: list[str], message: str) -> None:
    left = list(lines)
    assert read_message(lambda prompt: left.pop(0)) == message
    assert left == []
