"""A hub on this machine: one model over HTTP, as the Hugging Face hub gives it, as fast as told.

    GET /api/models/org/model/revision/main      which files there are, with the sha256 of weights
    GET /org/model/resolve/main/<file>           a file; with Range, a part of it (RFC 9110, 14)

For tests and measurements: it counts what leaves it. Source: the hub's own client, which is what
asks here: huggingface_hub 2, file_download.py.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

COMMIT: Final = "c0ffee" + "0" * 34
MODEL: Final = "org/model"
PART_BYTES: Final = 64 * 1024
WEIGHTS: Final = ".safetensors"


@dataclass
class LocalHub:
    """bytes_s: to all who ask together; 0: no bound. asked: which bytes of weight files, in
    order."""

    folder: Path
    bytes_s: float = 0.0
    endpoint: str = ""
    sent_bytes: int = 0  # of weight files
    down: bool = False
    began: threading.Event = field(default_factory=threading.Event)  # weights were asked for
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    _free_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def sha256(self) -> dict[str, str]:
        """Of the weight files."""
        found = {}
        for path in sorted(self.folder.glob(f"*{WEIGHTS}")):
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return found

    @property
    def environment(self) -> dict[str, str]:
        """For processes that are to ask here; HF_HOME is theirs to choose."""
        return {"HF_ENDPOINT": self.endpoint, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def listing(self) -> dict[str, Any]:
        files = []
        for path in sorted(self.folder.iterdir()):
            size = path.stat().st_size
            fact: dict[str, Any] = {"rfilename": path.name, "size": size, "blobId": "0"}
            if path.name in self.sha256:
                fact["lfs"] = {"sha256": self.sha256[path.name], "size": size, "pointerSize": 100}
            files.append(fact)
        return {"id": MODEL, "sha": COMMIT, "siblings": files}

    def wait_for(self, size: int) -> None:
        """Until so many bytes may leave."""
        if not self.bytes_s:
            return
        with self._lock:
            self._free_s = max(self._free_s, time.monotonic()) + size / self.bytes_s
            until_s = self._free_s
        time.sleep(max(0.0, until_s - time.monotonic()))

    def sent(self, name: str, size: int) -> None:
        if name.endswith(WEIGHTS):
            with self._lock:
                self.sent_bytes += size


@contextmanager
def open_hub(folder: Path, bytes_s: float = 0.0) -> Iterator[LocalHub]:
    """It answers until this is left."""
    hub = LocalHub(folder, bytes_s)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if self.hub.down:
            self._say(503, b"", {}, body=body)
        elif path.startswith(f"/api/models/{MODEL}"):
            self._say(200, json.dumps(self.hub.listing()).encode(), {}, body=body)
        else:
            self._file(path, body=body)

    def _file(self, path: str, *, body: bool) -> None:
        known = re.fullmatch(rf"/{MODEL}/resolve/(?:main|{COMMIT})/([\w.-]+)", path)
        file = self.hub.folder / (known[1] if known else "absent")
        if not file.is_file():
            code = "EntryNotFound" if known else "RepoNotFound"
            self._say(404, b"", {"X-Error-Code": code, "X-Repo-Commit": COMMIT}, body=body)
            return
        size = file.stat().st_size
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, stop = (int(part[1]), min(size, int(part[2]) + 1)) if part else (0, size)
        tag = self.hub.sha256.get(file.name) or hashlib.sha1(file.read_bytes()).hexdigest()
        self.send_response(206 if part else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{tag}"')
        self.send_header("Content-Length", str(stop - start))
        if part:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if not body:
            return
        if file.name in self.hub.sha256:
            self.hub.asked.append((file.name, start, stop))
            self.hub.began.set()
        with file.open("rb") as opened:
            opened.seek(start)
            while start < stop and (raw := opened.read(min(PART_BYTES, stop - start))):
                self.hub.wait_for(len(raw))
                self.hub.sent(file.name, len(raw))  # before whoever asked can have read it
                try:
                    self.wfile.write(raw)
                except OSError:
                    return  # whoever asked is gone
                start += len(raw)

    def _say(self, status: int, raw: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if body:
            self.wfile.write(raw)
