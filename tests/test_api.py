"""The API as an application, over a pretended swarm: what is answered, and what is refused."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from api_fakes import Answer, PretendedSwarm, ask, demo, with_tools
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potluck.errors import LocalError, MissingBlocks, Refused, TransportError
from potluck.node.api.app import BODY_BYTES_MAX, Api, Guard
from potluck.node.api.check import check
from potluck.node.api.grammar import Tokens
from potluck.node.api.http import ClientGone
from potluck.node.api.openapi import document
from potluck.node.api.responses import ANSWERS
from potluck.node.api.schemas import PARTS
from potluck.node.compute.sampling import Settings
from potluck.node.generation import Request, encode_request

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
ASKED = {"model": "demo", "prompt": "The function returns", "max_tokens": 12, "seed": 7}
TALK = {
    "model": "demo",
    "messages": [{"role": "user", "content": "What does len do?"}],
    "max_tokens": 12,
    "seed": 7,
}
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
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is",
        "parameters": {
            "type": "object",
            "properties": {"town": {"enum": ["Rome", "Oslo"]}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}


def fits(answer: Answer, name: str) -> Any:
    """The answer's JSON, which is what the published document says."""
    assert answer.headers["content-type"] == "application/json"
    check(answer.json, ANSWERS[name], {**PARTS, **ANSWERS})
    return answer.json


def complaint(answer: Answer, status: int) -> dict[str, Any]:
    assert answer.status == status, answer.body
    return fits(answer, "Error")["error"]


async def plain_text(swarm: PretendedSwarm, **drawn: Any) -> str:
    """What the generation code says by itself."""
    voice = demo().voice
    request = Request(
        voice, encode_request(voice, ASKED["prompt"]), Settings(**drawn), max_new_tokens=12
    )
    return "".join(piece.text for piece in await swarm.plainly(request))


async def test_a_completion_is_the_bits_that_the_plain_client_gives() -> None:
    swarm = PretendedSwarm()
    api = Api(swarm)
    told = fits(await ask(api, COMPLETIONS, ASKED), "Completion")
    assert told["choices"][0]["text"] == await plain_text(swarm, temperature=1.0, seed=7) != ""
    assert told["usage"] == {"prompt_tokens": 4, "completion_tokens": 12, "total_tokens": 16}
    assert told["potluck"]["seed"] == 7
    cold = fits(await ask(api, COMPLETIONS, {**ASKED, "temperature": 0}), "Completion")
    assert cold["choices"][0]["text"] == await plain_text(swarm)
    drawn = {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01}
    penal = {"repetition_penalty": 1.2}
    told = fits(await ask(api, COMPLETIONS, {**ASKED, **drawn, **penal}), "Completion")
    assert told["choices"][0]["text"] == await plain_text(swarm, **drawn, **penal, seed=7)
    # logprobs are told, and change nothing
    again = await ask(api, COMPLETIONS, {**ASKED, **drawn, **penal, "logprobs": 3})
    assert again.json["choices"][0]["text"] == told["choices"][0]["text"]


async def test_each_choice_has_a_seed_of_its_own() -> None:
    swarm = PretendedSwarm()
    api = Api(swarm)
    told = await ask(api, COMPLETIONS, {**ASKED, "n": 3, "prompt": ["The function returns"] * 2})
    texts = [one["text"] for one in told.json["choices"]]
    alone = [await plain_text(swarm, temperature=1.0, seed=seed) for seed in (7, 8, 9)]
    assert texts == alone * 2
    assert len(set(alone)) > 1
    assert [one["index"] for one in told.json["choices"]] == list(range(6))
    largest = {**ASKED, "seed": (1 << 64) - 1, "n": 2}
    lowest = {**ASKED, "seed": -1, "n": 2}
    assert (await ask(api, COMPLETIONS, largest)).json["choices"] == (
        await ask(api, COMPLETIONS, lowest)
    ).json["choices"]


async def test_an_integer_may_be_written_with_a_point() -> None:
    api = Api(PretendedSwarm())
    pointed = {**ASKED, "prompt": [5.0, 6.0], "n": 2.0, "seed": 7.0, "max_tokens": 3.0}
    plain = {**ASKED, "prompt": [5, 6], "n": 2, "seed": 7, "max_tokens": 3}
    told = [(await ask(api, COMPLETIONS, body)).json["choices"] for body in (pointed, plain)]
    assert told[0] == told[1]
    complaint(await ask(api, EMBEDDINGS, {"model": "demo", "input": [0.5]}), 400)


async def test_without_a_seed_one_is_drawn_and_told() -> None:
    api = Api(PretendedSwarm())
    body = {name: value for name, value in ASKED.items() if name != "seed"}
    told = (await ask(api, COMPLETIONS, body)).json
    again = await ask(api, COMPLETIONS, {**body, "seed": told["potluck"]["seed"]})
    assert again.json["choices"] == told["choices"]


@pytest.mark.parametrize("n", [1, 3])
async def test_a_stream_adds_up_to_the_whole(n: int) -> None:
    api = Api(PretendedSwarm())
    asked = {**TALK, "n": n, "logprobs": True, "top_logprobs": 2}
    whole = fits(await ask(api, CHAT, asked), "Chat")
    streamed = await ask(
        api, CHAT, {**asked, "stream": True, "stream_options": {"include_usage": True}}
    )
    assert streamed.headers["content-type"] == "text/event-stream"
    *chunks, last = streamed.events
    assert last["usage"] == whole["usage"] and last["choices"] == []
    assert all(one["usage"] is None for one in chunks)
    assert len({one["id"] for one in chunks}) == 1
    for index, choice in enumerate(whole["choices"]):
        mine = [one["choices"][0] for one in chunks if one["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(one["delta"].get("content") or "" for one in mine)
        assert text == choice["message"]["content"]
        notes = [note for one in mine if one["logprobs"] for note in one["logprobs"]["content"]]
        assert notes == choice["logprobs"]["content"]
        finishes = [one["finish_reason"] for one in mine]
        assert finishes == [None] * (len(mine) - 1) + [choice["finish_reason"]]
    plain = await ask(api, COMPLETIONS, {**ASKED, "stream": True, "logprobs": 1, "echo": False})
    parts = [one["choices"][0] for one in plain.events]
    told = (await ask(api, COMPLETIONS, {**ASKED, "logprobs": 1})).json["choices"][0]
    assert "".join(one["text"] for one in parts) == told["text"]
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        joined = [one for part in parts if part["logprobs"] for one in part["logprobs"][name]]
        assert joined == told["logprobs"][name]
    assert [one["finish_reason"] for one in parts][-1] == told["finish_reason"] == "length"


async def test_logprobs_are_chances_and_their_bytes_are_the_text() -> None:
    told = await ask(Api(PretendedSwarm()), CHAT, {**TALK, "logprobs": True, "top_logprobs": 20})
    choice = told.json["choices"][0]
    notes = choice["logprobs"]["content"]
    said = b"".join(bytes(note["bytes"]) for note in notes)
    assert said.decode() == choice["message"]["content"]
    for note in notes:
        chances = [one["logprob"] for one in note["top_logprobs"]]
        assert len(chances) == 20 and chances == sorted(chances, reverse=True)
        assert sum(map(math.exp, chances)) <= 1 + 1e-9
        assert note["logprob"] <= chances[0]


async def test_an_answer_ends_before_a_stop_and_says_so() -> None:
    api = Api(PretendedSwarm())
    text = (await ask(api, COMPLETIONS, ASKED)).json["choices"][0]["text"]
    stop = text[5:8]
    for given_ in (stop, [stop], ["never said", stop]):
        choice = (await ask(api, COMPLETIONS, {**ASKED, "stop": given_})).json["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (text[: text.find(stop)], "stop")


async def test_echo_tells_the_prompt_first() -> None:
    api = Api(PretendedSwarm())
    text = (await ask(api, COMPLETIONS, ASKED)).json["choices"][0]["text"]
    echoed = await ask(api, COMPLETIONS, {**ASKED, "echo": True})
    assert echoed.json["choices"][0]["text"] == ASKED["prompt"] + text
    odd = {**ASKED, "prompt": "one\u2028two\x85three\r\n\n", "echo": True, "stream": True}
    streamed = await ask(api, COMPLETIONS, odd)
    assert len(streamed.body.decode().splitlines()) == 2 * (len(streamed.events) + 1)
    assert streamed.events[0]["choices"][0]["text"].startswith(odd["prompt"])
    streamed = await ask(api, COMPLETIONS, {**ASKED, "echo": True, "stream": True})
    parts = [one["choices"][0]["text"] for one in streamed.events]
    assert "".join(parts) == ASKED["prompt"] + text


async def test_a_penalty_and_a_bias_change_what_is_said() -> None:
    api = Api(PretendedSwarm())
    greedy = {**ASKED, "temperature": 0, "max_tokens": 40, "logprobs": 0}
    plain = (await ask(api, COMPLETIONS, greedy)).json["choices"][0]
    other = (await ask(api, COMPLETIONS, {**greedy, "frequency_penalty": 2})).json["choices"][0]
    tokens, fewer = plain["logprobs"]["tokens"], other["logprobs"]["tokens"]
    assert len(set(fewer)) > len(set(tokens))
    biased = (await ask(api, COMPLETIONS, {**greedy, "logit_bias": {"300": 100}})).json
    assert biased["choices"][0]["logprobs"]["tokens"] == ["ct"] * 40


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


async def test_embeddings_are_unit_means_in_both_encodings() -> None:
    api = Api(PretendedSwarm())
    texts = ["hello", "the function returns", "hello"]
    told = fits(await ask(api, EMBEDDINGS, {"model": "demo", "input": texts}), "Embeddings")
    coded = await ask(
        api, EMBEDDINGS, {"model": "demo", "input": texts, "encoding_format": "base64"}
    )
    for one, other in zip(told["data"], coded.json["data"], strict=True):
        raw = np.frombuffer(base64.b64decode(other["embedding"]), dtype="<f4")
        np.testing.assert_array_equal(np.array(one["embedding"], dtype=np.float32), raw)
        assert np.linalg.norm(raw) == pytest.approx(1, abs=1e-5)
    voice = demo().voice
    mean = voice.ends.embed(voice.prompt("hello")).mean(0)
    np.testing.assert_allclose(told["data"][0]["embedding"], mean / mean.norm(), rtol=1e-5)
    assert told["data"][0]["embedding"] == told["data"][2]["embedding"]
    one = await ask(api, EMBEDDINGS, {"model": "demo", "input": voice.prompt("hello")})
    assert one.json["data"][0]["embedding"] == told["data"][0]["embedding"]


@pytest.mark.parametrize(
    ("path", "change", "status", "param"),
    [
        (COMPLETIONS, {"model": "other"}, 404, "model"),
        (COMPLETIONS, {"model": None}, 400, "model"),
        (COMPLETIONS, {"prompt": ""}, 400, "prompt"),
        (COMPLETIONS, {"prompt": []}, 400, "prompt"),
        (COMPLETIONS, {"prompt": ["a", 3]}, 400, "prompt[1]"),
        (COMPLETIONS, {"prompt": [3072]}, 400, None),
        (COMPLETIONS, {"prompt": [[1], []]}, 400, "prompt[1]"),
        (COMPLETIONS, {"prompt": "half \ud800"}, 400, "prompt"),
        (COMPLETIONS, {"prompt": "word " * 2000}, 400, None),
        (COMPLETIONS, {"max_tokens": 2000}, 400, "max_tokens"),
        (COMPLETIONS, {"max_tokens": 0}, 400, "max_tokens"),
        (COMPLETIONS, {"max_tokens": 1.5}, 400, "max_tokens"),
        (COMPLETIONS, {"max_tokens": True}, 400, "max_tokens"),
        (COMPLETIONS, {"temperature": -1}, 400, "temperature"),
        (COMPLETIONS, {"temperature": "hot"}, 400, "temperature"),
        (COMPLETIONS, {"top_p": 0}, 400, "top_p"),
        (COMPLETIONS, {"seed": 1 << 64}, 400, "seed"),
        (COMPLETIONS, {"n": 17}, 400, "n"),
        (COMPLETIONS, {"n": 16, "prompt": ["a"] * 5}, 400, "n"),
        (COMPLETIONS, {"stop": ""}, 400, "stop"),
        (COMPLETIONS, {"stop": ["a", ""]}, 400, "stop[1]"),
        (COMPLETIONS, {"stream_options": {"include_usage": True}}, 400, "stream_options"),
        (COMPLETIONS, {"best_of": 2}, 400, "best_of"),
        (COMPLETIONS, {"suffix": "end"}, 400, "suffix"),
        (COMPLETIONS, {"echo": True, "logprobs": 1}, 400, "echo"),
        (COMPLETIONS, {"logit_bias": {"one": 1}}, 400, "logit_bias"),
        (COMPLETIONS, {"logit_bias": {"3072": 1}}, 400, "logit_bias"),
        (COMPLETIONS, {"logit_bias": {"1": 101}}, 400, "logit_bias.1"),
        (COMPLETIONS, {"unheard_of": 1}, 400, "unheard_of"),
        (CHAT, {"messages": []}, 400, "messages"),
        (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0].role"),
        (CHAT, {"max_completion_tokens": 3}, 400, "max_tokens"),
        (CHAT, {"top_logprobs": 3}, 400, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
        (CHAT, {"tools": [WEATHER]}, 400, "tools"),  # the demo's template knows none
        (CHAT, {"tool_choice": "required"}, 400, "tool_choice"),
        (CHAT, {"response_format": {"type": "json_schema"}}, 400, None),
        (CHAT, {"response_format": {"type": "yaml"}}, 400, "response_format.type"),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": 5}]}, 400, None),
        (CHAT, {"messages": [{"role": "assistant"}]}, 400, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": [3]}]}, 400, None),
        (EMBEDDINGS, {"input": ""}, 400, "input"),
        (EMBEDDINGS, {"dimensions": 5}, 400, "dimensions"),
        (EMBEDDINGS, {"encoding_format": "text"}, 400, "encoding_format"),
    ],
)
async def test_what_is_wrong_is_named(
    path: str, change: dict[str, Any], status: int, param: str | None
) -> None:
    swarm = PretendedSwarm()
    body = {CHAT: TALK, COMPLETIONS: ASKED, EMBEDDINGS: {"model": "demo", "input": "x"}}[path]
    told = complaint(await ask(Api(swarm), path, {**body, **change}), status)
    assert told["message"] and told["code"] and told["type"] == "invalid_request_error"
    if param is not None:
        assert told["param"] == param
    assert swarm.opened == 0


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "#/nowhere"},
        {"$ref": "http://example.invalid/x"},
        {"not": {"type": "string"}},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"anyOf": [{"$ref": "#"}]},
        {"type": "string", "pattern": "("},
    ],
)
async def test_a_schema_that_cannot_be_kept_is_refused_before_an_answer(schema: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    told = complaint(
        await ask(Api(PretendedSwarm()), CHAT, {**TALK, "response_format": wanted}), 400
    )
    assert "schema" in told["message"]


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"model": NaN}', b"1" * 10_000],
)
async def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    for path in (CHAT, COMPLETIONS, EMBEDDINGS):
        assert complaint(await ask(Api(PretendedSwarm()), path, raw=raw), 400)


async def test_other_paths_methods_and_kinds_of_body_are_refused() -> None:
    api = Api(PretendedSwarm())
    for path in ("/", "/v1", "/v1/batches", "/v1/files", "/v1/fine_tuning/jobs", "/v2/models"):
        assert complaint(await ask(api, path), 404)["code"] == "unknown_url"
        complaint(await ask(api, path, {}), 404)
    assert complaint(await ask(api, "/v1/models/nobody"), 404)["code"] == "model_not_found"
    answer = await ask(api, COMPLETIONS, method="GET")
    assert complaint(answer, 405) and answer.headers["allow"] == "POST"
    for kind in ("text/plain", "", "application/x-www-form-urlencoded"):
        complaint(await ask(api, COMPLETIONS, ASKED, headers={"content-type": kind}), 415)
    large = {**ASKED, "user": "x" * BODY_BYTES_MAX}
    complaint(await ask(api, COMPLETIONS, large), 413)
    told = {"content-length": str(BODY_BYTES_MAX + 1)}
    complaint(await ask(api, COMPLETIONS, ASKED, headers=told), 413)


async def test_a_key_is_asked_for_where_there_is_one() -> None:
    api = Api(PretendedSwarm(), Guard(("secret", "other"), here=False))
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
        for path in ("/v1/models", "/metrics", "/nowhere"):
            answer = await ask(api, path, headers=headers)
            assert complaint(answer, 401)["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"
    for key in ("secret", "other"):
        told = await ask(api, "/v1/models", headers={"authorization": f"Bearer {key}"})
        assert told.status == 200
    assert (await ask(api, "/health")).status == 200


async def test_without_a_key_only_this_machines_names_are_answered() -> None:
    api = Api(PretendedSwarm())
    for host in ("localhost", "localhost:11545", "127.0.0.1:1", "[::1]:11545", "[::1]"):
        assert (await ask(api, "/v1/models", headers={"host": host})).status == 200
    for host in ("evil.example", "evil.example:11545", "localhost.evil.example", "", "10.0.0.1"):
        complaint(await ask(api, "/v1/models", headers={"host": host}), 403)


@pytest.mark.parametrize(
    ("failing", "status", "waits"),
    [
        (MissingBlocks("demo", ((0, 4),)), 503, "5"),
        (Refused("every peer is full", retry_after_s=0.25), 429, "1"),
        (TransportError("the road broke"), 503, "1"),
    ],
)
async def test_a_swarm_that_cannot_now_says_when_to_come_back(
    failing: Exception, status: int, waits: str
) -> None:
    swarm = PretendedSwarm(failing=failing)
    api = Api(swarm)
    embedding = {"model": "demo", "input": ["a", "b"]}
    streamed = {**TALK, "stream": True}
    for path, body in ((COMPLETIONS, ASKED), (CHAT, streamed), (EMBEDDINGS, embedding)):
        answer = await ask(api, path, body)
        complaint(answer, status)
        assert answer.headers["retry-after"] == waits
    assert swarm.open == 0 and api.answers == 0


async def test_an_answer_that_fails_on_the_way_ends_with_the_error() -> None:
    swarm = PretendedSwarm(failing=MissingBlocks("demo", ((0, 4),)), after=3)
    answer = await ask(Api(swarm), COMPLETIONS, {**ASKED, "stream": True, "logprobs": 0})
    assert answer.status == 200
    events = [one.removeprefix("data: ") for one in answer.body.decode().split("\n\n")[:-1]]
    assert len(events) == 4
    assert json.loads(events[-1])["error"]["code"] == "missing_blocks"


async def test_our_own_fault_is_told_and_ends_nobody_elses_answer(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for failing in (LocalError("broken"), ZeroDivisionError("broken")):
        api = Api(PretendedSwarm(failing=failing))
        answer = await ask(api, EMBEDDINGS, {"model": "demo", "input": "a"})
        assert answer.status == 500 and answer.json["error"]["code"] == "our_fault"
        assert (await ask(api, "/health")).status == 200
    assert "broken" in capfd.readouterr().err


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_its_answers_at_once(stream: bool) -> None:
    swarm = PretendedSwarm()
    api = Api(swarm)
    body = {**ASKED, "max_tokens": 900, "n": 3, "stream": stream, "ignore_eos": True}
    with pytest.raises(ClientGone):
        await ask(api, COMPLETIONS, body, leave_after=3 if stream else 0)
    assert swarm.open == 0 and api.answers == 0
    assert b"potluck_api_disconnects_total 1.0" in api.metrics.text()


async def test_too_many_answers_at_a_time_are_told_to_come_back() -> None:
    swarm = PretendedSwarm()
    api = Api(swarm, answers_max=2)
    long = {**ASKED, "max_tokens": 1000, "ignore_eos": True}
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(ask, api, COMPLETIONS, long)
        while swarm.open < 2:
            await trio.lowlevel.checkpoint()
        answer = await ask(api, COMPLETIONS, ASKED)
        assert complaint(answer, 429)["type"] == "rate_limit_error"
        assert int(answer.headers["retry-after"]) >= 1
        assert (await ask(api, "/v1/models")).status == 200
        nursery.cancel_scope.cancel()
    assert swarm.open == 0 and api.answers == 0
    assert (await ask(api, COMPLETIONS, ASKED)).status == 200


async def test_models_health_metrics_and_the_document_are_there() -> None:
    swarm = PretendedSwarm()
    api = Api(swarm)
    told = fits(await ask(api, "/v1/models"), "Models")
    assert [one["id"] for one in told["data"]] == ["demo", "org/name"]
    for path in ("/v1/models/demo", "/v1/models/org/name", "/v1/models/org%2Fname"):
        assert fits(await ask(api, path), "Model")["object"] == "model"
    assert fits(await ask(api, "/health"), "Health") == {"status": "ok", "peers": 3}
    swarm.neighbours = 0
    assert complaint(await ask(api, "/health"), 503)
    assert (await ask(api, "/openapi.json")).json == json.loads(json.dumps(document(keyed=False)))
    await ask(api, COMPLETIONS, ASKED)
    text = (await ask(api, "/metrics")).body.decode()
    assert 'potluck_api_requests_total{route="/v1/completions",status="200"} 1.0' in text
    assert 'potluck_api_tokens_total{model="demo"} 12.0' in text
    assert "potluck_api_first_token_seconds_count 1.0" in text


def test_every_reference_in_the_document_leads_somewhere() -> None:
    told = document(keyed=True)

    def walk(value: object) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                assert value["$ref"].rpartition("/")[2] in told["components"]["schemas"]
            for one in value.values():
                walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)

    walk(told)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("demo")
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
names = sorted(
    {name for part in ("ChatRequest", "CompletionRequest") for name in PARTS[part]["properties"]}
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([CHAT, COMPLETIONS, EMBEDDINGS]), st.data())
def test_no_body_whatever_is_our_fault(path: str, data: st.DataObject) -> None:
    """A good body with a few fields replaced by anything."""
    good = {CHAT: TALK, COMPLETIONS: ASKED, EMBEDDINGS: {"model": "demo", "input": "x"}}[path]
    change = data.draw(st.dictionaries(st.sampled_from([*names, "input"]), anything, max_size=3))
    body = {**good, **change}
    try:
        raw = json.dumps(body).encode()
    except ValueError:
        return
    if isinstance(body.get("max_tokens"), int) and body["max_tokens"] > 12:
        body["max_tokens"] = 12

    async def check_it() -> None:
        answer = await ask(Api(PretendedSwarm()), path, raw=raw)
        assert answer.status in (200, 400, 404), (answer.status, answer.body, raw)

    trio.run(check_it)
