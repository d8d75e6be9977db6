"""What a person or a peer can get wrong in a run: one clear line each, and nothing is lost."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from checkpoints import save_random, save_tokenizer
from sim.memory_host import MemoryStream
from sim.run_world import run_world, terms_of
from test_run_tuning import ADAPTER, tuner
from trio.testing import MockClock

from potluck.cli.main import main
from potluck.crypto.codec import encode
from potluck.errors import RemoteError, TransportError, UserError
from potluck.node.compute import folders
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.tuning import Tuner
from potluck.node.letters import send_letter
from potluck.node.library import find_model
from potluck.node.runs.finetune import load_plan, save_adapter
from potluck.swarm.run.statement import LETTER_BYTES_MAX, PROTOCOL, Part, Told, state

RUN = """name = "tales"
model = "{model}"
{adapter}
[data]
files = ["tales.jsonl"]
tokens = 8
"""


def write(folder: Path, *, model: str = "demo", adapter: str = "", lines: str = "") -> Path:
    text = {"text": "The function returns a list of names. " * 20}
    (folder / "tales.jsonl").write_text(lines or json.dumps(text) + "\n", encoding="utf-8")
    file = folder / "tales.toml"
    file.write_text(RUN.format(model=model, adapter=adapter), encoding="utf-8")
    return file


def refused(folder: Path, file: Path, one_line: Callable[[], str]) -> str:
    """What `potluck finetune` says of it."""
    assert main(["finetune", str(file), "--home", str(folder / "home"), "--where", "here"]) == 2
    assert not file.with_suffix("").exists(), "no adapter was begun"
    return one_line()


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ('[adapter]\ntargets = ["nope"]', "nope"),
        ("[adapter]\nblocks = [99]", "99"),
        ("[adapter]\nrank = 4096", "adapter.rank is 4096"),
    ],
)
def test_an_adapter_that_the_model_has_no_place_for_is_named(
    tmp_path: Path, one_line: Callable[[], str], adapter: str, said: str
) -> None:
    assert said in refused(tmp_path, write(tmp_path, adapter=adapter), one_line)


def test_a_tokenizer_that_nobody_knows_is_named(
    tmp_path: Path, one_line: Callable[[], str]
) -> None:
    model = tmp_path / "model"
    save_random(model, "llama")
    save_tokenizer(model)
    (model / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")
    file = write(tmp_path, model=str(model))
    assert "not a tokenizer" in refused(tmp_path, file, one_line)
    (model / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refused(tmp_path, file, one_line)


def test_a_line_that_is_malformed_is_named_by_file_and_number(
    tmp_path: Path, one_line: Callable[[], str]
) -> None:
    lines = '{"text": "fine"}\n\n{"text": \n{"body": "x"}\n'
    told = refused(tmp_path, write(tmp_path, lines=lines), one_line)
    assert "tales.jsonl: line 2 is empty, line 3 is not JSON, line 4 has no text" in told


@pytest.mark.parametrize("clip", [1.0, 0.0])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_gradients_that_are_none_are_refused_and_nothing_has_changed(
    bad: float, clip: float
) -> None:
    one: Tuner = tuner(clip=clip)
    one.step((0, 1), 1e-2)
    before, kept = one.weights(), one.carried()
    name = one.flat.names[0]
    hook = one._ups[name].register_hook(lambda grad: grad * bad)
    with pytest.raises(UserError, match="infinite or no number") as told:
        one.step((2, 3), 1e-2)
    assert "\n" not in str(told.value)
    assert torch.equal(one.weights(), before)
    hook.remove()
    one.step((2, 3), 1e-2)
    other = tuner(clip=clip)
    other.carry_on(kept)
    other.step((2, 3), 1e-2)
    assert torch.equal(one.weights(), other.weights()), "as if it had never been"
    assert ADAPTER.rank == 4


async def test_a_member_that_sends_gigabytes_is_left_and_the_others_are_heard(
    autojump_clock: MockClock,
) -> None:
    """It signs for weights of the run's size, and sends parts of them without end."""
    sent, wanted = 0, terms_of(asked=3, liars=1)
    part = encode(Part(bytes(4096)))
    assert len(part) < LETTER_BYTES_MAX

    async def flood(stream: MemoryStream) -> None:
        nonlocal sent
        told = state(flooder.key, wanted.run, 0, 1, bytes(flooder.mixer.size))
        with suppress(TransportError):
            await send_letter(stream, encode(Told(told.raw)))
            while True:
                await send_letter(stream, part)
                sent += len(part)

    async with run_world(4, wanted) as world:
        flooder = world.peers[3]
        flooder.host.handle(PROTOCOL, flood)
        honest = world.peers[:3]
        async with trio.open_nursery() as nursery:
            for at, peer in enumerate(honest):
                nursery.start_soon(peer.exchange, 0, 1.0 + at)
        blamed = [found for one in honest for found in one.host.blamed]
    assert 0 < sent < 100 * len(part), "nobody reads on"
    assert {peer for peer, _ in blamed} == {flooder.key.peer_id}
    assert {type(error) for _, error in blamed} == {RemoteError}
    assert all(float(one.mixer.anchor[0]) > 0 for one in honest), "they have each other's"


class Saves:
    """What a Tuner does of it."""

    def __init__(self, said: str) -> None:
        self.said = said

    def save(self, folder: Path) -> None:
        (folder / "adapter_config.json").write_text(self.said, encoding="utf-8")


@pytest.mark.parametrize("exchanges", [True, False])
def test_an_adapter_that_cannot_be_put_in_its_place_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    """Whether the system can exchange two names in one step, or not."""
    out, rename = tmp_path / "tales", Path.rename

    def refuses(self: Path, target: Path) -> Path:
        if target == out and json.loads((self / "adapter_config.json").read_text()) == "new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    def exchange(one: Path, other: Path) -> bool:
        if exchanges:
            raise OSError(errno.EIO, "Input/output error")
        return False

    old: Any = Saves('"old"')
    new: Any = Saves('"new"')
    save_adapter(old, out)
    monkeypatch.setattr(Path, "rename", refuses)
    monkeypatch.setattr(folders, "exchange", exchange)
    with pytest.raises(UserError, match="Input/output error"):
        save_adapter(new, out)
    assert [one.name for one in tmp_path.iterdir()] == ["tales"]
    assert (out / "adapter_config.json").read_text() == '"old"'


@pytest.mark.parametrize("text", ["a=" + "[" * 100_000, "a=" + "{b=" * 100_000])
def test_a_file_that_is_nested_without_end_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(UserError, match="is not TOML") as told:
        load_plan(file)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "name", ["x" * 4096, "org/" + "x" * 300, "~nosuchuser/x", "a\0b", "org/a b", "\x1b[2J/x", "-/-"]
)
def test_a_model_by_a_name_that_can_be_none_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as told:
        source = find_model(name, tmp_path).source
        open_checkpoint(source, offline=True, home=tmp_path)
    assert "\n" not in str(told.value)
