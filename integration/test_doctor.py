"""The doctor behind real NATs: it tells what stands in the way, as the ground was built."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .ground import ENVIRONMENT, POTLUCK
from .nat_ground import ROOT, Kind, why_not
from .nat_town import Town, open_town

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no NATs here: {why_not()}")

RTT_S = 0.02
LOOKED_S = 90.0  # it gives itself 20
HOMES: tuple[Kind, ...] = ("port", "symmetric")
PUBLIC = "visitor"  # in a network of its own, with no NAT


def examined(made: Town, name: str, home: Path) -> dict[str, Any]:
    """What `potluck doctor` says there: facts on the network, and findings by what they are of."""
    command = [*POTLUCK, "doctor", "--json", "--home", str(home)]
    command += [part for address in made.join for part in ("--join", address)]
    inside = made.ground.command(f"{made.ground.prefix}{name}", command)
    done = subprocess.run(
        ["env", *(f"{key}={value}" for key, value in ENVIRONMENT.items()), *inside],
        cwd=ROOT, capture_output=True, text=True, timeout=LOOKED_S,
    )  # fmt: skip
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    return {
        "network": told["facts"]["network"],
        "findings": {one["about"]: one["verdict"] for one in told["findings"]},
        "knocks": told["facts"]["knocks"],
    }


def test_the_kind_of_each_nat_is_told(tmp_path: Path) -> None:
    names = (*HOMES, PUBLIC)
    with open_town(tmp_path, RTT_S, directory=True) as made:
        made.ground.public(PUBLIC)
        for kind in HOMES:
            made.ground.home(kind, kind)
        with ThreadPoolExecutor(len(names)) as pool:
            found = pool.map(lambda name: examined(made, name, tmp_path / f"at-{name}"), names)
            told = dict(zip(names, found, strict=True))
    nats = {name: one["network"]["nat"] for name, one in told.items()}
    assert {name: nat["kind"] for name, nat in nats.items()} == {
        "port": "endpoint-independent",
        "symmetric": "per-destination",
        PUBLIC: "none",
    }
    assert nats["port"]["port_kept"] is True
    assert nats["port"]["reachability"] == nats["symmetric"]["reachability"] == "private"
    assert nats[PUBLIC]["reachability"] == "public" and nats[PUBLIC]["filtering"] == "open"
    assert told["symmetric"]["findings"]["NAT"] == "warning"
    for one in told.values():
        assert all(knock["took_s"] for knock in one["knocks"])
        assert one["findings"]["clock"] == "good"
