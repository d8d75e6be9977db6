"""Chat templates with tools, as checkpoints of several families write them; and who may listen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from potluck.errors import UserError
from potluck.node.api.service import ApiConfig, is_here
from potluck.node.compute.template import ChatTemplate

HERMES = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>"
    '<tool_call>\n{"name": <name>, "arguments": <args>}\n</tool_call>{% endif %}'
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)
LLAMA = (
    "{% if tools is not none %}{{ tools | tojson(indent=4) }}"
    'Respond in the format {"name": function name, "parameters": dictionary}{% endif %}'
)
MISTRAL = "{{ bos_token }}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}"
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"


@dataclass
class Stored:
    """What a template needs of a checkpoint."""

    settings: dict[str, Any] | None = field(default_factory=dict)
    file: Path | None = None

    def json(self, name: str) -> dict[str, Any] | None:
        return self.settings

    def path(self, name: str) -> Path | None:
        return self.file


def load(stored: Stored) -> ChatTemplate | None:
    return ChatTemplate.load(stored)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "tools", "tagged", "arguments"),
    [
        (HERMES, True, True, "arguments"),
        (LLAMA, True, False, "parameters"),
        (MISTRAL, True, False, "arguments"),
        (PLAIN, False, False, "arguments"),
    ],
)
def test_a_template_says_how_calls_are_written(
    text: str, tools: bool, tagged: bool, arguments: str
) -> None:
    found = load(Stored({"chat_template": text}))
    assert found is not None
    assert (found.knows_tools, found.tagged, found.arguments_name) == (tools, tagged, arguments)


def test_a_template_is_found_wherever_it_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "chat_template.jinja"
    file.write_text("{{ messages[0].content }} ünd{{ eos_token }}")
    special = {"eos_token": {"content": "</s>"}, "chat_template": "not this one"}
    found = load(Stored(special, file))
    assert found is not None and found.render([{"content": "a"}], []) == "a ünd</s>"
    two = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": HERMES}]
    found = load(Stored({"chat_template": two}))
    assert found is not None and found.knows_tools
    assert "<tools>" not in found.render([{"content": "a"}], [])
    assert '{"name": "é"}' in found.render([{"content": "a"}], [{"name": "é"}])
    assert load(Stored({})) is None and load(Stored(None)) is None
    assert load(Stored({"chat_template": [{"name": "odd"}]})) is None


@pytest.mark.parametrize(
    "text", ["{{ raise_exception('no') }}", "{% if %}", "{{ 1 // 0 }}", "{{ ''.__class__ }}"]
)
def test_what_a_template_does_wrong_is_told_in_a_line(text: str) -> None:
    found = load(Stored({"chat_template": text}))
    assert found is not None
    if "__class__" in text:
        assert found.render([], []) == ""  # the sandbox gives nothing away
        return
    with pytest.raises(UserError, match="chat template refuses") as caught:
        found.render([], [])
    assert "\n" not in str(caught.value)


def test_others_are_let_in_only_with_a_key(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        assert is_here(host) and ApiConfig(tmp_path, host=host)
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.org", ""):
        assert ApiConfig(tmp_path, host=host, keys=("k",))
        with pytest.raises(UserError, match="--key"):
            ApiConfig(tmp_path, host=host)
    for key in ("", "  ", "ключ"):
        with pytest.raises(UserError, match="key is empty or not ASCII"):
            ApiConfig(tmp_path, keys=(key,))
