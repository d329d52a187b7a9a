"""Where a server listens, and for how long."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest

from sllm.core.errors import SettingsError
from sllm.gateway.serve import background

if TYPE_CHECKING:
    from sllm.gateway.backing import Backing
    from sllm.gateway.settings import Settings
    from sllm.library.models import Library


def test_a_server_is_there_until_its_user_is_done(
    settings: Settings, library: Library, backing: Backing
) -> None:
    with background(settings, library=library, backing=backing) as url:
        assert httpx.get(f"{url}/health").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_a_port_in_use_is_named(settings: Settings, url: str) -> None:
    port = int(url.rpartition(":")[2])
    with (
        pytest.raises(SettingsError, match=f"127.0.0.1:{port} cannot be served on"),
        background(replace(settings, port=port)),
    ):
        pass
