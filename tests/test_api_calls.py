"""Tool calls, read out of a text that comes in any pieces."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.node.api.asked import Tools
from potluck.node.api.calls import CallReader

FUNCTIONS = ({"name": "look"}, {"name": "go"})


def read(
    text: str, cuts: list[int], *, tagged: bool, many: bool = True
) -> tuple[str, list[tuple[str, object]]]:
    reader = CallReader(Tools(FUNCTIONS, tagged, "arguments", forced=False, many=many))
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    said, calls = "", []
    for start, stop in itertools.pairwise(edges):
        new, found = reader.push(text[start:stop])
        said, calls = said + new, calls + found
    new, found = reader.finish()
    said, calls = said + new, calls + found
    assert calls == reader.calls
    assert len({one.id for one in calls}) == len(calls)
    return said, [(one.name, json.loads(one.arguments)) for one in calls]


LOOK = '{"name": "look", "arguments": {"at": "<b>"}}'
GO = '{"name": "go", "parameters": {}}'
cuts = st.lists(st.integers(0, 200), max_size=12)


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("Just words < and <tool", "Just words < and <tool", []),
        (f"<tool_call>\n{LOOK}\n</tool_call>", "", [("look", {"at": "<b>"})]),
        (
            f"Well. <tool_call>{LOOK}</tool_call>\n<tool_call>\n{GO}</tool_call>\n",
            "Well. ",
            [("look", {"at": "<b>"}), ("go", {})],
        ),
        (f"<tool_call>{LOOK}", "", [("look", {"at": "<b>"})]),  # the end tag was the end
        ('<tool_call>{"name": "fly"}</tool_call>',) * 2 + ([],),  # nobody offered that
        ("<tool_call>no JSON</tool_call> and on",) * 2 + ([],),
        ("<tool_call>never closed",) * 2 + ([],),
    ],
)
@given(cuts=cuts)
def test_tagged_calls_are_read_and_the_rest_is_text(
    text: str, said: str, calls: list[object], cuts: list[int]
) -> None:
    found, told = read(text, cuts, tagged=True)
    assert told == calls
    assert found == said or (calls and found.strip() == said.strip())


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("Just words {", "Just words {", []),
        (LOOK, "", [("look", {"at": "<b>"})]),
        (f"\n[{LOOK}, {GO}]", "", [("look", {"at": "<b>"}), ("go", {})]),
        ('{"name": "fly"}',) * 2 + ([],),
        ("[1, 2",) * 2 + ([],),
        ("",) * 2 + ([],),
    ],
)
@given(cuts=cuts)
def test_bare_calls_are_read_when_they_are_all_of_it(
    text: str, said: str, calls: list[object], cuts: list[int]
) -> None:
    assert read(text, cuts, tagged=False) == (said, calls)


def test_one_call_is_enough_where_they_may_not_be_parallel() -> None:
    both = f"<tool_call>{LOOK}</tool_call><tool_call>{GO}</tool_call>"
    assert read(both, [], tagged=True, many=False)[1] == [("look", {"at": "<b>"})]
    assert read(f"[{LOOK},{GO}]", [], tagged=False, many=False)[1] == [("look", {"at": "<b>"})]
