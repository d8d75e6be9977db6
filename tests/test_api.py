"""The API as a service: embeddings, failures, who leaves, crowds, and what it says of itself."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import trio
from api_fakes import (
    ASKED,
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    TALK,
    PretendedSwarm,
    ask,
    complaint,
    demo,
    fits,
)

from potluck.errors import LocalError, MissingBlocks, Refused, TransportError
from potluck.node.api.app import Api
from potluck.node.api.http import ClientGone
from potluck.node.api.openapi import document


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
    asked = ((EMBEDDINGS, {"model": "demo", "input": "a"}), (COMPLETIONS, ASKED)) * 8
    for number, (path, body) in enumerate(asked):
        failing = LocalError("broken") if number % 4 < 2 else ZeroDivisionError("broken")
        api = Api(PretendedSwarm(failing=failing))
        answer = await ask(api, path, body)
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


@pytest.mark.parametrize("stream", [False, True])
async def test_who_hangs_up_behind_the_answer_was_served(stream: bool) -> None:
    api = Api(PretendedSwarm())
    whole = await ask(api, COMPLETIONS, {**ASKED, "stream": stream})
    pieces = whole.body.count(b"data: ") if stream else 1
    again = await ask(api, COMPLETIONS, {**ASKED, "stream": stream}, leave_after=pieces)
    assert again.body.endswith(b"data: [DONE]\n\n" if stream else b"}")
    assert b"potluck_api_disconnects_total 0.0" in api.metrics.text()


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
