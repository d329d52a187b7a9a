"""The memory that is available is some of what there is."""

from __future__ import annotations

import os

from sllm_store.host_memory import available_bytes, machine_bytes


def test_some_of_the_memory_is_available() -> None:
    assert 0 < available_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_the_machine_has_at_least_what_is_available() -> None:
    assert available_bytes() <= machine_bytes()
