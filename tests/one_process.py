"""What all tests of one process share, and leave to the next as they found it.

Imported by both conftest.py. One thread of arithmetic: with one for each core, OpenMP's threads
spin at every barrier, and on a machine whose cores do other things as well each of the many tiny
products of a test waits for a thread that does not run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, which is later
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# for CI the same examples of a test each time, so that it says the same of the same commit;
# whoever runs `make test` looks for new ones
settings.register_profile("repeatable", settings.get_profile("busy"), derandomize=True)
settings.load_profile("repeatable" if "CI" in os.environ else "busy")


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A command sets the level of the process's logs, which is other tests' process too."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
