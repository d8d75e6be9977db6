"""How much one connection may hold, and how long it may be silent: yamux's limits, and ours.

Source: go-yamux's defaults where there are such; the others were measured, or say "guess".
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MuxConfig:
    """Limits of one connection. A tick is the host's, one second."""

    # Measured on loopback: the full rate, and a small message stands behind 2 ms of bulk.
    first_window_bytes: int = 768 * 1024
    # 100 Mbit/s, twice, for a window is granted anew by halves: else a long way's first bytes wait
    first_rate_bytes_s: int = 25_000_000
    largest_window_bytes: int = 8 * 1024 * 1024  # 1 Gbit/s over 60 ms
    granted_bytes_max: int = 64 * 1024 * 1024  # beyond it, new streams get the spec's 256 KiB
    inbound_streams_max: int = 1024  # go-yamux's own limit
    unacked_streams_max: int = 256  # go-yamux's accept backlog
    control_bytes_max: int = 32 * 1024  # 2,700 frames that a peer provokes but does not read
    ping_after_ticks: int = 5  # guess: NATs forget TCP after minutes, users after seconds
    dead_after_ticks: int = 10  # issue B asks for "10 s or so"
    doubted_ticks: int = 4  # guess: of them, for a peer that has connected anew: why would it?
    linger_ticks: int = 30  # guess: how long a peer may take to end a stream that we closed

    def first_window(self, way_s: float) -> int:
        """Bytes for a new stream. way_s: there and back."""
        far = min(int(self.first_rate_bytes_s * way_s), self.largest_window_bytes)
        return max(self.first_window_bytes, far)
