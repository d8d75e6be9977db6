"""Bar E3's cost: what receipts and audits take, beside the work that they are about.

    python -m integration.receipt_cost

Processor time of one thread (not the wall's: a busy machine would be measured else). A server's
notary hashes what comes in and goes out of each token and signs every 32; its client checks that.
An audit is a prompt up to the last chunk that it compares. What audits take at the floor rate is
told as a share of what decoding took, in sessions of some lengths: the tokens that are computed
again where lots fall as a client's do (audit_law.py), at what one costs in a prompt.
"""

from __future__ import annotations

import json
import random
import time
from typing import Any

import torch

from potluck.crypto.keys import IdentityKey
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.native_stage import NativeStage
from potluck.node.compute.pages import Pool
from potluck.node.library import DEMO_FOLDER
from potluck.swarm.audit import AuditConfig
from potluck.swarm.receipt import CHUNK_TOKENS, Account, Notary, Opening

from .audit_law import computed

TOKENS = 512
WIDTHS = (192, 2048, 4096)
CHUNKS = (1, 8, 32, 128)  # of a session


def notary_us(width: int) -> tuple[float, float]:
    """Microseconds a token: the server's, and the client's check of signatures and roots."""
    row_bytes = 4 * width
    key = IdentityKey.generate()
    opening = Opening(bytes(16), bytes(16), 0.0, bytes(32), "none c1", 0, 2, width, "f32")
    row = random.Random(1).randbytes(row_bytes)
    notary = Notary(key, opening, row_bytes)
    raws: list[bytes] = []
    began = time.process_time()
    for at in range(TOKENS):
        notary.took(at, row)
        notary.gave(row)
        if (at + 1) % CHUNK_TOKENS == 0:
            raws += notary.sign()
    server = time.process_time() - began
    began = time.process_time()
    account = Account(notary.opening)
    again = Notary(key, opening, row_bytes)  # a client hashes the same rows, and signs nothing
    for at in range(TOKENS):
        again.took(at, row)
        again.gave(row)
    for raw in raws:
        account.add(raw)
    client = time.process_time() - began
    return server / TOKENS * 1e6, client / TOKENS * 1e6


def stage_us(stage: NativeStage) -> tuple[float, float]:
    """Microseconds a token through all blocks: one by one, and in a prompt of 256."""
    pool = Pool(budget_bytes=1 << 27, page_bytes=stage.page_bytes)
    hidden = torch.randn(TOKENS, stage.spec.hidden, generator=torch.Generator().manual_seed(1))
    spent = []
    for size in (256, 1, 256, 1):  # the first round warms up
        lease = pool.open(0, stage.stop, TOKENS)
        lease.reserve(0, TOKENS)
        began = time.process_time()
        for at in range(0, TOKENS, size):
            stage.forward_rows(hidden[at : at + size], [(lease, at, size)])
        spent.append((time.process_time() - began) / TOKENS * 1e6)
        lease.release()
    return spent[3], spent[2]


def measure() -> dict[str, Any]:
    config = AuditConfig()
    shares = {chunks: computed(chunks, config.floor, config) for chunks in CHUNKS}
    checkpoint = open_checkpoint(str(DEMO_FOLDER))
    found: dict[str, Any] = {}
    for width in WIDTHS:
        server, client = notary_us(width)
        found[f"width {width}"] = {
            "server_us_a_token": round(server, 1), "client_us_a_token": round(client, 1),
        }  # fmt: skip
    for format in ("none", "nf4"):
        stage = NativeStage.load(
            checkpoint, 0, checkpoint.spec.blocks, quantization=format, threads=1
        )
        decode, prefill = stage_us(stage)
        found[f"demo {format}"] = {
            "decode_us_a_token": round(decode, 1),
            "prompt_to_decode": round(prefill / decode, 4),
            "audits": {
                f"{chunks * CHUNK_TOKENS} tokens": round(share * prefill / decode, 4)
                for chunks, share in shares.items()
            },
        }
    found["audits_of_prompts"] = {
        f"{chunks * CHUNK_TOKENS} tokens": round(share, 4) for chunks, share in shares.items()
    }
    return found


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
