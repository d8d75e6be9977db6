"""A peer that is killed is out of its neighbours' view while its record lives on.

python -m integration.test_segment      the figures of one run, as JSON
"""

from __future__ import annotations

import json
import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from potluck.node.library import DEMO_FOLDER

from .ground import Node, open_node, potluck
from .waiting import until

MET_S = 90.0  # records are read each 15 s; on a busy machine
MISSED_S = 10.0  # two periods of SWIM: without the road's word a death takes half a minute


def measure(folder: Path) -> dict[str, Any]:
    with ExitStack() as stack:
        nodes: list[Node] = []
        for name in ("one", "two", "three", "four"):
            join = nodes[0].addresses if nodes else []
            node = open_node(folder / name, DEMO_FOLDER, "--name", "demo", join=join)
            nodes.append(stack.enter_context(node))
        met_s = until(
            lambda: all(n.counts()["members"] == len(nodes) - 1 for n in nodes),
            MET_S,
            every_s=0.5,
        )
        gone = nodes.pop()
        gone.process.send_signal(signal.SIGKILL)
        missed_s = until(lambda: all(f"missed={gone.peer}" in n.log for n in nodes), MISSED_S)
        [model] = potluck("status", "--home", str(nodes[0].home))["models"]
        return {
            "met_s": round(met_s, 2),
            "missed_s": round(missed_s, 2),
            "record_lives_on": gone.peer in [span["peer"] for span in model["spans"]],
            "others_missed": sum(node.counts()["missed"] - 1 for node in nodes),
        }


@pytest.mark.slow
def test_a_killed_peer_is_missed_within_seconds_and_nobody_else(tmp_path: Path) -> None:
    found = measure(tmp_path)
    assert found["missed_s"] <= MISSED_S
    assert found["record_lives_on"], "else it proves nothing"
    assert found["others_missed"] == 0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder))))


if __name__ == "__main__":
    main()
