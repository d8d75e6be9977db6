"""A js-libp2p host as a process of its own, told what to do in lines of JSON.

    async with open_js_peer(install()) as js:
        await js.do("ping", peer=host.peer_id)

js/package-lock.json says which js-libp2p, to the last dependency, and npm checks each by its
digest. It is installed once, into the user's cache; nothing of it is changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import platformdirs
import trio

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

HERE: Final = Path(__file__).parent / "js"
INSTALL_S: Final = 300.0  # 138 packages, 60 MB; 15 s on a good line
READY_S: Final = 30.0
ANSWER_S: Final = 30.0
END_S: Final = 5.0
LINE_BYTES_MAX: Final = 1 << 20


class Unavailable(Exception):
    """js-libp2p cannot be had here, and why."""


class JsError(Exception):
    """What js-libp2p threw, by its name and in its words."""


def install() -> Path:
    """The folder that js-libp2p is in; installs it when it is not there. Raises Unavailable."""
    lock = (HERE / "package-lock.json").read_bytes()
    folder = Path(platformdirs.user_cache_dir("potluck")) / "js" / hashlib.sha256(lock).hexdigest()
    if folder.is_dir():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("npm is not installed")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        for one in ("package.json", "package-lock.json"):
            shutil.copy(HERE / one, name)
        try:
            done = subprocess.run(
                [npm, "ci", "--no-audit", "--no-fund"],
                cwd=name, capture_output=True, text=True, timeout=INSTALL_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"npm was not done in {INSTALL_S:.0f} s") from error
        if done.returncode != 0:
            raise Unavailable(f"npm could not install js-libp2p: {done.stderr[-400:]}")
        if not folder.is_dir():  # else another run was quicker
            os.rename(name, folder)
            os.mkdir(name)  # for TemporaryDirectory to remove
    return folder


class JsPeer:
    """Asks the process, and hands each answer to who asked. Made by `open_js_peer`."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.peer = ""
        self.addresses: tuple[str, ...] = ()
        self.version = ""  # of node
        self._asked = 0
        self._answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}

    async def do(self, deed: str, **arguments: Any) -> Any:
        """One of the deeds of peer.mjs. Raises JsError when it throws."""
        assert self.process.stdin is not None
        self._asked += 1
        number = self._asked
        give, answer = trio.open_memory_channel[dict[str, Any]](1)
        self._answers[number] = give
        line = json.dumps({"id": number, "do": deed, **arguments}).encode() + b"\n"
        await self.process.stdin.send_all(line)
        with trio.move_on_after(ANSWER_S):
            told = await answer.receive()
            if "error" in told:
                raise JsError(told["error"])
            return told["value"]
        raise JsError(f"{deed} was not done in {ANSWER_S:.0f} s")

    async def read(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service: ready when the process is."""
        assert self.process.stdout is not None
        data = bytearray()
        async for piece in self.process.stdout:
            data += piece
            *lines, data = data.split(b"\n")
            for line in lines:
                told = json.loads(line)
                if "id" in told:
                    self._answers.pop(told["id"]).send_nowait(told)
                else:
                    self.peer, self.version = told["peer"], told["version"]
                    self.addresses = tuple(told["addresses"])
                    task_status.started()


@asynccontextmanager
async def open_js_peer(folder: Path, *roles: str) -> AsyncIterator[JsPeer]:
    """A js-libp2p host on loopback; it ends with this.

    roles: "unsigned" for one whose gossip is not signed, "bare" for one without gossip and DHT,
    "relay" for one that relays, "hidden" for one that listens nowhere, "web" for one that speaks
    WebSockets alone.
    """
    script = folder / "peer.mjs"  # there, for that is where node looks for what it imports
    shutil.copy(HERE / "peer.mjs", script)
    node = folder / "node_modules" / ".bin" / "node"
    process = await trio.lowlevel.open_process(
        [str(node), str(script), *roles],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    js = JsPeer(process)
    try:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(READY_S):
                await nursery.start(js.read)
            yield js
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()  # type: ignore[union-attr]  # it has one
            with trio.move_on_after(END_S):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.stdout.aclose()  # type: ignore[union-attr]
