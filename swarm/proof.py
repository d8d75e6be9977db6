"""What an answer's receipt proves, to anybody, offline: `potluck verify FILE`.

A receipt is a file of lines, each a kind and a signed envelope in base64, so that a person sees
what is in it and a fault has a place:

    potluck-receipt 1
    opening  <of one server>        each server's account (receipt.py): one line a chunk
    chunk    <by the same>
    audit    <by the client>        what it had computed again, and what came of that
    answer   <by the client>        the tokens, and which account tells of which of them

Every bit counts: a line that is not written in its one form, that nobody signed, or that does not
follow the one before is a fault of that line; and the last signs for the lines above it. Whoever
made the file may have left things out, so what is *not* covered by anybody's account is told too.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from ..crypto.codec import Range, Size, decode, encode
from ..crypto.envelope import open_, sign
from ..crypto.keys import IdentityKey
from ..crypto.merkle import Digest, leaf_of, root_of
from ..errors import RemoteError
from .blocks import BlockRange, uncovered
from .receipt import Account, Chunk, adapter_of, check_links
from .wire import BlockNumber, Position

HEADER: Final = b"potluck-receipt 1"
FILE_BYTES_MAX: Final = 64 << 20
ANSWER_BYTES_MAX: Final = 1 << 20
NOTE_BYTES_MAX: Final = 512
NAME_MAX: Final = 200
SHARES_MAX: Final = 1024
ANSWER, NOTE = "answer", "audit"  # the domains of their signatures

Verdict = Literal["right", "wrong", "open"]


@dataclass(frozen=True, slots=True)
class Share:
    """What account number `account` gave for positions `first` to `until` is in the answer."""

    account: Position
    first: Position
    until: Position


@dataclass(frozen=True, slots=True)
class Note:
    """Chunk number `chunk` of an account was computed again by the account `by`, if it is here.

    median, worst: of the tokens' relative errors; limit: for the median (audit.py).
    """

    account: Position
    chunk: Position
    by: Position | None
    median: Annotated[float, Range(0, 1e30)]
    worst: Annotated[float, Range(0, 1e30)]
    limit: Annotated[float, Range(0, 1e30)]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Answer:
    """The client's word. tokens: ids, of which the first `prompt` were asked. fed: positions that
    went through the servers. above: the root of the lines above."""

    session: Annotated[bytes, Size(16, 16)]
    made_s: Annotated[float, Range(0, 1e11)]
    model: Digest
    name: Annotated[str, Size(NAME_MAX)]
    blocks: BlockNumber
    tokens: Annotated[tuple[Position, ...], Size(1 << 17)]
    prompt: Position
    fed: Position
    shares: Annotated[tuple[Share, ...], Size(SHARES_MAX)]
    above: Digest


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that no honest file has. line: from 1; 0 for the file as a whole."""

    line: int
    what: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}" if self.line else self.what


@dataclass(frozen=True, slots=True)
class Audited:
    """A chunk that was computed again. shown: the file itself shows that both gave the same."""

    peer: str
    blocks: str
    at: int
    tokens: int
    by: str
    verdict: Verdict
    shown: bool


@dataclass(frozen=True, slots=True)
class Signer:
    """Whose account is in the file. chunks: lines of it, read or not. adapter: the digest, in hex,
    of what it says that its session wore; empty: nothing."""

    peer: str
    blocks: str
    numerics: str
    chunks: int
    adapter: str = ""


@dataclass(slots=True)
class Proof:
    """What was found. bare: blocks and positions of the answer
    that no account covers. audited_share: of tokens times blocks."""

    faults: list[Fault] = field(default_factory=list)
    client: str = ""
    answer: Answer | None = None
    signers: list[Signer] = field(default_factory=list)
    linked: int = 0
    bare: list[str] = field(default_factory=list)
    audited: list[Audited] = field(default_factory=list)
    audited_share: float = 0.0

    @property
    def good(self) -> bool:
        return not self.faults

    @property
    def adapters(self) -> tuple[str, ...]:
        """What its signers say that the answer wore: one, or none, in a good one."""
        return tuple(sorted({one.adapter for one in self.signers if one.adapter}))


def write_proof(
    key: IdentityKey, accounts: Sequence[Account], notes: Iterable[Note], answer: Answer
) -> bytes:
    """The file. `answer.above` is filled in here."""
    lines = [HEADER]
    for account in accounts:
        lines += [_line(b"opening", account.raw[0])]
        lines += [_line(b"chunk", raw) for raw in account.raw[1:]]
    lines += [_line(b"audit", sign(key, NOTE, encode(note))) for note in notes]
    told = Answer(
        answer.session, answer.made_s, answer.model, answer.name, answer.blocks, answer.tokens,
        answer.prompt, answer.fed, answer.shares, _root(lines),
    )  # fmt: skip
    lines.append(_line(b"answer", sign(key, ANSWER, encode(told))))
    return b"\n".join(lines) + b"\n"


def check_proof(raw: bytes) -> Proof:
    """Everything that can be checked without the model. Never raises: faults are told."""
    reading = _Reading()
    if len(raw) > FILE_BYTES_MAX:
        reading.fault(0, f"{len(raw)} bytes, where {FILE_BYTES_MAX} are allowed")
        return reading.proof
    lines = raw.split(b"\n")
    if lines[0] != HEADER:
        reading.fault(1, "this is no receipt: it begins otherwise")
    if lines[-1] != b"":
        reading.fault(len(lines), "the file does not end with a whole line")
    else:
        lines.pop()
    for number, line in enumerate(lines[1:], start=2):
        reading.read(number, line)
    reading.finish(lines)
    reading.proof.faults.sort(key=lambda fault: fault.line or len(lines) + 1)
    return reading.proof


class _Reading:
    """A file, line after line."""

    def __init__(self) -> None:
        self.proof = Proof()
        self._accounts: list[Account | None] = []  # None: its opening could not be read
        self._chunks: list[int] = []  # lines of each account's chunks, so far
        self._lines: list[int] = []  # of the openings
        self._stopped = False  # the present account had a fault: what follows cannot be checked
        self._notes: list[tuple[int, str, Note]] = []
        self._answer_line = 0

    def fault(self, line: int, what: str) -> None:
        self.proof.faults.append(Fault(line, what))

    def read(self, number: int, line: bytes) -> None:
        if self._answer_line:
            self.fault(number, "a line after the answer")
            return
        kind, _, text = line.partition(b" ")
        try:
            raw = b64decode(text, validate=True)
            if b64encode(raw) != text:
                raise RemoteError("base64 in a form that is not its one form")
            match kind:
                case b"opening":
                    self._opening(number, raw)
                case b"chunk":
                    self._chunk(raw)
                case b"audit":
                    signer, body = open_(raw, NOTE, max_bytes=NOTE_BYTES_MAX)
                    self._notes.append((number, signer, decode(body, Note)))
                case b"answer":
                    self._answer_line = number
                    self.proof.client, body = open_(raw, ANSWER, max_bytes=ANSWER_BYTES_MAX)
                    self.proof.answer = decode(body, Answer, max_bytes=ANSWER_BYTES_MAX)
                case _:
                    raise RemoteError(f"a line of unknown kind {kind[:20]!r}")
        except (RemoteError, binascii.Error) as wrong:
            self.fault(number, f"{self._place(kind)}{wrong}")

    def _opening(self, number: int, raw: bytes) -> None:
        self._accounts.append(None)
        self._chunks.append(0)
        self._lines.append(number)
        self._stopped = True
        self._accounts[-1] = Account(raw)
        self._stopped = False

    def _chunk(self, raw: bytes) -> None:
        if not self._accounts:
            raise RemoteError("a chunk before any opening")
        self._chunks[-1] += 1
        account = self._accounts[-1]
        if account is None or self._stopped:
            return
        self._stopped = True
        account.add(raw)
        self._stopped = False

    def _place(self, kind: bytes) -> str:
        """Where we are, for a person."""
        account = self._accounts[-1] if self._accounts else None
        if kind == b"chunk" and account is not None:
            return (
                f"chunk {self._chunks[-1]} of blocks {account.blocks} by {account.peer}"
                f" (from position {account.length}): "
            )
        return {b"opening": "an opening: ", b"audit": "an audit: ", b"answer": "the answer: "}.get(
            kind, ""
        )

    def finish(self, lines: Sequence[bytes]) -> None:
        """What can be said only of the whole."""
        answer = self.proof.answer
        if not self._answer_line:
            self.fault(len(lines), "the answer, which signs for the rest, is missing")
        for account, chunks in zip(self._accounts, self._chunks, strict=True):
            if account is not None:
                numerics, worn = account.opening.numerics, adapter_of(account.opening).hex()
                self.proof.signers.append(
                    Signer(account.peer, str(account.blocks), numerics, chunks, worn)
                )
        if answer is None:
            return
        if _root(lines[: self._answer_line - 1]) != answer.above:
            self.fault(self._answer_line, "the answer signs for other lines than those above it")
        shares = self._shares(answer)
        self._links(answer, shares)
        self._cover(answer, shares)
        self._audits(answer, shares)

    def _shares(self, answer: Answer) -> list[tuple[Account, Share]]:
        """The accounts that count, each with its share; faults of what does not belong."""
        found = []
        for share in answer.shares:
            if share.account >= len(self._accounts) or share.first > share.until:
                self.fault(self._answer_line, "the answer names an account that is not there")
                continue
            account = self._accounts[share.account]
            if account is None:
                continue  # a fault already
            line = self._lines[share.account]
            if account.opening.model != answer.model:
                self.fault(line, f"{account.peer} serves another model than the answer names")
            if account.opening.session != answer.session:
                self.fault(line, f"{account.peer} signs for another session")
            found.append((account, share))
            if adapter_of(account.opening) != adapter_of(found[0][0].opening):
                self.fault(line, f"{account.peer} wore another adapter than {found[0][0].peer}")
        return found

    def _links(self, answer: Answer, shares: Sequence[tuple[Account, Share]]) -> None:
        links = check_links(
            [(one, range(share.first, min(share.until, answer.fed))) for one, share in shares]
        )
        self.proof.linked = links.linked
        for broken in links.broken:
            self.fault(0, str(broken))

    def _cover(self, answer: Answer, shares: Sequence[tuple[Account, Share]]) -> None:
        """Which positions of which blocks nobody signed for."""
        for block in range(answer.blocks):
            signed = [
                (max(chunk.at, share.first), min(chunk.stop, share.until))
                for account, share in shares
                if account.blocks.start <= block < account.blocks.stop
                for _, chunk in account.standing()
            ]
            for start, stop in _gaps(answer.fed, signed):
                self.proof.bare.append(f"block {block}, positions {start}..{stop}")

    def _audits(self, answer: Answer, shares: Sequence[tuple[Account, Share]]) -> None:
        counted = {id(account) for account, _ in shares}
        work = 0
        for line, signer, note in self._notes:
            if signer != self.proof.client:
                self.fault(line, "an audit that another than the client signed")
                continue
            account = self._at(note.account)
            if account is None or note.chunk >= len(account.chunks):
                self.fault(line, "an audit of a chunk that is not there")
                continue
            chunk = account.chunks[note.chunk]
            auditor = None if note.by is None else self._at(note.by)
            same = None if auditor is None else _same(account, note.chunk, auditor)
            if note.verdict == "wrong":
                self.fault(line, f"{_told(account, chunk)} was found wrong")
            elif note.verdict == "right" and same is False:
                self.fault(line, f"{_told(account, chunk)} is not what the auditor gave")
            elif note.verdict == "right" and id(account) in counted:
                work += chunk.tokens * len(account.blocks)
            self.proof.audited.append(
                Audited(
                    account.peer, str(account.blocks), chunk.at, chunk.tokens,
                    "" if auditor is None else auditor.peer, note.verdict, same is True,
                )
            )  # fmt: skip
        self.proof.audited_share = min(1.0, work / max(1, answer.fed * answer.blocks))

    def _at(self, number: int) -> Account | None:
        return self._accounts[number] if number < len(self._accounts) else None


def _same(account: Account, place: int, auditor: Account) -> bool | None:
    """Whether both gave the same for this chunk, where they had to: in one class of numbers, from
    the same rows and all rows before them. None when the accounts cannot tell."""
    mine, theirs = account.opening, auditor.opening
    if (mine.model, mine.numerics, mine.start, mine.stop, mine.dtype, adapter_of(mine)) != (
        theirs.model, theirs.numerics, theirs.start, theirs.stop, theirs.dtype, adapter_of(theirs)
    ):  # fmt: skip
        return None
    chunk = account.chunks[place]
    before = [one for _, one in account.standing() if one.at <= chunk.at]
    again = {(one.at, one.tokens): one for _, one in auditor.standing()}
    if before[-1] is not chunk:
        return None
    until = 0
    for one in before:
        other = again.get((one.at, one.tokens))
        if other is None or other.took != one.took or one.at != until:
            return None
        until = one.stop
    last = again[chunk.at, chunk.tokens]
    return last.gave == chunk.gave if last.rows == chunk.rows else None


def _told(account: Account, chunk: Chunk) -> str:
    return f"what {account.peer} gave for positions {chunk.at}..{chunk.stop} of {account.blocks}"


def _gaps(until: int, signed: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    spans = [BlockRange(start, stop) for start, stop in signed if start < stop]
    return uncovered(BlockRange(0, until), spans) if until else ()


def _line(kind: bytes, raw: bytes) -> bytes:
    return kind + b" " + b64encode(raw)


def _root(lines: Sequence[bytes]) -> bytes:
    return root_of([leaf_of(line) for line in lines])
