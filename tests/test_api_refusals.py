"""What the API refuses, each with what is wrong: bodies, schemas, paths, keys, names."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from api_fakes import (
    ASKED,
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    TALK,
    WEATHER,
    PretendedSwarm,
    ask,
    complaint,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potluck.node.api.app import Api
from potluck.node.api.asking import BODY_BYTES_MAX, Guard
from potluck.node.api.schemas import PARTS


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
        # numbers that no float can be
        (COMPLETIONS, {"temperature": 10**400}, 400, "temperature"),
        (COMPLETIONS, {"max_tokens": 10**400}, 400, "max_tokens"),
        (COMPLETIONS, {"seed": -(10**4000)}, 400, "seed"),
        (COMPLETIONS, {"prompt": [10**400]}, 400, "prompt[0]"),
        (COMPLETIONS, {"logit_bias": {"1": 10**400}}, 400, "logit_bias.1"),
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


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(max_size=8),
    st.just("demo"),
)  # fmt: skip


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


async def test_no_page_of_another_has_a_browser_send_us_a_form() -> None:
    """Which it may without asking first: a form, or a POST without a body."""
    api = Api(PretendedSwarm())
    for origin, status in (
        ("http://localhost:11545", 200),
        ("http://localhost:80", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://[::1", 403),
    ):
        answer = await ask(api, COMPLETIONS, ASKED, headers={"origin": origin})
        assert answer.status == status, origin
    keyed = Api(PretendedSwarm(), Guard(("k",), here=False))  # it cannot know the key
    headers = {"origin": "https://other.example", "authorization": "Bearer k"}
    assert (await ask(keyed, COMPLETIONS, ASKED, headers=headers)).status == 200
