"""One peer's own steps: texts to windows, gradients here, weights out and in, and after a stop."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from potluck.errors import RemoteError, TransportError, UserError
from potluck.node.compute.average.flat import Flat
from potluck.node.compute.average.outer import PULL
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.mixing import Mixer
from potluck.node.compute.nearby import Nearby
from potluck.node.compute.tuning import Tuner
from potluck.node.compute.voice import Voice
from potluck.node.compute.windows import Windows, cut
from potluck.node.library import DEMO_FOLDER
from potluck.node.runs.texts import documents, read_texts
from potluck.swarm.run.plan import Adapter, Training

TEXT = "The function returns a list of the names that are defined in this module. " * 24
ADAPTER = Adapter(4, 8.0, ("q_proj", "down_proj"), (5, 7))


@cache
def voice() -> Voice:
    return Voice.of(open_checkpoint(DEMO_FOLDER))


@cache
def nearby() -> Nearby:
    return Nearby(open_checkpoint(DEMO_FOLDER))


def windows(tokens: int = 16) -> Windows:
    return cut(voice().text, [("tales", [TEXT])], tokens)


def tuner(seed: int = 3, **said: float) -> Tuner:
    training = Training(batch=2, learning_rate=1e-2, **said)  # type: ignore[arg-type]
    return Tuner(voice(), nearby(), ADAPTER, training, windows(), seed=seed)


def trained(steps: int = 3) -> Tuner:
    one = tuner()
    for step in range(steps):
        one.step((2 * step, 2 * step + 1), 1e-2)
    return one


def test_the_start_is_the_seeds_and_only_b_is_trained() -> None:
    torch.manual_seed(77)
    before = torch.get_rng_state()
    one = tuner()
    assert bool((torch.get_rng_state() == before).all())  # the caller's dice are left alone
    assert one.start == tuner().start != tuner(seed=4).start
    assert one.flat.sizes == (192 * 4, 192 * 4, 192 * 4, 192 * 4)
    assert not one.weights().any()
    first = one.loss(range(8))
    one = trained(8)
    assert one.weights().any() and one.loss(range(8)) < first


def test_the_gradient_is_that_of_the_loss() -> None:
    """Along it the loss changes by its square, as far as two steps of 1e-3 tell it: 2 %."""
    one = trained(1)
    weights, rows = one.weights(), (3, 4)
    one._loss(rows).backward()
    slope = one.flat.join({name: up.grad for name, up in one._ups.items()})  # type: ignore[misc]
    way = 1e-2 * slope / slope.norm()
    rise = one.loss_of(weights + way, rows) - one.loss_of(weights - way, rows)
    assert rise == pytest.approx(2e-2 * float(slope.norm()), rel=0.02)
    assert torch.equal(one.weights(), weights)  # the question changed nothing


def test_a_step_that_failed_half_way_leaves_nothing_in_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its gradient was there, and its step was not taken: then it is taken again."""
    one, other = tuner(), tuner()
    with monkeypatch.context() as broken:
        broken.setattr(torch.nn.utils, "clip_grad_norm_", fail)
        with pytest.raises(TransportError):
            one.step((1, 2), 1e-2)
    for each in (one, other):
        each.step((3, 4), 1e-2)
    assert torch.equal(one.weights(), other.weights())


def fail(*_: object) -> None:
    raise TransportError("nobody is there")


def test_after_a_stop_the_steps_go_on_as_if_there_had_been_none() -> None:
    one, other = trained(), tuner()
    other.carry_on({name: kept.clone() for name, kept in one.carried().items()})
    assert torch.equal(one.weights(), other.weights())
    for each in (one, other):
        each.step((5, 6), 1e-3)
    assert torch.equal(one.weights(), other.weights())


def test_a_checkpoint_of_another_adapter_is_refused() -> None:
    kept = trained().carried()
    with pytest.raises(UserError, match="another adapter"):
        tuner().carry_on({**kept, "exp_avg": kept["exp_avg"][:-1]})
    with pytest.raises(UserError, match="another adapter"):
        tuner().carry_on({})


def test_the_same_text_in_another_file_is_the_same_data(tmp_path: Path) -> None:
    jsonl, plain = tmp_path / "a.jsonl", tmp_path / "b.txt"
    jsonl.write_text(json.dumps({"body": TEXT}) + "\n", encoding="utf-8")
    plain.write_text(TEXT, encoding="utf-8")
    found = [cut(voice().text, documents([path], "body"), 16) for path in (jsonl, plain)]
    assert found[0].files == found[1].files and torch.equal(found[0].ids, found[1].ids)
    longer = cut(voice().text, documents([jsonl, plain], "body"), 16)
    assert len(longer) == 2 * len(found[0]) and longer.files == 2 * found[0].files
    assert cut(voice().text, [("x", [TEXT + "!"])], 16).files != found[0].files


def test_too_little_text_is_named() -> None:
    with pytest.raises(UserError, match=r"short.txt: has \d+ tokens, fewer than the 512"):
        cut(voice().text, [("short.txt", ["a few words"])], 512)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "x"}\n\n{"text": "y"}\n', "line 2 is empty"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'["x"]\n', "line 1 is no JSON object"),
        ("a.jsonl", b'{"body": "x"}\n', 'line 1 has no text under "text"'),
        ("a.jsonl", b'{"text": 3}\n', 'line 1 has no text under "text"'),
        ("a.jsonl", b'{"text": " "}\n', 'line 1 has an empty text under "text"'),
        ("a.jsonl", b"[\n" * 9, "line 5 is not JSON, and 4 more lines are as bad"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.txt", b"fine\n\xff\xfe\n", "line 2 is not UTF-8"),
        ("a.txt", b" \n", "is empty"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as told:
        read_texts(tmp_path / name, "text")
    assert str(tmp_path / name) in str(told.value) and "\n" not in str(told.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_texts(tmp_path / "none.txt", "text")


FLAT = Flat(("a", "b"), ((2, 3), (4,)))


def mixer(aggregator: str = "ours", bits: int = 8) -> Mixer:
    return Mixer(FLAT, torch.ones(10), rule=aggregator, asked=3, liars=1, bits=bits)


@pytest.mark.parametrize(("bits", "apart"), [(32, 1e-6), (8, 0.01), (4, 0.2)])
def test_weights_come_back_as_they_were_sent_but_for_the_rounding(bits: int, apart: float) -> None:
    weights = torch.linspace(0, 2, 10)
    one = mixer(bits=bits)
    raw = one.encode(weights)
    assert len(raw) == one.size
    assert float((one.decode(raw) - weights).abs().max()) <= apart


def test_what_does_not_fit_or_has_diverged_is_refused() -> None:
    one = mixer(bits=32)
    with pytest.raises(RemoteError):
        one.decode(one.encode(torch.ones(10))[:-4])
    with pytest.raises(UserError, match="diverged"):
        one.encode(torch.full((10,), torch.inf))
    with pytest.raises(UserError, match="no average is called 'best': there are mean, median"):
        mixer("best")


def test_an_exchange_is_noloco_on_what_the_rule_gives() -> None:
    """Two of three answered: their mean with the own weights, half of which is the shift; then
    momentum of what was gained since the anchor, and half of it again the next time."""
    one = mixer("mean", bits=32)
    weights, other = torch.full((10,), 2.0), torch.full((10,), 3.5)
    outer = one.mixed(weights, [other, other])
    torch.testing.assert_close(one.adopt(outer), torch.full((10,), 1 + PULL * (3.0 - 1)))
    again = one.adopt(one.alone(one.anchor))
    torch.testing.assert_close(again, torch.full((10,), 1 + 2 * PULL + 0.5 * 2 * PULL))
    torch.testing.assert_close(one.back().momentum, torch.zeros(10))


def test_where_nobody_is_thought_to_lie_the_whole_way_is_gone() -> None:
    one = Mixer(FLAT, torch.ones(10), rule="mean", asked=1, liars=0, bits=32)
    outer = one.mixed(torch.full((10,), 2.0), [torch.full((10,), 4.0)])
    torch.testing.assert_close(one.adopt(outer), torch.full((10,), 3.0))


def test_nobody_drags_a_peer_further_than_twice_its_own_motion_of_each_group() -> None:
    one = mixer()
    weights = torch.ones(10)
    weights[0] += 0.1  # of the first group alone: the second has not moved
    lie = torch.full((10,), 1e6)
    shift = (one.mixed(weights, [lie, lie, lie]).anchor - one.anchor) / PULL - (weights - 1)
    assert float(shift[:6].norm()) <= 2 * 0.1 + 1e-4
    assert not shift[6:].any()


def test_a_newcomer_begins_in_the_middle_of_those_it_asked() -> None:
    one = mixer()
    told = [torch.full((10,), value) for value in (1.0, 2.0, 1e9)]
    torch.testing.assert_close(one.adopt(one.middle(told)), torch.full((10,), 2.0))
    with pytest.raises(RemoteError):
        one.middle([])


def test_an_exchange_goes_on_after_a_stop() -> None:
    one, other = mixer("mean"), mixer("mean")
    one.adopt(one.mixed(torch.full((10,), 2.0), []))
    other.carry_on(one.carried())
    next_one, next_other = (each.alone(torch.full((10,), 3.0)) for each in (one, other))
    assert torch.equal(next_one.anchor, next_other.anchor)
    with pytest.raises(UserError):
        other.carry_on({"anchor": torch.ones(3), "momentum": torch.ones(3)})
