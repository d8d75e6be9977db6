"""A text goes on: the bits of the plain client, seeds, streams, chances, stops, echo, penalties."""

from __future__ import annotations

import math
from typing import Any

import pytest
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

from potluck.node.api.app import Api
from potluck.node.compute.sampling import Settings
from potluck.node.generation import Request
from potluck.node.prompt import encode_request


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
    details = told["usage"].pop("completion_tokens_details")
    assert set(details) == {"accepted_prediction_tokens", "rejected_prediction_tokens"}
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


async def test_guesses_are_told_apart_and_change_no_word() -> None:
    """A text that goes in circles, so that some are sent; with "draft": "off" none is."""
    api, found = Api(PretendedSwarm()), []
    asked = {**ASKED, "prompt": "one two one two one two", "max_tokens": 60, "temperature": 0}
    for draft in ("auto", "off", None):
        told = fits(await ask(api, COMPLETIONS, {**asked, "draft": draft}), "Completion")
        details = told["usage"].pop("completion_tokens_details")
        found.append((told["choices"][0]["text"], told["usage"], sum(details.values())))
    assert found[0][:2] == found[1][:2] == found[2][:2]
    auto, off, default = (guesses for *_, guesses in found)  # how many goes by the clock
    assert auto > 0 == off < default
    assert complaint(await ask(api, COMPLETIONS, {**asked, "draft": "demo"}), 400)


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
