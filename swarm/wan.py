"""How fast an answer can come over a wide area: what the road, the stages and the guesses allow.

algorithms.md 9. A step of n rows goes through P hops. On a star the client passes rows on from hop
to hop, on a chain the hops do:

    star     client ⇄ 1,  client ⇄ 2,  client ⇄ 3          2 P ways, all bytes twice P times
    chain    client ─▶ 1 ─▶ 2 ─▶ 3 ─▶ client               P + 1 ways

    R(n)  = sum of the ways + sum over hops (t(n) + o) + bytes on each way     `step_s`
    E     = (1 - a^(K+1)) / (1 - a)      tokens of a step with K guesses       `tokens_a_step`
    rate  = E / (R(K+1) + K times what a guess takes to make)                  `rate`
    TTFT  = sum of the ways + (P + m - 1) max over hops (t(c) + o + bytes)     `first_token_s`
            for a prompt in m chunks of c tokens, each on its way while the next is computed;
            stored and forwarded it would be P m in place of P + m - 1

    M at once   the best over b of min(M / R(b), b / max over hops t(b)), where b of them share a
            pass                                                    `rate_together`

What the client itself takes for a token (its head, the draw, the embedding) is added to each: the
formula forgets it, and with a model as small as the shipped one it counts.

From the same sums follows how to send an answer's rows: a prompt in chunks of how many tokens
(`choose_chunk`), and in which codec (`choose_codec`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Literal

from .draft_pace import GUESSES_MAX
from .rows import CODECS, Codec, row_bytes

Shape = Literal["star", "chain"]

CHUNK_TOKENS: Final = 128  # algorithms.md 9: 128 to 256; where nothing is known of the hops
CHUNKS: Final = (32, 64, 128, 256, 512)  # guess: below, weights are read for next to nothing
CHUNK_BYTES_MAX: Final = 4 * 1024 * 1024  # guess: a second of 32 Mbit/s, in which others wait
# Guess: by how much sooner an answer has to come for its rounding to be taken. `potluck bench wire`
# measures what each costs: bf16 and int8 next to nothing, int4 words.
LOSS_PRICE: Final[dict[Codec, float]] = {"f32": 0.0, "bf16": 0.02, "int8": 0.05, "int4": 0.5}
_WORTH: Final = 0.95  # guess: of the usual size's time; what is hardly better is left alone


@dataclass(frozen=True, slots=True)
class Stage:
    """One hop, and the way to it. one_way_s: from the client on a star, from the hop before on a
    chain. bytes_s: of that way, each direction. times: (rows, seconds) of its passes, by rows."""

    one_way_s: float
    times: tuple[tuple[int, float], ...]
    bytes_s: float = float("inf")

    def pass_s(self, rows: int) -> float:
        """Of so many rows: on the lines between what was measured, beyond it on the last one."""
        found = self.times[0][1]
        for (low, low_s), (high, high_s) in pairwise(self.times):
            found = low_s + max(0.0, high_s - low_s) / (high - low) * (max(rows, low) - low)
            if rows <= high:
                break
        return found


@dataclass(frozen=True, slots=True)
class Way:
    """From the client through all stages and back. row_bytes: of a row on the wire. overhead_s: of
    each hop, beyond its pass and its way. client_s: for a token at the client."""

    stages: tuple[Stage, ...]
    row_bytes: int
    shape: Shape = "star"
    overhead_s: float = 0.0
    client_s: float = 0.0

    @property
    def ways_s(self) -> float:
        """Of nothing, there and back. The chain's last way is as long as its first."""
        there_s = sum(stage.one_way_s for stage in self.stages)
        return 2 * there_s if self.shape == "star" else there_s + self.stages[0].one_way_s

    def wire_s(self, stage: Stage, rows: int) -> float:
        """Of the bytes of so many rows, to this stage; on a star and back from it, too."""
        return (2 if self.shape == "star" else 1) * rows * self.row_bytes / stage.bytes_s


def step_s(way: Way, rows: int = 1) -> float:
    """R(n): seconds from a step's sending to the next one's."""
    hops_s = sum(
        stage.pass_s(rows) + way.overhead_s + way.wire_s(stage, rows) for stage in way.stages
    )
    if way.shape == "chain":  # from the last one back to the client
        hops_s += way.wire_s(way.stages[0], rows)
    return way.ways_s + hops_s + way.client_s


def tokens_a_step(chance: float, guesses: int) -> float:
    """E: the right ones of so many guesses, each right with this chance, and the token behind."""
    if chance >= 1:
        return 1.0 + guesses
    return float((1 - chance ** (guesses + 1)) / (1 - chance))


def rate(way: Way, chance: float = 0.0, guesses: int = 0, guess_s: float = 0.0) -> float:
    """Tokens a second. guess_s: what one guess takes to make."""
    return tokens_a_step(chance, guesses) / (step_s(way, 1 + guesses) + guess_s * guesses)


def best_guesses(way: Way, chance: float, guess_s: float = 0.0) -> int:
    """How many guesses bring most."""
    return max(range(GUESSES_MAX + 1), key=lambda one: (rate(way, chance, one, guess_s), -one))


def rate_of(way: Way, chance: float, widths: Mapping[int, int], guess_s: float = 0.0) -> float:
    """Tokens a second of an answer whose steps had so many guesses: widths[K] steps had K. guess_s:
    what one guess takes to make."""
    tokens = sum(count * tokens_a_step(chance, guesses) for guesses, count in widths.items())
    spent_s = sum(
        count * (step_s(way, 1 + guesses) + guess_s * guesses) for guesses, count in widths.items()
    )
    return tokens / spent_s


def rate_together(way: Way, sessions: int) -> float:
    """Tokens a second of so many plain answers at once: at most what their steps allow, each back
    after R, and what the slowest stage does. Steps that meet go in one pass: of as many as is best.
    """

    def merged(rows: int) -> float:
        slowest_s = max(stage.pass_s(rows) for stage in way.stages)
        return min(sessions / step_s(way, rows), rows / slowest_s)

    return max(merged(rows) for rows in range(1, sessions + 1))


def first_token_s(
    way: Way, tokens: int, chunk: int = CHUNK_TOKENS, *, window: int = 0, cut_through: bool = True
) -> float:
    """Seconds to the first token of a prompt. window: how many chunks a hop may be sent before it
    answers, so that a long way holds the next one up; 0: any."""
    chunk = min(chunk, tokens)
    chunks, hops = -(-tokens // chunk), len(way.stages)
    passes = [
        stage.pass_s(chunk) + way.overhead_s + way.wire_s(stage, chunk) for stage in way.stages
    ]
    slowest_s = max(passes)
    if window and chunks > window:
        rounds = (
            (2 * stage.one_way_s + spent_s) / window
            for stage, spent_s in zip(way.stages, passes, strict=True)
        )
        slowest_s = max(slowest_s, *rounds)
    times = hops + chunks - 1 if cut_through else hops * chunks
    return way.ways_s + times * slowest_s + way.client_s


def choose_chunk(
    way: Way, tokens: int, window: Callable[[int], int], choices: Sequence[int] = CHUNKS
) -> int:
    """In chunks of how many tokens to send a prompt, for its first token to come soonest.

    Small chunks overlap better; large ones read weights less often, and wait for fewer ways where
    only so many may be under way: window(tokens of a chunk). What is not clearly better than the
    usual size is not taken.
    """
    fit = [one for one in choices if one * way.row_bytes <= CHUNK_BYTES_MAX]
    fit = [one for one in fit if one <= max(tokens, min(fit))] or [CHUNK_TOKENS]

    def first_s(chunk: int) -> float:
        return first_token_s(way, tokens, chunk, window=window(chunk))

    best = min(fit, key=first_s)
    better = first_s(best) < _WORTH * first_s(CHUNK_TOKENS)
    return best if better else CHUNK_TOKENS


def choose_codec(
    way: Way,
    width: int,
    prompt: int,
    answer: int,
    *,
    byte_price_s: float = 0.0,
    codecs: Sequence[Codec] = CODECS,
    chain: bool = False,
) -> Codec:
    """The codec with which an answer is worth most, of a model so wide.

    way: what was measured of the route; its row_bytes do not count. prompt, answer: tokens.
    byte_price_s: how much longer somebody would wait to send a byte less, where bytes are paid for.
    chain: hops push on what comes out.
    """

    def price(codec: Codec) -> float:
        shape: Shape = "chain" if chain else way.shape
        coded = replace(way, row_bytes=row_bytes(width, codec), shape=shape)
        spent_s = first_token_s(coded, prompt) + answer * step_s(coded)
        sent = (prompt + answer) * coded.row_bytes * len(way.stages)
        return (spent_s + sent * byte_price_s) * (1 + LOSS_PRICE[codec])

    return min(codecs, key=price)
