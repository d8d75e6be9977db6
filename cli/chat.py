"""Ask a model: once, or in a conversation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from .loading import loading
from .options import Anonymous, Home, Join, Json, Model, Offline, Stop, stops_of

MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", "-n", min=1, help="How long an answer may get.")
]
Temperature = Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")]
TopK = Annotated[int, typer.Option(min=0, help="Draw from the k likeliest; 0: from all.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest that make up this share.")]
MinP = Annotated[float, typer.Option(help="Draw from what has this share of the likeliest's.")]
Penalty = Annotated[float, typer.Option(help="Above 1: repeat less.")]
Seed = Annotated[
    int | None, typer.Option(min=0, help="The same seed gives the same text; default: any.")
]
Wait = Annotated[
    float, typer.Option("--wait", min=0, metavar="SECONDS", help="For blocks that nobody serves.")
]
Audit = Annotated[
    bool | None,
    typer.Option(
        "--audit/--no-audit",
        show_default=False,
        help="Have a share of the work computed again by other peers, and wrong words replaced. "
        "Default: as config.toml says, else not.",
    ),
]
SharePrefix = Annotated[
    bool,
    typer.Option(
        "--share-prefix",
        help="Let servers keep what is said, for anybody who says the same, as a common system "
        "prompt. Others can find out that somebody said it.",
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|DIGEST",
        help="A LoRA adapter to wear: the folder that PEFT saved, or the digest of one that was "
        "used here. Its weights go to the servers.",
    ),
]
Draft = Annotated[
    str,
    typer.Option(
        metavar="auto|PATH|off",
        help="Guess ahead, so that one round trip brings several tokens; the text is the same. "
        "auto: what was said before; PATH: a small model with the same tokens, too.",
    ),
]
Wire = Annotated[
    str,
    typer.Option(
        metavar="auto|f32|bf16|int8|int4",
        help="How hidden states are sent. f32 loses nothing; bf16 is half of it, int8 a quarter, "
        "int4 an eighth, and words may differ a little, or more; auto: by what the roads carry.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No note on speed and route.")]


def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from stdin.")
    ],
    model: Model,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    wait: Wait = 0.0,
    receipt: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Have the servers sign for their work, and write the proof there: see verify.",
        ),
    ] = None,
    audit: Audit = None,
    adapter: Adapter = None,
    draft: Draft = "auto",
    wire: Wire = "f32",
    share_prefix: SharePrefix = False,
    join: Join = None,
    home: Home = None,
    anonymous: Anonymous = False,
    offline: Offline = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Continue a prompt, as a swarm's model would.

    The text streams to stdout; a note on speed, hops and recoveries goes to stderr.

    \b
    Examples:
      potluck generate "The function returns" -m demo
      potluck generate "def " -m demo --temperature 0.8 --seed 7 --stop "\\n\\n"
      cat question.txt | potluck generate - -m org/name --json
      potluck generate "Hello" -m demo --audit --receipt answer.receipt
      potluck generate "Hello" -m demo --adapter ./my-lora
      potluck generate "Hello" -m org/name-8B --draft org/name-1B
    """
    with loading():
        from .answer import Question, tell_answer
        from .habits import Habits
        from .logs import show_logs

    show_logs("warning")
    question = Question(
        _read_prompt() if prompt == "-" else prompt,
        model,
        Habits(
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            seed,
            wait,
            audit,
            adapter,
            draft,
            wire,
            share_prefix,
        ),
        stop=stops_of(stop),
        receipt=receipt,
    )
    raise typer.Exit(
        tell_answer(
            question,
            join=join or (),
            home=home,
            anonymous=anonymous,
            offline=offline,
            json=json,
            quiet=quiet,
        )
    )


def chat(
    model: Model,
    system: Annotated[str, typer.Option(help="What the model is told before you speak.")] = "",
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    wait: Wait = 0.0,
    audit: Audit = None,
    adapter: Adapter = None,
    draft: Draft = "auto",
    wire: Wire = "f32",
    share_prefix: SharePrefix = False,
    join: Join = None,
    home: Home = None,
    anonymous: Anonymous = False,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Talk to a model that has a chat template.

    /reset begins anew, /quit or the end of input (Ctrl-D) ends, Ctrl-C stops an answer.

    \b
    Example:
      potluck chat -m demo
    """
    with loading():
        from .habits import Habits
        from .logs import show_logs
        from .talk import talk

    show_logs("warning")
    habits = Habits(
        max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, wait, audit,
        adapter, draft, wire, share_prefix,
    )  # fmt: skip
    talk(
        model, habits, system=system, join=join or (), home=home, anonymous=anonymous,
        offline=offline, quiet=quiet,
    )  # fmt: skip


def _read_prompt() -> str:
    if sys.stdin is None:
        raise UserError("the prompt - is read from stdin, which is closed; give one")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt on stdin is not UTF-8 ({error.reason})") from error
