"""Have the system run a node whenever its owner is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PotluckError, UserError
from .configured import Configured, node_command
from .options import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..node.autostart import Service

COMMAND_S = 120.0  # guess: a node that is stopped by it sees its sessions off
TOLD_BY = ("HF_HOME", "HF_HUB_CACHE", "POTLUCK_JOIN")  # by whoever installs, for the node

service = typer.Typer(help="Have the system start a node, and start it anew if it fails.")


@service.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def install(
    context: typer.Context,
    print_only: Annotated[
        bool, typer.Option("--print", help="Show the file, and touch nothing.")
    ] = False,
) -> None:
    """Start a node now and at each login; what follows is for potluck node.

    Linux: a systemd user unit (loginctl enable-linger has it run while nobody is logged in).
    macOS: a launch agent, Windows: a task at logon; both were never tried. What was installed
    before is replaced.

    \b
    Examples:
      potluck service install -m auto --listen all --port 4001
      potluck init -m auto --listen all --port 4001 && potluck service install
      potluck service install --print -m demo
    """
    import getpass

    from ..node.autostart import commands, place_of, system_here, written

    made = _service(context.args)
    system = system_here()
    path = place_of(system, Path.home(), _config_home())
    text = written(system, made)
    if print_only:
        say(text.decode("utf-16" if system == "schtasks" else "utf-8"))
        return
    try:
        for folder in (made.home, *made.writes, path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    for words in commands(system, path, user=_user()):
        _run(words)
    say(f"{path}\nThe node runs, and starts at each login: potluck service status")
    if system == "systemd":
        say(
            f"For it to run while you are not logged in: loginctl enable-linger {getpass.getuser()}"
        )
        if not made.closed:
            say("This system grants no user namespaces: the unit is not shut off from other files.")


@service.command()
def uninstall() -> None:
    """End the node, and start it no more. Its home stays.

    \b
    Example:
      potluck service uninstall
    """
    from ..node.autostart import place_of, system_here, undoing

    system = system_here()
    path = place_of(system, Path.home(), _config_home())
    if not path.exists():
        raise UserError(f"no node was installed ({path} is not there)")
    for words in undoing(system, user=_user()):
        _run(words)
    try:
        path.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be removed ({error.strerror})") from error
    say(f"{path} is removed")


@service.command()
def status() -> None:
    """What the system says of the node.

    \b
    Example:
      potluck service status
    """
    import subprocess

    from ..node.autostart import asking, system_here

    words = asking(system_here(), user=_user())
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    except FileNotFoundError:
        raise UserError(f"{words[0]} is not there: this system starts no services so") from None
    except subprocess.TimeoutExpired:
        raise PotluckError(f"{words[0]} does not answer") from None
    say((done.stdout or done.stderr).rstrip())
    raise typer.Exit(done.returncode)


def _service(words: Sequence[str]) -> Service:
    """A node with these words. Raises what its command line would, and UserError."""
    import os
    import sys

    from ..node.autostart import Service, grants_namespaces
    from ..node.config import home_of

    given = _parsed(words)
    if any(not word.isprintable() for word in words):
        raise UserError(
            "a word with a line break or another control sign in it cannot be installed"
        )
    home = home_of(given).absolute()
    told = tuple((name, os.environ[name]) for name in TOLD_BY if os.environ.get(name))
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    command = (sys.executable, "-P", "-m", "potluck.cli", "node", *words)
    if given is None:
        command += ("--home", str(home))
    writes = (Path(os.environ.get("HF_HUB_CACHE") or hub / "hub").expanduser().absolute(),)
    closed = sys.platform == "linux" and grants_namespaces()
    return Service(command, Path.cwd(), home, writes, told, closed)


def _parsed(words: Sequence[str]) -> Path | None:
    """The home that they name, if any; they are judged as potluck node would judge them."""
    context = node_command(Configured).make_context("potluck node", list(words))
    home = context.params.get("home")
    return None if home is None else Path(home)


def _config_home() -> Path:
    import os

    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def _user() -> int:
    import os

    return os.getuid() if hasattr(os, "getuid") else 0


def _run(words: Sequence[str]) -> None:
    """Raises UserError for a system that has none of it, PotluckError for one that refuses."""
    import subprocess

    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    except FileNotFoundError:
        raise UserError(
            f"{words[0]} is not there; potluck service install --print shows the file, for whatever"
            " starts things here"
        ) from None
    except subprocess.TimeoutExpired:
        raise PotluckError(f"{' '.join(words)} does not end") from None
    if done.returncode:
        raise PotluckError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()}")
