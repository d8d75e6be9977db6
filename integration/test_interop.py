"""js-libp2p, as it comes from npm, is a peer of ours in every case of interop.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from .interop import BARE, CASES, run_case
from .interop_lab import open_lab
from .js_peer import Unavailable, install


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where js-libp2p is installed."""
    try:
        return install()
    except Unavailable as why:
        pytest.skip(str(why))


@pytest.mark.parametrize("name", CASES)
async def test_js_libp2p_is_a_peer_of_ours(folder: Path, name: str) -> None:
    """Each on hosts of its own, so that one that fails does not take the others with it."""
    async with open_lab(folder, bare=name in BARE) as lab:
        assert await run_case(lab, name)
