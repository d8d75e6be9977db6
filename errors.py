"""Every error, as one tree. A branch is chosen by its remedy.

PotluckError
├── UserError       bad input: one line that says what and what to do, exit code 2
├── LocalError      our own fault: nobody catches it, the process ends loudly
├── RemoteError     a peer's fault: close the stream, trust the peer less
├── TransportError  the road failed: try another hop
│   └── Unspoken    the peer does not know the protocol: say it in an older one
├── Refused         a peer is full: come back in `retry_after_s`
└── MissingBlocks   nobody serves some blocks: wait for cover, or give up
"""


class PotluckError(Exception):
    """The root: whoever catches this catches all of ours and nothing else."""


class UserError(PotluckError):
    """Bad input. The message is one line: what is wrong, and what to do about it."""


class LocalError(PotluckError):
    """A fault of this program or this machine. It is never caught: it is mended."""


class RemoteError(PotluckError):
    """A peer sent something that no honest peer sends."""


class TransportError(PotluckError):
    """A stream broke, a dial failed, a deadline passed."""


class Unspoken(TransportError):
    """A peer does not speak the protocol that it was addressed in."""


class Refused(PotluckError):
    """A peer declines for now.

    retry_after_s: seconds after which asking again makes sense.
    """

    def __init__(self, reason: str, *, retry_after_s: float) -> None:
        super().__init__(f"{reason}; try again in {retry_after_s:.1f} s")
        self.reason = reason
        self.retry_after_s = retry_after_s


class MissingBlocks(PotluckError):
    """No live peer serves these blocks of the model.

    missing: half-open (start, stop) pairs, in order.
    """

    def __init__(self, model: str, missing: tuple[tuple[int, int], ...]) -> None:
        spans = ", ".join(f"{start}:{stop}" for start, stop in missing)
        super().__init__(
            f"no peer serves blocks {spans} of {model}; start a node that does, or wait for one "
            "(--wait 60; in Python wait_s=60)"
        )
        self.model = model
        self.missing = missing


def only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception in groups of one, which nurseries put around what passes through them."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found
