"""A swarm, watched: the picture of `potluck status`, drawn anew until Ctrl-C.

On a terminal it has a screen of its own, which is given back at the end. Elsewhere (`| tee log`)
one picture follows the other as plain text, each under the time of day.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import trio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..errors import TransportError
from ..node.client import open_swarm
from ..node.config import home_of
from .edge import until_signalled
from .here import in_words, own_node, resting
from .options import print_json
from .picture import COLUMNS, Picture, coverage, row, speed, take_picture
from .tables import PIPE_WIDTH, table_of

Show = Callable[[list[Picture], dict[str, Any] | None, str], None]


def watch(join: Sequence[str], home: Path | None, *, every_s: float, count: int, json: bool) -> int:
    """Look until Ctrl-C, or so many times. The exit code."""

    async def look() -> int:
        with until_signalled() as interruption, ExitStack() as shown:
            show: Show = _plain_json if json else _plain
            if not json and sys.stdout is not None and sys.stdout.isatty():
                show = _on_terminal(shown)
            async with open_swarm(join, home=home) as swarm:
                looks = 0
                while True:
                    trouble = ""
                    pictures: list[Picture] = []
                    try:
                        pictures = await take_picture(swarm)
                    except TransportError as error:  # it may come back
                        trouble = str(error)
                    show(pictures, own_node(home_of(home)), trouble)
                    looks += 1
                    if looks == count:
                        break
                    await trio.sleep(every_s)
        return interruption.exit_code

    return trio.run(look)


def _on_terminal(shown: ExitStack) -> Show:
    live = shown.enter_context(Live(screen=True, auto_refresh=False, console=Console()))

    def show(pictures: list[Picture], node: dict[str, Any] | None, trouble: str) -> None:
        live.update(Group(*parts(pictures, node, trouble)), refresh=True)

    return show


def _plain(pictures: list[Picture], node: dict[str, Any] | None, trouble: str) -> None:
    console = Console(file=sys.stdout, width=PIPE_WIDTH, no_color=True)
    for part in parts(pictures, node, trouble):
        console.print(part)
    console.file.flush()


def _plain_json(pictures: list[Picture], node: dict[str, Any] | None, trouble: str) -> None:
    """A line for each look."""
    told = {"at_s": round(time.time(), 1), "node": node, "trouble": trouble}
    print_json(told | {"models": [one.facts() for one in pictures]}, indent=None)
    sys.stdout.flush()


def parts(
    pictures: Sequence[Picture], node: dict[str, Any] | None, trouble: str
) -> list[RenderableType]:
    """What is drawn, from above to below."""
    peers = {span.peer for one in pictures for span in one.spans}
    head = f"{time.strftime('%H:%M:%S')}  {_of(len(peers), 'peer')}, {_of(len(pictures), 'model')}"
    found: list[RenderableType] = [Text(head)]
    if node is not None:
        found.append(Text(f"this node  {node['peer']}  {in_words(node)}"))
        if rest := resting(node, time.time()):
            found.append(Text(f"  {rest}"))
    if trouble:
        found.append(Text(f"the swarm does not answer: {trouble}"))
    elif not pictures:
        found.append(Text("Nobody serves a model here."))
    for one in pictures:
        found.append(Text(""))
        found.append(Text(f"{one.offer.name}  {one.offer.blocks} blocks  {speed(one)}"))
        found.append(Text(coverage(one)))
        found.append(table_of(COLUMNS, [row(span, one.links[span.peer]) for span in one.spans]))
    return found


def _of(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
