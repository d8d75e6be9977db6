"""Compiles our Triton kernels for cards that need not be here: `triton_compile.py nf4 80 90`.

Prints for each card, by its compute capability, what of interest its code holds.
"""

from __future__ import annotations

import sys
from typing import Any

from triton.backends.compiler import GPUTarget  # type: ignore[import-not-found]
from triton.compiler import ASTSource, compile  # type: ignore[import-not-found]

from potluck.node.compute.quant import triton_kernels as kernels
from potluck.node.compute.weight import INT8_STEP, NF4_GROUP


def ptx_of(format: str, capability: int) -> str:
    """The first tiling's code in bf16."""
    function = kernels._int8 if format == "int8" else kernels._nf4
    tiling = kernels.TILINGS[format][0]  # type: ignore[index]
    constants: dict[str, Any] = {"WIDTH": 16, "OUTPUTS": tiling.outputs, "BIASED": True}
    constants |= {"PRECISION": "tf32"}
    if format == "int8":
        constants |= {"INPUTS": tiling.inputs, "STEP": INT8_STEP}
    else:
        constants |= {"GROUP": NF4_GROUP, "TERMS": 2}
    kinds = {"scales": "*fp32", "codes": "*i8" if format == "int8" else "*u8"}
    kinds |= dict.fromkeys(("rows", "outputs", "inputs"), "i32")
    kinds |= dict.fromkeys(constants, "constexpr")
    names = function.arg_names
    source = ASTSource(
        function,
        {name: kinds.get(name, "*bf16") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(names)
            if name not in constants and name != "rows"
        },
    )
    options = {"num_warps": tiling.warps, "num_stages": tiling.stages, "enable_fp_fusion": True}
    compiled = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return str(compiled.asm["ptx"])


if __name__ == "__main__":
    for capability in sys.argv[2:]:
        code = ptx_of(sys.argv[1], int(capability))
        print(*(word for word in ("mma", "cp.async") if word in code))
