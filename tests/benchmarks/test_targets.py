"""Targets are judged by limits that were measured."""

from __future__ import annotations

from typing import Any

from benchmarks.targets import IN_PROCESS, Verdict, verdicts

OF_THE_DISK, TWICE = "95 % of the best raw direct rate", "twice safetensors"


def judged(disk: list[float]) -> dict[str, Verdict]:
    """Judge cold loads at 2 GB/s beside safetensors at 1.5, by what the disk gave directly."""
    rates = {IN_PROCESS: 2.0, "safetensors": 1.5}
    rows: list[dict[str, Any]] = [
        {
            "checkpoint": "llama-8b",
            "loader": loader,
            "state": "cold disk",
            "seconds": [16 / rate for _ in disk],
            "disk_gb_per_s": disk,
            "gb_per_s_first": rate,
            "gb_per_s_median": rate,
        }
        for loader, rate in rates.items()
    ]
    found = verdicts([{"checkpoints": {"llama-8b": {}}, "rows": rows}])
    return {verdict.target: verdict for verdict in found}


def test_cold_loads_are_judged_by_the_disk_of_their_round() -> None:
    verdict = judged([2.5, 2.0])[OF_THE_DISK]
    assert (verdict.measured, verdict.is_met) == ("2.0 of 2.4 GB/s", False)


def test_a_limit_that_every_load_is_beyond_judges_nothing() -> None:
    found = judged([1.8, 1.0])
    assert OF_THE_DISK not in found
    assert found[TWICE].measured == "2.0 of 3.0 GB/s; the disk gave 2.0"


def test_a_disk_without_direct_reads_judges_nothing() -> None:
    assert OF_THE_DISK not in judged([0.0, 0.0])
    assert judged([2.5, 0.0])[OF_THE_DISK].measured == "2.0 of 2.4 GB/s"


def test_decoding_on_a_cpu_is_judged_by_transformers_and_by_the_disk() -> None:
    rates = {"ours, resident": 100.0, "ours, streamed": 40.0, "Transformers, float32": 20.0}
    rows: list[dict[str, Any]] = [
        {"way": way, "tokens_per_s_median": rate} for way, rate in rates.items()
    ]
    rows[1]["share_of_bound"] = 0.8
    found = {verdict.target: verdict for verdict in verdicts([{"rows": rows}])}
    beside = found["Transformers in float32"]
    assert (beside.measured, beside.is_met) == ("100.0 of 20.0 tokens/s", True)
    streamed = found["90 % of the bound"]
    assert (streamed.measured, streamed.is_met) == ("80%", False)


def test_decoding_on_a_gpu_is_judged_by_the_engine_where_that_was_measured() -> None:
    row: dict[str, Any] = {
        "format": "Q4_0",
        "batch": 1,
        "step_ms": 2.0,
        "tokens_per_s": 500.0,
        "of_copy": 0.75,
    }
    for engine, measured in (({}, "75%"), ({"engine_of_copy": 0.65}, "65%")):
        found = {verdict.target: verdict for verdict in verdicts([{"rows": [row | engine]}])}
        assert found["70 % of a copy's rate"].measured == measured
