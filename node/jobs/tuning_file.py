"""From a client's training file to a run's own: its texts, and how often they are gone through.

    {"messages": [...]}                  a chat, by the model's own template
    {"prompt": "...", "completion": ""}  one behind the other
    {"text": "..."}                      as it is

The loss is over the whole text. One of OpenAI's epochs, all of the file once, is one or several of
a run's, because a run is safe on the disk at the end of each of its own.

    home/tunings/<name>/train.jsonl, run.toml      what is trained, and how
    home/tunings/<name>/run/                       the adapter, once it is done

Source: OpenAI's guide, "Supervised fine-tuning", "Formatting your data".
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...errors import UserError
from ..compute.template import ChatTemplate
from ..compute.text import Text
from ..compute.windows import cut
from ..home import prepare_home
from .lines import LINE_BYTES_MAX, TOLD_MAX, split_lines

FOLDER: Final = "tunings"
TOKENS: Final = 128  # of a sequence: a run's default
TOKENS_LEAST: Final = 16  # guess: to which it is halved for a file of few words
BATCH: Final = 8  # the same
STEPS_MOST: Final = 64  # guess: between two checkpoints; a run's default
EPOCHS: Final = 3  # guess: what OpenAI's "auto" mostly is
RATE: Final = 1e-3  # a run's default, which the multiplier is of
HELD_OUT: Final = 0.05  # a run's default


@dataclass(frozen=True, slots=True)
class Hyper:
    """As asked for; None: as we see fit."""

    epochs: int | None = None
    batch: int | None = None
    multiplier: float | None = None


@dataclass(frozen=True, slots=True)
class Course:
    """How a file is trained on. passes: over all of it. epochs: of the run, of `steps` each."""

    sequences: int
    passes: int
    batch: int
    epochs: int
    steps: int
    rate: float
    held_out: float
    tokens: int


def read_texts(content: Path, template: ChatTemplate | None) -> list[str]:
    """The texts of a training file. Blocks. Raises UserError, which names the first lines that are
    no such."""
    texts, faults = [], list[str]()
    with content.open("rb") as opened:
        for number, raw in enumerate(split_lines(opened), 1):
            try:
                texts.append(_text_of(raw, template))
            except UserError as fault:
                faults.append(f"line {number}: {fault}")
                if len(faults) >= TOLD_MAX:
                    break
    if faults:
        raise UserError("; ".join(faults))
    if not texts:
        raise UserError("the file is empty")
    return texts


def course_of(texts: list[str], text: Text, context: int, hyper: Hyper) -> Course:
    """Blocks for as long as the tokenizer takes. Raises UserError for what is too little."""
    tokens = min(TOKENS, context)
    while True:
        try:
            sequences = len(cut(text, [("the file", texts)], tokens))
            break
        except UserError:  # it has less than two such sequences
            if tokens <= TOKENS_LEAST:
                raise
            tokens //= 2
    trained = sequences - max(1, round(HELD_OUT * sequences))  # as a run splits them
    batch = min(hyper.batch or BATCH, trained)
    steps = math.ceil(trained / batch)
    parts = math.ceil(steps / STEPS_MOST)
    passes = hyper.epochs or EPOCHS
    return Course(
        sequences, passes, batch, passes * parts, math.ceil(steps / parts),
        RATE * (hyper.multiplier or 1.0), HELD_OUT, tokens,
    )  # fmt: skip


def write_run(
    home: Path, name: str, model: str, texts: list[str], course: Course, seed: int
) -> Path:
    """The run's file, beside its texts; whole or not at all. Blocks. Raises UserError."""
    place = home / FOLDER / name
    made = place.with_name(f".{name}.{os.getpid()}")
    table: dict[str, dict[str, Any]] = {
        "": {"name": name, "model": model, "seed": seed},
        "data": {
            "files": ["train.jsonl"], "tokens": course.tokens, "held_out": course.held_out,
        },
        "training": {
            "batch": course.batch, "epochs": course.epochs, "inner_steps": course.steps,
            "epoch_s": 86_400.0, "learning_rate": course.rate,
        },
    }  # fmt: skip
    prepare_home(home / FOLDER)
    try:
        made.mkdir(mode=0o700)
        with (made / "train.jsonl").open("w", encoding="utf-8") as lines:
            for one in texts:
                lines.write(json.dumps({"text": one}) + "\n")
        (made / "run.toml").write_text("\n".join(_toml(table)) + "\n", encoding="utf-8")
        made.rename(place)
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror}); free the disk") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return place / "run.toml"


def _toml(table: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Text, numbers and lists of text are the same in JSON."""
    for section, values in table.items():
        if section:
            yield f"[{section}]"
        yield from (f"{key} = {json.dumps(value)}" for key, value in values.items())


def _text_of(raw: bytes, template: ChatTemplate | None) -> str:
    if len(raw) > LINE_BYTES_MAX:
        raise UserError(f"longer than {LINE_BYTES_MAX >> 20} MiB")
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError("not JSON") from error
    if not isinstance(told, dict):
        raise UserError("no JSON object")
    text: object
    if isinstance(told.get("messages"), list):
        text = _chat(told["messages"], template)
    elif isinstance(told.get("prompt"), str) and isinstance(told.get("completion"), str):
        text = told["prompt"] + told["completion"]
    else:
        text = told.get("text")
    if not isinstance(text, str) or not text.strip():
        raise UserError('neither "messages", nor "prompt" with "completion", nor "text"')
    if any("\ud800" <= one <= "\udfff" for one in text):
        raise UserError("half a character (a lone surrogate)")
    return text


def _chat(messages: list[Any], template: ChatTemplate | None) -> str:
    if template is None:
        raise UserError('the model has no chat template: give "text"')
    fits = (isinstance(one, dict) and isinstance(one.get("content"), str) for one in messages)
    if not messages or not all(fits):
        raise UserError("each message needs a role and a content that is text")
    return template.render(messages, answered=True)
