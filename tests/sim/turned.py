"""Bytes of which one is another."""

from __future__ import annotations


def turned(raw: bytes) -> bytes:
    """With another last byte, whatever that was."""
    return raw[:-1] + bytes([raw[-1] ^ 1])
