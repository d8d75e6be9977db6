"""The root: byte ranges of a file out of the hub, by HTTP (RFC 9110, 14).

The hub's own package knows its addresses, its login and its redirects; here is only the question
for a part. What it gives counts as given by the root, as a whole download does: its certificate
says who speaks, and whole files are checked by their sha256.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import huggingface_hub
import huggingface_hub.errors  # not loaded by itself
from huggingface_hub.utils import build_hf_headers, get_session

from ...errors import TransportError

TIMEOUT_S: Final = 30.0  # guess: without a byte
TRIES: Final = 3


class Root(Protocol):
    """Who has every byte of a file."""

    def read(self, start: int, stop: int) -> bytes:
        """Exactly these bytes. Blocks. Raises TransportError."""
        ...


@dataclass
class HubRoot:
    """One file of a model of the hub, at one commit."""

    model: str
    commit: str
    file: str

    def read(self, start: int, stop: int) -> bytes:
        failure: Exception | None = None
        for _ in range(TRIES):
            try:
                return self._read(start, stop)
            except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
                failure = error
            except Exception as error:  # its HTTP client's own tree, which changes with releases
                if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "requests"):
                    raise
                failure = error
        raise TransportError(f"{self.model}: the hub does not give {self.file} ({failure!r:.120})")

    def _read(self, start: int, stop: int) -> bytes:
        address = huggingface_hub.hf_hub_url(self.model, self.file, revision=self.commit)
        headers = build_hf_headers() | {
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",
        }
        session: Any = get_session()
        found = bytearray()
        with session.stream(
            "GET", address, headers=headers, follow_redirects=True, timeout=TIMEOUT_S
        ) as answer:
            if answer.status_code != 206:
                raise OSError(f"HTTP {answer.status_code} where a part was asked for")
            for part in answer.iter_bytes():
                found += part
                if len(found) > stop - start:
                    raise OSError("more bytes than were asked for")
        if len(found) < stop - start:
            raise OSError(f"{len(found)} bytes of {stop - start}")
        return bytes(found)
