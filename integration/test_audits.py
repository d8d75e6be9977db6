"""Honest peers audit honest peers, each in its own way of serving: nobody is convicted."""

from __future__ import annotations

from .audits_honest import FORMATS, LIES, measure


def test_no_honest_peer_is_convicted_and_every_cheat_is_seen() -> None:
    """Of a few chunks of each kind: all of ours are exact, so that each false chunk is wrong."""
    found = measure(300, "tiny")
    assert found["judged"] >= 300 and found["falsely_convicted"] == 0
    covered = " ".join(found["covered"])
    for what in (*FORMATS, "a prompt's", "decoded", "kv8", "bf16"):
        assert what in covered
    cheats = [row for row in found["kinds"] if row["what"].startswith("cheat: ")]
    assert {row["what"][7:] for row in cheats} == {lie.partition(":")[0] for lie in LIES}
    assert all(row["caught"]["own class"] > 0.9 for row in cheats)
