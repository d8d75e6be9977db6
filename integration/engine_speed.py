"""How fast the engine is on this processor, beside llama.cpp, on the same weights in one run.

The shape is that of a Llama of 1.1B parameters without its vocabulary (512 tokens, so that what is
measured is the blocks): hidden 2048, 16 blocks, ffn 5632, 32 heads of which 4 have keys. Rounds of
ours and of theirs alternate, and the ratio is that of the medians.

    python -m integration.engine_speed [--llama /path/to/python]

--llama (or POTLUCK_LLAMA) is a Python that has llama-cpp-python, built for this machine, and gguf:

    python3 -m venv llama && CMAKE_ARGS=-DGGML_NATIVE=ON llama/bin/pip install llama-cpp-python gguf
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from potluck.node.compute.checkpoint import Checkpoint
from potluck.node.compute.hub import Directory
from potluck.node.compute.native.library import read_bandwidth
from potluck.node.compute.native_stage import NativeStage
from potluck.node.compute.pages import Lease, Pool

HIDDEN, BLOCKS, FFN, HEADS, KV_HEADS, VOCAB = 2048, 16, 5632, 32, 4, 512
THREADS = 2
PROMPT = 128
STEPS = {1: 24, 8: 8, 16: 6}  # decode steps in a round, by sessions
ROUNDS = 5
PEER = Path(__file__).with_name("llama_peer.py")
THEIRS = {"int8": "Q8_0", "nf4": "Q4_0"}


def write_checkpoint(folder: Path, *, blocks: int = BLOCKS) -> None:
    """Random weights of the shape, bf16."""
    dice = torch.Generator().manual_seed(1)
    head = HIDDEN // HEADS

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=dice) * columns**-0.5).to(torch.bfloat16)

    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    tensors = {
        "model.embed_tokens.weight": matrix(VOCAB, HIDDEN),
        "lm_head.weight": matrix(VOCAB, HIDDEN),
        "model.norm.weight": ones.clone(),
    }
    for index in range(blocks):
        place = f"model.layers.{index}."
        tensors |= {
            place + "input_layernorm.weight": ones.clone(),
            place + "post_attention_layernorm.weight": ones.clone(),
            place + "self_attn.q_proj.weight": matrix(HIDDEN, HIDDEN),
            place + "self_attn.k_proj.weight": matrix(KV_HEADS * head, HIDDEN),
            place + "self_attn.v_proj.weight": matrix(KV_HEADS * head, HIDDEN),
            place + "self_attn.o_proj.weight": matrix(HIDDEN, HIDDEN),
            place + "mlp.gate_proj.weight": matrix(FFN, HIDDEN),
            place + "mlp.up_proj.weight": matrix(FFN, HIDDEN),
            place + "mlp.down_proj.weight": matrix(HIDDEN, FFN),
        }
    save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": blocks,
        "intermediate_size": FFN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 8192,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


class Ours:
    """Our stage of all blocks."""

    def __init__(self, folder: Path, quantization: str) -> None:
        checkpoint = Checkpoint(str(folder), Directory(folder, None))
        self.stage = NativeStage.load(
            checkpoint, 0, checkpoint.spec.blocks, quantization=quantization, threads=THREADS
        )
        self.pool = Pool(budget_bytes=1 << 30, page_bytes=self.stage.page_bytes)
        dice = torch.Generator().manual_seed(2)
        self.rows = torch.randn(PROMPT, HIDDEN, generator=dice)

    def _lease(self, tokens: int) -> Lease:
        lease = self.pool.open(0, self.stage.stop, tokens)
        lease.reserve(0, tokens)
        return lease

    def prefill(self, tokens: int) -> float:
        lease = self._lease(tokens)
        began = time.perf_counter()
        self.stage.forward_rows(self.rows[:tokens], [(lease, 0, tokens)])
        spent = time.perf_counter() - began
        lease.release()
        return spent

    def decode(self, sessions: int, steps: int, length: int) -> float:
        leases = [self._lease(length + steps) for _ in range(sessions)]
        for lease in leases:
            self.stage.forward_rows(self.rows[:length], [(lease, 0, length)])
        rows = self.rows[:sessions]
        began = time.perf_counter()
        for step in range(steps):
            self.stage.forward_rows(rows, [(lease, length + step, 1) for lease in leases])
        spent = time.perf_counter() - began
        for lease in leases:
            lease.release()
        return spent


class Theirs:
    """llama.cpp in a Python of its own."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, str(PEER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )

    def ask(self, *words: object) -> dict[str, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(*words, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def prefill(self, tokens: int) -> float:
        return self.ask("prefill", tokens)["seconds"]

    def decode(self, sessions: int, steps: int, length: int) -> float:
        return self.ask("decode", sessions, steps, length)["seconds"]


@contextmanager
def open_theirs(python: str) -> Iterator[Theirs]:
    theirs = Theirs(python)
    try:
        yield theirs
    finally:
        theirs.process.kill()
        theirs.process.wait()


def _rates(sides: dict[str, Any], rounds: int) -> dict[str, dict[str, float]]:
    """Tokens a second of each side, medians of alternating rounds."""
    spent: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for name, side in sides.items():
            found = {"prefill": PROMPT / side.prefill(PROMPT)}
            for sessions, steps in STEPS.items():
                took = side.decode(sessions, steps, PROMPT)
                found[f"decode{sessions}"] = sessions * steps / took
            if number:  # the first round pays for memory
                for what, rate in found.items():
                    spent.setdefault((name, what), []).append(rate)
    told: dict[str, dict[str, float]] = {name: {} for name in sides}
    for (name, what), rates in spent.items():
        told[name][what] = round(statistics.median(rates), 1)
    return told


def measure(llama: str | None, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Both formats, ours and theirs, and how near decoding comes to the memory's speed."""
    told: dict[str, Any] = {"threads": THREADS}
    with tempfile.TemporaryDirectory(prefix="potluck-engine-") as name:
        folder = Path(name)
        write_checkpoint(folder)
        for quantization, kind in THEIRS.items():
            ours = Ours(folder, quantization)
            sides: dict[str, Any] = {"ours": ours}
            if llama is None:
                found: dict[str, Any] = _rates(sides, rounds)
            else:
                with open_theirs(llama) as theirs:
                    theirs.ask("convert", folder, folder / f"{kind}.gguf", kind)
                    theirs.ask("load", folder / f"{kind}.gguf", THREADS)
                    found = _rates(sides | {"llama": theirs}, rounds)
                found["ratio"] = {
                    what: round(rate / found["llama"][what], 2)
                    for what, rate in found["ours"].items()
                }
            bandwidth = read_bandwidth(THREADS)
            read = found["ours"]["decode1"] * ours.stage.weight_bytes
            found["read_GB_s"] = round(bandwidth / 1e9, 1)
            found["weights_read_share"] = round(read / bandwidth, 3)
            found["batch16_over_1"] = round(found["ours"]["decode16"] / found["ours"]["decode1"], 2)
            told[quantization] = found
            del ours
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama", default=os.environ.get("POTLUCK_LLAMA"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.llama, rounds=asked.rounds), indent=2))


if __name__ == "__main__":
    main()
