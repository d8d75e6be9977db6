"""The one encoding: one form of bytes for each value, and RemoteError for all others."""

import struct
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, NewType

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from potluck.crypto.codec import LOCAL, Range, Size, decode, decode_any, encode
from potluck.errors import LocalError, RemoteError

PeerId = NewType("PeerId", str)


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: float


@dataclass(frozen=True, slots=True)
class Ask:
    TAG: ClassVar[str] = "ask"

    zone: int
    about: bytes


@dataclass(frozen=True, slots=True)
class Tell:
    TAG: ClassVar[str] = "tell"

    point: Point


@dataclass(frozen=True, slots=True)
class Everything:
    flag: bool
    count: Annotated[int, Range(-5, 2**40)]
    share: float
    name: Annotated[str, Size(20)]
    raw: bytes
    who: PeerId
    mode: Literal["fast", "slow"]
    maybe: int | None
    points: Annotated[tuple[Point, ...], Size(4)]
    pair: tuple[int, str]
    inner: Ask | Tell | None
    note: str = field(default="", metadata=LOCAL)


@dataclass(frozen=True, slots=True)
class Ordered:
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low above high")


finite = st.floats(allow_nan=False, allow_infinity=False)
int64 = st.integers(-(2**63), 2**64 - 1)
points = st.builds(Point, x=int64, y=finite)
everything = st.builds(
    Everything,
    flag=st.booleans(),
    count=st.integers(-5, 2**40),
    share=finite,
    name=st.text(max_size=20),
    raw=st.binary(max_size=50),
    who=st.text(max_size=50).map(PeerId),
    mode=st.sampled_from(["fast", "slow"]),
    maybe=st.none() | int64,
    points=st.lists(points, max_size=4).map(tuple),
    pair=st.tuples(int64, st.text(max_size=9)),
    inner=st.none() | st.builds(Ask, zone=int64, about=st.binary()) | st.builds(Tell, point=points),
)
SAMPLE = Everything(
    True, 3, 0.5, "né", b"\0\xff", PeerId("p"), "slow", None, (Point(1, 2.0),), (4, "z"),
    Ask(7, b"q"),
)  # fmt: skip


@given(everything)
def test_what_is_encoded_is_decoded_to_the_same(value: Everything) -> None:
    raw = encode(value)
    assert decode(raw, Everything, max_bytes=1 << 20) == value
    assert decode(bytearray(raw), Everything) == decode(memoryview(raw), Everything) == value


def test_the_form_is_a_map_of_sorted_field_names() -> None:
    assert encode(Point(1, 2.0)).hex() == "82a17801a179cb4000000000000000"
    assert encode(Ask(1, b"q")).hex() == "83a0a361736ba561626f7574c40171a47a6f6e6501"


@given(st.binary(max_size=300))
@example(b"\x91" * 5000)  # deeper than msgpack's own stack
@example(b"\xdd\xff\xff\xff\xff")  # a list of 4 G members
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\xd6\xff\x00\x00\x00\x00")  # a timestamp
@example(b"\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff")
@example(b"\x81\x91\x01\x02")  # a list as a key
@example(b"\xa2\xc3\x28")  # not UTF-8
@example(b"")
def test_random_bytes_are_refused_and_never_crash(raw: bytes) -> None:
    for kind in (Everything, Point, Ask):
        with pytest.raises(RemoteError):
            decode(raw, kind)
    with pytest.raises(RemoteError):
        decode_any(raw, (Ask, Tell))


@given(everything, st.data())
def test_changed_bytes_are_refused_or_mean_something_else(
    value: Everything, data: st.DataObject
) -> None:
    """One value has one form, so no change of a byte leaves the value as it was."""
    raw = bytearray(encode(value))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        changed = decode(raw, Everything, max_bytes=1 << 20)
    except RemoteError:
        return
    assert encode(changed) == raw and encode(changed) != encode(value)


@given(st.integers(0, 200))
def test_truncated_and_trailing_bytes_are_refused(cut: int) -> None:
    raw = encode(SAMPLE)
    with pytest.raises(RemoteError):
        decode(raw[: cut % len(raw)], Everything)
    with pytest.raises(RemoteError):
        decode(raw + b"\0", Everything)
    with pytest.raises(RemoteError):
        decode(raw + raw, Everything)


@pytest.mark.parametrize(
    ("plain", "why"),
    [
        ({"x": 1}, "a field is missing"),
        ({"x": 1, "y": 2.0, "z": 3}, "a field is unknown"),
        ({"y": 2.0, "x": 1}, "not sorted"),
        ({"x": 1.0, "y": 2.0}, "a float is no int"),
        ({"x": True, "y": 2.0}, "a bool is no int"),
        ({"x": 1, "y": 2}, "an int is no float"),
        ({"x": 1, "y": float("nan")}, "not a number"),
        ({"x": 1, "y": float("inf")}, "not finite"),
        ({"x": None, "y": 2.0}, "nothing"),
        ({"x": [1], "y": 2.0}, "a list"),
        ({b"x": 1, b"y": 2.0}, "names as bytes"),
        ([1, 2.0], "no map"),
        (7, "no map"),
    ],
)
def test_a_struct_that_is_not_as_declared_is_refused(plain: object, why: str) -> None:
    with pytest.raises(RemoteError):
        decode(msgpack.packb(plain), Point)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x82\xa1x\xd0\x01\xa1y\xcb" + struct.pack(">d", 2.0),  # 1 in two bytes
        b"\x82\xa1x\x01\xa1y\xca" + struct.pack(">f", 2.0),  # a float of 32 bits
        b"\x82\xd9\x01x\x01\xa1y\xcb" + struct.pack(">d", 2.0),  # a long form of a short text
        b"\xde\x00\x02\xa1x\x01\xa1y\xcb" + struct.pack(">d", 2.0),  # a long form of a short map
        b"\x83\xa1x\x05\xa1x\x01\xa1y\xcb" + struct.pack(">d", 2.0),  # a field twice
    ],
)
def test_other_forms_of_the_same_value_are_refused(raw: bytes) -> None:
    assert msgpack.unpackb(raw) == {"x": 1, "y": 2.0}
    with pytest.raises(RemoteError):
        decode(raw, Point)


@pytest.mark.parametrize(
    "change",
    [
        {"count": -6},
        {"count": 2**41},
        {"name": "n" * 21},
        {"mode": "odd"},
        {"points": (Point(1, 2.0),) * 5},
        {"pair": (1,)},
        {"share": float("nan")},
        {"count": 2**70},
        {"inner": Point(1, 2.0)},
    ],
)
def test_limits_hold_on_the_way_out_too(change: dict[str, object]) -> None:
    fields = {name: getattr(SAMPLE, name) for name in SAMPLE.__slots__}
    with pytest.raises(LocalError):
        encode(Everything(**{**fields, **change}))


def test_limits_hold_on_the_way_in() -> None:
    plain = msgpack.unpackb(encode(SAMPLE))
    for name, value in [
        ("count", -6),
        ("name", "n" * 21),
        ("mode", "odd"),
        ("mode", {}),
        ("pair", [1]),
    ]:
        with pytest.raises(RemoteError):
            decode(msgpack.packb({**plain, name: value}), Everything)


def test_a_union_is_told_by_its_tag() -> None:
    told: Ask | Tell = decode_any(encode(Tell(Point(1, 2.0))), (Ask, Tell))
    assert told == Tell(Point(1, 2.0))
    with pytest.raises(RemoteError):
        decode(encode(Ask(1, b"")), Tell)
    with pytest.raises(RemoteError):
        decode_any(encode(Point(1, 2.0)), (Ask, Tell))
    for tag in (None, 3, "other", ["ask"], {"": "ask"}):
        with pytest.raises(RemoteError):
            decode_any(msgpack.packb({"": tag, "about": b"", "zone": 1}), (Ask, Tell))


def test_an_invariant_of_the_class_is_the_senders_fault() -> None:
    with pytest.raises(RemoteError, match="low above high"):
        decode(msgpack.packb({"high": 1, "low": 2}), Ordered)


def test_a_local_field_is_not_sent() -> None:
    assert b"note" not in encode(SAMPLE)


def test_more_bytes_than_allowed_are_refused_unread() -> None:
    with pytest.raises(RemoteError, match="allowed"):
        decode(b"\xc1" * 101, Point, max_bytes=100)


def test_a_type_without_a_form_is_our_own_fault() -> None:
    @dataclass(frozen=True)
    class Odd:
        table: dict[str, int]

    with pytest.raises(LocalError):
        encode(Odd({}))
    with pytest.raises(LocalError):
        decode_any(b"", (Point, Ask))  # Point has no tag
