"""The laboratory: it computes what it says, its dice are fair, and its table is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from potluck.cli.averaging_plot import draw
from potluck.cli.main import main
from potluck.errors import UserError
from potluck.node.bench import averages
from potluck.node.compute.average.band import Band, Diet
from potluck.node.compute.average.lab import SPREAD, Found, Lab, Trial, run, study
from potluck.node.compute.average.reading import (
    HELD_OUT_ONE_IN,
    PACKAGES,
    WINDOW_TOKENS,
    Text,
    read_text,
)
from potluck.node.compute.demo.network import Block, Shape, rotary_table

SMALL = Shape(vocabulary=24, width=16, blocks=1, heads=2, kv_heads=1, head_width=8, inner_width=24)
WINDOWS = 60
QUICK = Trial(peers=8, asked=5, rounds=3, steps=4, tokens=8, rate=0.05)


@pytest.fixture(scope="module")
def text() -> Text:
    """A random block, and tokens that a low-rank change of it can learn."""
    torch.manual_seed(3)
    block = Block(SMALL).requires_grad_(False)
    tokens = WINDOWS * WINDOW_TOKENS
    hidden, mixed = torch.randn(tokens, SMALL.width), torch.randn(tokens, SMALL.width)
    package = torch.arange(tokens) % len(PACKAGES)
    after = (mixed[:, :2].sum(1) > 0).long() + 2 * (package % 2)
    part = torch.arange(tokens) // len(PACKAGES) % HELD_OUT_ONE_IN
    head = torch.randn(SMALL.vocabulary, SMALL.width)
    return Text(hidden, mixed, after, package, part.clamp(max=3) % 3, block, nn.RMSNorm(16), head)


def diet(spread: float | None = SPREAD) -> Diet:
    return Diet(peers=4, tokens=8, rate=0.05, spread=spread, seed=5)


def test_the_frozen_part_and_the_trained_part_are_the_demo_model() -> None:
    """What was computed once, and then the adapter at zero: the whole block's own loss."""
    found = read_text(2, ["typer"])
    assert len(found.after) == 2 * WINDOW_TOKENS
    band = Band(replace(diet(), peers=1), found)
    places = torch.arange(WINDOW_TOKENS)
    cos, sin = rotary_table(Shape(), WINDOW_TOKENS)
    with torch.no_grad():
        stream = found.block(found.hidden[:WINDOW_TOKENS].unsqueeze(0), cos, sin)[0]
        logits = found.norm(stream) @ found.head.T
    expected = nn.functional.cross_entropy(logits, found.after[:WINDOW_TOKENS])
    torch.testing.assert_close(band.losses(band.weights(), places)[0], expected)
    assert float(expected) < 6.5  # it reads English: ln 3072 is 8.03


def test_peers_side_by_side_learn_what_each_would_alone(text: Text) -> None:
    """The weights of the first two of four, where only they are computed."""
    four, two = Band(diet(), text), Band(diet(), text)
    four.learn(3, 4)
    two.learn(3, 2)
    torch.testing.assert_close(four.weights()[:2], two.weights()[:2])
    assert float(two.weights()[2:].abs().max()) == 0.0
    assert float(four.weights()[2:].abs().max()) > 0.0


def test_the_gradient_is_autograds(text: Text) -> None:
    band = Band(diet(), text)
    band.learn(1, 4)  # away from zero
    places = torch.arange(32).reshape(4, 8)
    ups = [part.up for part in band.parts]
    loss = band._losses(ups, places, text.after[places]).sum()
    mine = torch.autograd.grad(loss, ups)
    step = 1e-2
    for up, grad in zip(ups, mine, strict=True):
        direction = grad / grad.norm()
        ends: list[Tensor] = []
        for sign in (1, -1):
            moved = [one + sign * step * direction if one is up else one for one in ups]
            with torch.no_grad():
                ends.append(band._losses(moved, places, text.after[places]).sum())
        slope = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(slope, grad.norm(), rtol=2e-2, atol=1e-4)


def test_learning_makes_the_loss_smaller_and_flipped_labels_do_not(text: Text) -> None:
    band = Band(diet(None), text)
    held = text.tokens(2)
    before = band.losses(band.weights(), held)
    band.learn(20, 4, flipped=1)
    after = band.losses(band.weights(), held)
    assert bool((after[:3] < before[:3]).all())
    assert float(after[3]) > float(before[3])


def test_uneven_text_is_of_few_packages_and_even_text_of_all(text: Text) -> None:
    shares = {}
    for spread in (SPREAD, None):
        kinds = text.package[Band(diet(spread), text).own]
        largest = [float(torch.bincount(one).max()) / len(one) for one in kinds]
        shares[spread] = sum(largest) / len(largest)
    assert shares[None] < 0.2 < 0.3 < shares[SPREAD]


def test_weights_that_are_put_are_the_weights(text: Text) -> None:
    band = Band(diet(), text)
    wanted = torch.randn(3, sum(band.sizes))
    band.put(wanted)
    assert torch.equal(band.weights()[:3], wanted)


def test_the_same_seed_is_the_same_run_and_another_is_not(text: Text) -> None:
    assert torch.equal(run(QUICK, text), run(QUICK, text))
    assert not torch.equal(run(QUICK, text), run(replace(QUICK, seed=2), text))


@pytest.mark.parametrize("attack", ["sign flip", "label flip", "withheld"])
def test_honest_dice_fall_alike_whatever_liars_do(text: Text, attack: str) -> None:
    """After the first inner steps the honest stand where they stand without liars."""
    clean, attacked = Lab(QUICK, text), Lab(replace(QUICK, attack=attack, share=0.25), text)
    for lab in (clean, attacked):
        lab.band.learn(4, lab.honest + lab.flipped, lab.flipped)
    torch.testing.assert_close(clean.band.weights()[:6], attacked.band.weights()[:6])


def test_sign_flips_undo_a_mean_and_not_what_is_judged(text: Text) -> None:
    flipped = replace(QUICK, attack="sign flip", share=0.25, spread=None)
    found = {one.trial.rule: one for one in study([flipped, replace(flipped, rule="mean")], text)}
    assert found["judged"].ratio < 1.1 < 1.5 < found["mean"].ratio


def test_a_clean_run_is_computed_once_and_the_same_peers_are_compared(
    text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight the clean run's worst is the last, who is a liar in the second trial."""
    ran: list[Trial] = []

    def quick(trial: Trial, _: Text) -> Tensor:
        ran.append(trial)
        return len(ran) * torch.arange(1.0, 1.0 + trial.peers - trial.liars)

    monkeypatch.setattr("potluck.node.compute.average.lab.run", quick)
    wanted = [QUICK.clean, replace(QUICK, attack="echo", share=0.25), QUICK]
    found = list(study(wanted, text))
    assert ran == wanted
    assert [one.worst for one in found] == [8.0, 12.0, 24.0]
    assert [one.ratio for one in found] == [1.0, 2.0, 3.0]


def some(rule: str, attack: str = "echo", share: float = 0.2, ratio: float = 1.5) -> Found:
    return Found(Trial(rule, attack, share), 4.0, 3.0, ratio, 1.0)


def test_trials_are_every_combination_and_each_without_liars() -> None:
    found = averages.trials(["mean", "judged"], ["echo"], [0.1, 0.3], ["uneven", "even"])
    assert len(found) == len(set(found)) == 2 * (2 + 4)
    assert {one.spread for one in found} == {SPREAD, None}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ((["krum"], ["echo"], [0.1], ["even"]), "no average is called 'krum'"),
        ((["mean"], ["bribe"], [0.1], ["even"]), "no attack is called 'bribe': there are sign"),
        ((["mean"], ["echo"], [0.1], ["odd"]), "no deal is called 'odd'"),
        ((["mean"], ["echo"], [0.5], ["even"]), "below 0.5"),
    ],
)
def test_what_is_not_there_is_told(
    told: tuple[list[str], list[str], list[float], list[str]], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        averages.trials(*told)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """Trials that were computed, in a laboratory that is quick."""
    seen: list[Trial] = []

    def quick(wanted: list[Trial], _: object) -> Iterator[Found]:
        for trial in wanted:
            seen.append(trial)
            yield Found(trial, 4.0, 3.0, 1.25, 1.0)

    monkeypatch.setattr(averages, "read_text", lambda: None)
    monkeypatch.setattr(averages, "study", quick)
    return seen


def test_a_table_that_was_stopped_goes_on(tmp_path: Path, computed: list[Trial]) -> None:
    wanted = averages.trials(["mean"], ["echo", "noise"], [0.1], ["even"])
    kept = tmp_path / "table.json"
    first = averages.bench_averages(wanted, kept)
    next(first)
    next(first)
    first.close()
    found = list(averages.bench_averages(wanted, kept))
    assert computed == wanted
    assert [one.trial for one in found] == wanted
    assert list(averages.read_found(kept)) == wanted


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"trial": {}}]', '[{"trial": {"a": 1}}]'])
def test_a_file_that_is_no_table_is_told_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"table\.json is no table"):
        averages.read_found(path)


def test_the_worst_is_that_of_this_rule_and_share() -> None:
    found = [some("judged", "none", 0.0, 9.0), some("judged"), some("mean", ratio=7.0)]
    found += [some("judged", "noise", ratio=1.6), some("judged", share=0.1, ratio=3.0)]
    assert averages.worst(found, "judged", 0.2) == found[3]
    assert averages.worst(found, "median", 0.2) is None


def test_the_command_prints_a_table_keeps_and_draws_it(
    tmp_path: Path, computed: list[Trial], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    kept, drawn = tmp_path / "table.json", tmp_path / "table.png"
    told = ["bench", "average", "--attacks", "echo", "--keep", str(kept), "--plot", str(drawn)]
    assert main(told) == 0
    shown = capsys.readouterr().out
    assert "JUDGED" in shown
    assert "1.2500" in shown
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert main([*told[:-2], "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(computed) == 4


def test_nothing_is_drawn_of_clean_runs_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match="nothing to draw"):
        draw([some("judged", "none", 0.0)], str(tmp_path / "table.png"))
