"""A private swarm: who holds its key, and is on its list if there is one; and how friends come in.

    home/swarm                {key, join, allow}, for its owner alone; none: the open swarm
    potluck invite ─▶ token   the same, to be handed to friends by a road that nobody else reads
    potluck join TOKEN ─▶ home/swarm

Whoever lacks the key gets no word out of any member (net/noise.py). The list is for when a token
fell into wrong hands, or was given too freely: who is not on it is refused though it has the key.
Each member keeps its own; a new token brings the inviter's.
"""

from __future__ import annotations

import os
import secrets
import stat
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final

from ..crypto.codec import Size, decode, encode
from ..crypto.digest import digest
from ..errors import RemoteError, UserError
from .home import open_file, prepare_home, replace_file
from .net.access import parse_entry
from .net.address import parse

SWARM: Final = "swarm"
TOKEN: Final = "potluck1-"  # the form's number is in it
KEY_BYTES: Final = 32  # Noise takes no other
JOIN_MAX: Final = 16
ALLOW_MAX: Final = 1024
BYTES_MAX: Final = 256 * 1024
CHECK_BYTES: Final = 4  # a token that was cut or mistyped is told from one of another swarm

Text = Annotated[str, Size(400)]


@dataclass(frozen=True, slots=True)
class Private:
    """A private swarm, as a member knows it. join: addresses; allow: entries as of --allow-only."""

    key: Annotated[bytes, Size(KEY_BYTES, least=KEY_BYTES)] = field(repr=False)
    join: Annotated[tuple[Text, ...], Size(JOIN_MAX)] = ()
    allow: Annotated[tuple[Text, ...], Size(ALLOW_MAX)] = ()

    def with_more(self, *, join: Iterable[str] = (), allow: Iterable[str] = ()) -> Private:
        """The same with these too; of addresses the last ones. Raises UserError for wrong ones."""
        joins = tuple(dict.fromkeys((*join, *self.join)))[:JOIN_MAX]
        allowed = tuple(dict.fromkeys((*self.allow, *allow)))
        if len(allowed) > ALLOW_MAX:
            raise UserError(f"a list of more than {ALLOW_MAX}: allow networks instead")
        _check(joins, allowed)
        return replace(self, join=joins, allow=allowed)


def found() -> Private:
    """A new swarm, of nobody yet."""
    return Private(secrets.token_bytes(KEY_BYTES))


def token_of(private: Private) -> str:
    raw = encode(private)
    return TOKEN + urlsafe_b64encode(raw + _check_bytes(raw)).decode().rstrip("=")


def read_token(text: str) -> Private:
    """Raises UserError for what is no token."""
    text = "".join(text.split())  # a mail may have broken it
    if not text.startswith(TOKEN):
        raise UserError(f"{text:.20}: no token: it begins with {TOKEN}")
    body = text.removeprefix(TOKEN)
    try:
        raw = urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except (NotBase64, ValueError):
        raw = b""
    raw, check = raw[:-CHECK_BYTES], raw[-CHECK_BYTES:]
    if not raw or check != _check_bytes(raw):
        raise UserError("the token is not whole: copy all of it")
    try:
        private = decode(raw, Private, max_bytes=BYTES_MAX)
        _check(private.join, private.allow)
    except (RemoteError, UserError) as error:
        raise UserError(f"the token is of another version, or broken: {error}") from error
    return private


def swarm_file(home: Path) -> Path:
    """Where a home keeps its swarm; a testnet's node is in that of the home it is under."""
    return (home.parent.parent if home.parent.name == "testnet" else home) / SWARM


def load_private(home: Path) -> Private | None:
    """The private swarm of this home; None: it is in the open one. Raises UserError."""
    path = swarm_file(home)
    try:
        descriptor = open_file(path)
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            raw = file.read(BYTES_MAX + 1) or b""
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend or remove it") from error
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise UserError(f"{path} can be read by others: chmod 600 {path}")
    try:
        return decode(raw, Private, max_bytes=BYTES_MAX)
    except RemoteError:
        raise UserError(f"{path} is corrupt: remove it, and join by a token again") from None


def save_private(home: Path, private: Private) -> None:
    """Raises UserError."""
    prepare_home(home)
    path = swarm_file(home)
    try:
        replace_file(path, encode(private), mode=0o600)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free the disk") from error


def _check(join: Iterable[str], allow: Iterable[str]) -> None:
    for address in join:
        try:
            if parse(address).peer is None:
                raise RemoteError("it ends in no /p2p/ id")
        except RemoteError as error:
            raise UserError(f"cannot join by {address}: {error}") from error
    for entry in allow:
        parse_entry(entry)


def _check_bytes(raw: bytes) -> bytes:
    return digest("potluck invite", raw)[:CHECK_BYTES]
