"""Which model to serve when the owner leaves that to the swarm: `potluck node -m auto`.

The one whose servers are furthest from what is asked of them (swarm/demand.py, placement.py). A
name that a stranger announces opens no folder of this machine, and whatever is opened by it is
served only if it is the very model that was announced, by its digest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import trio

from ..dht.directory import Directory, ModelOffer
from ..errors import UserError
from ..swarm.demand import Served, demand_of
from ..swarm.placement import Demand, choose_model
from .config import AUTO, NodeConfig
from .log import get_logger
from .placing import holdings_of
from .serving import Model, open_model

log = get_logger()

OFFERS_MAX: Final = 32  # models that are looked into, the most often served first


async def open_wanted(
    config: NodeConfig, directory: Directory, wall: Callable[[], float]
) -> tuple[NodeConfig, Model]:
    """The model that needs a peer most, of those that can be had here. Raises UserError."""
    if config.blocks != AUTO:
        raise UserError(
            f"--model auto with --blocks {config.blocks}: of a model that the swarm chooses the "
            "swarm chooses the blocks too: leave --blocks out, or name the model"
        )
    offers = await directory.models()
    offers = tuple(sorted(offers, key=lambda offer: -len(offer.peers))[:OFFERS_MAX])
    left = {offer.model: (offer, await _demand(directory, offer, wall())) for offer in offers}
    failures = []
    while left:
        offer, demand = left.pop(choose_model([told for _, told in left.values()]))
        wish = replace(config, model=offer.name, name=offer.name)
        try:
            return wish, await _open(wish, offer, demand)
        except UserError as error:
            log.info("not served", model=offer.name, why=str(error))
            failures.append(str(error))
    told = "; ".join(failures[:3]) or "nobody serves any"
    raise UserError(f"no model of the swarm can be served here ({told}): name one by --model")


async def _open(wish: NodeConfig, offer: ModelOffer, demand: Demand) -> Model:
    if offer.name.startswith((".", "/", "~")):
        raise UserError(f"{offer.name}: a name in a swarm is no folder of this machine")
    model = await trio.to_thread.run_sync(open_model, wish)
    if model.digest != offer.model:
        raise UserError(f"{offer.name}: another model than the swarm's goes by that name here")
    log.info("chosen", model=offer.name, offered=round(demand.offered, 1), why="most needed")
    return model


async def _demand(directory: Directory, offer: ModelOffer, now: float) -> Demand:
    found = {told.peer: told for told in await directory.find(offer.model)}
    served = [
        Served(holding, found[holding.peer].asked_tokens_s)
        for holding in holdings_of(tuple(found.values()), now)
        if found[holding.peer].blocks == offer.blocks
    ]
    return demand_of(offer.model, offer.blocks, served)
