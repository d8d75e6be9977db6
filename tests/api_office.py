"""An API with an office, in a folder: files, batches and runs over a pretended swarm."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api_fakes import Answer, PretendedSwarm, ask, fits

from potluck.node.api.app import Api
from potluck.node.api.batches import Batches
from potluck.node.api.filing import Filing
from potluck.node.api.office import Office
from potluck.node.api.tunings import Tunings
from potluck.node.jobs.files import Files
from potluck.node.jobs.store import open_jobs

FORM = "multipart/form-data; boundary=here"


def form(*fields: tuple[str, str | None, bytes]) -> bytes:
    """(name, its file's name, content) each."""
    parts = b""
    for name, filename, content in fields:
        named = f'; filename="{filename}"' if filename is not None else ""
        head = f'--here\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
        parts += head.encode() + content + b"\r\n"
    return parts + b"--here--\r\n"


@dataclass
class Desk:
    """started: jobs that a worker was asked for."""

    api: Api
    office: Office
    swarm: PretendedSwarm
    tunings: Tunings
    started: list[int]

    async def bring(self, content: bytes, purpose: str = "batch", name: str = "some.jsonl") -> Any:
        sent = form(("purpose", None, purpose.encode()), ("file", name, content))
        return fits(await self.send(sent), "File")

    async def send(self, raw: bytes, kind: str = FORM, **options: Any) -> Answer:
        headers = {"content-type": kind}
        return await ask(self.api, "/v1/files", raw=raw, headers=headers, **options)


@asynccontextmanager
async def open_desk(home: Path, swarm: PretendedSwarm | None = None) -> AsyncIterator[Desk]:
    swarm, started = swarm or PretendedSwarm(), list[int]()
    with open_jobs(home) as jobs:
        office = Office(home, jobs, Files(home), started.append)
        tunings = Tunings(office, swarm)
        batches = Batches(office, swarm)
        routes = (*Filing(office).routes(), *batches.routes(), *tunings.routes())
        yield Desk(Api(swarm, more=routes), office, swarm, tunings, started)


def lines(*told: object) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in told)
