"""Which handler a path means: a table of patterns, read segment by segment.

/v1/files/{file}/content        a name in braces stands for one segment
/v1/models/{model*}             with a star for all that follow: hub ids have slashes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from .asking import Asking, Handler
from .problem import Problem

PATH_CHARS_TOLD = 200


@dataclass(frozen=True, slots=True)
class Route:
    """One path, and who answers it by which method. needs_key: where the API has one."""

    path: str
    methods: Mapping[str, Handler]
    needs_key: bool = True

    @property
    def name(self) -> str:
        """As the published document has it."""
        return self.path.replace("*}", "}")

    def match(self, path: str) -> dict[str, str] | None:
        """What the names stand for; None when it is another's path."""
        mine, theirs = self.path.split("/"), path.split("/")
        found: dict[str, str] = {}
        for place, part in enumerate(mine):
            if part.endswith("*}") and "".join(theirs[place:]):
                return found | {part[1:-2]: _plain("/".join(theirs[place:]))}
            if place >= len(theirs) or not (part.startswith("{") or part == theirs[place]):
                return None
            if part.startswith("{"):
                if not theirs[place]:
                    return None
                found[part.strip("{}*")] = _plain(theirs[place])
        return found if len(mine) == len(theirs) else None

    def handler(self, method: str) -> Handler:
        """Raises a Problem (405)."""
        if (found := self.methods.get(method)) is not None:
            return found
        told = ", ".join(self.methods)
        raise Problem(
            405,
            f"{self.name} is for {told}, not for {method[:20]!r}",
            code="method_not_allowed",
            headers=(("allow", told),),
        )


def get(path: str, handler: Handler, *, needs_key: bool = True) -> Route:
    return Route(path, {"GET": handler}, needs_key)


def post(path: str, handler: Handler) -> Route:
    return Route(path, {"POST": handler})


def find_route(routes: Sequence[Route], asking: Asking) -> Route | None:
    """The first that fits; what its path names stands in `asking` then."""
    path = asking.path if asking.path == "/" else asking.path.rstrip("/")
    for route in routes:
        if (found := route.match(path)) is not None:
            asking.found = found
            return route
    return None


def unknown(asking: Asking) -> Problem:
    return Problem(404, f"there is no {asking.path[:PATH_CHARS_TOLD]!r} here", code="unknown_url")


def _plain(part: str) -> str:
    return unquote(part, errors="replace")
