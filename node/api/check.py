"""Is this JSON what a schema says? The part of JSON Schema that our own schemas use.

The published OpenAPI document and the checks are one thing, so they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .problem import Problem, wrong

Schema = Mapping[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}
_WORDS = {"array": "an array", "object": "an object", "integer": "an integer", "null": "null"}


def check(value: object, schema: Schema, parts: Mapping[str, Schema], at: str = "") -> None:
    """Raise a Problem (400) that names the field, unless the value is what the schema says.

    parts: the schemas that `$ref` names, by their last word.
    """
    if "$ref" in schema:
        check(value, parts[schema["$ref"].rpartition("/")[2]], parts, at)
        return
    if "anyOf" in schema:
        _check_any(value, schema["anyOf"], parts, at)
        return
    _check_type(value, schema, at)
    if "const" in schema and value != schema["const"]:
        raise wrong(f"{_at(at)} must be {schema['const']!r}", at or None)
    if "enum" in schema and value not in schema["enum"]:
        told = ", ".join(repr(one) for one in schema["enum"])
        raise wrong(f"{_at(at)} must be one of {told}", at or None)
    if isinstance(value, str):
        _check_size(len(value), schema, "minLength", "maxLength", "characters", at)
        _check_text(value, at)
    elif isinstance(value, dict):
        _check_object(value, schema, parts, at)
    elif isinstance(value, list):
        _check_size(len(value), schema, "minItems", "maxItems", "items", at)
        for index, one in enumerate(value):
            check(one, schema.get("items", {}), parts, f"{at}[{index}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_range(value, schema, at)


def _check_any(value: object, choices: list[Schema], parts: Mapping[str, Schema], at: str) -> None:
    """The complaint of the choice that came nearest: the one whose type fits."""
    fitting = [one for one in choices if _fits(value, _resolve(one, parts))]
    if not fitting:
        told = sorted({name for one in choices for name in _names(_resolve(one, parts))})
        raise wrong(
            f"{_at(at)} must be {' or '.join(_WORDS.get(name, f'a {name}') for name in told)}",
            at or None,
            "invalid_type",
        )
    meant = [one for one in fitting if _means(value, _resolve(one, parts), parts)] or fitting
    failures = list[Problem]()
    for one in meant:
        try:
            check(value, one, parts, at)
        except Problem as problem:
            failures.append(problem)
        else:
            return
    raise failures[0]


def _means(value: object, schema: Schema, parts: Mapping[str, Schema]) -> bool:
    """Whether this is the choice that the value wants to be: its first item, or the fields that
    tell the choices apart, are of it."""
    if isinstance(value, list):
        return not value or _fits(value[0], _resolve(schema.get("items", {}), parts))
    if isinstance(value, dict):
        told = schema.get("properties", {}).items()
        marks = [(name, one) for name, one in told if name in ("type", "role") and name in value]
        return all(value[name] in one.get("enum", [one.get("const")]) for name, one in marks)
    return True


def _resolve(schema: Schema, parts: Mapping[str, Schema]) -> Schema:
    while "$ref" in schema:
        schema = parts[schema["$ref"].rpartition("/")[2]]
    return schema


def _names(schema: Schema) -> list[str]:
    found = schema.get("type", [])
    return [found] if isinstance(found, str) else list(found)


def _fits(value: object, schema: Schema) -> bool:
    names = _names(schema)
    if not names:
        return True
    if isinstance(value, bool):
        return "boolean" in names
    return any(isinstance(value, _TYPES[name]) for name in names)


def _check_type(value: object, schema: Schema, at: str) -> None:
    if not _fits(value, schema):
        told = " or ".join(_WORDS.get(name, f"a {name}") for name in _names(schema))
        raise wrong(f"{_at(at)} must be {told}", at or None, "invalid_type")


def _check_object(
    value: dict[str, Any], schema: Schema, parts: Mapping[str, Schema], at: str
) -> None:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            where = f"{at}.{name}" if at else name
            raise wrong(f"{where} is missing", where, "missing_required_parameter")
    _check_size(len(value), schema, "minProperties", "maxProperties", "properties", at)
    others = schema.get("additionalProperties", True)
    for name, one in value.items():
        where = f"{at}.{name}" if at else name
        _check_text(name, at)
        if name in properties:
            check(one, properties[name], parts, where)
        elif others is False:
            raise wrong(f"{where} is not known here", where, "unknown_parameter")
        elif isinstance(others, Mapping):
            check(one, others, parts, where)


def _check_size(size: int, schema: Schema, least: str, most: str, what: str, at: str) -> None:
    if size < schema.get(least, 0):
        raise wrong(f"{_at(at)} needs at least {schema[least]} {what}", at or None)
    if size > schema.get(most, size):
        raise wrong(f"{_at(at)} may have at most {schema[most]} {what}", at or None)


def _check_range(value: float, schema: Schema, at: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):  # an int may be above any float
        raise wrong(f"{_at(at)} must be a finite number", at or None)
    if value < schema.get("minimum", value) or value > schema.get("maximum", value):
        raise wrong(f"{_at(at)} must be {_bounds(schema)}", at or None)
    if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        raise wrong(f"{_at(at)} must be above {schema['exclusiveMinimum']}", at or None)


def _bounds(schema: Schema) -> str:
    if "maximum" not in schema:
        return f"{schema['minimum']} or more"
    return f"{schema['minimum']} to {schema['maximum']}" if "minimum" in schema else "lower"


def _check_text(text: str, at: str) -> None:
    """A lone surrogate is legal JSON, but no text: nothing can encode it."""
    if any("\ud800" <= one <= "\udfff" for one in text):
        raise wrong(f"{_at(at)} holds half a character (a lone surrogate)", at or None)


def _at(at: str) -> str:
    return at or "the body"
