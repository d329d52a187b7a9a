"""Directories follow the variables, then the desktop's rules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sllm.library.places import config_directory, model_root, state_directory

if TYPE_CHECKING:
    import pytest


def test_the_root_is_what_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/person")
    assert model_root({"GDSLLM_MODEL_ROOT": "/models"}) == Path("/models")
    assert model_root({"GDSLLM_MODEL_ROOT": "~/models"}) == Path("/person/models")
    assert model_root({"XDG_DATA_HOME": "/data"}) == Path("/data/gdsllm/models")
    assert model_root({}) == Path("/person/.local/share/gdsllm/models")


def test_settings_and_state_have_their_own_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/person")
    assert config_directory({"XDG_CONFIG_HOME": "/config"}) == Path("/config/gdsllm")
    assert config_directory({}) == Path("/person/.config/gdsllm")
    assert state_directory({"XDG_STATE_HOME": "/state"}) == Path("/state/gdsllm")
    assert state_directory({}) == Path("/person/.local/state/gdsllm")


def test_who_has_no_home_has_the_root_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", refuse)
    assert model_root({}) == Path("/.local/share/gdsllm/models")
    assert config_directory({}) == Path("/.config/gdsllm")
    assert state_directory({}) == Path("/.local/state/gdsllm")
