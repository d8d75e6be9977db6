"""Bar E9: every single bit of an answer's receipt, flipped: it fails, and says on which line.

    python -m integration.receipt_bits

Two servers of two blocks, 40 positions in two chunks, an audit by a third, the client's answer.
Also bar E3's bytes: of a receipt of 32 tokens, and of an opening, as they are sent.
"""

from __future__ import annotations

import json
import random
from typing import Any

from potluck.crypto.keys import IdentityKey
from potluck.swarm.proof import Answer, Note, Share, check_proof, write_proof
from potluck.swarm.receipt import Account, Notary, Opening

WIDTH, ROW_BYTES = 64, 256
CHUNKS = ((0, 32), (32, 8))
NUMERICS = "nf4 c1 kv8"
MODEL, SESSION = b"m" * 32, b"s" * 16


def _account(name: str, start: int, payloads: list[tuple[int, bytes, bytes]]) -> Account:
    key = IdentityKey.from_bytes(name.encode().ljust(32, b"."))
    opening = Opening(
        SESSION, name.encode().ljust(16, b"."), 1.8e9, MODEL, NUMERICS, start, start + 2,
        WIDTH, "f32",
    )  # fmt: skip
    notary = Notary(key, opening, ROW_BYTES)
    account = Account(notary.opening)
    for at, took, gave in payloads:
        notary.took(at, took)
        notary.gave(gave)
        for raw in notary.sign():
            account.add(raw)
    return account


def receipt() -> tuple[bytes, Account]:
    """A whole file, and its first account."""
    dice = random.Random(1)
    rows = [[dice.randbytes(count * ROW_BYTES) for _ in range(3)] for _, count in CHUNKS]
    first = [(at, one, two) for (at, _), (one, two, _) in zip(CHUNKS, rows, strict=True)]
    second = [(at, two, three) for (at, _), (_, two, three) in zip(CHUNKS, rows, strict=True)]
    accounts = [_account("a", 0, first), _account("b", 2, second), _account("c", 2, second)]
    client = IdentityKey.from_bytes(b"client".ljust(32, b"."))
    answer = Answer(
        SESSION, 1.8e9, MODEL, "demo", 4, tuple(range(41)), 5, 40,
        (Share(0, 0, 40), Share(1, 0, 40)), bytes(32),
    )  # fmt: skip
    note = Note(1, 0, 2, 0.0, 0.0, 0.0, "right")
    return write_proof(client, accounts, [note], answer), accounts[0]


def measure() -> dict[str, Any]:
    good, account = receipt()
    assert check_proof(good).good
    unnoticed = misplaced = 0
    for at in range(len(good)):
        line = good.count(b"\n", 0, at) + 1
        for bit in range(8):
            bad = bytearray(good)
            bad[at] ^= 1 << bit
            faults = check_proof(bytes(bad)).faults
            unnoticed += not faults
            misplaced += bool(faults) and faults[0].line != line
    return {
        "bits": 8 * len(good),
        "unnoticed": unnoticed,
        "first_fault_on_another_line": misplaced,
        "chunk_bytes": len(account.raw[1]),
        "opening_bytes": len(account.raw[0]),
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
