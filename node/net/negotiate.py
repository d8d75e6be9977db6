"""Which protocol a connection or stream speaks: multistream-select 1.0.

Source: github.com/multiformats/multistream-select. A message is a varint length, text, newline.

    dialer   /multistream/1.0.0  /potluck/x/1  ...first bytes ──▶      all in one flush, no waiting
             ◀── /multistream/1.0.0  /potluck/x/1  ...answer  listener: the same words back, or "na"

A dialer here proposes one protocol, so the only good answer is known beforehand, byte for byte,
and is checked when the first answer arrives. Stock peers, who wait for each word, are served too.
Nothing here waits.
"""

from collections.abc import Callable

from ...errors import RemoteError, Unspoken

MESSAGE_BYTES_MAX = 1024  # go-multistream's limit; the longest id in use is below 100
PROPOSALS_MAX = 16  # stock py-libp2p proposes up to 4
NOT_FOUND = "na"
VERSION = "/multistream/1.0.0"


def message(text: str) -> bytes:
    """One word on the wire."""
    body = text.encode() + b"\n"
    size, head = len(body), bytearray()
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + body


HEADER = message(VERSION)
REFUSAL = message(NOT_FOUND)


def proposal(protocol: str) -> bytes:
    """What a dialer says, and what a listener that agrees says back."""
    return HEADER + message(protocol)


def first_message(data: bytes | bytearray) -> tuple[str, int] | None:
    """The first whole message of `data` and where it ends; None when it is not whole yet."""
    size = shift = at = 0
    while True:
        if at == len(data):
            return None
        if at == 2:  # two varint bytes reach 16,383, far above the limit
            raise RemoteError("a negotiation message with a length of more than two bytes")
        size |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if not data[at - 1] & 0x80:
            break
    if not 1 <= size <= MESSAGE_BYTES_MAX:
        raise RemoteError(f"a negotiation message of {size} bytes")
    if len(data) < at + size:
        return None
    try:
        text = bytes(data[at : at + size]).decode("ascii")
    except UnicodeDecodeError as error:
        raise RemoteError("a negotiation message that is not text") from error
    if text[-1] != "\n":
        raise RemoteError("a negotiation message without its newline")
    return text[:-1], at + size


class Listener:
    """The listening side: feed it bytes, send what it answers, until `chosen` is set."""

    def __init__(self, speaks: Callable[[str], bool]) -> None:
        self._speaks = speaks
        self._greeted = False
        self._proposals = 0
        self.data = bytearray()  # not yet understood; once chosen, what follows the negotiation
        self.chosen: str | None = None

    def feed(self, piece: bytes | bytearray | memoryview) -> bytes:
        """Take the next bytes, return the answer to them, perhaps empty. Raises RemoteError."""
        self.data += piece
        answer = bytearray()
        while self.chosen is None and (found := first_message(self.data)) is not None:
            text, end = found
            del self.data[:end]
            answer += self._answer(text)
        return bytes(answer)

    def _answer(self, text: str) -> bytes:
        if not self._greeted:
            if text != VERSION:
                raise RemoteError(f"a negotiation that opens with {text[:40]!r}")
            self._greeted = True
            return HEADER
        self._proposals += 1
        if self._proposals > PROPOSALS_MAX:
            raise RemoteError(f"more than {PROPOSALS_MAX} proposals")
        if not self._speaks(text):
            return REFUSAL
        self.chosen = text
        return message(text)


class Answer:
    """The dialing side: feed it bytes until `agreed`."""

    def __init__(self, protocol: str, why: Callable[[str], str] = lambda protocol: "") -> None:
        """why: what more to say of a no, behind it."""
        self._expected = proposal(protocol)
        self._protocol = protocol
        self._why = why
        self.data = bytearray()  # once agreed, what follows the negotiation
        self.agreed = False

    @property
    def missing(self) -> int:
        """How many bytes of a yes are still to come."""
        return len(self._expected) - len(self.data)

    def feed(self, piece: bytes | bytearray | memoryview) -> None:
        """Take the next bytes. Raises Unspoken for a no, RemoteError for nonsense."""
        self.data += piece
        if self.agreed:
            return
        size = min(len(self.data), len(self._expected))
        if self.data[:size] != self._expected[:size]:
            if REFUSAL in self.data:
                why = self._why(self._protocol)
                raise Unspoken(f"the peer does not speak {self._protocol}{why}")
            raise RemoteError(f"no answer to {self._protocol}, but {bytes(self.data[:40])!r}")
        if size == len(self._expected):
            del self.data[:size]
            self.agreed = True
