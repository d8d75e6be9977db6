"""What each peer of a run remembers of prompts: the servers' own shelf, counted in tokens.

Of the requests a share begins with one of `prompts` system prompts, which all clients share on
purpose; the others begin with words of their own. Each leaves what it said, and the longest unused
goes: what others say once is in the way here as it is in life. A prompt is there as soon as it has
come to a peer, not when it is computed; who comes meanwhile would wait for the one before anyhow.
"""

from __future__ import annotations

from ..prefix import Scope, Shelf
from .request import Request
from .scenario import Scenario


class PromptCaches:
    """Of all peers. hops, held: of requests with a system prompt, and of those, where it was."""

    def __init__(self, scenario: Scenario) -> None:
        self._load, self._room = scenario.load, scenario.peers.prompt_tokens
        self._shelves: dict[int, Shelf[None]] = {}
        self.hops = self.held = 0

    def serve(self, i: int, request: Request, *, counts: bool) -> int:
        """How many of its tokens peer i need not compute; from now on it has all of them."""
        if not self._load.prompts:
            return 0
        shelf = self._shelves.get(i)
        if shelf is None:
            shelf = self._shelves[i] = Shelf(self._room, owner_share=1.0)
        found, begun = 0, self._load.prompt_tokens
        if request.prompt >= 0:
            scope, name = _scope("", request.at), b"%d" % request.prompt
            found = begun if shelf.find(scope, [name]) else 0
            self.hops += counts
            self.held += counts and found > 0
            if not found:
                shelf.put(scope, [name], None, begun)
        own = max(1, request.tokens - (begun if request.prompt >= 0 else 0))
        shelf.put(_scope("own", request.at), [b"%d" % request.number], None, own)
        return found


def _scope(owner: str, at: int) -> Scope:
    return owner, at, at + 1, "", 0
