"""The layers of a model that transformers' own code computes, and its two ends.

The model's own forward pass runs, with its own masks and rotary embeddings, over a list of only
the layers that are asked for. Block 0 gets the embeddings, and what the model does to them before
its first layer is done there, where positions are known; into every other first layer the hidden
state is put as it came, whatever the pass made of it before. After the last layer it is taken out.

    embeddings ── what comes before ──▶ layer 0 ─ ... ─ layer n-1 ── norm, head (the client's)
    hidden ─────────────────────────▶ layer i ─ ... ─ layer j-1 ──▶ hidden
"""

import copy
import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import RemoteError, UserError
from .cache import Cache
from .checkpoint import Checkpoint
from .general import FAULTS, Skeleton, empty, fill, new_past, one_line, skeleton, tie
from .memory import require_memory
from .quant.race import Chosen
from .spec import ModelSpec


class GeneralCache(Cache):
    """What transformers' layers remember of one session."""

    def __init__(self, start: int, stop: int, *, max_tokens: int, token_bytes: int) -> None:
        self.start = start
        self.stop = stop
        self.max_tokens = max_tokens
        self.length = 0
        self.past = new_past(start)
        self._per_token = token_bytes

    @property
    def capacity(self) -> int:
        """Positions that fit: it grows with every step."""
        return self.max_tokens

    def truncate(self, at: int) -> None:
        if not 0 <= at <= self.length:
            raise RemoteError(f"truncation to position {at}, but the cache holds {self.length}")
        if at < self.length:
            self.past.truncate(at)
            self.length = at

    def reserve(self, stop: int) -> None:
        if stop > self.max_tokens:
            raise RemoteError(f"position {stop} is beyond the {self.max_tokens} agreed")

    def release(self) -> None:
        self.length = self.max_tokens = 0
        self.past = None


@dataclass(slots=True)
class _Pass:
    """What the hooks of a running pass put in and take out."""

    first: nn.Module | None = None
    last: nn.Module | None = None
    given: Tensor | None = None
    taken: Tensor | None = None


class Layers:
    """The layers start..stop on a device."""

    def __init__(
        self, bones: Skeleton, start: int, stop: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.weight_bytes = 0
        self.kernels: tuple[Chosen, ...] = ()
        self._bones = bones
        self._start = start
        self._itemsize = dtype.itemsize
        self._device = device
        self._config = bones.base.config
        self._layers = [bones.model.get_submodule(bones.layers)[i] for i in range(start, stop)]
        self._lists: dict[tuple[int, int], nn.ModuleList] = {}
        self._configs: dict[tuple[int, int], Any] = {}
        self._positions = "position_ids" in inspect.signature(bones.base.forward).parameters
        self._pass = _Pass()
        for layer in self._layers:
            layer.register_forward_pre_hook(self._enter, with_kwargs=True)
            layer.register_forward_hook(self._leave)
        self.kv_width = 0

    @staticmethod
    def load(
        checkpoint: Checkpoint,
        start: int,
        stop: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "Layers":
        """Load these layers, and before layer 0 what comes before it. Raises UserError."""
        spec = checkpoint.spec
        bones = skeleton(spec, dtype)
        empty(bones, range(start, stop))
        _drop_ends(bones, spec)
        whole = sum(one.numel() for one in bones.model.parameters()) * dtype.itemsize
        require_memory(whole, device, f"{checkpoint.name}: blocks {start}:{stop}")
        fill(
            bones,
            checkpoint.names,
            lambda name: checkpoint.tensors([name])[name],
            device=device,
            under=bones.layers + "." if start else "",
        )
        layers = Layers(bones, start, stop, dtype=dtype, device=device)
        layers.weight_bytes = whole
        try:
            layers.probe(spec.hidden, dtype)
        except FAULTS as error:
            raise UserError(
                f"{checkpoint.name}: transformers' {spec.family} does not run over some of its"
                f" layers ({one_line(error)}); serve another model"
            ) from error
        return layers

    def open(self, start: int, stop: int, max_tokens: int) -> GeneralCache:
        """The memory of a new session over layers start..stop."""
        token_bytes = (stop - start) * self.kv_width * self._itemsize
        return GeneralCache(start, stop, max_tokens=max_tokens, token_bytes=token_bytes)

    def run(self, hidden: Tensor, cache: Cache, at: int) -> Tensor:
        """hidden: (tokens, width), on the device; position `at` is the next of the cache."""
        assert isinstance(cache, GeneralCache)
        key = (cache.start, cache.stop)
        base, name = self._bones.base, self._bones.layers.rpartition(".")[2]
        if key not in self._lists:
            asked = slice(cache.start - self._start, cache.stop - self._start)
            self._lists[key] = nn.ModuleList(self._layers[asked])
            self._configs[key] = _cut(self._config, *key)
        setattr(base, name, self._lists[key])
        base.config = self._configs[key]
        now, inside = self._pass, self._lists[key]
        now.first = inside[0] if cache.start else None  # layer 0 takes what the model gives it
        now.last, now.given = inside[len(inside) - 1], hidden[None]
        more = {}
        if self._positions:
            more["position_ids"] = torch.arange(at, at + len(hidden), device=self._device)[None]
        base(inputs_embeds=hidden[None], past_key_values=cache.past, use_cache=True, **more)
        found = now.taken
        self._pass.given = self._pass.taken = None
        assert found is not None
        return found[0]

    def probe(self, width: int, dtype: torch.dtype) -> None:
        """Run a token through all layers: what they remember of it is what a position costs."""
        cache = self.open(self._start, self._start + len(self._layers), 1)
        with torch.inference_mode():
            self.run(torch.zeros((1, width), dtype=dtype, device=self._device), cache, 0)
        self.kv_width = cache.past.width()

    def measured(self, spec: ModelSpec) -> ModelSpec:
        """The spec with what a position really costs: its heads say no more than that."""
        return replace(spec, kv_heads=1, head_dim=-(-self.kv_width // 2))

    def _enter(self, layer: nn.Module, args: Any, named: dict[str, Any]) -> Any:
        if layer is not self._pass.first:
            return None
        if args:
            return (self._pass.given, *args[1:]), named
        return args, named | {"hidden_states": self._pass.given}

    def _leave(self, layer: nn.Module, args: Any, out: Any) -> None:
        if layer is self._pass.last:
            self._pass.taken = out if isinstance(out, Tensor) else out[0]


class GeneralEnds:
    """Embedding, and what comes after the last layer, in fp32."""

    def __init__(self, bones: Skeleton) -> None:
        self._bones = bones
        self._embedding = bones.model.get_input_embeddings()
        self._door = _Door()
        name = bones.layers.rpartition(".")[2]
        setattr(bones.base, name, nn.ModuleList([self._door]))
        bones.base.config = _cut(bones.base.config, 0, 1)

    @staticmethod
    def load(checkpoint: Checkpoint) -> "GeneralEnds":
        """Load the ends of a model and none of its layers. Raises UserError."""
        bones = skeleton(checkpoint.spec, torch.float32)
        empty(bones, range(0))
        fill(
            bones,
            checkpoint.names,
            lambda name: checkpoint.tensors([name])[name],
            device=torch.device("cpu"),
        )
        tie(bones)
        ends = GeneralEnds(bones)
        ends.settle(checkpoint.spec)
        return ends

    def embed(self, ids: Tensor) -> Tensor:
        """(tokens,) to (tokens, hidden)."""
        found: Tensor = self._embedding(ids[None])[0]
        return found.float()

    def logits(self, row: Tensor) -> Tensor:
        """(1, hidden) to (vocab,)."""
        self._door.given = row[None]
        out = self._bones.model(inputs_embeds=row[None], use_cache=False)
        found: Tensor = out.logits[0, -1]
        return found.float()

    def settle(self, spec: ModelSpec) -> None:
        """Find out whether this model's layers give a tensor or a tuple that begins with one.

        Two rows show it: who takes the first of a tuple out of a tensor gets one of them.
        """
        rows = torch.zeros((1, 2, spec.hidden))
        with torch.inference_mode():
            self._door.given = rows
            for packed in (False, True):
                self._door.packed = packed
                try:
                    out = self._bones.model(inputs_embeds=rows, use_cache=False).logits
                except FAULTS:
                    continue  # it wants the other
                if out.shape[:2] == (1, 2):
                    return
        raise UserError(f"{spec.family}: what its layers give each other is not understood")


class _Door(nn.Module):
    """Stands for all layers: gives what it was given, whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self.given: Tensor | None = None
        self.packed = False

    def forward(self, *_: Any, **__: Any) -> Any:
        return (self.given, None) if self.packed else self.given


def _drop_ends(bones: Skeleton, spec: ModelSpec) -> None:
    """Take embedding and head out of the model: they are the client's."""
    embedding = bones.model.get_input_embeddings()
    if embedding.weight.shape[1] != spec.hidden:
        raise UserError(
            f"{spec.family}: embeds in {embedding.weight.shape[1]} numbers, but its blocks take"
            f" {spec.hidden}, and only one width is sent between peers; serve another model"
        )
    ends = [embedding, bones.model.get_output_embeddings()]
    for name, module in list(bones.model.named_modules()):
        if any(module is one for one in ends):
            parent = bones.model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.Identity())


def _cut(config: Any, start: int, stop: int) -> Any:
    """A copy of the config for a pass over layers start..stop: lists by layer are cut alike."""
    found = copy.deepcopy(config)
    blocks = config.num_hidden_layers
    for name, value in list(vars(found).items()):
        if isinstance(value, list) and len(value) == blocks:
            setattr(found, name, value[start:stop])
    found.num_hidden_layers = stop - start
    return found
