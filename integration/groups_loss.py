"""Issue F, bar 4 in group mode: what deaths and late joiners do to the loss of a run.

    python -m integration.groups_loss [--rounds 12]                                one JSON line

Eight peers train the laboratory's adapter (compute/average/band.py: the demo model's last block, on
text that it never read, dealt out unevenly), and average by one group. Beside them the same run, in
which two of them die in the middle of the round after half of the rounds, and four others join in
the next one. The score is the loss on held-out text of the worst peer that lives at the end.
Members are the drivers of nodes, on memory roads, in one process, by the machine's own clock.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import trio

from potluck.node.compute.average.band import Band, Diet
from potluck.node.compute.average.lab import SCORED_TOKENS, Trial
from potluck.node.compute.average.reading import FOR_SCORE, Text, read_text
from potluck.node.runs.group import Settings

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # its helpers, as pytest has them

PEERS, DEATHS, LATE = 8, 2, 4
DIES_WITHIN_S = 0.1  # after a round began, which takes about as long


def measure(rounds: int, seed: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    """Undisturbed, and harmed."""
    run = partial(_run, read_text(), rounds, seed=seed)
    return trio.run(partial(run, harmed=False)), trio.run(partial(run, harmed=True))


async def _run(text: Text, rounds: int, *, harmed: bool, seed: int) -> dict[str, Any]:
    from sim.group_town import Town

    trial = Trial(peers=PEERS + LATE)
    band = Band(Diet(trial.peers, trial.tokens, trial.rate, trial.spread, seed), text)
    dice = Random(seed)
    began = time.monotonic()
    equal, commits = 0, 0
    async with trio.open_nursery() as nursery:
        town = Town(nursery, Settings(), band.weights()[0])
        for number in range(PEERS):
            await town.join(number)
        for number in range(rounds):
            if harmed and number == rounds // 2 + 1:
                for late in range(PEERS, PEERS + LATE):
                    band.forget(late)
                    joined = await town.join(late)
                    await joined.exchange(tokens=0)  # only to begin where the others are
            _learn(band, town, trial.steps)
            async with trio.open_nursery() as round_:
                round_.start_soon(town.exchange)
                if harmed and number == rounds // 2:
                    for doomed in dice.sample(town.citizens, DEATHS):
                        await trio.sleep(dice.uniform(0, DIES_WITHIN_S))  # where, is chance
                        await doomed.die()
            places = {one.group.place for one in town.alive}
            equal += len(places) == 1
        commits = max(one.group.place.commits for one in town.alive)
        _show(band, town)
        alive = [one.number for one in town.alive]
        nursery.cancel_scope.cancel()
    held = text.tokens(FOR_SCORE)
    held = held[:: max(len(held) // SCORED_TOKENS, 1)][:SCORED_TOKENS]
    losses = band.losses(band.weights(), held)[alive]
    return {
        "worst_loss": float(losses.max()),
        "mean_loss": float(losses.mean()),
        "rounds": rounds,
        "commits": commits,
        "rounds_with_equal_states": equal,
        "alive": len(alive),
        "s": round(time.monotonic() - began, 1),
    }


def _learn(band: Band, town: Any, steps: int) -> None:
    """The inner steps of all; rows of who is not there come to nothing."""
    _show(band, town)
    band.learn(steps, PEERS + LATE)
    weights = band.weights()
    for one in town.alive:
        one.weights = weights[one.number].clone()


def _show(band: Band, town: Any) -> None:
    weights = band.weights()
    for one in town.alive:
        weights[one.number] = one.weights
    band.put(weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    asked = parser.parse_args()
    calm, harmed = measure(asked.rounds)
    apart = harmed["worst_loss"] / calm["worst_loss"] - 1
    print(json.dumps({"undisturbed": calm, "harmed": harmed, "loss_apart": round(apart, 5)}))


if __name__ == "__main__":
    main()
