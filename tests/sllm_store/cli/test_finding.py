"""Finding checkpoints by name and by path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sllm_store.cli.finding import find
from sllm_store.errors import CheckpointNotFoundError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.store_process import StoreProcess


def test_a_name_is_looked_up_under_the_storage_path_first(
    storage: Path,
    tmp_path: Path,
    write_safetensors: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_safetensors(storage / "m")
    write_safetensors(tmp_path / "here" / "m")
    write_safetensors(tmp_path / "here" / "only")
    monkeypatch.chdir(tmp_path / "here")
    assert find("m", None, storage).path == storage / "m"
    assert find("./m", None, storage).path == tmp_path / "here" / "m"
    found = find("only", None, storage)
    assert (found.path, found.root) == (tmp_path / "here" / "only", None)


def test_a_path_under_the_storage_path_gets_its_name(
    storage: Path, write_safetensors: Callable[..., object]
) -> None:
    write_safetensors(storage / "org" / "m")
    found = find(str(storage / "org" / "m"), None, storage)
    assert (found.name, found.root) == ("org/m", storage)


def test_what_is_nowhere_is_not_found(storage: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint 'm' in"):
        find("m", None, storage)
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint at /none"):
        find("/none", None, storage)


def test_a_name_does_not_lead_out_of_the_storage_path(storage: Path) -> None:
    with pytest.raises(InvalidRequestError):
        find("a/../../models", None, storage)


def test_the_running_store_names_the_storage_path(
    storage: Path,
    write_safetensors: Callable[..., object],
    start_store: Callable[..., StoreProcess],
) -> None:
    write_safetensors(storage / "m")
    client = start_store(storage).client()
    found = find("m", client, None)
    assert found.path == storage / "m"
    assert found.served is not None
    assert found.served.name == "m"
