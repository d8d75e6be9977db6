"""Bad input on every topic and stream: which test holds what, and faults that letters share.

TABLE says for each protocol and fault where it is tried, node and all; a protocol that is not in it
fails here. The newer protocols speak in letters of tagged messages: what is malformed, truncated,
oversized, unknown or has a field too many is tried here on each of their golden messages.

A dash: on that stream nothing is signed, or a question has one answer, so that there is no order,
no date and no second time. Faults of the machine have a line of their own at the end.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import msgpack
import pytest

from potluck.crypto.codec import decode_any, encode
from potluck.errors import RemoteError
from potluck.swarm import chunk, vouch, weights
from potluck.swarm.run import btard_wire, claims, group_wire, lives, scalars, statement

TESTS = Path(__file__).parent
ROOT = TESTS.parent
FAULTS = (
    "malformed", "oversized", "duplicated", "reordered", "future-dated", "wrongly signed",
    "unknown",
)  # fmt: skip
HERE = "bad_input_table:test_no_letter_with_a_fault_is_read"
NONE = "-"
_LETTERS = "bad_letters:test_a_comparison_that_no_honest_peer_has_is_its_senders_fault"
_RECORDS = "bad_letters:test_a_record_that_nobody_may_believe_changes_no_registry"
_COURT = "court_rubbish:test_rubbish_costs_its_sender_its_score_and_bounded_memory"
_CAP = "capability:test_what_nobody_honest_passes_on_is_wrong"
_AGAIN = "gossip:test_a_replay_by_the_same_neighbour_ends_it"
_OVER = "gossip:test_an_oversized_message_is_not_judged"
_NEWS = "capability:test_only_what_is_true_new_and_of_this_segment_is_passed_on"
_VIEW = "bad_letters:test_a_view_that_nobody_can_read_is_its_senders_fault"
_TWICE = "bad_letters:test_a_view_that_is_told_twice_or_names_its_reader_and_nonsense_adds_nobody"
_TILL = "till:test_what_no_honest_client_sends_ends_the_stream_alone"
_VOUCH = "voucher:test_nonsense_ends_the_talk_and_is_its_senders_fault"
_FORGED = "voucher:test_whoever_tells_what_was_not_asked_for_or_what_is_forged_is_to_blame"
_PULLS = "run_exchange:test_what_no_honest_peer_sends_counts_for_nothing_and_is_blamed"
_EPOCHS = "run_gossip:test_what_is_old_is_not_taken_and_what_is_ahead_is"
_SPEAKS = "run_gossip:test_nobody_is_heard_who_was_not_asked_or_speaks_twice"
_STATED = "run_gossip:test_a_statement_is_of_its_signer_its_run_and_its_bytes"
_GROUP = "group_churn:test_nonsense_is_its_senders_fault_and_nobody_elses"
_GUARD = "btard_wire:test_no_other_bytes_are_a_message"
_CLAIM = "btard_wire:test_neither_another_body_nor_another_step_goes_with_a_claim"
_LIVES = "guarded_lives:test_who_answers_nonsense_is_blamed_and_who_answers_nothing_is_nowhere"
_STATE = "states:test_who_asks_nonsense_is_a_fault_and_of_an_unknown_run_nothing_is_told"
_VOICE = "states:test_who_answers_no_honest_answer_has_no_voice"
_PAGE = "scalars:test_a_page_that_no_honest_peer_signs_is_refused"
_TRAIN = "training:test_what_no_honest_client_asks_is_refused_before_a_byte_is_read"
_PIECES = "training:test_pieces_that_are_not_what_was_told_end_that_request_alone"
_FRAME = "frame:test_random_bytes_are_refused_or_waited_for_never_a_crash"
_KAD = "directory_foes:test_nonsense_closes_its_stream_and_is_counted_and_nothing_else"

_ONCE = "court_rubbish:test_one_word_heard_twice_from_many_costs_nobody_and_bans_once"
_BACK = "voucher:test_what_is_taken_back_stops_to_count_and_its_replay_is_passed_over"
_FORK = "btard_wire:test_two_claims_for_one_place_convict_before_anybody_and_two_places_nobody"
_SHOWN = (
    "bad_letters:"
    "test_whoever_asks_for_no_exhibit_or_for_too_many_is_told_nothing_and_others_are_shown"
)
_SUMS = (
    "credit:test_tallies_of_any_time_in_any_order_and_many_times_are_worth_no_more_than_was_given"
)
_NAME = "bad_letters:test_who_asks_for_an_exhibit_and_says_no_name_or_reads_nothing_is_cut_off"
TABLE: dict[str, tuple[str, ...]] = {
    "/potluck/evidence/2": (
        _COURT, _COURT, _ONCE,
        "court:test_what_was_attested_before_its_accusation_came_is_heard", _COURT,
        "court_rubbish:test_no_bit_that_is_turned_makes_evidence", _COURT,
    ),
    "/potluck/cap/1": (_CAP, _OVER, _AGAIN, _NEWS, _NEWS, _CAP, _CAP),
    "/potluck/registry/1": (_LETTERS, _LETTERS, _LETTERS, _LETTERS, _RECORDS, _RECORDS, _LETTERS),
    "/potluck/sample/1": (_VIEW, _VIEW, _TWICE, NONE, NONE, NONE, _VIEW),
    "/potluck/credit/1": (
        _TILL, _TILL, "credit:test_an_old_tally_or_the_same_again_adds_nothing",
        _SUMS,
        "credit:test_a_clock_that_was_ahead_makes_nothing_worth_more", _TILL, _TILL,
    ),
    "/potluck/kad/2": (
        _KAD, _KAD, "record:test_10_000_rolled_back_and_replayed_records_are_all_refused",
        "record:test_all_readers_merge_to_the_same_record",
        "record:test_times_are_held_to_the_second",
        "record:test_20_000_forged_and_mutated_records_are_all_refused", _KAD,
    ),
    "/potluck/vouch/1": (
        _VOUCH, _VOUCH, _BACK,
        "vouch:test_a_revocation_that_comes_first_is_kept_until_nothing_is_left_to_take_back",
        "vouch:test_what_no_honest_peer_signs_is_refused", _FORGED, HERE,
    ),
    "/potluck/run/1": (HERE, HERE, _SPEAKS, _SPEAKS, _EPOCHS, _STATED, HERE),
    "/potluck/group/1": (_GROUP, _GROUP, _GROUP, _GROUP, NONE, _GROUP, HERE),
    "/potluck/guarded/1": (
        _GUARD, HERE, _FORK,
        _CLAIM, NONE, _CLAIM, HERE,
    ),
    "/potluck/guarded/lives/1": (_LIVES, HERE, NONE, NONE, NONE, NONE, HERE),
    "/potluck/chunks/1": (
        "chunk_serve:test_who_asks_nonsense_or_nothing_is_left", HERE,
        "chunk_serve:test_who_asks_nonsense_or_nothing_is_left", NONE, NONE, NONE, HERE,
    ),
    "/potluck/weights/1": (
        "weight_pull:test_tables_of_rubbish_and_silence_are_their_senders_faults_alone", HERE,
        NONE, NONE, NONE,
        "weights:test_a_table_says_what_is_here_and_is_read_only_from_who_signed_it", HERE,
    ),
    "/potluck/state/1": (_STATE, _VOICE, NONE, NONE, NONE, _VOICE, HERE),
    "/potluck/scalars/1": (
        "hearing:test_who_talks_nonsense_is_blamed_and_costs_a_talk", HERE,
        "scalars:test_the_weights_follow_from_the_set_of_pages_whatever_the_order",
        "scalars:test_the_weights_follow_from_the_set_of_pages_whatever_the_order",
        "scalars:test_who_is_no_member_or_far_ahead_takes_no_room", _PAGE, HERE,
    ),
    "/potluck/train/1": (_FRAME, _TRAIN, _PIECES, _PIECES, NONE, NONE, _FRAME),
    "/potluck/session/2": (
        _FRAME, "frame:test_a_bad_prefix_is_refused_before_its_body", NONE, NONE, NONE,
        "live_receipts:test_who_signs_what_is_not_so_or_nothing_is_replaced_and_blamed", _FRAME,
    ),
    "/potluck/exhibit/1": (
        _NAME,
        _SHOWN,
        NONE, NONE, NONE, NONE, NONE,
    ),
    "/potluck/reach/1": (
        "reach:test_an_answer_about_a_port_that_nobody_asked_for_is_a_lie",
        "reach:test_a_question_with_too_many_ports_is_refused", NONE, NONE, NONE, NONE, NONE,
    ),
}  # fmt: skip
MACHINE = {
    "a clock that jumps by hours": (
        "bad_letters:test_a_clock_that_jumps_by_hours_gets_nobody_blamed_and_heals",
        "voucher:test_a_clock_that_jumps_by_hours_gives_and_takes_nothing_for_good",
        "restored:test_a_clock_that_jumps_while_a_node_runs_changes_no_name",
    ),
    "a disk restored from an old snapshot": (
        "restored:test_a_restored_home_never_says_two_things_under_one_name",
        "purse:test_a_restored_disk_is_healed_and_contradicts_nobody",
        "scalar_run:test_who_begins_with_an_older_snapshot_still_knows_all_that_it_said",
        "run_exchange:test_after_a_stop_the_same_is_said_again",
    ),
    "a full disk": (
        "full_disk:test_what_was_written_before_stays_and_nobody_ends",
        "voucher:test_a_full_disk_ends_nothing_and_what_was_heard_is_written_later",
        "till:test_a_full_disk_ends_no_session_and_signs_nothing",
        "chunk_fetch:test_a_disk_that_fills_up_ends_the_fetch_with_one_line_and_keeps_what_came",
        "run_store:test_a_disk_that_fills_up_at_any_moment_leaves_the_last_checkpoint_and_no_rest",
        "scalar_run:test_a_full_disk_ends_the_run_before_anything_is_said",
    ),
}
# Streams of which others are asked for no more than a number, or that only tests and benches open.
ELSEWHERE = {
    "/potluck/chain/1": "as session/2, and who may push: tests/test_chain_tickets.py",
    "/potluck/chain/2": "the same, and who may wait for its ticket: tests/test_chain_tickets.py",
    "/potluck/session/3": "as session/2, and what is worn: tests/test_wardrobe.py",
    "/potluck/session/4": "as session/2, and what is remembered: tests/test_recalls.py",
    "/potluck/session/coded/1": "as session/2, with other rows: tests/test_coded.py, test_rows.py",
    "/potluck/swim/1": "frames of one size: tests/test_membership.py, test_words.py",
    "/potluck/clock/1": "one number, outvoted: tests/test_clock.py",
    "/potluck/queue/1": "one number, waited for briefly: tests/test_queues.py",
    "/potluck/bench/echo/1": "opened by potluck bench alone",
    "/potluck/bench/sink/1": "opened by potluck bench alone",
}


@cache
def names_in(name: str) -> frozenset[str]:
    tree = ast.parse((TESTS / f"test_{name}.py").read_text("utf-8"))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


@pytest.mark.parametrize("protocol", TABLE)
def test_each_fault_on_each_stream_has_a_test(protocol: str) -> None:
    assert len(TABLE[protocol]) == len(FAULTS)
    for fault, where in zip(FAULTS, TABLE[protocol], strict=True):
        if where != NONE:
            name, _, test = where.partition(":")
            assert test in names_in(name), f"{protocol}, {fault}"


@pytest.mark.parametrize("fault", MACHINE)
def test_each_fault_of_the_machine_has_tests(fault: str) -> None:
    for where in MACHINE[fault]:
        name, _, test = where.partition(":")
        assert test in names_in(name)


def test_no_stream_is_left_out() -> None:
    found = set()
    for folder in ("swarm", "node", "dht"):
        for path in (ROOT / folder).rglob("*.py"):
            found |= set(re.findall(r'"(/potluck/[a-z/]+/[0-9]+)', path.read_text("utf-8")))
    assert found == TABLE.keys() | ELSEWHERE.keys()


# ---- letters

LETTERS: dict[str, tuple[ModuleType, int, str]] = {  # by golden file
    "chunks": (chunk, chunk.LETTER_BYTES_MAX, "/potluck/chunks/1"),
    "group": (group_wire, group_wire.LETTER_BYTES_MAX, "/potluck/group/1"),
    "guarded": (btard_wire, btard_wire.MESSAGE_BYTES_MAX, "/potluck/guarded/1"),
    "lives": (lives, lives.LETTER_BYTES_MAX, "/potluck/guarded/lives/1"),
    "run": (statement, statement.LETTER_BYTES_MAX, "/potluck/run/1"),
    "scalars": (scalars, scalars.LETTER_BYTES_MAX, "/potluck/scalars/1"),
    "states": (claims, claims.LETTER_BYTES_MAX, "/potluck/state/1"),
    "vouch": (vouch, vouch.LETTER_BYTES_MAX, "/potluck/vouch/1"),
    "weights": (weights, weights.TABLE_BYTES_MAX, "/potluck/weights/1"),
}


def packed(raw: bytes, **more: object) -> bytes:
    """The same message with other fields."""
    told = msgpack.unpackb(raw, raw=False, strict_map_key=False)
    changed: bytes = msgpack.packb({**told, **more}, use_bin_type=True)
    return changed


BROKEN: dict[str, Callable[[bytes, int], bytes]] = {
    "malformed": lambda raw, most: b"\xc1" * len(raw),
    "empty": lambda raw, most: b"",
    "cut off": lambda raw, most: raw[:-1],
    "with more behind": lambda raw, most: raw + b"\0",
    "oversized": lambda raw, most: raw + bytes(most),
    "unknown": lambda raw, most: packed(raw, **{"": "nobody knows this"}),
    "a field more": lambda raw, most: packed(raw, zzz=1),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("name", LETTERS)
def test_no_letter_with_a_fault_is_read(name: str, what: str) -> None:
    module, most, protocol = LETTERS[name]
    assert protocol == module.PROTOCOL
    kinds: tuple[Any, ...] = tuple(
        one for one in vars(module).values() if isinstance(one, type) and hasattr(one, "TAG")
    )
    read = 0
    for word in (TESTS / "golden" / f"{name}.hex").read_text("utf-8").split():
        if not re.fullmatch(r"(?:[0-9a-f]{2}){8,}", word):
            continue  # the name of what follows
        raw = bytes.fromhex(word)
        try:
            message = decode_any(raw, kinds, max_bytes=most)
        except RemoteError:
            continue  # a statement in a message: its envelope, or its body
        assert encode(message) == raw
        read += 1
        with pytest.raises(RemoteError):
            decode_any(BROKEN[what](raw, most), kinds, max_bytes=most)
    assert read > 0
