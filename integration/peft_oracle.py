"""Issue F, bar 9: PEFT's own logits beside ours, for an adapter of PEFT's, and one of ours in PEFT.

    python -m venv /tmp/peft && /tmp/peft/bin/pip install peft transformers .
    /tmp/peft/bin/python -m integration.peft_oracle        one JSON line for each kind of adapter

Both compute the demo model in fp32; ours in two stages that wear parts, as servers do. PEFT is no
dependency: where it is not installed a merged model stands in (tests/test_parts.py).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.choice import StageWish, open_stage
from potluck.node.compute.head import Ends
from potluck.node.compute.parts import read_bundle, write_peft
from potluck.node.compute.tensor import pack, unpack
from potluck.node.library import DEMO_FOLDER
from potluck.swarm.blocks import BlockRange
from potluck.swarm.wire import Step

IDS = list(range(5, 105))
CUT = 4  # blocks of the first stage
KINDS: list[dict[str, Any]] = [
    {"r": 8, "lora_alpha": 16},
    {
        "r": 5, "lora_alpha": 7, "use_rslora": True,
        "alpha_pattern": {"q_proj": 3}, "rank_pattern": {"down_proj": 2},
    },
]  # fmt: skip


def base() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype=torch.float32)


def theirs(model: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0]  # type: ignore[no-any-return]


def ours(parts: Mapping[int, bytes], engine: str) -> Tensor:
    """Logits behind each token, through two stages that wear these parts."""
    demo = open_checkpoint(DEMO_FOLDER)
    ends, rows = Ends.load(demo), len(IDS)
    payload = pack(ends.embed(IDS), "f32")
    wish = StageWish("cpu", "fp32", engine, quantization="none", threads=1, cache_bytes=1 << 26)
    for blocks in (BlockRange(0, CUT), BlockRange(CUT, demo.spec.blocks)):
        stage = open_stage(demo, blocks, wish).engine
        mine = {block: parts[block] for block in range(blocks.start, blocks.stop)}
        cache = stage.open_cache(blocks, rows, stage.dress("adapter", mine))
        work = stage.begin(cache, payload, Step(0, (rows,), rows), "f32")
        stage.run([(work, rows)])
        payload = work.answer()
    hidden = unpack(payload, rows, demo.spec.hidden, "f32")
    return torch.cat([ends.logits(one[None]).reshape(1, -1) for one in hidden])


def apart(found: Tensor, expected: Tensor) -> dict[str, float]:
    off = found - expected
    return {"most": float(off.abs().max()), "relative": float(off.norm() / expected.norm())}


def compare(kind: dict[str, Any], folder: Path) -> dict[str, Any]:
    import peft

    demo = open_checkpoint(DEMO_FOLDER)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **kind)
    model = peft.get_peft_model(base(), config)
    for name, numbers in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(numbers, std=0.05)
    expected = theirs(model)
    model.save_pretrained(folder / "theirs")
    bundle = read_bundle(folder / "theirs", demo.spec, demo.digest())
    write_peft(bundle, folder / "ours")
    again = peft.PeftModel.from_pretrained(base(), folder / "ours")
    return {
        "kind": kind,
        "peft": peft.__version__,
        "native": apart(ours(bundle.parts, "native"), expected),
        "torch": apart(ours(bundle.parts, "torch"), expected),
        "ours_in_peft": apart(theirs(again), expected),
        "same_digest": read_bundle(folder / "ours", demo.spec, demo.digest()) == bundle,
        "adapter_itself": apart(theirs(base()), expected),
    }


def measure() -> list[dict[str, Any]]:
    """Of each kind."""
    torch.manual_seed(0)
    found = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            found.append(compare(kind, Path(folder)))
    return found


def main() -> None:
    for one in measure():
        print(json.dumps(one))


if __name__ == "__main__":
    main()
