"""What `potluck bench wan` makes of a run: figures beside the formula's, and which bars hold."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from potluck.errors import UserError
from potluck.node.bench.drafts import Recited
from potluck.node.bench.laboratory import CONTEXT, Wanted, check_way, write_model
from potluck.node.bench.wan import (
    MEASURED,
    Answered,
    Answers,
    Measured,
    bars,
    bench_wan,
    rows_of,
    told,
)
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.drafting import Guessed
from potluck.node.testnet import roads
from potluck.swarm.wan import Stage, Way, first_token_s, rate, step_s

WAY = Way((Stage(0.03, ((1, 0.002), (128, 0.02))),) * 4, 768, overhead_s=0.001, client_s=0.001)


def recited(per_s: float, guessed: Guessed | None = None) -> Recited:
    return Recited([5] * 11, [1.0, *[1 / per_s] * 10], guessed, 128)


def answers(plain: float, times: float, *, first: float = 1.0) -> Answers:
    """plain, first: over what the formula says; times: as fast with guesses, which are right in
    seven of eight cases and three a step."""
    plain_per_s = plain / step_s(WAY)
    guessed = Guessed(sent=300, accepted=210, steps=100, missed=30, widths=Counter({3: 100}))
    one = Answered(recited(plain_per_s), recited(plain_per_s * times, guessed))
    return Answers(dict.fromkeys(MEASURED, one), first * first_token_s(WAY, 2048), 128)


TIMES = rate(WAY, 210 / 240, 3) * step_s(WAY)  # by the formula
SIXTY = Wanted(rtt_s=0.06)


@pytest.mark.parametrize(
    ("found", "bar", "holds"),
    [
        (answers(0.81, TIMES), "1", True),
        (answers(0.79, TIMES), "1", False),
        (answers(1.0, TIMES), "2", True),
        (answers(1.0, TIMES * 0.84), "2", False),
        (answers(1.0, 2.4), "2", False),
        (answers(1.0, TIMES, first=1.29), "5", True),
        (answers(1.0, TIMES, first=1.31), "5", False),
    ],
)
def test_a_bar_holds_or_does_not(found: Answers, bar: str, holds: bool) -> None:
    """Bar 2 wants 2.5 times on code edits, and all within 15 % of the formula."""
    assert TIMES > 2.5
    assert bars(found, Measured(WAY, 70), SIXTY)[bar] is holds


def test_a_bar_is_asked_of_its_own_run_alone() -> None:
    found = answers(1.0, TIMES)
    assert bars(found, Measured(WAY, 70), Wanted(rtt_s=0.1))["2"] is None
    near = Wanted(hops=2, rtt_s=0.02)
    assert bars(found, Measured(WAY, 70), SIXTY)["4"] is None
    assert bars(found, Measured(WAY, 500), near)["4"] is None, "a model that is faster alone"
    assert bars(found, Measured(WAY, 77), near)["4"] is False
    quick = Answers({"chat": Answered(recited(17.5), recited(25.5))}, None, 0)
    assert bars(quick, Measured(WAY, 77), near)["4"] is True
    assert bars(quick, Measured(WAY, 77), near)["5"] is None


def test_what_is_told_is_json_and_a_line_for_each_kind() -> None:
    found = told(answers(0.9, TIMES), Measured(WAY, 70), SIXTY)
    assert json.loads(json.dumps(found)) == found
    lines = rows_of({"ways": {"star": found, "chain": found}})
    assert [line[:2] for line in lines] == [
        (kind, shape) for kind in MEASURED for shape in ("star", "chain")
    ]
    assert found["kinds"]["chat"]["of_formula"] == 0.9  # type: ignore[index]


def test_what_cut_through_brings_stands_beside_its_formula() -> None:
    """Twice as long where each chunk waits for the one before to be out."""
    found = answers(1.0, TIMES)
    assert found.first_s is not None
    first = told(replace(found, stored_s=2 * found.first_s), Measured(WAY, 70), SIXTY)[
        "first_token"
    ]
    assert isinstance(first, dict) and first["times"] == 2.0
    assert first["stored_and_forwarded_ms"] == pytest.approx(2 * first["ms"], abs=0.2)


def test_a_way_is_one_of_two_or_both() -> None:
    assert Wanted(way=check_way("both")).shapes == ("star", "chain")
    assert Wanted(way=check_way("chain")).shapes == ("chain",)
    with pytest.raises(UserError, match="no way ring: give star or chain or both"):
        check_way("ring")


def test_the_shipped_model_is_told_to_read_long_prompts(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "demo")
    spec = open_checkpoint(tmp_path / "model").spec
    assert (spec.context, spec.blocks) == (CONTEXT, 8)
    with pytest.raises(UserError, match="no shape huge"):
        write_model(tmp_path / "other", "huge")


def test_loss_without_networks_and_more_hops_than_blocks_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(roads, "why_not", lambda: "network namespaces need root")
    with pytest.raises(UserError, match=r"--loss needs .* need root"):
        trio.run(bench_wan, Wanted(loss=0.01))
    with pytest.raises(UserError, match="9 hops: this model has 8 blocks"):
        trio.run(bench_wan, Wanted(hops=9))
    with pytest.raises(UserError, match="each answer is plain once"):
        trio.run(bench_wan, Wanted(draft="off"))


def test_every_shape_of_a_random_model_is_told_of() -> None:
    from potluck.cli.bench import SHAPES_SAID
    from potluck.node.compute.shapes import SHAPES

    assert SHAPES_SAID.replace(" or ", ", ").split(", ") == sorted(
        SHAPES, key=lambda one: SHAPES[one]
    )
