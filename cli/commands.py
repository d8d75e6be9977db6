"""The command and its subcommands.

Only what parses the command line is imported here, so that `potluck --help` answers at once: what
a command needs to work (trio, torch, libp2p, rich) is imported inside the function of that command,
when it starts. Here, and in main.py, is the one place where imports stand inside functions.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from .api import api
from .bench import bench
from .bootstrap import bootstrap
from .calibrate import calibrate
from .chat import chat, generate
from .configured import Configured
from .credit import credit
from .demo import demo
from .doctor import doctor
from .edge import complain, report
from .finetune import finetune
from .init import init
from .invite import invite, join
from .jobs import job, jobs, submit
from .models import models
from .pause import pause, resume
from .pin import pin
from .run import node
from .service import service
from .show import peers, status, top
from .simulate import LIES, simulate
from .testnet import testnet
from .verify import verify
from .vouch import vouch

WELCOME = """\
Potluck: everyone brings a dish. Peers each hold a few blocks of a language model, and together
they answer. Three commands to copy:

  potluck demo
      a model in six processes: it answers, loses a server in mid-answer, and goes on
  potluck testnet up --nodes 4 --model demo
      a swarm of your own on this machine
  potluck generate "The function returns" -m demo
      ask whatever swarm runs here

Everything else: potluck --help
"""

app = typer.Typer(
    name="potluck",
    help="A peer-to-peer network for language models: everyone brings a dish.",
    epilog='Example: potluck generate "The function returns" -m demo',
    rich_markup_mode=None,  # plain help takes a third of the time, and pipes well
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"potluck {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def welcome(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(WELCOME, nl=False)


app.command(cls=Configured)(node)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(init)
app.command()(pause)
app.command()(resume)
app.command()(bootstrap)
app.add_typer(service, name="service")
app.command()(generate)
app.command()(chat)
app.command()(api)
app.command()(finetune)
app.command()(status)
app.command()(top)
app.command()(peers)
app.add_typer(models, name="models")
app.command()(credit)
app.command()(doctor)
app.command()(invite)
app.command()(join)
app.add_typer(pin, name="pin")
app.add_typer(vouch, name="vouch")
app.add_typer(testnet, name="testnet")
app.command()(demo)
app.add_typer(bench, name="bench")
app.command(epilog=LIES)(simulate)
app.command()(verify)
app.command()(submit)
app.command()(jobs)
app.add_typer(job, name="job")
app.command()(calibrate)


def run(args: list[str] | None) -> int:
    """Run one command line; None: that of the process. Returns its exit code (edge.py)."""
    try:
        result = app(args, prog_name="potluck", standalone_mode=False)
    except typer.TyperException as error:  # the command line itself is wrong
        where = getattr(getattr(error, "ctx", None), "command_path", "potluck")
        complain(f"{error.format_message()} (see {where} --help)")
        return error.exit_code
    except typer.Abort:
        return report(KeyboardInterrupt())
    except BaseException as error:  # the outermost edge: every road out of a command ends here
        if isinstance(error, SystemExit):
            raise
        return report(error)
    return result if isinstance(result, int) else 0
