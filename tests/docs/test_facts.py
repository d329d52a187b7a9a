"""Tables of facts against their source: limits, metrics, methods, statuses, commands."""

from __future__ import annotations

import importlib
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import click
import pytest

import sllm.cli.root
import sllm_store.cli.root
from sllm.cli.environment import VARIABLES
from sllm_store import errors
from sllm_store.proto import storage_pb2
from sllm_store.server.metrics import StoreMetrics
from sllm_store.tiers.host import HostTier
from sllm_store.tiers.resident import DeviceTier
from tests.docs.documents import (
    DOCS,
    DOCUMENTS,
    ROOT,
    code_cell,
    inline_code,
    read_blocks,
    table_rows,
)

if TYPE_CHECKING:
    from pathlib import Path

PROGRAMS = {"sllm-store": sllm_store.cli.root.cli, "gdsllm": sllm.cli.root.cli}


def test_limits_are_those_of_the_code() -> None:
    for _, limit, where in table_rows(DOCS / "architecture.md", "## Limits")[1:]:
        module, _, name = code_cell(where).rpartition(".")
        assert getattr(importlib.import_module(module), name) == float(limit), where


def test_metrics_are_those_of_the_server() -> None:
    with ThreadPoolExecutor(1) as frees:
        devices = DeviceTier(0, frees)
    metrics = StoreMetrics(HostTier(2, 1 << 20), 2 << 20, devices, ["a GPU"])
    real = {}
    for family in metrics.registry.collect():
        total = "_total" if family.type == "counter" else ""
        real[f"{family.name}{total}"] = family.type
    rows = table_rows(DOCS / "operations.md", "## Health and metrics")[1:]
    assert {code_cell(row[0]): row[1] for row in rows} == real


@pytest.mark.parametrize("service", ["Storage", "Store"])
def test_every_method_of_the_protocol_is_documented(service: str) -> None:
    rows = table_rows(DOCS / "protocol.md", f"## storage.{service}")[1:]
    real = storage_pb2.DESCRIPTOR.services_by_name[service].methods_by_name
    assert {code_cell(row[0]) for row in rows} == set(real)


def test_every_error_travels_as_the_documented_status() -> None:
    rows = table_rows(DOCS / "protocol.md", "## Errors")[1:]
    documented = {code_cell(row[0]): code_cell(row[1]) for row in rows}
    assert documented == {name: error.status for name, error in errors.BY_NAME.items()}


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        code = [*inline_code(path), *(line for b in read_blocks(path) for line in b.commands())]
        for text in code:
            found = re.search(r"(?:^|\s)make ([a-z-]+)", text)
            assert not found or found[1] in targets, f"{path.name}: {text}"


def test_extras_that_are_named_exist() -> None:
    known = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        for extras in re.findall(r"(?:\.|serverless-llm)\[([\w,]+)\]", path.read_text()):
            assert set(extras.split(",")) <= known, f"{path.name}: {extras}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_options_that_are_named_exist(path: Path) -> None:
    code = [*inline_code(path), *(line for b in read_blocks(path) for line in b.commands())]
    for text in code:
        program, _, rest = text.partition(" ")
        if rest and program in PROGRAMS:
            words = shlex.split(rest.replace("\n", " "), comments=True)
            _require_command(PROGRAMS[program], words, where=f"{path.name}: {text}")


def test_the_guide_names_every_variable() -> None:
    rows = table_rows(DOCS / "gdsllm.md", "## Settings")[1:]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row[0])} == set(VARIABLES)


def _require_command(cli: click.Group, words: list[str], *, where: str) -> None:
    if words[0].startswith("-"):
        return
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None, where
    known = {option for item in command.params for option in item.opts} | {"--help"}
    for word in words[1:]:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, where
