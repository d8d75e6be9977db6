"""How fast the daemon's own gossip tells all of one item, with a part of the peers silent.

Each peer is a machine of swarm/gossip.py with links to about sixteen others, of which some are in
its mesh; the silent ones take all that they are sent, stay in the meshes, and pass nothing on.
Measured: when 99 % of the honest have judged what one of them published; how often each was sent
it; what a heartbeat costs a processor.

    python -m integration.gossip_sim --peers 2000
"""

from __future__ import annotations

import argparse
import json
import os
import time
from random import Random
from typing import Any

from potluck.dht.network import NOWHERE
from potluck.swarm.gossip import BEAT, BEAT_S, Gossip
from potluck.swarm.gossip_events import Event, Heard, Joined, Publish, Say, Subscribe
from potluck.swarm.machine import Fired, SetTimer
from potluck.swarm.recent import Verdict
from potluck.swarm.sim.clock import Clock
from potluck.swarm.topics import EVIDENCE, Message

from .gossip_world import Mesh

SILENT = 0.3
LINKS = 2  # times the mesh of gossip_world
MET_S = 10.0  # until the meshes are there
ITEM_BYTES = 2400  # two records that contradict each other


class World:
    """Silent peers are the last numbers."""

    def __init__(self, peers: int, seed: int) -> None:
        dice = Random(seed)
        self.honest = round(peers * (1 - SILENT))
        self.clock = Clock(0.0)
        self.mesh = Mesh(peers, dice)
        self.known_s: dict[int, float] = {}
        self.sent = 0
        self.beats = 0
        self.beating_s = 0.0
        for other in (Mesh(peers, dice) for _ in range(LINKS - 1)):
            for one, more in enumerate(other.links):
                self.mesh.links[one] |= more
        self.machines = [self._machine(number, dice) for number in range(peers)]
        for one, links in enumerate(self.mesh.links):
            for other_one in sorted(links):
                self._handle(one, Joined(str(other_one), NOWHERE, one < other_one))
            self.clock.at(dice.uniform(0, BEAT_S), self._beat, one)

    def _machine(self, number: int, dice: Random) -> Gossip:
        def judge(message: Message) -> Verdict:
            self.known_s[number] = self.clock.now - MET_S
            return "pass"

        made = Gossip(judge, lambda topic: True, Random(dice.random()).shuffle)
        made.handle(Subscribe(frozenset([EVIDENCE])), 0.0)
        return made

    def _beat(self, one: int) -> None:
        began_s = time.process_time()
        self._handle(one, Fired(BEAT))
        self.beating_s += time.process_time() - began_s
        self.beats += 1

    def _handle(self, one: int, event: Event) -> None:
        for effect in self.machines[one].handle(event, self.clock.now):
            if isinstance(effect, SetTimer):
                self.clock.at(effect.at_s, self._beat, one)
            elif isinstance(effect, Say):
                self._say(one, effect)

    def _say(self, one: int, say: Say) -> None:
        told = bool(say.rpc.messages or say.rpc.ihave or say.rpc.idontwant)
        if told and one >= self.honest:
            return
        other = int(say.peer)
        self.sent += len(say.rpc.messages) if other < self.honest else 0
        when = self.clock.now + self.mesh.delay_s(one, other)
        self.clock.at(when, self._handle, other, Heard(str(one), say.rpc))

    def measure(self) -> dict[str, Any]:
        self.clock.run(MET_S)
        sizes = sorted(len(machine.mesh(EVIDENCE)) for machine in self.machines)
        self._handle(0, Publish(Message(EVIDENCE, bytes(ITEM_BYTES))))
        self.clock.run(MET_S + 30)
        times = sorted(self.known_s[one] for one in range(1, self.honest) if one in self.known_s)
        most = round(0.99 * (self.honest - 1))
        return {
            "honest": self.honest,
            "meshes": [sizes[0], sizes[len(sizes) // 2], sizes[-1]],
            "known_to": len(times) + 1,
            "median_s": round(times[len(times) // 2], 3),
            "known_to_99_percent_s": round(times[most - 1], 3) if len(times) >= most else None,
            "last_s": round(times[-1], 3),
            "sent_to_each": round(self.sent / self.honest, 2),
            "beat_us": round(1e6 * self.beating_s / self.beats, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    began_s = time.process_time()
    told = {"peers": asked.peers, "seed": asked.seed} | World(asked.peers, asked.seed).measure()
    told["processor_s"] = round(time.process_time() - began_s, 1)
    told["load_average"] = round(os.getloadavg()[0], 1)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
