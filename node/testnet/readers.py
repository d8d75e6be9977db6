"""The load under which chaos happens: readers who ask, and who know what the answer must be.

Each question is answered once while nothing disturbs the swarm; from then on any other answer to it
is a fault. Readers take a token as people read, some in a second, so that at any time many sessions
are in the middle, and what they wait for is the swarm and not the machine. Half of the questions
are sampled: their draws change with the slightest change of a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from ...errors import PotluckError
from ...swarm.session import __doc__ as PROSE
from ..client import Options, Swarm
from ..session import Recovery

if TYPE_CHECKING:
    from random import Random

READ_TOKENS_S = 20.0  # of one reader: faster than people, so that two minutes hold many sessions
PROMPT_TOKENS = (4, 600)  # the longest takes five chunks
NEW_TOKENS = (8, 300)
HANG_S = 60.0  # beyond any deadline of the software's own: who waits so long waits for ever
AFTER_S = 5.0  # for so long after a fault's end a wait is still put down to it
LEARNING_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and how it is answered. temperature 0 is greedy."""

    ids: tuple[int, ...]
    new_tokens: int
    temperature: float
    seed: int

    @property
    def options(self) -> Options:
        return Options(
            max_new_tokens=self.new_tokens,
            temperature=self.temperature,
            top_p=0.95 if self.temperature else 1.0,
            seed=self.seed,
            ignore_eos=True,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What the swarm says when nothing disturbs it."""

    tokens: tuple[int, ...]
    text: str


@dataclass(slots=True, eq=False)
class Toll:
    """What the fault of one peer cost: for each session that was hit, by its number, the longest
    wait for a token that ended in `began_s` to `until_s`. Hit is who was served by that peer when
    it began, and who lost it since."""

    peer: str
    began_s: float
    until_s: float
    longest_s: dict[int, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Reading:
    number: int
    slowly_until_s: float
    peers: frozenset[str] = frozenset()
    asked_s: float = 0.0  # since when it waits for the next token
    losses: int = 0  # told of so far


def make_questions(
    rng: Random, ids: Sequence[int], count: int, context: int
) -> tuple[Question, ...]:
    """Questions of random lengths, cut out of `ids`. context: positions that a session may have."""
    made = []
    for number in range(count):
        length = min(_length(rng, PROMPT_TOKENS), context // 2, len(ids))
        start = rng.randrange(len(ids) - length + 1)
        new_tokens = min(_length(rng, NEW_TOKENS), context - length)
        temperature = 0.0 if number % 2 == 0 else 0.9
        prompt = tuple(ids[start : start + length])
        made.append(Question(prompt, new_tokens, temperature, rng.randrange(1 << 32)))
    return tuple(made)


def _length(rng: Random, between: tuple[int, int]) -> int:
    """Every order of magnitude as often as another."""
    least, most = between
    return round(least * math.exp(math.log(most / least) * rng.random()))


class Load:
    """Readers of one client. `failed` hears of each broken promise, in a line."""

    def __init__(
        self, swarm: Swarm, model: str, *, wait_s: float, failed: Callable[[str], None]
    ) -> None:
        self._swarm = swarm
        self._model = model
        self._wait_s = wait_s
        self._failed = failed
        self._questions: tuple[Question, ...] = ()
        self._answers: list[Answer] = []
        self._live: set[_Reading] = set()
        self._tolls: list[Toll] = []
        self.begun = self.finished = self.tokens = self.losses = 0
        self.waits_s: list[float] = []
        self.calm_s: list[float] = []  # of the undisturbed run

    async def learn(self, rng: Random, count: int) -> None:
        """Make questions, and have each answered while nothing disturbs."""
        voice = await self._swarm.voice(self._model)
        ids = voice.text.encode(PROSE or "")
        self._questions = make_questions(rng, ids, count, voice.context)
        answers: dict[int, Answer] = {}
        numbers = iter(range(count))
        async with trio.open_nursery() as nursery:
            for _ in range(min(LEARNING_AT_ONCE, count)):
                nursery.start_soon(self._learn_some, numbers, answers)
        self._answers = [answers[number] for number in range(count)]

    async def _learn_some(self, numbers: Iterator[int], answers: dict[int, Answer]) -> None:
        for number in numbers:
            question = self._questions[number]
            tokens, text = [], ""
            async with self._swarm.generation(
                self._model, question.ids, **question.options
            ) as answer:
                async for piece in answer:
                    tokens.append(piece.token)
                    text += piece.text
                    self.calm_s.append(piece.seconds)
            answers[number] = Answer(tuple(tokens), text)

    async def read(self, rng: Random, until_s: float) -> None:
        """One reader: a question after the other until then; the last is read to its end, as fast
        as it comes."""
        await trio.sleep(rng.random())  # they do not begin in step
        while trio.current_time() < until_s:
            await self._read_one(rng.randrange(len(self._questions)), until_s)

    async def probe(self) -> bool:
        """Whether a new session gets its first token, and the right one."""
        question = self._questions[0]
        options = question.options
        options["max_new_tokens"] = 1
        try:
            with trio.fail_after(HANG_S):
                async with self._swarm.generation(self._model, question.ids, **options) as answer:
                    piece = await anext(answer)
        except (PotluckError, trio.TooSlowError):
            return False
        if piece.token != self._answers[0].tokens[0]:
            self._failed(f"a new session's first token is {piece.token}: it was another before")
        return True

    def charge(self, peer: str, began_s: float, for_s: float) -> Toll:
        """Put the waits of those who are served by this peer down to a fault."""
        toll = Toll(peer, began_s, began_s + for_s + AFTER_S)
        for reading in self._live:
            if peer in reading.peers:
                toll.longest_s[reading.number] = 0.0
        self._tolls.append(toll)
        return toll

    async def _read_one(self, number: int, until_s: float) -> None:
        self.begun += 1
        reading = _Reading(self.begun, until_s)
        self._live.add(reading)
        question, answer = self._questions[number], self._answers[number]
        what = f"session {reading.number} (question {number}, {len(question.ids)} tokens long)"
        try:
            if (fault := await self._follow(reading, question, answer)) is not None:
                self._failed(f"{what}: {fault}")
                return
        except trio.TooSlowError:
            self._failed(f"{what}: no token for {HANG_S:.0f} s")
            return
        except PotluckError as error:
            self._failed(f"{what}: {type(error).__name__}: {error}")
            return
        finally:
            self._live.discard(reading)
        self.finished += 1

    async def _follow(self, reading: _Reading, question: Question, expected: Answer) -> str | None:
        """Read an answer beside the undisturbed one. What is wrong with it, if anything is."""
        options = question.options
        options["wait_s"] = self._wait_s
        text, got = "", 0
        async with self._swarm.generation(self._model, question.ids, **options) as answer:
            while True:
                reading.asked_s = trio.current_time()
                with trio.fail_after(HANG_S):
                    piece = await anext(answer, None)
                if piece is None:
                    break
                self._waited(reading, answer.recoveries, trio.current_time())
                if got == len(expected.tokens) or piece.token != expected.tokens[got]:
                    wanted = (*expected.tokens, None)[got]
                    return f"token {got} is {piece.token}, undisturbed it was {wanted}"
                got, text = got + 1, text + piece.text
                self.tokens += 1
                reading.peers = frozenset(hop.peer for hop in piece.route)
                if trio.current_time() < reading.slowly_until_s:
                    await trio.sleep(1 / READ_TOKENS_S)
            self.losses += len(answer.recoveries)
        if got < len(expected.tokens):
            return f"it ended after {got} of {len(expected.tokens)} tokens"
        return None if text == expected.text else "the same tokens, but another text"

    def _waited(self, reading: _Reading, recoveries: Sequence[Recovery], now: float) -> None:
        waited_s = now - reading.asked_s
        self.waits_s.append(waited_s)
        lost = {recovery.peer for recovery in recoveries[reading.losses :]}
        reading.losses = len(recoveries)
        self._tolls = [toll for toll in self._tolls if reading.asked_s <= toll.until_s + HANG_S]
        for toll in self._tolls:
            if not (reading.asked_s <= toll.until_s and now > toll.began_s):
                continue
            if toll.peer in lost or reading.number in toll.longest_s:
                before_s = toll.longest_s.get(reading.number, 0.0)
                toll.longest_s[reading.number] = max(before_s, waited_s)
