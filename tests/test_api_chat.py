"""A conversation: schemas that are kept, tools that are called, templates, and no tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from api_fakes import (
    CHAT,
    TALK,
    WEATHER,
    PretendedSwarm,
    ask,
    complaint,
    demo,
    fits,
    with_tools,
)

from potluck.node.api.app import Api
from potluck.node.api.check import check
from potluck.node.api.grammar import Tokens
from potluck.node.compute.sampling import Settings
from potluck.node.generation import Request

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(6))
async def test_an_answer_under_a_schema_is_json_that_keeps_it(seed: int) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA}}
    body = {**TALK, "seed": seed, "response_format": wanted, "max_tokens": 200}
    choice = (await ask(Api(PretendedSwarm()), CHAT, body)).json["choices"][0]
    assert choice["finish_reason"] == "stop"
    told = json.loads(choice["message"]["content"])
    check(told, SCHEMA, {})


async def test_json_object_is_an_object() -> None:
    body = {**TALK, "response_format": {"type": "json_object"}, "max_tokens": 150}
    choice = (await ask(Api(PretendedSwarm()), CHAT, {**body, "temperature": 0.3})).json["choices"]
    text = choice[0]["message"]["content"]
    assert text.startswith("{")
    if choice[0]["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
async def test_a_forced_call_is_a_call_with_the_arguments_it_may_have(
    choice: object, stream: bool
) -> None:
    api = Api(PretendedSwarm(with_tools()))
    body = {**TALK, "tools": [WEATHER], "tool_choice": choice, "max_tokens": 80, "stream": stream}
    answer = await ask(api, CHAT, body)
    if stream:
        parts = [one["choices"][0] for one in answer.events]
        calls = [call for one in parts for call in one["delta"].get("tool_calls", ())]
        assert "".join(one["delta"].get("content") or "" for one in parts) == ""
        finish = parts[-1]["finish_reason"]
    else:
        told = fits(answer, "Chat")["choices"][0]
        assert told["message"]["content"] is None
        calls, finish = told["message"]["tool_calls"], told["finish_reason"]
    assert finish == "tool_calls"
    assert len(calls) == 1 and calls[0]["function"]["name"] == "weather"
    assert json.loads(calls[0]["function"]["arguments"])["town"] in ("Rome", "Oslo")


async def test_the_template_sees_tools_and_the_calls_of_before() -> None:
    language = with_tools()
    api = Api(PretendedSwarm(language))
    call = {"id": "c1", "type": "function"}
    call["function"] = {"name": "weather", "arguments": '{"town": "Rome"}'}
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "How is "}, {"type": "text", "text": "it?"}],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    told = await ask(api, CHAT, {**TALK, "messages": messages, "tools": [WEATHER]})
    expected = (
        f"Tools: {json.dumps([WEATHER])} <tool_call>user: How is it?\n"
        "assistant: [('town', 'Rome')]\ntool: sunny\nassistant:"
    )
    ids = language.voice.text.encode(expected, special=False)
    assert told.json["usage"]["prompt_tokens"] == len(ids)


async def test_a_chat_is_asked_in_the_words_of_potluck_chat() -> None:
    language = demo()
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Héllo?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "What does len do?"},
    ]
    ids = language.voice.text.chat(messages)
    told = await ask(Api(PretendedSwarm()), CHAT, {**TALK, "messages": messages})
    plain = await PretendedSwarm().plainly(
        Request(language.voice, tuple(ids), Settings(1.0, seed=7), max_new_tokens=12)
    )
    choice = told.json["choices"][0]
    assert choice["message"]["content"] == "".join(piece.text for piece in plain)
    assert told.json["usage"]["prompt_tokens"] == len(ids)


async def test_a_tokenizer_that_cannot_be_read_still_answers(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    language = replace(demo(), tokens=Tokens(tmp_path / "tokenizer.json", demo().voice))
    api = Api(PretendedSwarm(language))
    told = await ask(api, CHAT, {**TALK, "logprobs": True})
    assert told.json["choices"][0]["logprobs"]["content"]
    wanted = {"type": "json_object"}
    told = complaint(await ask(api, CHAT, {**TALK, "response_format": wanted}), 400)
    assert "tokenizer" in told["message"]
