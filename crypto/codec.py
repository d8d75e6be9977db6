"""The one encoding: frozen dataclasses as canonical MessagePack, and back through one table.

What is signed must have one form of bytes, so there is only one: a struct is a map of its field
names, sorted; numbers in their shortest form, floats as 64 bits, text and bytes told apart. What is
read in any other form is refused (it is packed again and must be equal), so two different byte
strings never mean the same. MessagePack specification: github.com/msgpack/msgpack, spec.md.

    struct    {name: value, ...}      a dataclass; every field present, none unknown
    tagged    {"": TAG, name: ...}    a dataclass with `TAG: ClassVar[str]`: a member of a union
    fields    None bool int float str bytes Literal  T | None  A | B  tuple[T, ...]  tuple[A, B]
    limits    Annotated[str, Size(64)]  Annotated[tuple[T, ...], Size(8)]
              Annotated[int, Range(0, 9)]
    not sent  peer: str = field(default="", metadata=LOCAL)

Each class is compiled once into closures, because the header of a message is read on every hop.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, NewType, TypeVar

import msgpack

from ..errors import LocalError, RemoteError

T = TypeVar("T")

TAG_KEY: Final = ""  # sorts before every field name, and cannot be one
NESTING_MAX: Final = 16  # a declared type is never deeper, so nothing deeper is ever accepted
BYTES_MAX: Final = 64 * 1024  # of one message, unless the caller says otherwise
LOCAL: Final[Mapping[str, bool]] = MappingProxyType({"local": True})  # metadata of a field


@dataclass(frozen=True, slots=True)
class Size:
    """At most `most` (and at least `least`) characters of text, bytes, or members of a tuple."""

    most: int
    least: int = 0


@dataclass(frozen=True, slots=True)
class Range:
    """A number within least..most, both included."""

    least: float
    most: float


def encode(value: Any) -> bytes:
    """The one form of a struct's bytes. LocalError when a field does not hold what it declares."""
    try:
        kind: Any = type(value)
        return _pack(_plan(kind).write(value))
    except _Mismatch as wrong:
        raise LocalError(f"cannot encode {type(value).__name__}: {wrong}") from None
    except OverflowError:
        raise LocalError(f"cannot encode {type(value).__name__}: beyond 64 bits") from None


def decode(raw: bytes | bytearray | memoryview, kind: type[T], *, max_bytes: int = BYTES_MAX) -> T:
    """The struct that these bytes are. Raises RemoteError for anything but its one form."""
    wanted: Any = kind
    return _decode(raw, _plan(wanted), max_bytes)  # type: ignore[no-any-return]


def decode_any(
    raw: bytes | bytearray | memoryview,
    kinds: tuple[type[Any], ...],
    *,
    max_bytes: int = BYTES_MAX,
) -> Any:
    """The tagged struct, one of `kinds`, that these bytes are. Raises RemoteError otherwise."""
    return _decode(raw, _union_plan(kinds), max_bytes)


def _decode(raw: bytes | bytearray | memoryview, plan: "_Plan", max_bytes: int) -> Any:
    if len(raw) > max_bytes:
        raise RemoteError(f"a message of {len(raw)} bytes, where {max_bytes} are allowed")
    try:
        plain = msgpack.unpackb(raw, use_list=False, raw=False, strict_map_key=True)
        value = plan.read(plain)
        one_form = _pack(plain)
    except _Mismatch as wrong:
        raise RemoteError(f"malformed message: {wrong}") from None
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as wrong:
        # msgpack speaks of bad bytes by all of these: truncated, trailing, bad UTF-8, too deep.
        raise RemoteError(f"not MessagePack: {wrong}") from None
    if one_form != raw:
        raise RemoteError("not the canonical form")
    return value


def _pack(plain: object) -> bytes:
    return msgpack.packb(plain, use_bin_type=True)  # type: ignore[no-any-return]


class _Mismatch(Exception):
    """A value is not of its declared type; whose fault that is, the caller knows."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one declared type is checked on the way in and on the way out."""

    read: Callable[[Any], Any]
    write: Callable[[Any], Any]
    depth: int = 0


@cache
def _plan(kind: Any) -> _Plan:
    plan = _compile(kind, (), NESTING_MAX)
    if plan.depth > NESTING_MAX:
        raise LocalError(f"{kind} nests {plan.depth} deep, over {NESTING_MAX}")
    return plan


@cache
def _union_plan(kinds: tuple[type, ...]) -> _Plan:
    return _tagged(kinds, NESTING_MAX)


def _compile(kind: Any, limits: tuple[Any, ...], left: int) -> _Plan:
    """The plan of a declared type. LocalError when the codec has no form for it."""
    if left < 0:
        raise LocalError(f"{kind} nests deeper than {NESTING_MAX}")
    if isinstance(kind, NewType):
        return _compile(kind.__supertype__, limits, left)
    if kind is None or kind is types.NoneType:
        return _exactly(types.NoneType)
    if kind in (bool, int, str, bytes):
        return _limited(_exactly(kind), limits)
    if kind is float:
        return _limited(_FLOAT, limits)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _struct(kind, left - 1)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _compile(arguments[0], (*limits, *arguments[1:]), left)
    if origin is Literal:
        return _literal(arguments)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, limits, left)
    if origin is tuple:
        return _limited(_tuple(arguments, left - 1), limits)
    raise LocalError(f"the codec has no form for {kind!r}")


def _exactly(kind: type) -> _Plan:
    name = kind.__name__

    def check(value: Any) -> Any:
        if type(value) is not kind:  # exactly: a bool is no int
            raise _Mismatch(f"{type(value).__name__} where {name} belongs")
        return value

    return _Plan(check, check)


def _read_float(value: Any) -> float:
    if type(value) is not float or not math.isfinite(value):
        raise _Mismatch(f"{value!r:.40} where a finite float belongs")
    return value


def _write_float(value: Any) -> float:
    return _read_float(float(value) if type(value) is int else value)


_FLOAT = _Plan(_read_float, _write_float)


def _limited(plan: _Plan, limits: tuple[Any, ...]) -> _Plan:
    for limit in limits:
        if isinstance(limit, Size):
            plan = _bounded(plan, len, limit.least, limit.most)
        elif isinstance(limit, Range):
            plan = _bounded(plan, _itself, limit.least, limit.most)
        else:
            raise LocalError(f"the codec does not know the limit {limit!r}")
    return plan


def _itself(value: float) -> float:
    return value


def _bounded(plan: _Plan, measure: Callable[[Any], float], least: float, most: float) -> _Plan:
    def bounded(inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def check(value: Any) -> Any:
            value = inner(value)
            if not least <= measure(value) <= most:
                raise _Mismatch(f"{measure(value)} is outside {least}..{most}")
            return value

        return check

    read = bounded(plan.read)
    return _Plan(read, read if plan.write is plan.read else bounded(plan.write), plan.depth)


def _literal(choices: tuple[Any, ...]) -> _Plan:
    allowed = frozenset((type(choice), choice) for choice in choices)

    def check(value: Any) -> Any:
        # Only scalars can be asked after: a nested map is not hashable.
        if type(value) not in (str, int, bool, bytes) or (type(value), value) not in allowed:
            raise _Mismatch(f"{value!r:.40} is none of {choices}")
        return value

    return _Plan(check, check)


def _tuple(arguments: tuple[Any, ...], left: int) -> _Plan:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        item = _compile(arguments[0], (), left)
        read_item, write_item = item.read, item.write

        def read_many(value: Any) -> Any:
            if type(value) is not tuple:
                raise _Mismatch(f"{type(value).__name__} where a list belongs")
            return tuple([read_item(member) for member in value])

        def write_many(value: Any) -> Any:
            if type(value) is not tuple:
                raise _Mismatch(f"{type(value).__name__} where a tuple belongs")
            return tuple([write_item(member) for member in value])

        return _Plan(read_many, write_many, item.depth + 1)

    items = [_compile(argument, (), left) for argument in arguments]
    count = len(items)

    def fixed(value: Any, *, reading: bool) -> Any:
        if type(value) is not tuple or len(value) != count:
            raise _Mismatch(f"{value!r:.40} where {count} members belong")
        return tuple(
            [
                (plan.read if reading else plan.write)(v)
                for plan, v in zip(items, value, strict=True)
            ]
        )

    return _Plan(
        lambda value: fixed(value, reading=True),
        lambda value: fixed(value, reading=False),
        max((item.depth for item in items), default=0) + 1,
    )


def _union(arguments: tuple[Any, ...], limits: tuple[Any, ...], left: int) -> _Plan:
    rest = tuple(a for a in arguments if a is not types.NoneType)
    plan = _compile(rest[0], limits, left) if len(rest) == 1 else _tagged(rest, left)
    if len(rest) == len(arguments):
        return plan
    read, write = plan.read, plan.write
    return _Plan(
        lambda value: None if value is None else read(value),
        lambda value: None if value is None else write(value),
        plan.depth,
    )


def _tagged(kinds: tuple[type, ...], left: int) -> _Plan:
    by_tag: dict[str, _Plan] = {}
    by_kind: dict[type, _Plan] = {}
    for kind in kinds:
        tag = getattr(kind, "TAG", None)
        if not isinstance(tag, str) or tag in by_tag:
            raise LocalError(f"{kind.__name__} needs a TAG of its own to stand in a union")
        by_tag[tag] = by_kind[kind] = _compile(kind, (), left)

    def read(value: Any) -> Any:
        tag = value.get(TAG_KEY) if type(value) is dict else None
        plan = by_tag.get(tag) if type(tag) is str else None
        if plan is None:
            raise _Mismatch(f"unknown tag {tag!r:.40}")
        return plan.read(value)

    def write(value: Any) -> Any:
        if type(value) not in by_kind:
            raise _Mismatch(f"{type(value).__name__} is not in the union")
        return by_kind[type(value)].write(value)

    return _Plan(read, write, max(plan.depth for plan in by_tag.values()))


def _struct(kind: type, left: int) -> _Plan:
    hints = typing.get_type_hints(kind, include_extras=True)
    sent = [field.name for field in dataclasses.fields(kind) if not field.metadata.get("local")]
    names = sorted(sent)
    plans = [_compile(hints[name], (), left) for name in names]
    tag = getattr(kind, "TAG", None)
    keys = (TAG_KEY, *names) if tag is not None else tuple(names)
    reads = [(name, plan.read) for name, plan in zip(names, plans, strict=True)]
    writes = [(name, plan.write) for name, plan in zip(names, plans, strict=True)]

    def read(plain: Any) -> Any:
        if type(plain) is not dict or tuple(plain) != keys:
            raise _Mismatch(f"{kind.__name__} has the fields {', '.join(names)}, sorted, no others")
        if tag is not None and plain[TAG_KEY] != tag:
            raise _Mismatch(f"the tag of {kind.__name__} is {tag!r}")
        values = {}
        name = "its invariant"
        try:
            for name, check in reads:
                values[name] = check(plain[name])
            return kind(**values)
        except (_Mismatch, AssertionError, ValueError) as wrong:  # a field's, or the class's own
            raise _Mismatch(f"{kind.__name__}, {name}: {wrong}") from None

    def write(value: Any) -> Any:
        if type(value) is not kind:
            raise _Mismatch(f"{type(value).__name__} where {kind.__name__} belongs")
        plain: dict[str, Any] = {} if tag is None else {TAG_KEY: tag}
        for name, convert in writes:
            try:
                plain[name] = convert(getattr(value, name))
            except _Mismatch as wrong:
                raise _Mismatch(f"{name}: {wrong}") from None
        return plain

    return _Plan(read, write, max((plan.depth for plan in plans), default=0) + 1)
