"""docs/cli.md is what the commands say."""

from __future__ import annotations

from pathlib import Path

from sllm_store.cli.reference import reference
from sllm_store.cli.root import cli

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), "run: python -m sllm_store.cli.reference > docs/cli.md"


def test_the_page_has_every_command_and_option_and_nothing_of_this_machine() -> None:
    page = reference()
    for name, command in cli.commands.items():
        assert f"\n## {name}\n" in page
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.opts[0] in section
    assert str(Path.home()) not in page
