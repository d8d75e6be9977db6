"""A group of one exception is that one: nurseries wrap what passes through them."""

from __future__ import annotations


def only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception in a group of one, so that callers can catch it by its name."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found
