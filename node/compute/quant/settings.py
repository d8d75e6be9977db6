"""Which kind of quantized checkpoint a config.json describes: its `quantization_config`, strictly.

What it says and no rule here reads is refused by name: a matrix that is read slightly wrong would
be served for long.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ..fields import Fields
from .packing import Packing
from .stored_bits import bitsandbytes_packing
from .stored_groups import awq_packing, gptq_packing

_READERS: dict[str, Callable[[Fields], Packing]] = {
    "bitsandbytes": bitsandbytes_packing,
    "gptq": gptq_packing,
    "awq": awq_packing,
}


def packing_of(config: Mapping[str, Any]) -> Packing | None:
    """How a checkpoint keeps its matrices; None: as plain numbers. Raises UserError."""
    found = config.get("quantization_config")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise Fields(config, "config.json").wrong("quantization_config", "is not an object")
    fields = Fields(found, "config.json: quantization_config")
    old = "load_in_8bit" in found or "load_in_4bit" in found  # of 2023, without a method
    method = fields.text("quant_method", "bitsandbytes" if old else "")
    if method not in _READERS:
        raise fields.wrong(
            "quant_method",
            f"{method!r} is not served; give a checkpoint of {', '.join(_READERS)},"
            " or the model's unquantized one",
        )
    return _READERS[method](fields)
