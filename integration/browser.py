"""A headless Chromium, driven by its own protocol: what a page shows, says and asks for.

    async with open_browser() as browser:
        async with browser.page(400, 800, dark=True) as page:
            await page.go(url); await page.until("document.title == 'Potluck'")

Source: the Chrome DevTools Protocol (Page, Runtime, Network, Log, Emulation).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

from .waiting import until

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_S = 30.0
CALL_S = 30.0
LOOK_S = 0.05


def chromium() -> str | None:
    """Where it is; None: this machine has none."""
    named = os.environ.get("POTLUCK_CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Page:
    """One tab. said: what its console and its log told that is a warning or worse. asked: every URL
    that it asked for."""

    browser: Browser
    session: str
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    async def call(self, method: str, **given: Any) -> Any:
        return await self.browser.call(method, self.session, **given)

    async def go(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def value(self, expression: str) -> Any:
        """Of JavaScript in the page."""
        told = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in told:
            raise AssertionError(told["exceptionDetails"])
        return told["result"].get("value")

    async def until(self, expression: str, within_s: float = 30.0) -> float:
        """Seconds until it holds."""
        began_s = trio.current_time()
        while not await self.value(f"Boolean({expression})"):
            if trio.current_time() > began_s + within_s:
                raise TimeoutError(f"{expression}: not within {within_s:.0f} s; {self.said}")
            await trio.sleep(LOOK_S)
        return trio.current_time() - began_s

    async def shot(self, place: Path) -> None:
        """All of the page, as a picture."""
        size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        told = await self.call(
            "Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1}
        )
        await trio.Path(place).write_bytes(base64.b64decode(told["data"]))

    def hear(self, method: str, told: Any) -> None:
        match method:
            case "Network.requestWillBeSent":
                self.asked.append(told["request"]["url"])
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.said.append(json.dumps(told["args"]))
            case "Runtime.exceptionThrown":
                self.said.append(json.dumps(told["exceptionDetails"]))
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.said.append(json.dumps(told["entry"]))


class Browser:
    """Made by `open_browser`."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self._socket = socket
        self._number = 0
        self._answers: dict[int, Any] = {}
        self._came = trio.Condition()
        self._pages: dict[str, Page] = {}

    async def call(self, method: str, session: str = "", **given: Any) -> Any:
        self._number += 1
        number = self._number
        told = {"id": number, "method": method, "params": given}
        await self._socket.send_message(
            json.dumps(told | ({"sessionId": session} if session else {}))
        )
        with trio.fail_after(CALL_S):
            async with self._came:
                while number not in self._answers:
                    await self._came.wait()
        answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    async def read(self) -> None:
        """A service: what the browser tells."""
        while True:
            try:
                told = json.loads(await self._socket.get_message())
            except ConnectionClosed:
                return
            if "id" in told:
                async with self._came:
                    self._answers[told["id"]] = told
                    self._came.notify_all()
            elif (page := self._pages.get(told.get("sessionId", ""))) is not None:
                page.hear(told["method"], told["params"])

    @asynccontextmanager
    async def page(self, width: int, height: int, *, dark: bool = False) -> AsyncIterator[Page]:
        made = await self.call("Target.createBrowserContext")
        context = made["browserContextId"]
        target = await self.call("Target.createTarget", url="about:blank", browserContextId=context)
        joined = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = self._pages[joined["sessionId"]] = Page(self, joined["sessionId"])
        for domain in ("Page", "Runtime", "Network", "Log"):
            await page.call(f"{domain}.enable")
        await page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 700,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await page.call("Emulation.setEmulatedMedia", features=[scheme])
        try:
            yield page
        finally:
            with trio.CancelScope(shield=True):
                await self.call("Target.disposeBrowserContext", browserContextId=context)


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """Its own profile, its own process; both gone when this is left."""
    with _running() as url:
        async with (
            open_websocket_url(url, max_message_size=64 << 20) as socket,
            trio.open_nursery() as nursery,
        ):
            browser = Browser(socket)
            nursery.start_soon(browser.read)
            yield browser
            nursery.cancel_scope.cancel()


@contextmanager
def _running() -> Iterator[str]:
    """Where it listens."""
    program = chromium()
    assert program is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            program, "--headless", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
            "--no-sandbox",  # which cannot be made as root in a container
            "--disable-background-networking", "--remote-debugging-port=0",
            f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        quiet = subprocess.DEVNULL
        with subprocess.Popen(
            command, stdout=quiet, stderr=quiet, start_new_session=True
        ) as process:
            try:
                port = Path(profile) / "DevToolsActivePort"
                until(lambda: port.exists() and port.read_text().count("\n") >= 1, START_S)
                number, path = port.read_text().split("\n")[:2]
                yield f"ws://127.0.0.1:{number}{path}"
            finally:
                os.killpg(process.pid, signal.SIGKILL)
