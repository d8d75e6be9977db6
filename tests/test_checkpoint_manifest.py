"""A run's state by one name, however it was divided; and what a newcomer believes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.crypto.codec import encode
from potluck.crypto.digest import digest
from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError, UserError
from potluck.swarm.blocks import BlockRange
from potluck.swarm.chunk import CHUNK_BYTES_MAX, Chunk, digest_of
from potluck.swarm.run.checkpoint import (
    Counter,
    Entry,
    Manifest,
    check_shapes,
    joined,
    read_manifest,
    write_manifest,
)
from potluck.swarm.run.claims import (
    CLAIMS_MAX,
    LETTER_BYTES_MAX,
    Claim,
    States,
    Which,
    agreed,
    contradict,
    holders,
    opposed,
    read_claim,
    read_states,
    sign_claim,
)

RUN = bytes(range(32))


def name(text: str) -> bytes:
    return digest("test", text.encode())


def entry(title: str, block: int | None = None, shape: tuple[int, ...] = (3, 4)) -> Entry:
    count = -(-4 * prod(shape) // 16)
    return Entry(title, block, "f32", shape, tuple(name(f"{title} {n}") for n in range(count)))


def manifest(*entries: Entry, epoch: int = 3) -> Manifest:
    ordered = tuple(sorted(entries, key=lambda one: one.name))
    return Manifest(RUN, epoch, 7, (Counter("tokens", 99),), 16, ordered)


WHOLE = manifest(
    *(entry(f"weights/{block}.{half}", block) for block in range(6) for half in "AB"),
    entry("weights/prompts", None, (5,)),
    entry("own/inner/step/prompts", None, ()),
    entry("weights/nothing", None, (0, 4)),
)


@given(st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_whoever_saves_which_blocks_the_whole_has_one_name(savers: list[int]) -> None:
    def saves(one: Entry, saver: int) -> bool:
        return saver == 0 if one.block is None else savers[one.block] == saver

    parts = [
        replace(WHOLE, entries=tuple(one for one in WHOLE.entries if saves(one, saver)))
        for saver in range(4)
    ]
    assert write_manifest(joined(parts)) == write_manifest(WHOLE)
    assert joined([*parts, *parts]) == WHOLE, "two may have the same block"


@given(st.sets(st.integers(1, 5)))
def test_any_division_of_the_blocks_finds_each_tensor_once(cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), 6]
    found = [
        one.name
        for start, stop in pairwise(edges)
        for one in WHOLE.of(BlockRange(start, stop))
        if one.block is not None
    ]
    assert sorted(found) == [one.name for one in WHOLE.entries if one.block is not None]
    assert all(None in {one.block for one in WHOLE.of(BlockRange(0, n))} for n in range(1, 7))


def test_parts_of_other_moments_or_that_differ_are_not_joined() -> None:
    with pytest.raises(RemoteError, match="different moments"):
        joined([WHOLE, replace(WHOLE, epoch=4)])
    other = replace(WHOLE.entries[0], chunks=tuple(name(str(n)) for n in range(3)))
    with pytest.raises(RemoteError, match="say different things of own/inner"):
        joined([WHOLE, replace(WHOLE, entries=(replace(other, shape=(3, 4)),))])


def test_chunks_are_named_once_with_their_sizes() -> None:
    twin = replace(entry("b", None, (5,)), chunks=entry("a", None, (5,)).chunks)
    found = manifest(entry("a", None, (5,)), twin).chunks([entry("a", None, (5,)), twin])
    assert [one.size for one in found] == [16, 4]


def test_what_is_ones_own_is_no_part_of_what_is_shared() -> None:
    one = replace(WHOLE, counters=(Counter("own/batches", 5), Counter("tokens", 99)))
    other = replace(
        one,
        counters=(Counter("own/batches", 8), Counter("tokens", 99)),
        entries=tuple(e for e in WHOLE.entries if not e.name.startswith("own/")),
    )
    assert one.shared == other.shared
    assert {e.name for e in WHOLE.entries} - {e.name for e in one.shared.entries} == {
        "own/inner/step/prompts"
    }
    assert one.count("own/batches") == 5 and one.shared.count("own/batches") == 0


Plain = dict[str, Any]


def first(plain: Plain, **changes: object) -> Plain:
    entry, *others = plain["entries"]
    return {**plain, "entries": [{**entry, **changes}, *others]}


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: {**plain, "entries": plain["entries"][::-1]},
        lambda plain: {**plain, "entries": [plain["entries"][0], *plain["entries"]]},
        lambda plain: {**plain, "counters": plain["counters"] * 2},
        lambda plain: {**plain, "chunk_bytes": 24},
        lambda plain: {**plain, "chunk_bytes": CHUNK_BYTES_MAX + 1},
        lambda plain: {**plain, "epoch": -1},
        lambda plain: {**plain, "more": 1},
        lambda plain: first(plain, shape=[3, 9]),
        lambda plain: first(plain, shape=[1] * 9),
        lambda plain: first(plain, shape=[1 << 40, 1 << 40, 1 << 40]),
        lambda plain: first(plain, dtype="f8"),
        lambda plain: first(plain, block=-1),
        lambda plain: first(plain, chunks=[]),
    ],
)
def test_a_manifest_that_no_honest_peer_writes_is_refused(change: Callable[[Plain], Plain]) -> None:
    whole = manifest(*(entry(one) for one in "ab"))
    plain = change(msgpack.unpackb(write_manifest(whole)))
    raw = msgpack.packb(plain, use_bin_type=True)
    with pytest.raises(RemoteError, match="malformed"):
        read_manifest(raw, Chunk(digest_of(raw), len(raw)), RUN)


def test_only_the_manifest_that_was_named_and_of_this_run_is_read() -> None:
    raw = write_manifest(WHOLE)
    chunk = Chunk(digest_of(raw), len(raw))
    assert read_manifest(raw, chunk, RUN) == WHOLE
    with pytest.raises(RemoteError, match="are not chunk"):
        read_manifest(raw, Chunk(bytes(32), len(raw)), RUN)
    with pytest.raises(RemoteError, match="another run"):
        read_manifest(raw, chunk, bytes(32))


def test_what_no_peer_would_take_is_not_written() -> None:
    many = 1 << 17
    endless = Entry("a", None, "f32", (4 * many,), (bytes(32),) * many)
    with pytest.raises(UserError, match="too large for a checkpoint"):
        write_manifest(manifest(endless))


def test_a_state_of_other_tensors_than_the_runs_is_named() -> None:
    entries = [entry("a"), entry("b")]
    shapes = {one.name: (one.dtype, one.shape) for one in entries}
    check_shapes(entries, shapes)
    for wrong in (
        {"a": ("f32", (3, 4))},
        shapes | {"a": ("f16", (3, 4))},
        shapes | {"c": ("f32", ())},
    ):
        with pytest.raises(RemoteError, match="other tensors"):
            check_shapes(entries, wrong)


# ---- what a newcomer believes


KEYS = [IdentityKey.from_bytes(bytes((number,)) * 32) for number in range(7)]


def claim(epoch: int, what: str = "true", step: int = 0) -> Claim:
    return Claim(RUN, epoch, step, name(f"{what} {epoch}"), 100)


def test_a_claim_is_ones_own_and_of_one_run() -> None:
    raw = sign_claim(KEYS[0], claim(1))
    assert read_claim(raw, KEYS[0].peer_id, RUN) == claim(1)
    for peer, run in ((KEYS[1].peer_id, RUN), (KEYS[0].peer_id, bytes(32))):
        with pytest.raises(RemoteError, match="somebody else, or about another run"):
            read_claim(raw, peer, run)
    with pytest.raises(RemoteError):
        read_claim(raw[:-1] + bytes((raw[-1] ^ 1,)), KEYS[0].peer_id, RUN)


def test_one_who_says_two_things_at_once_says_nothing() -> None:
    def states(*claims: Claim) -> bytes:
        return encode(States(tuple(sign_claim(KEYS[0], one) for one in claims)))

    assert read_states(states(claim(2), claim(1)), KEYS[0].peer_id, RUN) == (claim(2), claim(1))
    with pytest.raises(RemoteError, match="two names"):
        read_states(states(claim(2), claim(2, "false")), KEYS[0].peer_id, RUN)
    assert not contradict(claim(2), claim(2)) and not contradict(claim(2), claim(2, step=1))


@given(
    epochs=st.lists(st.integers(5, 7), min_size=3, max_size=9),
    liars=st.lists(st.sampled_from(["lie", "other lie", "silent"]), max_size=8),
)
def test_no_minority_is_believed_whatever_it_says(epochs: list[int], liars: list[str]) -> None:
    """The honest have gone on for an epoch or two while they were asked; what they all have is
    believed as long as they are more than the liars."""
    said: dict[str, tuple[Claim, ...]] = {
        f"honest{n}": tuple(claim(epoch - back) for back in range(CLAIMS_MAX))
        for n, epoch in enumerate(epochs)
    }
    for number, lie in enumerate(liars):
        told = () if lie == "silent" else tuple(claim(e, lie) for e in (99, 7, 6, 5))
        said[f"liar{number}"] = told
    found = agreed(said)
    if len(liars) < len(epochs):
        assert found is not None and found.manifest == name(f"true {found.epoch}")
        assert min(epochs) <= found.epoch <= max(epochs)
        assert set(holders(said, found)) <= {f"honest{n}" for n in range(len(epochs))}
        assert all(peer.startswith("liar") for peer in opposed(said, found))
    if found is not None and len(epochs) < len(liars):
        assert 2 * len(holders(said, found)) > len(said)


def test_two_answers_are_too_few_and_half_is_no_majority() -> None:
    true, false = (claim(1),), (claim(1, "false"),)
    assert agreed({"a": true, "b": true}) is None
    assert agreed({"a": true, "b": true, "c": false}) == claim(1)
    assert agreed({"a": true, "b": true, "c": false, "d": false}) is None
    assert agreed({"a": true, "b": true, "c": (), "d": ()}) is None
    assert opposed({"a": true, "b": false}, claim(1)) == ("b",)


def test_the_bytes_of_every_message_are_those_on_file() -> None:
    told = sign_claim(KEYS[0], claim(3, step=2))
    named = {"Manifest": manifest(entry("weights/a", 4)), "Which": Which(RUN), "Claim": claim(3)}
    lines = [f"{title} {encode(one).hex()}" for title, one in named.items()]
    lines.append(f"States {encode(States((told,))).hex()}")
    golden = Path(__file__).parent / "golden" / "states.hex"
    assert lines == golden.read_text(encoding="utf-8").splitlines()


def test_the_longest_answer_fits_its_letter() -> None:
    most = Claim(RUN, (1 << 53) - 1, (1 << 53) - 1, RUN, CHUNK_BYTES_MAX)
    assert len(encode(States((sign_claim(KEYS[0], most),) * CLAIMS_MAX))) <= LETTER_BYTES_MAX
