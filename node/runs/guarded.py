"""A run's exchanges by a guarded group: its seats, its own steps, and a seat that comes back.

    seat in the file? same numerics? ─▶ work: H steps on the coin's sequences ─▶ keep() ─▶ step
                                                                               │     └▶ outcome
    killed, late, or left out ─▶ sits the step out ─▶ the outcome, as more than could lie tell it
                                                  └▶ most sit it out ─▶ keep() ─▶ the step anew

Whoever is killed inside a step has forgotten what it promised there, and would contradict itself,
which convicts. So a checkpoint is on disk before a step's first word, and whoever comes back to one
says nothing in that step: it waits until others have its outcome, fetches that by digest from all
who have it (shared.py), and goes on with the next. Silence costs a step; for good, if it was late.
Where most of a group are killed in one step, nobody has its outcome: they begin it anew, in another
life, in which what they said before is nothing (swarm/run/lives.py).

Source: Gorbunov et al., 2022; Schneider, 1990 (a replica that restarts takes over a state).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from ...crypto.codec import decode, encode
from ...crypto.keys import IdentityKey
from ...errors import RemoteError, TransportError, UserError
from ...swarm.run.lives import life_of
from ...swarm.run.plan import Terms
from ...swarm.run.tables import Guarding
from ..compute.average.flat import Flat
from ..compute.guarded_state import GONE, pack_state, unpack_state
from ..compute.mixing import Vector
from ..compute.repeats import Repeats, check_numerics
from ..compute.snapshot import Snapshot
from ..log import get_logger
from ..net.host import Host
from .btard import GuardedExchange
from .btard_lives import Lives
from .btard_place import ABSENT_MAX, Conviction, Place, Rules, place_digest
from .company import Company
from .exchange import Exchanged, Worked
from .shared import Shared

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

PHASES: Final = 12  # guess: of a step with a case in it, that whoever sits it out waits for
AGAIN_S: Final = 1.0  # guess: until others are asked again whether they have an outcome

log = get_logger()


def check_seat(me: str, numerics: str, said: Guarding) -> None:
    """Raises UserError for whoever is no member, in the words of the run's file."""
    if me not in said.members:
        raise UserError(
            f'you are "{me}" in this run, of numerics "{numerics}": let exchange.guarded.members'
            " name this and all others', and exchange.guarded.numerics the class, in everybody's"
            " file alike; then begin"
        )
    if len(set(said.members)) < max(2, len(said.members)):
        raise UserError("exchange.guarded.members: name two members or more, each once")
    check_numerics(numerics, said.numerics)


def rules_of(said: Guarding) -> Rules:
    return Rules(
        said.radius, rate=said.rate, numerics=said.numerics, validators=said.validators,
        gather_s=said.gather_s, phase_s=said.phase_s, check_s=said.check_s,
    )  # fmt: skip


class Guarded:
    """exchange.Exchange, for one run on one peer, while `run` does. keep: writes a checkpoint;
    whether it is there. told: hears of convictions."""

    def __init__(
        self,
        host: Host,
        company: Company,
        key: IdentityKey,
        terms: Terms,
        flat: Flat,
        start: Vector,
        repeats: Repeats,
        folder: Path,
        *,
        keep: Callable[[], Awaitable[bool]],
        told: Callable[[Conviction], None],
    ) -> None:
        """Raises UserError for a disk that refuses."""
        said = terms.exchange.guarded
        self._company, self._key, self._terms = company, key, terms
        self._flat, self._repeats, self._keep = flat, repeats, keep
        self._members = tuple(sorted(said.members))  # `run` refuses whoever is not one of them
        self._told = told
        self._shared = Shared(host, key, folder, terms.run, host.blame)
        self.group = GuardedExchange(
            host, key, terms.run, Place(0, terms.run, self._members), start, rules_of(said),
            self._again, self._convicted,
        )  # fmt: skip
        self._lives = Lives(host, key, host.blame)
        self._promised = -1  # the last step in which our process before may have spoken
        self._patience_s = ABSENT_MAX * (
            said.gather_s + PHASES * said.phase_s + said.check_s
        )  # as long as a seat is kept for whoever says nothing

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service. Raises UserError for whoever has no seat, or gets other bits."""
        start, said = self.group.anchor, self._terms.exchange.guarded
        numerics = await trio.to_thread.run_sync(self._repeats.numerics, start)
        check_seat(self._key.peer_id, numerics, said)
        self._company.epoch = lambda: self.group.place.epoch
        self._shared.open()
        self._lives.open()
        try:
            await self.group.run(task_status=task_status)
        finally:
            self._lives.close()
            self._shared.close()

    async def pulled(self) -> None:
        """Until somebody asks again for what members share."""
        await self._shared.asked()

    # ---- what a run asks for

    async def work(self, epoch: int) -> Worked:
        """The steps that everybody can take again."""
        training, seed, group = self._terms.training, self.group.seed, self.group
        began_s, total = trio.current_time(), 0.0
        await trio.to_thread.run_sync(self._repeats.begin, group.anchor)
        for number in range(training.inner_steps):
            total += await trio.to_thread.run_sync(self._repeats.step, seed, epoch, number)
        tokens = training.inner_steps * training.batch * self._terms.tokens
        spent_s = trio.current_time() - began_s
        return Worked(training.inner_steps, tokens, total / training.inner_steps, spent_s)

    async def exchange(self, epoch: int, weights: Vector, tokens: int) -> Exchanged:
        """Raises UserError when our seat is lost, TransportError when nobody has an outcome."""
        before = self.group.sent_bytes, self.group.received_bytes
        peers: tuple[str, ...] = ()
        if epoch > self._promised:
            peers = await self._speak(epoch, weights, tokens)
        else:
            log.warning("this step is sat out: we may have spoken in it before", epoch=epoch)
        while not peers and await self._sit_out(epoch):
            peers = await self._speak(epoch, weights, tokens)
        self._lives.stand(b"", 0)
        if peers:
            await self._shared.save(self._snapshot())
        sent, received = self.group.sent_bytes, self.group.received_bytes
        return Exchanged(
            self.group.anchor.clone(), tuple(one for one in peers if one != self._key.peer_id),
            sent - before[0], received - before[1], self.group.place.epoch,
        )  # fmt: skip

    async def join(self) -> tuple[int, Vector] | None:
        """Once all are here, or have had their time: where the others are."""
        with trio.move_on_after(self._terms.exchange.guarded.gather_s):
            await self._company.until(len(self._members) - 1)
        await self._look(0)
        place = self.group.place
        return (place.epoch, self.group.anchor.clone()) if place.epoch else None

    def carried(self) -> dict[str, Vector]:
        """All else is in what members share."""
        return {"anchor": self.group.anchor}

    def carry_on(self, kept: dict[str, Vector], epoch: int) -> None:
        """Raises UserError."""
        anchor = kept.get("anchor")
        if anchor is None or anchor.shape != (self._flat.count,):
            raise UserError("a checkpoint of another adapter")
        self.group.follow(self.group.place, anchor)
        self._promised = epoch

    @property
    def signed(self) -> tuple[bytes, bytes]:
        """Where the group stands before this step, and in which life of it; none in the first."""
        life = self.group.life
        return encode(self.group.place), life.to_bytes() if life else b""

    def resign(self, statement: bytes, weights: bytes) -> None:
        """Raises RemoteError."""
        self.group.follow(decode(statement, Place), self.group.anchor)
        self.group.life = int.from_bytes(weights[:1])

    # ---- one life of a step, and coming back

    async def _speak(self, epoch: int, weights: Vector, tokens: int) -> tuple[str, ...]:
        """Who had part in the outcome; () when there is none for us. Raises UserError."""
        if not await self._keep():
            log.warning("this step is sat out: what we promise could not be kept", epoch=epoch)
            return ()
        try:
            return (await self.group.exchange(epoch, weights, tokens)).peers
        except TransportError as error:
            log.warning("a step without us", epoch=epoch, why=str(error))
            return ()

    async def _sit_out(self, epoch: int) -> bool:
        """Until others have the outcome of this step, or of a later one: now we have it too. Or
        most of the group have none either, and it is begun anew: true. Raises UserError,
        TransportError."""
        own = await self._shared.latest()
        if own is not None and own.epoch > epoch:
            self._go_on(own)  # we were killed behind the step, not inside it
            return False
        group, mine = self.group, self.group.life + 1
        self._lives.stand(place_digest(self._terms.run, group.place, group.anchor), mine)
        with trio.move_on_after(self._patience_s):
            while not await self._look(epoch):
                told = await self._lives.ask(self._seated())
                if (life := life_of(mine, told, group.place.roster)) is not None:
                    log.warning("nobody has an outcome: begun anew", epoch=epoch, life=life)
                    group.life = self._lives.life = life
                    return True
                await trio.sleep(AGAIN_S)
            return False
        raise TransportError(
            f"nobody has an outcome of step {epoch}; begin again when more members are there"
        )

    def _seated(self) -> list[str]:
        """Of the others, who has a seat and is there."""
        return [one for one in self._company.members if one in self.group.place.roster]

    async def _look(self, epoch: int) -> bool:
        """Whether enough members have a state behind this step's beginning: now we have it too."""
        seats = self.group.place.roster
        votes = (len(seats) - 1) // 2 + 1  # one more than can lie
        try:
            found = await self._shared.ask(self._seated(), votes, epoch, self._shapes())
        except (TransportError, RemoteError) as error:
            log.debug("no state of others", why=str(error))
            return False
        if found is not None:
            self._go_on(found)
        return found is not None

    def _go_on(self, found: Snapshot) -> None:
        """Raises UserError when our seat is lost."""
        anchor, coin, counts = unpack_state(found, self._flat)
        named = zip(self._members, counts, strict=True)
        seats = [(peer, count) for peer, count in named if count != GONE]
        roster = tuple(peer for peer, _ in seats)
        place = Place(found.epoch, coin, roster, tuple(count for _, count in seats))
        if self._key.peer_id not in roster:
            raise UserError(
                "our seat in this guarded group is lost: we were silent for too long, or in the"
                f" middle of a step; the others go on from step {found.epoch} without us"
            )
        self.group.follow(place, anchor)
        log.info("goes on from what others have", epoch=found.epoch)

    def _snapshot(self) -> Snapshot:
        place = self.group.place
        absent = dict(zip(place.roster, place.absent or (0,) * len(place.roster), strict=True))
        seats = [absent.get(peer, GONE) for peer in self._members]
        return pack_state(
            self._terms.run, place.epoch, self._flat, self.group.anchor, place.coin, seats
        )

    def _shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return dict(self._snapshot().shapes)

    # ---- others' work, and what is found of it

    def _again(self, anchor: Vector, seed: bytes) -> Vector:
        return self._repeats.again(anchor, seed, self.group.place.epoch)

    def _convicted(self, conviction: Conviction) -> None:
        self._company.shun(conviction.peer)
        self._told(conviction)
