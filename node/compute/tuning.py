"""One peer's own part of a run: AdamW steps on B of low-rank matrices, through frozen blocks.

A comes from the run's public seed and stays: then the average of what peers train is that of the
products B A too, and half of the bytes is enough. What is trained is handed out and taken in as one
vector (average/flat.py); the optimizer's moments stay at home, as DiLoCo's do.

Source: Sun et al., 2024 (FFA-LoRA); Douillard et al., 2023 (DiLoCo); OpenDiLoCo, for the betas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from ...swarm.run.plan import Adapter, Training
from .average.flat import Flat
from .lora import LoRA, LowRank
from .mixing import Vector
from .remote import Network, RemoteModel
from .voice import Voice
from .windows import Windows

BETAS = (0.9, 0.95)
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class _Bound:
    """A model that is loaded, as RemoteModel asks for one."""

    loaded: Voice
    network: Network

    def voice(self, model: str) -> Voice:
        return self.loaded

    def training(self, model: str) -> Network:
        return self.network


class Tuner:
    """A model, its adapter and the optimizer. Every call computes, perhaps over the swarm; then it
    raises MissingBlocks, RemoteError, TransportError or Refused."""

    def __init__(
        self,
        voice: Voice,
        network: Network,
        adapter: Adapter,
        training: Training,
        windows: Windows,
        *,
        seed: int,
    ) -> None:
        """Raises UserError for an adapter that this model does not take."""
        wanted = LoRA(adapter.rank, adapter.alpha, adapter.targets, adapter.blocks or None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._model = RemoteModel(_Bound(voice, network), voice.name, lora=wanted)
        lora = self._model.lora
        assert lora is not None
        halves = list(lora.halves)
        for down in halves[::2]:
            down.requires_grad_(False)
        self._ups = _named(lora, halves[1::2])
        self.start = lora.bundle(voice.digest, halves).name
        self.flat = Flat.of(self._ups)
        self._windows = windows
        self.labels: Callable[[Tensor], Tensor] = lambda after: after  # what liars turn round
        self.vocabulary = voice.ends.spec.vocab
        self._training = training
        self._optimizer = torch.optim.AdamW(
            [self._ups[name] for name in self.flat.names],
            lr=training.learning_rate, betas=BETAS, weight_decay=training.weight_decay,
        )  # fmt: skip

    def step(self, rows: Sequence[int], rate: float) -> float:
        """One of AdamW's, over these sequences; the loss before it. Raises UserError for a gradient
        that is none: then nothing has changed."""
        self._optimizer.zero_grad()  # what a step that failed half way has left
        loss = self._loss(rows)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._ups.values(), self._training.clip or math.inf)
        if not math.isfinite(float(norm)):
            raise UserError(
                f"a gradient is infinite or no number (the loss is {float(loss.detach()):.4g}): the"
                " training has diverged; what was kept before stands, so begin anew with a smaller"
                " training.learning_rate"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())

    def weights(self) -> Vector:
        return self.flat.join(self._ups)

    def adopt(self, weights: Vector) -> None:
        with torch.no_grad():
            for name, part in self.flat.split(weights).items():
                self._ups[name].copy_(part)

    def forget(self) -> None:
        """What the optimizer remembers."""
        self._optimizer.state.clear()

    def loss_of(self, weights: Vector, rows: Sequence[int]) -> float:
        """The mean loss over these sequences with other weights."""
        mine = self.weights()
        self.adopt(weights)
        try:
            return self.loss(rows)
        finally:
            self.adopt(mine)

    def loss(self, rows: Sequence[int]) -> float:
        """The mean loss over these sequences, in batches."""
        total, size = 0.0, self._training.batch
        with torch.no_grad():
            for at in range(0, len(rows), size):
                some = rows[at : at + size]
                total += float(self._loss(some)) * len(some)
        return total / len(rows)

    def save(self, folder: Path) -> None:
        """As PEFT reads it. Raises UserError."""
        self._model.save_adapter(folder)

    def carried(self) -> dict[str, Vector]:
        """Weights and moments, to go on after a stop."""
        found = {"weights": self.weights()}
        state = self._optimizer.state
        if state:
            for moment in _MOMENTS:
                kept = {name: state[up][moment] for name, up in self._ups.items()}
                found[moment] = self.flat.join(kept)
            first = state[self._ups[self.flat.names[0]]]
            found["step"] = first["step"].reshape(1).float().clone()  # it goes on counting
        return found

    def carry_on(self, kept: dict[str, Vector]) -> None:
        """Raises UserError for what is not this run's."""
        sizes = {name: 1 if name == "step" else self.flat.count for name in kept}
        if "weights" not in kept or any(len(kept[name]) != sizes[name] for name in kept):
            raise UserError("a checkpoint of another adapter")
        self.adopt(kept["weights"])
        if "step" not in kept:
            return
        parts = {moment: self.flat.split(kept[moment].clone()) for moment in _MOMENTS}
        for name, up in self._ups.items():
            state = self._optimizer.state[up]
            state["step"] = kept["step"][0].clone()
            for moment in _MOMENTS:
                state[moment] = parts[moment][name].clone()

    def _loss(self, rows: Sequence[int]) -> Tensor:
        ids = self._windows.rows(rows)
        logits = self._model(ids)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), self.labels(ids[:, 1:]).flatten())


def _named(lora: LowRank, ups: Sequence[nn.Parameter]) -> dict[str, nn.Parameter]:
    return {f"{place.module}.lora_B": up for place, up in zip(lora.places, ups, strict=True)}
