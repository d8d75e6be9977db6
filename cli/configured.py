"""A command whose options may stand in the config file, in a table of its name.

    potluck node --port 4001        [node]
                                    port = 4001

What the command line says goes before what the file says, and that before the defaults. The file's
words are judged as the command line's are, and whoever errs is told where it stands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer
from typer.core import TyperCommand
from typer.main import get_command

from ..errors import UserError
from .run import node

if TYPE_CHECKING:
    from typer.core import TyperOption

HELP: Final = ("-h", "--help")
ELSEWHERE: Final = ("home", "json", "ban", "allow_only", "join", "pin")  # no option of the table


class Configured(TyperCommand):
    """Give it as `cls` to a command."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        if any(one in HELP for one in args):
            return super().make_context(info_name, args, parent, **extra)
        from ..node.config import CONFIG, command_table, home_of

        table = self.name or ""
        home = home_of(_home_among(args))
        known = {key_of(one): one for one in options_of(self)}
        told: dict[str, Any] = {}
        for key, value in command_table(home, table).items():
            if key not in known:
                raise UserError(f"{home / CONFIG}: [{table}] has no {key!r}{_meant(key, known)}")
            one_of_many = known[key].multiple and isinstance(value, str)
            told[str(known[key].name)] = [value] if one_of_many else value
        try:
            return super().make_context(info_name, args, parent, default_map=told, **extra)
        except typer.BadParameter as error:
            name = getattr(error.param, "name", None)
            source = error.ctx and name and error.ctx.get_parameter_source(name)
            if source and source.name == "DEFAULT_MAP":
                key = next(key for key, one in known.items() if one.name == name)
                where = f"{home / CONFIG}: [{table}] {key}"
                raise UserError(f"{where}: {error.message}") from None
            raise


def node_command(cls: type[TyperCommand] = TyperCommand) -> Any:
    """potluck node, as it stands alone: what its words mean; with the file's, as `Configured`."""
    alone = typer.Typer(add_completion=False)
    alone.command("node", cls=cls)(node)
    return get_command(alone)


def options_of(command: Any) -> Iterator[TyperOption]:
    """Those that may stand in the table."""
    for one in command.params:
        if one.param_type_name == "option" and one.name not in ELSEWHERE and not one.hidden:
            yield one


def key_of(option: TyperOption) -> str:
    """What it is called in the table: as on the command line."""
    longest = max(option.opts, key=len)
    return longest.lstrip("-").replace("-", "_")


def _home_among(args: Sequence[str]) -> Path | None:
    """The home that these words name; a wrong one is found when they are parsed."""
    for place, word in enumerate(args):
        if word == "--home" and place + 1 < len(args):
            return Path(args[place + 1])
        if word.startswith("--home="):
            return Path(word.removeprefix("--home="))
    return None


def _meant(key: str, names: Collection[str]) -> str:
    near = get_close_matches(key, names, 1)
    return f"; is {near[0]!r} meant?" if near else f"; there are {', '.join(sorted(names))}"
