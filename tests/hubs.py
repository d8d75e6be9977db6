"""A hub on this machine in place of the real one (node/bench/hub.py)."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest

from potluck.node.bench.hub import LocalHub


def use(hub: LocalHub, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """From now on this process asks this hub, and has this cache of it."""
    constants = huggingface_hub.constants
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setattr(constants, "ENDPOINT", hub.endpoint)
    place = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
