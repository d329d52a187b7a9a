"""The key of Triton's cache is found once, and asked for in vain where there is no Triton."""

from __future__ import annotations

import sys

import pytest

from sllm.runtime.kernels.compiler_key import find_compiler_key


def test_what_is_found_is_what_a_kernel_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = pytest.importorskip("triton.runtime.cache")
    asked: list[str] = []
    monkeypatch.setattr(cache, "triton_key", lambda: asked.append("key"))
    find_compiler_key()
    assert asked == ["key"]


def test_without_triton_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton.runtime.cache", None)
    find_compiler_key()
