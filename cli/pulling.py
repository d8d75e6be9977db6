"""Bring weights here, without serving anything: a client of the swarm that fetches, and ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import trio
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ..crypto.keys import IdentityKey
from ..errors import UserError
from ..node.compute.checkpoint import Checkpoint, open_checkpoint
from ..node.compute.loading import fetch_blocks
from ..node.config import find_access, find_join, find_pins, home_of
from ..node.library import find_model
from ..node.member import open_member
from ..node.peerstore import load_known
from ..node.weights.library import hold_weights
from ..node.weights.poison import Poisoners
from ..node.weights.root import HubRoot
from ..node.weights.service import Weights, open_weights
from ..swarm.blocks import parse_blocks

LOOK_S: Final = 0.3


def pull_weights(
    model: str,
    blocks: str,
    join: Sequence[str],
    home: Path | None,
    disk_bytes: int,
    offline: bool,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """What came from where. Raises UserError."""
    place = home_of(home)
    shelf = find_model(model, place)
    if Path(shelf.source).exists():
        raise UserError(f"{model}: is a folder of this machine; its files are here")
    with hold_weights(place):
        return trio.run(_pull, shelf.source, blocks, join, place, disk_bytes, offline, quiet)


async def _pull(
    source: str,
    blocks: str,
    join: Sequence[str],
    home: Path,
    disk_bytes: int,
    offline: bool,
    quiet: bool,
) -> dict[str, Any]:
    pins = find_pins(home)
    poisoners = await trio.to_thread.run_sync(Poisoners, home)
    key = IdentityKey.generate()
    async with (
        open_member(
            key,
            listen=(),
            join=find_join(join, home),
            boot=int(time.time()),
            serve=False,
            known=load_known(home),
            access=find_access(home),
            pins=pins,
        ) as member,
        open_weights(
            member.host, member.directory, key, home, poisoners,
            pinned=[pin.peer for pin in pins], disk_bytes=disk_bytes, share=False,
            root=None if offline else HubRoot,
        ) as weights,
    ):  # fmt: skip
        member.host.shun(poisoners.banned)
        poisoners.caught.append(lambda peer: member.host.shun(poisoners.banned))

        def fetch() -> Checkpoint:
            checkpoint = open_checkpoint(source, offline=offline, home=home, supply=weights)
            if blocks == ":":
                checkpoint.fetch_all()
            else:
                fetch_blocks(checkpoint, parse_blocks(blocks, checkpoint.spec.blocks))
            return checkpoint

        async with trio.open_nursery() as showing:
            showing.start_soon(_show, weights, quiet)
            checkpoint = await trio.to_thread.run_sync(
                fetch,
                abandon_on_cancel=True,  # type: ignore[call-arg]  # libp2p's stubs of trio are old
            )
            showing.cancel_scope.cancel()
        here = [weights.library.file(bytes.fromhex(fact.sha256)) for fact in checkpoint.facts()]
        return {
            "model": source,
            "digest": checkpoint.digest(),
            "bytes": sum(one.bytes_here() for one in here if one is not None),
            "from_peers": weights.puller.counts.peers,
            "from_hub": weights.puller.counts.root,
            "folder": str(weights.library.root),
        }


async def _show(weights: Weights, quiet: bool) -> None:
    """On a terminal, how far each file is."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
        TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    off = quiet or sys.stderr is None or not sys.stderr.isatty()
    tasks: dict[bytes, TaskID] = {}
    with Progress(
        *columns, console=Console(file=sys.stderr), transient=True, disable=off
    ) as progress:
        while True:
            for file in weights.library.files():
                if not weights.library.uses(file.sha256) or file.about.elsewhere:
                    continue
                if file.sha256 not in tasks:
                    tasks[file.sha256] = progress.add_task(file.about.name, total=file.size)
                progress.update(tasks[file.sha256], completed=file.bytes_here())
            await trio.sleep(LOOK_S)
