"""docs/python-api.md against the code: every name, signature, attribute, class and base."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from dataclasses import fields
from typing import Any

import pytest

from sllm_store import errors
from sllm_store.answers import ModelInfo, StoreStatus
from sllm_store.client import SllmStoreClient
from tests.docs.documents import DOCS, ROOT, code_cell, inline_code, read_blocks, table_rows

PAGE = DOCS / "python-api.md"
PUBLIC = {
    "sllm_store.torch": {"LoadedDict"},  # What load_dict returns; described there.
    "sllm_store.transformers": {"load_lora", "save_lora"},  # As in sllm_store.peft.
}


_CALL = re.compile(r"^([\w.]+)(\(.*?\))$", re.DOTALL | re.MULTILINE)


def _signatures() -> dict[str, str]:
    """Return the documented signatures by dotted name; the heading above gives the module."""
    lines = PAGE.read_text().splitlines()
    found: dict[str, str] = {}
    for block in read_blocks(PAGE):
        if block.language == "py":
            above = reversed(lines[: block.line])
            heading = next(line for line in above if line.startswith("### "))
            module = heading.removeprefix("### ").strip("`").rpartition(".")[0]
            found |= {f"{module}.{name}": call for name, call in _CALL.findall(block.text)}
    return found


SIGNATURES = _signatures()


def _resolve(name: str) -> Any:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            value = getattr(value, part)
        return value
    raise AssertionError(f"there is no {name}")


def _plain(parameters: list[inspect.Parameter]) -> list[tuple[str, Any, Any]]:
    return [(item.name, item.kind, item.default) for item in parameters if item.name != "self"]


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_documented_signature_is_the_real_one(name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def documented{SIGNATURES[name]}: ...", scope)
    documented = inspect.signature(scope["documented"]).parameters.values()
    real = inspect.signature(_resolve(name)).parameters.values()
    assert _plain(list(documented)) == _plain(list(real))


@pytest.mark.parametrize("package", ["sllm_store.torch", "sllm_store.transformers"])
def test_every_public_name_of_an_adapter_is_documented(package: str) -> None:
    names = {name.rpartition(".")[2] for name in SIGNATURES if name.startswith(f"{package}.")}
    assert names | PUBLIC[package] == set(importlib.import_module(package).__all__)


def test_every_method_of_the_client_is_documented() -> None:
    prefix = "sllm_store.client.SllmStoreClient."
    documented = {name.removeprefix(prefix) for name in SIGNATURES if name.startswith(prefix)}
    public = {
        name
        for name, value in vars(SllmStoreClient).items()
        if callable(value) and not name.startswith("_")
    }
    assert documented == public


def test_every_field_of_what_the_client_returns_is_documented() -> None:
    code = set(inline_code(PAGE))
    for record in (ModelInfo, StoreStatus):
        assert {field.name for field in fields(record)} <= code


def test_the_table_of_errors_has_every_error_with_its_bases() -> None:
    rows = [row for row in table_rows(PAGE, "## Errors") if row[0] != "error"]
    documented = {code_cell(row[0]): row[1] for row in rows}
    assert set(documented) == set(errors.BY_NAME)
    for name, cell in documented.items():
        if not cell:
            assert errors.BY_NAME[name].__bases__ == (errors.StoreError,)
            continue
        bases = [base.__name__ for base in errors.BY_NAME[name].__bases__]
        assert code_cell(cell) in bases, f"{name} is not a {cell}"


def test_examples_import_names_that_exist() -> None:
    for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))):
        for block in read_blocks(path):
            if block.language == "python":
                for node in ast.walk(ast.parse(block.text)):
                    if isinstance(node, ast.ImportFrom) and node.module:
                        for alias in node.names:
                            _resolve(f"{node.module}.{alias.name}")
