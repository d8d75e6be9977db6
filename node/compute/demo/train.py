"""How the demo model came to be: a small Llama, trained on the words of the standard library.

    python -m potluck.node.compute.demo.train --out DIR --minutes 45

    corpus ─▶ byte-level BPE ─▶ one stream of tokens a kind ─▶ windows ─▶ Muon and AdamW ─▶ DIR

What comes out is a checkpoint that any Llama loader reads. One seed decides the first weights and
the order of the windows. With `--steps` the schedule is decided too, and a run can be repeated;
with `--minutes` it follows the clock.

Source: Jordan, 2024 (Muon for the matrices, as in modded-nanogpt).
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers
import torch
from torch import Tensor

from .corpus import BEGIN, END, Document, Kind, read_corpus
from .network import Llama, Shape

SEED = 20
# Prose counts for more than its size: the model is to write English about Python.
SHARES: dict[Kind, float] = {"prose": 0.5, "question": 0.15, "source": 0.35}
SPLIT_SHARE = 0.02  # a guess: seen often enough to be learned, too rare to cost much
PROMPTS = (
    "The function returns",
    "def ",
    "Return a list of",
    "Question: What does os.walk do?\nAnswer:",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ 'Answer: ' + message['content'] + eos_token + '\n' }}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How the training goes. The rates were chosen by short runs on one core."""

    tokens_per_step: int = 2048
    short_context: int = 256  # most of the run: a step on 1,024 takes about 1.4 times as long
    long_from: float = 0.85  # the share of the run after which windows are as long as the context
    warm_up: float = 0.02
    matrix_rate: float = 0.02
    embedding_rate: float = 1.2e-2
    final_rate: float = 0.02  # of the peak
    weight_decay: float = 0.05


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> tokenizers.Tokenizer:
    """A byte-level BPE: it can write any text, and begins what it encodes with BEGIN."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BEGIN, END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN} $B",
        special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
    )
    return tokenizer


def token_streams(
    documents: list[Document], tokenizer: tokenizers.Tokenizer, *, held_out: bool
) -> dict[Kind, Tensor]:
    """All documents of a kind, each from BEGIN to END, one after the other."""
    streams: dict[Kind, Tensor] = {}
    for kind in SHARES:
        texts = [
            one.text + END for one in documents if one.kind == kind and one.held_out == held_out
        ]
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(SEED)).tolist()
        encoded = tokenizer.encode_batch_fast([texts[place] for place in order])
        streams[kind] = torch.tensor([token for one in encoded for token in one.ids])
    return streams


def with_split_spaces(stream: Tensor, tokenizer: tokenizers.Tokenizer) -> Tensor:
    """The stream, with a few of its tokens " word" written as two, " " and "word".

    A prompt that ends in a space ends in a token that the tokenizer leaves nowhere else before a
    word; without this, the model would not know how to go on after "def ".
    """
    vocabulary = tokenizer.get_vocab()
    space = vocabulary["Ġ"]
    rest = torch.full((len(vocabulary),), -1)  # a token without its space, where that is a token
    for text, token in vocabulary.items():
        if text[0] == "Ġ" and text[1:] in vocabulary:
            rest[token] = vocabulary[text[1:]]
    dice = torch.Generator().manual_seed(SEED)
    split = (rest[stream] >= 0) & (torch.rand(len(stream), generator=dice) < SPLIT_SHARE)
    wide = torch.where(split, space, stream).repeat_interleave(split + 1)
    seconds = torch.cumsum(split + 1, 0)[split] - 1
    wide[seconds] = rest[stream[split]]
    return wide


def windows(
    streams: dict[Kind, Tensor], *, rows: int, tokens: int, dice: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Inputs and targets, each (rows, tokens), from random places of randomly chosen streams."""
    kinds = list(SHARES)
    shares = torch.tensor([SHARES[kind] for kind in kinds])
    chosen = torch.multinomial(shares, rows, replacement=True, generator=dice).tolist()
    cut = []
    for place in chosen:
        stream = streams[kinds[place]]
        start = int(torch.randint(len(stream) - tokens, (1,), generator=dice))
        cut.append(stream[start : start + tokens + 1])
    both = torch.stack(cut)
    return both[:, :-1], both[:, 1:]


def loss_of(model: Llama, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats a token; products in bfloat16, sums that need the digits in float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits: Tensor = model(inputs)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


@torch.no_grad()
def held_out_loss(model: Llama, stream: Tensor, *, windows_max: int) -> float:
    """The mean loss over the stream's first windows, each a quarter of the context long."""
    tokens = model.shape.context // 4
    count = min(windows_max, (len(stream) - 1) // tokens)
    total = 0.0
    for start in range(0, count * tokens, tokens):
        inputs, targets = stream[start : start + tokens], stream[start + 1 : start + tokens + 1]
        logits = model(inputs[None])[0]
        total += float(torch.nn.functional.cross_entropy(logits, targets))
    return total / count


def rate_at(progress: float, plan: Plan) -> float:
    """The share of the peak rate at `progress` (0..1): a short rise, then half a cosine."""
    if progress < plan.warm_up:
        return max(progress, 1e-3) / plan.warm_up
    fallen = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return plan.final_rate + (1 - plan.final_rate) * fallen


def optimizers_for(model: Llama, plan: Plan) -> list[torch.optim.Optimizer]:
    matrices = [weight for weight in model.layers.parameters() if weight.ndim == 2]
    others = [model.embed_tokens.weight, *(one for one in model.parameters() if one.ndim == 1)]
    return [
        torch.optim.Muon(
            matrices,
            lr=plan.matrix_rate,
            weight_decay=plan.weight_decay,
            adjust_lr_fn="original",
        ),
        torch.optim.AdamW(others, lr=plan.embedding_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands."""

    step: int
    tokens: int
    elapsed_s: float
    losses: dict[str, float]  # nats a token, by kind; held out, but for "train"


def train(
    model: Llama,
    learned: dict[Kind, Tensor],
    held_out: dict[Kind, Tensor],
    *,
    plan: Plan,
    minutes: float,
    steps: int | None,
) -> Iterator[Progress]:
    """Train in place, for `steps` or else for `minutes`; report after each tenth of the run."""
    dice = torch.Generator().manual_seed(SEED)
    optimizers = optimizers_for(model, plan)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    start_s = time.monotonic()
    step, reported, progress, mean = 0, 0, 0.0, math.log(model.shape.vocabulary)
    while progress < 1:
        width = plan.short_context if progress < plan.long_from else model.shape.context
        rows = plan.tokens_per_step // width
        loss = loss_of(model, *windows(learned, rows=rows, tokens=width, dice=dice))
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate_at(progress, plan)
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        mean += (loss.item() - mean) * max(0.02, 1 / step)
        elapsed_s = time.monotonic() - start_s
        progress = step / steps if steps else elapsed_s / (60 * minutes)
        if progress >= 1 or int(progress * 10) > reported:
            reported = int(progress * 10)
            limit = 16 if progress < 1 else 1_000_000  # the last report reads all that was held out
            losses: dict[str, float] = {
                kind: held_out_loss(model, stream, windows_max=limit)
                for kind, stream in held_out.items()
            }
            tokens = step * plan.tokens_per_step
            yield Progress(step, tokens, elapsed_s, {"train": mean} | losses)


@torch.no_grad()
def continuation(
    model: Llama, tokenizer: tokenizers.Tokenizer, prompt: str, *, temperature: float
) -> str:
    """Eighty tokens more; greedy at temperature 0."""
    dice = torch.Generator().manual_seed(SEED)
    ids: list[int] = tokenizer.encode(prompt).ids
    for _ in range(80):
        logits = model(torch.tensor([ids]))[0, -1]
        if temperature:
            chances = (logits / temperature).softmax(-1)
            ids.append(int(torch.multinomial(chances, 1, generator=dice)))
        else:
            ids.append(int(logits.argmax()))
    text: str = tokenizer.decode(ids, skip_special_tokens=False)
    return text.removeprefix(BEGIN).split(END)[0]


def export(model: Llama, tokenizer: tokenizers.Tokenizer, out: Path) -> None:
    """Write a checkpoint in the Hugging Face layout; each file appears whole or not at all."""
    weights = {f"model.{name}": one.detach().bfloat16() for name, one in model.named_parameters()}
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    assert begin is not None and end is not None
    ends = {"bos_token_id": begin, "eos_token_id": end}
    files = {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": as_json(tokenizer_config_of(model.shape)),
        "generation_config.json": as_json({**ends, "do_sample": False}),
        "config.json": as_json({**config_of(model.shape), **ends}),
        "model.safetensors": safetensors.torch.save(weights, {"format": "pt"}),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / f"{name}.new").write_bytes(content)
        (out / f"{name}.new").replace(out / name)


def as_json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, indent=2).encode() + b"\n"


def tokenizer_config_of(shape: Shape) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "model_max_length": shape.context,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def config_of(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.inner_width,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "max_position_embeddings": shape.context,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--minutes", type=float, default=45.0, help="time to train for")
    parser.add_argument("--steps", type=int, help="steps to train for, whatever time it takes")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if (
        min(arguments.minutes, arguments.threads, 1 if arguments.steps is None else arguments.steps)
        <= 0
    ):
        parser.error("--minutes, --steps and --threads must be positive")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    shape, plan = Shape(), Plan()
    documents = read_corpus()
    tokenizer = train_tokenizer(
        (one.text for one in documents if not one.held_out), shape.vocabulary
    )
    learned = token_streams(documents, tokenizer, held_out=False)
    learned = {kind: with_split_spaces(stream, tokenizer) for kind, stream in learned.items()}
    held_out = token_streams(documents, tokenizer, held_out=True)
    for kind in SHARES:
        print(f"{kind}: {len(learned[kind]):,} tokens, {len(held_out[kind]):,} held out")
    model = Llama(shape)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters", flush=True)
    for now in train(
        model, learned, held_out, plan=plan, minutes=arguments.minutes, steps=arguments.steps
    ):
        export(model, tokenizer, arguments.out)
        losses = ", ".join(f"{name} {loss:.3f}" for name, loss in now.losses.items())
        print(
            f"step {now.step}: {now.tokens:,} tokens, {now.elapsed_s:.0f} s, {losses}", flush=True
        )
    for prompt in PROMPTS:
        for temperature in (0.0, 0.7):
            text = continuation(model, tokenizer, prompt, temperature=temperature)
            print(f"\n── {prompt!r} at temperature {temperature}\n{text}", flush=True)


if __name__ == "__main__":
    main()
