"""What may be asked of files, batches and runs, and what is answered, as JSON Schema.

Source: OpenAI's API reference, "Files", "Batch", "Fine-tuning".
"""

from __future__ import annotations

from typing import Any, Final

from .schemas import IGNORED, MODEL, NULL, Schema

METADATA_MAX: Final = 16
_ID: Schema = {"type": "string", "minLength": 1, "maxLength": 64}
_TIME: Schema = {"type": ["integer", "null"]}
_WORDS: Schema = {"type": ["string", "null"]}


def _asked(properties: Schema, required: tuple[str, ...]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _told(properties: Schema, **fixed: Any) -> Schema:
    """fixed: fields that always say the same."""
    found = {**properties, **{name: {"const": value} for name, value in fixed.items()}}
    return {"type": "object", "properties": found, "required": list(found)}


def _list(part: str) -> Schema:
    items = {"$ref": f"#/components/schemas/{part}"}
    names = {"first_id": _WORDS, "last_id": _WORDS, "has_more": {"type": "boolean"}}
    return _told({"data": {"type": "array", "items": items}, **names}, object="list")


def _either_auto(kind: str, least: float, most: float) -> Schema:
    return {"anyOf": [{"enum": ["auto", None]}, {"type": kind, "minimum": least, "maximum": most}]}


_METADATA: Schema = {
    "anyOf": [
        NULL,
        {
            "type": "object",
            "properties": {},
            "additionalProperties": {"type": "string", "maxLength": 512},
            "maxProperties": METADATA_MAX,
        },
    ]
}
BATCH = _asked(
    {
        "input_file_id": _ID,
        "endpoint": {"enum": ["/v1/chat/completions", "/v1/completions"]},
        "completion_window": {
            "enum": ["24h"],
            "description": "Taken as OpenAI's clients say it; a batch has as long as it needs.",
        },
        "metadata": _METADATA,
    },
    ("input_file_id", "endpoint", "completion_window"),
)
_HYPERPARAMETERS: Schema = {
    "anyOf": [
        NULL,
        _asked(
            {
                "n_epochs": _either_auto("integer", 1, 1000),
                "batch_size": _either_auto("integer", 1, 256),
                "learning_rate_multiplier": _either_auto("number", 1e-4, 100),
            },
            (),
        ),
    ]
}
TUNING = _asked(
    {
        "model": MODEL,
        "training_file": _ID,
        "validation_file": {
            **NULL,
            "description": "A share of the training file is held out instead.",
        },
        "hyperparameters": _HYPERPARAMETERS,
        "method": {
            "anyOf": [
                NULL,
                _asked(
                    {
                        "type": {"const": "supervised"},
                        "supervised": {
                            "anyOf": [NULL, _asked({"hyperparameters": _HYPERPARAMETERS}, ())]
                        },
                    },
                    ("type",),
                ),
            ]
        },
        "seed": {"type": ["integer", "null"], "minimum": 0, "maximum": (1 << 31) - 1},
        "suffix": {
            "anyOf": [
                NULL,
                {
                    "type": "string", "minLength": 1, "maxLength": 64,
                    "description": "Letters, digits, - and _.",
                },
            ]
        },
        "integrations": {
            "anyOf": [NULL, {"type": "array", "maxItems": 0}],
            "description": IGNORED,
        },
        "metadata": _METADATA,
    },
    ("model", "training_file"),
)  # fmt: skip

_FILE = _told(
    {
        "id": _ID,
        "bytes": {"type": "integer", "minimum": 0},
        "created_at": {"type": "integer"},
        "expires_at": _TIME,
        "filename": {"type": "string"},
        "purpose": {"type": "string"},
    },
    object="file",
    status="processed",
)
_TIMES: Schema = {
    f"{name}_at": _TIME
    for name in (
        "in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling",
        "cancelled",
    )
}  # fmt: skip
_BATCH_TOLD = _told(
    {
        "id": _ID,
        "endpoint": {"type": "string"},
        "errors": {"type": ["object", "null"]},
        "input_file_id": _ID,
        "completion_window": {"type": "string"},
        "status": {"enum": ["in_progress", "completed", "failed", "cancelled"]},
        "output_file_id": _WORDS,
        "error_file_id": _WORDS,
        "created_at": {"type": "integer"},
        **_TIMES,
        "request_counts": _told(
            {name: {"type": "integer", "minimum": 0} for name in ("total", "completed", "failed")}
        ),
        "metadata": _METADATA,
        "potluck": {"type": "object"},
    },
    object="batch",
)
_TUNING_TOLD = _told(
    {
        "id": _ID,
        "created_at": {"type": "integer"},
        "error": {"type": ["object", "null"]},
        "fine_tuned_model": _WORDS,
        "finished_at": _TIME,
        "hyperparameters": {"type": "object"},
        "model": {"type": "string"},
        "organization_id": {"type": "string"},
        "result_files": {"type": "array", "items": {"type": "string"}},
        "seed": {"type": "integer"},
        "status": {"enum": ["queued", "running", "paused", "succeeded", "failed", "cancelled"]},
        "trained_tokens": _TIME,
        "training_file": _ID,
        "validation_file": _WORDS,
        "estimated_finish": _TIME,
        "integrations": {"type": "array"},
        "metadata": _METADATA,
        "method": {"type": "object"},
        "potluck": {"type": "object"},
    },
    object="fine_tuning.job",
)
_EVENT = _told(
    {
        "id": _ID,
        "created_at": {"type": "integer"},
        "level": {"enum": ["info", "warn", "error"]},
        "message": {"type": "string"},
        "type": {"enum": ["message", "metrics"]},
        "data": {"type": "object"},
    },
    object="fine_tuning.job.event",
)
_CHECKPOINT = _told(
    {
        "id": _ID,
        "created_at": {"type": "integer"},
        "fine_tuned_model_checkpoint": {"type": "string"},
        "fine_tuning_job_id": _ID,
        "step_number": {"type": "integer"},
        "metrics": {"type": "object"},
    },
    object="fine_tuning.job.checkpoint",
)

JOB_PARTS: dict[str, Schema] = {"BatchRequest": BATCH, "TuningRequest": TUNING}
JOB_ANSWERS: dict[str, Schema] = {
    "File": _FILE,
    "Files": _list("File"),
    "FileDeleted": _told({"id": _ID, "deleted": {"type": "boolean"}}, object="file"),
    "Batch": _BATCH_TOLD,
    "Batches": _list("Batch"),
    "Tuning": _TUNING_TOLD,
    "Tunings": _list("Tuning"),
    "TuningEvents": _list("TuningEvent"),
    "TuningEvent": _EVENT,
    "TuningCheckpoints": _list("TuningCheckpoint"),
    "TuningCheckpoint": _CHECKPOINT,
}
