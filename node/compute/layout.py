"""Where the matrices and vectors of a block lie in a checkpoint, and how families name them.

A block is, for every family, the same few things; only their names differ, and that some are
stored joined: Phi-3's q, k and v are rows of one tensor.

    q k v out                                attention (rows of `out` are the hidden state)
    gate up down                             the feed-forward of a dense block
    router, 0.gate 0.up 0.down, 1.gate ...   those of a mixture
    norm_in, norm_mid                        before attention, before the feed-forward
    norm_attended, norm_fed                  after them, before they add (Gemma)
    q_norm k_norm, q_bias k_bias v_bias out_bias gate_bias up_bias down_bias

Source: the published checkpoints of each family; transformers 5 saves the same names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ...errors import UserError
from .spec import ModelSpec
from .weight import Weight

Shape = tuple[int, ...]
ROUTER = "router"  # a matrix that is never quantized: it is small, and a choice is no average


@dataclass(frozen=True, slots=True)
class Part:
    """Rows start..stop of a tensor; a vector's elements."""

    tensor: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of one block: what of them is what."""

    shapes: dict[str, Shape]  # of the tensors, by their names in the checkpoint
    matrices: dict[str, Part]
    vectors: dict[str, Part]

    @property
    def exact(self) -> frozenset[str]:
        """The tensors that no format rounds: the vectors, and the router."""
        parts = [part for name, part in self.matrices.items() if name == ROUTER]
        return frozenset(part.tensor for part in (*parts, *self.vectors.values()))


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """What one block computes with, by the names above: matrices as stored, vectors as stored."""

    matrices: dict[str, Weight]
    vectors: dict[str, Tensor]

    @staticmethod
    def of(
        layout: Layout, matrices: Mapping[str, Weight], vectors: Mapping[str, Tensor]
    ) -> "BlockWeights":
        """From whole tensors by their names in the checkpoint, matrices in whatever format.

        Matrices that are not there are left out: packed ones may have been kept (native_stage.py).
        """
        return BlockWeights(
            {
                name: _picked(matrices[part.tensor], part)
                for name, part in layout.matrices.items()
                if part.tensor in matrices
            },
            {
                name: vectors[part.tensor][part.start : part.stop]
                for name, part in layout.vectors.items()
            },
        )


def layout_of(spec: ModelSpec, index: int) -> Layout:
    """The tensors of block `index`. Raises UserError for a model that is not of our families."""
    if spec.general is not None:
        raise UserError(
            f"models of {spec.family} run in transformers' own code: use --engine torch"
        )
    found = Layout({}, {}, {})
    name = _Namer(found, f"{spec.prefix}layers.{index}.")
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    attention = {"q": q, "k": kv, "v": kv}
    if spec.family == "phi3":
        name.matrices("self_attn.qkv_proj.weight", attention, spec.hidden)
    else:
        for one, rows in attention.items():
            name.matrices(f"self_attn.{one}_proj.weight", {one: rows}, spec.hidden)
    name.matrices("self_attn.o_proj.weight", {"out": spec.hidden}, q)
    if spec.qkv_bias:
        for one, rows in attention.items():
            name.vector(f"self_attn.{one}_proj.bias", f"{one}_bias", rows)
    if spec.out_bias:
        name.vector("self_attn.o_proj.bias", "out_bias", spec.hidden)
    for one in ("q_norm", "k_norm") if spec.qk_norm else ():
        name.vector(f"self_attn.{one}.weight", one, spec.head_dim)
    norms = {"input_layernorm": "norm_in", "post_attention_layernorm": "norm_mid"}
    if spec.post_norms:
        norms = {
            "input_layernorm": "norm_in",
            "post_attention_layernorm": "norm_attended",
            "pre_feedforward_layernorm": "norm_mid",
            "post_feedforward_layernorm": "norm_fed",
        }
    for stored, ours in norms.items():
        name.vector(f"{stored}.weight", ours, spec.hidden)
    if spec.experts_of(index):
        _mixture(spec, name, index)
    else:
        _dense(spec, name)
    return found


def weight_shapes(spec: ModelSpec, index: int) -> dict[str, Shape]:
    """Names and shapes of block `index` in the checkpoint."""
    return layout_of(spec, index).shapes


def _dense(spec: ModelSpec, name: "_Namer") -> None:
    ffn, hidden = spec.ffn, spec.hidden
    if spec.family == "phi3":
        name.matrices("mlp.gate_up_proj.weight", {"gate": ffn, "up": ffn}, hidden)
    else:
        name.matrices("mlp.gate_proj.weight", {"gate": ffn}, hidden)
        name.matrices("mlp.up_proj.weight", {"up": ffn}, hidden)
    name.matrices("mlp.down_proj.weight", {"down": hidden}, ffn)
    if spec.mlp_bias:
        for one, rows in (("gate", ffn), ("up", ffn), ("down", hidden)):
            name.vector(f"mlp.{one}_proj.bias", f"{one}_bias", rows)


def _mixture(spec: ModelSpec, name: "_Namer", index: int) -> None:
    ffn, hidden, experts = spec.expert_ffn, spec.hidden, spec.experts_of(index)
    mixtral = spec.family == "mixtral"
    place = "block_sparse_moe" if mixtral else "mlp"
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    name.matrices(f"{place}.gate.weight", {ROUTER: experts}, hidden)
    for one in range(experts):
        stored = f"{place}.experts.{one}"
        name.matrices(f"{stored}.{gate}.weight", {f"{one}.gate": ffn}, hidden)
        name.matrices(f"{stored}.{up}.weight", {f"{one}.up": ffn}, hidden)
        name.matrices(f"{stored}.{down}.weight", {f"{one}.down": hidden}, ffn)


@dataclass(frozen=True, slots=True)
class _Namer:
    """Writes names into a layout."""

    layout: Layout
    prefix: str

    def matrices(self, stored: str, rows: Mapping[str, int], columns: int) -> None:
        """A tensor of so many rows for each of our matrices, one below the other."""
        at = 0
        for ours, count in rows.items():
            self.layout.matrices[ours] = Part(self.prefix + stored, at, at + count)
            at += count
        self.layout.shapes[self.prefix + stored] = (at, columns)

    def vector(self, stored: str, ours: str, width: int) -> None:
        self.layout.vectors[ours] = Part(self.prefix + stored, 0, width)
        self.layout.shapes[self.prefix + stored] = (width,)


def _picked(weight: Weight, part: Part) -> Weight:
    whole = (part.start, part.stop) == (0, weight.rows)
    return weight if whole else weight.pick(part.start, part.stop)
