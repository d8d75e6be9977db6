"""A process that serves until it is stopped: a node, or an entry point for others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from ..errors import UserError
from .options import print_json, say

LOOPBACK = ("127.0.0.1",)


class Ready(Protocol):
    """What every such process says once it serves."""

    @property
    def peer(self) -> str: ...

    @property
    def addresses(self) -> tuple[str, ...]: ...

    @property
    def seconds(self) -> float: ...


R = TypeVar("R", bound=Ready)


def place_of(home: Path | None, log_level: str, *, log_json: bool = False) -> Path:
    """The home to serve under, with nobody else in it. Raises UserError."""
    from ..node.config import home_of
    from ..node.process import refuse_second
    from .logs import show_logs

    show_logs(log_level, as_json=log_json)
    place = home_of(home)
    refuse_second(place)
    return place


def serve_until_stopped(
    run: Callable[..., Awaitable[None]],
    config: object,
    *,
    facts: Callable[[R], dict[str, object]],
    words: Callable[[R], str],
    json: bool,
) -> None:
    """Run it; once it is ready, print its facts as JSON, or say it in words."""
    import trio

    from .edge import ended_by_second_ctrl_c

    async def serve() -> None:
        with ended_by_second_ctrl_c():  # a model may be read for minutes
            async with trio.open_nursery() as nursery:
                ready: R = await nursery.start(run, config)
                if json:
                    print_json(common_facts(ready) | facts(ready), indent=None)
                else:
                    say(words(ready))

    trio.run(serve)


def common_facts(ready: Ready) -> dict[str, object]:
    return {
        "peer": ready.peer,
        "addresses": list(ready.addresses),
        "seconds": round(ready.seconds, 3),
    }


def page_of(url: str) -> str:
    """The page of an API that answers at this URL."""
    return url.removesuffix("v1")


def listen_addresses(hosts: Sequence[str], port: int) -> tuple[str, ...]:
    """The multiaddrs that --listen means, each once. Raises UserError."""
    return tuple(dict.fromkeys(one for host in hosts for one in _listen(host, port)))


def _listen(host: str, port: int) -> tuple[str, ...]:
    """Of an IP address; of every interface; one that is a multiaddr already stays as it is."""
    import ipaddress

    from ..node.net.address import every_interface

    if host.startswith("/"):
        return (host,)
    try:
        address = ipaddress.ip_address("::" if host == "all" else host)
    except ValueError:
        raise UserError(
            f"--listen {host}: give all, for every interface (as 0.0.0.0 does), an IP address, "
            "or a multiaddr, such as /ip4/192.0.2.7/tcp/4001"
        ) from None
    if address.is_unspecified:
        return every_interface(port)
    return (f"/ip{address.version}/{host}/tcp/{port}",)
