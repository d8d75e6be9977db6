"""One picture of a swarm: its models, who serves which blocks of them, and how far they are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from ..dht.directory import ModelOffer
from ..dht.record import Announcement
from ..errors import RemoteError, TransportError
from ..node.client import Swarm, open_swarm
from ..node.config import home_of
from ..node.net.ways import relays_told
from ..swarm.blocks import BlockRange, replicas, uncovered
from .answer import short
from .edge import until_signalled
from .here import in_words, own_node, resting
from .options import print_json, say
from .tables import print_table

COLUMNS = ("  BLOCKS", "PEER", "STATE", "LINK", "RTT>", "TOKENS/S>", "CACHE>", "DEVICE")
KNOCK_S = 3.0  # for a peer to be reached; a picture must not wait for the dead


@dataclass(frozen=True, slots=True)
class Link:
    """Our road to one peer. rtt_s: there and back; None when not measured."""

    kind: str  # direct, relayed or unreachable
    rtt_s: float | None
    relay: str | None = None  # the peer that it leads over, or would by the record's word


@dataclass(frozen=True, slots=True)
class Picture:
    """One model. `links` has an entry of each peer in `spans`."""

    offer: ModelOffer
    spans: tuple[Announcement, ...]
    links: dict[str, Link]

    @property
    def replicas(self) -> tuple[int, ...]:
        """How many peers serve each block."""
        return replicas(self._whole, self._served())

    @property
    def missing(self) -> tuple[tuple[int, int], ...]:
        return uncovered(self._whole, self._served())

    @property
    def _whole(self) -> BlockRange:
        return BlockRange(0, self.offer.blocks)

    def _served(self) -> list[BlockRange]:
        return [
            BlockRange(span.start, span.stop)
            for span in self.spans
            if span.state == "online" and self.links[span.peer].kind != "unreachable"
        ]

    def facts(self) -> dict[str, Any]:
        return {
            "name": self.offer.name,
            "model": self.offer.model,
            "blocks": self.offer.blocks,
            "replicas": list(self.replicas),
            "missing": [list(gap) for gap in self.missing],
            "spans": [_span_facts(span, self.links[span.peer]) for span in self.spans],
        }


async def take_picture(swarm: Swarm) -> list[Picture]:
    """Every model of the swarm, and a knock at every peer's door."""
    links: dict[str, Link] = {}
    found: dict[ModelOffer, tuple[Announcement, ...]] = {}
    async with trio.open_nursery() as nursery:
        for offer in await swarm.models():
            spans = await swarm.spans(offer.model)
            found[offer] = tuple(sorted(spans, key=lambda span: (span.start, span.stop, span.peer)))
            for span in spans:
                if span.peer not in links:
                    by_record = next(iter(relays_told(span.addresses)), None)
                    links[span.peer] = Link("unreachable", None, by_record)
                    nursery.start_soon(_knock, swarm, span, links)
    return [Picture(offer, spans, links) for offer, spans in found.items()]


async def _knock(swarm: Swarm, span: Announcement, links: dict[str, Link]) -> None:
    host = swarm.member.host
    with trio.move_on_after(KNOCK_S):
        try:
            await host.connect(span.addresses)
        except (TransportError, RemoteError):
            return  # it stays unreachable in the picture
        relay = host.relay_of(span.peer)
        links[span.peer] = Link("relayed" if relay else "direct", host.rtt_s(span.peer), relay)


def show_status(join: Sequence[str], home: Path | None, *, json: bool) -> int:
    """Print who serves what; the exit code."""
    code, pictures = _look(join, home)
    node = own_node(home_of(home))
    if json:
        peers = {span.peer for picture in pictures for span in picture.spans}
        models = [picture.facts() for picture in pictures]
        print_json({"peers": len(peers), "models": models, "node": node})
        return code
    if node is not None:
        say(f"this node  {node['peer']}\n  {in_words(node)}")
        if rest := resting(node, time.time()):
            say(f"  {rest}")
        say()
    if not pictures and not code:
        say("Nobody serves a model here.")
    for picture in pictures:
        say(f"{picture.offer.name}  {picture.offer.blocks} blocks  {picture.offer.model[:12]}")
        say(coverage(picture))
        print_table(COLUMNS, [row(span, picture.links[span.peer]) for span in picture.spans])
        say()
    return code


def show_peers(join: Sequence[str], home: Path | None, *, json: bool) -> int:
    """Print who is there, each peer once; the exit code."""
    code, pictures = _look(join, home)
    peers: dict[str, list[tuple[str, Announcement, Link]]] = {}
    for picture in pictures:
        for span in picture.spans:
            told = (picture.offer.name, span, picture.links[span.peer])
            peers.setdefault(span.peer, []).append(told)
    if json:
        print_json([_peer_facts(held) for held in peers.values()])
    elif peers:
        columns = ("PEER", "LINK", "RTT>", "SERVES", "STATE", "DEVICE", "VERSION", "ADDRESS")
        print_table(columns, [_peer_row(held) for _, held in sorted(peers.items())])
    elif not code:
        say("Nobody serves a model here.")
    return code


def coverage(picture: Picture) -> str:
    return f"  peers for each block  {_bar(picture.replicas)}{_gap(picture)}"


def speed(picture: Picture) -> str:
    """Tokens a second that the peers of its scarcest block offer together, by their own word."""
    rates = [0.0] * picture.offer.blocks
    for span in picture.spans:
        if span.state == "online" and picture.links[span.peer].kind != "unreachable":
            for block in range(span.start, span.stop):
                rates[block] += _rate(span)
    return f"{min(rates, default=0.0):.0f} tokens/s"


def show_models(join: Sequence[str], home: Path | None, *, json: bool) -> int:
    """Print the models; the exit code."""
    code, pictures = _look(join, home)
    if json:
        print_json([_model_facts(picture) for picture in pictures])
    elif pictures:
        print_table(
            ("MODEL", "BLOCKS>", "PEERS>", "CONTEXT>", "SERVED", "DIGEST"),
            [
                (
                    picture.offer.name,
                    str(picture.offer.blocks),
                    str(len(picture.spans)),
                    str(_context(picture) or ""),
                    f"no:{_gap(picture)}"
                    if picture.missing
                    else f"whole, at least {min(picture.replicas)} times",
                    picture.offer.model[:12],
                )
                for picture in pictures
            ],
        )
    elif not code:
        say("Nobody serves a model here.")
    return code


def _look(join: Sequence[str], home: Path | None) -> tuple[int, list[Picture]]:
    pictures: list[Picture] = []

    async def look() -> int:
        with until_signalled() as interruption:
            async with open_swarm(join, home=home) as swarm:
                pictures.extend(await take_picture(swarm))
        return interruption.exit_code

    return trio.run(look), pictures


def _span_facts(span: Announcement, link: Link) -> dict[str, Any]:
    return {
        "peer": span.peer,
        "blocks": [span.start, span.stop],
        "state": span.state,
        "link": link.kind,
        "relay": link.relay,
        "told_relays": list(relays_told(span.addresses)),
        "rtt_s": None if link.rtt_s is None else round(link.rtt_s, 6),
        "device": span.device,
        "dtype": span.dtype,
        "quantization": span.quantization,
        "decode_tokens_s": round(_rate(span), 1),
        "prefill_tokens_s": round(span.prefill_tokens_s / (span.stop - span.start), 1),
        "cache_tokens_free": span.cache_tokens_free,
        "context_tokens_max": span.context_tokens_max,
        "addresses": list(span.addresses),
        "version": span.version,
    }


def _model_facts(picture: Picture) -> dict[str, Any]:
    return {
        "name": picture.offer.name,
        "model": picture.offer.model,
        "blocks": picture.offer.blocks,
        "peers": len(picture.spans),
        "context_tokens_max": _context(picture),
        "replicas_min": min(picture.replicas),
        "missing": [list(gap) for gap in picture.missing],
    }


def _peer_facts(held: Sequence[tuple[str, Announcement, Link]]) -> dict[str, Any]:
    _, first, link = held[0]
    return {
        "peer": first.peer,
        "link": link.kind,
        "relay": link.relay,
        "rtt_s": None if link.rtt_s is None else round(link.rtt_s, 6),
        "serves": [
            {"name": name, "model": span.model, "blocks": [span.start, span.stop],
             "state": span.state} for name, span, _ in held
        ],
        "device": first.device,
        "version": first.version,
        "addresses": list(first.addresses),
    }  # fmt: skip


def _peer_row(held: Sequence[tuple[str, Announcement, Link]]) -> tuple[str, ...]:
    _, first, link = held[0]
    return (
        first.peer,
        *_link_words(link),
        ", ".join(f"{name} {span.start}:{span.stop}" for name, span, _ in held),
        ", ".join(dict.fromkeys(span.state for _, span, _ in held)),
        f"{first.device} {first.dtype}",
        first.version,
        next(iter(first.addresses), "").partition("/p2p/")[0],
    )


def _link_words(link: Link) -> tuple[str, str]:
    return (
        f"{link.kind} by {short(link.relay)}" if link.relay else link.kind,
        "" if link.rtt_s is None else f"{link.rtt_s * 1e3:.1f} ms",
    )


def row(span: Announcement, link: Link) -> tuple[str, ...]:
    """As COLUMNS has it."""
    return (
        f"  {span.start}:{span.stop}",
        span.peer,
        span.state,
        *_link_words(link),
        f"{_rate(span):.0f}",
        _count(span.cache_tokens_free // (span.stop - span.start)),
        f"{span.device} {span.dtype}",
    )


def _rate(span: Announcement) -> float:
    """Tokens a second through the whole span, by its own word."""
    return span.decode_tokens_s / (span.stop - span.start)


def _count(tokens: int) -> str:
    """To two digits, as people say it."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if tokens >= unit:
            return (
                f"{tokens / unit:.2g}{name}" if tokens < 100 * unit else f"{tokens // unit}{name}"
            )
    return str(tokens)


def _context(picture: Picture) -> int | None:
    return min((span.context_tokens_max for span in picture.spans), default=None)


def _bar(counts: Sequence[int]) -> str:
    """A digit for each block: how many peers serve it; . is none, + more than nine."""
    return "".join("." if count == 0 else str(count) if count < 10 else "+" for count in counts)


def _gap(picture: Picture) -> str:
    gaps = ", ".join(f"{start}:{stop}" for start, stop in picture.missing)
    return f"  nobody serves {gaps}" if gaps else ""
