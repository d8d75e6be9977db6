"""The command line: what it says, what it refuses, and what it exits with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest
import structlog
import trio
from checkpoints import save_random, save_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from potluck import __version__
from potluck.cli.answer import Told
from potluck.cli.edge import report, until_signalled
from potluck.cli.here import NATS, in_words
from potluck.cli.main import WELCOME, app, main
from potluck.cli.picture import Link, Picture
from potluck.cli.run import listen_address
from potluck.cli.talk import _fit
from potluck.dht.directory import ModelOffer
from potluck.dht.record import Announcement
from potluck.errors import (
    LocalError,
    MissingBlocks,
    PotluckError,
    Refused,
    TransportError,
    UserError,
)
from potluck.node.generation import Piece
from potluck.node.net.observed import Kind, NatReport, Reachability
from potluck.node.process import refuse_second
from potluck.swarm.blocks import BlockRange
from potluck.swarm.routing import Hop

PEER = "12D3KooWMhw8hzWY5GXwZviQPA9K6zwkQQSoLxUwhbjnMVpCEPaL"
NOWHERE = f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"
HEAVY = {"torch", "trio", "libp2p", "numpy", "rich", "structlog", "tokenizers", "psutil", "asyncio"}


def commands() -> list[list[str]]:
    """Every command that there is, as its words."""

    def walk(command: object, words: list[str]) -> Iterator[list[str]]:
        yield words
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, [*words, name])

    return list(walk(get_command(app), []))


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A command sets the level of the process's logs, which is other tests' process too."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def one_line(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was said on stderr, which has to be one line of ours."""

    def read() -> str:
        said = capsys.readouterr().err
        assert said.startswith("potluck: ") and said.count("\n") == 1, said
        return said

    return read


@pytest.fixture
def alarm() -> Iterator[None]:
    """A node that was to refuse, but serves, would go on for ever."""

    def ring(number: int, frame: object) -> None:
        raise TimeoutError("it was not refused")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(30)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---- what it says


def test_help_loads_nothing_that_computes_or_waits() -> None:
    """Loading torch takes seconds, and `--help` has 0.4 s on the slowest machine."""
    script = (
        "import sys; from potluck.cli.main import main; main(['--help']);"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "generate" in done.stdout
    assert HEAVY.isdisjoint(done.stderr.split())


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_has_help_with_an_example(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--help"]) == 0
    said = capsys.readouterr().out
    is_group = words in ([], ["testnet"], ["bench"])
    assert "Example" in said or (is_group and "Commands:" in said)
    for example in re.findall(r"^ +(?:cat .*\| )?potluck (.*)$", said, re.MULTILINE):
        assert any(example.split()[: len(known)] == known for known in commands())


def test_alone_it_shows_three_commands_to_copy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert said == WELCOME
    shown = re.findall(r"^  potluck (\w+)", said, re.MULTILINE)
    assert shown == ["demo", "testnet", "generate"]


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"potluck {__version__}\n"


# ---- how it ends


@pytest.mark.parametrize(
    "line",
    ["nod", "node", "generate -m demo", "generate x -m demo -n 0", "testnet", "testnet kill",
     "node -m demo --port 70000", "status --nonsense", "testnet up --nodes many"],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line_and_2(line: str, one_line: Callable[[], str]) -> None:
    assert main(line.split()) == 2
    assert "--help)" in one_line()


nested = st.recursive(
    st.sampled_from([UserError("a"), TransportError("b"), MissingBlocks("m", ((0, 2),))]),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(
        lambda errors: ExceptionGroup("group", errors)
    ),
)


@given(nested)
def test_however_deep_in_groups_an_expected_error_is_found(error: Exception) -> None:
    bad_input = "UserError" in repr(error)
    assert report(error) == (2 if bad_input else 1)


@pytest.mark.parametrize(
    "error, code",
    [
        (UserError("give another"), 2),
        (MissingBlocks("demo", ((2, 5),)), 1),
        (Refused("full", retry_after_s=1.0), 1),
        (PotluckError("a message\nof  two lines"), 1),
    ],
)
def test_an_expected_error_is_one_line(
    error: PotluckError, code: int, one_line: Callable[[], str]
) -> None:
    assert report(error) == code
    assert one_line() == f"potluck: {' '.join(str(error).split())}\n"


@pytest.mark.parametrize(
    "error", [ValueError("x"), LocalError("x"), ExceptionGroup("g", [UserError("y"), KeyError(1)])]
)
def test_our_own_fault_is_loud(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(error) == 70
    assert "Error" in capsys.readouterr().err


def test_ctrl_c_is_130_and_silent(capsys: pytest.CaptureFixture[str]) -> None:
    inside = BaseExceptionGroup("g", [KeyboardInterrupt(), ValueError("torn down in between")])
    assert report(KeyboardInterrupt()) == report(inside) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_cancels_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with until_signalled() as interruption:
        signal.raise_signal(number)
        await trio.sleep_forever()
    assert interruption.exit_code == 128 + number
    assert signal.getsignal(number) == before


async def test_without_a_signal_nothing_is_cancelled() -> None:
    with until_signalled() as interruption:
        await trio.lowlevel.checkpoint()
    assert interruption.exit_code == 0


def test_a_reader_that_leaves_is_no_fault() -> None:
    """`potluck ... | head -1`: no traceback, whoever wrote into the closed pipe."""
    script = (
        "import sys; from potluck.cli.edge import report\n"
        "try:\n  print('x' * 200_000, flush=True)\n"
        "except OSError as error: sys.exit(report(ExceptionGroup('g', [error])))"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


# ---- bad input


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    save_random(folder, "llama", vocab_size=300)
    save_tokenizer(folder)
    return folder


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize(
    "options, told",
    [
        (["--blocks", "2:9"], "0:3"),
        (["--blocks", "2:2"], "0:3"),
        (["--blocks", "two"], "START:STOP"),
        (["--device", "abacus"], "abacus"),
        (["--dtype", "fp7"], "fp32"),
        (["--listen", "home"], "0.0.0.0"),
        (["--listen", "/ip4/127.0.0.1/udp/1"], "TCP"),
        (["--join", NOWHERE], "nobody answers"),
        (["--join", "over there"], "cannot join by over there"),
        (["--log-level", "shout"], "debug"),
        (["--ban", "somebody"], "--ban somebody: neither a peer id"),
        (["--ban", "10.0.0.1/8"], "10.0.0.0/8"),
        (["--allow-only", "./nosuch.txt"], "--allow-only ./nosuch.txt"),
        (["--join", NOWHERE, "--ban", PEER], "ban list"),
    ],
)
def test_a_node_that_cannot_be_says_why(
    options: list[str],
    told: str,
    checkpoint: Path,
    tmp_path: Path,
    one_line: Callable[[], str],
) -> None:
    assert main(["node", "-m", str(checkpoint), "--home", str(tmp_path), *options]) == 2
    assert told in one_line()
    assert not (tmp_path / "node.json").exists()


@pytest.mark.usefixtures("alarm")
def test_a_port_in_use_is_named(
    checkpoint: Path, tmp_path: Path, one_line: Callable[[], str]
) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = ["node", "-m", str(checkpoint), "--home", str(tmp_path), "--port", port]
        assert main(line) == 2
    assert port in one_line()


@pytest.mark.usefixtures("alarm")
def test_a_key_that_others_can_read_is_refused(
    checkpoint: Path, tmp_path: Path, one_line: Callable[[], str]
) -> None:
    key = tmp_path / "identity.key"
    key.write_bytes(bytes(32))
    key.chmod(0o644)
    assert main(["node", "-m", str(checkpoint), "--home", str(tmp_path)]) == 2
    assert "chmod 600" in one_line()


@pytest.mark.parametrize(
    "line, told",
    [
        (["generate", "x", "-m", "demo"], "potluck testnet up"),
        (["generate", "x", "-m", "demo", "--join", NOWHERE], "nobody answers"),
        (["status"], "potluck testnet up"),
        (["models"], "potluck testnet up"),
        (["chat", "-m", "demo"], "potluck testnet up"),
        (["testnet", "up", "-m", "./nosuch"], "nosuch"),
        (["testnet", "up", "--nodes", "2", "--replicas", "3"], "--nodes 3"),
        (["testnet", "status"], "potluck testnet up"),
        (["testnet", "kill", "n1"], "potluck testnet up"),
        (["testnet", "logs", "n1"], "n1"),
    ],
)
def test_what_cannot_be_is_one_line_and_2(
    line: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_line: Callable[[], str],
) -> None:
    monkeypatch.delenv("POTLUCK_JOIN", raising=False)
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path))
    assert main(line) == 2
    assert told in one_line()


def test_a_second_node_of_one_home_is_refused(tmp_path: Path) -> None:
    running = tmp_path / "node.json"
    running.write_text(json.dumps({"pid": os.getpid()}))
    with pytest.raises(UserError, match=str(os.getpid())):
        refuse_second(tmp_path)


def test_what_a_killed_node_left_behind_is_no_second_node(tmp_path: Path) -> None:
    """Its pid is another process's now: one that was born after the file was written."""
    running = tmp_path / "node.json"
    running.write_text(json.dumps({"pid": os.getpid()}))
    os.utime(running, (1e9, 1e9))
    refuse_second(tmp_path)
    assert not running.exists()


# ---- the pieces


@pytest.mark.parametrize(
    "host, address",
    [
        ("0.0.0.0", "/ip4/0.0.0.0/tcp/7"),
        ("::1", "/ip6/::1/tcp/7"),
        ("/ip4/10.0.0.1/tcp/4001", "/ip4/10.0.0.1/tcp/4001"),
    ],
)
def test_where_to_listen_may_be_an_ip_address(host: str, address: str) -> None:
    assert listen_address(host, 7) == address


def test_facts_of_an_answer_are_what_came() -> None:
    route = (Hop("a" * 20, BlockRange(0, 2)), Hop("b" * 20, BlockRange(2, 3)))
    told = Told(finish="length")
    told.pieces = [
        Piece(token, 5 + token, text, seconds, route)
        for token, text, seconds in [(0, "I", 0.5), (1, "", 0.1), (2, " am", 0.3)]
    ]
    facts = json.loads(json.dumps(told.facts()))
    assert facts["text"] == "I am" and facts["tokens"] == [0, 1, 2]
    assert facts["time_to_first_token_s"] == 0.5
    assert facts["tokens_per_s"] == pytest.approx(2 / 0.4)
    assert [hop["blocks"] for hop in facts["route"]] == [[0, 2], [2, 3]]
    assert "5.0 tokens/s" in told.summary() and "2 hops" in told.summary()


def test_facts_of_an_answer_that_never_came_are_empty() -> None:
    facts = Told().facts()
    assert facts["text"] == "" and facts["finish"] == "failed"
    assert facts["tokens_per_s"] is None and facts["route"] == []


def announced(peer: str, start: int, stop: int) -> Announcement:
    return Announcement(
        model="0" * 64, name="m", start=start, stop=stop, blocks=6, state="online", device="cpu",
        dtype="float32", quantization="none", decode_tokens_s=100.0, prefill_tokens_s=200.0,
        addresses=(), cache_tokens_free=10, context_tokens_max=64, version="0",
        numerics="cpu fp32", peer=peer,
    )  # fmt: skip


def test_coverage_counts_who_can_be_reached_and_serves() -> None:
    spans = (
        announced("a", 0, 4),
        announced("b", 2, 5),
        announced("far", 0, 6),
        replace(announced("going", 5, 6), state="draining"),
    )
    direct = Link("direct", 0.001)
    links = {"a": direct, "b": direct, "going": direct, "far": Link("unreachable", None)}
    picture = Picture(ModelOffer("0" * 64, "m", 6, ("a", "b")), spans, links)
    assert picture.replicas == (1, 1, 2, 2, 1, 0)
    assert picture.missing == ((5, 6),)
    facts = json.loads(json.dumps(picture.facts()))
    assert facts["missing"] == [[5, 6]]
    assert [span["link"] for span in facts["spans"]].count("unreachable") == 1


def of_node(listens: str = "/ip4/0.0.0.0/tcp/1", **nat: object) -> str:
    told = {
        "listens": [listens],
        "nat": asdict(NatReport()) | nat,
        "relaying": {"reservations": 2},
        "direct": 3,
        "relayed": 1,
    }
    return in_words(told)


def test_a_node_tells_how_it_is_reached() -> None:
    """Whatever its NAT; whoever listens on this machine alone has none."""
    for reachability in get_args(Reachability):
        for kind in get_args(Kind):
            assert NATS[kind] in of_node(reachability=reachability, kind=kind)
    assert "through ...relay" in of_node(reachability="private", relays=("12D3...relay",))
    assert "by upnp" in of_node(mapped=True, portmap="upnp")
    assert of_node("/ip4/127.0.0.1/tcp/1").startswith("listens for this machine alone")
    assert of_node().endswith("3 peers directly, 1 over relays; relays for 2")


class OneTokenALetter:
    """A voice of a pretended model."""

    context = 30
    name = "letters"

    @property
    def text(self) -> OneTokenALetter:
        return self

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        return [0] * sum(len(message["content"]) for message in messages)


def test_a_conversation_that_grows_too_long_forgets_its_oldest_turns() -> None:
    said = [(role, letter * 10) for letter in "abc" for role in ("user", "assistant")]
    messages = [{"role": role, "content": text} for role, text in said[:-1]]
    ids, room = _fit(OneTokenALetter(), messages)  # type: ignore[arg-type]
    assert (len(ids), room) == (10, 20)
    assert [message["content"][0] for message in messages] == ["c"]


def test_what_is_too_long_even_alone_is_refused() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u" * 40}]
    with pytest.raises(UserError, match="shorten"):
        _fit(OneTokenALetter(), messages)  # type: ignore[arg-type]
    assert len(messages) == 2
