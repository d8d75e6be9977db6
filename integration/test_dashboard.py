"""The page in a real browser, over real daemons: what it shows, what it asks for, what it follows.

With POTLUCK_SHOTS=FOLDER its pictures are kept there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import trio

from potluck.node.library import DEMO_FOLDER
from potluck.node.testnet.launcher import LocalSwarm, Plan, open_testnet

from .browser import Browser, Page, chromium, open_browser
from .ground import POTLUCK

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium here: apt-get install chromium, or POTLUCK_CHROMIUM"
)

KEY = "secret"
PEERS = "document.querySelectorAll('.plate').length"
WHOLE = "document.querySelector('.model .whole') !== null"
GAP = "document.querySelector('.model .gap')?.textContent ?? ''"
LIVE = "document.getElementById('live')?.dataset.state === 'live'"
WIDER = "document.documentElement.scrollWidth > innerWidth"
FOLLOWS_S = 2.0  # bar 3 of issue H


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    """Three nodes: blocks 0:4 twice, 4:8 once."""
    home = tmp_path_factory.mktemp("home")
    with open_testnet(
        Plan(home=home, source=str(DEMO_FOLDER), name="demo", blocks=8, nodes=2)
    ) as net:
        net.add("n3", 0, 4)
        net.restart("n3")
        yield net


@contextmanager
def open_api(home: Path, key: str = "") -> Iterator[str]:
    """Its URL, without /v1."""
    command = [*POTLUCK, "api", "--port", "0", "--json", "--home", str(home)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"POTLUCK_API_KEY": key} if key else {})
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            assert process.stdout is not None
            yield str(json.loads(process.stdout.readline())["url"]).removesuffix("v1")
        finally:
            process.terminate()
        assert process.wait(20) == 0


async def looks_well(page: Page, url: str, name: str) -> None:
    """No error, no stranger asked, nothing beyond the edge; and a picture of it."""
    assert not await page.value(WIDER)
    assert page.said == []
    origins = {urlsplit(one)[:2] for one in page.asked}
    assert origins == {urlsplit(url)[:2]}, page.asked
    if folder := os.environ.get("POTLUCK_SHOTS"):
        await page.shot(Path(folder) / f"{name}.png")


async def test_the_page_shows_the_swarm_and_follows_a_kill(net: LocalSwarm) -> None:
    home = net.roster.folder.parent
    with open_api(home) as url:
        async with open_browser() as browser:
            for width, dark in ((1400, False), (400, False), (400, True), (1400, True)):
                async with browser.page(width, 900, dark=dark) as page:
                    await page.go(url)
                    await page.until(f"{PEERS} === 3 && {WHOLE} && {LIVE}")
                    if (width, dark) == (1400, False):
                        await _chats(page)
                        await _flows(page, url)
                    await looks_well(page, url, f"page-{width}-{'dark' if dark else 'light'}")
            await _policy_holds(browser, url)
            async with browser.page(1400, 900) as page:
                await page.go(url)
                await page.until(f"{PEERS} === 3 && {WHOLE}")
                net.send("n2", signal.SIGKILL)
                took_s = await page.until(f"{GAP}.includes('4:8')", FOLLOWS_S + 10)
                await looks_well(page, url, "page-killed")
                assert took_s <= FOLLOWS_S
                assert "unreachable" in await page.value(
                    "[...document.querySelectorAll('.plate')].map((p) => p.dataset.road).join()"
                )


async def _chats(page: Page) -> None:
    """A word is said by hand, and answered by the swarm."""
    await page.until("document.getElementById('model').value === 'demo'")
    await page.value("document.getElementById('words').focus()")
    await page.call("Input.insertText", text="What does len do?")
    await page.value("document.getElementById('ask').requestSubmit()")
    await page.until("document.querySelector('.line[data-role=assistant] small') !== null")
    said = await page.value("document.querySelector('.line[data-role=assistant]').textContent")
    assert "tokens" in said and "a second" in said and len(said) > 30


async def _flows(page: Page, url: str) -> None:
    """An answer of another client is drawn hop by hop, and gone when it ends."""

    def ask(stopped: threading.Event) -> None:
        with openai.OpenAI(base_url=f"{url}v1", api_key="none", max_retries=0) as client:
            body: Any = {"model": "demo", "prompt": "The", "max_tokens": 900, "stream": True}
            with client.completions.create(**body, extra_body={"ignore_eos": True}) as stream:
                for _ in stream:
                    if stopped.is_set():
                        return

    stopped = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, ask, stopped)
        try:
            await page.until(
                "(document.querySelector('.flow')?.getAttribute('d') ?? '').length > 9"
            )
            await page.until("Number(document.getElementById('rate').textContent) > 0")
        finally:
            stopped.set()
    await page.until("document.querySelector('.flow') === null")


async def _policy_holds(browser: Browser, url: str) -> None:
    """What a stranger's words would do as markup is not done, nor what a script would load."""
    async with browser.page(800, 600) as page:
        await page.go(url)
        await page.until(LIVE)
        await page.value(
            "(() => { const s = document.createElement('img'); s.src = 'http://example.invalid/';"
            " document.body.append(s); })()"
        )
        refused = await page.value(
            "fetch('http://example.invalid/').then(() => 'went', () => 'refused')"
        )
        assert refused == "refused"
        assert any("Content Security Policy" in one for one in page.said)


async def test_with_a_key_the_page_asks_for_it(net: LocalSwarm) -> None:
    with open_api(net.roster.folder.parent, KEY) as url:
        async with open_browser() as browser, browser.page(400, 800, dark=True) as page:
            await page.go(url)
            await page.until("document.getElementById('key')?.hidden === false")
            assert await page.value("document.getElementById('board').hidden")
            assert not any("events" in one for one in page.asked)
            await looks_well(page, url, "page-key")
            await page.value("document.getElementById('secret').focus()")
            await page.call("Input.insertText", text=KEY)
            await page.value("document.getElementById('key').requestSubmit()")
            await page.until(LIVE)
            await page.go(url)  # it is kept for this tab
            await page.until(LIVE)
            assert page.said == []
            assert all(KEY not in one for one in page.asked)
