"""Records: whoever reads one accepts the signer's own newest word, and nothing else."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.crypto.codec import decode, encode
from potluck.crypto.envelope import open_, sign
from potluck.crypto.keys import IdentityKey
from potluck.dht.keyspace import MODELS, Slot, spans_of
from potluck.dht.record import (
    BODY_BYTES_MAX,
    DOMAIN,
    SKEW_MAX_S,
    TTL_MAX_S,
    Announcement,
    ModelList,
    ModelName,
    Record,
    Registry,
    Signed,
    check,
    check_record,
    newest,
    read,
    sign_fact,
)
from potluck.errors import LocalError, RemoteError

NOW = 1_790_000_000.0
ALICE = IdentityKey.from_bytes(b"a" * 32)
MALLORY = IdentityKey.from_bytes(b"m" * 32)
MODEL = "ab" * 32
PLACE = spans_of(MODEL)


def announcement(key: IdentityKey = ALICE, model: str = MODEL) -> Announcement:
    return Announcement(
        model=model, name="org/name", start=0, stop=8, blocks=16, state="online", device="cpu",
        dtype="float32", quantization="none", decode_tokens_s=900.0, prefill_tokens_s=9000.0,
        addresses=(f"/ip4/192.0.2.7/tcp/4001/p2p/{key.peer_id}",), cache_tokens_free=8192,
        context_tokens_max=2048, numerics="none", version="0.1.0",
    )  # fmt: skip


def record(key: IdentityKey = ALICE, *, boot: int = 7, seq: int = 1, now: float = NOW) -> Record:
    return sign_fact(key, announcement(key), boot=boot, seq=seq, now=now)


def signed_anew(key: IdentityKey = ALICE, **change: object) -> bytes:
    """A record of Alice's with some fields changed, signed by `key`."""
    told = decode(open_(record().raw, DOMAIN)[1], Signed)
    return sign(key, DOMAIN, encode(replace(told, **change)))  # type: ignore[arg-type]


def test_a_good_record_is_read_with_its_signer_and_stamps() -> None:
    told = check(record(boot=7, seq=3).raw, PLACE, NOW + 1, peer=ALICE.peer_id)
    assert (told.peer, told.boot, told.seq) == (ALICE.peer_id, 7, 3)
    assert (told.issued_s, told.expires_s) == (NOW, NOW + TTL_MAX_S)
    assert told.blocks == 16 and told.addresses == announcement().addresses
    assert check_record(record().raw, PLACE, NOW) == record()


def test_a_record_for_another_peer_is_refused() -> None:
    with pytest.raises(RemoteError, match="signed by"):
        check(record(MALLORY).raw, PLACE, NOW, peer=ALICE.peer_id)
    told = check(signed_anew(MALLORY, body=encode(announcement(MALLORY))), PLACE, NOW)
    assert told.peer == MALLORY.peer_id  # at most, Mallory speaks for herself
    with pytest.raises(RemoteError, match="not the signer's own"):
        check(signed_anew(MALLORY), PLACE, NOW)  # and not with Alice's addresses


def test_times_are_held_to_the_second() -> None:
    raw = record().raw
    check(raw, PLACE, NOW - SKEW_MAX_S)  # signed by a clock 30 s ahead of ours
    check(raw, PLACE, NOW + TTL_MAX_S - 0.1)
    with pytest.raises(RemoteError, match="future"):
        check(raw, PLACE, NOW - SKEW_MAX_S - 0.1)
    with pytest.raises(RemoteError, match="expired"):
        check(raw, PLACE, NOW + TTL_MAX_S)


@pytest.mark.parametrize(
    "change",
    [
        {"expires_s": NOW + TTL_MAX_S + 1},
        {"expires_s": NOW + 1e9},
        {"expires_s": NOW},
        {"expires_s": NOW - 1},
        {"place": MODELS},
        {"place": spans_of("cd" * 32)},
        {"kind": "models"},
        {"kind": "other"},
        {"body": b""},
        {"body": encode(announcement()) + b"\0"},
        {"body": encode(announcement(model="cd" * 32))},
        {"body": encode(replace(announcement(), addresses=("/ip4/192.0.2.7/tcp/4001",)))},
        {"body": encode(ModelList(()))},
    ],
)
def test_even_a_signed_record_must_be_as_it_should(change: dict[str, object]) -> None:
    with pytest.raises(RemoteError):
        check(signed_anew(**change), PLACE, NOW)


def test_a_record_at_its_greatest_is_accepted_and_beyond_it_is_refused() -> None:
    raw = signed_anew(kind="k" * 16, body=bytes(BODY_BYTES_MAX))
    assert check_record(raw, PLACE, NOW).body == bytes(BODY_BYTES_MAX)
    with pytest.raises(LocalError):
        signed_anew(body=bytes(BODY_BYTES_MAX + 1))
    with pytest.raises(RemoteError, match="allowed"):
        check_record(raw + bytes(1000), PLACE, NOW)


def test_a_block_range_outside_the_model_is_refused() -> None:
    for start, stop in [(8, 8), (9, 8), (0, 17)]:
        with pytest.raises(ValueError, match="blocks"):
            replace(announcement(), start=start, stop=stop)


def test_20_000_forged_and_mutated_records_are_all_refused() -> None:
    """Flips, cuts, splices of two good records, swapped keys and signatures; a fixed seed."""
    dice = random.Random(5)
    good = [record(key, boot=boot).raw for key in (ALICE, MALLORY) for boot in (7, 8)]
    refused = 0
    while refused < 20_000:
        one, other = dice.sample(good, 2)
        at = dice.randrange(len(one))
        match dice.randrange(5):
            case 0:
                bad = bytearray(one)
                for _ in range(dice.randrange(1, 5)):
                    bad[dice.randrange(len(bad))] ^= dice.randrange(1, 256)
                raw = bytes(bad)
            case 1:
                raw = one[:at]
            case 2:
                raw = one[:at] + other[at:]
            case 3:
                raw = one[:at] + dice.randbytes(dice.randrange(1, 9)) + one[at:]
            case _:
                start = dice.randrange(len(one))
                raw = one[:start] + one[start + dice.randrange(1, 40) :]
        if raw in good:
            continue
        with pytest.raises(RemoteError):
            check(raw, PLACE, NOW)
        refused += 1


def test_10_000_rolled_back_and_replayed_records_are_all_refused() -> None:
    """A reader sees 100 records of one slot in any order: only what is newer is ever news."""
    dice = random.Random(6)
    orders = [(boot, seq) for boot in (7, 8, 9, 10) for seq in range(25)]
    records = {order: record(boot=order[0], seq=order[1]) for order in orders}
    old = 0
    for _ in range(220):
        registry, best = Registry(), (0, 0)
        for order in dice.sample(orders, len(orders)):
            if order > best:
                assert registry.admit(records[order])
                best = order
                continue
            with pytest.raises(RemoteError, match="rolled back"):
                registry.admit(records[order])
            old += 1
        assert best == (10, 24) and not registry.admit(records[best])  # once more is no news
    assert old > 10_000


def test_two_records_of_one_boot_and_seq_are_a_contradiction() -> None:
    registry = Registry()
    registry.admit(record())
    with pytest.raises(RemoteError, match="contradiction"):
        registry.admit(record(now=NOW + 1))


def test_slots_do_not_touch_one_another() -> None:
    registry = Registry()
    assert registry.admit(record(seq=9))
    assert registry.admit(record(MALLORY, seq=1))
    models = sign_fact(ALICE, ModelList(()), boot=1, seq=1, now=NOW)
    assert registry.admit(models) and len(registry) == 3


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8))
def test_all_readers_merge_to_the_same_record(orders: list[tuple[int, int]]) -> None:
    records = [record(boot=boot, seq=seq, now=NOW + at) for at, (boot, seq) in enumerate(orders)]

    def merge(several: list[Record]) -> Record:
        won = several[0]
        for another in several[1:]:
            won = newest(won, another)
        return won

    won = merge(records)
    assert won.order == max(orders)
    assert merge(records[::-1]) == merge(sorted(records, key=lambda r: r.digest)) == won


def test_a_mark_outlives_every_record_that_it_guards_against() -> None:
    """Old: issued by a clock 30 s ahead, so it lives longest. New: right after. Until the old one
    expires by itself, the registry still knows the new one."""
    old = record(seq=1, now=NOW + SKEW_MAX_S)
    new = record(seq=2, now=NOW)  # the clock was put right
    registry = Registry()
    registry.admit(new)
    for late in range(0, 200, 5):
        now = NOW + late
        registry.forget_expired(now)
        if now < old.expires_s:
            with pytest.raises(RemoteError, match="rolled back"):
                registry.admit(check_record(old.raw, PLACE, now))
        else:
            with pytest.raises(RemoteError, match="expired"):
                check_record(old.raw, PLACE, now)
    assert len(registry) == 0


def test_the_registry_is_bounded_and_forgets_the_longest_untouched_first() -> None:
    registry = Registry(marks_max=50)
    keys = [IdentityKey.from_bytes(bytes([n]) * 32) for n in range(1, 61)]
    for key in keys[:50]:
        registry.admit(record(key, seq=5))
    registry.admit(record(keys[0], seq=6))
    for key in keys[50:]:
        registry.admit(record(key))
    assert len(registry) == 50
    with pytest.raises(RemoteError):
        registry.admit(record(keys[0], seq=5))  # touched last of the old ones: still guarded


def test_the_models_of_a_peer_have_a_record_of_their_own() -> None:
    fact = ModelList((ModelName(MODEL, "org/name", 16),))
    kept = sign_fact(ALICE, fact, boot=1, seq=1, now=NOW)
    assert kept.slot == Slot(MODELS, ALICE.peer_id)
    told = read(check_record(kept.raw, MODELS, NOW), ModelList)
    assert told.models == fact.models and told.peer == ALICE.peer_id
    with pytest.raises(RemoteError):
        read(kept, Announcement)


def test_the_bytes_of_a_record_are_pinned() -> None:
    """A change of the schema breaks the swarm: it must show here, and raise the protocol's id."""
    assert record().digest.hex() == (
        "f9eb1fe95d54398c949db2ac86e285603dfd38ebf2642c78236e249c5180364a"
    )
