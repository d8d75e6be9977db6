"""The next token: filters as in transformers, noise as a pure function of seed and position."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import UserError
from potluck.node.compute.sampling import Settings, keep, likely, noise, pick

VOCABULARY = 97
ALL = np.arange(VOCABULARY)
PINNED = [-1.495451611576949, -0.351137118361487, -0.203208823443319, 0.08800374666321452]


def some_logits(seed: int, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread


def oracle(logits: torch.Tensor, settings: Settings, history: list[int]) -> torch.Tensor:
    """What transformers' processors leave, in the order in which `generate` applies them."""
    process = transformers.LogitsProcessorList()
    if settings.repetition_penalty != 1:
        process.append(transformers.RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    process.append(transformers.TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        process.append(transformers.TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        process.append(transformers.TopPLogitsWarper(settings.top_p))
    if settings.min_p > 0:
        process.append(transformers.MinPLogitsWarper(settings.min_p))
    return process(torch.tensor([history]), logits[None].double())[0]


settings_of = st.builds(
    Settings,
    temperature=st.sampled_from([0.1, 0.7, 1.0, 1.9]),
    top_k=st.sampled_from([0, 1, 5, 40, 1000]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.3]),
    seed=st.integers(0, 2**64 - 1),
)


@given(settings_of, st.integers(0, 50), st.integers(0, 5000))
def test_what_is_left_to_draw_from_is_what_transformers_leaves(
    settings: Settings, seed: int, position: int
) -> None:
    logits, history = some_logits(seed), [seed, 3, 3, seed + 40]
    left = oracle(logits, settings, history).numpy()
    token = pick(logits, settings, position, history)
    # the draw is Gumbel-max over exactly those scores, so ours must agree with it
    assert token == int((left + noise(settings.seed or 0, position, ALL)).argmax())
    plain = Settings(
        top_k=settings.top_k, top_p=settings.top_p, min_p=settings.min_p, seed=settings.seed
    )
    if settings.repetition_penalty == 1:
        ours = keep(logits.double().numpy() / settings.temperature, plain)
        np.testing.assert_allclose(ours, left, rtol=1e-12)


@given(st.integers(0, 50), st.sampled_from([0.5, 1.0, 1.5]))
def test_greedy_takes_the_largest_after_the_penalty(seed: int, penalty: float) -> None:
    logits, history = some_logits(seed), [1, 2, 3, seed]
    settings = Settings(repetition_penalty=penalty)
    process = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    left = process(torch.tensor([history]), logits[None])[0]
    assert pick(logits, settings, 7, history) == int(left.argmax())


def test_no_history_needs_no_penalty() -> None:
    assert pick(some_logits(1), Settings(repetition_penalty=2.0), 0, []) == int(
        some_logits(1).argmax()
    )


def test_the_same_seed_and_position_draw_the_same_token_whatever_came_before() -> None:
    logits, settings = some_logits(3), Settings(temperature=1.0, seed=11)
    forwards = [pick(logits, settings, position, []) for position in range(200)]
    backwards = [pick(logits, settings, position, []) for position in reversed(range(200))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) > 10
    other = Settings(temperature=1.0, seed=12)
    assert [pick(logits, other, position, []) for position in range(200)] != forwards


def test_a_token_keeps_its_noise_when_others_are_filtered_away() -> None:
    assert np.array_equal(noise(5, 9, ALL)[[3, 50]], noise(5, 9, np.array([3, 50])))


def test_draws_are_distributed_as_the_softmax() -> None:
    """20,000 draws of 5 tokens: each share is within 5 standard deviations of its probability."""
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])
    settings, draws = Settings(temperature=1.0, seed=2024), 20_000
    count = Counter(pick(logits, settings, position, []) for position in range(draws))
    for token, chance in enumerate(logits.softmax(0).tolist()):
        deviation = math.sqrt(chance * (1 - chance) / draws)
        assert abs(count[token] / draws - chance) < 5 * deviation


def test_the_noise_is_pinned() -> None:
    """A change of these numbers would change every sampled text: it needs a new version."""
    found = [*noise(0, 0, ALL)[:2], *noise(2**64 - 1, 12345, ALL)[-2:]]
    np.testing.assert_allclose(found, PINNED, rtol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 1e-320, "seed": 1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": math.nan}, "frequency_penalty"),
        ({"bias": ((3, 100.5),)}, "bias"),
        ({"temperature": 0.5}, "seed is missing"),
    ],
)
def test_settings_outside_their_range_are_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Settings(**wrong)


def test_the_answers_own_tokens_are_penalized_as_openai_says() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, where c counts the answer and not its
    prompt: OpenAI's reference, and vLLM's."""
    logits, history = some_logits(5), [1, 1, 1, 7, 7, 9]
    settings = Settings(presence_penalty=1.5, frequency_penalty=0.5)
    expected = logits.double().clone()
    expected[7] -= 1.5 + 2 * 0.5
    expected[9] -= 1.5 + 0.5
    for token in (7, 9, int(logits.argmax())):
        lifted = expected.clone()
        lifted[token] += 1000
        raised = logits.clone()
        raised[token] += 1000
        assert pick(raised, settings, 6, history, begun=3) == int(lifted.argmax()) == token
    near = torch.zeros(VOCABULARY)
    near[7], near[1] = 2.4, 0.1
    assert pick(near, settings, 6, history, begun=3) == 1  # 2.4 - 2.5 is below 0.1
    assert pick(near, Settings(frequency_penalty=0.5), 6, history, begun=3) == 7
    assert pick(near, settings, 6, [], begun=0) == 7


@given(st.integers(0, 50), st.sampled_from([0.0, 0.8]), st.sets(st.integers(0, 96), min_size=1))
def test_only_allowed_tokens_are_drawn_and_the_others_keep_their_noise(
    seed: int, temperature: float, allowed: set[int]
) -> None:
    logits, settings = some_logits(seed), Settings(temperature, seed=seed)
    mask = np.isin(ALL, sorted(allowed))
    barred = torch.where(torch.from_numpy(mask), logits, -math.inf)
    token = pick(logits, settings, 4, [1], allowed=mask)
    assert token in allowed
    assert token == pick(barred, settings, 4, [1])
    assert pick(logits, settings, 4, [1], allowed=ALL >= 0) == pick(logits, settings, 4, [1])


def test_a_bias_bars_or_forces_a_token() -> None:
    logits = some_logits(8)
    best = int(logits.argmax())
    assert pick(logits, Settings(bias=((best, -100.0),)), 0, []) != best
    assert pick(logits, Settings(bias=((42, 100.0),)), 0, []) == 42


@given(st.integers(0, 50), st.integers(0, 96), st.integers(0, 97))
def test_logprobs_are_those_of_the_plain_softmax(seed: int, token: int, top: int) -> None:
    logits = some_logits(seed)
    expected = logits.double().log_softmax(0)
    found = likely(logits, token, top)
    assert found.logprob == pytest.approx(float(expected[token]), abs=1e-12)
    assert [chance for _, chance in found.top] == pytest.approx(
        expected.topk(top).values.tolist(), abs=1e-12
    )
    assert all(expected[one] == pytest.approx(chance, abs=1e-12) for one, chance in found.top)
