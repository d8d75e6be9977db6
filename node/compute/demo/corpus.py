"""What the demo model reads: the words of the Python standard library.

Every machine with Python has this text, and the PSF licence lets it be used. It is of three kinds:

    prose      docstrings and long comments, and the topics of `help()`     mostly English
    question   "What does shutil.copy do?", answered by its docstring       for `potluck chat`
    source     the modules themselves                                       mostly Python

A document is held out by its module, in all three kinds at once, so that the held-out loss never
sees a text that training saw in another dress; a docstring that several objects share is kept once.
"""

import ast
import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import io
import pydoc_data.topics
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

Kind = Literal["prose", "question", "source"]

BEGIN = "<|begin|>"
END = "<|end|>"

# Tests are not prose, bundled wheels are not the PSF's, and codec tables are numbers.
_FOLDERS_LEFT_OUT = {
    *("test", "tests", "idle_test", "site-packages", "ensurepip"),
    *("encodings", "pydoc_data", "msilib", "lib-dynload", "__pycache__"),
}
_DIGITS_MAX = 0.08  # a file with a larger share of digits is a table
_PARAGRAPHS_PER_DOCUMENT = 8  # few enough that many documents begin, too many for an early end
_HELD_OUT_ONE_IN = 33


@dataclass(frozen=True, slots=True)
class Document:
    """One text, from its beginning to its end."""

    kind: Kind
    module: str
    text: str

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(self.module.encode()).digest()
        return int.from_bytes(digest[:4], "big") % _HELD_OUT_ONE_IN == 0


@dataclass(frozen=True, slots=True)
class Described:
    """An object of the library that has a docstring."""

    module: str
    name: str
    callable: bool
    doc: str


def read_corpus() -> list[Document]:
    """The whole corpus, in an order that depends on nothing but the Python that runs this."""
    documents = list(_topics())
    described: list[Described] = []
    comments: dict[str, list[str]] = {}
    for path in _source_files():
        module = _module_name(path)
        text = path.read_text("utf-8", errors="replace")
        documents.append(Document("source", module, text))
        described += _described_in_source(module, text)
        comments[module] = list(_long_comments(text))
    for name in sorted(sys.stdlib_module_names):
        described += _described_in_extension(name)
    described = _each_docstring_once(described)
    for module in dict.fromkeys(one.module for one in described):
        own = [one for one in described if one.module == module]
        documents += _prose(module, [one.doc for one in own] + comments.get(module, []))
        documents += _questions(module, own)
    return documents


def _topics() -> Iterator[Document]:
    for topic, text in sorted(pydoc_data.topics.topics.items()):
        yield Document("prose", f"topics.{topic}", text.strip())


def _source_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    kept = []
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts[:-1]
        if any(part in _FOLDERS_LEFT_OUT or part.startswith("config-") for part in folders):
            continue
        text = path.read_text("utf-8", errors="replace")
        digits = sum(text.count(digit) for digit in "0123456789")
        if path.name.startswith("_sysconfigdata") or not text or digits > _DIGITS_MAX * len(text):
            continue
        kept.append(path)
    return kept


def _module_name(path: Path) -> str:
    parts = path.relative_to(sysconfig.get_path("stdlib")).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _described_in_source(module: str, text: str) -> Iterator[Described]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the library's own strings
            tree = ast.parse(text)
    except SyntaxError:
        return  # lib2to3 and its like keep files in older grammars
    waiting: list[tuple[str, ast.AST]] = [(module, tree)]
    while waiting:
        name, node = waiting.pop(0)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if doc := ast.get_docstring(node):
                function = not isinstance(node, ast.Module | ast.ClassDef)
                yield Described(module, name, function, doc)
            named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            waiting += [(f"{name}.{one.name}", one) for one in node.body if isinstance(one, named)]


def _described_in_extension(name: str) -> Iterator[Described]:
    """The docstrings of a module that is written in C, such as builtins, math or itertools."""
    if name.startswith(("_test", "_xx")):
        return
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return
    loader = spec.loader if spec else None
    builtin = name in sys.builtin_module_names
    if not builtin and not isinstance(loader, importlib.machinery.ExtensionFileLoader):
        return
    with contextlib.suppress(ImportError):  # built without the library that it wraps
        yield from _described_in_members(importlib.import_module(name))


def _described_in_members(module: ModuleType) -> Iterator[Described]:
    name = module.__name__.lstrip("_")
    if module.__doc__:
        yield Described(name, name, False, inspect.cleandoc(module.__doc__))
    for member_name, member in sorted(vars(module).items()):
        if not callable(member) or member_name.startswith("__"):
            continue
        label = member_name if name == "builtins" else f"{name}.{member_name}"
        inner = sorted(vars(member).items()) if isinstance(member, type) else []
        for own_name, one in [(label, member), *((f"{label}.{key}", one) for key, one in inner)]:
            doc = getattr(one, "__doc__", None)
            if isinstance(doc, str) and callable(one):
                yield Described(name, own_name, not isinstance(one, type), inspect.cleandoc(doc))


def _long_comments(text: str) -> Iterator[str]:
    """Comments of three lines or more that end like a sentence."""
    run: list[str] = []
    last_line = -2
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type != tokenize.COMMENT or token.line.strip() != token.string:
                continue
            if token.start[0] != last_line + 1:
                yield from _as_prose(run)
                run = []
            run.append(token.string.lstrip("#!: ").rstrip())
            last_line = token.start[0]
    yield from _as_prose(run)


def _as_prose(lines: list[str]) -> Iterator[str]:
    text = "\n".join(lines).strip()
    if len(lines) >= 3 and text.endswith((".", ":", "!")) and re.match(r"[A-Z][a-z']* [a-z]", text):
        yield text


def _each_docstring_once(described: list[Described]) -> list[Described]:
    seen: set[str] = set()
    kept = []
    for one in described:
        if one.doc not in seen:
            kept.append(one)
        seen.add(one.doc)
    return kept


def _prose(module: str, paragraphs: list[str]) -> Iterator[Document]:
    # One-word and one-number docstrings teach nothing.
    paragraphs = [text for text in paragraphs if len(text.split()) >= 3]
    for start in range(0, len(paragraphs), _PARAGRAPHS_PER_DOCUMENT):
        text = "\n\n".join(paragraphs[start : start + _PARAGRAPHS_PER_DOCUMENT])
        yield Document("prose", module, text)


def _questions(module: str, described: list[Described]) -> Iterator[Document]:
    """Questions and answers, two turns a document, in the words of the chat template."""
    turns = []
    for one in described:
        answer = _first_paragraph(one.doc)
        public = not any(part.startswith("_") for part in one.name.split("."))
        if public and len(answer.split()) >= 4:
            asked = f"What does {one.name} do?" if one.callable else f"What is {one.name}?"
            turns.append(f"Question: {asked}\nAnswer: {answer}")
    for start in range(0, len(turns), 2):
        yield Document("question", module, f"{END}\n".join(turns[start : start + 2]))


def _first_paragraph(doc: str) -> str:
    """The first paragraph that is not a signature, as one line."""
    for paragraph in doc.split("\n\n"):
        line = " ".join(paragraph.split())
        line = re.sub(r"^[\w.]+\([^()]*\) *(->|--|:)[^.]*?(?=[A-Z])", "", line)
        if re.match(r"[A-Z][a-z]* ", line):
            return line
    return ""
