"""What `potluck finetune` does around a run: wrong files, taken places, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import trio
from sim.run_world import TERMS, terms_of
from trio.testing import MockClock

from potluck.cli.loss_plot import draw
from potluck.cli.main import main
from potluck.errors import UserError
from potluck.node.compute.adapter import CONFIG
from potluck.node.runs.checkpoint import Progress
from potluck.node.runs.finetune import check_out, linger, load_plan, refuse_other, save_adapter
from potluck.node.runs.kinds import open_guarded, opener_of
from potluck.swarm.run.plan import Exchanging, Kind

LEAST = 'name = "tales"\nmodel = "demo"\n[data]\nfiles = ["tales.txt"]\n'


def write(folder: Path, text: str = LEAST) -> Path:
    file = folder / "tales.toml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "is not TOML"),
        (LEAST.replace("files", "fils"), "data.fils is no key"),
        (LEAST + '[exchange]\nkind = "swarm"\n', "choose one of gossip, group, guarded, scalar"),
        (LEAST + '[exchange.guarded]\nmembers = ["me"]\n', "exchange.guarded.members[0] has 2"),
        (LEAST + '[exchange]\naggregator = "best"\n', "exchange.aggregator is 'best'"),
        (LEAST, "tales.txt: there is no such file"),
        (LEAST + "[data.x]\n", "data.x is no key"),
        (LEAST.replace('"demo"', '"no such model"'), "no such model: no such directory"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(
    tmp_path: Path, one_line: Callable[[], str], text: str, said: str
) -> None:
    file = write(tmp_path, text)
    assert main(["finetune", str(file), "--home", str(tmp_path / "home")]) == 2
    assert said in one_line()


def test_no_file_is_one_line(tmp_path: Path, one_line: Callable[[], str]) -> None:
    assert main(["finetune", str(tmp_path / "none.toml"), "--home", str(tmp_path)]) == 2
    assert "none.toml: cannot be read" in one_line()
    assert main(["finetune", str(tmp_path / "none"), "--home", str(tmp_path)]) == 2
    assert "give --out" in one_line()


def test_a_sequence_that_the_model_has_no_positions_for_is_named(
    tmp_path: Path, one_line: Callable[[], str]
) -> None:
    file = write(tmp_path, LEAST + "tokens = 4096\n")
    assert main(["finetune", str(file), "--home", str(tmp_path / "home")]) == 2
    assert "data.tokens is 4096, but demo has 1024 positions" in one_line()


def test_what_is_no_adapter_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    check_out(out)
    out.mkdir()
    with pytest.raises(UserError, match="is there already, and is no adapter"):
        check_out(out)
    (out / CONFIG).write_text("{}", encoding="utf-8")
    check_out(out)


def test_an_adapter_comes_as_a_whole_or_what_was_there_stays(tmp_path: Path) -> None:
    out = tmp_path / "one"
    out.mkdir()
    (out / CONFIG).write_text("old", encoding="utf-8")

    class Tuner:
        def __init__(self, *, fails: bool) -> None:
            self.fails = fails

        def save(self, folder: Path) -> None:
            (folder / CONFIG).write_text("new", encoding="utf-8")
            if self.fails:
                raise UserError("the disk is full")

    broken: Any = Tuner(fails=True)
    with pytest.raises(UserError):
        save_adapter(broken, out)
    assert (out / CONFIG).read_text(encoding="utf-8") == "old"
    whole: Any = Tuner(fails=False)
    save_adapter(whole, out)
    assert (out / CONFIG).read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [out]


def company(members: list[str], *others: Any) -> Any:
    return SimpleNamespace(members=members, others=others)


def test_who_brings_another_file_is_refused_by_what_differs() -> None:
    mine, theirs = terms_of(asked=4), terms_of()
    with pytest.raises(UserError) as told:
        refuse_other(mine, company([], theirs, theirs))
    assert str(told.value) == (
        'the run "tales" of 2 peers here is another: exchange.asked is 4 here and 3 there;'
        " take their file, or choose another name"
    )
    far = replace(TERMS, seed=9, tokens=7, held_out=0.0, model=b"n" * 32)
    with pytest.raises(UserError, match="and 1 more;"):
        refuse_other(TERMS, company([], far))


def test_who_takes_the_name_of_a_run_stops_nobody_who_has_company() -> None:
    refuse_other(terms_of(asked=4), company(["ann"], terms_of()))
    refuse_other(terms_of(), company([]))


def test_every_kind_of_exchange_is_here_and_another_is_refused_by_name() -> None:
    for kind in get_args(Kind):
        assert opener_of(Exchanging(kind=kind))
    with pytest.raises(UserError, match=r'exchange\.kind is "next year"'):
        opener_of(Exchanging(kind="next year"))  # type: ignore[arg-type]


def test_a_guarded_group_wants_the_whole_model_here() -> None:
    setting: Any = SimpleNamespace(here=False)
    with pytest.raises(UserError, match="--where here"):
        open_guarded(setting)


def test_a_files_name_stands_before_what_is_wrong_in_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tales.toml: seed is 'x'"):
        load_plan(write(tmp_path, 'seed = "x"\n' + LEAST))


def test_the_loss_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one = Progress(1, 2, 3.0, None, 4, 100, 1.0, 1.0, 0, 0, 0)
    history = [one, replace(one, epoch=2, loss=2.0, held_out=2.5, tokens=200)]
    draw(history, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(UserError, match="cannot write"):
        draw(history, tmp_path / "no folder" / "loss.png")


class Pulled:
    """Somebody pulls from us every few seconds, so many times."""

    def __init__(self, every_s: float, times: float) -> None:
        self.members = ("somebody",)
        self._every_s, self._left = every_s, times

    async def pulled(self) -> None:
        self._left -= 1
        await trio.sleep(self._every_s if self._left >= 0 else math.inf)


@pytest.mark.parametrize(("times", "stays_s"), [(0, 30), (7, 7 * 20 + 30), (math.inf, 600)])
async def test_who_has_ended_is_there_while_others_pull_but_not_for_ever(
    autojump_clock: MockClock, times: float, stays_s: float
) -> None:
    pulls: Any = Pulled(20.0, times)
    await linger(pulls, pulls, 30.0, most_s=600.0)
    assert trio.current_time() == pytest.approx(stays_s)
