"""The published document and the API are one: what is asked by it is answered by it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("schemathesis")


def test_whatever_the_document_allows_is_answered_as_it_says(tmp_path: Path) -> None:
    """Some 200 cases over all operations; 2,000 and more: python -m integration.api_schema."""
    from api_schema import ask_everything

    found = ask_everything(tmp_path, 200)
    assert found.total() >= 200
    assert {one.rpartition(" ")[2][0] for one in found} <= {"2", "4"}
    assert any(one.startswith("POST /v1/chat/completions 200") for one in found)
