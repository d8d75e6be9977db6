"""The settings, and where they are read from: command line, environment, config file, default.

POTLUCK_HOME   where keys, digests and running nodes are kept
POTLUCK_JOIN   addresses of peers to join by, separated by commas
config.toml    in the home: join = ["/ip4/.../tcp/.../p2p/..."]
                            ban = ["12D3KooW...", "203.0.113.0/24", "bans.txt"]
                            allow_only = [...]    the same; nobody else is admitted
                            pin = ["12D3KooW...@/ip4/..."]    peers to hold on to (pins.py)
                            audit = "on"          have a share of the work of answers computed again
                            chain = "auto"        have steps go from hop to hop where they can
                            [node]                what `potluck node` is told (cli/configured.py)

What the command line bans or allows comes on top of what the file does. An entry is a peer's id or
address, an IP address, a network, or a file of such entries, one in a line, # begins a comment.

Whom to join by when all of these name nobody, or nobody answers: the peers of the last run
(peerstore.py).
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import platformdirs

from ..errors import UserError
from ..swarm.guest import Manners
from .invite import load_private
from .net.access import Access, parse_entry, parse_listed
from .pins import Pin, load_pins, parse_pin, together

CONFIG: Final = "config.toml"
SETTINGS: Final = ("allow_only", "audit", "ban", "chain", "join", "pin")
CHAIN: Final = "off"  # what is done where nothing is said
TABLES: Final = ("node",)  # what a command is told by the file
_SHAPES: Final = {"join": '["/ip4/...", ...]', "pin": '["12D3KooW...@/ip4/...", ...]'}
LIST_BYTES_MAX: Final = 8 << 20  # of one file of entries: 100,000 of them
RUNNING = "node.json"  # in a node's home while it runs: how others on this machine find it
AUTO: Final = "auto"  # the blocks that need us most, and others when that changes
TESTNET = "testnet"  # the folder of a local testnet, in the home


@dataclass(frozen=True, slots=True)
class ModelWish:
    """One more model that a node serves blocks of, and how it is called; "": as it is."""

    model: str
    blocks: str = AUTO
    name: str = ""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node. also: more models, which share its memory with the first. cache_mib: memory for
    sessions' keys and values; 0 takes a quarter of what is free. cache_bits: of each such number,
    32 or 8. spill_mib: of the host's memory, for sessions at rest that a GPU has no room for; None:
    a quarter of what is free.

    device: several, with commas between, share the blocks (compute/spread.py).
    engine: what computes, auto, native, torch or tiled (compute/choice.py). quantization: auto is
    as the checkpoint stores its weights; none, int8 or nf4. max_memory_mib: for weights and
    sessions together; 0: no limit.
    part_mib: of the free memory, where there is no limit and models share it (house.py); 0: all.
    threads: 0 takes the library's own choice. fetch_ahead: blocks to which we may be moved, to the
    disk (ahead.py). drain_s: how long live sessions have to move when we leave their blocks.
    neighbours: bring weights from peers, and give them. max_weights_mib: for weights that came in
    parts; 0: what the disk has.
    epoch_s: how often it is asked who moves; the same everywhere in a swarm. relay: pass streams on
    for peers behind NATs: when strangers can dial us, from the start, or never. access: whom the
    owner bars, or admits alone; ban, allow_only: what of it the command line said, for when the
    rest is read again (lists.py). pins: whom to hold on to (pins.py).
    manners: when to rest (guest/watch.py); None: when told to alone. up_kib_s, down_kib_s: for all
    connections; 0: no limit. max_disk_mib: for what can be made or fetched anew (guest/disk.py).
    """

    home: Path
    model: str
    blocks: str = AUTO
    name: str = ""
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    join: tuple[str, ...] = ()
    device: str = "auto"
    dtype: str = ""
    threads: int = 0
    cache_mib: int = 0
    cache_bits: int = 32
    spill_mib: int | None = None
    engine: str = "auto"
    quantization: str = "auto"
    max_memory_mib: int = 0
    part_mib: int = 0
    offline: bool = False
    fetch_ahead: bool = True
    neighbours: bool = True
    max_weights_mib: int = 0
    drain_s: float = 30.0
    epoch_s: float = 30.0  # swarm/placement.py, EPOCH_S
    relay: Literal["auto", "yes", "no"] = "auto"
    access: Access = field(default_factory=Access)
    ban: tuple[str, ...] = ()
    allow_only: tuple[str, ...] = ()
    pins: tuple[Pin, ...] = ()
    also: tuple[ModelWish, ...] = ()
    manners: Manners | None = None
    up_kib_s: int = 0
    down_kib_s: int = 0
    max_disk_mib: int = 0


def default_home() -> Path:
    """POTLUCK_HOME, or the platform's place for a user's data."""
    named = os.environ.get("POTLUCK_HOME")
    return Path(named).expanduser() if named else Path(platformdirs.user_data_dir("potluck"))


def home_of(given: str | Path | None) -> Path:
    """The home that was given, or the default one."""
    return Path(given).expanduser() if given else default_home()


def find_join(given: Sequence[str], home: Path) -> tuple[str, ...]:
    """By whom to join: what was given, POTLUCK_JOIN, config.toml, what runs under this home, or
    what the token of its private swarm says. Raises UserError."""
    named = os.environ.get("POTLUCK_JOIN", "")
    private = load_private(home)
    return (
        tuple(given)
        or tuple(part.strip() for part in named.split(",") if part.strip())
        or _configured(home, "join")
        or tuple(str(one) for told in running_nodes(home) for one in told.get("addresses", ()))
        or (private.join if private is not None else ())
    )


def find_audit(given: str | None, home: Path) -> bool:
    """Whether answers are audited: as given ("on", "off"), else as config.toml says, else not.
    Raises UserError."""
    said = given if given is not None else _read(home).get("audit", "off")
    if said not in ("on", "off"):
        where = "--audit" if given is not None else f"{home / CONFIG}: audit"
        raise UserError(f'{where} must be "on" or "off"')
    return bool(said == "on")


def find_chain(given: str | None, home: Path) -> bool:
    """Whether steps go from hop to hop where they can: as given ("auto", "off"), else as
    config.toml says. Raises UserError."""
    said = given if given is not None else _read(home).get("chain", CHAIN)
    if said not in ("auto", "off"):
        where = "chain" if given is not None else f"{home / CONFIG}: chain"
        raise UserError(f'{where} must be "auto" or "off"')
    return bool(said == "auto")


def running_nodes(home: Path) -> Iterator[dict[str, Any]]:
    """What the nodes, or the testnet's nodes, under this home wrote down when they were ready."""
    for path in [home / RUNNING, *sorted((home / TESTNET).glob(f"*/{RUNNING}"))]:
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # not running, or just being written: the next one may do
        if isinstance(told, dict):
            yield told


def find_access(home: Path, *, ban: Sequence[str] = (), allow_only: Sequence[str] = ()) -> Access:
    """Whom to admit: what was given, what config.toml says, and the private swarm of this home.
    Raises UserError."""
    private = load_private(home)
    file = str(home / CONFIG)
    banned = [
        *_entries(_configured(home, "ban"), f"{file}: ban:", home),
        *_entries(ban, "--ban", Path()),
    ]
    allowed = [
        *_entries(_configured(home, "allow_only"), f"{file}: allow_only:", home),
        *_entries(allow_only, "--allow-only", Path()),
    ]
    allowed += private.allow if private is not None else ()
    only = bool(allow_only) or _says(home, "allow_only") or bool(private and private.allow)
    if only and not allowed:
        raise UserError("an allow-list that names nobody admits nobody: name peers, or remove it")
    allowed += [str(told["peer"]) for told in running_nodes(home) if "peer" in told]  # our own
    key = private.key if private is not None else b""
    return Access(parse_listed(banned), parse_listed(allowed) if only else None, key)


def find_pins(home: Path, given: Sequence[str] = ()) -> tuple[Pin, ...]:
    """Whom to hold on to: those given, of config.toml, and of the home's own list. Raises
    UserError."""
    try:
        configured = [parse_pin(one) for one in _configured(home, "pin")]
    except UserError as error:
        raise UserError(f"{home / CONFIG}: pin: {error}") from None
    return together(map(parse_pin, given), configured, load_pins(home))


def list_files(home: Path, given: Sequence[str]) -> list[Path]:
    """The files of entries that config.toml and the command line name. Raises UserError."""
    configured = [*_configured(home, "ban"), *_configured(home, "allow_only")]
    return [
        beside / Path(entry).expanduser()
        for entries, beside in ((configured, home), (given, Path()))
        for entry in entries
        if not _is_entry(entry)
    ]


def _is_entry(text: str) -> bool:
    try:
        parse_entry(text)
    except UserError:
        return False
    return True


def _entries(given: Sequence[str], whose: str, beside: Path) -> list[str]:
    """Entries that are right, those in files included. Raises UserError, with `whose` in front."""
    found: list[str] = []
    for entry in given:
        try:
            parse_entry(entry)
        except UserError as error:
            file = beside / Path(entry).expanduser()
            if not file.is_file():
                raise UserError(f"{whose} {error}; nor is there such a file") from None
            found += _lines(file)
        else:
            found.append(entry)
    return found


def _lines(file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8") as lines:
            text = lines.read(LIST_BYTES_MAX + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); mend it") from error
    if len(text) > LIST_BYTES_MAX:
        raise UserError(f"{file}: has more than {LIST_BYTES_MAX >> 20} MiB; ban networks instead")
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.partition("#")[0].strip()
        if entry:
            try:
                parse_entry(entry)
            except UserError as error:
                raise UserError(f"{file} line {number}: {error}") from None
            found.append(entry)
    return found


def _configured(home: Path, name: str) -> tuple[str, ...]:
    """One setting of the config file: a list of strings. Raises UserError."""
    found = _read(home).get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        shape = _SHAPES.get(name, '["12D3KooW...", "203.0.113.0/24", ...]')
        raise UserError(f"{home / CONFIG}: {name} must be a list, {shape}")
    return tuple(found)


def command_table(home: Path, name: str) -> dict[str, Any]:
    """What the file tells a command. Raises UserError."""
    found = _read(home).get(name, {})
    if not isinstance(found, dict):
        raise UserError(f"{home / CONFIG}: {name} must be a table, [{name}]")
    return found


def _says(home: Path, name: str) -> bool:
    return name in _read(home)


def _read(home: Path) -> dict[str, Any]:
    path = home / CONFIG
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):  # a home that is a file is refused later
        return {}
    except (OSError, ValueError) as error:  # it is no TOML, or no text
        raise UserError(f"{path}: cannot be read ({error}); mend or remove it") from error
    for name in told:
        if name not in (*SETTINGS, *TABLES):  # a misspelt ban would bar nobody
            raise UserError(f"{path}: no setting {name!r}; there are {', '.join(SETTINGS)}")
    return told
