"""From the lines of a file to what is asked of the swarm, and from its answers to lines again.

    {"prompt": "The function returns", "max_tokens": 32}             a text, or token ids
    {"id": 7, "messages": [{"role": "user", "content": "Hello"}]}     a chat
    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}   OpenAI's

Every line is a request of the API (node/api), with its words for every option, so that whatever the
API can do a job can do. What a plain line leaves open the job's own options say. A line that is
drawn and has no seed gets one from the job's and its number: asked again, by whomever, it has the
same text.

Source: OpenAI's API reference, "Batch", "The request input object" and "The request output object".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, BinaryIO, Final

from ...errors import UserError
from ..api.check import check
from ..api.problem import Problem
from ..api.schemas import CHAT, COMPLETION, PARTS

CHATS: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
URLS: Final = (CHATS, COMPLETIONS)
LINE_BYTES_MAX: Final = 1 << 20
LINES_MAX: Final = 1_000_000
TOLD_MAX: Final = 5  # faults that are named before the file is given up
OPENAI: Final = frozenset({"custom_id", "method", "url", "body"})
API_TEMPERATURE: Final = 1.0  # where an OpenAI line says none
CUSTOM_ID_CHARS_MAX: Final = 512
AT_ONCE: Final = 8  # guess: enough to fill a few hops' turns, few enough to leave room for others
AT_ONCE_MAX: Final = 256
SEED_BITS: Final = 62

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the job says for all lines. options: in the API's words, for plain lines. model: "":
    every line names its own."""

    model: str
    seed: int
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """What was submitted. model: of lines that name none, and wears the adapter. options: for plain
    lines, in the API's words. out: where the answers go when all are there; "": they stay in the
    store. sources: what models are loaded by whose names alone do not tell."""

    model: str = ""
    options: Json = field(default_factory=dict)
    seed: int = 0
    adapter: str = ""
    at_once: int = AT_ONCE
    join: tuple[str, ...] = ()
    offline: bool = False
    anonymous: bool = False
    out: str = ""
    replace: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)

    def facts(self) -> Json:
        return asdict(self)

    @staticmethod
    def read(told: Json) -> BatchSpec:
        known = {one.name for one in fields(BatchSpec)}
        spec = {name: value for name, value in told.items() if name in known}
        return BatchSpec(**{**spec, "join": tuple(spec.get("join", ()))})

    @property
    def defaults(self) -> Defaults:
        return Defaults(self.model, self.seed, self.options)


@dataclass(frozen=True, slots=True)
class Asked:
    """One line, read. custom_id: of OpenAI's lines; None for a plain one. label: what a plain line
    gave as its id."""

    number: int
    url: str
    body: Json
    custom_id: str | None = None
    label: object = None

    @property
    def model(self) -> str:
        """ "" where a line of OpenAI's does not say, which is its own fault."""
        named = self.body.get("model")
        return named if isinstance(named, str) else ""


def read_line(number: int, text: str, defaults: Defaults) -> Asked:
    """Raises UserError for what is no question; what an OpenAI line's body asks is judged when it
    is asked, as OpenAI does."""
    try:
        told = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})") from error
    if not isinstance(told, dict):
        raise UserError('not a JSON object, as {"prompt": "Hello"}')
    if OPENAI & told.keys():
        return _read_openai(number, told, defaults)
    return _read_plain(number, told, defaults)


def _read_openai(number: int, told: Json, defaults: Defaults) -> Asked:
    if unknown := told.keys() - OPENAI:
        raise UserError(f"{', '.join(sorted(unknown))} beside a body: options stand inside it")
    custom_id, body = told.get("custom_id"), told.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= CUSTOM_ID_CHARS_MAX:
        raise UserError(f"no custom_id (text of 1 to {CUSTOM_ID_CHARS_MAX} characters)")
    if told.get("method", "POST") != "POST":
        raise UserError('the method is not "POST"')
    if (url := told.get("url")) not in URLS:
        raise UserError(f"the url is none of {', '.join(URLS)}")
    if not isinstance(body, dict):
        raise UserError("the body is no JSON object")
    body = {"model": defaults.model, **body} if defaults.model else body
    return Asked(number, url, _seeded(body, number, defaults, API_TEMPERATURE), custom_id)


def _read_plain(number: int, told: Json, defaults: Defaults) -> Asked:
    if ("prompt" in told) == ("messages" in told):
        raise UserError('give either "prompt" or "messages"')
    label = told.pop("id", None)
    chats = "messages" in told
    options = dict(defaults.options)
    if told.get("max_completion_tokens") is not None:
        options.pop("max_tokens", None)
    body = {**({"model": defaults.model} if defaults.model else {}), **options, **told}
    if "model" not in body:
        raise UserError("no model: name it in the line, or for all lines by --model")
    if body.get("stream"):
        raise UserError("a job cannot stream: leave stream out")
    if isinstance(body.get("prompt"), list) and not _is_ids(body["prompt"]):
        raise UserError("the prompt must be text or token ids: give each prompt a line")
    try:
        check(body, CHAT if chats else COMPLETION, PARTS)
    except Problem as problem:
        raise UserError(problem.message) from problem
    body = _seeded(body, number, defaults, 0.0)
    return Asked(number, CHATS if chats else COMPLETIONS, body, label=label)


def _seeded(body: Json, number: int, defaults: Defaults, temperature: float) -> Json:
    """With a seed, where something is drawn and none is given."""
    drawn = body.get("temperature")
    if body.get("seed") is not None or (temperature if drawn is None else drawn) == 0:
        return body
    return {**body, "seed": seed_of(defaults.seed, number)}


def seed_of(job_seed: int, number: int) -> int:
    """Of one line. 62 bits: a body's choices add their index to it."""
    digest = hashlib.sha256(b"potluck job line\0%d\0%d" % (job_seed, number)).digest()
    return int.from_bytes(digest[:8]) >> 2


def read_file(
    lines: Iterable[bytes],
    name: str,
    defaults: Defaults,
    check_model: Callable[[str], object],
    *,
    url: str = "",
) -> Iterator[str]:
    """The lines of a file, each of which can be asked. Raises UserError that names those that
    cannot be, once the last is read or TOLD_MAX were found.

    check_model: raises UserError for the name of a model that means none. url: that all of them
    must name, as OpenAI's lines do; "": any, and plain lines too.
    """
    faults: list[str] = []
    ids: set[str] = set()
    models = {"", defaults.model}
    number = 0
    for number, raw in enumerate(lines, 1):
        if number > LINES_MAX:
            raise UserError(f"{name}: more than {LINES_MAX} lines: split it")
        try:
            text = _text_of(raw, number)
            asked = read_line(number, text, defaults)
            if url and (asked.custom_id is None or asked.url != url):
                raise UserError(f"is no request of {url} with a custom_id")
            if asked.custom_id in ids:
                raise UserError(f"the custom_id {asked.custom_id!r} is another line's")
            if asked.model not in models:
                check_model(asked.model)
                models.add(asked.model)
        except UserError as fault:
            faults.append(f"line {number}: {fault}")
            if len(faults) >= TOLD_MAX:
                break
            continue
        if asked.custom_id is not None:
            ids.add(asked.custom_id)
        yield text
    if faults:
        raise UserError(f"{name}: {'; '.join(faults)}; nothing was started")
    if not number:
        raise UserError(f"{name} is empty: give one JSON object in a line")


def split_lines(opened: BinaryIO) -> Iterator[bytes]:
    """What is longer than any line may be is cut, and will be named as too long."""
    while line := opened.readline(LINE_BYTES_MAX + 2):
        yield line
        while len(line) > LINE_BYTES_MAX and not line.endswith(b"\n"):
            line = opened.readline(LINE_BYTES_MAX + 2)


def _text_of(raw: bytes, number: int) -> str:
    if len(raw) > LINE_BYTES_MAX:
        raise UserError(f"longer than {LINE_BYTES_MAX >> 20} MiB")
    try:  # some editors begin a file with a mark of its encoding
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 ({error.reason})") from error
    if not text:
        raise UserError("empty")
    return text


def told_whole(asked: Asked, job: int, answer: Json) -> str:
    """The line of an answer. answer: what the API gives."""
    if asked.custom_id is not None:
        return _dump(_openai_line(asked, job, 200, answer))
    first = answer["choices"][0]
    usage, remarks = answer["usage"], answer["potluck"]
    told: Json = {"line": asked.number}
    if asked.label is not None:
        told["id"] = asked.label
    told["text"] = first["message"]["content"] if asked.url == CHATS else first["text"]
    told["finish_reason"] = first["finish_reason"]
    told["prompt_tokens"] = usage["prompt_tokens"]
    told["completion_tokens"] = usage["completion_tokens"]
    told |= {name: remarks[name] for name in ("seed", "exact")}
    if len(answer["choices"]) > 1 or asked.body.get("logprobs") or asked.body.get("tools"):
        told["choices"] = answer["choices"]
    return _dump(told)


def told_problem(asked: Asked, job: int, problem: Problem) -> str:
    """The line of an error."""
    if asked.custom_id is not None:
        return _dump(_openai_line(asked, job, problem.status, problem.body))
    told: Json = {"line": asked.number}
    if asked.label is not None:
        told["id"] = asked.label
    return _dump({**told, **problem.body})


def _openai_line(asked: Asked, job: int, status: int, body: Json) -> Json:
    response = {"status_code": status, "request_id": f"req_{job}_{asked.number}", "body": body}
    return {
        "id": f"batch_req_{job}_{asked.number}",
        "custom_id": asked.custom_id,
        "response": response,
        "error": None,
    }


def _dump(told: Json) -> str:
    # ASCII: some readers end lines at U+2028 or U+0085 too
    return json.dumps(told, separators=(", ", ": "))


def _is_ids(prompt: list[Any]) -> bool:
    return all(isinstance(one, int) and not isinstance(one, bool) for one in prompt)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
