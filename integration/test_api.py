"""OpenAI's own client against `potluck api` over real daemons."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pydantic
import pytest

import potluck
from potluck.node.library import DEMO_FOLDER
from potluck.node.testnet.launcher import LocalSwarm, Plan, open_testnet
from potluck.node.testnet.logs import counts, log_bytes

from .ground import POTLUCK
from .waiting import until

KEY = "secret"
KEYED = {"authorization": f"Bearer {KEY}"}
TOKENS = 'potluck_api_tokens_total{model="pet"}'
PROMPT = "The function returns"
TALK: list[Any] = [{"role": "user", "content": "What does len do?"}]
TEMPLATE = (
    "{% if tools %}Tools: {{ tools | tojson }} in <tool_call>{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\\n' }}{% endfor %}Answer:"
)
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"town": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer"}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}
PET: Any = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "kind": {"enum": ["cat", "dog"]}},
    "required": ["name", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    """Two nodes serve the demo's weights, with a chat template that knows tools."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("model") / "pet"
    _copy_demo(folder)
    plan = Plan(home=home, source=str(folder), name="pet", blocks=8, nodes=2)
    with open_testnet(plan) as made:
        yield made


@pytest.fixture(scope="module")
def url(net: LocalSwarm) -> Iterator[str]:
    command = [*POTLUCK, "api", "--port", "0", "--json", "--home", str(home_of(net))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POTLUCK_API_KEY": KEY}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            assert process.stdout is not None
            yield str(json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()
        assert process.wait(20) == 0


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


def _copy_demo(folder: Path) -> None:
    folder.mkdir()
    for path in DEMO_FOLDER.iterdir():
        if path.suffix in (".json", ".safetensors"):
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def home_of(net: LocalSwarm) -> Path:
    return net.roster.folder.parent


def test_answers_are_the_bits_of_potluck_generate(net: LocalSwarm, client: openai.OpenAI) -> None:
    """Once against the command itself, and once against the client that it uses."""
    drawn: Any = {"temperature": 0.8, "top_p": 0.9, "seed": 5}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in drawn.items()]
    command = [*POTLUCK, "generate", PROMPT, "-m", "pet", "-n", "24", "--json", *words]
    told = subprocess.run(
        [*command, "--home", str(home_of(net))], capture_output=True, check=True, timeout=60
    )
    expected = json.loads(told.stdout)["text"]
    asked: Any = {"model": "pet", "prompt": PROMPT, "max_tokens": 24}
    assert client.completions.create(**asked, **drawn).choices[0].text == expected
    with client.completions.create(**asked, **drawn, stream=True) as stream:
        assert "".join(one.choices[0].text for one in stream) == expected
    with potluck.connect(net.join, home=home_of(net)) as swarm:
        pieces = list(swarm.generate("pet", PROMPT, max_new_tokens=24))
    cold = client.completions.create(**asked, temperature=0).choices[0].text
    assert cold == "".join(piece.text for piece in pieces) != expected


def test_a_conversation_streams_with_usage_and_logprobs(client: openai.OpenAI) -> None:
    asked: Any = {"model": "pet", "messages": TALK, "max_completion_tokens": 20, "seed": 3}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2, n=2)
    stream = client.chat.completions.create(
        **asked, n=2, stream=True, stream_options={"include_usage": True}
    )
    texts, usage = ["", ""], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [one.message.content for one in whole.choices]
    assert whole.usage and usage and usage.total_tokens == whole.usage.total_tokens
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None and logprobs.content
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in logprobs.content)


def test_json_keeps_its_schema(client: openai.OpenAI) -> None:
    for seed in range(3):
        told = client.chat.completions.create(
            model="pet",
            messages=TALK,
            seed=seed,
            max_tokens=80,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "pet", "schema": PET, "strict": True},
            },
        )
        pet = json.loads(told.choices[0].message.content or "")
        assert list(pet) == ["name", "kind"] and pet["kind"] in ("cat", "dog")


def test_pydantic_models_are_answered_in(client: openai.OpenAI) -> None:
    class Tag(pydantic.BaseModel):
        word: str = pydantic.Field(max_length=6)

    class Pet(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=9)
        age: int = pydantic.Field(ge=0, le=99)
        tags: list[Tag] = pydantic.Field(max_length=2)

    told = client.chat.completions.parse(
        model="pet", messages=TALK, response_format=Pet, max_tokens=120, seed=4
    )
    parsed = told.choices[0].message.parsed
    assert isinstance(parsed, Pet) and 0 <= parsed.age <= 99


def test_tools_are_called(client: openai.OpenAI) -> None:
    told = client.chat.completions.create(
        model="pet", messages=TALK, tools=[WEATHER], tool_choice="required", max_tokens=80, seed=1
    )
    choice = told.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
    call: Any = choice.message.tool_calls[0]
    assert json.loads(call.function.arguments)["town"] in ("Rome", "Oslo")
    after: list[Any] = [
        *TALK,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    told = client.chat.completions.create(
        model="pet", messages=after, tools=[WEATHER], max_tokens=8
    )
    assert told.choices[0].finish_reason


def test_models_and_embeddings(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["pet"]
    assert client.models.retrieve("pet").owned_by == "potluck"
    told = client.embeddings.create(model="pet", input=["one text", "another", "one text"])
    first, other, again = (one.embedding for one in told.data)
    assert len(first) == 192 and sum(x * x for x in first) == pytest.approx(1, abs=1e-4)
    assert first == pytest.approx(again, abs=1e-6) and first != pytest.approx(other, abs=1e-3)


def test_a_batch_is_answered_as_each_line_alone(client: openai.OpenAI) -> None:
    asked: Any = {"model": "pet", "messages": TALK, "max_tokens": 8, "seed": 5}
    bodies = [asked, {**asked, "temperature": 9}, {**asked, "receipt": True}]
    url = "/v1/chat/completions"
    told = [
        {"custom_id": f"line {at}", "method": "POST", "url": url, "body": body}
        for at, body in enumerate(bodies)
    ]
    raw = "\n".join(map(json.dumps, told)).encode()
    file = client.files.create(file=("asked.jsonl", raw), purpose="batch")
    assert client.files.content(file.id).content == raw
    made = client.batches.create(
        input_file_id=file.id, endpoint=url, completion_window="24h", metadata={"who": "test"}
    )
    until(lambda: client.batches.retrieve(made.id).status == "completed", 90)
    done = client.batches.retrieve(made.id)
    counts = done.request_counts
    assert counts is not None and (counts.completed, counts.failed) == (2, 1)
    output, failed = (
        [json.loads(one) for one in client.files.content(name or "").text.splitlines()]
        for name in (done.output_file_id, done.error_file_id)
    )
    alone = client.chat.completions.create(**asked).choices[0].message.content
    texts = [one["response"]["body"]["choices"][0]["message"]["content"] for one in output]
    assert texts == [alone, alone]
    assert len(output[1]["response"]["body"]["potluck"]["receipts"]) == 1
    assert [one["custom_id"] for one in failed] == ["line 1"]
    assert [one.id for one in client.batches.list()] == [made.id]
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(made.id)
    assert client.files.delete(file.id).deleted


def test_a_batch_is_cancelled(client: openai.OpenAI) -> None:
    body = {"model": "pet", "prompt": PROMPT, "max_tokens": 900, "ignore_eos": True}
    told = [
        {"custom_id": str(at), "method": "POST", "url": "/v1/completions", "body": body}
        for at in range(64)
    ]
    raw = "\n".join(map(json.dumps, told)).encode()
    file = client.files.create(file=("long.jsonl", raw), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    assert client.batches.cancel(made.id).status == "cancelled"


def test_a_run_is_trained_and_its_adapter_answers(client: openai.OpenAI) -> None:
    tales: list[Any] = [
        {"messages": [*TALK, {"role": "assistant", "content": f"It counts to {at}. " * 12}]}
        for at in range(12)
    ]
    raw = "\n".join(map(json.dumps, tales)).encode()
    file = client.files.create(file=("tales.jsonl", raw), purpose="fine-tune")
    made = client.fine_tuning.jobs.create(
        model="pet", training_file=file.id, suffix="counts", hyperparameters={"n_epochs": 2}
    )
    until(lambda: client.fine_tuning.jobs.retrieve(made.id).status == "succeeded", 120)
    done = client.fine_tuning.jobs.retrieve(made.id)
    name = done.fine_tuned_model or ""
    assert name in [one.id for one in client.models.list()]
    events = list(client.fine_tuning.jobs.list_events(made.id))
    assert [one.type for one in events].count("metrics") == 2
    assert len(list(client.fine_tuning.jobs.checkpoints.list(made.id))) == 1
    asked: Any = {"messages": TALK, "max_tokens": 12, "temperature": 0}
    plain, tuned = (
        client.chat.completions.create(model=one, **asked).choices[0].message.content
        for one in ("pet", name)
    )
    assert plain and tuned


def test_an_answer_has_its_receipt(client: openai.OpenAI, tmp_path: Path) -> None:
    asked: Any = {"model": "pet", "prompt": PROMPT, "max_tokens": 6, "seed": 2}
    told: Any = client.completions.create(**asked, extra_body={"receipt": True})
    (receipt,) = told.potluck["receipts"]
    file = tmp_path / "answer.receipt"
    file.write_bytes(base64.b64decode(receipt))
    done = subprocess.run(
        [*POTLUCK, "verify", str(file), "--json"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_errors_are_the_clients_own_exceptions(url: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.completions.create(model="nobody", prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match="temperature must be 0 to 2"):
        client.completions.create(model="pet", prompt=PROMPT, temperature=3)
    with pytest.raises(openai.BadRequestError, match="context"):
        client.completions.create(model="pet", prompt="word " * 3000)
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_999")
    with pytest.raises(openai.NotFoundError):
        client.files.content("file-1")
    with (
        pytest.raises(openai.AuthenticationError),
        openai.OpenAI(base_url=url, api_key="guess", max_retries=0) as stranger,
    ):
        stranger.models.list()


def test_hanging_up_frees_the_servers_at_once(
    net: LocalSwarm, url: str, client: openai.OpenAI
) -> None:
    """Streams that would run to the context's end, some 10 s, are left after a few tokens: no
    server has a session left, and most of the tokens were never made."""
    asked: Any = {"model": "pet", "prompt": PROMPT, "max_tokens": 1000, "stream": True}
    before = _metric(url, TOKENS)
    for _ in range(8):
        with client.completions.create(**asked, extra_body={"ignore_eos": True}) as stream:
            for _chunk in zip(stream, range(3), strict=False):
                pass
    until(lambda: _metric(url, "potluck_api_requests_open") == 1)  # the one that asks
    for seat in net.seats:
        until(lambda name=seat.name: _sessions(net, name) == 0)  # type: ignore[misc]
    assert _metric(url, "potluck_api_disconnects_total") >= 8
    assert _metric(url, TOKENS) - before < 8 * 500


def test_sixteen_clients_at_once_get_what_each_gets_alone(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        asked: Any = {"model": "pet", "prompt": PROMPT, "max_tokens": 12, "seed": seed}
        with client.completions.create(**asked, stream=True) as stream:
            return "".join(one.choices[0].text for one in stream)

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, range(16)))
    assert together[::5] == [ask(seed) for seed in range(0, 16, 5)]
    assert len(set(together)) > 8


def test_missing_blocks_are_told_with_when_to_come_back(net: LocalSwarm, url: str) -> None:
    """The last test: half of the model is gone after it."""
    net.send("n2", signal.SIGKILL)
    asked = {"model": "pet", "prompt": "x"}
    told = httpx.post(f"{url}/completions", json=asked, headers=KEYED, timeout=60)
    assert told.status_code == 503, told.text
    assert told.json()["error"]["code"] == "missing_blocks"
    assert int(told.headers["retry-after"]) >= 1


def _sessions(net: LocalSwarm, name: str) -> int:
    """How many a node has open, as it says itself."""
    folder = net.roster.folder
    since = log_bytes(folder, name)
    net.send(name, signal.SIGUSR1)
    until(lambda: counts(folder, name, since) is not None)
    return (counts(folder, name, since) or {})["sessions"]


def _metric(url: str, name: str) -> float:
    text = httpx.get(url.removesuffix("v1") + "metrics", headers=KEYED, timeout=20).text
    lines = [line for line in text.splitlines() if line.startswith(name + " ")]
    return float(lines[0].rpartition(" ")[2]) if lines else 0.0
