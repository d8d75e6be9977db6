"""Peers that the owner pins: whom this home knows whatever others say, and trusts from the start.

    home/pins        one in a line, PEER_ID or PEER_ID@ADDRESS, # begins a comment
    config.toml      pin = ["12D3KooW...@/ip4/203.0.113.7/tcp/4001"]
    --pin            the same, for one run

They are dialled first when a node joins, stay in its view of the swarm beside what the sampling
keeps (swarm/sampling.py), keep their connections, and are taken for known where others are on
probation (trust/vouching.py). Evidence against one counts as against all others. As the people who
run them are: a few, known by other roads than the swarm itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..crypto.keys import public_of
from ..errors import RemoteError, UserError
from .home import prepare_home, write_whole
from .net.address import parse

PINS: Final = "pins"
PINS_MAX: Final = 32  # guess: of more nobody knows who runs them
PINS_BYTES_MAX: Final = 64 * 1024
AT: Final = "@"


@dataclass(frozen=True, slots=True)
class Pin:
    """address: where it listens, without the /p2p/; "" where only the swarm knows that."""

    peer: str
    address: str = ""

    def __str__(self) -> str:
        return f"{self.peer}{AT}{self.address}" if self.address else self.peer

    @property
    def whole(self) -> str:
        return f"{self.address}/p2p/{self.peer}"


def parse_pin(text: str) -> Pin:
    """PEER_ID, PEER_ID@ADDRESS, or the address that a node prints. Raises UserError."""
    peer, at, address = text.strip().partition(AT)
    if not at and peer.startswith("/"):
        peer, address = peer.rpartition("/p2p/")[2], peer
    try:
        public_of(peer)
        if not address:
            return Pin(peer)
        place = parse(address)
        if place.peer not in (None, peer):
            raise RemoteError(f"{place.peer} listens there")
    except RemoteError as error:
        raise UserError(
            f"{text:.120}: no peer to pin: {error}; give PEER_ID, PEER_ID@ADDRESS, or the address "
            "that its node prints"
        ) from error
    return Pin(peer, str(place.bare))


def together(*given: Iterable[Pin]) -> tuple[Pin, ...]:
    """Each peer once; of its addresses the first. Raises UserError where there are too many."""
    found: dict[str, Pin] = {}
    for pins in given:
        for pin in pins:
            before = found.get(pin.peer)
            if before is None or (pin.address and not before.address):
                found[pin.peer] = pin
    if len(found) > PINS_MAX:
        raise UserError(f"{len(found)} pinned peers: {PINS_MAX} at most; the swarm finds the rest")
    return tuple(found.values())


def load_pins(home: Path) -> tuple[Pin, ...]:
    """Those of the home's file. Raises UserError."""
    path = home / PINS
    try:
        with path.open("rb") as file:
            text = file.read(PINS_BYTES_MAX).decode()
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); mend or remove it") from error
    pins = []
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.partition("#")[0].strip()
        try:
            if entry:
                pins.append(parse_pin(entry))
        except UserError as error:
            raise UserError(f"{path} line {number}: {error}") from None
    return together(pins)


def save_pins(home: Path, pins: Iterable[Pin]) -> None:
    """In place of those there. Raises UserError."""
    prepare_home(home)
    write_whole(home / PINS, "".join(f"{pin}\n" for pin in together(pins)))
