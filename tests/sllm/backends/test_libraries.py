"""PyTorch finds its libraries loaded, and works as ever."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys
from sllm.backends.libraries import begin_libraries
thread = begin_libraries()
assert begin_libraries() is thread
thread.join()
assert "torch" not in sys.modules
maps = open("/proc/self/maps").read()
assert "libtorch_cpu.so" in maps
import torch
assert (torch.ones(2, 3) @ torch.ones(3)).tolist() == [3, 3]
"""


def test_they_are_there_before_the_import_and_serve_it() -> None:
    subprocess.run([sys.executable, "-c", _PROGRAM], check=True, timeout=120)


def test_where_there_is_no_torch_nothing_happens() -> None:
    program = (
        "import sys; sys.modules['torch'] = None; from sllm.backends import libraries; "
        "libraries.find_spec = lambda name: None; libraries.begin_libraries().join()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
