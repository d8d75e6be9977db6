"""What a run is about, read from a TOML file: peers, links, churn, load, liars, rules.

Every table and key is optional and has the default below; an unknown one, a value of the wrong kind
or out of range is a UserError of one line that names it. What the load looks like follows BurstGPT
(Wang et al., 2024; arXiv 2401.17644): Gamma gaps between requests, far burstier than Poisson, and
heavy-tailed lengths. That the paper fits Gamma and Zipf is checked; the parameters here (a shape of
0.5, means of 600 and 250 tokens) are remembered and not checked against its tables.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from ...errors import UserError

Routing = Literal["ours", "affine", "petals", "swarm", "random", "greedy", "po3"]
Moving = Literal["auto", "ours", "petals", "swarm", "none"]
ROUTINGS: tuple[str, ...] = get_args(Routing)


@dataclass(frozen=True, slots=True)
class Model:
    blocks: int = 80
    row_bytes: int = 8192  # of one token's hidden state on the wire: int8 at a width of 8192


@dataclass(frozen=True, slots=True)
class Peers:
    count: int = 150
    span_min: int = 3  # blocks, drawn evenly from here
    span_max: int = 28  # to here
    table: str = "cpu-int8-4096"  # of table.py: (blocks, tokens) to ms
    spread: float = 0.6  # of speeds: sigma of a lognormal of median 1
    cache_tokens: int = 0  # positions times blocks that a peer admits at once; 0: without bound
    prompt_tokens: int = 24_576  # guess: that a peer keeps of prompts, beside its sessions
    relayed: float = 0.0  # share of peers behind a relay
    cores: int = 0  # all peers on one machine of so many; 0: each has a device of its own


@dataclass(frozen=True, slots=True)
class Links:
    access_ms_min: float = 3.0  # one way, each end
    access_ms_max: float = 20.0
    world_ms: float = 60.0  # one way, across the plane on which all live
    up_mbit: float = 20.0  # medians
    down_mbit: float = 100.0
    loss: float = 0.0  # of messages; each costs a retransmission after one round trip more
    detect_s: float = 1.0  # until a dead peer's streams are known to be


@dataclass(frozen=True, slots=True)
class Churn:
    kind: Literal["none", "weibull", "spot", "diurnal"] = "none"
    mean_s: float = 7200.0  # of a life
    shape: float = 0.6  # of the Weibull: below 1, who stayed stays
    away_s: float = 600.0  # mean, until another comes in its place
    burst_every_s: float = 14400.0  # spot: mean gap between two bursts
    burst_share: float = 0.2  # of the peers goes
    burst_s: float = 60.0  # within


@dataclass(frozen=True, slots=True)
class Load:
    share: float = 0.8  # of the LP optimum of the first layout
    clients: int = 32
    arrivals: Literal["poisson", "gamma"] = "poisson"
    shape: float = 0.5  # of the Gamma: 0.5 is a coefficient of variation of 1.41
    lengths: Literal["fixed", "burst"] = "fixed"
    tokens: int = 128  # fixed: of each request
    request_mean: int = 600  # burst: tokens in, Zipf-like (bounded Pareto)
    response_mean: int = 250  # burst: tokens out
    tail: float = 1.5  # of the bounded Pareto, exponent
    tokens_max: int = 8192
    deadline_s: float = 5.0
    deadline_token_s: float = 0.0  # more for each token
    open_s: float = 0.0  # from a request's birth until its first hop is chosen
    give_up: float = 1.5  # deadlines after which a request is dropped
    ramp_s: float = (
        0.0  # the load rises from a tenth within; cold clients learn the peers meanwhile
    )
    prompts: int = 0  # system prompts, of which requests begin with one; 0: none
    prompt_share: float = 0.8  # of the requests that do
    prompt_tokens: int = 1500  # of its tokens are that
    flash_at_s: float = 0.0  # a flash crowd: from here,
    flash_s: float = 0.0  # for so long,
    flash_times: float = 3.0  # so many times the load


@dataclass(frozen=True, slots=True)
class Liars:
    share: float = 0.0
    what: Literal["rate", "load", "both", "blackhole", "slow"] = "both"
    times: float = 10.0  # claims so many times its rate; slow: is so many times slower


@dataclass(frozen=True, slots=True)
class Strangers:
    """Of kind "strangers" (strangers.py). peers.count is the town; the others have their own."""

    lies: str = ""  # by commas, as random:0.1; all that are simulated
    each: int = 2  # peers that tell each lie of work or hearsay
    clients: int = 12  # of the honest, that ask
    parts: int = 3  # of the model; each peer serves one
    chunk_s: float = 3.0  # mean, between two chunks of one client
    view_peers: int = 300
    view_slots: int = 80
    view_rounds: int = 100
    passes: int = 3000  # of the device that Sybils come to
    pace_peers: int = 60
    pace_share: float = 0.2  # of them lie
    pace_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Control:
    record_bytes: int = 700  # a signed span record; measured 560 to 700
    copies: int = 20  # Kademlia's k: each record is put to so many
    refresh_s: float = 30.0  # dht/record.py
    view_max: int = 1024  # spans that a client keeps in mind
    pull_s: float = 60.0  # a client reads so many records each so often
    pull_records: int = 256
    probe_bytes: int = 120  # asking one peer for its queue: there, and as much back
    fresh_s: float = 2.0  # a finder is used for so long


@dataclass(frozen=True, slots=True)
class Placing:
    moving: Moving = "auto"  # auto: the one that belongs to the router
    epoch_s: float = 30.0
    move_s: float = 120.0  # to fetch a span and load it
    tell_s: float = 0.0  # until records leave out who is dead; spot machines are warned before
    period_s: float = 300.0  # swarm's T
    balance: float = 0.75  # petals' balance_quality


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str = "unnamed"
    kind: Literal["requests", "layout", "strangers"] = "requests"
    seed: int = 1  # where the command gives none
    seconds: float = 300.0
    warm_s: float = 60.0  # not counted
    model: Model = field(default_factory=Model)
    peers: Peers = field(default_factory=Peers)
    links: Links = field(default_factory=Links)
    churn: Churn = field(default_factory=Churn)
    load: Load = field(default_factory=Load)
    liars: Liars = field(default_factory=Liars)
    strangers: Strangers = field(default_factory=Strangers)
    control: Control = field(default_factory=Control)
    placing: Placing = field(default_factory=Placing)


SHARES = {"share", "prompt_share", "relayed", "loss", "burst_share", "pace_share"}
MAY_BE_ZERO = SHARES | {
    "spread", "warm_s", "access_ms_min", "world_ms", "detect_s", "deadline_token_s", "flash_at_s",
    "flash_s", "ramp_s", "cache_tokens", "cores", "row_bytes", "open_s", "copies", "record_bytes",
    "probe_bytes", "move_s", "tell_s", "prompts",
}  # fmt: skip


def parse_scenario(text: str, where: str) -> Scenario:
    """The scenario in this TOML text. where: the file's name, for the one line of a UserError."""
    try:
        told = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where} is not TOML: {error}") from None
    scenario: Scenario = _build(Scenario, told, where, "")
    _check(scenario, where)
    return scenario


def _build(kind: type[Any], told: Mapping[str, Any], where: str, inside: str) -> Any:
    hints = get_type_hints(kind)
    known = {item.name for item in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in told.items():
        name = f"{inside}{key}"
        if key not in known:
            raise UserError(f"{where}: {name} is not known; there are {', '.join(sorted(known))}")
        values[key] = _value(hints[key], value, where, name, key)
    return kind(**values)


def _value(hint: Any, value: Any, where: str, name: str, key: str) -> Any:
    if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
        if not isinstance(value, dict):
            raise UserError(f"{where}: {name} is a table: write [{name}]")
        return _build(hint, value, where, f"{name}.")
    if choices := get_args(hint):
        if value not in choices:
            raise UserError(f"{where}: {name} = {value!r} is none of {', '.join(choices)}")
        return value
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise UserError(f"{where}: {name} = {value!r} is not {_kind_name(hint)}")
    if hint is not str:
        least_ok = value >= 0 if key in MAY_BE_ZERO else value > 0
        if not least_ok or value != value or abs(value) > 1e12:
            raise UserError(f"{where}: {name} = {value} is out of range")
        if key in SHARES and value > 1.5:
            raise UserError(f"{where}: {name} = {value} is a share: give 0 to 1")
    return value


def _kind_name(hint: Any) -> str:
    return {int: "a whole number", float: "a number", str: "a text"}.get(hint, str(hint))


def _check(scenario: Scenario, where: str) -> None:
    peers, model = scenario.peers, scenario.model
    if not peers.span_min <= peers.span_max <= model.blocks:
        raise UserError(
            f"{where}: peers.span_min {peers.span_min} and span_max {peers.span_max} must rise and "
            f"stay within model.blocks {model.blocks}"
        )
    load = scenario.load
    if load.prompts and load.tokens <= load.prompt_tokens:
        raise UserError(
            f"{where}: load.tokens {load.tokens} must be more than the {load.prompt_tokens} of a "
            "prompt (load.prompt_tokens)"
        )
    if scenario.warm_s >= scenario.seconds:
        raise UserError(f"{where}: warm_s {scenario.warm_s:g} leaves nothing of the seconds")
    if scenario.links.access_ms_min > scenario.links.access_ms_max:
        raise UserError(f"{where}: links.access_ms_min is above access_ms_max")
