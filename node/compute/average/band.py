"""All peers of a laboratory's run: their adapters, optimizers and text, computed side by side.

Each peer holds low-rank matrices (LoRA) on the products of the demo model's last block that come
after its attention. A is drawn from the public seed and the same for all; only B is trained, so
that the average of what is trained is that of the products (FFA-LoRA: Sun et al., 2024). All B of
one product are one tensor, [peers, out, rank].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from .attacks import flip_labels
from .reading import TO_TRAIN, Text

RANK: Final = 4
SCALE: Final = 8.0  # alpha / rank
BETAS: Final = (0.9, 0.95)  # DiLoCo's inner AdamW
TOKENS_OWNED: Final = 2048  # of each peer


@dataclass(frozen=True, slots=True)
class Diet:
    """What each peer reads. spread: Dirichlet's, of the packages' shares; None: all alike."""

    peers: int
    tokens: int  # a step and peer
    rate: float
    spread: float | None
    seed: int


class Band:
    """Peers 0 to `peers`, of which a run may compute the first few only."""

    def __init__(self, diet: Diet, text: Text) -> None:
        self.diet, self.text = diet, text
        public = torch.Generator().manual_seed(diet.seed)
        block = text.block
        products = (
            block.self_attn.o_proj,
            block.mlp.gate_proj,
            block.mlp.up_proj,
            block.mlp.down_proj,
        )
        self.parts = [Stacked(one, diet.peers, public) for one in products]
        self.sizes = [one.up[0].numel() for one in self.parts]
        self.dice = torch.Generator().manual_seed(diet.seed + 1)
        self.adam = torch.optim.AdamW([one.up for one in self.parts], diet.rate, BETAS)
        self.own = self._deal()

    def _deal(self) -> Tensor:
        """Each peer's tokens: [peers, TOKENS_OWNED]."""
        diet, text = self.diet, self.text
        packages = int(text.package.max()) + 1
        pools = [text.tokens(TO_TRAIN, number) for number in range(packages)]
        if diet.spread is None:
            shares = torch.ones(diet.peers, packages)
        else:
            alpha = torch.full((diet.peers, packages), diet.spread)
            shares = torch._sample_dirichlet(alpha, generator=self.dice)
        kinds = shares.multinomial(TOKENS_OWNED, replacement=True, generator=self.dice)
        at = torch.rand(kinds.shape, generator=self.dice)
        sizes = torch.tensor([len(pool) for pool in pools])
        begins = sizes.cumsum(0) - sizes
        return torch.cat(pools)[begins[kinds] + (at * sizes[kinds]).long()]

    def weights(self) -> Tensor:
        """All adapters: [peers, d]."""
        return torch.cat([one.up.detach().flatten(1) for one in self.parts], 1)

    def put(self, weights: Tensor) -> None:
        """weights: [some, d], of the first peers."""
        with torch.no_grad():
            for one, part in zip(self.parts, torch.split(weights, self.sizes, 1), strict=True):
                one.up[: len(weights)].copy_(part.reshape(-1, *one.up.shape[1:]))

    def learn(self, steps: int, peers: int, flipped: int = 0) -> None:
        """The inner steps of one round by the first `peers`; the last `flipped` of them learn lies.

        The dice fall for all peers, so that each reads the same whoever else takes part.
        """
        for _ in range(steps):
            picks = torch.randint(
                TOKENS_OWNED, (len(self.own), self.diet.tokens), generator=self.dice
            )
            self.step(self.own.gather(1, picks)[:peers], flipped)

    def step(self, places: Tensor, flipped: int = 0) -> None:
        """One inner step of the first peers, each on a row of tokens: [some, tokens]."""
        after = self.text.after[places]
        if flipped:
            after[-flipped:] = flip_labels(after[-flipped:], len(self.text.head))
        self.adam.zero_grad()
        loss = self._losses([one.up for one in self.parts], places, after).sum()
        torch.autograd.backward([loss])
        self.adam.step()

    def forget(self, peer: int | None = None) -> None:
        """What the optimizer remembers of a peer, or of all."""
        rows = slice(None) if peer is None else peer
        for state in self.adam.state.values():
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment][rows] = 0.0
            if peer is None:
                state["step"] = torch.zeros_like(state["step"])

    def losses(self, weights: Tensor, places: Tensor) -> Tensor:
        """weights: [some, d]; places: [tokens], the same for all, or [some, tokens]. -> [some]."""
        places = places.expand(len(weights), -1)
        shaped = zip(self.parts, torch.split(weights, self.sizes, 1), strict=True)
        ups = [part.reshape(-1, *one.up.shape[1:]) for one, part in shaped]
        with torch.no_grad():
            return self._losses(ups, places, self.text.after[places])

    def _losses(self, ups: list[Tensor], places: Tensor, after: Tensor) -> Tensor:
        """ups: the B of each product; places, after: [peers, tokens]. The mean of each: [peers]."""
        text, block = self.text, self.text.block
        peers = len(places)
        out, gate, wide, down = self.parts
        b_out, b_gate, b_wide, b_down = (one[:peers] for one in ups)
        stream = text.hidden[places] + out.product(text.mixed[places], b_out)
        normed = block.post_attention_layernorm(stream)
        inner = nn.functional.silu(gate.product(normed, b_gate)) * wide.product(normed, b_wide)
        ended = text.norm(stream + down.product(inner, b_down)).flatten(0, 1)
        losses: Tensor = _Loss.apply(ended, text.head, after.flatten())  # type: ignore[no-untyped-call]
        return losses.reshape(peers, -1).mean(1)


class Stacked:
    """A frozen product with one low-rank part for each peer."""

    def __init__(self, product: nn.Linear, peers: int, public: torch.Generator) -> None:
        out, into = product.weight.shape
        self.weight = product.weight.detach()
        self.down = torch.randn(RANK, into, generator=public) / into**0.5
        self.up = torch.zeros(peers, out, RANK, requires_grad=True)

    def product(self, x: Tensor, up: Tensor) -> Tensor:
        """x: [peers, tokens, into]; up: [peers, out, rank]."""
        low = nn.functional.linear(x, self.down)
        plain = nn.functional.linear(x, self.weight)
        return torch.baddbmm(plain, low, up.transpose(1, 2), alpha=SCALE)


class _Loss(torch.autograd.Function):
    """Cross-entropy behind a frozen head: its gradient is a by-product, no logits are kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, after: Tensor) -> Tensor:
        logits = hidden @ head.T
        rows = torch.arange(len(after))
        total = logits.logsumexp(1)
        losses = total - logits[rows, after]
        if ctx.needs_input_grad[0]:
            chances = logits.sub_(total.unsqueeze(1)).exp_()
            chances[rows, after] -= 1
            ctx.save_for_backward(chances @ head)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (by_hidden,) = ctx.saved_tensors
        return by_hidden * grads[0].unsqueeze(1), None, None
