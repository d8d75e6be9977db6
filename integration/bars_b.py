"""The bars of B, a network that any home can join: how each is measured, and when it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import trio

from .row import Row


def b1_data_plane() -> Iterator[Row]:
    from potluck.node.net.bench import bench_net

    found = trio.run(bench_net)
    command = "potluck bench net"
    for size in ("1KiB", "1MiB"):
        yield Row(
            "B1",
            f"{size} request on a long stream: at most 1.3 times trio TLS",
            f"{found[f'{size}_ratio']:.2f} ({found[f'ours_{size}_p50_ms']:.2f} ms)",
            found[f"{size}_ratio"] <= 1.3,
            command,
        )
    yield Row(
        "B1",
        "throughput at least 0.9 of trio TLS",
        f"{found['rate_ratio']:.2f} ({found['ours_MB_s']:.0f} MB/s)",
        found["rate_ratio"] >= 0.9,
        command,
    )
    yield Row(
        "B1",
        "1 KiB request beside 100 MiB: p99 below 10 ms",
        f"{found['beside_bulk_p99_ms']:.1f} ms",
        found["beside_bulk_p99_ms"] < 10,
        command,
    )
    yield Row(
        "B2",
        "connect (TCP, security, muxer, identify): p50 at most 25 ms",
        f"{found['ours_connect_p50_ms']:.1f} ms",
        found["ours_connect_p50_ms"] <= 25,
        command,
    )


def b3_nat() -> Iterator[Row]:
    from .nat_lab import measure

    found = measure()
    command = "python -m integration.nat_lab"
    yield Row(
        "B3",
        "NAT matrix: every pair connects within 10 s",
        f"{found['connected']} of {found['pairs']}, slowest {found['connected_s_max']} s",
        found["connected"] == found["pairs"] and found["connected_s_max"] <= 10,
        command,
    )
    yield Row(
        "B3",
        "every pair that theory allows is direct within 30 s; 70 % of the matrix",
        f"{found['allowed_direct']} of {found['allowed']}; {found['direct_share']:.0%} of all",
        found["allowed_direct"] == found["allowed"] and found["direct_share"] >= 0.7,
        command,
    )


def b4_interop() -> Iterator[Row]:
    from .interop import measure

    found = measure()
    cases = {name: case for name, case in found.items() if isinstance(case, dict)}
    failed = [name for name, case in cases.items() if "failed" in case]
    yield Row(
        "B4",
        "js-libp2p, unmodified: dial, Noise, yamux, ping, identify, gossipsub, DHT, relay",
        f"{len(cases) - len(failed)} of {len(cases)} cases pass {failed or ''}".strip(),
        not failed,
        "python -m integration.interop",
    )


def b7_crowd() -> Iterator[Row]:
    from .crowd import measure

    found: dict[str, Any] = measure()
    yield Row(
        "B7",
        "1,000 streams, each tenth read slowly: honest throughput unharmed, memory bounded",
        f"{found['share_kept']:.0%} kept, server grew {found['server_growth_mib']} MiB",
        found["share_kept"] >= 0.9 and found["server_growth_mib"] <= 64,
        "python -m integration.crowd",
    )


BARS: dict[str, Callable[[], Iterator[Row]]] = {
    "B1": b1_data_plane,
    "B3": b3_nat,
    "B4": b4_interop,
    "B7": b7_crowd,
}
