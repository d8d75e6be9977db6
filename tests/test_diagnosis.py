"""The doctor: each trouble is named, and with it what to do; where nothing is wrong it says so."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from potluck import __version__
from potluck.cli.main import main
from potluck.crypto.keys import IdentityKey
from potluck.node import doctor, report
from potluck.node.diagnosis import Facts, Knock, Source, diagnose
from potluck.node.doctor import look, look_at_home
from potluck.node.footing import GIB, Finding, Hub, Machine, Place, Wanted
from potluck.node.member import open_member
from potluck.node.net.nat import NatConfig
from potluck.node.net.observed import NatReport
from potluck.node.report import keep_report, load_report

MACHINE = Machine("0.1", "3.11", "Linux", "2.6", "", "cpu", 4, 8 * GIB)
PLACE = Place("/home/a", 0o700, "", 100 * GIB, "12D3A", "", "")
PUBLIC = NatReport("public", "none", (), ("/ip4/11.0.9.2/tcp/4001",), asked=3, reached=3)
PRIVATE = NatReport("private", "endpoint-independent", ("12D3R",), (), False, True, "closed", 3)


def network(nat: NatReport = PUBLIC, **more: Any) -> dict[str, Any]:
    return {
        "listens": ["/ip4/0.0.0.0/tcp/4001"], "nat": asdict(nat), "direct": 3, "relayed": 0,
        "relaying": {"reservations": 0, "circuits": 0, "served": 0}, "neighbours": [],
        "directory": 3, "clock": {"theirs_ahead_s": 0.1, "peers": 3},
    } | more  # fmt: skip


def well(**more: Any) -> Facts:
    """A node with which nothing is wrong."""
    knocks = (Knock("12D3B", "join", 0.02),)
    return replace(Facts(MACHINE, PLACE, 7, network=network(), knocks=knocks), **more)


def of(about: str, facts: Facts) -> Finding:
    (found,) = [one for one in diagnose(facts) if one.about == about]
    return found


def test_where_nothing_is_wrong_nothing_need_be_done() -> None:
    findings = diagnose(well())
    assert {one.verdict for one in findings} <= {"good", "note"}
    assert not any(one.remedy for one in findings)


def machine(**more: Any) -> Facts:
    return well(machine=replace(MACHINE, **more))


def place(**more: Any) -> Facts:
    return well(place=replace(PLACE, **more))


def seen(nat: NatReport = PRIVATE, **more: Any) -> Facts:
    return well(network=network(nat, **more))


def unanswered(source: Source) -> Facts:
    return well(knocks=(Knock("12D3B", source, None, "no"),))


@pytest.mark.parametrize(
    "about, verdict, remedy, facts",
    [
        ("device", "bad", "pip install", machine(torch="", fault="libcudart")),
        ("device", "warning", "free memory", machine(free_bytes=1 << 20)),
        ("memory", "warning", "--max-memory", machine(memory_bytes=8 * GIB, memory_free_bytes=1)),
        ("memory", "good", "", machine(memory_bytes=8 * GIB, memory_free_bytes=4 * GIB)),
        ("driver", "good", "", machine(driver="NVIDIA 550.54")),
        ("driver", "warning", "pytorch.org", machine(driver="NVIDIA 450", driver_fault="too old")),
        ("kernels", "warning", "C compiler", machine(kernels_fault="are missing")),
        ("kernels", "good", "", machine(kernels="avx2")),
        ("model", "bad", "as it says", well(model=Wanted("a", "is truncated"))),
        ("model", "bad", "nf4", well(model=Wanted("a", blocks=8, block_bytes=GIB))),
        ("model", "good", "", well(model=Wanted("a", blocks=8, block_bytes=GIB, fit=3))),
        ("model", "note", "", well(model=Wanted("a", here=False))),
        ("hub", "good", "", well(hub=Hub("h", took_s=0.1))),
        ("hub", "warning", "HF_ENDPOINT", well(hub=Hub("h", "no route"))),
        ("hub", "bad", "proxy", well(hub=Hub("h", "no route"), model=Wanted("a", here=False))),
        ("hub", "note", "", well(hub=Hub("h", off=True))),
        ("ports", "bad", "--port", well(network=None, port_fault="4001 is taken")),
        ("serving", "note", "", well(rest="resting: on battery")),
        ("home", "bad", "lsof", place(held=True)),
        ("home", "bad", "--home", place(fault="is no folder")),
        ("home", "warning", "chmod 700", place(mode=0o755)),
        ("home", "bad", "chmod 700", place(mode=0o777)),
        ("home", "note", "", place(mode=None)),
        ("disk", "bad", "free the disk", place(disk_free_bytes=1)),
        ("disk", "warning", "free some", place(disk_free_bytes=GIB)),
        ("identity", "bad", "as it says", place(key_fault="chmod 600 it")),
        ("identity", "note", "", place(peer="")),
        ("settings", "bad", "the line", place(config_fault="config.toml: no setting 'bann'")),
        ("node", "bad", "end it", well(network=None, hanging_s=400.0)),
        ("node", "warning", "start it anew", well(network=None, other_version="0.0.9")),
        ("node", "note", "", well(pid=0)),
        ("ports", "warning", "--listen 0.0.0.0", seen(listens=["/ip4/127.0.0.1/tcp/1"])),
        ("ports", "note", "", seen(listens=[])),
        ("NAT", "good", "", seen()),
        ("NAT", "warning", "UPnP", seen(replace(PRIVATE, kind="per-destination"))),
        ("NAT", "note", "", seen(replace(PRIVATE, kind="unknown"))),
        ("reachable", "note", "forward", seen()),
        ("reachable", "bad", "forward", seen(replace(PRIVATE, relays=()))),
        ("reachable", "note", "", seen(NatReport())),
        ("reachable", "good", "", seen(replace(PRIVATE, open=("ip6",)))),
        ("reachable", "note", "relay", seen(replace(PRIVATE, relays=(), open=("ip6",)))),
        ("port mapping", "good", "", seen(replace(PUBLIC, portmap="upnp", mapped=True))),
        ("port mapping", "note", "bridge", seen(replace(PRIVATE, portmap="upnp"))),
        ("port mapping", "note", "UPnP", seen(replace(PRIVATE, portmap="refused"))),
        ("port mapping", "note", "", seen(replace(PUBLIC, portmap="refused"))),
        ("relays", "good", "", seen()),
        ("relays", "warning", "join by", seen(replace(PRIVATE, relays=()))),
        ("relaying", "good", "", seen(relaying={"reservations": 2, "circuits": 1, "served": 9})),
        ("neighbours", "note", "", seen(neighbours=["12D3abcdefgh"])),
        ("IPv6", "good", "", well(hosts=["2a00:1450:4001::1", "192.168.1.5"])),
        ("join", "bad", "check the address", unanswered("join")),
        ("peer of the last run", "note", "", unanswered("last run")),
        ("own door", "bad", "firewall", unanswered("this node")),
        ("swarm", "bad", "online", unanswered("last run")),
        ("join", "note", "--join", well(knocks=())),
        ("clock", "bad", "set the clock", seen(clock={"theirs_ahead_s": -31.0, "peers": 1})),
        ("clock", "warning", "set the clock", seen(clock={"theirs_ahead_s": 6.0, "peers": 1})),
        ("clock", "note", "", seen(clock=None)),
    ],
)  # fmt: skip
def test_each_trouble_has_its_remedy(about: str, verdict: str, remedy: str, facts: Facts) -> None:
    found = of(about, facts)
    assert found.verdict == verdict
    assert remedy in found.remedy and bool(remedy) == bool(found.remedy)


def test_a_node_for_this_machine_alone_is_told_nothing_of_nats() -> None:
    told = {one.about for one in diagnose(seen(listens=["/ip4/127.0.0.1/tcp/1"]))}
    assert told.isdisjoint({"NAT", "reachable", "port mapping", "relays"})


def test_what_a_nat_does_is_told_in_full() -> None:
    told = of("NAT", seen()).told
    assert "endpoint-independent" in told and "port kept" in told and "dialed alone" in told


# ---- the home


def test_a_home_that_cannot_be_looked_at_is_told(tmp_path: Path) -> None:
    found = look_at_home(tmp_path / ("x" * 300))
    assert "too long" in found.fault and found.disk_free_bytes > 0


def test_a_home_is_looked_at_and_left_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert look_at_home(home).mode is None and not home.exists()
    home.mkdir(mode=0o755)
    (home / "config.toml").write_text("bann = []")
    (home / "identity.key").write_bytes(bytes(32))
    (home / "identity.key").chmod(0o644)
    found = look_at_home(home)
    assert found.mode == 0o755 and "chmod 600" in found.key_fault and "bann" in found.config_fault
    (home / "identity.key").chmod(0o600)
    assert look_at_home(home).peer == IdentityKey.from_bytes(bytes(32)).peer_id
    assert sorted(one.name for one in home.iterdir()) == ["config.toml", "identity.key"]


def test_a_home_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    assert "no folder" in look_at_home(tmp_path / "home").fault


# ---- the network


async def until_reported(home: Path) -> dict[str, Any]:
    with trio.fail_after(30):
        while True:
            told = load_report(home, 0.0)
            if told is not None and told["clock"] is not None:
                return told
            await trio.sleep(0.05)


async def test_a_running_node_is_asked_and_its_door_knocked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTLUCK_JOIN", "")
    monkeypatch.setattr(report, "CLOCK_SOON_S", 0.2)
    monkeypatch.setattr(report, "LOOK_S", 0.1)
    keys = [IdentityKey.from_bytes(letter * 32) for letter in (b"a", b"b")]
    here = "/ip4/127.0.0.1/tcp/0"
    nat = NatConfig(portmap=False, lan=False)
    async with (
        open_member(keys[0], listen=(here,), join=(), boot=1, serve=True, nat=nat) as entry,
        open_member(
            keys[1], listen=(here,), join=entry.host.addresses(), boot=1, serve=True, nat=nat
        ) as node,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(keep_report, tmp_path, node)
        told = await until_reported(tmp_path)
        assert told["peer"] == node.host.peer_id and told["direct"] == 1
        facts = await look(tmp_path, entry.host.addresses(), MACHINE)
        assert facts.pid == os.getpid() and facts.network is not None
        assert {one.source: one.took_s is None for one in facts.knocks} == {
            "join": False,
            "this node": False,
        }
        assert of("clock", facts).verdict == "good"
        assert of("connections", facts).verdict == "good"
        nursery.cancel_scope.cancel()
    assert not (tmp_path / report.REPORT).exists()


async def test_without_a_node_the_network_is_tried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "NEIGHBOURS_S", 0.0)
    monkeypatch.setattr(doctor, "SETTLE_S", 1.0)
    key = IdentityKey.from_bytes(b"a" * 32)
    nat = NatConfig(portmap=False, lan=False)
    here = ("/ip4/127.0.0.1/tcp/0",)
    async with open_member(key, listen=here, join=(), boot=1, serve=True, nat=nat) as entry:
        dead = f"/ip4/127.0.0.1/tcp/1/p2p/{IdentityKey.from_bytes(b'z' * 32).peer_id}"
        join = [*entry.host.addresses(), dead, "over there"]
        facts = await look(tmp_path, join, MACHINE)
    assert facts.pid == 0 and facts.network is not None
    assert [one.took_s is None for one in facts.knocks] == [False, True, True]
    assert of("clock", facts).verdict == "good"
    assert os.listdir(tmp_path) == []


def written(home: Path, **more: Any) -> None:
    told = network() | {"pid": os.getpid(), "version": __version__, "written_s": time.time()}
    (home / report.REPORT).write_text(json.dumps(told | more))


async def test_a_node_that_says_nothing_any_more_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, written_s=time.time() - 5)
    assert of("node", await look(tmp_path, (), MACHINE, alone=True)).verdict == "good"
    monkeypatch.setattr(doctor, "STALE_S", 1.0)
    facts = await look(tmp_path, (), MACHINE)
    assert facts.hanging_s >= 5 and of("node", facts).verdict == "bad"


async def test_what_a_dead_node_left_behind_is_no_node(tmp_path: Path) -> None:
    written(tmp_path, written_s=1.0)  # its pid is another process's by now
    assert (await look(tmp_path, (), MACHINE, alone=True)).pid == 0
    (tmp_path / report.REPORT).write_text("{")
    assert (await look(tmp_path, (), MACHINE, alone=True)).pid == 0


async def test_a_node_of_another_version_is_not_read(tmp_path: Path) -> None:
    written(tmp_path, version="0.0.9", nat="other")
    facts = await look(tmp_path, (), MACHINE, alone=True)
    assert of("node", facts).verdict == "warning" and facts.network is None


# ---- the command


def test_the_command_tells_what_is_bad_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTLUCK_JOIN", "")
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    assert main(["doctor", "--alone", "--home", str(home)]) == 0
    assert "✓  program" in capsys.readouterr().out
    (home / "config.toml").write_text("ban = 1")
    assert main(["doctor", "--alone", "--home", str(home), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [one["about"] for one in told["findings"] if one["verdict"] == "bad"] == ["settings"]
