"""Honest peers audit honest peers, each in its own way of serving: nobody is convicted."""

from __future__ import annotations

from .audits_honest import LIES, measure


def test_no_honest_peer_is_convicted_and_every_cheat_is_seen() -> None:
    """Of a few chunks of each kind: all of ours are exact, so that each false chunk is wrong."""
    found = measure(200, "tiny", formats=("int8",))
    assert found["judged"] >= 200 and found["falsely_convicted"] == 0
    covered = " ".join(found["covered"])
    for what in ("format int8", "a prompt's", "decoded", "kv8"):
        assert what in covered
    cheats = found["cheats"]
    assert {row["what"][7:] for row in cheats} == {lie.partition(":")[0] for lie in LIES}
    assert all(row["wrong"] > 0.8 * row["audits"] for row in cheats)
