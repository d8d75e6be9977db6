"""How rows of hidden states lie on the wire.

    f32          4 bytes a number: what the servers compute in, so that nothing is lost
    f16, bf16    2
    int8         1, and a scale of 2 bytes for each group of 128 numbers
    int4         half a byte, and the same

Whoever asks chooses one for a session: a boundary's rows go over two links, out of one hop and into
the next, and with another codec on each they would be rounded twice; so the slowest link of the
route decides, and a hop that takes another's place is sent the very bytes that the other had. What
is signed and audited are these bytes. Peers that know no groups are not asked for them: `coded`
sessions have a protocol of their own (wire.py).
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from ..errors import RemoteError

Codec = Literal["f32", "bf16", "int8", "int4"]
CODECS: Final[tuple[Codec, ...]] = get_args(Codec)  # from the finest to the coarsest
GROUP: Final = 128  # numbers beside one scale
SCALE_BYTES: Final = 2
GROUP_BITS: Final = {"int8": 8, "int4": 4}
DTYPE_BYTES: Final = {"f32": 4, "f16": 2, "bf16": 2}


def is_coded(dtype: str) -> bool:
    """Whether rows of it are in groups."""
    return dtype in GROUP_BITS


def row_bytes(width: int, dtype: str) -> int:
    """Bytes of a row of so many numbers. Raises RemoteError for what is not known."""
    if dtype in DTYPE_BYTES:
        return width * DTYPE_BYTES[dtype]
    if dtype in GROUP_BITS:
        return -(-width // GROUP) * SCALE_BYTES + -(-width * GROUP_BITS[dtype] // 8)
    raise RemoteError(f"unknown dtype {dtype}")
