"""What the page is told: the newest of each part, to each who looks; nothing while nobody does."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from api_fakes import PretendedSwarm, ask, complaint
from receipts import key
from test_words import MODEL
from trio.testing import MockClock, wait_all_tasks_blocked

from potluck.dht.directory import ModelOffer
from potluck.errors import TransportError
from potluck.node.api.app import Api
from potluck.node.api.asking import Guard
from potluck.node.api.http import ClientGone
from potluck.node.dashboard import watch as watch_module
from potluck.node.dashboard.ledger import join_facts, trust_facts
from potluck.node.dashboard.page import POLICY, Page, load_static
from potluck.node.dashboard.sight import LOOK_S, Sight
from potluck.node.dashboard.watch import SAMPLES_MAX, Watch
from potluck.swarm.reputation import Score

OFFER = ModelOffer(MODEL, "<b>demo</b>", 8, ("a", "b"))


def span(peer: str, start: int, stop: int, state: str = "online") -> Any:
    return SimpleNamespace(
        peer=peer, model=MODEL, start=start, stop=stop, blocks=8, state=state, device="cpu",
        version="1", decode_tokens_s=80.0, asked_tokens_s=0.0, cache_tokens_free=9,
        addresses=(f"/ip4/192.0.2.1/tcp/1/p2p/{peer}",),
    )  # fmt: skip


@dataclass
class Host:
    """up: who can be reached. linked: who is connected."""

    up: set[str] = field(default_factory=set)
    linked: set[str] = field(default_factory=set)
    knocks: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    peer_id: str = "me"

    def best(self, peer: str) -> object:
        return peer if peer in self.linked else None

    def relay_of(self, peer: str) -> str | None:
        return "r" if peer == "relayed" else None

    def rtt_s(self, peer: str) -> float:
        return 0.01

    def keep(self, why: str, peers: set[str]) -> None:
        self.kept = peers

    def connected(self) -> tuple[str, ...]:
        return tuple(self.linked)

    async def connect(self, addresses: Any) -> None:
        peer = addresses[0].rpartition("/")[2]
        self.knocks.append(peer)
        await trio.sleep(0.01)
        if peer not in self.up:
            raise TransportError("refused")
        self.linked.add(peer)

    def kill(self, peer: str) -> None:
        self.up.discard(peer)
        self.linked.discard(peer)


class Seen:
    """A swarm as the page sees it."""

    def __init__(self, *spans: Any) -> None:
        self.host = Host({one.peer for one in spans})
        self.spans = spans
        self.member = SimpleNamespace(
            host=self.host, directory=SimpleNamespace(peers=lambda: ("a",))
        )
        self.router = self
        self.trust = SimpleNamespace(banned=lambda peer: peer == "banned", scores=lambda: ())
        self.reads = 0

    async def models(self) -> tuple[ModelOffer, ...]:
        return (OFFER,)

    async def announcements(self, model: str, *, within_s: float) -> Any:
        self.reads += 1
        return self.spans


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread would race a clock that jumps."""

    async def here(call: Callable[[], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        return call()

    monkeypatch.setattr(watch_module.trio.to_thread, "run_sync", here)


@asynccontextmanager
async def watching(seen: Seen, home: Path) -> AsyncIterator[Watch]:
    jobs: Any = SimpleNamespace(all=lambda: [])
    watch = Watch(seen, Sight(seen, {}), jobs, home=home)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        yield watch
        nursery.cancel_scope.cancel()


async def newest(watch: Watch, part: str, holds: Callable[[Any], bool]) -> Any:
    with watch.page():
        async with aclosing(watch.news(trio.Event())) as news:
            async for text in news:
                told = json.loads(text)
                if told["part"] == part and holds(told["facts"]):
                    return told["facts"]
    raise AssertionError("it ended")


async def test_a_killed_peer_is_out_of_the_picture_in_a_second(
    autojump_clock: MockClock, disk: None, tmp_path: Path
) -> None:
    seen = Seen(span("a", 0, 8), span("b", 0, 4), span("relayed", 4, 8), span("banned", 0, 8))
    async with watching(seen, tmp_path) as watch:
        whole = await newest(watch, "swarm", lambda told: told["peers"] and all(
            one["road"] != "unknown" for one in told["peers"]))  # fmt: skip
        assert whole["models"][0]["replicas"] == [2] * 8
        roads = {one["peer"]: one["road"] for one in whole["peers"]}
        assert roads == dict.fromkeys(("a", "b", "banned"), "direct") | {"relayed": "relayed"}
        began_s = trio.current_time()
        with watch.page():
            seen.host.kill("a")
            seen.host.kill("relayed")
            await newest(
                watch,
                "swarm",
                lambda told: told["models"] and told["models"][0]["missing"] == [[4, 8]],
            )
        assert trio.current_time() - began_s <= 2 * LOOK_S


async def test_who_stays_away_is_asked_ever_less_and_is_back_when_it_answers(
    autojump_clock: MockClock, disk: None, tmp_path: Path
) -> None:
    seen = Seen(span("a", 0, 8))
    seen.host.kill("a")
    async with watching(seen, tmp_path) as watch:
        with watch.page():
            await trio.sleep(300)
            assert 5 < len(seen.host.knocks) < 20
            seen.host.up.add("a")
            told = await newest(watch, "swarm", lambda told: told["peers"][0]["road"] == "direct")
            assert told["models"][0]["missing"] == []
            assert seen.host.kept == {"a"}


async def test_while_nobody_looks_nothing_is_asked_of_anybody(
    autojump_clock: MockClock, disk: None, tmp_path: Path
) -> None:
    seen = Seen(span("a", 0, 8))
    async with watching(seen, tmp_path) as watch:
        await trio.sleep(60)
        assert (seen.reads, seen.host.knocks) == (0, [])
        for _ in range(3):  # and again, however often it opens
            await newest(watch, "swarm", lambda told: bool(told["peers"]))
            await trio.sleep(60)
            reads = seen.reads
            await trio.sleep(60)
            assert seen.reads == reads and seen.host.kept == set()


async def test_throughput_has_its_past_when_a_page_opens(
    autojump_clock: MockClock, disk: None, tmp_path: Path
) -> None:
    made = 0.0

    async with watching(Seen(span("a", 0, 8)), tmp_path) as watch:
        watch.counts(lambda: made, lambda: 0)
        await trio.sleep(10.5)
        made = 50.0
        await trio.sleep(10)
        told = await newest(watch, "counts", lambda told: True)
        assert len(told["tokens_s"]) == SAMPLES_MAX and max(told["tokens_s"]) == 50.0
        assert math.isclose(sum(told["tokens_s"]), 50.0) and told["tokens"] == 50


async def test_a_page_needs_the_key_for_what_it_is_told_and_for_nothing_else(
    autojump_clock: MockClock, disk: None, tmp_path: Path
) -> None:
    stopping = trio.Event()
    async with watching(Seen(span("a", 0, 8)), tmp_path) as watch:
        page = Page(watch, stopping, keyed=True)
        api = Api(PretendedSwarm(), Guard(("k",), here=False), more=page.routes())
        for path in ("/", "/dashboard", "/dashboard/page.js", "/dashboard/icon.svg"):
            answer = await ask(api, path)
            assert answer.status == 200 and answer.headers["content-security-policy"] == POLICY
        assert b'data-keyed="yes"' in (await ask(api, "/")).body
        complaint(await ask(api, "/dashboard/events"), 401)
        complaint(await ask(api, "/dashboard/other.js"), 404)
        complaint(await ask(api, "/dashboard/..%2Fpage.py"), 404)
        keyed = {"authorization": "Bearer k"}
        with pytest.raises(ClientGone):
            await ask(api, "/dashboard/events", headers=keyed, leave_after=3)
        assert watch.pages == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial_ask(api, keyed))
            await wait_all_tasks_blocked()
            stopping.set()  # and the page is let go


def partial_ask(api: Api, headers: dict[str, str]) -> Callable[[], Any]:
    async def asking() -> None:
        answer = await ask(api, "/dashboard/events", headers=headers)
        assert answer.body.endswith(b'data: {"part":"end","facts":null}\n\n')

    return asking


async def test_more_pages_than_may_be_open_are_told_to_come_back(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, disk: None, tmp_path: Path
) -> None:
    monkeypatch.setattr("potluck.node.dashboard.page.PAGES_MAX", 1)
    async with watching(Seen(span("a", 0, 8)), tmp_path) as watch:
        api = Api(PretendedSwarm(), more=Page(watch, trio.Event(), keyed=False).routes())
        with watch.page():
            assert complaint(await ask(api, "/dashboard/events"), 429)["code"] == "pages_full"


def test_the_page_asks_nobody_else_and_has_no_script_of_its_own_in_it() -> None:
    static = load_static()
    assert {"index.html", "page.css", "page.js", "icon.svg"} <= static.keys()
    for name, (_, content) in static.items():
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert (
            "http:" not in text and "https:" not in text and "//" not in text.split("url(")[1:]
        ), name
        assert "innerHTML" not in text and "@import" not in text, name
    index = static["index.html"][1].decode()
    assert (
        index.count("<script") == 1
        and "style=" not in index
        and " on" not in index.split("<body")[0]
    )


def test_what_audits_found_is_told_of_those_that_were_audited_most() -> None:
    scores = [Score(f"p{at}", good=float(at), until_s=10.0 if at == 3 else 0.0) for at in range(99)]
    told = trust_facts(scores, 5.0)
    assert [one["peer"] for one in told[:2]] == ["p98", "p97"] and len(told) == 64
    assert trust_facts(scores[3:4], 5.0)[0]["banned"]


def test_how_to_join_is_told_and_no_token_is(tmp_path: Path) -> None:
    peer = key("alice").peer_id
    far, here = (f"/ip4/{host}/tcp/4001/p2p/{peer}" for host in ("198.51.100.7", "127.0.0.1"))
    assert join_facts(tmp_path, ()) == {"private": False, "line": None, "here": False}
    (tmp_path / "node.json").write_text(json.dumps({"addresses": [here, far]}))
    assert join_facts(tmp_path, ())["line"] == f"potluck node -m auto --join {far}"
    (tmp_path / "node.json").write_text(json.dumps({"addresses": [here]}))
    assert join_facts(tmp_path, ())["here"]
