"""Which files a model's name means on this machine.

demo            the checkpoint that comes with the package
./some/folder   a directory with config.json, tokenizer.json and safetensors
org/name[@rev]  the hub, by its cache
NAME            what a node or testnet under this home serves by that name
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .config import running_nodes

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent / "compute" / "demo"


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where a model's files are (a directory, or a hub id), and what people call it."""

    source: str
    name: str


def find_model(ref: str, home: Path) -> Shelf:
    """The files that `ref` means. Raises UserError when it means none."""
    if ref == DEMO:
        return Shelf(str(DEMO_FOLDER), DEMO)
    path = _standing(ref)
    if path is not None:
        return Shelf(str(path), path.name)
    for told in running_nodes(home):
        others = told.get("others")
        for held in (told, *(others if isinstance(others, list) else ())):
            if held.get("name") == ref and isinstance(held.get("source"), str):
                return Shelf(held["source"], ref)
    if ref.partition("@")[0].count("/") == 1 and not ref.startswith((".", "/", "~")):
        return Shelf(ref, ref.partition("@")[0])
    raise UserError(
        f"{ref}: no such directory, no hub id (org/name), and nothing of that name runs here: "
        "give a folder with config.json, a hub id, or demo"
    )


def _standing(ref: str) -> Path | None:
    """What is there by this path; None: nothing, or it is no path (too long, of no user)."""
    try:
        path = Path(ref).expanduser()
        return path.resolve() if path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None
