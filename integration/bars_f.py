"""The bars of F, training on the same swarm: how each is measured, and when it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec

import trio

from .row import Row

APART_MAX = 1e-4
LOSSES_APART_MAX = 1e-3  # "coincide": AdamW makes of the last bits of a gradient near zero a step
STEPS, KILL_EVERY = 200, 20
PETALS_TOKENS_S = 639.0  # petals.md 5: tiny, two servers, four sequences of 64
TIMES_PETALS = 3.0
WORSE_MAX = {0.1: 1.01, 0.2: 1.01, 0.3: 1.02}  # by the share of liars
FAILS_MIN = 1.1
FAILS_UNDER = "sign flip", "constant"  # of the attacks: what a mean cannot bear
GUARDED, GUARDED_LIARS = 16, 7
PROMPTS, KILLS = 1000, 5
TIMES_IDLE = 1.25
LOGITS_APART_MAX = 1e-5  # relative, in fp32: sums are of another order


def f1_gradients() -> Iterator[Row]:
    from .training import measure

    found = measure(STEPS, KILL_EVERY)
    command = f"python -m integration.training --steps {STEPS} --kill-every {KILL_EVERY}"
    yield Row(
        "F1",
        f"gradients of soft prompts and LoRA over 3 stages apart from one process's: {APART_MAX:g}",
        f"{found['gradients_apart_max']:.2g} at most",
        found["gradients_apart_max"] <= APART_MAX,
        command,
    )
    yield Row(
        "F1",
        f"losses of {STEPS} steps, a node killed every {KILL_EVERY}: apart {LOSSES_APART_MAX:g}",
        f"{found['losses_apart_max']:.2g} at most, from {found['first_loss']:.3f} to "
        f"{found['last_loss']:.3f}; {found['killed']} killed, {found['pieces_resent']} pieces "
        "sent again",
        found["losses_apart_max"] <= LOSSES_APART_MAX,
        command,
    )


def f2_rate() -> Iterator[Row]:
    from potluck.node.bench.training import bench_train

    found = trio.run(bench_train)
    wanted = TIMES_PETALS * PETALS_TOKENS_S
    rate = float(str(found["tokens_per_s"]))
    yield Row(
        "F2",
        f"forward plus backward, tiny, 2 servers, 4 x 64: {wanted:.0f} tokens/s (Petals x 3)",
        f"{rate} tokens/s ({found['forward_ms_p50']} + {found['backward_ms_p50']} ms); with head "
        f"and loss {found['with_head_and_loss_tokens_per_s']}; {found['share_of_one_process']} of "
        "one process with one thread",
        rate >= wanted,
        "potluck bench train",
    )


def f3_gossip() -> Iterator[Row]:
    from .runs import FAST_EPOCHS, FAST_MBIT, NEAR, PAIRWISE, ROBUST, gossip, synchronous

    for name, wanted, wire_max in (("pairwise", PAIRWISE, 0.02), ("robust", ROBUST, 0.06)):
        found = gossip(wanted)
        start, beside = synchronous(wanted, found["peer_ids"])
        worst = max(found["losses"]) / beside - 1
        command = f"python -m integration.runs --mode {name}"
        yield Row(
            "F3",
            f"8 peers, 50 ms, 50 Mbit/s, {name}: loss within {NEAR:.0%} of synchronous training",
            f"worst {worst:+.2%} ({max(found['losses']):.4f} beside {beside:.4f}, from "
            f"{start:.4f}), {found['steps']} steps of {found['trained']} numbers",
            worst <= NEAR,
            command,
        )
        yield Row(
            "F3",
            f"{name}: bytes on the wire a number and inner step: {wire_max}",
            f"{found['wire']:.4f}, all that the interfaces sent; {found['told']:.4f} of weights",
            found["wire"] <= wire_max,
            command,
        )
        fast = gossip(replace(wanted, epochs=FAST_EPOCHS), mbit=FAST_MBIT)
        yield Row(
            "F3",
            f"{name}: share of the time for inner steps at {FAST_MBIT} Mbit/s: 95 %",
            f"{fast['share']:.1%} on average, {fast['share_least']:.1%} least; at 50 Mbit/s "
            f"{found['share']:.1%} and {found['share_least']:.1%}",
            fast["share"] >= 0.95,
            f"{command} --mbit {FAST_MBIT} --epochs {FAST_EPOCHS} --alone",
        )


def f4_churn() -> Iterator[Row]:
    from .groups_bar import f4_group_loss, f4_groups
    from .runs import DISTURBED, KILLED_OF, LATE, NEAR, PEERS, gossip

    killed = PEERS // KILLED_OF
    quiet = gossip(DISTURBED)
    found = gossip(DISTURBED, killed=killed, late=LATE)
    mean, before = (sum(one["losses"]) / len(one["losses"]) for one in (found, quiet))
    yield Row(
        "F4",
        f"{killed} of {PEERS} killed in mid-run, {LATE} join late: final loss within {NEAR:.0%} of "
        "undisturbed",
        f"{mean / before - 1:+.2%} ({mean:.4f} beside {before:.4f}); {found['finished']} of "
        f"{found['expected']} ended, {found['twice']} epochs counted twice; {found['steps']} steps "
        f"beside {quiet['steps']}, of {DISTURBED.batch} x {DISTURBED.tokens} tokens, in "
        f"{found['s']} and {quiet['s']} s ({found['cpu_s']} and {quiet['cpu_s']} CPU s)",
        mean / before - 1 <= NEAR and found["finished"] == found["expected"]
        and not found["twice"],
        "python -m integration.runs --mode disturbed",
    )  # fmt: skip
    yield from f4_groups()
    yield from f4_group_loss()


def f5_liars() -> Iterator[Row]:
    from potluck.node.bench.averages import DEALS, bench_averages, trials, worst
    from potluck.node.compute.average.lab import WAYS

    wanted = trials(["judged"], WAYS, list(WORSE_MAX), list(DEALS))
    plain = trials(["mean"], list(FAILS_UNDER), [0.1], list(DEALS))
    found = list(bench_averages([*wanted, *plain], None))
    command = "potluck bench average --full"
    for share, most in WORSE_MAX.items():
        under = worst(found, "judged", share)
        assert under is not None
        yield Row(
            "F5",
            f"{share:.0%} of 32 peers lie: worst honest peer's loss over the clean run's {most}",
            f"{under.ratio:.4f} at most, under {under.trial.attack!r}; {len(WAYS)} attacks, text "
            "dealt unevenly and evenly",
            under.ratio <= most,
            command,
        )
    under = worst([one for one in found if one.trial in plain], "mean", 0.1)
    assert under is not None
    yield Row(
        "F5",
        f"plain averaging fails where 10% lie: above {FAILS_MIN}",
        f"{under.ratio:.3f} under {under.trial.attack!r}",
        under.ratio >= FAILS_MIN,
        command,
    )


def f6_guarded() -> Iterator[Row]:
    from .guarded import measure
    from .guarded_draws import measure as drawn

    found = measure(GUARDED, GUARDED_LIARS)
    command = "python -m integration.guarded"
    yield Row(
        "F6",
        f"guarded group of {GUARDED}: all of {GUARDED_LIARS} liars convicted, nobody honest",
        f"{found['convicted_by_all']} by all, {found['honest_convicted']} honest; "
        f"{found['states']} state among the honest after {found['steps']} steps; held-out loss "
        f"{found['loss_before']} to {found['loss_after']}; {found['seconds']} s",
        found["convicted_by_all"] == GUARDED_LIARS
        and found["honest_convicted"] == found["honest_without_outcome"] == 0
        and found["states"] == 1
        and not found["drawn_and_not_convicted"],
        command,
    )
    many = drawn(GUARDED, GUARDED_LIARS)
    yield Row(
        "F6",
        f"attempts until a liar is convicted, on average: {many['bound']:.1f} (published, m = 1)",
        f"{many['attempts_mean']:.1f} +- {many['within']:.1f} of {many['convicted']} in "
        f"{many['groups']} groups in virtual time, {many['foreseen']:.1f} foreseen; "
        f"{many['of_published']:.2f} +- {many['of_published_within']:.2f} convictions for each "
        f"that the published chance gives, {many['honest_convicted']} honest; in the run above "
        f"{found['attempts_mean']:.1f}, the last after "
        f"{max(found['attempts_until_convicted'].values(), default=0)}",
        many["attempts_mean"] + many["within"] <= many["bound"]
        and many["convicted"] == many["groups"] * GUARDED_LIARS
        and not many["honest_convicted"],
        "python -m integration.guarded_draws",
    )


def f7_serving() -> Iterator[Row]:
    from .yielding import measure

    found = measure()
    read = " and ".join(map(str, found["tokens_read"]))
    command = "python -m integration.yielding"
    yield Row(
        "F7",
        f"95th of a hundred waits for a token while others train: {TIMES_IDLE} times idle's",
        f"{found['p95_times']} times ({found['p95_ms_beside']} beside {found['p95_ms_alone']} ms; "
        f"median {found['p50_ms_beside']} beside {found['p50_ms_alone']}), {read} tokens in turns",
        found["p95_times"] <= TIMES_IDLE,
        command,
    )
    yield Row(
        "F7",
        "training is not starved meanwhile: tokens/s above 0",
        f"{found['trained_tokens_s_beside']} tokens/s, {found['trained_share']:.1%} of the "
        f"{found['trained_tokens_s_alone']} when nobody reads",
        found["trained_tokens_s_beside"] > 0,
        command,
    )


def f8_resumes() -> Iterator[Row]:
    from .resumed import f8_resumes

    yield from f8_resumes()


def f8_jobs() -> Iterator[Row]:
    from .jobs import measure

    found = measure(PROMPTS, KILLS)
    yield Row(
        "F8b",
        f"a batch of {PROMPTS} prompts, {KILLS} random kills: {PROMPTS} right lines, in order",
        f"{found['right']} right of {found['lines']}, {found['errors']} errors; killed: "
        f"{', '.join(found['killed'])}; {found['seconds_disturbed']:.0f} s, undisturbed "
        f"{found['seconds_alone']:.0f} s",
        found["right"] == found["lines"] == PROMPTS and len(found["killed"]) == KILLS,
        f"python -m integration.jobs --prompts {PROMPTS} --kills {KILLS}",
    )


def f9_peft() -> Iterator[Row]:
    command = "python -m integration.peft_oracle"
    goal = f"logits with PEFT's adapters here, and with ours in PEFT: apart {LOGITS_APART_MAX:g}"
    if find_spec("peft") is None:
        yield Row("F9", goal, "peft is not installed: pip install peft", None, command)
        return
    from .peft_oracle import measure

    found = measure()
    apart = [one[how]["relative"] for one in found for how in ("native", "torch", "ours_in_peft")]
    alone = min(one["adapter_itself"]["relative"] for one in found)
    yield Row(
        "F9",
        goal,
        f"{max(apart):.1e} at most, of {len(found)} kinds of adapters, which themselves change "
        f"logits by {alone:.2g} at least; peft {found[0]['peft']}",
        max(apart) <= LOGITS_APART_MAX and all(one["same_digest"] for one in found),
        command,
    )


BARS: dict[str, Callable[[], Iterator[Row]]] = {
    "F1": f1_gradients,
    "F2": f2_rate,
    "F3": f3_gossip,
    "F4": f4_churn,
    "F5": f5_liars,
    "F6": f6_guarded,
    "F7": f7_serving,
    "F8a": f8_resumes,
    "F8b": f8_jobs,
    "F9": f9_peft,
}
