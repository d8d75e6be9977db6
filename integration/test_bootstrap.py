"""The light node, as a process: small, without torch, gone when asked, remembered by others."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potluck.dht.known import from_bytes
from potluck.node.peerstore import PEERS

from .ground import ENVIRONMENT, POTLUCK, memory_of

MEMORY_MAX_MIB = 110.0
END_S = 10.0
JOIN_S = 10.0  # of a dial that is not answered


@contextmanager
def open_bootstrap(
    home: Path, *options: str, join: Sequence[str] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    command = [*POTLUCK, "bootstrap", "--home", str(home), "--json", *options]
    command += [part for address in join for part in ("--join", address)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, **ENVIRONMENT}
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, "it did not start: it says why on stderr"
            yield process, json.loads(line)
        finally:
            process.kill()


def test_it_is_small_and_ends_when_asked(tmp_path: Path) -> None:
    with open_bootstrap(tmp_path) as (process, told):
        assert told["known"] == 0 and told["addresses"][0].endswith(told["peer"])
        assert memory_of(process.pid).rss < MEMORY_MAX_MIB
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "torch" not in maps
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_S) == 0
    assert not (tmp_path / "node.json").exists()


def test_while_it_joins_it_ends_when_asked(tmp_path: Path) -> None:
    """Whom it joins by takes the connection and says nothing: a dial waits ten seconds for that."""
    peer = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        command = [*POTLUCK, "bootstrap", "--home", str(tmp_path)]
        command += ["--join", f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}"]
        with subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}) as process:
            try:
                silent.settimeout(END_S)
                with silent.accept()[0]:
                    asked_s = time.monotonic()
                    process.send_signal(signal.SIGTERM)
                    process.wait(END_S)
                    assert time.monotonic() - asked_s < JOIN_S / 2
            finally:
                process.kill()


def test_torch_is_never_imported() -> None:
    """Whatever a light node imports, in an interpreter in which torch cannot be."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import potluck.cli.commands, potluck.cli.bootstrap, potluck.node.bootstrap\n"
        "heavy = {'torch', 'transformers', 'safetensors', 'numpy'} & set(sys.modules)\n"
        "assert heavy == {'torch'}, heavy"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_a_restart_joins_without_the_one_it_joined_by(tmp_path: Path) -> None:
    """a is the bootstrap, b and c join by it; a ends for good, and b comes back all the same."""
    a, b, c = (tmp_path / name for name in "abc")
    with open_bootstrap(c) as (_, third):
        with open_bootstrap(a, join=third["addresses"]) as (entry, first):
            with open_bootstrap(b, join=first["addresses"]) as (process, told):
                assert told["known"] == 2
                process.send_signal(signal.SIGINT)
                assert process.wait(END_S) == 0
            entry.send_signal(signal.SIGKILL)
            entry.wait(END_S)
        known = {one.peer for one in from_bytes((b / PEERS).read_bytes())}
        assert known == {first["peer"], third["peer"]}
        began_s = time.monotonic()
        with open_bootstrap(b) as (_, told):
            assert told["known"] == 1
            assert time.monotonic() - began_s < 8.0
        with open_bootstrap(b, join=first["addresses"]) as (_, told):
            assert told["known"] == 1  # who was named is gone, and another known one answers


def test_a_pinned_peer_is_joined_by_and_one_that_is_away_keeps_nobody_out(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    with open_bootstrap(a) as (entry, first):
        with open_bootstrap(b, "--pin", first["addresses"][0]) as (_, told):
            assert told["known"] == 1
        entry.kill()
        entry.wait()
        with open_bootstrap(c, "--pin", first["addresses"][0]) as (_, told):
            assert told["known"] == 0  # the first of its swarm


def test_a_second_process_of_one_home_is_refused_in_one_line(tmp_path: Path) -> None:
    with open_bootstrap(tmp_path):
        (tmp_path / "node.json").unlink()  # whatever else says that it runs
        done = subprocess.run(
            [*POTLUCK, "bootstrap", "--home", str(tmp_path)],
            capture_output=True, text=True, env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1 and "give this one a --home" in done.stderr
