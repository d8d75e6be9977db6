"""The bars of H, what people touch: how each is measured, and when it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .row import Row

CASES = 2000


def h1_document() -> Iterator[Row]:
    from .api_schema import measure

    found, failed = measure(CASES)
    yield Row(
        "H1",
        f"{CASES:,} cases from our published document: no 5xx",
        f"{failed} of {found} answered with 5xx",
        found >= CASES and not failed,
        f"python -m integration.api_schema --cases {CASES}",
    )


def h2_readers() -> Iterator[Row]:
    from .readers import measure

    found = measure()
    command = "python -m integration.readers"
    yield Row(
        "H2",
        "64 readers for ten minutes, a kill every 15 s: no failed request; p99 stall reported",
        f"{found['failed']} of {found['answers']:,} answers failed, {found['kills']} kills; a "
        f"stall is {found['stall_ms_p50']:.0f} ms at p50, {found['stall_ms_p99']:.0f} at p99, "
        f"{found['stall_ms_max']:.0f} at most; {found['tokens_per_s']} tokens/s",
        found["answers"] > 0 and not found["failed"],
        command,
    )
    yield Row(
        "H2",
        "no leak",
        f"left open in nodes: {sum(found['left_open'].values())}; the API's own memory grew by "
        f"{found['api_growth']:.1%} in three quarters of the time",
        found["holds"],
        command,
    )


BARS: dict[str, Callable[[], Iterator[Row]]] = {"H1": h1_document, "H2": h2_readers}
