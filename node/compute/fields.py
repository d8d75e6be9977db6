"""Reading a JSON object of settings strictly: each field is taken, or known, or refused by name."""

import math
from collections.abc import Mapping
from typing import Any

from ...errors import UserError

ABSENT: object = object()  # as a default: the field must be there
WHOLE = "config.json"


class Unserved(UserError):
    """The config is sound, but asks for what the families do not do.

    field: its name, when it is one of the config's own fields and not of an object inside.
    """

    field: str | None = None


class Fields:
    """One JSON object, and which of its fields have been taken."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._where = where
        self._taken: set[str] = set()

    def wrong(self, name: str, why: str) -> UserError:
        """The error for field `name`, ready to raise."""
        return UserError(f"{self._where}: {name} {why}")

    def unserved(self, name: str, why: str) -> Unserved:
        """The error for a field `name` that asks for what the families do not do."""
        error = Unserved(f"{self._where}: {name} {why}")
        error.field = name if self._where == WHOLE else None
        return error

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(name) is not None

    def take(self, name: str, default: Any) -> Any:
        """The field's value; null counts as absent."""
        self._taken.add(name)
        value = self._values.get(name)
        if value is not None:
            return value
        if default is ABSENT:
            raise self.wrong(name, "is missing")
        return default

    def whole(self, name: str, default: Any = ABSENT, *, least: int = 1, top: int) -> int:
        """A whole number in least..top."""
        value = self.take(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, f"is {value!r}, not a whole number")
        if not least <= value <= top:
            raise self.wrong(name, f"is {value}, outside {least}..{top}")
        return value

    def optional_whole(self, name: str, default: int | None, *, top: int) -> int | None:
        """A whole number, or None where the object says null, or is silent as `default` is."""
        self._taken.add(name)
        if not self.has(name) and (name in self._values or default is None):
            return None
        return self.whole(name, default, top=top)

    def number(self, name: str, default: Any = ABSENT, *, least: float = 0.0) -> float:
        """A finite number above `least`."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, f"is {value!r}, not a number")
        if not math.isfinite(value) or value <= least:
            raise self.wrong(name, f"is {value}, not a finite number above {least:g}")
        return float(value)

    def optional_number(self, name: str, default: float | None) -> float | None:
        """A number as above, or None where the object says null, or is silent as `default` is."""
        self._taken.add(name)
        if not self.has(name) and (name in self._values or default is None):
            return None
        return self.number(name, default)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """`count` finite numbers above 0."""
        value = self.take(name, ABSENT)
        if not isinstance(value, list) or len(value) != count:
            raise self.wrong(name, f"is not a list of {count} numbers")
        inner = Fields({str(at): one for at, one in enumerate(value)}, f"{self._where}: {name}")
        return tuple(inner.number(str(at)) for at in range(count))

    def switch(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, f"is {value!r}, not true or false")
        return value

    def text(self, name: str, default: Any = ABSENT) -> str:
        """A string."""
        value = self.take(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, f"is {value!r}, not a string")
        return value

    def ids(self, name: str, vocab: int) -> tuple[int, ...]:
        """Token ids: absent, one, or a list; those beyond `vocab` cannot occur, and go."""
        value = self.take(name, [])
        found = value if isinstance(value, list) else [value]
        if any(isinstance(one, bool) or not isinstance(one, int) for one in found):
            raise self.wrong(name, f"is {value!r}, not token ids")
        return tuple(one for one in found if 0 <= one < vocab)

    def refuse_unknown(
        self, harmless: frozenset[str], only_when: Mapping[str, tuple[object, ...]]
    ) -> None:
        """Raise Unserved for a field that nobody took and that may change the arithmetic."""
        for name, value in self._values.items():
            if value is None or name in self._taken or name in harmless:
                continue  # null is how a config says that it does not use a feature
            if name in only_when:
                if value in only_when[name]:
                    continue
                raise self.unserved(name, f"{_short(value)} is not served")
            raise self.unserved(name, f"{_short(value)} is a field this version does not know")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
