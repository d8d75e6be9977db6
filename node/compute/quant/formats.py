"""The formats that weights are served in, as one interface, and how a user chooses among them.

none   as the checkpoint stores them     2 or 4 bytes a weight
int8   a scale for each row              1 byte
nf4    a scale for each 64 columns       0.5625 bytes; a matrix of other widths: int8
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ....errors import UserError
from ..weight import FORMATS, NF4_GROUP, Format, Weight
from .quantizers import to_int8, to_nf4

AUTO = "auto"  # what the checkpoint stores
_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Quantization:
    """One format: what a matrix becomes in it, and how large that is."""

    format: Format
    _quantize: Callable[[Tensor], Weight]

    def quantize(self, matrix: Tensor) -> Weight:
        """A matrix (n, k) of fp32, bf16 or fp16 in this format. Raises NotFinite."""
        return self._quantize(matrix)

    def take(self, weight: Weight) -> Weight:
        """A weight as it comes, in this format: unchanged where that is its own. Raises NotFinite.

        From one quantized format to another it is dequantized first, to fp32.
        """
        if weight.format == self.fitting(weight.columns):
            return weight
        plain = weight.codes if weight.format == "none" else weight.dequantize()
        return self._quantize(plain)

    def fitting(self, columns: int) -> Format:
        """The format of a matrix of this width: nf4 has whole groups, or it is int8."""
        return "int8" if self.format == "nf4" and columns % NF4_GROUP else self.format

    def bytes_of(self, rows: int, columns: int, *, stored_bytes: int = 2) -> int:
        """Bytes of a matrix, its scales among them; stored_bytes: of one number as it is stored."""
        match self.fitting(columns):
            case "int8":
                return rows * (columns + _SCALE_BYTES)
            case "nf4":
                return rows * (columns // 2 + columns // NF4_GROUP * _SCALE_BYTES)
            case _:
                return rows * columns * stored_bytes

    def misfits(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """Names of the matrices that are served in another format because of their width."""
        return tuple(
            name
            for name, shape in shapes.items()
            if len(shape) == 2 and self.fitting(shape[1]) != self.format
        )


def _to_nf4(matrix: Tensor) -> Weight:
    return to_int8(matrix) if matrix.shape[1] % NF4_GROUP else to_nf4(matrix)


QUANTIZATIONS: dict[Format, Quantization] = {
    "none": Quantization("none", Weight.plain),
    "int8": Quantization("int8", to_int8),
    "nf4": Quantization("nf4", _to_nf4),
}


def choose(wanted: str | None, stored: Format = "none") -> Quantization:
    """The format that `--quantization` names. Raises UserError.

    wanted: None or `auto`: as the checkpoint stores its weights (`Checkpoint.stored_format`).
    """
    if wanted is None or wanted == AUTO:
        return QUANTIZATIONS[stored]
    if wanted not in FORMATS:
        raise UserError(f"--quantization {wanted!r} is not known; use {AUTO}, {', '.join(FORMATS)}")
    return QUANTIZATIONS[wanted]
