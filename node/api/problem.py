"""What goes wrong, in OpenAI's shape.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

Source: OpenAI's API reference, "Error codes"; the `openai` package makes its exceptions of the
status, and waits for as long as Retry-After says.
"""

from __future__ import annotations

import math
from typing import Any

from ...errors import LocalError, MissingBlocks, PotluckError, Refused, UserError

MISSING_RETRY_S = 5.0  # guess: a node that starts is announced within that
ROAD_RETRY_S = 1.0  # guess: by then the router has banned whoever failed
_TYPES = {401: "authentication_error", 429: "rate_limit_error", 503: "service_unavailable"}


class Problem(Exception):
    """An answer that is an error. param: the wrong field. retry_after_s: when to ask again."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self._headers = headers

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status == 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        if self.retry_after_s is None:
            return self._headers
        # whole seconds: RFC 9110, 10.2.3
        return (*self._headers, ("retry-after", str(max(1, math.ceil(self.retry_after_s)))))


def wrong(message: str, param: str | None = None, code: str = "invalid_value") -> Problem:
    """The request is at fault."""
    return Problem(400, message, code=code, param=param)


def no_model(name: str, message: str) -> Problem:
    return Problem(404, f"the model {name!r} {message}", code="model_not_found", param="model")


def problem_of(error: PotluckError) -> Problem:
    """What an error of ours is to a client of the API."""
    match error:
        case UserError():
            return wrong(str(error))
        case MissingBlocks():
            return Problem(
                503,
                f"no peer serves all blocks of {error.model} now",
                code="missing_blocks",
                retry_after_s=MISSING_RETRY_S,
            )
        case Refused():
            return Problem(429, error.reason, code="swarm_full", retry_after_s=error.retry_after_s)
        case LocalError():
            return ours()
        case _:  # a road, or a peer, failed
            return Problem(503, str(error), code="swarm_unreachable", retry_after_s=ROAD_RETRY_S)


def ours() -> Problem:
    """A fault of this program: the log says which."""
    return Problem(500, "this is a fault of potluck itself; its log says more", code="our_fault")
