"""The memory of a session: it grows, forgets and is counted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import RemoteError
from potluck.node.compute.cache import Cache, bytes_per_token
from potluck.node.compute.pages import PAGE_TOKENS
from potluck.node.compute.spec import ModelSpec

SPEC = ModelSpec.from_config(
    {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
        "max_position_embeddings": 4096,
    }
)


def opened(max_tokens: int = 1000, start: int = 1, stop: int = 3) -> Cache:
    return Cache(
        SPEC,
        start,
        stop,
        max_tokens=max_tokens,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_a_token_costs_its_keys_and_values_in_every_block() -> None:
    # 2 blocks, keys and values, 2 key heads of 8 numbers, 4 bytes each
    assert bytes_per_token(SPEC, 2, 4) == 2 * 2 * 2 * 8 * 4
    assert opened().bytes_for(10) == 10 * bytes_per_token(SPEC, 2, 4)


def test_a_new_cache_is_small_whatever_it_may_grow_to() -> None:
    assert opened(max_tokens=4096).capacity == PAGE_TOKENS
    assert opened(max_tokens=5).capacity == 5


def test_growth_keeps_what_is_remembered() -> None:
    cache = opened()
    cache.rows(1)[:] = 1.0
    cache.rows(2)[:] = 2.0
    cache.length = PAGE_TOKENS
    cache.reserve(700)
    assert cache.capacity >= 700
    assert bool((cache.rows(1)[:PAGE_TOKENS] == 1).all())
    assert bool((cache.rows(2)[:PAGE_TOKENS] == 2).all())


@given(st.integers(1, 4096), st.integers(1, 5000))
def test_growth_never_exceeds_what_was_agreed(max_tokens: int, wanted: int) -> None:
    cache = opened(max_tokens)
    if wanted > max_tokens:
        with pytest.raises(RemoteError, match="beyond"):
            cache.reserve(wanted)
    else:
        cache.reserve(wanted)
        assert wanted <= cache.capacity <= max_tokens


def test_rows_are_aligned_and_their_stride_does_not_tell_the_capacity() -> None:
    """What a kernel sees of a row must not depend on how the cache came to its size."""
    for max_tokens in (1, 7, 64, 1000):
        cache = opened(max_tokens)
        cache.reserve(max_tokens)
        for block in (1, 2):
            assert cache.rows(block).data_ptr() % 64 == 0
            assert cache.rows(block).stride() == (SPEC.kv_width, 1)


def test_truncation_goes_back_and_never_forward() -> None:
    cache = opened()
    cache.length = 10
    cache.truncate(4)
    assert cache.length == 4
    for at in (5, -1):
        with pytest.raises(RemoteError, match="truncation"):
            cache.truncate(at)


def test_a_cache_that_is_let_go_holds_no_memory() -> None:
    cache = opened()
    cache.length = 10
    cache.release()
    assert cache.length == 0
    with pytest.raises(RemoteError):
        cache.check(0, 1)


def test_what_may_be_written_next_is_known_before_it_is_computed() -> None:
    cache = opened(max_tokens=100)
    cache.length = 10
    cache.check(10, 100)
    cache.check(0, 5)
    for at, stop in ((11, 12), (-1, 5), (10, 101)):
        with pytest.raises(RemoteError):
            cache.check(at, stop)
