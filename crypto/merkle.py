"""One digest for many leaves, and a short proof that a leaf is among them.

RFC 6962's tree (Laurie, Langley and Kasper, 2013): leaves and nodes are hashed in domains of their
own, so that a node can never be passed off as a leaf, and a tree of n leaves is cut at the largest
power of two below n, so that there is one tree for each n. The root is over the number of leaves
too: a proof cannot lie about where in the row its leaf stands, nor how long the row is.

    root = H("root", n, top)
                top
              /     \\
           node      c        leaf: H("leaf", bytes)
          /    \\              node: H("node", left, right)
         a      b             proof of b: [a, c]

A leaf here is one token's hidden state, as it was sent; a root stands for a chunk of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from .codec import Range, Size
from .digest import DIGEST_BYTES, digest

Bytes = bytes | bytearray | memoryview
Digest = Annotated[bytes, Size(DIGEST_BYTES, least=DIGEST_BYTES)]

LEAVES_MAX: Final = 1 << 24
_LEAF, _NODE, _ROOT = "merkle leaf", "merkle node", "merkle root"


@dataclass(frozen=True, slots=True)
class Proof:
    """That a leaf stands at `index` of `count`. path: what it is hashed with, from below."""

    index: Annotated[int, Range(0, LEAVES_MAX)]
    count: Annotated[int, Range(1, LEAVES_MAX)]
    path: Annotated[tuple[Digest, ...], Size(24)]

    def __post_init__(self) -> None:
        if self.index >= self.count:
            raise ValueError(f"leaf {self.index} of {self.count}")


def leaf_of(leaf: Bytes) -> bytes:
    """The digest of one leaf."""
    return digest(_LEAF, leaf)


def leaves_of(rows: Bytes, row_bytes: int) -> list[bytes]:
    """The digests of the rows that lie in `rows` one after another, each of `row_bytes`."""
    view = memoryview(rows).cast("B")
    if len(view) == row_bytes > 0:  # a step of one token: most are
        return [digest(_LEAF, view)]
    if row_bytes < 1 or len(view) % row_bytes:
        raise ValueError(f"{len(view)} bytes are no rows of {row_bytes}")
    return [leaf_of(view[at : at + row_bytes]) for at in range(0, len(view), row_bytes)]


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root of the digests of so many leaves; of none at all too."""
    return _root(len(leaves), _top(leaves) if leaves else b"")


def prove(leaves: Sequence[bytes], index: int) -> Proof:
    """The proof that leaf `index` stands among the leaves with these digests."""
    path: list[bytes] = []
    start, stop = 0, len(leaves)
    while stop - start > 1:
        middle = start + _cut(stop - start)
        if index < middle:
            path.append(_top(leaves[middle:stop]))
            stop = middle
        else:
            path.append(_top(leaves[start:middle]))
            start = middle
    return Proof(index, len(leaves), tuple(reversed(path)))


def proves(proof: Proof, leaf: Bytes, root: bytes) -> bool:
    """Whether `leaf` stands where the proof says, in the tree of this root. Never raises."""
    sides: list[bool] = []  # from the top: whether the leaf is on the left
    index, count = proof.index, proof.count
    while count > 1:
        left = _cut(count)
        sides.append(index < left)
        index, count = (index, left) if index < left else (index - left, count - left)
    if len(sides) != len(proof.path):
        return False
    top = leaf_of(leaf)
    for on_left, other in zip(reversed(sides), proof.path, strict=True):
        top = digest(_NODE, top, other) if on_left else digest(_NODE, other, top)
    return _root(proof.count, top) == root


def _root(count: int, top: bytes) -> bytes:
    return digest(_ROOT, count.to_bytes(8), top)


def _top(leaves: Sequence[bytes]) -> bytes:
    """From below: whoever has no neighbour waits a level. It is the same tree as one cut from
    above, without a list for each node."""
    level = leaves
    while len(level) > 1:
        paired = [digest(_NODE, level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]


def _cut(count: int) -> int:
    """The largest power of two below `count`, which is two or more."""
    return 1 << (count - 1).bit_length() - 1
