"""How long a range of blocks takes until it is served, and what it needs beside itself.

    python -m integration.engine_load

1 GiB of bf16 weights (12 blocks of hidden 2048, ffn 5632) as nf4, through `NativeStage.load`, which
reads, quantizes and packs: against reading the file plus quantizing as much at the best rate
measured; and once more from the disk cache, against reading that. Files are in the system's cache.
"""

from __future__ import annotations

import gc
import json
import tempfile
from pathlib import Path
from typing import Any

from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.native_stage import NativeStage
from potluck.node.compute.quant.measure import (
    largest_growth,
    loading,
    read_all,
    seconds,
    write_blocks,
)

THREADS = 2
BLOCKS = 12


def measure() -> dict[str, Any]:
    """Seconds, bytes and ratios."""
    with tempfile.TemporaryDirectory(prefix="potluck-load-") as name:
        rates = loading(Path(name), hidden=2048, ffn=5632, blocks=2)
    quantize_s = rates["quantize_s"] * BLOCKS / 2
    with tempfile.TemporaryDirectory(prefix="potluck-load-") as name:
        folder = Path(name)
        write_blocks(folder, hidden=2048, ffn=5632, blocks=BLOCKS)
        checkpoint = open_checkpoint(folder, home=folder)  # a home remembers the digest
        read_s = seconds(lambda: read_all(folder / "model.safetensors"))
        kept = folder / "kept"

        def load(cache: Path | None) -> NativeStage:
            return NativeStage.load(
                checkpoint, 0, BLOCKS, quantization="nf4", threads=THREADS, cache_dir=cache
            )

        load_s = seconds(lambda: load(None))  # as often as what it is compared with
        gc.collect()
        made: list[NativeStage] = []
        grown = largest_growth(lambda: made.append(load(None)))
        held = made[0].weight_bytes
        made.clear()
        load(kept)
        files = sorted(kept.glob("*/*"))

        def read_kept() -> None:
            for file in files:
                read_all(file)

        read_kept_s = seconds(read_kept)
        kept_s = seconds(lambda: load(kept))
    return {
        "read_s": round(read_s, 3),
        "quantize_s": round(quantize_s, 3),
        "load_s": round(load_s, 3),
        "load_ratio": round(load_s / (read_s + quantize_s), 2),
        "range_mib": round(held / 2**20, 1),
        "block_mib": round(held / BLOCKS / 2**20, 1),
        "beside_mib": round((grown - held) / 2**20, 1),
        "read_kept_s": round(read_kept_s, 3),
        "kept_s": round(kept_s, 3),
        "kept_ratio": round(kept_s / read_kept_s, 2),
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
