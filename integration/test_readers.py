"""Bar 2 of issue H, in small: no reader of the API notices that nodes are killed."""

import pytest

from .readers import measure


@pytest.mark.slow
def test_readers_do_not_notice_kills() -> None:
    found = measure(readers=6, seconds=15.0, every_s=5.0)
    assert found["kills"] >= 2 and found["answers"] >= 6, found
    assert not found["failures"] and not any(found["left_open"].values()), found
