"""An answer's receipt: whoever flips one bit is found out, and where; what it proves is told."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from receipts import MODEL, SESSION, Stage, key, rows, session

from potluck.swarm.proof import Answer, Note, Share, check_proof, write_proof
from potluck.swarm.receipt import Account

CLIENT = key("client")


def answer(fed: int, shares: tuple[Share, ...], *, blocks: int = 4) -> Answer:
    tokens = tuple(range(fed + 1))
    return Answer(SESSION, 1.8e9, MODEL, "demo", blocks, tokens, 1, fed, shares, bytes(32))


def audited(*worn: bytes) -> bytes:
    """Two servers, 70 positions; b's second chunk was computed again by c, with equal bits.

    worn: the adapter of each."""
    dice = Random(5)
    of_a, of_b, of_c = worn or (b"", b"", b"")
    a, b, c = (
        Stage("a", 0, 2, adapter=of_a),
        Stage("b", 2, 4, adapter=of_b),
        Stage("c", 2, 4, adapter=of_c),
    )
    for at, tokens in ((0, 32), (32, 32), (64, 6)):
        one, two, three = (rows(dice, tokens) for _ in range(3))
        a.step(at, one, two)
        b.step(at, two, three)
        if at < 64:
            c.step(at, two, three)
        for stage in (a, b, c):
            stage.cut()
    accounts = [a.account, b.account, c.account]
    note = Note(1, 1, 2, 0.0, 0.0, 0.0, "right")
    return write_proof(CLIENT, accounts, [note], answer(70, (Share(0, 0, 70), Share(1, 0, 70))))


def test_a_good_file_says_what_it_proves() -> None:
    proof = check_proof(audited())
    assert proof.good and proof.faults == [] and proof.bare == []
    assert proof.client == CLIENT.peer_id and proof.answer is not None
    assert proof.linked == 3
    assert [(one.blocks, one.chunks) for one in proof.signers] == [
        ("0:2", 3), ("2:4", 3), ("2:4", 2),
    ]  # fmt: skip
    (one,) = proof.audited
    assert (one.peer, one.by, one.at, one.shown) == (
        key("b").peer_id, key("c").peer_id, 32, True,
    )  # fmt: skip
    assert proof.audited_share == 64 / 280


def test_a_file_says_which_adapter_was_worn_and_whether_it_was_one() -> None:
    mine, other = b"a" * 32, b"b" * 32
    proof = check_proof(audited(mine, mine, mine))
    assert proof.good and proof.adapters == (mine.hex(),) and proof.audited[0].shown
    for worn in ((mine, other, other), (mine, b"", b""), (b"", mine, mine)):
        faults = check_proof(audited(*worn)).faults
        assert [fault.line for fault in faults] == [6]
        assert faults[0].what.endswith(f"wore another adapter than {key('a').peer_id}")
    for of_auditor in (b"", other):
        proof = check_proof(audited(mine, mine, of_auditor))
        assert not proof.audited[0].shown, "computed again with something else on"


def test_every_single_bit_counts_and_its_line_is_named() -> None:
    """A bit of every seventh byte, each of the eight in turn (all of them, which takes minutes:
    python -m integration.receipt_bits). A line's end that is flipped is a fault of that line."""
    good = audited()
    for at in range(0, len(good), 7):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        faults = check_proof(bytes(bad)).faults
        assert faults and faults[0].what
        assert faults[0].line == good.count(b"\n", 0, at) + 1, (at, faults[0])


def test_a_fault_in_a_chunk_says_whose_and_where() -> None:
    lines = audited().split(b"\n")
    bad = bytearray(lines[3])
    bad[40] = ord("A") if bad[40] != ord("A") else ord("B")
    first = check_proof(b"\n".join([*lines[:3], bytes(bad), *lines[4:]])).faults[0]
    assert str(first).startswith("line 4: chunk 2 of blocks 0:2 by " + key("a").peer_id)
    assert "from position 32" in str(first)


@given(st.data())
def test_lines_cannot_be_dropped_doubled_or_moved(data: st.DataObject) -> None:
    lines = audited().split(b"\n")[:-1]
    one = data.draw(st.integers(0, len(lines) - 1))
    other = data.draw(st.integers(0, len(lines) - 1))
    how = data.draw(st.sampled_from(["drop", "double", "swap"]))
    changed = list(lines)
    if how == "drop":
        del changed[one]
    elif how == "double":
        changed.insert(one, lines[one])
    elif lines[one] != lines[other]:
        changed[one], changed[other] = changed[other], changed[one]
    else:
        return
    assert not check_proof(b"\n".join(changed) + b"\n").good


@given(st.binary(max_size=300))
def test_rubbish_is_no_receipt(raw: bytes) -> None:
    assert not check_proof(raw).good
    assert not check_proof(b"potluck-receipt 1\n" + raw).good


def test_a_broken_link_is_a_fault_that_names_two_signers() -> None:
    a, b = Stage("a", 0, 2), Stage("b", 2, 4)
    dice = Random(6)
    a.step(0, rows(dice, 32), rows(dice, 32))
    b.step(0, rows(dice, 32), rows(dice, 32))
    a.cut()
    b.cut()
    shares = (Share(0, 0, 32), Share(1, 0, 32))
    proof = check_proof(write_proof(CLIENT, [a.account, b.account], [], answer(32, shares)))
    (fault,) = proof.faults
    assert re.search("positions 0..32 between block 1 and 2", str(fault))
    assert a.key.peer_id in str(fault) and b.key.peer_id in str(fault)


def test_what_nobody_signed_for_is_told() -> None:
    """b was lost after 32 tokens, and c, which took over, was asked to sign from 40 on."""
    a, b = (stage.account for stage in session("ab", [32, 16]))
    shares = (Share(0, 0, 48), Share(1, 0, 32))
    proof = check_proof(write_proof(CLIENT, [a, b], [], answer(48, shares)))
    assert proof.good
    assert proof.bare == ["block 2, positions 32..48", "block 3, positions 32..48"]


def test_another_model_session_or_signer_is_a_fault() -> None:
    accounts: list[Account] = [stage.account for stage in session("ab", [32])]
    shares = (Share(0, 0, 32), Share(1, 0, 32))
    right = answer(32, shares)
    for wrong, expected in (
        (dict(model=bytes(32)), "another model"),
        (dict(session=bytes(16)), "another session"),
        (dict(shares=(Share(2, 0, 32),)), "not there"),
    ):
        told = Answer(**{name: getattr(right, name) for name in right.__slots__} | wrong)
        faults = check_proof(write_proof(CLIENT, accounts, [], told)).faults
        assert faults and expected in str(faults[0])
    foreign = write_proof(key("x"), accounts, [Note(0, 0, None, 0, 0, 0, "right")], right)
    mine = write_proof(CLIENT, accounts, [], right)
    lines = mine.split(b"\n")
    mixed = [*lines[:-2], next(one for one in foreign.split(b"\n") if one[:5] == b"audit")]
    assert not check_proof(b"\n".join([*mixed, *lines[-2:]])).good


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        (Note(1, 0, None, 0.2, 0.3, 0.03, "wrong"), "was found wrong"),
        (Note(1, 0, 2, 0.0, 0.0, 0.0, "right"), "is not what the auditor gave"),
        (Note(1, 7, None, 0.0, 0.0, 0.0, "right"), "not there"),
        (Note(9, 0, None, 0.0, 0.0, 0.0, "right"), "not there"),
    ],
)
def test_an_audit_that_speaks_against_the_answer_is_a_fault(note: Note, expected: str) -> None:
    """The auditor took the same rows, and gave others."""
    dice = Random(7)
    a, b, c = Stage("a", 0, 2), Stage("b", 2, 4), Stage("c", 2, 4)
    one, two = rows(dice, 32), rows(dice, 32)
    a.step(0, one, two)
    b.step(0, two, rows(dice, 32))
    c.step(0, two, rows(dice, 32))
    for stage in (a, b, c):
        stage.cut()
    shares = (Share(0, 0, 32), Share(1, 0, 32))
    accounts = [a.account, b.account, c.account]
    proof = check_proof(write_proof(CLIENT, accounts, [note], answer(32, shares)))
    assert expected in str(proof.faults[0])


def test_an_audit_in_another_class_is_the_clients_word() -> None:
    """The numbers differ by roundings there, so that the accounts cannot show it."""
    accounts = [stage.account for stage in session("ab", [32])]
    note = Note(0, 0, None, 1e-4, 2e-4, 0.03, "right")
    shares = (Share(0, 0, 32), Share(1, 0, 32))
    proof = check_proof(write_proof(CLIENT, accounts, [note], answer(32, shares)))
    assert proof.good
    assert [(one.verdict, one.shown) for one in proof.audited] == [("right", False)]
    assert proof.audited_share == 0.5
