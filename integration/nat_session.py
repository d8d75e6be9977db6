"""A session that begins over a relay and goes on directly, with the real commands.

Three `potluck bootstrap` on the internet, `potluck node -m demo` behind one NAT, and
`potluck generate` behind another. The text must be that of a session that was direct all along, and
the session must have moved, at a token that is not the first: `python -m integration.nat_session`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .nat_ground import ROOT, Ground, Kind, open_ground

PROMPT = "The function returns"
TOKENS = 200
BOOTSTRAPS = 3
GENERATE_S = 60.0
POTLUCK = [str(Path(sys.executable).parent / "potluck")]


def start(stack: ExitStack, ground: Ground, name: str, logs: Path, *arguments: str) -> str:
    """A command that says as JSON when it is ready, in a namespace; its first address."""
    command = ground.command(f"{ground.prefix}{name}", [*POTLUCK, *arguments, "--json"])
    errors = stack.enter_context((logs / f"{name}.log").open("w"))
    process = stack.enter_context(
        subprocess.Popen(
            [*command, "--home", str(logs / name)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True,
        )
    )  # fmt: skip
    stack.callback(process.terminate)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{name} ended: {(logs / f'{name}.log').read_text()[-500:]}")
    addresses = json.loads(line)["addresses"]
    return next((one for one in addresses if "/127.0.0.1/" not in one), addresses[0])


def generate(ground: Ground, name: str, home: Path, join: list[str], tokens: int) -> dict[str, Any]:
    arguments = ["generate", PROMPT, "-m", "demo", "-n", str(tokens), "--json", "--home", str(home)]
    for address in join:
        arguments += ["--join", address]
    done = subprocess.run(
        ground.command(f"{ground.prefix}{name}", [*POTLUCK, *arguments]),
        cwd=ROOT, capture_output=True, text=True, timeout=GENERATE_S,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"generate in {name}: {done.stderr[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(
    left: Kind = "port", right: Kind = "port", *, rtt_s: float = 0.04, runs: int = 3,
    tokens: int = TOKENS, logs: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Sessions from `left` to a node behind `right`: whether they moved, and lost nothing."""
    with TemporaryDirectory(prefix="potluck-nat-") as folder, open_ground(rtt_s) as ground:
        place = logs or Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            join: list[str] = []
            for number in range(BOOTSTRAPS):
                name = f"public{number}"
                more = [part for address in join for part in ("--join", address)]
                listen = ("--listen", ground.public(name), "--port", "4001")
                join.append(start(stack, ground, name, place, "bootstrap", *listen, *more))
            ground.home("right", right)
            ground.home("left", left)
            more = [part for address in join for part in ("--join", address)]
            serving = start(
                stack, ground, "right", place,
                "node", "-m", "demo", "--listen", "0.0.0.0", "--port", "4001", "--threads", "1",
                "--log-level", "debug", *more,
            )  # fmt: skip
            near = [f"/ip4/192.168.1.2/tcp/4001/p2p/{serving.rsplit('/', 1)[1]}"]
            expected = generate(ground, "right", place / "near", near, tokens)
            found = [generate(ground, "left", place / "far", join, tokens) for _ in range(runs)]
    return {
        "left": left,
        "right": right,
        "rtt_ms": rtt_s * 1e3,
        "runs": [_facts(one, expected) for one in found],
        "moved": sum(any(lost["moved"] for lost in one["recoveries"]) for one in found),
        "equal": sum(one["text"] == expected["text"] for one in found),
    }


def _facts(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """When it moved, and what the reader saw of it: the longest wait for a token after the first"""
    moved = [lost["after_s"] for lost in found["recoveries"] if lost["moved"]]
    gaps = found["seconds"]
    times = list(accumulate(gaps))
    return {
        "tokens": len(found["tokens"]),
        "equal": found["text"] == expected["text"],
        "exact": found["exact"],
        "moved_after_s": moved,
        "tokens_before": [sum(at < when for at in times) for when in moved],
        "longest_gap_ms": round(1e3 * max(gaps[1:], default=0.0), 1),
        "first_s": found["time_to_first_token_s"],
        "tokens_per_s": found["tokens_per_s"],
        "losses": [lost["reason"] for lost in found["recoveries"] if not lost["moved"]],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--left", default="port")
    parser.add_argument("--right", default="port")
    parser.add_argument("--rtt-ms", type=float, default=40.0)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--logs", type=Path)
    asked = parser.parse_args()
    found = measure(
        asked.left, asked.right, rtt_s=asked.rtt_ms / 1e3, tokens=asked.tokens, logs=asked.logs
    )
    print(json.dumps(found, indent=1))
    return 0 if found["equal"] == len(found["runs"]) else 1


if __name__ == "__main__":
    sys.exit(main())
