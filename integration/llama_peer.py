"""llama.cpp, measured beside us: the same weights, the same machine, the same threads.

Runs in a Python that has llama-cpp-python (built for this machine) and gguf, and imports nothing of
ours. It reads one command a line and answers each with one line of JSON:

    load MODEL.gguf THREADS          {"loaded": seconds}
    prefill TOKENS                   {"seconds": ...}
    decode SESSIONS STEPS LENGTH     {"seconds": ...}  each session holds LENGTH tokens before
    write CHECKPOINT OUT             {"written": bytes}   as stored, in bf16
    quantize IN OUT FORMAT THREADS   {"written": bytes}   every matrix as Q8_0 or Q4_0, by llama.cpp
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
FORMATS = {
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}
CONTEXT = 4096
SESSIONS_MAX = 16


def read_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a safetensors file of bf16, as stored."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    mapped = np.memmap(path, np.uint8, "r", 8 + size)
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        yield name, mapped[start:stop].view(np.uint16).reshape(entry["shape"])


def write(checkpoint: Path, out: Path) -> int:
    """Write the checkpoint as GGUF; vectors become fp32."""
    config = json.loads((checkpoint / "config.json").read_text())
    part = out.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    bf16 = gguf.GGMLQuantizationType.BF16
    for file in sorted(checkpoint.glob("*.safetensors")):
        for name, tensor in read_tensors(file):
            if tensor.ndim == 1:
                widened = (tensor.astype(np.uint32) << 16).view(np.float32)
                writer.add_tensor(_name(name), widened)
            else:
                writer.add_tensor(_name(name), tensor.view(np.uint8), raw_dtype=bf16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(out)
    return out.stat().st_size


def quantize(plain: Path, out: Path, kind: str, threads: int) -> int:
    """Write a GGUF in another format, all of it alike."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FORMATS[kind]
    params.pure = True
    params.nthread = threads
    part = out.with_suffix(".part")
    asked = (str(plain).encode(), str(part).encode(), ctypes.byref(params))
    if llama_cpp.llama_model_quantize(*asked) != 0:
        raise SystemExit("llama_model_quantize failed")
    part.replace(out)
    return out.stat().st_size


def _name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    if name == "lm_head.weight":
        return "output.weight"
    _, _, index, rest = name.split(".", 3)
    return f"blk.{index}.{NAMES[rest.removesuffix('.weight')]}.weight"


class Peer:
    """One loaded model."""

    def __init__(self, path: str, threads: int) -> None:
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), model)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = CONTEXT
        params.n_batch = params.n_ubatch = 512
        params.n_seq_max = SESSIONS_MAX
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)
        self.filled = (0, 0)  # sessions, and tokens that each holds

    def _run(self, rows: list[tuple[int, int, bool]]) -> None:
        """One pass: (session, position, with logits) a row."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for index, (session, position, wanted) in enumerate(rows):
            batch.token[index] = (session * 31 + position * 7) % 256
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = session
            batch.logits[index] = wanted
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_synchronize(self.context)

    def _clear(self) -> None:
        self.filled = (0, 0)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def _fill(self, sessions: int, length: int) -> None:
        """Sessions that hold `length` tokens: those of the round before, cut back, or new ones."""
        if self.filled == (sessions, length):
            memory = llama_cpp.llama_get_memory(self.context)
            for session in range(sessions):
                llama_cpp.llama_memory_seq_rm(memory, session, length, -1)
            return
        self._clear()
        for session in range(sessions):
            self._run([(session, position, False) for position in range(length)])
        self.filled = (sessions, length)

    def prefill(self, tokens: int) -> float:
        self._clear()
        began = time.perf_counter()
        self._run([(0, position, position == tokens - 1) for position in range(tokens)])
        return time.perf_counter() - began

    def decode(self, sessions: int, steps: int, length: int) -> float:
        self._fill(sessions, length)
        began = time.perf_counter()
        for step in range(steps):
            self._run([(session, length + step, True) for session in range(sessions)])
        return time.perf_counter() - began


def main() -> None:
    peer: Peer | None = None
    for line in sys.stdin:
        word, *rest = line.split()
        began = time.perf_counter()
        if word == "write":
            told = {"written": write(Path(rest[0]), Path(rest[1]))}
        elif word == "quantize":
            told = {"written": quantize(Path(rest[0]), Path(rest[1]), rest[2], int(rest[3]))}
        elif word == "load":
            peer = Peer(rest[0], int(rest[1]))
            told = {"loaded": time.perf_counter() - began}
        elif peer is None:
            raise SystemExit("load a model first")
        elif word == "prefill":
            told = {"seconds": peer.prefill(int(rest[0]))}
        else:
            told = {"seconds": peer.decode(*map(int, rest))}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
