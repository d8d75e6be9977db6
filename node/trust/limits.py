"""How far honest peers of two classes may be apart: what was measured, here and before shipping.

    node/compute/demo/limits.json   the shipped demo model, on CPUs
    home/limits.json                what `potluck calibrate` measured here; it comes first

A class of numbers names all that the last bits depend on: processor, library, threads. Limits are
kept for kinds of classes, since they are measured over several of those:

    none c1                                                  none c1           our C: equal bits
    int8 fp32 torch 2.13.0 GenuineIntel 6 85 AVX2 threads 2  int8 torch fp32
    bf16 torch 2.13.0 NVIDIA H200                            none torch bf16 NVIDIA H200

Between two kinds that differ, rounding on the wire comes on top, so each dtype of the wire has
limits of its own; and so has each of some numbers of blocks (swarm/tolerance.py). A pair that
nobody measured in a dtype has no limit there: nobody is convicted by it. A file that was written
before limits were kept by length says one for all of them, which holds until the pair is measured
anew.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ...errors import UserError
from ...swarm.tolerance import ANY, NEVER, Tolerance, Tolerances
from ..home import prepare_home, write_whole
from ..library import DEMO_FOLDER
from ..log import get_logger

LIMITS: Final = "limits.json"
SHIPPED: Final = Path(DEMO_FOLDER) / LIMITS
FORMAT: Final = "potluck limits 1"
FILE_BYTES_MAX: Final = 4 << 20
LEAST: Final = 1e-3  # guess: what was measured on few machines may be more on another; no cheat is
# near: the least that a wrong weight format costs is 0.045 (kernels.md 3)
FORMATS: Final = ("int8", "nf4")  # of weights, as a class names them; without one: none

_NOTHING: Final = Tolerances({})  # equal bits are equal in every dtype
log = get_logger()


@dataclass(frozen=True, slots=True)
class Limit:
    """For one model and a pair of kinds. limit: of the median error over a chunk's tokens.

    chunks: honest ones that it was measured from; most: the largest median among them; wire: the
    dtype in which rows went to and fro; blocks: how many they went through, ANY where that was not
    kept. A limit of 1: honest peers are too far apart to be audited.
    """

    model: str
    one: str
    other: str
    limit: float
    chunks: int
    most: float
    wire: str = "f32"
    blocks: int = ANY

    @property
    def pair(self) -> tuple[str, str, str, str]:
        one, other = sorted((self.one, self.other))
        return self.model, one, other, self.wire

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        return *self.pair, self.blocks


class Measured(Protocol):
    """How far a pair was apart (compute/calibration.py)."""

    @property
    def one(self) -> str: ...

    @property
    def other(self) -> str: ...

    @property
    def blocks(self) -> int: ...

    @property
    def limit(self) -> float: ...

    @property
    def most(self) -> float: ...

    @property
    def audits(self) -> int: ...


class Limits:
    """The limits for classes, by their kinds."""

    def __init__(self, found: Iterable[Limit] = ()) -> None:
        """The first of a key counts, and before any by length one for all of them."""
        kept: dict[str, dict[tuple[str, str, str], dict[int, float]]] = {}
        for limit in found:
            model, one, other, wire = limit.pair
            lengths = kept.setdefault(wire, {}).setdefault((model, one, other), {})
            if ANY not in lengths and (limit.blocks != ANY or not lengths):
                lengths[limit.blocks] = lengths.get(limit.blocks, limit.limit)
        self._tolerances = {wire: Tolerances(limits) for wire, limits in kept.items()}

    def of(self, model: str, one: str, other: str, wire: str, blocks: int) -> Tolerance | None:
        """Between two classes, over rows of this dtype that went through so many blocks; None where
        nothing was measured."""
        measured = self._tolerances.get(wire, _NOTHING)
        return measured.of(model, kind_of(one), kind_of(other), blocks)


def kind_of(numerics: str) -> str:
    """What a limit is kept for."""
    words = numerics.split()
    if "torch" not in words:
        return numerics
    weights, dtype = (words[0], words[1]) if words[0] in FORMATS else ("none", words[0])
    card = words[words.index("torch") + 2 :]  # behind the version; or a processor, and its threads
    return " ".join([weights, "torch", dtype, *([] if "threads" in card else card)])


def limits_of(model: str, found: Iterable[Measured], wire: str = "f32") -> list[Limit]:
    """What to keep of what was measured; nothing of a pair whose every audit gave equal bits."""
    by_pair: dict[tuple[str, str], list[Measured]] = defaultdict(list)
    for one in found:
        by_pair[one.one, one.other].append(one)
    return [
        _kept(model, one, wire)
        for lengths in by_pair.values()
        if any(each.limit for each in lengths)
        for one in lengths
    ]


def _kept(model: str, one: Measured, wire: str) -> Limit:
    limit, most = (float(f"{value:.3g}") for value in (one.limit, one.most))
    limit = min(max(limit, LEAST), NEVER)
    return Limit(model, one.one, one.other, limit, one.audits, most, wire, one.blocks)


def load_limits(home: Path) -> Limits:
    """What is known here. A file that cannot be read is passed over with a warning."""
    found: list[Limit] = []
    for path in (home / LIMITS, SHIPPED):
        try:
            found += read_limits(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("limits passed over", path=str(path), reason=str(error))
    return Limits(found)


def read_limits(path: Path) -> list[Limit]:
    """Raises OSError, or ValueError, TypeError or KeyError for a file that is none of ours."""
    with path.open("rb") as file:
        told: dict[str, Any] = json.loads(file.read(FILE_BYTES_MAX))
    if told["format"] != FORMAT:
        raise ValueError(f"format {told['format']!r}; {FORMAT!r} is read")
    found = [Limit(**one) for one in told["limits"]]
    for one in found:
        if not (0 <= one.limit <= NEVER and one.blocks >= ANY):
            raise ValueError(f"a limit of {one.limit} for {one.blocks} blocks of {one.one}")
    return found


def save_limits(home: Path, measured: Iterable[Limit]) -> Path:
    """Put these into the home's file, in place of all that it says of the same pairs. Raises
    UserError."""
    path = home / LIMITS
    prepare_home(home)
    kept = {limit.key: limit for limit in measured}
    anew = {limit.pair for limit in kept.values()}
    try:
        kept |= {limit.key: limit for limit in read_limits(path) if limit.pair not in anew}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}); mend or remove it") from error
    write_whole(path, to_text(kept.values()))
    return path


def to_text(limits: Iterable[Limit]) -> str:
    rows = [asdict(limit) for limit in sorted(limits, key=lambda limit: limit.key)]
    return json.dumps({"format": FORMAT, "limits": rows}, indent=1) + "\n"
