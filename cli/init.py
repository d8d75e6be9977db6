"""A config file to edit."""

from __future__ import annotations

import json
import textwrap
from typing import Annotated, Any, Final

import typer

from ..errors import UserError
from .configured import key_of, node_command, options_of
from .options import Home, say

WIDTH: Final = 98
TOP: Final = (
    ("join", '["/ip4/192.0.2.7/tcp/4001/p2p/12D3KooW..."]', "Peers to join by."),
    ("ban", '["12D3KooW...", "203.0.113.0/24", "bans.txt"]', "With whom to have nothing to do:"
     " peers, networks, files of them. Read again while a node runs."),
    ("allow_only", '["friends.txt"]', "Nobody else is admitted."),
    ("pin", '["12D3KooW...@/ip4/192.0.2.7/tcp/4001"]', "Friends' nodes: dialled first, trusted."),
    ("audit", '"on"', "Have a share of the work of answers computed again by other peers."),
    ("chain", '"off"', "auto: the steps of an answer go from hop to hop, where these can."),
)  # fmt: skip


def init(
    context: typer.Context,
    home: Home = None,
    print_only: Annotated[
        bool, typer.Option("--print", help="Show the file, and write nothing.")
    ] = False,
) -> None:
    """Write a config file with every setting in it, commented out, with what it does.

    What follows is for potluck node, and stands in the file as set. A file that is there already
    stays as it is.

    \b
    Examples:
      potluck init
      potluck init -m auto --listen all --port 4001 && potluck node
      potluck init --print
    """
    from ..node.config import CONFIG, home_of
    from ..node.home import prepare_home, write_whole

    place = home_of(home)
    path = place / CONFIG
    text = config_text(context.args)
    if print_only:
        say(text, end="")
        return
    if path.exists():
        raise UserError(f"{path}: is there already; edit it, or remove it, or look: init --print")
    prepare_home(place)
    write_whole(path, text)
    say(f"{path}: edit it, then potluck node")


def config_text(words: list[str]) -> str:
    """The file; `words` are potluck node's, and stand in it as set. Raises what its command line
    would, and UserError for a setting that the command line alone may have."""
    command = node_command()
    context = command.make_context("potluck node", [*words, "-m", "any"])  # it may stand later
    given = {
        one.name: context.params[one.name]
        for one in command.params
        if one.name and getattr(context.get_parameter_source(one.name), "name", "") == "COMMANDLINE"
    }
    given["model"] = context.params["model"][:-1]
    lines = ["# Settings of this home. What the command line says goes before them.", ""]
    for key, example, told in TOP:
        lines += [*_comment(told), f"# {key} = {example}", ""]
    lines += ["[node]", ""]
    options = list(options_of(command))
    for option in options:
        value = given.pop(option.name, None)
        mark = "# " if value in (None, []) else ""
        lines += [*_comment(option.help or ""), f"{mark}{key_of(option)} = {_toml(option, value)}"]
        lines.append("")
    if given:
        raise UserError(f"{', '.join(sorted(given))} cannot be set by init; edit the file")
    return "\n".join(lines)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent="# ", subsequent_indent="# ")


def _toml(option: Any, value: object) -> str:
    """As the file says it; without a value the default, or what such a thing looks like."""
    told = option.default if value in (None, [], ()) else value
    if told is None:
        told = ["..."] if option.multiple else 0
    if isinstance(told, list | tuple):
        return json.dumps([str(one) for one in told], ensure_ascii=False)
    return json.dumps(told if isinstance(told, bool | int | float) else str(told))
