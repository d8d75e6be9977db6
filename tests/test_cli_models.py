"""`potluck models pull`, `ls`, `rm` and `prune`: weights come, are listed, and go."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hubs import use

from potluck.cli.main import main
from potluck.node.bench.hub import MODEL, LocalHub, open_hub
from potluck.node.compute.shapes import write_random
from potluck.node.weights.library import hold_weights
from potluck.swarm.chunk import CHUNK_BYTES


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_random(folder, "tiny")
    return folder


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setenv("POTLUCK_JOIN", "")
    with open_hub(model) as hub:
        use(hub, tmp_path / "cache", monkeypatch)
        yield hub


def told(capsys: pytest.CaptureFixture[str], home: Path, *words: str) -> Any:
    assert main(["models", *words, "--home", str(home), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_weights_are_pulled_listed_and_removed(
    hub: LocalHub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, size = tmp_path / "home", (model / "model.safetensors").stat().st_size
    assert told(capsys, home, "ls") == []
    facts = told(capsys, home, "pull", MODEL, "--blocks", "0:2")
    assert 0 < facts["bytes"] == facts["from_hub"] < size // 2 and facts["from_peers"] == 0
    (file,) = told(capsys, home, "ls")
    assert file["bytes"] == facts["bytes"] and file["size"] == size and not file["whole"]
    more = told(capsys, home, "pull", MODEL)
    assert more["bytes"] == size and more["from_hub"] == size - facts["bytes"], "the rest alone"
    assert told(capsys, home, "ls")[0]["whole"]
    before = hub.sent_bytes
    assert told(capsys, home, "pull", MODEL)["from_hub"] == 0 == hub.sent_bytes - before
    assert main(["models", "ls", "--home", str(home)]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    assert told(capsys, home, "prune", "--keep", "1000") == {"files": 0, "freed": 0}
    assert told(capsys, home, "rm", MODEL) == {"files": 1, "freed": size}
    assert told(capsys, home, "ls") == []


def test_prune_takes_what_is_over(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = told(capsys, tmp_path, "pull", MODEL, "--blocks", "0:1")
    assert told(capsys, tmp_path, "prune") == {"files": 1, "freed": facts["bytes"]}


def test_what_cannot_be_done_is_one_line(
    hub: LocalHub, model: Path, tmp_path: Path, one_line: Callable[[], str]
) -> None:
    home = ["--home", str(tmp_path)]
    assert main(["models", "rm", "absent/model", *home]) == 2
    assert "models ls" in one_line()
    assert main(["models", "pull", str(model), *home]) == 2
    assert "folder" in one_line()
    assert main(["models", "pull", "absent/model", *home]) == 2
    assert "no such model" in one_line()
    assert main(["models", "pull", MODEL, "--blocks", "3:99", *home]) == 2
    assert "99" in one_line()
    assert main(["models", "pull", MODEL, "--max-weights", "1", *home]) == 2
    assert "--max-weights" in one_line()
    with hold_weights(tmp_path):
        assert main(["models", "pull", MODEL, *home]) == 2
    assert "stop it first" in one_line()
    assert hub.sent_bytes <= 2 * CHUNK_BYTES
