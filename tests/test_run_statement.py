"""The words of a run on the wire: these bytes, for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from potluck.crypto.codec import decode_any, encode
from potluck.crypto.keys import IdentityKey
from potluck.dht.record import DOMAIN as RECORD
from potluck.errors import RemoteError
from potluck.swarm.run.plan import TERMS_BYTES_MAX, Data, Plan, agree
from potluck.swarm.run.statement import (
    ANSWERS,
    DOMAIN,
    LETTER_BYTES_MAX,
    PART_BYTES,
    QUESTIONS,
    STATEMENT_BYTES_MAX,
    Absent,
    Meet,
    Other,
    Part,
    Pull,
    Same,
    Told,
    state,
)
from potluck.swarm.testimony import check_contradiction, contradiction_of
from potluck.swarm.topics import EVIDENCE, RUNS, fits, home_of, is_ours, kind_of

GOLDEN = Path(__file__).parent / "golden" / "run.hex"
RUN = bytes(range(32))
KEY = IdentityKey.from_bytes(bytes(32))
SAID = state(KEY, RUN, 7, 4096, b"weights")
TERMS = agree(Plan("tales", "demo", Data(("x.txt",))), b"m" * 32, (b"d" * 32,), b"s" * 32)
WORDS: dict[str, Any] = {
    "pull": Pull(RUN, 7, 1.5, (SAID.raw,)),
    "told": Told(SAID.raw),
    "part": Part(b"weights"),
    "absent": Absent(6),
    "meet": Meet(RUN),
    "same": Same(7),
    "other": Other(encode(TERMS)),
}


def test_the_bytes_are_these() -> None:
    lines = [f"{name} {encode(word).hex()}" for name, word in WORDS.items()]
    lines.append(f"run {TERMS.run.hex()}")
    assert lines == GOLDEN.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", WORDS)
def test_each_comes_back_and_only_where_it_belongs(name: str) -> None:
    raw, word = encode(WORDS[name]), WORDS[name]
    mine, others = (QUESTIONS, ANSWERS) if isinstance(word, QUESTIONS) else (ANSWERS, QUESTIONS)
    assert decode_any(raw, mine) == word
    with pytest.raises(RemoteError):
        decode_any(raw, others)


def test_every_word_fits_a_letter() -> None:
    """With the longest epoch, the longest number of tokens, and terms of 256 files."""
    longest = state(IdentityKey.generate(), RUN, 10**6, 2**53, b"x")
    assert len(longest.raw) <= STATEMENT_BYTES_MAX
    assert len(encode(Part(bytes(PART_BYTES)))) <= LETTER_BYTES_MAX
    assert TERMS_BYTES_MAX + 64 <= LETTER_BYTES_MAX
    plan = Plan("n" * 64, "demo", Data(("x.txt",)))
    assert len(encode(agree(plan, b"m" * 32, (b"d" * 32,) * 256, b"s" * 32))) <= TERMS_BYTES_MAX


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        encode(Pull(RUN, 7, 1.5))[:-1],
        encode(Pull(RUN, 7, 1.5)).replace(b"\xa5epoch\x07", b"\xa5epoch\xff"),
        encode(Pull(RUN, 7, 1.5)) + b"\0",
    ],
)
def test_rubbish_is_refused(raw: bytes) -> None:
    with pytest.raises(RemoteError):
        decode_any(raw, QUESTIONS)


def test_who_contradicts_itself_in_a_run_is_told_of_where_runs_are_known() -> None:
    """Under the topic of all evidence it would look like nonsense to nodes that know of no runs,
    and cost whoever passes it on their trust."""
    one, other = (state(KEY, RUN, 3, 100, raw) for raw in (b"some", b"others"))
    item = contradiction_of(DOMAIN, one.raw, other.raw)
    assert check_contradiction(item) == KEY.peer_id
    assert home_of(item) == RUNS and fits(item, RUNS) and not fits(item, EVIDENCE)
    assert is_ours(RUNS) and kind_of(RUNS) == EVIDENCE
    of_records = contradiction_of(RECORD, one.raw, other.raw)
    assert home_of(of_records) == EVIDENCE and not fits(of_records, RUNS)
