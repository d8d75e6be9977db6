"""Lines of a file: what is asked by each, what is wrong with one, and how its answer is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import UserError
from potluck.node.api.problem import wrong
from potluck.node.jobs.lines import (
    CHATS,
    COMPLETIONS,
    LINE_BYTES_MAX,
    TOLD_MAX,
    BatchSpec,
    Defaults,
    read_file,
    read_line,
    seed_of,
    told_problem,
    told_whole,
)

GREEDY = Defaults("demo", 7, {"max_tokens": 64, "temperature": 0.0})
DRAWN = Defaults("demo", 7, {"max_tokens": 64, "temperature": 0.8})
OPENAI = {"custom_id": "a", "method": "POST", "url": CHATS, "body": {"model": "demo"}}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def read(told: Any, defaults: Defaults = GREEDY, number: int = 1) -> Any:
    return read_line(number, json.dumps(told), defaults)


def known(model: str) -> None:
    if model != "demo":
        raise UserError(f"{model}: no such model")


def lines_of(*raw: bytes, defaults: Defaults = GREEDY) -> list[str]:
    return list(read_file(raw, "some.jsonl", defaults, known))


def test_a_plain_line_is_a_request_with_the_jobs_options_beneath_its_own() -> None:
    asked = read({"prompt": "Hello", "max_tokens": 9, "id": [1]}, number=4)
    assert (asked.number, asked.url, asked.label, asked.custom_id) == (4, COMPLETIONS, [1], None)
    assert asked.body == {
        "model": "demo", "prompt": "Hello", "max_tokens": 9, "temperature": 0.0,
    }  # fmt: skip
    talk = [{"role": "user", "content": "Hello"}]
    assert read({"messages": talk, "model": "org/name"}).body["model"] == "org/name"
    assert read({"messages": talk}).url == CHATS
    assert "max_tokens" not in read({"messages": talk, "max_completion_tokens": 5}).body
    assert read({"prompt": [1, 2, 3]}).body["prompt"] == [1, 2, 3]


def test_openais_line_keeps_its_own_words_and_gets_a_model_where_it_names_none() -> None:
    asked = read({**OPENAI, "body": {"messages": [], "temperature": 0}}, DRAWN)
    assert (asked.custom_id, asked.url) == ("a", CHATS)
    assert asked.body == {"model": "demo", "messages": [], "temperature": 0}
    assert read(OPENAI, Defaults("", 7, {})).model == "demo"


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ([1], "not a JSON object"),
        ({}, "either"),
        ({"prompt": "a", "messages": []}, "either"),
        ({"prompt": "a", "temprature": 1}, "temprature is not known"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens must be"),
        ({"prompt": ["a", "b"]}, "each prompt a line"),
        ({"prompt": "a", "stream": True}, "cannot stream"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"messages": []}, "at least 1"),
        ({**OPENAI, "custom_id": ""}, "custom_id"),
        ({"url": CHATS, "body": {}}, "custom_id"),
        ({**OPENAI, "method": "GET"}, "POST"),
        ({**OPENAI, "url": "/v1/images"}, "url"),
        ({**OPENAI, "body": "a"}, "body"),
        ({**OPENAI, "seed": 1}, "seed beside a body"),
    ],
)
def test_what_is_no_question_is_told(told: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        read(told)


@pytest.mark.parametrize("text", ["", "{", "NaN", '{"prompt": NaN}', "[" * 100_000, "1" * 5000])
def test_what_is_no_json_is_told(text: str) -> None:
    with pytest.raises(UserError, match="JSON"):
        read_line(1, text, GREEDY)


def test_a_plain_line_needs_a_model_from_somewhere() -> None:
    with pytest.raises(UserError, match="--model"):
        read({"prompt": "a"}, Defaults("", 7, {}))


def test_what_is_drawn_has_a_seed_by_its_number_and_what_is_not_has_none() -> None:
    assert "seed" not in read({"prompt": "a"}, GREEDY).body
    first, again, second = (read({"prompt": "a"}, DRAWN, number) for number in (1, 1, 2))
    assert first.body["seed"] == again.body["seed"] != second.body["seed"]
    assert read({"prompt": "a", "seed": 3}, DRAWN).body["seed"] == 3
    assert read({"prompt": "a", "temperature": 0}, DRAWN).body.get("seed") is None
    assert "seed" in read(OPENAI, GREEDY).body  # the API draws, where nothing is said


@given(st.integers(0, (1 << 62) - 1), st.integers(1, 1_000_000), st.integers(1, 1_000_000))
def test_seeds_are_of_their_line_alone_and_leave_room_for_its_choices(
    seed: int, one: int, other: int
) -> None:
    assert (seed_of(seed, one) == seed_of(seed, other)) == (one == other)
    assert 0 <= seed_of(seed, one) < 1 << 62


def test_seeds_do_not_change_from_version_to_version() -> None:
    """A job that was begun by one is ended by the next."""
    assert seed_of(7, 1) == 2447608711558325090


def test_a_file_is_read_whole_or_its_faults_are_named_by_line() -> None:
    good = b'\xef\xbb\xbf{"prompt": "a"}\r\n'
    assert lines_of(good, b'{"prompt": "b"}') == ['{"prompt": "a"}', '{"prompt": "b"}']
    bad = (good, b"\n", b"nope\n", b'{"prompt": "\xff"}\n', b'{"prompt": "a", "model": "x"}\n')
    with pytest.raises(UserError) as told:
        lines_of(*bad)
    assert str(told.value).startswith("some.jsonl: line 2: empty; line 3: not JSON")
    assert "line 4: not UTF-8" in str(told.value) and "line 5: x: no such" in str(told.value)
    assert str(told.value).endswith("nothing was started")
    with pytest.raises(UserError) as told:
        lines_of(*[b"nope\n"] * 1000)
    assert str(told.value).count("not JSON") == TOLD_MAX
    with pytest.raises(UserError, match="empty"):
        lines_of()
    with pytest.raises(UserError, match="line 1: longer than 1 MiB"):
        lines_of(b"x" * (LINE_BYTES_MAX + 1))


def test_two_lines_of_one_custom_id_are_told() -> None:
    line = json.dumps(OPENAI).encode()
    with pytest.raises(UserError, match="line 2: the custom_id 'a' is another"):
        lines_of(line, line)


def answer(*texts: str, chat: bool = False) -> dict[str, Any]:
    def said(text: str) -> dict[str, Any]:
        return {"message": {"content": text}} if chat else {"text": text}

    return {
        "choices": [{"index": at, **said(one), "finish_reason": "stop"}
                    for at, one in enumerate(texts)],
        "usage": USAGE,
        "potluck": {"seed": 5, "exact": True, "recoveries": 2},
    }  # fmt: skip


def test_an_answer_is_one_line_that_says_which_it_is_of() -> None:
    asked = read({"prompt": "a", "id": "q"}, number=3)
    line = told_whole(asked, 1, answer("one\u2028two"))
    assert line.isascii() and "\n" not in line
    assert json.loads(line) == {
        "line": 3, "id": "q", "text": "one\u2028two", "finish_reason": "stop",
        "prompt_tokens": 3, "completion_tokens": 2, "seed": 5, "exact": True,
    }  # fmt: skip
    several = read({"messages": [{"role": "user", "content": "a"}], "n": 2})
    told = json.loads(told_whole(several, 1, answer("x", "y", chat=True)))
    assert told["text"] == "x" and len(told["choices"]) == 2 and "id" not in told
    problem = json.loads(told_problem(asked, 1, wrong("too long", "prompt")))
    assert problem["line"] == 3 and problem["error"]["message"] == "too long"


def test_openais_line_is_answered_in_openais_shape() -> None:
    asked = read(OPENAI, number=8)
    told = json.loads(told_whole(asked, 2, answer("x", chat=True)))
    assert told["id"] == "batch_req_2_8" and told["custom_id"] == "a" and told["error"] is None
    assert told["response"]["status_code"] == 200 and told["response"]["request_id"]
    assert told["response"]["body"]["choices"][0]["message"]["content"] == "x"
    failed = json.loads(told_problem(asked, 2, wrong("too long", "prompt")))
    assert failed["response"]["status_code"] == 400 and failed["custom_id"] == "a"
    assert failed["response"]["body"]["error"]["param"] == "prompt"


def test_a_spec_is_read_as_it_was_written_and_what_is_new_in_it_passed_over() -> None:
    spec = BatchSpec("demo", {"max_tokens": 3}, 7, at_once=2, join=("/ip4/x",), out="/tmp/x")
    kept = json.loads(json.dumps(spec.facts()))
    assert BatchSpec.read(kept) == spec == BatchSpec.read({**kept, "of_tomorrow": 1})
    assert spec.defaults == Defaults("demo", 7, {"max_tokens": 3})
