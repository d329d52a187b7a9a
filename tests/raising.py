"""`pytest.raises` for programs that tests start: without it most of them start a third sooner."""

from __future__ import annotations

from typing import Any


def raises(error: Any, **more: Any) -> Any:
    """Expect an error, as pytest does, which is imported by those who expect one."""
    import pytest

    return pytest.raises(error, **more)
