"""What a server can be started with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sllm.core.errors import SettingsError
from sllm.gateway.settings import Settings, is_loopback

ROOT = Path("models")


def test_a_server_that_others_can_reach_needs_a_token() -> None:
    with pytest.raises(SettingsError, match="GDSLLM_API_TOKEN"):
        Settings(model_root=ROOT, host="0.0.0.0")
    assert Settings(model_root=ROOT, host="0.0.0.0", token="t").is_loopback is False


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "app.localhost"])
def test_loopback_has_many_names(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "example.org", "127.0.0.1.example.org", "10.0.0.1"])
def test_other_names_are_no_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_loaded", 0),
        ("parallel", 0),
        ("parallel", 513),
        ("queue", -1),
        ("port", 65536),
        ("token", " "),
        ("token", "é"),
        ("token", "a\nb"),
        ("keep_alive_s", float("nan")),
        ("context_tokens", 1),
        ("preload", ("a", "b")),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=name.partition("_")[0]):
        Settings(model_root=ROOT, **{name: value})


def test_a_draft_is_there_to_guess() -> None:
    assert Settings(model_root=ROOT, draft=ROOT / "small").speculate
    with pytest.raises(SettingsError, match="draft"):
        Settings(model_root=ROOT, draft=ROOT / "small", speculate=False)
