"""Gossip's messages on the wire: as libp2p's own protobuf has them; nothing else is read."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.pubsub.pb import rpc_pb2

from potluck.errors import RemoteError
from potluck.node.net.gossip_wire import RPC_BYTES_MAX, Reader, pack, unpack
from potluck.node.net.protobuf import field, varint
from potluck.swarm.topics import EVIDENCE, Message, Rpc, id_of

ID = id_of(b"news")
FULL = Rpc(
    subscriptions=(("one", True), ("other", False)),
    messages=(Message(EVIDENCE, b"news"), Message("t", b"")),
    ihave=(("one", (ID, ID[::-1])), ("other", ())),
    iwant=(ID,),
    graft=("one", "other"),
    prune=(("one", 60), ("other", 0)),
    idontwant=(ID, ID),
)

names = st.text(max_size=20)
ids = st.lists(st.binary(min_size=32, max_size=32), max_size=3).map(tuple)
rpcs = st.builds(
    Rpc,
    st.lists(st.tuples(names, st.booleans()), max_size=3).map(tuple),
    st.lists(st.builds(Message, names, st.binary(max_size=50)), max_size=3).map(tuple),
    st.lists(st.tuples(names, ids), max_size=3).map(tuple),
    ids,
    st.lists(names, max_size=3).map(tuple),
    st.lists(st.tuples(names, st.integers(0, 2**40)), max_size=3).map(tuple),
    ids,
)


@given(st.lists(rpcs, max_size=4), st.integers(1, 50))
def test_what_is_said_is_heard_however_it_is_cut(told: list[Rpc], cut: int) -> None:
    data = b"".join(map(pack, told))
    reader = Reader()
    found = [rpc for at in range(0, len(data), cut) for rpc in reader.feed(data[at : at + cut])]
    assert found == told


def test_it_is_libp2ps_protobuf() -> None:
    told = rpc_pb2.RPC()
    told.ParseFromString(pack(FULL)[2:])  # a length of two bytes
    assert [(one.topicid, one.subscribe) for one in told.subscriptions] == [*FULL.subscriptions]
    assert [(one.topicIDs[0], one.data) for one in told.publish] == [
        (one.topic, one.data) for one in FULL.messages
    ]
    control = told.control
    assert [(one.topicID, tuple(one.messageIDs)) for one in control.ihave] == [*FULL.ihave]
    assert tuple(control.iwant[0].messageIDs) == FULL.iwant
    assert tuple(one.topicID for one in control.graft) == FULL.graft
    assert [(one.topicID, one.backoff) for one in control.prune] == [*FULL.prune]
    assert tuple(control.idontwant[0].messageIDs) == FULL.idontwant
    assert unpack(told.SerializeToString()) == FULL


def test_what_is_not_known_is_passed_over() -> None:
    prune = field(1, b"one") + field(2, field(1, b"a peer")) + field(3, 9)
    body = field(4, b"a signed record") + field(3, field(4, prune) + field(6, b"later"))
    assert unpack(body + field(99, 1)) == Rpc(prune=(("one", 9),))
    assert unpack(b"") == Rpc()
    foreign = field(3, field(1, field(1, b"one") + field(2, b"another's name")))
    assert unpack(foreign) == Rpc(ihave=(("one", ()),))


MALFORMED = {
    "no protobuf": b"\xff" * 9,
    "cut short": field(2, field(2, b"news"))[:-3],
    "a number for a message": field(2, 7),
    "a number for a control": field(3, 7),
    "text for a number": field(3, field(4, field(1, b"one") + field(3, b"x"))),
    "a message without a topic": field(2, field(2, b"news")),
    "a message of two topics": field(2, field(2, b"n") + field(4, b"a") + field(4, b"b")),
    "a message without data": field(2, field(4, b"one")),
    "a message that is signed": field(2, field(2, b"n") + field(4, b"a") + field(5, b"s")),
    "a message with a sender": field(2, field(1, b"me") + field(2, b"n") + field(4, b"a")),
    "an enormous message": field(2, field(2, bytes(40_000)) + field(4, b"a")),
    "a topic that is no text": field(1, field(1, 1) + field(2, b"\xff")),
    "an enormous topic": field(1, field(1, 1) + field(2, b"x" * 200)),
    "an enormous name": field(3, field(5, field(1, b"x" * 65))),
    "a graft of nothing": field(3, field(3, b"")),
    "too many fields": field(1, field(1, 1) + field(2, b"x")) * 1025,
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_malformed_is_refused(what: str) -> None:
    with pytest.raises(RemoteError):
        unpack(MALFORMED[what])


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    with suppress(RemoteError):
        unpack(body)


@given(st.binary(min_size=1, max_size=60), st.integers(0, 2**32))
def test_no_change_of_good_bytes_raises_anything_else(noise: bytes, seed: int) -> None:
    data = bytearray(pack(FULL))
    for number, byte in enumerate(noise):
        data[(seed + number * 7) % len(data)] ^= byte
    with suppress(RemoteError):
        list(Reader().feed(bytes(data)))


@pytest.mark.parametrize("size", [RPC_BYTES_MAX + 1, 1 << 20, (1 << 21) - 1])
def test_a_length_beyond_the_bound_is_refused_before_its_bytes_come(size: int) -> None:
    with pytest.raises(RemoteError):
        list(Reader().feed(varint(size)))


def test_a_length_that_never_ends_is_refused() -> None:
    reader = Reader()
    assert list(reader.feed(b"\xff\xff")) == []
    with pytest.raises(RemoteError):
        list(reader.feed(b"\xff"))
