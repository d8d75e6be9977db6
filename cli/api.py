"""Answer OpenAI's clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .loading import loading
from .options import Home, Join, Json, LogJson, LogLevel, Offline, print_json, say
from .serve import page_of

if TYPE_CHECKING:
    from ..node.api.service import ApiConfig, Ready


def api(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="To load at once: demo, a folder, or a hub id; may be repeated. Others that the "
            "swarm serves are loaded when they are asked for.",
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL:NAME=PATH",
            help="A LoRA adapter (PEFT's folder, or a digest), asked for as the model MODEL:NAME; "
            "may be repeated. One that was used here is MODEL:DIGEST too.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0: any free one.")] = 11545,
    host: Annotated[
        str, typer.Option(help="Where to listen; beyond this machine only with a key.")
    ] = "127.0.0.1",
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            envvar="POTLUCK_API_KEY",
            help="What clients must know; may be repeated.",
        ),
    ] = None,
    join: Join = None,
    home: Home = None,
    offline: Offline = False,
    log_level: LogLevel = "info",
    log_json: LogJson = False,
    json: Json = False,
) -> None:
    """Answer OpenAI's clients, by a swarm's models, until Ctrl-C.

    \b
    Examples:
      potluck api -m demo
      curl http://127.0.0.1:11545/v1/completions -H 'content-type: application/json' \\
        -d '{"model": "demo", "prompt": "The function returns"}'
      potluck api -m demo --adapter demo:poet=./my-lora
      POTLUCK_API_KEY=$(openssl rand -hex 16) potluck api --host 0.0.0.0
    """
    with loading():
        from ..node.api.service import ApiConfig
        from ..node.config import home_of
        from .logs import show_logs

    show_logs(log_level, as_json=log_json)
    config = ApiConfig(
        home=home_of(home).absolute(),
        join=join or (),
        models=model or (),
        adapters=adapter or (),
        host=host,
        port=port,
        keys=tuple(key or ()),
        offline=offline,
    )
    _serve(config, json)


def _serve(config: ApiConfig, json: bool) -> None:
    with loading():
        import trio

        from ..node.api.service import run_api

    async def answer() -> None:
        async with trio.open_nursery() as nursery:
            ready = await nursery.start(run_api, config)
            if json:
                print_json({"url": ready.url, "models": list(ready.models)}, indent=None)
            else:
                say(announcement(ready, bool(config.keys)))

    trio.run(answer)


def announcement(ready: Ready, keyed: bool) -> str:
    """What to copy."""
    key = "your key" if keyed else "none"
    return (
        f"Answering OpenAI's clients at {ready.url}\n"
        f'  from Python:  OpenAI(base_url="{ready.url}", api_key="{key}")\n'
        f"  what it can:  {page_of(ready.url)}openapi.json\n"
        f"  see the swarm:  {page_of(ready.url)}"
    )
