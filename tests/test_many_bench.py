"""What `potluck bench wan --sessions` makes of tokens that came: of those that came while all were
at it."""

from __future__ import annotations

import json

import pytest

from potluck.errors import UserError
from potluck.node.bench.laboratory import Wanted
from potluck.node.bench.many import bar_6, many_rows, rate_in, while_all

SIXTY = Wanted(hops=4, rtt_s=0.06)


def test_tokens_count_while_all_are_at_it() -> None:
    """The second begins at 1.0, the first ends at 3.0: of ten tokens five came in between."""
    times = [[0.0, 1.0, 2.0, 3.0], [1.0, 1.5, 2.5, 3.0, 3.5, 4.0]]
    assert while_all(times) == (1.0, 3.0)
    assert rate_in(times, 1.0, 3.0) == pytest.approx(5 / 2)


def test_answers_that_do_not_meet_are_no_measure() -> None:
    with pytest.raises(UserError, match="--tokens"):
        while_all([[0.0, 1.0], [1.0, 2.0]])


@pytest.mark.parametrize(
    ("wanted", "sessions", "share", "holds"),
    [
        (SIXTY, 16, 0.91, True),
        (SIXTY, 16, 0.89, False),
        (SIXTY, 8, 0.91, None),
        (Wanted(hops=4, rtt_s=0.1), 16, 0.91, None),
    ],
)
def test_bar_6_is_of_the_better_way(
    wanted: Wanted, sessions: int, share: float, holds: bool | None
) -> None:
    ways = {"star": {"of_capacity": 0.5}, "chain": {"of_capacity": share}}
    assert bar_6(wanted, sessions, ways) is holds  # type: ignore[arg-type]


def test_there_is_a_line_for_each_way() -> None:
    one = {"per_s": 9.0, "formula_per_s": 10.0, "of_capacity": 0.45, "alone_per_s": 4.0}
    found = {"sessions": 16, "capacity_per_s": 20.0, "ways": {"star": one, "chain": one}}
    lines = many_rows(json.loads(json.dumps(found)))
    assert lines[1] == ("chain", "16", "9.0", "10.0", "20.0", "45%", "4.0")
