"""Start a node."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from ..node.testnet.lies import LIE
from .loading import loading
from .manners import (
    BusyPercent,
    Guest,
    Hours,
    IdleMinutes,
    MaxCelsius,
    MaxDisk,
    MaxDown,
    MaxUp,
    MaxWatts,
    OnBattery,
    RestFor,
    ShareGpu,
    WhileActive,
    check_pace,
    manners_of,
)
from .options import (
    AllowOnly,
    Ban,
    Home,
    Join,
    Json,
    Listen,
    LogJson,
    LogLevel,
    Models,
    Offline,
    Pinned,
    Port,
    Relay,
)
from .serve import LOOPBACK, listen_addresses, page_of, place_of, serve_until_stopped

if TYPE_CHECKING:
    from ..node.daemon import Held, Ready

THREADS_MAX = 1024  # guess: above any machine's cores


def node(
    model: Models,
    blocks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="auto|START:STOP",
            help="Which blocks to serve: auto, the default, takes those that need this node most, "
            "as many as fit, and moves when others do; : is all of them. With several models once "
            "for each, in their order.",
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="What to call the model; default: as it is. With several models too."),
    ] = None,
    listen: Listen = None,
    port: Port = 0,
    join: Join = None,
    home: Home = None,
    device: Annotated[
        str,
        typer.Option(help="auto, cpu, cuda:N or mps; several, as cuda:0,cuda:1, share the blocks."),
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16; default: by the device.")] = "",
    threads: Annotated[
        int, typer.Option(min=0, max=THREADS_MAX, help="For the arithmetic; 0: all cores.")
    ] = 0,
    engine: Annotated[
        str,
        typer.Option(
            help="auto, native (our kernels, on processors), torch, or tiled: torch for many"
            " sessions at once, with the bits of each alone."
        ),
    ] = "auto",
    quantization: Annotated[
        str, typer.Option(help="none, int8 or nf4; auto: as the model is stored.")
    ] = "auto",
    max_memory_mib: Annotated[
        int,
        typer.Option("--max-memory", min=0, metavar="MIB", help="Weights and sessions; 0: all."),
    ] = 0,
    cache_mib: Annotated[
        int,
        typer.Option(
            min=0, help="For sessions; 0: what --max-memory leaves, or a quarter of what is free."
        ),
    ] = 0,
    cache_bits: Annotated[
        int,
        typer.Option(help="Of a number that a session remembers: 32, or 8 for four times as many."),
    ] = 32,
    spill_mib: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Of the host's memory, for sessions at rest that a GPU has no room for; default: "
            "a quarter of what is free.",
        ),
    ] = None,
    offline: Offline = False,
    fetch_ahead: Annotated[
        bool,
        typer.Option(
            help="With --blocks auto, a model of the hub: fetch blocks to which this node may be "
            "moved, eight times its own at most, while a tenth of the disk is free."
        ),
    ] = True,
    neighbours: Annotated[
        bool,
        typer.Option(
            help="Bring the hub's weights from peers that have them, only the parts that are "
            "served; and give peers what is here."
        ),
    ] = True,
    max_weights: Annotated[
        int, typer.Option(min=0, metavar="MIB", help="Weights brought in parts; 0: what is free.")
    ] = 0,
    drain_s: Annotated[
        float, typer.Option(min=0, help="Seconds that live sessions have to move at the end.")
    ] = 30.0,
    epoch_s: Annotated[float, typer.Option(min=1, hidden=True)] = 30.0,
    relay: Relay = "auto",
    ban: Ban = None,
    allow_only: AllowOnly = None,
    pin: Pinned = None,
    guest: Guest = True,
    hours: Hours = None,
    while_active: WhileActive = "auto",
    idle_minutes: IdleMinutes = 3.0,
    on_battery: OnBattery = False,
    busy_percent: BusyPercent = 25.0,
    rest_for: RestFor = None,
    share_gpu: ShareGpu = False,
    max_celsius: MaxCelsius = 0.0,
    max_watts: MaxWatts = 0.0,
    max_up: MaxUp = 0,
    max_down: MaxDown = 0,
    max_disk: MaxDisk = 0,
    with_api: Annotated[
        bool, typer.Option("--api", help="Answer OpenAI's clients too, and show the page.")
    ] = False,
    api_host: Annotated[
        str, typer.Option(help="Where the API listens; beyond this machine only with a key.")
    ] = "127.0.0.1",
    api_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 11545,
    api_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", envvar="POTLUCK_API_KEY", help="What its clients must know."),
    ] = None,
    log_level: LogLevel = "info",
    log_json: LogJson = False,
    json: Json = False,
) -> None:
    """Serve blocks of a model until Ctrl-C.

    \b
    Examples:
      potluck node -m demo
      potluck node -m demo --blocks 0:4
      potluck node -m auto --join /ip4/...
      potluck node -m Qwen/Qwen3-0.6B --blocks 0:14 --listen all --port 4001
      potluck node -m Qwen/Qwen3-8B --blocks 0:9 --quantization nf4 --max-memory 4096
      potluck node -m demo --allow-only friends.txt --allow-only 192.168.0.0/16
      potluck node -m demo -m Qwen/Qwen3-0.6B --blocks 0:4 --blocks auto
      potluck node -m auto --hours 22:00-07:00 --rest-for steam --max-up 2000
      potluck node -m demo --api
    """
    from ..node.config import AUTO, ModelWish, NodeConfig, find_access, find_join, find_pins

    first, *also = (
        ModelWish(*wish)
        for wish in zip(
            model,
            _for_each(blocks, len(model), AUTO, "--blocks"),
            _for_each(name, len(model), "", "--name"),
            strict=True,
        )
    )
    place = place_of(home, log_level, log_json=log_json)
    config = NodeConfig(
        home=place,
        model=first.model,
        blocks=first.blocks,
        name=first.name,
        also=tuple(also),
        listen=listen_addresses(listen or LOOPBACK, port),
        join=find_join(join or (), place),
        device=device,
        dtype=dtype,
        threads=threads,
        cache_mib=cache_mib,
        cache_bits=cache_bits,
        spill_mib=spill_mib,
        engine=engine,
        quantization=quantization,
        max_memory_mib=max_memory_mib,
        offline=offline,
        fetch_ahead=fetch_ahead,
        neighbours=neighbours,
        max_weights_mib=max_weights,
        drain_s=drain_s,
        epoch_s=epoch_s,
        relay=relay,
        access=find_access(place, ban=ban or (), allow_only=allow_only or ()),
        ban=tuple(ban or ()),
        allow_only=tuple(allow_only or ()),
        pins=find_pins(place, pin or ()),
        manners=manners_of(
            guest,
            hours=hours or (),
            while_active=while_active,
            idle_minutes=idle_minutes,
            on_battery=on_battery,
            busy_percent=busy_percent,
            rest_for=rest_for or (),
            share_gpu=share_gpu,
            max_celsius=max_celsius,
            max_watts=max_watts,
        ),
        up_kib_s=check_pace("--max-up", max_up),
        down_kib_s=check_pace("--max-down", max_down),
        max_disk_mib=max_disk,
    )

    def words(ready: Ready) -> str:
        return announcement(ready, first.model)

    run = _runner()
    if with_api:
        with loading():
            from ..node.api.service import ApiConfig, serve_beside

        answering = ApiConfig(
            home=place.absolute(),
            host=api_host,
            port=api_port,
            keys=tuple(api_key or ()),
            offline=offline,
        )
        run = partial(run, beside=partial(serve_beside, answering))
    serve_until_stopped(run, config, facts=facts, words=words, json=json)


def _runner() -> Callable[..., Awaitable[None]]:
    """What runs a node; one that lies, or is far away, where a testnet told it to. Raises UserError
    elsewhere."""
    with loading():
        from ..node.daemon import run_node
        from ..node.testnet.lies import PEER_ROADS
        from .bars import show_loading

        show_loading()

        if os.environ.get(PEER_ROADS):
            from ..node.testnet.far_peers import far_holder

            return partial(run_node, hold=far_holder())
        if not os.environ.get(LIE):
            return run_node
        from ..node.testnet.liars import holder_type
    return partial(run_node, hold=holder_type())


def _for_each(given: list[str] | None, models: int, default: str, option: str) -> list[str]:
    """What an option says of each model. Raises UserError when it leaves one in doubt."""
    if not given:
        return [default] * models
    if len(given) != models:
        raise UserError(
            f"{len(given)} of {option} for {models} of --model: give one for each, in their order, "
            "or none at all"
        )
    return given


def facts(ready: Ready) -> dict[str, object]:
    others = [_held_facts(held) for held in ready.others]
    told = _held_facts(ready) | ({"others": others} if others else {})
    return told | ({"api": ready.url} if ready.url else {})


def _held_facts(held: Ready | Held) -> dict[str, object]:
    return {
        "name": held.name,
        "model": held.model,
        "blocks": [held.blocks.start, held.blocks.stop],
        "total": held.total,
    }


def announcement(ready: Ready, model: str) -> str:
    """What a node says when it serves: what it does, and the lines to copy."""
    join = ready.addresses[0] if ready.addresses else "(nobody can dial this node)"
    lines = [
        f"Serving blocks {ready.blocks} of {ready.name}, which has {ready.total}, "
        f"as {ready.peer} ({ready.seconds:.1f} s)",
        f'  ask it:  potluck generate "Hello" -m {ready.name} --join {join}',
    ]
    if len(ready.blocks) < ready.total:
        others = (
            f"0:{ready.blocks.start}"
            if ready.blocks.start
            else f"{ready.blocks.stop}:{ready.total}"
        )
        lines.append(f"  add to it:  potluck node -m {model} --blocks {others} --join {join}")
    lines += [
        f"And blocks {held.blocks} of {held.name}, which has {held.total}" for held in ready.others
    ]
    if ready.url:
        lines.append(
            f"Answering OpenAI's clients at {ready.url}, and drawn at {page_of(ready.url)}"
        )
    return "\n".join(lines)
