"""Clients forked from one process and killed at random: ADDRESS SUMS LOADS CLIENTS SEED.

Prints as JSON what they did. Ends with an error if a client ends with one, or nothing gets on.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random

from tests.soak.soak_client import SoakClient, State
from tests.soak.soak_models import read_sums

STALLED_S = 120.0
LOADS_BETWEEN_KILLS = 10
KILL_DELAY_MAX_S = 0.01
PATIENCE_S = 0.5
_RECORD = struct.Struct("<qq")  # State, loads.


class Board:
    """What every client does and has done, in memory that all share."""

    def __init__(self, clients: int) -> None:
        self._memory = mmap.mmap(-1, clients * _RECORD.size)
        self.clients = clients

    def read(self, slot: int) -> tuple[State, int]:
        state, loads = _RECORD.unpack_from(self._memory, slot * _RECORD.size)
        return State(state), loads

    def write(self, slot: int, state: State, loads: int) -> None:
        _RECORD.pack_into(self._memory, slot * _RECORD.size, state, loads)

    def loads(self) -> int:
        return sum(self.read(slot)[1] for slot in range(self.clients))


def act(address: str, sums: Path, board: Board, *, slot: int, seed: int, wanted: int) -> None:
    """Be a client, until the loads of all are as many as wanted."""

    def enter(state: State) -> None:
        board.write(slot, state, board.read(slot)[1])

    client = SoakClient(address, read_sums(sums), seed=seed, enter=enter)
    while board.loads() < wanted:
        done = client.step()
        board.write(slot, State.IDLE, board.read(slot)[1] + done)


class Nursery:
    """Keeps as many clients alive as there are slots, and kills them."""

    def __init__(self, address: str, sums: Path, *, loads: int, clients: int, seed: int) -> None:
        self._address = address
        self._sums = sums
        self._wanted = loads
        self._random = Random(seed)
        self._board = Board(clients)
        self._pids: dict[int, int] = {}
        self._seed = seed * 1_000_000
        self.killed: Counter[str] = Counter()

    def run(self) -> None:
        for slot in range(self._board.clients):
            self._start(slot)
        moved_s, seen, next_kill = time.monotonic(), 0, 0
        while self._pids:
            self._reap()
            loads = self._board.loads()
            if loads > seen:
                moved_s, seen = time.monotonic(), loads
            elif time.monotonic() - moved_s > STALLED_S:
                states = [self._board.read(slot) for slot in range(self._board.clients)]
                raise TimeoutError(f"no load has ended for {STALLED_S} s: {states}")
            if next_kill <= loads < self._wanted:
                self._kill()
                next_kill = loads + self._random.randint(1, LOADS_BETWEEN_KILLS)
            time.sleep(0.001)

    def kill_all(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)

    def _start(self, slot: int) -> None:
        self._seed += 1
        self._board.write(slot, State.IDLE, self._board.read(slot)[1])
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                act(
                    self._address,
                    self._sums,
                    self._board,
                    slot=slot,
                    seed=self._seed,
                    wanted=self._wanted,
                )
                code = 0
            except BaseException:  # noqa: BLE001 - the process's outermost edge, which tells it
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
        self._pids[pid] = slot

    def _reap(self) -> None:
        """Raise if a client has ended with an error."""
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            slot = self._pids.pop(pid)
            if status:
                raise ChildProcessError(f"client {slot} ended with {status}: see above")

    def _kill(self) -> None:
        """Kill a client in a state drawn by lot, and start another in its place."""
        wanted = self._random.choice([State.LOADING, State.LOADING, State.HOLDING])
        deadline_s = time.monotonic() + PATIENCE_S
        victim = None
        while victim is None and time.monotonic() < deadline_s:
            pids = list(self._pids)
            self._random.shuffle(pids)
            found = (pid for pid in pids if self._board.read(self._pids[pid])[0] is wanted)
            victim = next(found, None)
        if victim is None:
            return
        time.sleep(self._random.random() ** 2 * KILL_DELAY_MAX_S)
        os.kill(victim, signal.SIGKILL)
        _, status = os.waitpid(victim, 0)
        slot = self._pids.pop(victim)
        if os.WIFEXITED(status):
            if status:
                raise ChildProcessError(f"client {slot} ended with {status}: see above")
            return
        self.killed[self._board.read(slot)[0].name.lower()] += 1
        self._start(slot)

    def report(self) -> dict[str, object]:
        return {"loads": self._board.loads(), "killed": dict(self.killed)}


def main(address: str, sums: str, *numbers: str) -> None:
    loads, clients, seed = map(int, numbers)
    nursery = Nursery(address, Path(sums), loads=loads, clients=clients, seed=seed)
    try:
        nursery.run()
    finally:
        nursery.kill_all()
    print(json.dumps(nursery.report()))


if __name__ == "__main__":
    main(*sys.argv[1:])
