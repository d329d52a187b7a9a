"""What the runtime's tests start from holds for engines too."""

from __future__ import annotations

from tests.sllm.runtime.conftest import one_thread

__all__ = ["one_thread"]
