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


def b5_directory() -> Iterator[Row]:
    from .dht_scale import measure

    found = measure()
    command = "potluck bench dht"
    yield Row(
        "B5",
        "64 hosts: a record is read, fresh and validated: p50 at most 150 ms",
        f"{found['read_ms_p50']} ms, {found['read_fresh_share']:.1%} fresh",
        found["read_ms_p50"] <= 150 and found["read_fresh_share"] == 1,
        command,
    )
    yield Row(
        "B5",
        "after killing 30 %: at least 99 % of live records read, p50 at most 500 ms",
        f"{found['after_kill_share']:.1%}, {found['after_kill_ms_p50']} ms",
        found["after_kill_share"] >= 0.99 and found["after_kill_ms_p50"] <= 500,
        command,
    )
    yield Row(
        "B5",
        "a host at rest: at most 0.4 % of a core; a bootstrap process at most 110 MiB",
        f"{found['idle_cpu_share_per_host']:.2%}; {found['light_node_pss_mib']} MiB",
        found["idle_cpu_share_per_host"] <= 0.004 and 0 < found["light_node_pss_mib"] <= 110,
        command,
    )


def b6_hostile() -> Iterator[Row]:
    from .dht_hostile import measure

    found = measure()
    for attack in ("mixed", "eclipse"):
        yield Row(
            "B6",
            f"30 % hostile, {attack}: at least 99 % of look-ups end with the right record",
            f"{found[attack]['right_share']:.2%} of {found[attack]['lookups']}",
            found[attack]["right_share"] >= 0.99,
            "python -m integration.dht_hostile",
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


def b8_day() -> Iterator[Row]:
    from .dht_day import measure

    found = measure()
    command = "python -m integration.dht_day"
    day, real = found["virtual"], found["real"]
    early, late = day["after_a_tenth"], day["at_the_end"]
    yield Row(
        "B8",
        "twenty-four virtual hours of churn: no leak of tasks, streams or memory",
        f"{day['visits']} visits; tasks {early['tasks']} to {late['tasks']}, streams "
        f"{early['streams']} to {late['streams']}, memory {day['memory_growth']:+.1%}",
        late["tasks"] <= 1.5 * early["tasks"]
        and late["streams"] <= 1.5 * early["streams"] + 10
        and day["memory_growth"] <= 0.1,
        command,
    )
    early, late = real["after_a_fifth"], real["at_the_end"]
    yield Row(
        "B8",
        "real hosts that come and go: no leak of sockets, streams, tasks or memory",
        f"{real['visits']} visits; descriptors {early['descriptors']} to {late['descriptors']}, "
        f"streams {late['streams']}, tasks {early['tasks']} to {late['tasks']}, "
        f"memory {real['memory_growth']:+.1%}",
        late["descriptors"] <= early["descriptors"]
        and late["streams"] == 0
        and late["tasks"] <= early["tasks"]
        and real["memory_growth"] <= 0.05,
        command,
    )


BARS: dict[str, Callable[[], Iterator[Row]]] = {
    "B1": b1_data_plane,
    "B3": b3_nat,
    "B4": b4_interop,
    "B5": b5_directory,
    "B6": b6_hostile,
    "B7": b7_crowd,
    "B8": b8_day,
}
