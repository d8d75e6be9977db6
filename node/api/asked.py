"""From a body to what is asked: prompts, how to draw, when to stop, what to tell."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..compute.sampling import Settings
from ..compute.voice import Voice
from .check import check
from .grammar import ANY_OBJECT, calls_grammar, schema_grammar
from .language import Language
from .problem import wrong
from .schemas import CHAT, COMPLETION, PARTS, PROMPTS_MAX, Schema

CHAT_TOKENS = 2048  # where nothing is said: a session reserves what it may grow to on every server
COMPLETION_TOKENS = 16  # OpenAI's default
SEEDS = 1 << 64

Body = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tools:
    """Which functions may be called. forced: the answer is a call. many: it may be several."""

    functions: tuple[dict[str, Any], ...]
    tagged: bool
    arguments: str
    forced: bool
    many: bool


@dataclass(frozen=True, slots=True)
class Wish:
    """What every answer to one body has in common.

    max_tokens None: as many as fit, up to CHAT_TOKENS. top: how many likeliest tokens to tell
    beside each; None: no logprobs at all. grammar: what the answers must keep to.
    """

    settings: Settings
    choices: int
    max_tokens: int | None
    stops: tuple[str, ...]
    stream: bool
    usage: bool
    top: int | None
    wait_s: float
    ignore_eos: bool
    grammar: str | None = None
    tools: Tools | None = None
    echo: bool = False
    draft: bool = True
    receipt: bool = False

    def settings_of(self, choice: int) -> Settings:
        """Each choice has a seed of its own; that of the first is the one that was given."""
        if self.settings.seed is None:
            return self.settings
        return replace(self.settings, seed=(self.settings.seed + choice) % SEEDS)


def read_body(raw: bytes, schema: Schema) -> Body:
    """The body as JSON that keeps to a schema. Raises a Problem."""
    try:
        body = json.loads(raw, parse_constant=_refuse_constant, parse_float=_number)
    except RecursionError as error:
        raise wrong("the body is nested too deeply", code="invalid_json") from error
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise wrong(f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise wrong("the body must be a JSON object", code="invalid_json")
    check(body, schema, PARTS)
    return body


def read_chat(raw: bytes) -> Body:
    body = read_body(raw, CHAT)
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        raise wrong("give max_tokens or max_completion_tokens, not both", "max_tokens")
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise wrong("top_logprobs needs logprobs: true", "top_logprobs")
    return body


def read_completion(raw: bytes) -> Body:
    body = read_body(raw, COMPLETION)
    if body.get("echo") and body.get("logprobs") is not None:
        raise wrong("echo with logprobs is not known here: ask without one of them", "echo")
    return body


def prompts_of(given: str | list[Any], param: str, most: int = PROMPTS_MAX) -> list[Any]:
    """The prompts, texts or token ids, that OpenAI's four forms mean."""
    if isinstance(given, str):
        return [given]
    if all(isinstance(one, int) for one in given):
        return [given]
    if len(given) > most:
        raise wrong(f"{param} may have at most {most} items", param)
    return list(given)


def wish_of_completion(body: Body, voice: Voice) -> Wish:
    wish = _wish(body, voice, _or(body.get("max_tokens"), COMPLETION_TOKENS), body.get("logprobs"))
    return replace(wish, echo=bool(body.get("echo")))


def wish_of_chat(body: Body, language: Language) -> Wish:
    """Raises a Problem when the model cannot do what is asked."""
    most = _or(body.get("max_completion_tokens"), body.get("max_tokens"))
    top = _or(body.get("top_logprobs"), 0) if body.get("logprobs") else None
    wish = _wish(body, language.voice, most, top)
    tools = _tools(body, language)
    grammar = _format_grammar(body.get("response_format"))
    if tools is not None and tools.forced:
        if grammar is not None:
            raise wrong("a forced tool call cannot have a response_format too", "response_format")
        grammar = calls_grammar(
            list(tools.functions), tagged=tools.tagged, arguments=tools.arguments
        )
    if grammar is not None and wish.ignore_eos:
        raise wrong("ignore_eos cannot be kept together with a schema", "ignore_eos")
    return replace(wish, grammar=grammar, tools=tools)


def conversation(body: Body, language: Language, tools: Tools | None) -> str:
    """A chat's prompt. Raises a Problem, or UserError when the template refuses."""
    if language.template is None:
        raise wrong(f"{language.voice.name} has no chat template: use /v1/completions", "messages")
    messages = [_message(one, index) for index, one in enumerate(body["messages"])]
    offered = [{"type": "function", "function": one} for one in tools.functions] if tools else []
    return language.template.render(messages, offered)


def _wish(body: Body, voice: Voice, max_tokens: int | None, top: int | None) -> Wish:
    options = body.get("stream_options") or {}
    stream = bool(body.get("stream"))
    if options and not stream:
        raise wrong("stream_options needs stream: true", "stream_options")
    stops = _or(body.get("stop"), ())
    return Wish(
        settings=_settings(body, voice.ends.spec.vocab),
        choices=int(_or(body.get("n"), 1)),
        max_tokens=None if max_tokens is None else int(max_tokens),
        stops=(stops,) if isinstance(stops, str) else tuple(stops),
        stream=stream,
        usage=bool(options.get("include_usage")),
        top=None if top is None else int(top),
        wait_s=float(_or(body.get("wait_s"), 0.0)),
        ignore_eos=bool(body.get("ignore_eos")),
        draft=_or(body.get("draft"), "auto") == "auto",
        receipt=bool(body.get("receipt")),
    )


def _settings(body: Body, vocabulary: int) -> Settings:
    temperature, seed = _or(body.get("temperature"), 1.0), body.get("seed")
    if seed is None and temperature > 0:
        seed = secrets.randbits(32)
    return Settings(
        temperature=temperature,
        top_k=int(_or(body.get("top_k"), 0)),
        top_p=_or(body.get("top_p"), 1.0),
        min_p=_or(body.get("min_p"), 0.0),
        repetition_penalty=_or(body.get("repetition_penalty"), 1.0),
        seed=None if seed is None else int(seed) % SEEDS,
        presence_penalty=_or(body.get("presence_penalty"), 0.0),
        frequency_penalty=_or(body.get("frequency_penalty"), 0.0),
        bias=_bias(body.get("logit_bias") or {}, vocabulary),
    )


def _bias(given: dict[str, float], vocabulary: int) -> tuple[tuple[int, float], ...]:
    for name in given:
        if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < vocabulary):
            raise wrong(
                f"logit_bias: {name[:20]!r} is no token id from 0 to {vocabulary - 1}", "logit_bias"
            )
    return tuple((int(name), value) for name, value in given.items())


def _format_grammar(given: dict[str, Any] | None) -> str | None:
    match given:
        case {"type": "json_object"}:
            return schema_grammar(ANY_OBJECT)
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return schema_grammar(schema)
    return None


def _tools(body: Body, language: Language) -> Tools | None:
    """The tools that are offered, if any."""
    functions = tuple(one["function"] for one in body.get("tools") or ())
    choice = _or(body.get("tool_choice"), "auto")
    if choice == "none" or (not functions and choice == "auto"):
        return None
    if not functions:
        raise wrong("tool_choice needs tools", "tool_choice")
    for one in functions:
        if not all(char.isascii() and (char.isalnum() or char in "_-") for char in one["name"]):
            raise wrong(f"the tool name {one['name']!r} may have letters, digits, _ and -", "tools")
    template = language.template
    if template is None or not template.knows_tools:
        raise wrong(
            f"the chat template of {language.voice.name} knows no tools: "
            "ask without, or ask for a json_schema",
            "tools",
            "unsupported_value",
        )
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        functions = tuple(one for one in functions if one["name"] == name)
        if not functions:
            raise wrong(f"tool_choice names {name!r}, which is not in tools", "tool_choice")
    return Tools(
        functions,
        tagged=template.tagged,
        arguments=template.arguments_name,
        forced=choice != "auto",
        many=body.get("parallel_tool_calls") is not False,
    )


def _message(given: dict[str, Any], index: int) -> dict[str, Any]:
    """A message as templates know it: text contents, and a call's arguments as an object."""
    content = given.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    role = "system" if given["role"] == "developer" else given["role"]
    calls = given.get("tool_calls") or []
    if content is None and not (role == "assistant" and calls):
        where = f"messages[{index}].content"
        raise wrong(f"{where} is missing", where, "missing_required_parameter")
    message: dict[str, Any] = {"role": role, "content": content or ""}
    message |= {name: given[name] for name in ("name", "tool_call_id") if given.get(name)}
    if calls:
        message["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _arguments(call, index)}}
            for call in calls
        ]
    return message


def _arguments(call: Body, index: int) -> dict[str, Any]:
    """Raises a Problem unless they are a JSON object."""
    try:
        found = json.loads(call["function"]["arguments"] or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise wrong(
            f"messages[{index}].tool_calls: arguments must be a JSON object in a string",
            f"messages[{index}].tool_calls",
        )
    return found


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _number(text: str) -> float:
    """JSON Schema's integers may be written 1.0; here they are int."""
    found = float(text)
    return int(found) if found.is_integer() else found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
