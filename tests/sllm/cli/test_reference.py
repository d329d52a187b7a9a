"""docs/gdsllm-cli.md is what the commands say."""

from __future__ import annotations

from pathlib import Path

import click

from sllm.cli.reference import reference
from sllm.cli.root import cli

PAGE = Path(__file__).parents[3] / "docs" / "gdsllm-cli.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), "run: python -m sllm.cli.reference > docs/gdsllm-cli.md"


def test_the_page_has_every_command_and_option() -> None:
    page = reference()
    for name in cli.list_commands(click.Context(cli)):
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert section, name
        for parameter in cli.commands[name].params:
            if parameter.param_type_name == "option":
                assert parameter.opts[0] in section
    assert str(Path.home()) not in page
