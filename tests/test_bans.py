"""Bans are on disk with their proofs, whatever else is there."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from receipts import key
from testimonies import NOW, accusation, announced

from potluck.cli.main import main
from potluck.crypto.codec import encode
from potluck.dht.record import DOMAIN
from potluck.node import home as homes
from potluck.node.trust.bans import BANS, Bans, _Kept
from potluck.swarm.banned import Acquaintance, Ban
from potluck.swarm.reputation import FOR_GOOD_S
from potluck.swarm.testimony import check_contradiction, contradiction_of, sign_accusation

MALLORY, LIAR = key("m"), key("l")
PROOF = contradiction_of(DOMAIN, announced(MALLORY, stop=4).raw, announced(MALLORY, stop=8).raw)
FOR_GOOD = Ban(MALLORY.peer_id, math.inf, "contradiction", PROOF)
FOR_A_WHILE = Ban(
    LIAR.peer_id, NOW + 100, "recomputed", sign_accusation(key("a"), accusation(LIAR))
)


def test_bans_are_there_again_with_their_proofs(tmp_path: Path) -> None:
    bans = Bans(tmp_path)
    assert bans.load(NOW) == ()
    assert bans.keep(FOR_GOOD, NOW) and bans.keep(FOR_A_WHILE, NOW)
    found = Bans(tmp_path).load(NOW)
    assert set(found) == {FOR_GOOD, FOR_A_WHILE}
    (proof,) = [ban.proof for ban in found if ban.peer == MALLORY.peer_id]
    assert check_contradiction(proof) == MALLORY.peer_id  # type: ignore[arg-type]


def test_a_ban_that_is_over_is_gone_from_the_disk(tmp_path: Path) -> None:
    bans = Bans(tmp_path)
    bans.keep(FOR_A_WHILE, NOW)
    assert bans.load(NOW + 100) == ()
    assert list((tmp_path / BANS).iterdir()) == []


def test_the_last_word_on_a_peer_stands(tmp_path: Path) -> None:
    bans = Bans(tmp_path)
    bans.keep(FOR_A_WHILE, NOW)
    longer = replace(FOR_A_WHILE, until_s=NOW + 200)
    bans.keep(longer, NOW)
    assert bans.load(NOW) == (longer,)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, bytes(100_000)])
def test_what_cannot_be_read_is_put_aside_and_costs_the_others_nothing(
    tmp_path: Path, content: bytes
) -> None:
    bans = Bans(tmp_path)
    bans.keep(FOR_GOOD, NOW)
    (tmp_path / BANS / LIAR.peer_id).write_bytes(content)
    assert bans.load(NOW) == (FOR_GOOD,)
    assert (tmp_path / BANS / f"{LIAR.peer_id}.broken").read_bytes() == content
    assert bans.load(NOW) == (FOR_GOOD,)


def test_a_file_under_another_name_bans_nobody(tmp_path: Path) -> None:
    bans = Bans(tmp_path)
    bans.keep(FOR_GOOD, NOW)
    (tmp_path / BANS / MALLORY.peer_id).rename(tmp_path / BANS / LIAR.peer_id)
    assert bans.load(NOW) == ()


def test_a_full_disk_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    bans = Bans(tmp_path)
    bans.keep(FOR_GOOD, NOW)
    monkeypatch.setattr(homes.Path, "write_bytes", full)
    assert not bans.keep(FOR_A_WHILE, NOW)
    assert bans.load(NOW) == (FOR_GOOD,)


def test_of_too_many_the_oldest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potluck.node.trust.bans.KEPT_MAX", 3)
    bans = Bans(tmp_path)
    liars = [key(f"liar {number}").peer_id for number in range(5)]
    for liar in liars:
        bans.keep(replace(FOR_GOOD, peer=liar), NOW)
    assert {ban.peer for ban in Bans(tmp_path).load(NOW)} == set(liars[2:])
    assert len(list((tmp_path / BANS).iterdir())) == 3


def test_of_too_many_strangers_go_first_after_a_restart_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potluck.node.trust.bans.KEPT_MAX", 3)
    met = replace(FOR_GOOD, known=Acquaintance(90_000.0, "1.2.0.0/16"))
    Bans(tmp_path).keep(met, NOW)
    for number in range(5):
        bans = Bans(tmp_path)
        bans.load(NOW)
        bans.keep(replace(FOR_GOOD, peer=key(f"liar {number}").peer_id), NOW)
    assert met in Bans(tmp_path).load(NOW)
    assert len(list((tmp_path / BANS).iterdir())) == 3


def test_a_ban_of_the_first_version_is_read(tmp_path: Path) -> None:
    raw = encode(_Kept(1, MALLORY.peer_id, FOR_GOOD_S, "contradiction", PROOF))
    (tmp_path / BANS).mkdir()
    (tmp_path / BANS / MALLORY.peer_id).write_bytes(raw)
    assert Bans(tmp_path).load(NOW) == (FOR_GOOD,)


def test_without_a_home_nothing_is_kept() -> None:
    assert not Bans(None).keep(FOR_GOOD, NOW) and Bans(None).load(NOW) == ()


def test_anybody_can_check_the_proof_of_a_ban_offline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bans = Bans(tmp_path)
    for ban in (FOR_GOOD, FOR_A_WHILE):
        assert bans.keep(ban, NOW)
    path = tmp_path / BANS / MALLORY.peer_id
    assert main(["verify", str(path)]) == 0 and MALLORY.peer_id in capsys.readouterr().out
    whole = path.read_bytes()
    for statement in (PROOF.one, PROOF.other):  # a bit of each that is signed
        at = whole.index(statement) + len(statement) // 2
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert main(["verify", str(path), "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["convicted"] is None
    path.write_bytes(whole.replace(MALLORY.peer_id.encode(), LIAR.peer_id.encode()))
    assert main(["verify", str(path)]) == 1, "it convicts nobody else"
    capsys.readouterr()
    assert main(["verify", str(tmp_path / BANS / LIAR.peer_id)]) == 1
    assert "nobody can read from signatures" in capsys.readouterr().out
