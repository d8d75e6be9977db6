"""Issue F, bar 4 in group mode, as rows of the table of bars."""

from __future__ import annotations

from collections.abc import Iterator

from .row import Row

APART_MAX = 0.01
ROUNDS, KILLS = 8, 2


def f4_groups() -> Iterator[Row]:
    from .groups import Wanted, measure

    found = measure(8, Wanted(), ROUNDS, KILLS)
    equal, commits = found["rounds_with_equal_states"], found["commits"]
    yield Row(
        "F4",
        f"groups: survivors' states equal after every exchange; {KILLS} of 8 processes killed",
        f"{equal} of {ROUNDS} rounds equal, {commits} commits; "
        f"{found['sent_bytes_per_number']} bytes a number sent (formula "
        f"{found['formula_bytes_per_number']}), rounds of {found['round_s']} s, with a death "
        f"{found['round_with_a_death_s']} s (formula, bytes alone: {found['formula_s']} s)",
        equal == commits == ROUNDS,
        f"python -m integration.groups --rounds {ROUNDS} --kill {KILLS}",
    )


def f4_group_loss() -> Iterator[Row]:
    from .groups_loss import DEATHS, LATE, PEERS, measure

    calm, harmed = measure(12)
    apart = harmed["worst_loss"] / calm["worst_loss"] - 1
    yield Row(
        "F4",
        f"groups: loss with {DEATHS} of {PEERS} dead and {LATE} joined late, over undisturbed: "
        f"at most {APART_MAX:.0%} more",
        f"{harmed['worst_loss']:.4f} over {calm['worst_loss']:.4f}: {apart:+.2%}; "
        f"{harmed['rounds_with_equal_states']} of {harmed['rounds']} rounds equal",
        apart <= APART_MAX and harmed["rounds_with_equal_states"] == harmed["rounds"],
        "python -m integration.groups_loss",
    )
