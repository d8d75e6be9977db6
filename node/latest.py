"""What was asked for last: so many of a kind are kept, and of too many the oldest go."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Latest(Generic[K, V]):
    """By name, what takes long to make again. most: how many are kept."""

    def __init__(self, most: int) -> None:
        assert most > 0
        self._most = most
        self._found: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, name: K) -> V | None:
        """None for what never came, or went. Whoever is asked for stays longer."""
        if name in self._found:
            self._found.move_to_end(name)
        return self._found.get(name)

    def put(self, name: K, value: V) -> V:
        """The value, which is kept from now on."""
        self._found[name] = value
        self._found.move_to_end(name)
        while len(self._found) > self._most:
            self._found.popitem(last=False)
        return value

    def items(self) -> list[tuple[K, V]]:
        """The one that was asked for longest ago first."""
        return list(self._found.items())
