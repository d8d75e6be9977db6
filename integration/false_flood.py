"""A million records and items of evidence that nobody may believe: how many are taken.

In one process, the daemon's own readers: a node's registry and its directory's reader for records,
the evidence machine for what peers say against each other. They hold honest records, and know true
accusations and a true contradiction; then comes the flood, all kinds in turn.

    records   fuzzed, cut, joined of two, forged in every way of forgery.py, of another domain or
              kind, changed without being signed anew; replayed; rolled back by seq and by boot
    evidence  fuzzed; "contradictions" of honest statements, of two peers, of one and the same, in
              the wrong order, of tallies and receipts that fit together (false_forks.py); known
              accusations and attestations again, altered, of another's work, from the future, too
              old; attestations of no case, and by the accused

A record is taken when a reader keeps it or tells of it, an item when anybody is banned or blamed
for it, or it is passed on or computed again. At the end the readers hold what they held, and take
what is true: a newer record, and the proof whose alterations they refused.

    python -m integration.false_flood                      a million: some minutes
    python -m integration.false_flood --count 10000
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from random import Random
from types import SimpleNamespace
from typing import Any

from potluck.crypto.codec import decode, decode_any, encode
from potluck.crypto.envelope import Envelope
from potluck.crypto.keys import IdentityKey
from potluck.dht.keyspace import spans_of
from potluck.dht.network import NOWHERE
from potluck.dht.reading import Reader
from potluck.dht.record import (
    CHUNK_TTL_MAX_S,
    DOMAIN,
    TTL_MAX_S,
    Announcement,
    Provider,
    Record,
    read,
    sign_fact,
)
from potluck.errors import RemoteError
from potluck.node.gossip.registry import Registrar
from potluck.swarm.evidence import KEEP_S, Evidence, Received, Standing
from potluck.swarm.machine import SetTimer
from potluck.swarm.testimony import (
    ITEM_BYTES_MAX,
    ITEMS,
    Accusation,
    Attestation,
    Contradiction,
    SignedAccusation,
    check_accusation,
    contradiction_of,
    sign_accusation,
    sign_attestation,
)

from .evidence_sim import MODEL, NOW, accusation_of, announced, key_of
from .false_forks import Forks
from .forgery import altered, announcement, forged_records

HONEST = 64
PLACE = spans_of(MODEL)
EVIDENCE_SHARE = 3  # one of so many is an item of evidence
Lie = tuple[str, bytes]


class Records:
    """The honest records, and all that is false of them."""

    def __init__(self, dice: Random) -> None:
        self._dice = dice
        self._foe = key_of(HONEST + 1)
        self._keys = [key_of(number) for number in range(HONEST)]
        self.newest = [self._said(key, boot=2, seq=9) for key in self._keys]
        self.older = [self._said(key, boot=2, seq=8).raw for key in self._keys]
        self._older_boot = [self._said(key, boot=1, seq=99).raw for key in self._keys]
        self.newer = [self._said(key, boot=3, seq=1).raw for key in self._keys]  # never shown
        self._expired = [
            self._said(key, boot=3, seq=1, now=NOW - TTL_MAX_S).raw for key in self._keys
        ]
        self._ahead = [self._said(key, boot=3, seq=1, now=NOW + 45).raw for key in self._keys]

    def _said(self, key: IdentityKey, *, boot: int, seq: int, now: float = NOW) -> Record:
        fact = replace(announcement(MODEL, key.peer_id, device="cpu"), stop=4)
        return sign_fact(key, fact, boot=boot, seq=seq, now=now)

    def lies(self) -> Iterator[Lie]:
        """For ever, all kinds in turn."""
        kinds: list[tuple[str, Callable[[int], bytes]]] = [
            ("fuzzed: a bit", lambda n: altered(self.newest[n].raw, self._dice)),
            ("fuzzed: bytes", lambda n: mangled(self.newest[n].raw, self._dice)),
            ("fuzzed: a newer one", lambda n: altered(self.newer[n], self._dice)),
            ("joined of two", self._joined),
            ("replayed", lambda n: self.newest[n].raw),
            ("rolled back by seq", lambda n: self.older[n]),
            ("rolled back by boot", lambda n: self._older_boot[n]),
            ("expired", lambda n: self._expired[n]),
            ("from the future", lambda n: self._ahead[n]),
            ("changed, signed by the foe", self._resigned),
            ("changed, with its old signature", self._changed),
            ("of a kind that is not gossiped", self._chunk),
        ]
        while True:
            for kind, make in kinds:
                yield kind, make(self._dice.randrange(HONEST))
            for forgery in forged_records(self._dice, self._foe, MODEL, now=NOW):
                if forgery.kind != "forged: put by another":  # true: only the putting is forbidden
                    yield forgery.kind, forgery.raw

    def _envelope(self, number: int) -> Envelope:
        return decode(self.newest[number].raw, Envelope)

    def _joined(self, number: int) -> bytes:
        one, other = self._envelope(number), self._envelope((number + 1) % HONEST)
        return encode(replace(one, body=other.body))

    def _resigned(self, number: int) -> bytes:
        newer = decode(self.newer[number], Envelope)
        return encode(replace(newer, signature=self._foe.sign(newer.body)))

    def _changed(self, number: int) -> bytes:
        newer = decode(self.newer[number], Envelope)
        return encode(replace(newer, signature=self._envelope(number).signature))

    def _chunk(self, number: int) -> bytes:
        told = Provider(self._dice.randbytes(32), ())
        key = self._keys[number]
        return sign_fact(key, told, boot=3, seq=1, now=NOW, ttl_s=CHUNK_TTL_MAX_S).raw


class Items:
    """True evidence that is known, and all that is false of it."""

    def __init__(self, dice: Random, records: Records) -> None:
        self._dice = dice
        self._records = records
        self._accused, self._accuser, *self._others = (key_of(1000 + n) for n in range(8))
        told = accusation_of(self._accused, 0, dice)
        self.accusation = sign_accusation(self._accuser, told)
        self._told = told
        self.voices = [key.peer_id for key in (self._accuser, *self._others)]
        self._id = check_accusation(self.accusation).id
        self.attestations = [
            sign_attestation(key, Attestation(self._id, "wrong", NOW)) for key in self._others[:2]
        ]
        liar = key_of(2000)
        self.proof = contradiction_of(DOMAIN, announced(liar, 4).raw, announced(liar, 8).raw)
        self.forks = Forks(dice)

    def lies(self) -> Iterator[Lie]:
        """For ever, all kinds in turn."""
        known = [encode(self.accusation), *(encode(one) for one in self.attestations)]
        kinds: list[tuple[str, Callable[[], bytes]]] = [
            ("fuzzed proof: a bit", lambda: altered(encode(self.proof), self._dice)),
            ("fuzzed proof: a bit within", self._proof_altered),
            ("fuzzed proof: bytes", lambda: mangled(encode(self.proof), self._dice)),
            ("proof in the wrong order", self._proof_turned),
            ("proof of what does not contradict", lambda: self._of_honest(0)),
            ("proof of two peers", lambda: self._of_honest(1)),
            ("proof of one statement twice", self._twice),
            ("replayed", lambda: self._dice.choice(known)),
            ("fuzzed accusation", lambda: altered(known[0], self._dice)),
            ("fuzzed attestation", lambda: altered(known[1], self._dice)),
            ("accusation of another's work", lambda: self._accuses(anothers=True)),
            ("accusation of itself", lambda: self._accuses(by=self._accused)),
            ("accusation from the future", lambda: self._accuses(issued_s=NOW + 3600)),
            ("accusation of yesterday", lambda: self._accuses(issued_s=NOW - KEEP_S - 1)),
            ("accusation with another's signature", self._accuses_badly),
            ("attestation of no case", lambda: self._attests(self._dice.randbytes(32))),
            ("attestation by the accused", lambda: self._attests(self._id, by=self._accused)),
            ("attestation by the accuser", lambda: self._attests(self._id, by=self._accuser)),
            ("attestation, its contrary later", lambda: self._attests(self._id, verdict="right")),
            ("attestation from the future", lambda: self._attests(self._id, issued_s=NOW + 3600)),
            *self.forks.kinds(),
        ]  # fmt: skip
        for kind, make in cycle(kinds):
            yield kind, make()

    def _proof_altered(self) -> bytes:
        if self._dice.random() < 0.5:
            return encode(replace(self.proof, one=altered(self.proof.one, self._dice)))
        return encode(replace(self.proof, other=altered(self.proof.other, self._dice)))

    def _proof_turned(self) -> bytes:
        return encode(Contradiction(DOMAIN, self.proof.other, self.proof.one))

    def _of_honest(self, apart: int) -> bytes:
        """An honest peer's records of two times, or two peers' of one time."""
        number = self._dice.randrange(HONEST)
        one = self._records.newest[number].raw
        other = self._records.newest[(number + apart) % HONEST]
        raw = other.raw if apart else self._records.older[number]
        return encode(contradiction_of(DOMAIN, one, raw))

    def _twice(self) -> bytes:
        raw = self._dice.choice(self._records.newest).raw
        return encode(Contradiction(DOMAIN, raw, raw))

    def _accuses(
        self, *, by: IdentityKey | None = None, issued_s: float = NOW, anothers: bool = False
    ) -> bytes:
        told: Accusation = replace(self._told, issued_s=issued_s, error=self._dice.random())
        if anothers:
            told = replace(told, accused=self._others[0].peer_id)
        return encode(sign_accusation(by or self._others[-1], told))

    def _accuses_badly(self) -> bytes:
        told = encode(replace(self._told, error=self._dice.random()))
        bad = Envelope(told, self._accuser.public, self._others[0].sign(told))
        return encode(SignedAccusation(encode(bad)))

    def _attests(
        self, case: bytes, *, by: IdentityKey | None = None, issued_s: float = NOW,
        verdict: str = "wrong",
    ) -> bytes:  # fmt: skip
        told = Attestation(case, verdict, issued_s)  # type: ignore[arg-type]
        return encode(sign_attestation(by or self._dice.choice(self._others[:2]), told))


class Readers:
    """What a node reads with, and what it holds."""

    def __init__(self, records: Records, items: Items) -> None:
        host: Any = SimpleNamespace(peer_id=key_of(0).peer_id, where=lambda peer: NOWHERE)
        self.registrar = Registrar(host, lambda count: (), Random(1), wall=lambda: NOW)
        self.reader = Reader(self.registrar._checker)
        self.proofs: list[Contradiction] = []
        self.registrar.proved.append(self.proofs.append)
        self.true = {record.digest for record in records.newest}
        for record in records.newest:
            self.registrar.put(record)
            self.reader.admit(record)
        voices = {one: Standing(0.9, str(n), 0.0) for n, one in enumerate(items.voices)}
        self.evidence = Evidence("reader", lambda peer, _: voices.get(peer))
        for item in (items.accusation, *items.attestations):
            assert self.evidence.handle(Received(item), NOW), "what is true is taken"
        self.held = self.registrar.digest()

    def takes_record(self, raw: bytes) -> bool:
        return self._registers(raw) or self._finds(raw)

    def _registers(self, raw: bytes) -> bool:
        try:
            self.registrar._merge(self.registrar._checker.check(raw, None, NOW))
        except RemoteError:
            return False
        return self.registrar.digest() != self.held or bool(self.proofs)

    def _finds(self, raw: bytes) -> bool:
        """As the directory's `find` does with a keeper's answer."""
        with self.reader.open(PLACE) as reading:
            try:
                reading.add((raw,), NOW)
            except RemoteError:
                return False  # and the keeper is shunned
        for record in self.reader.result(reading):
            try:
                read(record, Announcement)
            except RemoteError:
                continue  # rightly signed nonsense: its signer serves nothing
            if record.digest not in self.true:
                return True
        return False

    def takes_item(self, raw: bytes) -> bool:
        try:
            item = decode_any(raw, ITEMS, max_bytes=ITEM_BYTES_MAX)
            effects = self.evidence.handle(Received(item), NOW)
        except RemoteError:
            return False
        return any(not isinstance(effect, SetTimer) for effect in effects)

    def as_before(self) -> bool:
        """Whether they hold what they held, and nobody is banned."""
        return (
            self.registrar.digest() == self.held
            and not self.proofs
            and not self.evidence.bans(NOW)
            and self.evidence.open_cases() == 1
        )


def mangled(raw: bytes, dice: Random) -> bytes:
    """Some bytes overwritten, cut out, put in, or twice."""
    at, size = dice.randrange(len(raw)), dice.randrange(1, 64)
    noise = dice.randbytes(size)
    match dice.randrange(4):
        case 0:
            return raw[:at] + noise + raw[at + size :]
        case 1:
            return raw[:at] + raw[at + size :]
        case 2:
            return raw[:at] + noise + raw[at:]
        case _:
            return raw[: at + size] + raw[at:]


def measure(count: int, seed: int = 1) -> dict[str, Any]:
    dice = Random(seed)
    records = Records(dice)
    items = Items(dice, records)
    readers = Readers(records, items)
    said, taken = Counter[str](), Counter[str]()
    record_lies, item_lies = records.lies(), items.lies()
    true = {encode(items.proof), encode(items.accusation), *records.newer, *items.forks.true}
    true |= {record.raw for record in records.newest} | {encode(one) for one in items.attestations}
    began_s = time.process_time()
    for number in range(count):
        is_item = number % EVIDENCE_SHARE == 0
        kind, raw = next(item_lies if is_item else record_lies)
        if "fuzzed" in kind and raw in true:
            continue  # a change that changed nothing
        said[kind] += 1
        taken[kind] += (readers.takes_item if is_item else readers.takes_record)(raw)
        if number % 100_000 == 99_999:
            print(f"{number + 1}: taken {sum(taken.values())}", file=sys.stderr, flush=True)
    return {
        "said": sum(said.values()),
        "taken": sum(taken.values()),
        "taken_which": {kind: n for kind, n in taken.items() if n},
        "hold_what_they_held": readers.as_before(),
        "take_what_is_true": readers.takes_record(records.newer[0])
        and readers.takes_item(encode(items.proof)),
        "kinds": dict(sorted(said.items())),
        "seed": seed,
        "processor_s": round(time.process_time() - began_s, 1),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.count, asked.seed), indent=2))


if __name__ == "__main__":
    main()
