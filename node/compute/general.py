"""Any other decoder-only model, by transformers' own code: its config, its modules, its tensors.

This is the one place that knows transformers, and it looks at it only when a model asks for it: it
is the extra `potluck[hf]`. Only code that is part of transformers runs, never a model's own.

A model is built without memory (on torch's meta device). Of its list of layers those outside a
stage's range become empty places, so that the others keep their names; the tensors of what is left
are read from the checkpoint, renamed and joined as transformers does it.

Source: transformers 5, `core_model_loading.py` and `PreTrainedModel.from_pretrained`.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from .families import HARMLESS, TYPES
from .fields import Unserved
from .ropespec import RopeSpec
from .spec import ModelSpec

_UNSAID = frozenset(  # fields of a config that no arithmetic reads, and that tools rewrite
    {
        "_commit_hash",
        "_name_or_path",
        "auto_map",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "pad_token_id",
        "quantization_config",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_LENGTH = 2048  # of a model that does not say: those of alibi, which was trained on as many
FAULTS = (  # what foreign code raises on what it was not made for
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

Read = Callable[[str], Tensor]


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model of transformers, and where the parts that matter stand in it."""

    model: Any  # a PreTrainedModel with a head
    base: Any  # what runs the layers
    layers: str  # the place of their list under the model


def spec_of(config: dict[str, Any]) -> ModelSpec:
    """The spec of a model: our own block's, or else what transformers knows. Raises UserError."""
    try:
        return ModelSpec.from_config(config)
    except Unserved as error:
        return _general_spec(config, error)


def skeleton(spec: ModelSpec, dtype: torch.dtype) -> Skeleton:
    """The model without its numbers. Raises UserError when it is not one of layers in a row."""
    config = _read_config(json.loads(spec.general or "{}"))
    transformers = _transformers()
    try:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=False
            )
    except FAULTS as error:
        raise UserError(
            f"{spec.family}: transformers cannot build it ({one_line(error)})"
        ) from error
    model.eval()
    if model._is_stateful:
        raise UserError(
            f"{spec.family}: it remembers a state that cannot be taken back to an earlier position,"
            " which sessions here need; serve another model"
        )
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == spec.blocks
    ]
    if not lists:
        raise UserError(f"{spec.family}: no list of {spec.blocks} layers is in it")
    place = min(lists, key=lambda name: name.count("."))
    return Skeleton(model, model.get_submodule(place.rpartition(".")[0]), place)


def empty(bones: Skeleton, kept: range) -> None:
    """Take the layers outside `kept` out of the model; their places stay."""
    layers = bones.model.get_submodule(bones.layers)
    for index in range(len(layers)):
        if index not in kept:
            layers[index] = nn.Identity()


def fill(
    bones: Skeleton,
    names: Iterable[str],
    read: Read,
    *,
    device: torch.device,
    under: str = "",
) -> None:
    """Load what the model holds under a place; the rest gets some numbers. Raises UserError.

    names: the checkpoint's tensors; read: one of them.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    model = bones.model
    mapping = get_model_conversion_mapping(model)
    needed = _needed(model, mapping, names, under)
    settings = LoadStateDictConfig(weight_mapping=mapping, device_map={"": device})
    found, _ = convert_and_load_state_dict_in_model(
        model, {name: _Lazy(name, read) for name in needed}, settings
    )
    wrong = sorted(name for name, *_ in found.mismatched_keys) or sorted(found.conversion_errors)
    if wrong:
        raise UserError(f"tensor {wrong[0]} has another shape than config.json asks for")
    tied = set(model.all_tied_weights_keys)
    missing = sorted(n for n in found.missing_keys - tied if n.startswith(under))
    if missing:
        raise UserError(f"tensor {missing[0]} is missing; download the model again")
    model._move_missing_keys_from_meta_to_device(found.missing_keys, {"": device}, None, None)
    model._initialize_missing_keys(False)  # the buffers that no checkpoint stores
    model.requires_grad_(False)


def tie(bones: Skeleton) -> None:
    """Let the head be the embedding, where it is."""
    bones.model.tie_weights()


def new_past(first: int) -> Any:
    """The memory of a session whose layers begin with `first`."""
    return _past_class()(first)


def _past_class() -> Any:
    """transformers' growing cache, for layers that are not counted from 0."""
    from transformers.cache_utils import DynamicCache

    class Past(DynamicCache):  # type: ignore[misc]
        def __init__(self, first: int) -> None:
            super().__init__()
            self._first = first

        def update(
            self, key_states: Tensor, value_states: Tensor, layer_idx: int, *more: Any, **named: Any
        ) -> Any:
            at = layer_idx - self._first
            return super().update(key_states, value_states, at, *more, **named)

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return int(super().get_seq_length(max(0, layer_idx - self._first)))

        def truncate(self, length: int) -> None:
            for layer in self.layers:
                if layer.is_initialized:
                    layer.keys = layer.keys[..., :length, :]
                    layer.values = layer.values[..., :length, :]

        def width(self) -> int:
            """Numbers that the layer which remembers most remembers for a position."""
            sizes = (one.keys.numel() + one.values.numel() for one in self.layers)
            return int(max(sizes, default=0)) // max(1, self.get_seq_length())

    return Past


class _Lazy:
    """A tensor that is read when transformers comes to it, and not kept mapped."""

    def __init__(self, name: str, read: Read) -> None:
        self._name = name
        self._read = read

    def __getitem__(self, _: object) -> Tensor:
        return self._read(self._name).clone()


def _needed(model: Any, mapping: list[Any], names: Iterable[str], under: str) -> list[str]:
    """The checkpoint's names of what the model holds under a place."""
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    state = model.state_dict()
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    prefix = model.base_model_prefix
    found = []
    for name in sorted(names):
        ours, _ = rename_source_key(name, renamings, converters, prefix, state)
        if ours not in state:
            ours, _ = rename_source_key(name, [], [], prefix, state)
        if ours in state and ours.startswith(under):
            found.append(name)
    return found


def _general_spec(config: dict[str, Any], refused: Unserved) -> ModelSpec:
    said = {name: value for name, value in config.items() if name not in _UNSAID}
    try:
        whole = _read_config(said)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{refused}; any other decoder-only model is served, slower, with transformers:"
            " pip install 'potluck[hf]'"
        ) from error
    if config.get("model_type") in TYPES:
        _require_known(config, whole, refused)
    facts = whole.get_text_config(decoder=True)
    if getattr(whole, "is_encoder_decoder", False):
        raise UserError(f"{whole.model_type}: is not a decoder alone, and nothing else is served")
    try:
        hidden, heads = int(facts.hidden_size), int(facts.num_attention_heads)
        blocks, vocab = int(facts.num_hidden_layers), int(facts.vocab_size)
    except FAULTS as error:
        raise UserError(
            f"{whole.model_type}: is not made of attention layers ({one_line(error)})"
        ) from error
    kv_heads = getattr(facts, "num_key_value_heads", None) or heads
    if getattr(facts, "multi_query", False):
        kv_heads = 1
    if getattr(facts, "new_decoder_architecture", False):  # Falcon's
        kv_heads = facts.num_kv_heads
    lengths = (getattr(facts, name, None) for name in _LENGTHS)
    positions = next((int(one) for one in lengths if one), _LENGTH)
    return ModelSpec(
        family=whole.model_type,
        hidden=hidden,
        blocks=blocks,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=getattr(facts, "head_dim", None) or hidden // heads,
        ffn=getattr(facts, "intermediate_size", None) or 4 * hidden,
        vocab=vocab,
        eps=0.0,
        rope=RopeSpec(),
        windows=(None,) * blocks,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        qk_norm=False,
        tied=bool(getattr(facts, "tie_word_embeddings", False)),
        positions=positions,
        eos=_ids(config.get("eos_token_id"), vocab),
        bos=next(iter(_ids(config.get("bos_token_id"), vocab)), None),
        general=json.dumps(said, sort_keys=True, separators=(",", ":")),
    )


def _require_known(config: dict[str, Any], whole: Any, refused: Unserved) -> None:
    """Raise what was refused unless transformers reads each field of a family of ours.

    It ignores those that it does not know, and so would serve such a model slightly wrong.
    """
    plain = type(whole)()
    known = {name for name in config if name in HARMLESS or hasattr(plain, name)}
    old = {"rope_scaling", "rope_theta"}  # of which transformers 5 makes `rope_parameters`
    if refused.field not in known or config.keys() - known - old - {"architectures"}:
        raise refused


def _read_config(config: dict[str, Any]) -> Any:
    """transformers' config object. Raises UserError; ModuleNotFoundError without transformers."""
    transformers = _transformers()
    kind = config.get("model_type")
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if not isinstance(kind, str) or kind not in known:
        raise UserError(f"config.json: model_type {kind!r} is not known to transformers")
    try:
        return known[kind].from_dict(config)
    except FAULTS as error:
        raise UserError(f"config.json: transformers refuses it ({one_line(error)})") from error


def _transformers() -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers


def _ids(value: object, vocab: int) -> tuple[int, ...]:
    found = value if isinstance(value, list) else [value]
    return tuple(one for one in found if type(one) is int and 0 <= one < vocab)


def one_line(error: BaseException) -> str:
    """An error of transformers as part of a line of ours."""
    return re.sub(r"\s+", " ", str(error))[:160] or type(error).__name__
