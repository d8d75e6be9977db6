"""A conversation, with tools or without, in the words of the checkpoint's own chat template.

Templates are programs that came with the weights: they run in jinja2's sandbox. As in transformers
(`apply_chat_template`) a template sees `messages`, `tools` and `add_generation_prompt`, and a tool
call's arguments as an object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from ...errors import UserError
from .checkpoint import Checkpoint

_ERRORS = (  # a template is a program of somebody else: whatever it may raise is its fault
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_SPECIALS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A checkpoint's template, and the one for tools if it is another."""

    plain: str
    tools: str
    specials: dict[str, str]

    @staticmethod
    def load(checkpoint: Checkpoint) -> ChatTemplate | None:
        """None when the checkpoint has no template."""
        settings = checkpoint.json("tokenizer_config.json") or {}
        path = checkpoint.path("chat_template.jinja")
        found = settings.get("chat_template") if path is None else path.read_text("utf-8")
        if isinstance(found, list):  # several, by name
            named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
            plain = named.get("default")
            tools = named.get("tool_use", plain)
        else:
            plain = tools = found
        if not isinstance(plain, str) or not isinstance(tools, str):
            return None
        specials = {name: _token_text(settings.get(name)) for name in _SPECIALS}
        return ChatTemplate(plain, tools, specials)

    @property
    def knows_tools(self) -> bool:
        return "tools" in self.tools

    @property
    def tagged(self) -> bool:
        """Whether calls stand in <tool_call> tags (Hermes, Qwen) or alone (Llama, Mistral)."""
        return "<tool_call>" in self.tools

    @property
    def arguments_name(self) -> str:
        """What the arguments are called in a call: Llama 3.1 says parameters."""
        return "parameters" if '"parameters":' in self.tools.replace("'", '"') else "arguments"

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        answered: bool = False,
    ) -> str:
        """The text up to where the model is to answer; answered: the last message is its answer.
        Raises UserError."""
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = _to_json  # jinja's own escapes for HTML
        told: dict[str, Any] = {"tools": tools} if tools else {}
        try:
            template = environment.from_string(self.tools if tools else self.plain)
            text = template.render(
                messages=messages, add_generation_prompt=not answered, **told, **self.specials
            )
            return str(text)
        except _ERRORS as error:
            why = str(error).partition("\n")[0]
            raise UserError(f"the model's chat template refuses this: {why}") from error


def _to_json(value: object, indent: int | None = None, **_: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _token_text(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
