"""potluck verify: what the terminal says of a receipt, and what it exits with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from receipts import key, session

from potluck.cli.main import main
from potluck.swarm.proof import Answer, Note, Share, write_proof

SHARES = (Share(0, 0, 37), Share(1, 0, 37))


@pytest.fixture
def receipt(tmp_path: Path) -> Path:
    return receipt_of(tmp_path)


def receipt_of(tmp_path: Path, adapter: bytes = b"") -> Path:
    accounts = [stage.account for stage in session("ab", [32, 5], adapter=adapter)]
    answer = Answer(
        b"session of tests", 1.8e9, bytes(range(32)), "demo", 4, tuple(range(38)), 30, 37,
        SHARES, bytes(32),
    )  # fmt: skip
    note = Note(0, 1, None, 1e-5, 2e-5, 0.03, "right")
    path = tmp_path / "answer.receipt"
    path.write_bytes(write_proof(key("client"), accounts, [note], answer))
    return path


def test_a_good_receipt_is_0_and_says_who_signed(
    receipt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(receipt)]) == 0
    said = capsys.readouterr().out
    assert "8 tokens of demo" in said and "good: every signature, 2 links" in said
    assert key("a").peer_id in said and key("b").peer_id in said and key("client").peer_id in said
    assert "audited" in said and "as the client says" in said


def test_a_changed_one_is_1_and_says_where(
    receipt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = bytearray(receipt.read_bytes())
    at = raw.index(b"chunk") + 100
    raw[at] ^= 1
    receipt.write_bytes(raw)
    assert main(["verify", str(receipt)]) == 1
    assert "fault: line 3: chunk 1 of blocks 0:2" in capsys.readouterr().out
    assert main(["verify", str(receipt), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["faults"][0]["line"] == 3 and not facts["good"]


def test_another_model_than_said_is_told(
    receipt: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["verify", str(receipt), "-m", "demo", "--home", str(tmp_path)]) == 1
    assert "another model" in capsys.readouterr().out


def test_the_adapter_that_was_worn_is_told_and_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worn = b"a" * 32
    receipt = str(receipt_of(tmp_path, worn))
    assert main(["verify", receipt, "--adapter", worn.hex()]) == 0
    assert f"they wore the adapter {worn.hex()}\n" in capsys.readouterr().out
    assert main(["verify", receipt, "--adapter", "cd" * 32]) == 1
    assert main(["verify", receipt, "--adapter", ""]) == 1
    assert f"another adapter than that: {worn.hex()}" in capsys.readouterr().out
    bare = str(receipt_of(tmp_path))
    assert main(["verify", bare, "--adapter", ""]) == 0
    assert main(["verify", bare, "--adapter", worn.hex(), "--json"]) == 1
    assert '"adapters": []' in capsys.readouterr().out


def test_no_file_is_2_and_rubbish_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "none")]) == 2
    (tmp_path / "rubbish").write_bytes(bytes(range(256)))
    assert main(["verify", str(tmp_path / "rubbish")]) == 1
    assert "line 1" in capsys.readouterr().out
