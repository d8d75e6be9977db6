"""The few protobuf messages of libp2p: read as Google's library writes them, garbage refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.identity.identify.pb.identify_pb2 import Identify

from potluck.errors import RemoteError
from potluck.node.net import protobuf

identifies = st.builds(
    Identify,
    public_key=st.binary(max_size=40),
    listen_addrs=st.lists(st.binary(max_size=20), max_size=5),
    protocols=st.lists(st.text(max_size=20), max_size=5),
    observed_addr=st.binary(max_size=20),
    agent_version=st.text(max_size=300),
)


@given(identifies)
def test_fields_are_read_as_googles_library_writes_them(message: Identify) -> None:
    found = protobuf.fields(message.SerializeToString())
    assert found.get(1, [b""]) == [message.public_key]
    assert found.get(2, []) == list(message.listen_addrs)
    assert found.get(3, []) == [protocol.encode() for protocol in message.protocols]
    assert found.get(6, [b""]) == [message.agent_version.encode()]


@given(identifies)
def test_googles_library_reads_what_is_written_here(message: Identify) -> None:
    written = b"".join(
        (
            protobuf.field(1, message.public_key),
            *(protobuf.field(2, address) for address in message.listen_addrs),
            *(protobuf.field(3, protocol.encode()) for protocol in message.protocols),
            protobuf.field(4, message.observed_addr),
            protobuf.field(6, message.agent_version.encode()),
        )
    )
    assert Identify.FromString(written) == message


@given(st.integers(0, 2**63 - 1))
def test_a_number_is_the_same_again(value: int) -> None:
    written = protobuf.varint(value)
    assert protobuf.read_varint(written, 0) == (value, len(written))
    assert protobuf.fields(protobuf.field(7, value)) == {7: [value]}


@given(st.binary(max_size=300))
def test_garbage_is_fields_or_a_peers_fault(garbage: bytes) -> None:
    try:
        protobuf.fields(garbage)
    except RemoteError:
        return


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",  # a length is missing
        b"\x0a\x05abc",  # a field is cut off
        b"\xff" * 11,  # a number without an end
        b"\x0b\x0c",  # groups, gone from protobuf since 2008
        b"\x08\x01" * (protobuf.FIELDS_MAX + 1),
    ],
)
def test_what_is_cut_off_or_too_much_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteError):
        protobuf.fields(data)


def test_a_field_that_must_be_there_is() -> None:
    assert protobuf.only_bytes({1: [b"first", b"last"]}, 1) == b"last"
    for found in ({}, {1: [7]}):
        with pytest.raises(RemoteError, match="missing"):
            protobuf.only_bytes(found, 1)  # type: ignore[arg-type]
