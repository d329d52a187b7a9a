"""Rates are measured once, remembered, and measured again if what was remembered is damaged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from sllm.backends import measured_rates
from sllm.backends.measured_rates import disk_rate, rates_for
from sllm_store.disks import disk_memory, disk_of

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fewer_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_rates, "_MEMORY_BYTES", 1 << 20)


def test_a_rate_is_measured_once(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    first = rates_for(tmp_path, CPU, environ)
    assert first.memory is not None
    assert first.memory > 1e6
    assert (first.link, first.disk) == (None, None)
    assert rates_for(tmp_path, CPU, environ) == first
    (file,) = (tmp_path / "serverless-llm" / "rates").iterdir()
    file.write_text(json.dumps({"version": 1, "rates": {"memory": 7.0, "link": 3.0}}))
    assert rates_for(tmp_path, CPU, environ).memory == 7.0


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 2}', '{"version": 1, "rates": {"memory": 0}}', '{"version": 1}']
)
def test_what_is_damaged_is_measured_anew(tmp_path: Path, text: str) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    rates_for(tmp_path, CPU, environ)
    (file,) = (tmp_path / "serverless-llm" / "rates").iterdir()
    file.write_text(text)
    found = rates_for(tmp_path, CPU, environ).memory
    assert found is not None
    assert found > 1e6
    assert json.loads(file.read_text())["rates"]["memory"] == found


def test_where_nothing_can_be_kept_it_is_measured_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "serverless-llm").write_text("no directory")
    assert rates_for(tmp_path, CPU, {"XDG_CACHE_HOME": str(tmp_path)}).memory


def test_a_disk_s_rate_is_what_the_store_learnt_of_it(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    assert disk_rate(tmp_path, environ) is None
    assert disk_rate(tmp_path / "absent", environ) is None
    disk = disk_of(tmp_path)
    use = {"best": [1, 16, 1 << 20], "rate": 2.5e9, "refused": [], "settled": True}
    record = {"version": 1, "uses": {"queued reads": use}}
    file = tmp_path / "serverless-llm" / "disks" / f"{disk.id}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(record))
    assert disk_memory(environ).recall(disk)["queued reads"].rate == 2.5e9
    assert disk_rate(tmp_path, environ) == 2.5e9
