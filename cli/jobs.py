"""Jobs that outlive the terminal: submit them, look at them, end them, have their answers."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from .chat import Adapter, MaxNewTokens, MinP, Penalty, Quiet, Seed, Temperature, TopK, TopP
from .loading import loading
from .options import Anonymous, Home, Join, Json, Offline, Stop, note, print_json, say, stops_of

if TYPE_CHECKING:
    from ..node.jobs.states import Event

job = typer.Typer(
    help="""One job: look at it, end it, have its answers.

    \b
    Example:
      potluck job show 3 --follow
    """
)

Number = Annotated[int, typer.Argument(metavar="ID", min=1, help="Which job: see potluck jobs.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where the answers go.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .jsonl file, or a run's .toml.")],
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="For lines that name none.")
    ] = "",
    out: Out = None,
    force: Force = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Do not wait for it: print its number.")
    ] = False,
    at_once: Annotated[
        int, typer.Option(min=1, max=256, help="How many lines are asked at the same time.")
    ] = 8,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    adapter: Adapter = None,
    join: Join = None,
    home: Home = None,
    anonymous: Anonymous = False,
    offline: Offline = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer every line of a file, or fine-tune as a run file says, whatever dies meanwhile.

    \b
    A line is one of these, with any option of the API beside the prompt, or in the body:
      {"prompt": "The function returns"}
      {"id": "q7", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
      {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {...}}

    The job is worked at by a process of its own. Ctrl-C leaves it at work; potluck job show ID
    --follow looks on. Answers are kept in the order of the lines, each exactly once; with --out
    they are a file, once all are there.

    \b
    Examples:
      potluck submit prompts.jsonl -m demo --out answers.jsonl
      potluck submit prompts.jsonl -m demo --temperature 0.8 --seed 7 --detach
      potluck submit batch.jsonl
    """
    with loading():
        from ..node.config import home_of
        from ..node.jobs.store import open_jobs
        from .job_asking import Wanted, add_batch, add_run
        from .job_following import follow_to_its_end

    place = home_of(home).absolute()
    with open_jobs(place) as store:
        if file.suffix == ".toml":
            if model or adapter or out:
                raise UserError(f"{file}: a run file says all itself: leave out --model and --out")
            number = add_run(store, place, file, tuple(join or ()), offline=offline)
        else:
            wanted = Wanted(
                file, model, out, force, at_once, seed, adapter, tuple(join or ()), anonymous,
                offline, {
                    "max_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k,
                    "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty,
                    "stop": list(stops_of(stop)),
                },
            )  # fmt: skip
            number = add_batch(store, place, wanted)
        raise typer.Exit(
            follow_to_its_end(store, place, number, detach=detach, json=json, quiet=quiet)
        )


def jobs(home: Home = None, json: Json = False) -> None:
    """The jobs of this home, and how far they are.

    \b
    Example:
      potluck jobs
    """
    from ..node.config import home_of
    from ..node.jobs.store import open_jobs
    from .job_words import facts, print_jobs

    with open_jobs(home_of(home)) as store:
        found = store.all()
        if json:
            print_json([facts(store, one) for one in found])
        else:
            print_jobs(store, found)


@job.command()
def show(
    number: Number,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Look on until it ends; Ctrl-C looks away.")
    ] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """How far a job is, and what it waits for.

    With --follow another worker is started where the last one was killed.

    \b
    Example:
      potluck job show 3 --follow
    """
    from ..node.config import home_of
    from ..node.jobs.store import open_jobs
    from .job_following import follow_to_its_end
    from .job_words import facts, in_words

    place = home_of(home).absolute()
    with open_jobs(place) as store:
        found = store.get(number)
        if follow:
            raise typer.Exit(follow_to_its_end(store, place, number, json=json))
        if json:
            print_json(facts(store, found))
        else:
            say(in_words(store, found))


@job.command()
def logs(
    number: Number,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many, of the last.")] = 50,
    home: Home = None,
) -> None:
    """What the workers of a job said.

    \b
    Example:
      potluck job logs 3 -n 20
    """
    from ..node.config import home_of
    from ..node.jobs.store import open_jobs
    from ..node.process import last_lines

    with open_jobs(home_of(home)) as store:
        store.get(number)
        for line in last_lines(store.log(number), lines):
            say(line)


@job.command()
def cancel(number: Number, home: Home = None, json: Json = False) -> None:
    """End a job; the answers that are there stay, and resume goes on from them.

    \b
    Example:
      potluck job cancel 3
    """
    from ..node.jobs.states import Event

    _ask(number, Event.CANCEL, home, json)


@job.command()
def pause(number: Number, home: Home = None, json: Json = False) -> None:
    """Have a job rest until it is resumed.

    \b
    Example:
      potluck job pause 3
    """
    from ..node.jobs.states import Event

    _ask(number, Event.PAUSE, home, json)


@job.command()
def resume(
    number: Annotated[
        int | None, typer.Argument(metavar="[ID]", min=1, help="Default: all that wait.")
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Go on with a job that was paused, cancelled, failed, or lost its worker.

    Without an ID: with all that have lost theirs, as after a restart of the machine.

    \b
    Example:
      potluck job resume 3
    """
    from ..node.config import home_of
    from ..node.jobs.states import OPEN, Event
    from ..node.jobs.store import open_jobs
    from ..node.jobs.worker import start_worker
    from .job_words import facts, in_words

    place = home_of(home).absolute()
    with open_jobs(place) as store:
        if number is None:
            wanted = [one.id for one in store.all() if one.state in OPEN and not store.held(one)]
        else:
            wanted = [number]
        told = [store.ask(one, Event.RESUME, time.time()) for one in wanted]
        for one in told:
            if store.waits(one):
                start_worker(place, store, one.id)
        if json:
            print_json([facts(store, one) for one in told])
        elif not told:
            note("no job waits for a worker")
        else:
            for one in told:
                say(in_words(store, one))


@job.command()
def result(
    number: Number,
    out: Out = None,
    force: Force = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Those that are there, if not all are.")
    ] = False,
    home: Home = None,
) -> None:
    """The answers of a batch, in the order of its lines; of a run, where its adapter is.

    \b
    Examples:
      potluck job result 3 > answers.jsonl
      potluck job result 3 --out answers.jsonl
      potluck generate "Once" -m demo --adapter $(potluck job result 4)
    """
    from ..node.config import home_of
    from ..node.jobs.results import answers, check_out, write_answers
    from ..node.jobs.store import open_jobs
    from .job_words import check_result

    with open_jobs(home_of(home)) as store:
        found = store.get(number)
        check_result(found, partial=partial)
        if found.kind == "finetune":
            say(found.spec["folder"])
            return
        if out is None:
            for line in answers(store, number):
                say(line)
            return
        check_out(out.absolute(), replace=force)
        write_answers(store, number, out.absolute(), replace=force, beside=str(os.getpid()))


@job.command()
def plot(
    number: Number,
    picture: Annotated[Path, typer.Argument(metavar="FILE", help="A .png, .svg or .pdf file.")],
    home: Home = None,
) -> None:
    """Draw a fine-tuning job's loss over its epochs.

    \b
    Example:
      potluck job plot 3 loss.png
    """
    from ..node.config import home_of
    from ..node.jobs.store import open_jobs
    from .job_plot import draw

    with open_jobs(home_of(home)) as store:
        draw(store.get(number), store.points(number), picture)


@job.command()
def delete(number: Number, home: Home = None) -> None:
    """Forget a job that has ended, and its answers.

    \b
    Example:
      potluck job delete 3
    """
    from ..node.config import home_of
    from ..node.jobs.store import open_jobs

    with open_jobs(home_of(home)) as store:
        store.delete(number)


@job.command(hidden=True)
def work(number: Number, home: Home = None) -> None:
    """Work at a job, then at others that wait: what submit and resume start.

    \b
    Example:
      potluck job work 3
    """
    with loading():
        import trio

        from ..node.config import home_of
        from ..node.jobs.batch import BatchWork
        from ..node.jobs.finetune import FinetuneWork
        from ..node.jobs.voices import opener
        from ..node.jobs.worker import run_worker
        from .job_asking import FINETUNE
        from .logs import show_logs

    show_logs("info")
    place = home_of(home)
    command = [sys.executable, "-P", *FINETUNE, "--home", str(place)]
    works = {
        "batch": lambda: BatchWork(opener(place)),
        "finetune": lambda: FinetuneWork(command, str(place)),
    }
    trio.run(run_worker, place, number, works)


def _ask(number: int, event: Event, home: Path | None, json: bool) -> None:
    from ..node.config import home_of
    from ..node.jobs.store import open_jobs
    from .job_words import facts, in_words

    with open_jobs(home_of(home)) as store:
        found = store.ask(number, event, time.time())
        if json:
            print_json(facts(store, found))
        else:
            say(in_words(store, found))
