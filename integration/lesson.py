"""What the members of a run learn from, in this process: no network, no other member."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.nearby import Nearby
from potluck.node.compute.tuning import Tuner
from potluck.node.compute.voice import Voice
from potluck.node.compute.windows import cut
from potluck.node.library import DEMO_FOLDER
from potluck.node.runs.finetune import load_plan
from potluck.node.runs.runner import FINAL_SEQUENCES
from potluck.node.runs.texts import documents
from potluck.swarm.run.plan import Plan, agree, rate_at
from potluck.swarm.run.shards import Split


@dataclass(frozen=True, slots=True)
class Lesson:
    """Of the run file `tales.toml` in a folder (run_group.py), over the demo's weights."""

    plan: Plan
    tuner: Tuner
    split: Split
    run: bytes

    @classmethod
    def of(cls, folder: Path, tokens: int) -> Lesson:
        """tokens: of a sequence."""
        plan = load_plan(folder / "tales.toml")
        checkpoint = open_checkpoint(DEMO_FOLDER)
        voice = Voice.of(checkpoint)
        windows = cut(voice.text, documents([folder / "tales.jsonl"], "text"), tokens)
        tuner = Tuner(
            voice, Nearby(checkpoint), plan.adapter, plan.training, windows, seed=plan.seed
        )
        run = agree(plan, bytes.fromhex(voice.digest), windows.files, tuner.start).run
        return cls(plan, tuner, Split.of(len(windows), plan.data.held_out, plan.seed), run)

    def loss(self) -> float:
        """Of the weights as they are, on what members tell their last loss of."""
        most = min(FINAL_SEQUENCES, self.split.scored)
        return self.tuner.loss(self.split.held_out(most))

    def synchronous(self, peers: list[str]) -> None:
        """As many steps as each member takes; at each the gradients of all are averaged."""
        training = self.plan.training
        for epoch in range(training.epochs):
            for step in range(training.inner_steps):
                batches = (
                    self.split.batch(self.run, epoch, peer, step, size=training.batch)
                    for peer in peers
                )
                rows = [row for batch in batches for row in batch]
                at = epoch * training.inner_steps + step
                self.tuner.step(rows, rate_at(training, at))
