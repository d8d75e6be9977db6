"""The demo: it answers, loses a server in mid-answer, and goes on with the same words."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UserError
from .options import Home, Json

PROMPT = "The function returns"


def demo(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")] = PROMPT,
    model: Annotated[str, typer.Option("--model", "-m", help="Another model.")] = "demo",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=2)] = 48,
    kill_after: Annotated[
        int, typer.Option(min=1, help="Tokens after which a server is killed.")
    ] = 12,
    home: Home = None,
    json: Json = False,
) -> None:
    """See it work: six processes, one killed in mid-answer.

    Exit code 0 when the words are the same as in an undisturbed run, else 1.

    \b
    Example:
      potluck demo
    """
    from .logs import show_logs
    from .story import Script, play

    show_logs("error")
    if not prompt:
        raise UserError("the prompt is empty; give some text to continue")
    if kill_after >= max_new_tokens:  # not told after half a minute's work
        raise UserError(
            f"after {kill_after} of {max_new_tokens} tokens nothing is left to go on with: "
            "give a larger --max-new-tokens, or a smaller --kill-after"
        )
    script = Script(prompt, model, max_new_tokens, kill_after)
    raise typer.Exit(play(script, home, json=json))
