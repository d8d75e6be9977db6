"""The command line's pieces: where to listen, the facts it prints, a conversation that is long."""

from __future__ import annotations

import io
import json
import socket
from dataclasses import asdict, replace
from typing import get_args

import pytest
from rich.console import Console

from potluck.cli.answer import Told
from potluck.cli.here import NATS, in_words
from potluck.cli.picture import Link, Picture, speed
from potluck.cli.serve import listen_addresses
from potluck.cli.talk import _fit
from potluck.cli.top import parts
from potluck.dht.directory import ModelOffer
from potluck.dht.record import Announcement
from potluck.errors import UserError
from potluck.node.generation import Piece
from potluck.node.net import address
from potluck.node.net.observed import Kind, NatReport, Reachability
from potluck.swarm.blocks import BlockRange
from potluck.swarm.routing import Hop


@pytest.mark.parametrize("host", ["all", "0.0.0.0", "::"])
def test_every_interface_is_both_families(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "every_interface", lambda port: (f"four {port}", f"six {port}"))
    assert listen_addresses([host], 7) == ("four 7", "six 7")


def test_every_interface_can_be_listened_on() -> None:
    """With IPv6 where this machine has it."""
    listeners = address.listening(address.every_interface(0))
    families = {listener.family for listener in listeners}
    for listener in listeners:
        listener.close()
    assert socket.AF_INET in families and len(families) == len(listeners)


@pytest.mark.parametrize(
    "hosts, addresses",
    [
        (["::1"], ["/ip6/::1/tcp/7"]),
        (["/ip4/0.0.0.0/tcp/4001"], ["/ip4/0.0.0.0/tcp/4001"]),
        (["127.0.0.1", "::1", "127.0.0.1"], ["/ip4/127.0.0.1/tcp/7", "/ip6/::1/tcp/7"]),
    ],
)
def test_where_to_listen_may_be_an_address(hosts: list[str], addresses: list[str]) -> None:
    assert listen_addresses(hosts, 7) == tuple(addresses)


def test_facts_of_an_answer_are_what_came() -> None:
    route = (Hop("a" * 20, BlockRange(0, 2)), Hop("b" * 20, BlockRange(2, 3)))
    told = Told(finish="length")
    told.pieces = [
        Piece(token, 5 + token, text, seconds, route)
        for token, text, seconds in [(0, "I", 0.5), (1, "", 0.1), (2, " am", 0.3)]
    ]
    facts = json.loads(json.dumps(told.facts()))
    assert facts["text"] == "I am" and facts["tokens"] == [0, 1, 2]
    assert facts["time_to_first_token_s"] == 0.5
    assert facts["tokens_per_s"] == pytest.approx(2 / 0.4)
    assert [hop["blocks"] for hop in facts["route"]] == [[0, 2], [2, 3]]
    assert "5.0 tokens/s" in told.summary() and "2 hops" in told.summary()


def test_facts_of_an_answer_that_never_came_are_empty() -> None:
    facts = Told().facts()
    assert facts["text"] == "" and facts["finish"] == "failed"
    assert facts["tokens_per_s"] is None and facts["route"] == []


def announced(peer: str, start: int, stop: int) -> Announcement:
    return Announcement(
        model="0" * 64, name="m", start=start, stop=stop, blocks=6, state="online", device="cpu",
        dtype="float32", quantization="none", decode_tokens_s=100.0, prefill_tokens_s=200.0,
        addresses=(), cache_tokens_free=10, context_tokens_max=64, version="0",
        numerics="cpu fp32", peer=peer,
    )  # fmt: skip


def test_coverage_counts_who_can_be_reached_and_serves() -> None:
    spans = (
        announced("a", 0, 4),
        announced("b", 2, 5),
        announced("far", 0, 6),
        replace(announced("going", 5, 6), state="draining"),
    )
    direct = Link("direct", 0.001)
    links = {"a": direct, "b": direct, "going": direct, "far": Link("unreachable", None)}
    picture = Picture(ModelOffer("0" * 64, "m", 6, ("a", "b")), spans, links)
    assert picture.replicas == (1, 1, 2, 2, 1, 0)
    assert picture.missing == ((5, 6),)
    facts = json.loads(json.dumps(picture.facts()))
    assert facts["missing"] == [[5, 6]]
    assert [span["link"] for span in facts["spans"]].count("unreachable") == 1


def drawn(pictures: list[Picture], trouble: str = "") -> str:
    """What potluck top shows, as plain text."""
    console = Console(file=io.StringIO(), width=200, no_color=True)
    for part in parts(pictures, None, trouble):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_scarcest_block_bounds_what_a_model_offers() -> None:
    """Rates are those of one block: 100 tokens/s through six of them are 16.7 through all."""
    spans = (announced("a", 0, 6), announced("b", 0, 3), announced("far", 3, 6))
    direct = Link("direct", 0.001)
    links = {"a": direct, "b": direct, "far": Link("unreachable", None)}
    picture = Picture(ModelOffer("0" * 64, "m", 6, ("a", "b")), spans, links)
    assert speed(picture) == "17 tokens/s"
    said = drawn([picture])
    assert "3 peers, 1 model" in said and "222111" in said and "1.0 ms" in said
    assert "Nobody serves" in drawn([]) and "does not answer: gone" in drawn([], "gone")


def of_node(listens: str = "/ip4/0.0.0.0/tcp/1", **nat: object) -> str:
    told = {
        "listens": [listens],
        "nat": asdict(NatReport()) | nat,
        "relaying": {"reservations": 2},
        "direct": 3,
        "relayed": 1,
    }
    return in_words(told)


def test_a_node_tells_how_it_is_reached() -> None:
    """Whatever its NAT; whoever listens on this machine alone has none."""
    for reachability in get_args(Reachability):
        for kind in get_args(Kind):
            assert NATS[kind] in of_node(reachability=reachability, kind=kind)
    assert "through ...relay" in of_node(reachability="private", relays=("12D3...relay",))
    assert "by IPv6; by IPv4 nobody" in of_node(reachability="private", open=("ip6",))
    assert "by upnp" in of_node(mapped=True, portmap="upnp")
    assert of_node("/ip4/127.0.0.1/tcp/1").startswith("listens for this machine alone")
    assert of_node().endswith("3 peers directly, 1 over relays; relays for 2")


class OneTokenALetter:
    """A voice of a pretended model."""

    context = 30
    name = "letters"

    @property
    def text(self) -> OneTokenALetter:
        return self

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        return [0] * sum(len(message["content"]) for message in messages)


def test_a_conversation_that_grows_too_long_forgets_its_oldest_turns() -> None:
    said = [(role, letter * 10) for letter in "abc" for role in ("user", "assistant")]
    messages = [{"role": role, "content": text} for role, text in said[:-1]]
    ids, room = _fit(OneTokenALetter(), messages)  # type: ignore[arg-type]
    assert (len(ids), room) == (10, 20)
    assert [message["content"][0] for message in messages] == ["c"]


def test_what_is_too_long_even_alone_is_refused() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u" * 40}]
    with pytest.raises(UserError, match="shorten"):
        _fit(OneTokenALetter(), messages)  # type: ignore[arg-type]
    assert len(messages) == 2
