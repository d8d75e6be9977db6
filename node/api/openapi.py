"""The document at /openapi.json: what may be asked, and what is answered."""

from __future__ import annotations

from typing import Any

from ... import __version__
from .responses import ANSWERS
from .schemas import MODEL, PARTS, Schema

Json = dict[str, Any]

_WHY = {
    400: "The request is wrong; the message says what and where.",
    401: "The key is missing or wrong.",
    403: "Without a key only this machine's own names are answered.",
    404: "There is no such model, or no such path.",
    405: "The path has another method.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body must be application/json.",
    429: "Full; Retry-After says when to ask again.",
    431: "The head is too large.",
    503: "Blocks of the model are missing; Retry-After says when to ask again.",
}


def document(*, keyed: bool) -> Json:
    """keyed: whether a key is needed."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Potluck",
            "version": __version__,
            "description": "Language models served by a swarm of peers, with OpenAI's interface.",
        },
        "paths": {
            "/v1/chat/completions": {
                "post": _post("Continue a conversation.", "ChatRequest", "Chat", stream=True)
            },
            "/v1/completions": {
                "post": _post("Continue a text.", "CompletionRequest", "Completion", stream=True)
            },
            "/v1/embeddings": {
                "post": _post(
                    "Mean over all tokens of the last block's hidden states (before the final "
                    "norm), at unit length. It is no trained text embedding.",
                    "EmbeddingRequest",
                    "Embeddings",
                )
            },
            "/v1/models": {"get": _get("The models that are served.", "Models")},
            "/v1/models/{model}": {
                "get": {
                    **_get("One of them.", "Model"),
                    "parameters": [
                        {"name": "model", "in": "path", "required": True, "schema": MODEL}
                    ],
                }
            },
            "/health": {"get": {**_get("Whether a swarm is there.", "Health"), "security": []}},
            "/metrics": {"get": _text("Prometheus' text format.", "text/plain")},
            "/openapi.json": {
                "get": {**_text("This document.", "application/json"), "security": []}
            },
        },
        "components": {
            "schemas": {**PARTS, **ANSWERS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if keyed else [],
    }


def _post(summary: str, asked: str, answered: str, *, stream: bool = False) -> Json:
    content: Json = {"application/json": {"schema": _part(answered)}}
    if stream:
        content["text/event-stream"] = {}
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _part(asked)}},
        },
        "responses": {"200": {"description": "The answer.", "content": content}, **_problems()},
    }


def _get(summary: str, answered: str) -> Json:
    content = {"application/json": {"schema": _part(answered)}}
    return {
        "summary": summary,
        "responses": {"200": {"description": "The answer.", "content": content}, **_problems()},
    }


def _text(summary: str, kind: str) -> Json:
    content: Json = {kind: {"schema": {"type": "string"} if kind == "text/plain" else {}}}
    return {
        "summary": summary,
        "responses": {"200": {"description": "The answer.", "content": content}, **_problems()},
    }


def _problems() -> Json:
    return {
        str(status): {
            "description": why,
            "content": {"application/json": {"schema": _part("Error")}},
        }
        for status, why in _WHY.items()
    }


def _part(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
