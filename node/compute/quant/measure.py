"""How fast weights are read, quantized and kept: `python -m potluck.node.compute.quant.measure`.

    quantize   GB of weights a second into int8 and nf4, ours in C, ours in torch, bitsandbytes'
    load       a range of blocks of 1 GiB in bf16 into nf4, against reading the file and quantizing
               at the best rate measured; the largest memory beside what is returned
    larder     the same range mapped back from disk and checked, against reading it

The files are in the system's cache, so that "reading" is the fastest that it can be.
"""

import argparse
import ctypes
import gc
import importlib.util
import json
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..checkpoint import Checkpoint, open_checkpoint
from ..layout import weight_shapes
from ..weight import Weight
from .blocks import block_weights
from .formats import QUANTIZATIONS
from .larder import Larder
from .product import require_bitsandbytes
from .quantizers import to_int8, to_nf4

_READ_BYTES = 8 << 20
_REPEATS = 7


def seconds(work: Callable[[], object], repeats: int = _REPEATS) -> float:
    """The shortest time of some calls: the one that others disturbed least."""
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return min(spent)


def quantize_rates(size: int, threads: list[int]) -> dict[tuple[str, str, str, int], float]:
    """GB of stored weights a second by (dtype, format, who, threads)."""
    theirs = importlib.util.find_spec("bitsandbytes") is not None
    if theirs:
        require_bitsandbytes()
    ops = torch.ops.bitsandbytes
    found = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        matrix = (torch.randn(size, size) * 0.02).to(dtype)
        for count in threads:
            torch.set_num_threads(count)
            calls: dict[tuple[str, str], Callable[[], object]] = {
                ("int8", "C"): partial(to_int8, matrix),
                ("nf4", "C"): partial(to_nf4, matrix),
                ("int8", "torch"): partial(to_int8, matrix, native=False),
                ("nf4", "torch"): partial(to_nf4, matrix, native=False),
            }
            if theirs:
                calls["int8", "bitsandbytes"] = partial(ops.int8_vectorwise_quant, matrix)
                calls["nf4", "bitsandbytes"] = partial(
                    ops.quantize_4bit, matrix, 64, "nf4", torch.uint8
                )
            for (format, who), call in calls.items():
                rate = matrix.nbytes / seconds(call, 3 if who != "C" else _REPEATS) / 1e9
                found[str(dtype).removeprefix("torch."), format, who, count] = rate
    return found


def write_blocks(folder: Path, *, hidden: int, ffn: int, blocks: int) -> Checkpoint:
    """A Llama of this shape with random bf16 weights."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "num_hidden_layers": blocks, "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 256, "intermediate_size": ffn, "vocab_size": 256,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    embedding = torch.zeros(256, hidden, dtype=torch.bfloat16)
    save_file({"model.embed_tokens.weight": embedding}, folder / "model.safetensors")
    spec = open_checkpoint(folder).spec
    weights = {"model.embed_tokens.weight": embedding}
    for index in range(blocks):
        for name, shape in weight_shapes(spec, index).items():
            weights[name] = (torch.randn(shape) * 0.02).to(torch.bfloat16)
    save_file(weights, folder / "model.safetensors")
    return open_checkpoint(folder)


def read_all(path: Path) -> None:
    """Read a file through one buffer."""
    buffer = bytearray(_READ_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def anonymous_bytes() -> int:
    """Memory of this process that no file is behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status does not say")


def largest_growth(work: Callable[[], object]) -> int:
    """Bytes by which memory had grown at most while `work` ran, as seen every millisecond."""
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1e-3):
            seen.append(anonymous_bytes())

    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # or what was freed before would be used again, and not be seen to grow
    watcher = threading.Thread(target=watch)
    before = anonymous_bytes()
    watcher.start()
    work()
    done.set()
    watcher.join()
    return max(seen, default=before) - before


def loading(folder: Path, *, hidden: int, ffn: int, blocks: int) -> dict[str, float]:
    """Seconds and bytes of loading a range, first from the checkpoint, then from the larder."""
    checkpoint = write_blocks(folder, hidden=hidden, ffn=ffn, blocks=blocks)
    spec, digest = checkpoint.spec, checkpoint.digest()
    names = {
        index: [name for name, shape in weight_shapes(spec, index).items() if len(shape) == 2]
        for index in range(blocks)
    }
    nf4 = QUANTIZATIONS["nf4"]
    path = folder / "model.safetensors"
    found: dict[str, float] = {"read_s": seconds(lambda: read_all(path))}
    inner = [torch.randn(ffn, hidden).to(torch.bfloat16) for _ in range(4)]
    each = seconds(lambda: [to_nf4(one) for one in inner]) / sum(one.nbytes for one in inner)
    found["quantize_s"] = each * path.stat().st_size

    def load(larder: Larder | None = None) -> list[dict[str, Weight]]:
        return [
            block_weights(checkpoint, at, names[at], nf4, digest=digest, larder=larder)
            for at in names
        ]

    found["load_s"] = seconds(load, 3)
    made: list[dict[str, Weight]] = []
    grown = largest_growth(lambda: made.extend(load()))
    held = sum(one.nbytes for block in made for one in block.values())
    found["range_bytes"] = held
    found["beside_bytes"] = grown - held
    found["block_bytes"] = held / blocks
    made.clear()
    kept = Larder(folder / "larder")
    load(kept)
    files = sorted((folder / "larder").glob("*/*"))

    def read_files() -> None:
        for file in files:
            read_all(file)

    found["larder_bytes"] = sum(one.stat().st_size for one in files)
    found["read_larder_s"] = seconds(read_files)
    found["larder_s"] = seconds(lambda: load(kept))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns to quantize")
    parser.add_argument("--blocks", type=int, default=12, help="of hidden 2048, ffn 5632")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    for key, rate in quantize_rates(asked.size, [1, asked.threads]).items():
        print(f"quantize {key[0]:9} {key[1]:5} {key[2]:13} {key[3]} threads {rate:7.3f} GB/s")
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        for name, value in loading(
            Path(folder), hidden=2048, ffn=5632, blocks=asked.blocks
        ).items():
            shown = f"{value:.3f} s" if name.endswith("_s") else f"{value / (1 << 20):.1f} MiB"
            print(f"{name:14} {shown}")


if __name__ == "__main__":
    main()
