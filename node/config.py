"""The settings, and where they are read from: command line, environment, config file, default.

POTLUCK_HOME   where keys, digests and running nodes are kept
POTLUCK_JOIN   addresses of peers to join by, separated by commas
config.toml    in the home: `join = ["/ip4/.../tcp/.../p2p/..."]`

Whom to join by when all of these name nobody, or nobody answers: the peers of the last run
(peerstore.py).
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs

from ..errors import UserError

RUNNING = "node.json"  # in a node's home while it runs: how others on this machine find it
TESTNET = "testnet"  # the folder of a local testnet, in the home


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node. cache_mib: memory for sessions' keys and values; 0 takes a quarter of what is free.

    threads: 0 takes the library's own choice. drain_s: how long live sessions may go on after a
    request to stop. relay: pass streams on for peers behind NATs: when strangers can dial us, from
    the start, or never.
    """

    home: Path
    model: str
    blocks: str = ":"
    name: str = ""
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    join: tuple[str, ...] = ()
    device: str = "auto"
    dtype: str = ""
    threads: int = 0
    cache_mib: int = 0
    offline: bool = False
    drain_s: float = 10.0
    relay: Literal["auto", "yes", "no"] = "auto"


def default_home() -> Path:
    """POTLUCK_HOME, or the platform's place for a user's data."""
    named = os.environ.get("POTLUCK_HOME")
    return Path(named).expanduser() if named else Path(platformdirs.user_data_dir("potluck"))


def home_of(given: str | Path | None) -> Path:
    """The home that was given, or the default one."""
    return Path(given).expanduser() if given else default_home()


def find_join(given: Sequence[str], home: Path) -> tuple[str, ...]:
    """By whom to join: what was given, POTLUCK_JOIN, config.toml, or what runs under this home."""
    named = os.environ.get("POTLUCK_JOIN", "")
    return (
        tuple(given)
        or tuple(part.strip() for part in named.split(",") if part.strip())
        or _configured(home)
        or tuple(str(one) for told in running_nodes(home) for one in told.get("addresses", ()))
    )


def running_nodes(home: Path) -> Iterator[dict[str, Any]]:
    """What the nodes, or the testnet's nodes, under this home wrote down when they were ready."""
    for path in [home / RUNNING, *sorted((home / TESTNET).glob(f"*/{RUNNING}"))]:
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # not running, or just being written: the next one may do
        if isinstance(told, dict):
            yield told


def _configured(home: Path) -> tuple[str, ...]:
    path = home / "config.toml"
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):  # a home that is a file is refused later
        return ()
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); mend or remove it") from error
    join = told.get("join", [])
    if not isinstance(join, list) or not all(isinstance(one, str) for one in join):
        raise UserError(f'{path}: join must be a list of addresses, ["/ip4/...", ...]')
    return tuple(join)
