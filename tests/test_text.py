"""Text and tokens: prompts as transformers encodes them, answers that never take text back."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import UserError
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.text import Text

from .checkpoints import edit_config, save_random, save_tokenizer

BROKEN = "\ufffd"
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=BROKEN), max_size=30)


def byte_level() -> Text:
    """GPT-2's, Llama 3's and Qwen's way: every byte is a letter of the vocabulary."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    vocabulary |= {"he": 256, "ll": 257, "hell": 258, "Ġhell": 259, "Ġhe": 260}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "hell"), ("Ġ", "he")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return made(tokenizer)


def byte_fallback() -> Text:
    """Llama 2's and Mistral's way: words with their space, and bytes for what is no word."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    for word in ("▁", "h", "e", "l", "o", "he", "ll", "▁he", "é"):
        vocabulary[word] = len(vocabulary)
    merges = [("h", "e"), ("l", "l"), ("▁", "he")]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True
        )
    )
    part = tokenizers.decoders
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = part.Sequence(
        [part.Replace("▁", " "), part.ByteFallback(), part.Fuse(), part.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made(tokenizer)


def made(tokenizer: Any) -> Text:
    return Text(tokenizer, template=None, eos=frozenset())


KINDS = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}


def pieces(text: Text, prompt: list[int], ids: list[int], stops: tuple[str, ...] = ()) -> list[str]:
    stream = text.stream(prompt, stops)
    found = [stream.push(one) for one in ids]
    return [*found, stream.finish()]


@pytest.mark.parametrize("kind", KINDS)
@given(before=words, after=words)
def test_the_pieces_of_a_continuation_make_up_its_text(kind: str, before: str, after: str) -> None:
    """The prompt is given in whole tokens, the answer too; no piece holds half a character."""
    text = KINDS[kind]
    prompt = text.encode("x" + before, special=False)
    whole = text.encode("x" + before + after, special=False)
    if whole[: len(prompt)] != prompt or "▁" in before + after:
        return  # the last token of the prompt merged with what follows
    found = pieces(text, prompt, whole[len(prompt) :])
    assert "".join(found) == after
    assert not any(BROKEN in piece for piece in found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_of_four_tokens_comes_whole(kind: str) -> None:
    text = KINDS[kind]
    ids = text.encode("😀😀é😀", special=False)
    found = [piece for piece in pieces(text, [], ids) if piece.strip()]
    assert "".join(found).strip() == "😀😀é😀"
    assert all(len(piece.strip()) == 1 for piece in found)


def test_the_space_before_the_first_word_of_an_answer_is_kept() -> None:
    text = KINDS["byte_fallback"]
    prompt = text.encode("hello", special=False)
    assert "".join(pieces(text, prompt, text.encode("hello", special=False))) == " hello"


@pytest.mark.parametrize("kind", KINDS)
@given(ids=st.lists(st.integers(0, 250), max_size=300))
def test_any_ids_are_shown_in_the_end(kind: str, ids: list[int]) -> None:
    """Broken bytes too, and nothing is held for longer than a window."""
    text = KINDS[kind]
    stream = text.stream([])
    shown = ""
    for one in ids:
        shown += stream.push(one)
        assert len(stream._ids) <= 128
    shown += stream.finish()
    if BROKEN not in text.decode(ids):
        assert shown == text.decode(ids)


@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop(said: str, stops: list[str]) -> None:
    """However it is cut in tokens: the stop that is complete first counts."""
    text = KINDS["byte_level"]
    stream = text.stream([], stops)
    shown = ""
    for one in text.encode(said, special=False):
        shown += stream.push(one)
        if stream.stopped:
            break
    shown += stream.finish()
    ends = [(said.find(stop) + len(stop), said.find(stop)) for stop in stops if stop in said]
    assert shown == (said[: min(ends)[1]] if ends else said)
    assert stream.stopped == bool(ends)


def test_what_may_become_a_stop_is_held_and_then_released() -> None:
    text = KINDS["byte_level"]
    stream = text.stream([], ("\nUser:",))
    ids = text.encode("a\nUse no", special=False)
    found = [stream.push(one) for one in ids]
    assert found == ["a", "", "", "", "", "\nUse ", "n", "o"]
    assert not stream.stopped
    with pytest.raises(UserError, match="empty"):
        text.stream([], ("",))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_random(tmp_path, "llama", vocab_size=300)
    save_tokenizer(tmp_path)
    return tmp_path


def settings(path: Path, **changes: Any) -> None:
    base = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    base["tokenizer_class"] = "PreTrainedTokenizerFast"
    (path / "tokenizer_config.json").write_text(json.dumps(base | changes))


@pytest.mark.parametrize("prompt", ["Hello", "", " é 😀\n", "</s>Hi<s>"])
def test_a_prompt_is_encoded_as_transformers_does(prompt: str, model: Path) -> None:
    settings(model, add_bos_token=True)
    oracle = transformers.AutoTokenizer.from_pretrained(model)
    text = Text.load(open_checkpoint(model))
    assert text.encode(prompt) == oracle(prompt).input_ids
    ids = text.encode(prompt)
    assert text.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


TEMPLATE = """{{ bos_token }}{% for message in messages %}
{%- if message['role'] not in ['user', 'assistant', 'system'] %}
{{ raise_exception('no role ' + message['role']) }}
{% endif %}
[{{ message.role | upper }}] {{ message['content'] | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}[ASSISTANT]{% endif %}"""
TALK = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Ho"}]


@pytest.mark.parametrize("place", ["file", "config", "named"])
def test_a_chat_is_encoded_as_transformers_does(place: str, model: Path) -> None:
    settings(model)
    if place == "file":
        (model / "chat_template.jinja").write_text(TEMPLATE)
    elif place == "config":
        settings(model, chat_template=TEMPLATE)
    else:
        named = [{"name": "other", "template": "x"}, {"name": "default", "template": TEMPLATE}]
        settings(model, chat_template=named)
    oracle = transformers.AutoTokenizer.from_pretrained(model)
    expected = oracle.apply_chat_template(TALK, add_generation_prompt=True, tokenize=False)
    text = Text.load(open_checkpoint(model))
    assert text.chat(TALK) == oracle(expected, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (TEMPLATE, "no role judge"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{% for", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ 1 / 0 }}", "refuses"),
        ("{% for i in range(10**9) %}x{% endfor %}", "refuses"),
        (None, "no chat template"),
    ],
)
def test_a_template_that_fails_is_one_line(template: str | None, said: str, model: Path) -> None:
    settings(model, chat_template=template)
    text = Text.load(open_checkpoint(model))
    with pytest.raises(UserError, match=said) as failure:
        text.chat([{"role": "judge", "content": "?"}])
    assert "\n" not in str(failure.value)


def test_a_missing_broken_or_foreign_tokenizer_is_refused(model: Path) -> None:
    edit_config(model, vocab_size=258)
    with pytest.raises(UserError, match="token id 258, but the model knows 258 tokens"):
        Text.load(open_checkpoint(model))
    (model / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(UserError, match="not a tokenizer"):
        Text.load(open_checkpoint(model))
    (model / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        Text.load(open_checkpoint(model))


def test_a_text_ends_at_any_id_that_the_model_names(model: Path) -> None:
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert Text.load(open_checkpoint(model)).eos == {2, 7, 8}
    (model / "generation_config.json").write_text("{}")
    assert Text.load(open_checkpoint(model)).eos == {2}
