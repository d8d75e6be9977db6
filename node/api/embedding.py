"""Embeddings: the mean over all tokens of what the last block gives, at unit length.

Named as what it is: the hidden states before the final norm, pooled. No model here was trained to
embed; texts that are alike come out near each other, and that is all.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import trio

from ...errors import PotluckError
from .answering import ids_of
from .asked import Body, prompts_of, read_body
from .backend import Backend, Floats
from .metrics import Metrics
from .problem import wrong
from .schemas import EMBEDDING, INPUTS_MAX

AT_ONCE = 4  # sessions of one request


def read_embedding(raw: bytes) -> Body:
    return read_body(raw, EMBEDDING)


async def embeddings(body: Body, backend: Backend, metrics: Metrics) -> dict[str, Any]:
    """The answer to a body. Raises a Problem, or what a session raises."""
    language = await backend.language(body["model"])
    voice = language.voice
    if body.get("dimensions") not in (None, voice.width):
        raise wrong(
            f"the embeddings of {voice.name} have {voice.width} dimensions, no others", "dimensions"
        )
    given = prompts_of(body["input"], "input", INPUTS_MAX)
    texts = [await ids_of(backend, voice, one) for one in given]
    wait_s = float(body.get("wait_s") or 0.0)
    found: dict[int, Floats] = {}
    failures: list[PotluckError] = []
    places = iter(range(len(texts)))

    async def work(scope: trio.CancelScope) -> None:
        for place in places:
            try:
                found[place] = await backend.hidden(language, texts[place], wait_s)
            except PotluckError as error:  # raised below: a nursery would wrap it in a group
                failures.append(error)
                scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(min(AT_ONCE, len(texts))):
            nursery.start_soon(work, nursery.cancel_scope)
    if failures:
        raise failures[0]
    tokens = sum(len(ids) for ids in texts)
    metrics.prompt_tokens.labels(voice.name).inc(tokens)
    encoded = body.get("encoding_format") == "base64"
    return {
        "object": "list",
        "model": voice.name,
        "data": [
            {"object": "embedding", "index": place, "embedding": _told(found[place], encoded)}
            for place in range(len(texts))
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _told(vector: Floats, encoded: bool) -> str | list[float]:
    length = float(np.linalg.norm(vector))
    unit = (vector / length if length else vector).astype("<f4")
    if encoded:
        return base64.b64encode(unit.tobytes()).decode()
    return [float(one) for one in unit]
