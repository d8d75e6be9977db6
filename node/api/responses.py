"""The schemas of what is answered, for the published document."""

from __future__ import annotations

from .schemas import Schema

_STRING: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}


def _answer(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_USAGE = _answer(
    {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        "completion_tokens_details": _answer(
            {"accepted_prediction_tokens": _COUNT, "rejected_prediction_tokens": _COUNT}
        ),
    }
)
_REMARKS = _answer(
    {
        "seed": {"type": ["integer", "null"]},
        "exact": {"type": "boolean"},
        "recoveries": _COUNT,
    }
)
_REMARKS["properties"]["receipts"] = _list(_STRING)
_FINISH: Schema = {"enum": ["stop", "length", "tool_calls", None]}
_LOGPROBS: Schema = {"type": ["object", "null"]}
_MESSAGE = _answer({"role": {"const": "assistant"}, "content": {"type": ["string", "null"]}})
_COMMON: Schema = {
    "id": _STRING,
    "created": _COUNT,
    "model": _STRING,
    "system_fingerprint": _STRING,
    "usage": _USAGE,
    "potluck": _REMARKS,
}
_MODEL = _answer(
    {
        "id": _STRING,
        "object": {"const": "model"},
        "created": _COUNT,
        "owned_by": _STRING,
        "potluck": _answer({"digest": _STRING, "blocks": _COUNT, "peers": _COUNT}),
    }
)

ANSWERS: dict[str, Schema] = {
    "Error": _answer(
        {
            "error": _answer(
                {
                    "message": _STRING,
                    "type": _STRING,
                    "param": {"type": ["string", "null"]},
                    "code": _STRING,
                }
            )
        }
    ),
    "Chat": _answer(
        {
            **_COMMON,
            "object": {"const": "chat.completion"},
            "choices": _list(
                _answer(
                    {
                        "index": _COUNT,
                        "message": _MESSAGE,
                        "logprobs": _LOGPROBS,
                        "finish_reason": _FINISH,
                    }
                )
            ),
        }
    ),
    "Completion": _answer(
        {
            **_COMMON,
            "object": {"const": "text_completion"},
            "choices": _list(
                _answer(
                    {
                        "index": _COUNT,
                        "text": _STRING,
                        "logprobs": _LOGPROBS,
                        "finish_reason": _FINISH,
                    }
                )
            ),
        }
    ),
    "Embeddings": _answer(
        {
            "object": {"const": "list"},
            "model": _STRING,
            "data": _list(
                _answer(
                    {
                        "object": {"const": "embedding"},
                        "index": _COUNT,
                        "embedding": {"anyOf": [_list(_NUMBER), _STRING]},
                    }
                )
            ),
            "usage": _answer({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
        }
    ),
    "Model": _MODEL,
    "Models": _answer({"object": {"const": "list"}, "data": _list(_MODEL)}),
    "Health": _answer({"status": _STRING, "peers": _COUNT}),
}
