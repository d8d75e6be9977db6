"""What the laboratory's peers read: docstrings of installed packages, all but a last block's way.

    docstrings ─▶ tokens ─▶ windows ─▶ all blocks but the last, its attention ─▶ Text

Only what comes after the last block's attention is trained (band.py), so that everything before is
computed once, and each token is an example by itself. The demo model never read these packages;
each has words of its own, which is what makes peers differ who were dealt different ones.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import safetensors.torch
import tokenizers
import torch
from torch import Tensor, nn

from ....errors import UserError
from ..demo.network import Block, Llama, Shape, rotary_table

PACKAGES: Final = ("numpy", "torch", "trio", "rich", "typer", "huggingface_hub", "libp2p", "psutil")
WINDOW_TOKENS: Final = 32
WINDOWS: Final = 200  # of each package
CHARACTERS_LEAST: Final = 200  # of a docstring that says something
HELD_OUT_ONE_IN: Final = 5  # windows: half of them are the judges', half the score's
TO_TRAIN, FOR_JUDGES, FOR_SCORE = range(3)  # the parts of the text
_DEMO: Final = Path(__file__).parents[1] / "demo"
_WINDOWS_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens: what reaches the trained part of each, and the token that follows.

    hidden: [tokens, width], the stream; mixed: [tokens, heads * head_width], what attention adds to
    it before its last product. after, package, part: [tokens]. block, norm, head: the demo model's,
    frozen; head: [vocabulary, width].
    """

    hidden: Tensor
    mixed: Tensor
    after: Tensor
    package: Tensor
    part: Tensor
    block: Block
    norm: nn.RMSNorm
    head: Tensor

    def tokens(self, part: int, package: int | None = None) -> Tensor:
        """The places of these tokens."""
        wanted = self.part == part
        if package is not None:
            wanted = wanted & (self.package == package)
        return torch.nonzero(wanted).flatten()


def docstrings(package: str) -> Iterator[str]:
    """Of an installed package, in the order of its files."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"{package} is not installed, whose words are read here: install it")
    root = Path(spec.origin).parent
    for file in sorted(root.rglob("*.py")):
        if "test" in str(file.relative_to(root)):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # templates and old grammars
        for item in ast.walk(tree):
            if isinstance(item, ast.Module | ast.ClassDef | ast.FunctionDef):
                said = ast.get_docstring(item)
                if said and len(said) > CHARACTERS_LEAST:
                    yield said


def read_text(windows: int = WINDOWS, packages: Sequence[str] = PACKAGES) -> Text:
    """So many windows of each package, or as many as it has."""
    network = Llama(Shape())
    stored = safetensors.torch.load_file(_DEMO / "model.safetensors")
    named = {name.removeprefix("model."): tensor.float() for name, tensor in stored.items()}
    network.load_state_dict(named, strict=False)
    network.requires_grad_(False)
    rows, package = _windows(windows, packages)
    *before, block = (each for each in network.layers if isinstance(each, Block))
    parts = [
        _through(some[:, :-1], network, before, block)
        for some in torch.split(rows, _WINDOWS_AT_ONCE)
    ]
    hidden, mixed = (torch.cat(each).flatten(0, 1) for each in zip(*parts, strict=True))
    place = torch.arange(len(rows)) % (2 * HELD_OUT_ONE_IN)
    part = torch.full((len(rows),), TO_TRAIN)
    part[place == 0], part[place == HELD_OUT_ONE_IN] = FOR_JUDGES, FOR_SCORE
    return Text(
        hidden,
        mixed,
        rows[:, 1:].flatten(),
        package.repeat_interleave(WINDOW_TOKENS),
        part.repeat_interleave(WINDOW_TOKENS),
        block,
        network.norm,
        network.embed_tokens.weight.detach(),
    )


def _windows(most: int, packages: Sequence[str]) -> tuple[Tensor, Tensor]:
    """[windows, tokens + 1], and of which package each is."""
    tokenizer = tokenizers.Tokenizer.from_file(str(_DEMO / "tokenizer.json"))
    length = WINDOW_TOKENS + 1
    rows: list[list[int]] = []
    package: list[int] = []
    for number, name in enumerate(packages):
        stream: list[int] = []
        for said in docstrings(name):
            stream += tokenizer.encode(said + "\n").ids
            if len(stream) >= most * length:
                break
        count = min(len(stream) // length, most)
        rows += [stream[at * length : (at + 1) * length] for at in range(count)]
        package += [number] * count
    return torch.tensor(rows), torch.tensor(package)


def _through(
    ids: Tensor, network: Llama, before: list[Block], block: Block
) -> tuple[Tensor, Tensor]:
    """The stream before the last block, and its attention's heads before their product."""
    cos, sin = rotary_table(network.shape, ids.shape[1])
    seen: list[Tensor] = []
    product = block.self_attn.o_proj
    hook = product.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        hidden: Tensor = network.embed_tokens(ids)
        for each in before:
            hidden = each(hidden, cos, sin)
        block.self_attn(block.input_layernorm(hidden), cos, sin)
    hook.remove()
    return hidden, seen[0]
