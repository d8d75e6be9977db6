"""What a liar does to others beside serving them: of a testnet's liars, and nobody else (lies.py).

false_accusation   it has others sign right work, says that it is wrong, and shows it to whoever
                   asks: who computes it again refutes it
false_tally        it greets whoever counts what was given, and shows what an accomplice has signed
                   for: work without end that was never done, of two sums, both in one place of
                   their chain
flood_views        it tells all whom it knows of peers that there are not, hundreds at a time,
                   all at its own address, so that theirs hold nobody else
eclipse            the same to one peer alone, the first whom it knows by name
many_names         it comes and announces itself under more identities, with one device behind
                   them all
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

import trio

from ...crypto.codec import encode
from ...crypto.keys import IdentityKey
from ...dht.record import Announcement
from ...errors import Refused, RemoteError, TransportError
from ...swarm import settlement
from ...swarm.ledger import Work
from ...swarm.receipt import CHUNK_TOKENS, Account, Notary, Opening
from ...swarm.sampling_events import LETTER_BYTES_MAX, VIEW_MAX, Pull, View
from ...swarm.sampling_events import PROTOCOL as SAMPLE
from ...swarm.sampling_events import Member as Sampled
from ...swarm.tally import FIRST, accept, first_of, next_of, offer
from ...swarm.testimony import Accusation, sign_accusation
from ...swarm.topics import PROTOCOL as GOSSIP
from ...swarm.topics import Message, Rpc, home_of
from ...swarm.wire import PROTOCOL as SESSIONS
from ..compute.tensor import payload_bytes
from ..gossip.talks import open_talk
from ..letters import receive_letter, send_letter
from ..log import get_logger
from ..member import Member, open_member
from ..net.gossip_wire import pack
from ..net.host import Host
from ..net.stream import Stream
from ..trust.again import compute_again
from ..trust.exhibit import PROTOCOL as EXHIBIT
from ..trust.exhibit import Exhibits, exhibit_of

ROUND_S: Final = 2.0  # between two of whatever it does
NAMES: Final = 3
HERE: Final = "/ip4/127.0.0.1/tcp/0"  # a testnet's

log = get_logger()


async def accuse_falsely(member: Member, model: str, width: int, wall: Callable[[], float]) -> None:
    """All who serve, one after the other, of work that they do right."""
    exhibits = Exhibits()
    member.host.handle(EXHIBIT, exhibits.serve)
    while True:
        await trio.sleep(ROUND_S)
        told: tuple[Announcement, ...] = ()
        with suppress(TransportError):
            told = await member.directory.find(model)
        for victim in told:
            if victim.peer == member.key.peer_id or victim.state != "online":
                continue
            member.host.learn(victim.peer, victim.addresses)
            try:
                work = await right_work(member.host, member.key, victim, width)
            except (TransportError, RemoteError, Refused) as error:
                log.info("not accused", spared=victim.peer, reason=str(error))
                continue
            message = false_accusation(member.key, work, exhibits, wall())
            log.info("accused falsely", accused=victim.peer)
            await say_to_all(member.host, message)


async def right_work(host: Host, key: IdentityKey, victim: Announcement, width: int) -> Work:
    """What a peer signs for when it is asked as any client asks. Raises TransportError, RemoteError
    or Refused."""
    rows = bytes(payload_bytes(CHUNK_TOKENS, width, "f32"))
    asked = question(key, victim, width, rows)
    again = await compute_again(host, victim.peer, asked)
    return replace(asked, account=again.account, place=0, numerics=again.numerics, gave=again.gave)


def question(key: IdentityKey, victim: Announcement, width: int, rows: bytes) -> Work:
    """Work as it would be, if it were done: of an opening that nobody but we has signed."""
    opening = Opening(
        secrets.token_bytes(16), secrets.token_bytes(16), 0.0, bytes.fromhex(victim.model),
        victim.numerics, victim.start, victim.stop, width, "f32",
    )  # fmt: skip
    account = Account(Notary(key, opening, len(rows) // CHUNK_TOKENS).opening)
    return Work(
        victim.peer, account, -1, opening.blocks, victim.numerics, "f32", (CHUNK_TOKENS,), (rows,),
        CHUNK_TOKENS, b"",
    )  # fmt: skip


def false_accusation(key: IdentityKey, work: Work, exhibits: Exhibits, now: float) -> Message:
    """That it is off by a half; its exhibit is right, and can be fetched."""
    name = exhibits.put(exhibit_of(work))
    raw = work.account.raw
    item = sign_accusation(key, Accusation(work.peer, raw[0], raw[work.place + 1], name, 0.5, now))
    return Message(home_of(item), encode(item))


async def say_to_all(host: Host, message: Message) -> None:
    for peer in host.connected():
        with suppress(TransportError), trio.move_on_after(ROUND_S):
            stream = await host.open_stream(peer, GOSSIP)
            await stream.send(pack(Rpc(messages=(message,))))
            await stream.close()


async def show_false_tallies(host: Host, key: IdentityKey, wall: Callable[[], float]) -> None:
    """To all who are connected, again and again, those of one accomplice."""
    shown = false_tallies(key, IdentityKey.generate(), wall())
    while True:
        await trio.sleep(ROUND_S)
        for peer in host.connected():
            greeting = settlement.Greeting(host.peer_id, peer, 1, 0.0, b"", shown)
            with suppress(TransportError, RemoteError), trio.move_on_after(ROUND_S):
                stream = await host.open_stream(peer, settlement.PROTOCOL)
                await send_letter(stream, settlement.greet(key, greeting))
                await receive_letter(stream, settlement.CLAIM_BYTES_MAX)
                await stream.close()
        log.info("false tallies shown", peers=len(host.connected()))


def false_tallies(key: IdentityKey, accomplice: IdentityKey, now: float) -> tuple[bytes, ...]:
    """Two for the first place of their chain, each signed by both."""
    first = first_of(key.peer_id, accomplice.peer_id)
    return tuple(
        accept(
            accomplice,
            offer(
                key,
                next_of(first, key.peer_id, boot=1, gave=work, took=0.0, now=now, since=FIRST),
            ),
        )
        for work in (1e9, 2e9)
    )


async def flood_views(host: Host, port: int, victims: int | None = None) -> None:
    """Of all who are connected, again and again; or of so many of them, always the same."""
    while True:
        await trio.sleep(ROUND_S)
        view = View(nobody(VIEW_MAX, port))
        for peer in sorted(host.connected())[:victims]:
            with suppress(TransportError, RemoteError):
                async with open_talk(host, peer, SAMPLE, (Pull, View), LETTER_BYTES_MAX) as talk:
                    await talk.send(view)
        log.info("views flooded", peers=len(host.connected()))


def nobody(count: int, port: int) -> tuple[Sampled, ...]:
    """Peers that there are not."""
    made = (IdentityKey.generate().peer_id for _ in range(count))
    return tuple(Sampled(peer, f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}") for peer in made)


async def come_as(
    member: Member,
    announcement: Callable[[], Announcement],
    serve: Callable[[Stream], object],
    wall: Callable[[], float],
) -> None:
    """One more identity of this process, announced and served as the first."""
    key = IdentityKey.generate()
    async with open_member(
        key, listen=(HERE,), join=member.host.addresses(), boot=int(wall()), serve=False
    ) as other:
        other.host.handle(SESSIONS, serve)  # type: ignore[arg-type]
        log.info("another name", name=key.peer_id)
        await other.directory.keep(
            lambda: replace(announcement(), addresses=other.host.addresses(), peer="")
        )
