"""How far honest peers of two classes may be apart: what was measured, here and before shipping.

    node/compute/demo/limits.json   the shipped demo model, on CPUs
    home/limits.json                what `potluck calibrate` measured here; it comes first

A class of numbers names all that the last bits depend on: processor, library, threads. Limits are
kept for kinds of classes, since they are measured over several of those:

    none c1                                                  none c1           our C: equal bits
    int8 fp32 torch 2.13.0 GenuineIntel 6 85 AVX2 threads 2  int8 torch fp32
    bf16 torch 2.13.0 NVIDIA H200                            none torch bf16 NVIDIA H200

Between two kinds that differ, rounding on the wire comes on top, so each dtype of the wire has
limits of its own. A pair that nobody measured in a dtype has no limit there: nobody is convicted by
it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ...errors import UserError
from ...swarm.audit import Tolerance, Tolerances
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
    dtype in which rows went to and fro.
    """

    model: str
    one: str
    other: str
    limit: float
    chunks: int
    most: float
    wire: str = "f32"

    @property
    def key(self) -> tuple[str, str, str, str]:
        one, other = sorted((self.one, self.other))
        return self.model, one, other, self.wire


class Measured(Protocol):
    """How far a pair was apart (compute/calibration.py)."""

    @property
    def limit(self) -> float: ...

    @property
    def most(self) -> float: ...

    @property
    def audits(self) -> int: ...


class Limits:
    """The limits for classes, by their kinds."""

    def __init__(self, found: Iterable[Limit] = ()) -> None:
        """The first of a key counts."""
        kept: dict[str, dict[tuple[str, str, str], float]] = {}
        for limit in found:
            model, one, other, wire = limit.key
            kept.setdefault(wire, {}).setdefault((model, one, other), limit.limit)
        self._tolerances = {wire: Tolerances(limits) for wire, limits in kept.items()}

    def of(self, model: str, one: str, other: str, wire: str) -> Tolerance | None:
        """Between two classes, over rows of this dtype; None where nothing was measured."""
        measured = self._tolerances.get(wire, _NOTHING)
        return measured.of(model, kind_of(one), kind_of(other))


def kind_of(numerics: str) -> str:
    """What a limit is kept for."""
    words = numerics.split()
    if "torch" not in words:
        return numerics
    weights, dtype = (words[0], words[1]) if words[0] in FORMATS else ("none", words[0])
    card = words[words.index("torch") + 2 :]  # behind the version; or a processor, and its threads
    return " ".join([weights, "torch", dtype, *([] if "threads" in card else card)])


def limit_of(
    model: str, one: str, other: str, measured: Measured, wire: str = "f32"
) -> Limit | None:
    """What to keep of a pair; None where the bits are equal, or nothing could be told apart."""
    if not 0 < measured.limit < 1:
        return None
    limit, most = (float(f"{value:.3g}") for value in (measured.limit, measured.most))
    return Limit(model, one, other, max(limit, LEAST), measured.audits, most, wire)


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
        if not 0 <= one.limit < 1:
            raise ValueError(f"a limit of {one.limit} for {one.one} and {one.other}")
    return found


def save_limits(home: Path, measured: Iterable[Limit]) -> Path:
    """Put these into the home's file, in place of what it says of the same pairs. Raises
    UserError."""
    path = home / LIMITS
    prepare_home(home)
    kept = {limit.key: limit for limit in measured}
    try:
        kept = {limit.key: limit for limit in read_limits(path)} | kept
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}); mend or remove it") from error
    write_whole(path, to_text(kept.values()))
    return path


def to_text(limits: Iterable[Limit]) -> str:
    rows = [asdict(limit) for limit in sorted(limits, key=lambda limit: limit.key)]
    return json.dumps({"format": FORMAT, "limits": rows}, indent=1) + "\n"
