"""What may be asked, as JSON Schema: the published document and the check of every body.

Source: OpenAI's API reference for the names and ranges. A field that is taken and does nothing
here says so; a field that is not here is refused, because an answer that ignores half of a question
is worse than an error.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

CHOICES_MAX = 16  # each is a session of its own, with a cache on every server
PROMPTS_MAX = 64
INPUTS_MAX = 256
STOPS_MAX = 16
TOOLS_MAX = 128
SEED_LEAST, SEED_MOST = -(1 << 63), (1 << 64) - 1  # OpenAI's are signed, ours are not
TOKEN_MAX = (1 << 31) - 1


def _object(
    properties: Schema, *, required: tuple[str, ...] = (), others: bool | Schema = False
) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": others,
    }


def _number(low: float, high: float, *, above: float | None = None, note: str = "") -> Schema:
    found: Schema = {"type": ["number", "null"], "minimum": low, "maximum": high}
    if above is not None:
        found["exclusiveMinimum"] = above
    return {**found, "description": note} if note else found


def _integer(low: int, high: int, note: str = "") -> Schema:
    found: Schema = {"type": ["integer", "null"], "minimum": low, "maximum": high}
    return {**found, "description": note} if note else found


def _text(most: int | None = None) -> Schema:
    return {"type": "string"} if most is None else {"type": "string", "maxLength": most}


def _either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _array(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    found: Schema = {"type": "array", "items": items, "minItems": least}
    return found if most is None else {**found, "maxItems": most}


NULL: Schema = {"type": "null"}
FLAG: Schema = {"type": ["boolean", "null"]}
IGNORED = "Taken, and without effect here."
TOKEN: Schema = {"type": "integer", "minimum": 0, "maximum": TOKEN_MAX}
TOKENS = _array(TOKEN, 1)
NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 64}
MODEL: Schema = {"type": "string", "minLength": 1, "maxLength": 256}

_DRAWING: Schema = {  # how tokens are drawn, for both kinds of answer
    "model": MODEL,
    "temperature": _number(0, 2, note="0: always the likeliest token. Default: 1."),
    "top_p": _number(0, 1, above=0),
    "seed": _integer(SEED_LEAST, SEED_MOST, "The same seed gives the same bits; choice i has + i."),
    "n": _integer(1, CHOICES_MAX),
    "max_tokens": _integer(1, TOKEN_MAX),
    "stop": _either(
        NULL,
        {"type": "string", "minLength": 1},
        _array({"type": "string", "minLength": 1}, 0, STOPS_MAX),
    ),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "logit_bias": _either(
        NULL,
        {
            **_object({}, others={**_number(-100, 100), "type": "number"}),
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        },
    ),
    "stream": FLAG,
    "stream_options": _either(
        NULL, _object({"include_usage": FLAG, "include_obfuscation": {**FLAG}})
    ),
    "user": {"type": ["string", "null"], "description": IGNORED},
    # of our own; vLLM has the same names for most
    "top_k": _integer(0, TOKEN_MAX, "Draw from the k likeliest; 0: from all."),
    "min_p": _number(0, 1, note="Draw from what has this share of the likeliest's probability."),
    "repetition_penalty": _number(0, 100, above=0, note="Above 1: repeat less, the prompt too."),
    "ignore_eos": {**FLAG, "description": "Go on to max_tokens, whatever the model says."},
    "wait_s": _number(0, 600, note="How long to wait for blocks that nobody serves."),
    "receipt": {
        **FLAG,
        "description": "Have the servers sign: potluck.receipts then holds a file for each choice, "
        "in base64, that potluck verify reads.",
    },
    "draft": {
        "enum": ["auto", "off", None],
        "description": "auto: what was said before is guessed to come again, and verified by the "
        "model; the text is the same, and sooner there.",
    },
}

_FUNCTION = _object(
    {
        "name": {**NAME, "pattern": "^[a-zA-Z0-9_-]+$"},
        "description": {"type": ["string", "null"]},
        "parameters": _either(NULL, _object({}, others=True)),
        "strict": {**FLAG, "description": "Calls are held to the schema when tool_choice asks."},
    },
    required=("name",),
)
_PART = _object({"type": {"const": "text"}, "text": _text()}, required=("type", "text"))
_CONTENT = _either(_text(), _array({"$ref": "#/components/schemas/TextPart"}))
_CALL = _object(
    {
        "id": _text(256),
        "type": {"const": "function"},
        "function": _object({"name": NAME, "arguments": _text()}, required=("name", "arguments")),
    },
    required=("id", "type", "function"),
)
_NAMES: Schema = {
    "name": {"type": ["string", "null"], "maxLength": 256},
    "tool_call_id": {"type": ["string", "null"], "maxLength": 256},
    "refusal": {"type": ["string", "null"], "description": IGNORED},
}
_TOLD = _object(
    {
        "role": {"enum": ["system", "developer", "user", "tool"]},
        "content": _CONTENT,
        **_NAMES,
    },
    required=("role", "content"),
)
_ANSWERED = _object(
    {
        "role": {"const": "assistant"},
        "content": _either(NULL, *_CONTENT["anyOf"]),
        "tool_calls": _either(
            NULL, _array({"$ref": "#/components/schemas/ToolCall"}, 0, TOOLS_MAX)
        ),
        **_NAMES,
    },
    required=("role",),
)
_TOOL = _object(
    {"type": {"const": "function"}, "function": {"$ref": "#/components/schemas/Function"}},
    required=("type", "function"),
)
_CHOICE = _either(
    NULL,
    {"type": "string", "enum": ["none", "auto", "required"]},
    _object(
        {"type": {"const": "function"}, "function": _object({"name": NAME}, required=("name",))},
        required=("type", "function"),
    ),
)
_ASKED_SCHEMA = _object(
    {
        "name": NAME,
        "description": {"type": ["string", "null"]},
        "schema": _object({}, others=True),
        "strict": FLAG,
    },
    required=("name", "schema"),
)
_FORMAT = _either(
    NULL,
    _object({"type": {"enum": ["text", "json_object"]}}, required=("type",)),
    _object(
        {"type": {"const": "json_schema"}, "json_schema": _ASKED_SCHEMA},
        required=("type", "json_schema"),
    ),
)
_WORDS: Schema = {"type": "string", "minLength": 1}
_TEXTS = _either(_WORDS, _array(_WORDS, 1), TOKENS, _array(TOKENS, 1))

CHAT = _object(
    {
        **_DRAWING,
        "messages": _array({"$ref": "#/components/schemas/Message"}, 1, 4096),
        "max_completion_tokens": _integer(1, TOKEN_MAX),
        "logprobs": FLAG,
        "top_logprobs": _integer(0, 20),
        "response_format": _FORMAT,
        "tools": _either(NULL, _array({"$ref": "#/components/schemas/Tool"}, 0, TOOLS_MAX)),
        "tool_choice": _CHOICE,
        "parallel_tool_calls": FLAG,
        "store": {"type": ["boolean", "null"], "description": IGNORED},
        "metadata": _either(NULL, _object({}, others={"type": "string"})),
        "service_tier": {"type": ["string", "null"], "description": IGNORED},
        "prompt_cache_key": {"type": ["string", "null"], "description": IGNORED},
        "safety_identifier": {"type": ["string", "null"], "description": IGNORED},
        "reasoning_effort": {"type": ["string", "null"], "description": IGNORED},
        "verbosity": {"type": ["string", "null"], "description": IGNORED},
    },
    required=("model", "messages"),
)
COMPLETION = _object(
    {
        **_DRAWING,
        "prompt": _TEXTS,
        "logprobs": _integer(0, 20),
        "echo": FLAG,
        "best_of": {"enum": [None, 1], "description": IGNORED},
        "suffix": {"type": ["string", "null"], "maxLength": 0},
    },
    required=("model", "prompt"),
)
EMBEDDING = _object(
    {
        "model": MODEL,
        "input": _TEXTS,
        "encoding_format": {"enum": ["float", "base64", None]},
        "dimensions": _integer(1, TOKEN_MAX, "Must be the model's width."),
        "user": {"type": ["string", "null"], "description": IGNORED},
        "wait_s": _number(0, 600),
    },
    required=("model", "input"),
)

PARTS: dict[str, Schema] = {
    "TextPart": _PART,
    "ToolCall": _CALL,
    "Message": _either(_TOLD, _ANSWERED),
    "Function": _FUNCTION,
    "Tool": _TOOL,
    "ChatRequest": CHAT,
    "CompletionRequest": COMPLETION,
    "EmbeddingRequest": EMBEDDING,
}
