"""Which models a node serves: those that its owner names, and with `-m auto` what the swarm needs.

That is the model whose servers are furthest from what is asked of them (swarm/demand.py,
placement.py). A name that a stranger announces opens no folder of this machine but what serves by
that name already, and whatever is opened by it is served only if it is the very model that was
announced, by its digest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Final

import trio

from ..dht.directory import Directory, ModelOffer
from ..errors import UserError
from ..swarm.demand import Served, demand_of
from ..swarm.placement import Demand, choose_model
from .compute.hub import Supply
from .config import AUTO, NodeConfig
from .house import configs_of
from .log import get_logger
from .placing import holdings_of
from .serving import Model, open_model

log = get_logger()

OFFERS_MAX: Final = 32  # models that are looked into, the most often served first


async def open_models(
    config: NodeConfig,
    directory: Directory,
    wall: Callable[[], float],
    supply: Supply | None = None,
) -> list[tuple[NodeConfig, Model]]:
    """Each model in its owner's order: the files are there, nothing is loaded. Raises UserError.

    supply: brings parts of the hub's files, so that no more comes than is needed.
    """
    wishes = await trio.to_thread.run_sync(configs_of, config)
    found: dict[int, tuple[NodeConfig, Model]] = {}
    # what is named comes first: the swarm then chooses among the others
    for at, wish in sorted(enumerate(wishes), key=lambda one: one[1].model == AUTO):
        others = [model for _, model in found.values()]
        if wish.model == AUTO:
            but = [one.digest for one in others]
            found[at] = await open_wanted(wish, directory, wall, but, supply)
        else:
            found[at] = wish, await trio.to_thread.run_sync(open_model, wish, supply)
        model = found[at][1]
        if any(model.digest == other.digest for other in others):
            raise UserError(f"{wish.model} was given twice: name each model once")
        if any(model.name == other.name for other in others):
            raise UserError(f"two models are called {model.name}: call one of them so by --name")
        await _refuse_namesake(directory, model)
    return [found[at] for at in range(len(wishes))]


async def _refuse_namesake(directory: Directory, model: Model) -> None:
    """Two models under one name would mix in every reader's mind: the second has to be renamed."""
    for offer in await directory.models():
        if offer.name != model.name or offer.model == model.digest:
            continue
        told = await directory.find(offer.model)  # a name on a list alone bars nobody
        if any(one.name == model.name and one.state == "online" for one in told):
            raise UserError(
                f"the swarm already serves another model as {model.name} "
                f"(digest {offer.model[:12]}, this one is {model.digest[:12]}): "
                "serve the same files, or give this one a name by --name"
            )


async def open_wanted(
    config: NodeConfig,
    directory: Directory,
    wall: Callable[[], float],
    but: Collection[str] = (),
    supply: Supply | None = None,
) -> tuple[NodeConfig, Model]:
    """The model that needs a peer most, of those that can be had here and that we do not serve
    already. Raises UserError.

    but: digests of those that we do.
    """
    if config.blocks != AUTO:
        raise UserError(
            f"--model auto with --blocks {config.blocks}: of a model that the swarm chooses the "
            "swarm chooses the blocks too: leave --blocks out, or name the model"
        )
    offers = tuple(offer for offer in await directory.models() if offer.model not in but)
    offers = tuple(sorted(offers, key=lambda offer: -len(offer.peers))[:OFFERS_MAX])
    left = {offer.model: (offer, await _demand(directory, offer, wall())) for offer in offers}
    failures = []
    while left:
        offer, demand = left.pop(choose_model([told for _, told in left.values()]))
        wish = replace(config, model=offer.name, name=offer.name)
        try:
            return wish, await _open(wish, offer, demand, supply)
        except UserError as error:
            log.info("not served", model=offer.name, why=str(error))
            failures.append(str(error))
    told = "; ".join(failures[:3]) or "nobody serves any"
    raise UserError(f"no model of the swarm can be served here ({told}): name one by --model")


async def _open(
    wish: NodeConfig, offer: ModelOffer, demand: Demand, supply: Supply | None
) -> Model:
    model = await trio.to_thread.run_sync(_open_offered, wish, supply)
    if model.digest != offer.model:
        raise UserError(f"{offer.name}: another model than the swarm's goes by that name here")
    log.info("chosen", model=offer.name, offered=round(demand.offered, 1), why="most needed")
    return model


def _open_offered(wish: NodeConfig, supply: Supply | None) -> Model:
    if Path(wish.model).expanduser().exists():
        raise UserError(f"{wish.model}: a name in a swarm is no folder of this machine")
    return open_model(wish, supply)


async def _demand(directory: Directory, offer: ModelOffer, now: float) -> Demand:
    found = {told.peer: told for told in await directory.find(offer.model)}
    served = [
        Served(holding, found[holding.peer].asked_tokens_s)
        for holding in holdings_of(tuple(found.values()), now)
        if found[holding.peer].blocks == offer.blocks
    ]
    return demand_of(offer.model, offer.blocks, served)
