"""What this process takes from others, on whose account, and what it signs for it.

A client of a home that has served takes on that home's account: it greets each server it opens a
session at, and signs a tally every 512 tokens or 30 s, and at its end (swarm/settlement.py). So the
home's credit counts where it gave, and those who served it have theirs with the home's own node.

That is a name, and the same one each time: whoever serves such a client knows which node's owner
asks, may link all that it is asked, and is shown up to 16 of those that this node gave most. The
client's id on the network stays a new one each time. A client of a home that has never served, and
one that was told to be anonymous, greets nobody: nothing of it lasts, and it lives from the
commons.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from ...crypto.codec import decode, encode
from ...crypto.keys import IdentityKey
from ...errors import RemoteError, TransportError, UserError
from ...swarm.settlement import (
    CLAIM_BYTES_MAX,
    PROTOCOL,
    SHOWN_MAX,
    Answer,
    Claim,
    Greeting,
    check_offer,
    greet,
    read_head,
)
from ...swarm.tally import EVERY_S, EVERY_TOKENS, accept
from ..identity import load_if_any
from ..letters import receive_letter, send_letter
from ..log import get_logger
from ..net.host import Host
from .tallies import Tallies, open_tallies

log = get_logger()

EXCHANGE_S: Final = 10.0  # for all of one
SETTLE_S: Final = 2.0  # at the end: a person waits for the prompt to come back
GREET_AGAIN_S: Final = 10.0
GIVERS_MAX: Final = 1024


@dataclass(slots=True, eq=False)
class _Giver:
    """work: taken and not signed for."""

    work: float = 0.0
    tokens: int = 0  # since the last exchange
    last_s: float = float("-inf")  # of an exchange, by trio's clock
    met: bool = False  # it has been shown what others owe us
    busy: trio.Lock = field(default_factory=trio.Lock)  # an exchange is under way


class Purse:
    """One for a client. `opens` and `took` are told by its sessions and never wait."""

    def __init__(
        self,
        host: Host,
        account: IdentityKey,
        tallies: Tallies,
        nursery: trio.Nursery,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._account = account
        self._tallies = tallies
        self._nursery = nursery
        self._wall = wall
        self._givers: dict[str, _Giver] = {}

    def opens(self, peer: str) -> None:
        """A session is being opened there."""
        giver = self._givers.setdefault(peer, _Giver())
        if trio.current_time() - giver.last_s >= GREET_AGAIN_S:
            self._start(peer, giver)
        if len(self._givers) > GIVERS_MAX:
            idle = (
                name for name, one in self._givers.items() if not one.work and not one.busy.locked()
            )
            self._givers.pop(next(idle, peer))

    def took(self, peer: str, tokens: int, work: float) -> None:
        """A step there was answered."""
        if peer == self._account.peer_id:
            return  # our own node
        giver = self._givers.setdefault(peer, _Giver())
        giver.work += work
        giver.tokens += tokens
        late = trio.current_time() - giver.last_s >= EVERY_S
        if giver.tokens >= EVERY_TOKENS or late:
            self._start(peer, giver)

    async def settle(self) -> None:
        """Sign for all that was taken; for no longer than SETTLE_S."""
        with trio.move_on_after(SETTLE_S):
            async with trio.open_nursery() as nursery:
                for peer, giver in self._givers.items():
                    if giver.work > 0:
                        nursery.start_soon(self._exchange, peer, giver)

    def _start(self, peer: str, giver: _Giver) -> None:
        if not giver.busy.locked():
            self._nursery.start_soon(self._exchange, peer, giver)

    def _speaks(self, peer: str) -> bool:
        claims = self._host.claims(peer)
        return claims is None or PROTOCOL in claims.protocols

    async def _exchange(self, peer: str, giver: _Giver) -> None:
        giver.last_s = trio.current_time()
        giver.tokens = 0
        try:
            async with giver.busy:
                if self._speaks(peer):
                    with trio.move_on_after(EXCHANGE_S):
                        await self._converse(peer, giver)
        except TransportError as error:
            log.debug("no tally", giver=peer, reason=str(error))
        except (RemoteError, UserError) as error:
            log.warning("a tally was not signed", giver=peer, reason=str(error))

    async def _converse(self, peer: str, giver: _Giver) -> None:
        greeting = await trio.to_thread.run_sync(self._greeting, peer, giver)
        stream = await self._host.open_stream(peer, PROTOCOL)
        try:
            await send_letter(stream, greet(self._account, greeting))
            raw = await receive_letter(stream, CLAIM_BYTES_MAX)
            if raw is None:
                raise TransportError("closed on a greeting")
            giver.met = True
            claim = decode(raw, Claim)
            if claim.head:
                await self._keep(claim.head, peer)
            if claim.offer:
                pair = await trio.to_thread.run_sync(self._tallies.pair, peer)
                tally = check_offer(
                    claim.offer, pair.tally, peer, self._account.peer_id,
                    boot=greeting.boot, took=greeting.took, now=self._wall(),
                )  # fmt: skip
                signed = accept(self._account, claim.offer)
                await self._keep(signed, peer)
                giver.work = max(0.0, giver.work - (tally.gave(peer) - pair.tally.gave(peer)))
                await send_letter(stream, encode(Answer(signed)))
            await stream.close()
        except RemoteError:
            with trio.move_on_after(1):
                await send_letter(stream, encode(Answer(b"")))
                await stream.close()
            raise
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()

    def _greeting(self, peer: str, giver: _Giver) -> Greeting:
        """What we say now. Our own node is told of nothing but that it is us."""
        tallies, took = self._tallies, giver.work
        if peer == self._account.peer_id:
            return Greeting(self._host.peer_id, peer, 0, 0.0, b"", ())
        boot = tallies.next_boot(peer, self._wall())
        shown = () if giver.met else tallies.to_show(SHOWN_MAX, but=peer)
        return Greeting(self._host.peer_id, peer, boot, took, tallies.pair(peer).raw, shown)

    async def _keep(self, raw: bytes, peer: str) -> None:
        tally = read_head(raw, self._account.peer_id, peer)
        await trio.to_thread.run_sync(self._tallies.keep, raw, tally)


async def open_purse(host: Host, home: Path) -> Purse | None:
    """The purse of this home's account; None when it has none."""
    opened = await trio.to_thread.run_sync(_open, home)
    return Purse(host, *opened, host.nursery) if opened is not None else None


def _open(home: Path) -> tuple[IdentityKey, Tallies] | None:
    try:
        account = load_if_any(home)
        return None if account is None else (account, open_tallies(home, account.peer_id))
    except UserError as error:
        log.warning("asking without credit", reason=str(error))
        return None
