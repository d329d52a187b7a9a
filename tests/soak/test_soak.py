"""A node's life in short: five models through a pool that fits two, clients killed all along.

Nothing may be left of a client that was killed, no load may fail or bring a wrong byte, and the
store may not grow. Set SLLM_SOAK_REPORT to a file to keep what was measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.soak.soak_models import MB, MODEL_BYTES, write_models, write_sums
from tests.store_process import open_descriptors, start_process, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.store_process import StoreProcess

ROOT = Path(__file__).parents[2]
CLIENTS = 5
# What may differ between two moments at which the store has nothing: noise, not a trend.
# What the store keeps for its links grows with the loads that ever ran at once, to four sets a GPU:
# of the fake driver, a stream is a thread, and memory, 4 MiB of a set, is shared and a descriptor.
GROWTH_BYTES_MAX = 8 * MB
LINKS_BYTES_MAX = 2 * 4 * 4 * MB
DESCRIPTORS_MAX = 12
THREADS_MAX = 24
MAPPINGS_MAX = 150


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a process takes when it is idle."""

    private_bytes: int
    shared_bytes: int
    descriptors: int
    threads: int
    mappings: int
    named_memory: int


def footprint(pid: int) -> Footprint:
    process = Path(f"/proc/{pid}")
    lines = (line.split(":", 1) for line in (process / "status").read_text().splitlines())
    status = {name: value.split()[0] for name, value in lines if value.split()}
    return Footprint(
        private_bytes=int(status["RssAnon"]) << 10,
        shared_bytes=int(status["RssShmem"]) << 10,
        descriptors=open_descriptors(pid),
        threads=int(status["Threads"]),
        mappings=(process / "maps").read_text().count("\n"),
        named_memory=sum(1 for _ in Path("/dev/shm").iterdir()),
    )


@pytest.fixture
def environment(fake_cuda: Path) -> dict[str, str]:
    """Two GPUs, and copies that take a little."""
    return {
        "SLLM_CUDA_LIBRARY": str(fake_cuda),
        "FAKE_CUDA_MEMORY": str(64 * MODEL_BYTES),
        "FAKE_CUDA_COPY_DELAY_US": "200",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def store(tmp_path: Path, environment: dict[str, str]) -> Iterator[StoreProcess]:
    """A store whose pool fits two of the five models."""
    write_sums(tmp_path / "sums.json", write_models(tmp_path / "models"))
    started = start_process(
        tmp_path / "models",
        tmp_path,
        environment,
        pool_bytes=2 * MODEL_BYTES + 6 * MB,
        gpu_pool_bytes=2 * MODEL_BYTES + 6 * MB,
        threads=2,
    )
    yield started
    assert started.stop() == 0


def run_clients(
    store: StoreProcess, environment: dict[str, str], sums: Path, *, loads: int, seed: int
) -> Any:
    command = [sys.executable, "-m", "tests.soak.soak_cases", store.address, str(sums)]
    done = subprocess.run(
        [*command, str(loads), str(CLIENTS), str(seed)],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + store.log.read_text()[-4000:]
    return json.loads(done.stdout)


def settle(store: StoreProcess) -> Footprint:
    """Wait until nothing is left of the clients, free everything, and look at the process."""
    client = store.client()
    wait_until(lambda: client.status().loads_running == 0)
    wait_until(lambda: client.status().sessions == 0)
    wait_until(lambda: client.status().leases == 0)
    client.clear_mem()
    status = client.status()
    assert status.pool_used_bytes == 0
    assert not any(status.resident_bytes.values())
    assert all(not model.leases and not model.host_bytes for model in client.list_models())
    client.close()
    time.sleep(0.2)  # The connection that asked is closed by then.
    return footprint(store.pid)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("rounds", "loads"),
    [
        pytest.param(4, 30, marks=pytest.mark.slow, id="short"),
        pytest.param(10, 200, marks=pytest.mark.soak, id="long"),
    ],
)
def test_killed_clients_leave_nothing_behind(  # noqa: PLR0917
    store: StoreProcess, environment: dict[str, str], tmp_path: Path, rounds: int, loads: int
) -> None:
    seen: list[Footprint] = []
    killed: Counter[str] = Counter()
    began_s = time.monotonic()
    for number in range(rounds):
        report = run_clients(
            store, environment, tmp_path / "sums.json", loads=loads, seed=number + 1
        )
        killed.update(report["killed"])
        seen.append(settle(store))
    summary = {
        "loads": rounds * loads,
        "seconds": round(time.monotonic() - began_s, 1),
        "killed": dict(killed),
        "footprints": [asdict(entry) for entry in seen],
    }
    if report_path := os.environ.get("SLLM_SOAK_REPORT"):
        Path(report_path).write_text(json.dumps(summary, indent=1) + "\n")
    assert killed["loading"] and killed["holding"], killed  # noqa: PT018 - both were meant
    warm, last = seen[0], seen[-1]
    assert last.private_bytes <= warm.private_bytes + GROWTH_BYTES_MAX, summary
    assert last.shared_bytes <= warm.shared_bytes + LINKS_BYTES_MAX, summary
    assert last.descriptors <= warm.descriptors + DESCRIPTORS_MAX, summary
    assert last.threads <= warm.threads + THREADS_MAX, summary
    assert last.mappings <= warm.mappings + MAPPINGS_MAX, summary
    assert last.named_memory <= warm.named_memory, summary
    log = store.log.read_text()
    assert "Traceback" not in log, log[-4000:]
