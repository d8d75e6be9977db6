"""What plug.py replaces in py-libp2p, or leans on beyond its interfaces, is as it was read.

A release that moves any of it fails here, before it fails in a swarm. Then read the function again,
see that plug.py still means what it says, and take over the new digest.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
from libp2p.host.basic_host import BasicHost, _IdentifyNotifee
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.net_stream import NetStream
from libp2p.network.swarm import Swarm

PINNED: dict[str, tuple[Callable[..., Any] | type, str]] = {
    "taken up by": (Swarm.add_conn, "d469d71b3ed1f4df"),
    "let go by": (SwarmConn.close, "442c6259a8e9e45e"),
    "let go further by": (SwarmConn._cleanup, "84470a285af6c287"),
    "its accept loop": (SwarmConn._handle_new_streams, "3469a326ba930915"),
    "its streams are made by": (SwarmConn._add_stream, "1c9c31442d6a25ef"),
    "its streams are forgotten by": (SwarmConn.remove_stream, "d29881ae42702686"),
    "replaced: dialing": (Swarm.dial_peer, "da3b538ccaeaeaa6"),
    "replaced: seeking peers": (AutoConnector.maybe_connect, "018fac95eafc2413"),
    "taken out: asking who it is": (_IdentifyNotifee, "6fcbedf542859d05"),
    "taken out: limits": (Swarm.set_resource_manager, "ba5593b3f671fb6a"),
    "opens streams": (BasicHost.new_stream, "df9efa1bac504f42"),
    "closes": (BasicHost.close, "f3c4dec7de560031"),
    "reads": (NetStream.read, "cc3b280850abe4b3"),
    "writes": (NetStream.write, "b0662734215dfe68"),
}


def digest(thing: Callable[..., Any] | type) -> str:
    return hashlib.sha256(inspect.getsource(thing).encode()).hexdigest()[:16]


def test_py_libp2p_is_the_release_that_was_read() -> None:
    assert version("libp2p") == "0.8.1"


@pytest.mark.parametrize("what", PINNED)
def test_a_function_that_we_lean_on_is_as_it_was_read(what: str) -> None:
    thing, read = PINNED[what]
    assert digest(thing) == read, f"{thing.__qualname__} has changed: read it again"
