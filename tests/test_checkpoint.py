"""A model's files: found, checked, named by a digest; from a directory or from the hub."""

import hashlib
import http.server
import json
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from potluck.errors import UserError
from potluck.node.compute import digests
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.shards import Shard

from .checkpoints import edit_config, save_random

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def single(tmp_path: Path) -> Path:
    path = tmp_path / "single"
    save_random(path, "llama")
    return path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    path = tmp_path / "sharded"
    save_random(path, "llama", shard="50KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


def test_a_sharded_checkpoint_holds_the_same_tensors_as_a_single_file(
    single: Path, sharded: Path
) -> None:
    one, many = open_checkpoint(single), open_checkpoint(sharded)
    assert one.names == many.names
    found = many.tensors(many.names)
    for name, tensor in load_file(single / "model.safetensors").items():
        assert torch.equal(found[name], tensor)
        assert many.shape(name) == tuple(tensor.shape)


def test_the_digest_is_of_what_is_computed_and_of_the_weights(
    single: Path, sharded: Path, tmp_path: Path
) -> None:
    digest = open_checkpoint(single).digest()
    assert len(digest) == 64 and int(digest, 16)
    assert open_checkpoint(sharded).digest() != digest  # other files
    edit_config(single, eos_token_id=7, transformers_version="0", pad_token_id=3)
    assert open_checkpoint(single).digest() == digest  # which changes no number
    edit_config(single, rms_norm_eps=1e-3)
    other = open_checkpoint(single).digest()
    assert other != digest
    tensors = load_file(single / "model.safetensors")
    tensors[UP][3, 3] += 1
    save_file(tensors, single / "model.safetensors")
    assert open_checkpoint(single).digest() not in (digest, other)


def test_a_file_is_hashed_once_and_again_when_it_changes(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    real: Callable[[Path], str] = digests._sha256

    def counted(path: Path) -> str:
        hashed.append(path)
        return real(path)

    monkeypatch.setattr(digests, "_sha256", counted)
    home = tmp_path / "home"
    digest = open_checkpoint(single, home=home).digest()
    assert open_checkpoint(single, home=home).digest() == digest
    assert len(hashed) == 1
    assert sorted(path.name for path in home.iterdir()) == ["digests.json"]
    tensors = load_file(single / "model.safetensors")
    tensors[UP][0, 0] += 1
    save_file(tensors, single / "model.safetensors")
    assert open_checkpoint(single, home=home).digest() != digest
    (home / "digests.json").write_text("{ damaged")
    assert open_checkpoint(single, home=home).digest() != digest
    assert len(hashed) == 3


def test_a_home_that_cannot_be_written_costs_only_hashing(single: Path, tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("no folder")
    assert open_checkpoint(single, home=home).digest() == open_checkpoint(single).digest()


def refused(path: Path, said: str) -> None:
    """Opening the checkpoint and reading it all ends in one line that says `said`."""
    with pytest.raises(UserError, match=said) as failure:
        checkpoint = open_checkpoint(path)
        checkpoint.require({name: checkpoint.shape(name) for name in checkpoint.names})
        checkpoint.require({UP: (80, 48)})
    assert "\n" not in str(failure.value)


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write(path: Path, header: Any, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("size", [0, 5, 8, 100, 5000, -1, -1000])
def test_a_truncated_file_is_named(single: Path, size: int) -> None:
    file = single / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[:size])
    refused(single, r"model\.safetensors: .*download it again")


def test_bytes_behind_the_last_tensor_are_refused(single: Path) -> None:
    file = single / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"x")
    refused(single, "bytes long, but its header describes")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data_offsets": [0, 4]}, "has 4 bytes for"),
        ({"data_offsets": [-8, 4]}, "malformed"),
        ({"data_offsets": [8, 1 << 62]}, "bytes for"),
        ({"data_offsets": "ab"}, "malformed"),
        ({"data_offsets": [True, 4]}, "malformed"),
        ({"shape": [80, 49]}, "bytes for"),
        ({"shape": [-80, -48]}, "malformed"),
        ({"shape": 7}, "malformed"),
        ({"dtype": "F8_WHAT"}, "dtype 'F8_WHAT'"),
        ({"dtype": ["F32"]}, "dtype"),
        (None, "malformed"),
    ],
)
def test_a_header_that_lies_is_refused(single: Path, change: Any, said: str) -> None:
    file = single / "model.safetensors"
    header, data = header_of(file)
    header[UP] = None if change is None else header[UP] | change
    write(file, header, data)
    refused(single, said)


def test_tensors_that_overlap_are_refused(single: Path) -> None:
    file = single / "model.safetensors"
    header, data = header_of(file)
    header[UP]["data_offsets"] = header["model.layers.0.mlp.up_proj.weight"]["data_offsets"]
    write(file, header, data)
    refused(single, "hole or an overlap")


@given(st.binary(max_size=200))
def test_no_file_of_any_bytes_is_worse_than_refused(raw: bytes) -> None:
    path = Path(f"/tmp/potluck-{hashlib.sha256(raw).hexdigest()}")
    path.write_bytes(raw)
    try:
        Shard.open(path)
    except UserError as error:
        assert str(path) in str(error)
    finally:
        path.unlink()


def test_a_missing_tensor_file_or_config_is_named(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    index.write_text(json.dumps(whole | {"weight_map": {**whole["weight_map"], "extra": UP}}))
    refused(sharded, "not safetensors")
    places = {**whole["weight_map"], "extra": whole["weight_map"][UP]}
    index.write_text(json.dumps(whole | {"weight_map": places}))
    refused(sharded, "lacks the tensor extra")
    del places["extra"], places[UP]
    index.write_text(json.dumps(whole | {"weight_map": places}))
    refused(sharded, f"{UP} is missing")
    for place in ("../model.safetensors", "/etc/passwd", ".safetensors", 7):
        index.write_text(json.dumps(whole | {"weight_map": {UP: place}}))
        refused(sharded, "not a file name")
    index.write_text(json.dumps({"weight_map": {}}))
    refused(sharded, "no weight_map")
    index.write_text("[]")
    refused(sharded, "not a JSON object")
    index.write_text("{")
    refused(sharded, "not JSON")
    index.unlink()
    refused(sharded, "only safetensors")
    (sharded / "config.json").unlink()
    refused(sharded, r"config\.json is missing")


def test_a_pickle_is_never_read(single: Path) -> None:
    (single / "model.safetensors").unlink()
    torch.save({UP: torch.ones(80, 48)}, single / "pytorch_model.bin")
    refused(single, "only safetensors")


@pytest.mark.parametrize("ref", ["./nowhere", "/nowhere/at/all", "one", "a/b/c", "~/no"])
def test_a_name_that_is_neither_directory_nor_hub_id_is_refused(ref: str) -> None:
    with pytest.raises(UserError, match="no such directory"):
        open_checkpoint(ref)


def test_a_file_in_place_of_a_directory_is_refused(single: Path) -> None:
    with pytest.raises(UserError, match="is a file"):
        open_checkpoint(single / "config.json")


COMMIT = "c0ffee" + "0" * 34


class PretendedHub(http.server.BaseHTTPRequestHandler):
    """Serves one model, `org/model`, at revisions `main` and COMMIT."""

    root: Path
    asked: list[str]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if body:
            self.asked.append(path.rsplit("/", 1)[-1])
        if path == f"/api/models/org/model/revision/{COMMIT}":
            self._send(200, json.dumps(self._listing()).encode(), {}, body)
            return
        _, org, name, _, revision, *rest = [*path.split("/"), "", ""]
        file = self.root / rest[0] if rest and rest[0] else self.root / "absent"
        if (org, name) != ("org", "model"):
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
        elif revision not in ("main", COMMIT):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
        elif not file.is_file():
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            self._send(404, b"", headers, body)
        else:
            raw = file.read_bytes()
            sha256 = hashlib.sha256(raw).hexdigest()
            self._send(200, raw, {"X-Repo-Commit": COMMIT, "ETag": f'"{sha256}"'}, body)

    def _send(self, status: int, raw: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if body:
            self.wfile.write(raw)

    def _listing(self) -> dict[str, Any]:
        files = []
        for path in sorted(self.root.iterdir()):
            raw = path.read_bytes()
            fact: dict[str, Any] = {"rfilename": path.name, "size": len(raw), "blobId": "0"}
            if path.suffix == ".safetensors":
                sha256 = hashlib.sha256(raw).hexdigest()
                fact["lfs"] = {"sha256": sha256, "size": len(raw), "pointerSize": 100}
            files.append(fact)
        return {"id": "org/model", "sha": COMMIT, "siblings": files}


@pytest.fixture
def hub(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[PretendedHub]]:
    """A hub that serves the sharded model; its handler counts what was asked for."""
    handler = type("Handler", (PretendedHub,), {"root": sharded, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    constants = huggingface_hub.constants
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    endpoint = f"http://127.0.0.1:{server.server_port}"
    place = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_from_the_hub_only_what_is_needed_is_downloaded(
    hub: type[PretendedHub], sharded: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint("org/model", home=tmp_path / "home")
    assert not [name for name in hub.asked if name.endswith(".safetensors")]
    wanted = [name for name in checkpoint.names if ".layers.1." in name]
    checkpoint.fetch(wanted)
    places = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    fetched = {name for name in hub.asked if name.endswith(".safetensors")}
    assert fetched == {places[name] for name in wanted} < set(places.values())
    local = open_checkpoint(sharded)
    mine, theirs = checkpoint.tensors(wanted), local.tensors(wanted)
    assert all(torch.equal(mine[name], theirs[name]) for name in wanted)
    assert checkpoint.digest() == local.digest()


def test_what_was_fetched_once_is_there_offline(
    hub: type[PretendedHub], sharded: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    online = open_checkpoint("org/model@main", home=home)
    online.fetch([UP])
    digest = online.digest()
    del hub.asked[:]
    for ref in ("org/model", f"org/model@{COMMIT}"):
        offline = open_checkpoint(ref, offline=True, home=home)
        assert torch.equal(offline.tensors([UP])[UP], online.tensors([UP])[UP])
        assert offline.digest() == digest
    with pytest.raises(UserError, match="missing"):
        offline.fetch(offline.names)
    without_memory = open_checkpoint("org/model", offline=True)
    with pytest.raises(UserError, match="not in the cache"):
        without_memory.digest()
    online.fetch(online.names)
    assert without_memory.digest() == digest
    assert hub.asked.count("config.json") == 0


@pytest.mark.parametrize("ref", ["org/absent", "org/model@absent"])
def test_a_model_or_revision_that_the_hub_does_not_have_is_named(
    ref: str, hub: type[PretendedHub]
) -> None:
    with pytest.raises(UserError, match="no such model or revision"):
        open_checkpoint(ref)


def test_offline_without_a_cache_says_so(hub: type[PretendedHub]) -> None:
    with pytest.raises(UserError, match="org/model"):
        open_checkpoint("org/model", offline=True)
    assert not hub.asked


def test_a_revision_is_given_once() -> None:
    with pytest.raises(UserError, match="twice"):
        open_checkpoint("org/model@main", revision="other")
