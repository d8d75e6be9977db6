"""Weights by single bytes: equal to the bit in any order, and a real model learns by them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError, UserError
from potluck.node.compute.average.flat import Flat
from potluck.node.compute.demo.network import Llama, Shape
from potluck.node.compute.scalar import (
    TOTAL,
    Loss,
    ScalarWeights,
    Scale,
    check_base,
    loss_over,
    signs,
)
from potluck.node.compute.snapshot import Snapshot
from potluck.swarm.run.scalars import FIRST, Log, Page, name_of, sign_page
from potluck.swarm.run.seeds import Change, Rules, code_of

RUN = bytes(range(32))
RULES = Rules(RUN, directions=2, least=2, epoch_rounds=16)
SCALE = Scale(step=0.1, probe=1e-2, grain=1e-3)


def test_signs_are_those_on_file_half_of_each_and_a_prefix_of_longer_ones() -> None:
    found = signs(RULES.seed(3, 1), 100_000)
    assert "".join("-+"[one > 0] for one in found[:48].tolist()) == SIGNS
    assert found.unique().tolist() == [-1, 1] and abs(float(found.float().mean())) < 0.01
    for count in (1, 7, 8, 9, 512, 99_999):
        assert torch.equal(signs(RULES.seed(3, 1), count), found[:count])


SIGNS = "++-+++-++------+----+-+++++----++++++-++-+++----"


def test_directions_are_nearly_at_right_angles() -> None:
    seeds = [RULES.seed(round_, one) for round_ in range(8) for one in (0, 1)]
    rows = torch.stack([signs(seed, 4096) for seed in seeds])
    cosines = (rows.float() @ rows.float().t() / 4096).fill_diagonal_(0)
    assert float(cosines.abs().max()) < 0.08  # five deviations


def test_any_order_of_changes_gives_equal_weights_to_the_bit() -> None:
    dice, base = random.Random(1), torch.randn(1001)
    changes = [Change(n // 2, n % 2, dice.randint(-(10**8), 10**8)) for n in range(200)]
    changes += [Change(5, 0, 77), Change(5, 0, -77)]
    found = []
    for _ in range(3):
        weights = ScalarWeights(base, RULES, SCALE)
        weights.apply(dice.sample(changes, len(changes)))
        found.append(weights.weights())
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert not torch.equal(found[0], base)


def test_a_slope_is_the_derivative_along_the_signs() -> None:
    base, target = torch.randn(64), torch.randn(64)
    weights = ScalarWeights(base, RULES, SCALE)
    along = signs(RULES.seed(7, 1), 64).double()
    wanted = float(((base - target).double() * along).sum())

    def loss(at: Tensor) -> float:
        return float((at - target).double().square().sum() / 2)

    assert weights.slope(base, loss, 7, 1) == pytest.approx(wanted, abs=1e-3)
    assert torch.equal(weights.weights(), base), "measuring moves nothing"
    assert code_of(weights.slope(base, lambda at: float("inf"), 7, 1), 1.0) == -128


def test_a_snapshot_is_of_the_rounds_before_it_alone() -> None:
    base, first, second = torch.randn(99), Change(7, 1, 5000), Change(16, 0, -900)
    weights, wanted = (ScalarWeights(base, RULES, SCALE) for _ in range(2))
    weights.apply([first, second])
    wanted.apply([first])
    taken = weights.snapshot(16, [second])
    assert taken.epoch == 1 and torch.equal(taken.tensors[TOTAL], wanted.total)
    other = ScalarWeights(base, RULES, SCALE)
    other.begin(taken)
    other.apply([second])
    assert torch.equal(other.weights(), weights.weights())


def test_a_snapshot_of_something_else_is_refused() -> None:
    weights = ScalarWeights(torch.zeros(8), RULES, SCALE)
    for bad in (torch.zeros(7, dtype=torch.int64), torch.zeros(8)):
        with pytest.raises(RemoteError, match="other weights"):
            weights.begin(Snapshot(RUN, 0, 0, {TOTAL: bad}))
    for base in (torch.zeros(2, 2), torch.zeros(2).double(), torch.tensor([float("nan")])):
        with pytest.raises(UserError):
            check_base(base)


# ---- a real small model


class Learner:
    """A small Llama that had learned which token follows which, until its norms were damaged: their
    160 numbers are to be learned anew."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        shape = Shape(64, 32, 2, heads=2, kv_heads=1, head_width=16, inner_width=48, context=32)
        self.model = Llama(shape)
        follows = torch.randperm(64)
        tokens = torch.randint(64, (256, 16))
        for at in range(1, 16):
            sure = torch.rand(256) < 7 / 8
            tokens[sure, at] = follows[tokens[sure, at - 1]]
        self.train, self.held_out = tokens[:192], tokens[192:]
        for step in range(120):  # by the signs of gradients: Bernstein et al., 2018
            self._loss(self.train[step % 6 * 32 :][:32]).backward()
            with torch.no_grad():
                for one in self.model.parameters():
                    one -= 0.01 * (1 - step / 120) * one.grad.sign()
                    one.grad = None
        self.model.requires_grad_(False)
        self._parameters = {n: p for n, p in self.model.named_parameters() if "norm" in n}
        self.healthy = self.loss(self.held_out)(Flat.of(self._parameters).join(self._parameters))
        for one in self._parameters.values():
            one.mul_(0.2 + 1.6 * torch.rand(one.shape))
        self.flat = Flat.of(self._parameters)
        self.base = self.flat.join(self._parameters)

    def _loss(self, ids: Tensor) -> Tensor:
        logits = self.model(ids[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def loss(self, ids: Tensor) -> Loss:
        return loss_over(self.model, self._parameters, ids)


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner()


@dataclass
class Member:
    """One peer, and what is on its way to it: when, and what."""

    key: IdentityKey
    log: Log
    weights: ScalarWeights
    last: Page | None = None
    coming: list[tuple[int, bytes]] = field(default_factory=list)

    def hear(self, until: float) -> None:
        """What is behind a gap is heard again, as a pull would bring it again."""
        due = sorted(one for one in self.coming if one[0] <= until)
        heard = [one for one in due if self._hear(one[1])]
        self.coming = [one for one in self.coming if one not in heard]

    def _hear(self, raw: bytes) -> bool:
        merged = self.log.merge(raw)
        self.weights.apply(merged.changes)
        return merged.new

    def say(self, round_: int, code: int) -> bytes:
        before = FIRST if self.last is None else name_of(self.last)
        self.last = Page(RUN, round_, before, bytes((code & 255,)))
        raw = sign_page(self.key, self.last)
        self.weights.apply(self.log.merge(raw).changes)
        return raw


def run_together(
    learner: Learner, rounds: int, peers: int, rules: Rules, liars: int = 0
) -> tuple[list[Member], list[bytes]]:
    """Peers who measure on data of their own, and hear of each other one to three rounds late."""
    dice, said = random.Random(5), []
    members = [
        Member(IdentityKey.from_bytes(bytes((n + 1,)) * 32), Log(rules),
               ScalarWeights(learner.base, rules, SCALE))
        for n in range(peers)
    ]  # fmt: skip
    for round_ in range(rounds):
        for number, member in enumerate(members):
            member.hear(round_)
            direction = rules.direction(member.key.peer_id, round_)
            drawn = torch.Generator().manual_seed(97 * round_ + number)
            ids = learner.train[torch.randint(192, (8,), generator=drawn)]
            here = member.weights.weights()
            slope = member.weights.slope(here, learner.loss(ids), round_, direction)
            code = code_of(slope, SCALE.grain)
            if number < liars:
                code = -127 if code > 0 else 127  # as loud as a byte can, the other way
            said.append(member.say(round_, code))
            for other in members:
                if other is not member:
                    other.coming.append((round_ + dice.randint(1, 3), said[-1]))
    for member in members:
        while member.coming:
            member.hear(float("inf"))
    return members, said


def test_a_real_model_learns_by_a_byte_a_step_and_all_end_with_equal_bits(learner: Learner) -> None:
    rules = Rules(RUN, least=1, epoch_rounds=512)
    members, said = run_together(learner, 50, 4, rules)
    ended = [member.weights.weights() for member in members]
    assert all(torch.equal(one, ended[0]) for one in ended)
    loss = learner.loss(learner.held_out)
    damage = loss(learner.base) - learner.healthy
    assert loss(ended[0]) < loss(learner.base) - damage / 4

    log, joiner = Log(rules), ScalarWeights(learner.base, rules, SCALE)
    for raw in said:
        joiner.apply(log.merge(raw).changes)
    assert torch.equal(joiner.weights(), ended[0]), "from the log alone"


def test_liars_as_loud_as_a_byte_can_be_are_left_out_where_a_plain_mean_is_lost(
    learner: Learner,
) -> None:
    loss = learner.loss(learner.held_out)
    for trim, learns in ((35, True), (0, False)):
        rules = Rules(RUN, least=1, trim_percent=trim, epoch_rounds=512)
        members, _ = run_together(learner, 16, 5, rules, liars=1)
        assert (loss(members[-1].weights.weights()) < loss(learner.base)) == learns
