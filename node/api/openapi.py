"""The document at /openapi.json: what may be asked, and what is answered."""

from __future__ import annotations

from typing import Any

from ... import __version__
from .responses import ANSWERS
from .schemas import MODEL, PARTS, Schema
from .schemas_jobs import JOB_ANSWERS, JOB_PARTS

Json = dict[str, Any]

_WHY = {
    400: "The request is wrong; the message says what and where.",
    401: "The key is missing or wrong.",
    403: "Without a key only this machine's own names are answered.",
    404: "There is no such model, or no such path.",
    405: "The path has another method.",
    408: "The body did not come in time.",
    409: "What it is at does not allow that.",
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
            **_files(),
            **_batches(),
            **_tunings(),
            "/health": {"get": {**_get("Whether a swarm is there.", "Health"), "security": []}},
            "/metrics": {"get": _text("Prometheus' text format.", "text/plain")},
            "/openapi.json": {
                "get": {**_text("This document.", "application/json"), "security": []}
            },
        },
        "components": {
            "schemas": {**PARTS, **JOB_PARTS, **ANSWERS, **JOB_ANSWERS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if keyed else [],
    }


def _files() -> Json:
    form = {
        "type": "object",
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "purpose": {"enum": ["batch", "fine-tune", "user_data"]},
        },
        "required": ["file", "purpose"],
        "additionalProperties": False,
    }
    brought = {
        **_get("Bring a file for a batch or a run.", "File"),
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
    }
    content = _text("Its bytes, as they came.", "application/octet-stream")
    listed = _paged(_get("The files that are kept.", "Files"), 10_000)
    listed["parameters"] += [
        _query("order", {"enum": ["asc", "desc"]}),
        _query("purpose", {"type": "string"}),
    ]
    one = "/v1/files/{file}"
    return {
        "/v1/files": {"get": listed, "post": brought},
        one: {
            "get": _named(_get("One of them.", "File"), "file"),
            "delete": _named(_get("Delete it.", "FileDeleted"), "file"),
        },
        f"{one}/content": {"get": _named(content, "file")},
    }


def _batches() -> Json:
    one = "/v1/batches/{batch}"
    return {
        "/v1/batches": {
            "get": _paged(_get("The batches, the newest first.", "Batches"), 100),
            "post": _post("Ask every line of a file.", "BatchRequest", "Batch"),
        },
        one: {"get": _named(_get("How far it is.", "Batch"), "batch")},
        f"{one}/cancel": {"post": _named(_get("End it; answers stay.", "Batch"), "batch")},
    }


def _tunings() -> Json:
    every = "/v1/fine_tuning/jobs"
    one = f"{every}/{{job}}"
    told: Json = {
        every: {
            "get": _paged(_get("The runs, the newest first.", "Tunings"), 100),
            "post": _post("Train an adapter.", "TuningRequest", "Tuning"),
        },
        one: {"get": _named(_get("How far it is.", "Tuning"), "job")},
    }
    for verb, summary in (("cancel", "End it."), ("pause", "Have it rest."), ("resume", "Go on.")):
        told[f"{one}/{verb}"] = {"post": _named(_get(summary, "Tuning"), "job")}
    for part, summary, answered in (
        ("events", "What happened, the newest first.", "TuningEvents"),
        ("checkpoints", "The adapter, once it is done.", "TuningCheckpoints"),
    ):
        told[f"{one}/{part}"] = {"get": _paged(_named(_get(summary, answered), "job"), 100)}
    return told


def _named(operation: Json, name: str) -> Json:
    """Of one thing, that the path names."""
    word = {"type": "string", "minLength": 1, "pattern": "^[A-Za-z0-9_-]+$"}
    given = {"name": name, "in": "path", "required": True, "schema": word}
    return {**operation, "parameters": [*operation.get("parameters", ()), given]}


def _paged(operation: Json, most: int) -> Json:
    """Of a list, of which a part is told."""
    given = [
        _query("limit", {"type": "integer", "minimum": 1, "maximum": most}),
        _query("after", {"type": "string"}),
    ]
    return {**operation, "parameters": [*operation.get("parameters", ()), *given]}


def _query(name: str, schema: Schema) -> Json:
    return {"name": name, "in": "query", "schema": schema}


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
