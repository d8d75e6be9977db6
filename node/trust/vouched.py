"""Whom this home vouches for: its own statements, one to a file, as they were signed.

    home/vouched/<peer id>    the newest word about that peer (swarm/vouch.py), a revocation too

The owner's commands write them, and whatever runs under the home reads them (vouching.py). Each is
later than the last about that peer, whatever the clock says: or a word that took back another
would be passed over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ...crypto.keys import IdentityKey, public_of
from ...errors import RemoteError, UserError
from ...swarm.vouch import DAY_S, LIFE_MAX_S, VOUCH_BYTES_MAX, Given, Vouch, check_vouch, give
from ...swarm.vouching import STATEMENTS_MAX
from ..home import prepare_home, replace_file
from ..log import get_logger

VOUCHED: Final = "vouched"
STEP_S: Final = 0.001
_EVER: Final = 1e11

log = get_logger()


def vouch_for(home: Path, key: IdentityKey, peer: str, now: float, *, days: float) -> Given:
    """Say that we vouch for it from now on. Raises UserError."""
    if not 0 < days * DAY_S <= LIFE_MAX_S:
        raise UserError(f"{days:g} days: more than 0, at most {LIFE_MAX_S / DAY_S:.0f}")
    _check(peer, key.peer_id)
    others = [one for one in load_vouched(home) if one.told.peer != peer]
    holding = sum(not one.told.revoked and one.told.expires_s > now for one in others)
    if holding >= STATEMENTS_MAX:
        raise UserError(f"{holding} peers are vouched for already: nobody counts more than that")
    return _say(home, key, peer, now, days * DAY_S, revoked=False)


def take_back(home: Path, key: IdentityKey, peer: str, now: float) -> Given:
    """Say that we do not vouch for it any more. Raises UserError, where we never did too."""
    if not any(one.told.peer == peer and not one.told.revoked for one in load_vouched(home)):
        raise UserError(f"{peer} is not vouched for: see potluck vouch ls")
    return _say(home, key, peer, now, LIFE_MAX_S, revoked=True)


def load_vouched(home: Path) -> tuple[Given, ...]:
    """All of ours, those that have run out too. What cannot be read is passed over. Blocks."""
    try:
        paths = sorted((home / VOUCHED).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return ()
    found = []
    for path in paths:
        if path.name.startswith("."):
            continue  # it is being written
        try:
            with path.open("rb") as file:
                given = check_vouch(file.read(VOUCH_BYTES_MAX + 1), _EVER)
            if given.told.peer != path.name:
                raise RemoteError(f"a word about {given.told.peer}")
        except (OSError, RemoteError) as error:
            log.warning("vouch passed over", path=str(path), reason=str(error))
            continue
        found.append(given)
    return tuple(found)


def _say(
    home: Path, key: IdentityKey, peer: str, now: float, life_s: float, *, revoked: bool
) -> Given:
    before = (one.told.issued_s + STEP_S for one in load_vouched(home) if one.told.peer == peer)
    issued_s = max((now, *before))
    given = give(key, Vouch(peer, issued_s, issued_s + life_s, revoked))
    folder = home / VOUCHED
    try:
        prepare_home(home)
        folder.mkdir(mode=0o700, exist_ok=True)
        replace_file(folder / peer, given.raw)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); free the disk") from error
    return given


def _check(peer: str, me: str) -> None:
    try:
        public_of(peer)
    except RemoteError as error:
        raise UserError(f"{peer:.80}: no peer id (12D3KooW...)") from error
    if peer == me:
        raise UserError("nobody counts what a peer says for itself: name another")
