"""How far classes of numbers differ, measured on one window of the shipped model."""

from __future__ import annotations

import pytest

from potluck.node.compute import numerics
from potluck.node.compute.native.library import why_not
from potluck.node.library import DEMO_FOLDER


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of modules whose texts are read
@pytest.mark.skipif(why_not() is not None, reason=f"no C kernels: {why_not()}")
def test_ours_and_torch_differ_by_roundings_and_formats_by_what_they_lose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without halves, of which torch is slow on a processor: test_block.py has them."""
    wide = tuple(one for one in numerics.CLASSES if one[2] not in ("bf16", "fp16"))
    monkeypatch.setattr(numerics, "CLASSES", wide)
    found = numerics.measure(str(DEMO_FOLDER), windows=1)
    by = {(one.of, one.reference): one for one in found.differences}
    assert by["none torch fp32", "none ours"].p99 < 1e-5
    assert by["int8 torch fp32", "int8 ours"].p99 < 1e-3
    assert by["nf4 torch fp32", "nf4 ours"].p99 < 1e-3
    assert 3e-3 < by["int8 ours", "none ours"].median < 3e-2
    assert 3e-2 < by["nf4 ours", "none ours"].median < 3e-1
    for format in ("none", "int8", "nf4"):  # pages of 8 bits are a class too, with a price
        assert 1e-4 < by[f"{format} ours kv8", f"{format} ours"].median < 2e-2
    assert found.perplexity["nf4 ours"] > found.perplexity["none ours"]
