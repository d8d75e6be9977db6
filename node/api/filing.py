"""/v1/files: what clients bring for batches and runs, and what batches bring forth.

    POST /v1/files ── form, piece by piece ──▶ home/files     (jobs/files.py)
    file-<24 digits>          a file that was brought
    file-batch-7-output       the answers of batch 7, read from the store of jobs as they are there
    file-batch-7-error        those that are errors

Source: OpenAI's API reference, "Files" and "Batch".
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import trio

from ..jobs.files import FILE_BYTES_MAX, Kept, Upload
from ..jobs.store import Job
from .asking import BODY_S, Asking
from .multipart import Data, Multipart, Part, boundary_of
from .office import Office, paged
from .problem import Problem, wrong
from .routes import Route, get

PURPOSES: Final = ("batch", "fine-tune", "user_data")  # of which the last has no use here
UPLOADS_MAX: Final = 4  # guess: at a time; more are told to come back
FULL_RETRY_S: Final = 2.0
FORM_BYTES_MAX: Final = FILE_BYTES_MAX + (1 << 20)  # with its heads and small fields
FIELD_BYTES_MAX: Final = 4096
FIELDS: Final = ("file", "purpose")
WRITE_BYTES: Final = 1 << 20
SEND_BYTES: Final = 1 << 18
LIST_LIMIT: Final = 10_000  # OpenAI's
OCTETS: Final = "application/octet-stream"
_RESULT: Final = re.compile(r"file-batch-([0-9]{1,15})-(output|error)")


class Filing:
    """The handlers."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._uploads = 0

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("/v1/files", {"GET": self._list, "POST": self._create}),
            Route("/v1/files/{file}", {"GET": self._one, "DELETE": self._delete}),
            get("/v1/files/{file}/content", self._content),
        )

    async def _create(self, asking: Asking) -> None:
        if self._uploads >= UPLOADS_MAX:
            raise Problem(
                429, f"{self._uploads} files are being brought, which is the most",
                code="uploads_full", retry_after_s=FULL_RETRY_S,
            )  # fmt: skip
        self._uploads += 1
        try:
            kept = await self._take(asking)
        finally:
            self._uploads -= 1
        await asking.tell(told_file(kept))

    async def _take(self, asking: Asking) -> Kept:
        form = Multipart(boundary_of(asking.headers.get("content-type", "")))
        files, call = self._office.files, self._office.call
        upload, place, file = await call(files.begin)
        try:
            filled = _Filled(upload)
            async with aclosing(asking.pieces(FORM_BYTES_MAX)) as pieces:
                while (piece := await _next(pieces)) is not None:
                    for found in form.feed(piece):
                        filled.take(found)
                    if len(filled.content) >= WRITE_BYTES:
                        await call(filled.write)
            form.end()
            await call(filled.write)
            name, purpose = filled.judge()
            now = time.time()
            return await call(files.finish, upload, place, file, name=name, purpose=purpose,
                              now=now)  # fmt: skip
        finally:
            with trio.CancelScope(shield=True):
                await call(files.drop, upload, place)

    async def _list(self, asking: Asking) -> None:
        asked = asking.asked()
        if (order := asked.get("order", "desc")) not in ("asc", "desc"):
            raise wrong("order must be asc or desc", "order")
        found = [told_file(one) for one in await self._office.call(self._office.files.all)]
        for job in await self._office.mine("batch"):
            found += [told for _, told in await results_of(self._office, job)]
        found.sort(key=lambda one: (one["created_at"], one["id"]), reverse=order == "desc")
        if (purpose := asked.get("purpose")) is not None:
            found = [one for one in found if one["purpose"] == purpose]
        await asking.tell(paged(found, asked, limit=LIST_LIMIT, most=LIST_LIMIT))

    async def _one(self, asking: Asking) -> None:
        name = asking.found["file"]
        if (result := await self._result(name)) is not None:
            await asking.tell(result[1])
            return
        await asking.tell(told_file(await kept_file(self._office, name)))

    async def _content(self, asking: Asking) -> None:
        name = asking.found["file"]
        if (result := await self._result(name)) is not None:
            job, told = result
            failed = told["id"].endswith("error")
            await self._send(asking, told["bytes"], self._lines(job.id, failed=failed))
            return
        kept = await kept_file(self._office, name)
        await self._send(asking, kept.size, _read(self._office.files.path(kept.id)))

    async def _send(self, asking: Asking, size: int, pieces: Iterator[bytes]) -> None:
        """Piece by piece, as the client takes them."""
        left, piece = size, await self._office.call(next, pieces, b"")
        if size and not piece:
            raise _no_file(asking.found["file"])  # deleted a moment ago
        await asking.start(200, OCTETS, [("content-length", str(size))])
        while left:
            piece = piece[:left]  # a batch that was resumed has more by now
            left -= len(piece)
            await asking.send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await self._office.call(next, pieces, b"") if left else b""
            if left and not piece:
                raise OSError("deleted while it was sent")  # the connection breaks off
        await asking.end()

    def _lines(self, job: int, *, failed: bool) -> Iterator[bytes]:
        past = 0
        while page := self._office.jobs.answers(job, past=past, count=100, failed=failed):
            yield b"".join(text.encode() + b"\n" for _, text in page)
            past = page[-1][0]

    async def _delete(self, asking: Asking) -> None:
        name = asking.found["file"]
        if (result := await self._result(name)) is not None:
            raise wrong(
                f"{name} is the answer of a batch, and goes with it: "
                f"potluck job delete {result[0].id}"
            )
        if not await self._office.call(self._office.files.delete, name):
            raise _no_file(name)
        await asking.tell({"id": name, "object": "file", "deleted": True})

    async def _result(self, name: str) -> tuple[Job, dict[str, Any]] | None:
        """The batch whose answers this is, and what the file is; None for the name of another
        kind. Raises a Problem (404)."""
        if (match := _RESULT.fullmatch(name)) is None:
            return None
        job = await self._office.job("batch", "batch_", f"batch_{match[1]}")
        for file, told in await results_of(self._office, job):
            if file == name:
                return job, told
        raise _no_file(name)


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    """None at the end. Raises a Problem where a piece is long in coming."""
    with trio.move_on_after(BODY_S):
        return await anext(pieces, None)
    raise Problem(408, f"nothing came for {BODY_S:.0f} s", code="too_slow")


class _Filled:
    """A form as far as it has come."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self._fields: dict[str, bytearray] = {}
        self._name: str | None = None  # of the file
        self._into: bytearray = bytearray()
        self.content = bytearray()  # of the file, that is not written yet

    def take(self, found: Part | Data) -> None:
        """Raises a Problem."""
        if isinstance(found, Data):
            self._into += found.content
            if self._into is not self.content and len(self._into) > FIELD_BYTES_MAX:
                raise wrong("a field of the form is too long", code="bad_form")
            return
        if found.name not in FIELDS:
            raise wrong(f"{found.name[:80]} is not known here", found.name[:80],
                        "unknown_parameter")  # fmt: skip
        if found.name in self._fields or (found.name == "file" and self._name is not None):
            raise wrong(f"{found.name} is there twice", found.name, "bad_form")
        if found.name == "file":
            if found.filename is None:
                raise wrong("file must be a file, with its name", "file")
            self._name, self._into = found.filename, self.content
        else:
            self._into = self._fields[found.name] = bytearray()

    def write(self) -> None:
        """Blocks. Raises TooMuch or DiskTrouble."""
        self._upload.write(bytes(self.content))
        self.content.clear()

    def judge(self) -> tuple[str, str]:
        """(its name, its purpose). Raises a Problem."""
        for field, there in (("file", self._name), ("purpose", self._fields.get("purpose"))):
            if there is None:
                raise wrong(f"{field} is missing", field, "missing_required_parameter")
        purpose = self._fields["purpose"].decode("utf-8", "replace")
        if purpose not in PURPOSES:
            raise wrong(f"purpose must be one of {', '.join(PURPOSES)}", "purpose")
        name = (self._name or "").replace("\\", "/").rpartition("/")[2]
        return "".join(one for one in name if one.isprintable()) or "unnamed", purpose


async def kept_file(office: Office, name: str, param: str | None = None) -> Kept:
    """A file that was brought. Raises a Problem (404)."""
    found = await office.call(office.files.get, name)
    if found is None:
        raise _no_file(name, param)
    return found


async def results_of(office: Office, job: Job) -> list[tuple[str, dict[str, Any]]]:
    """The files of a batch's answers, by their names: none before it has ended."""
    if job.ended_s is None:
        return []
    found = []
    for kind, failed in (("output", False), ("error", True)):
        size = await office.call(office.jobs.size, job.id, failed=failed)
        if size:
            name = f"file-batch-{job.id}-{kind}"
            kept = Kept(name, f"batch_{job.id}_{kind}.jsonl", "batch_output", size,
                        job.ended_s or job.made_s)  # fmt: skip
            found.append((name, told_file(kept)))
    return found


def told_file(kept: Kept) -> dict[str, Any]:
    return {
        "id": kept.id,
        "object": "file",
        "bytes": kept.size,
        "created_at": int(kept.made_s),
        "expires_at": None,
        "filename": kept.name,
        "purpose": kept.purpose,
        "status": "processed",
    }


def _read(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while piece := file.read(SEND_BYTES):
                yield piece
    except FileNotFoundError:
        return  # deleted meanwhile


def _no_file(name: str, param: str | None = None) -> Problem:
    return Problem(404, f"there is no file {name[:80]!r} here", code="not_found", param=param)
