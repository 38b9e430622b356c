"""Parse the documents of the repository for the tests: blocks, links, names and commands."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

from jobs.restyle import JOBS

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SEPARATOR = re.compile(r"[|&;()<>]+")
_SHELL_WORDS = {"until", "do", "then", "if"}


@dataclass(frozen=True)
class Document:
    """A Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        """Return its path in the repository."""
        return str(self.path.relative_to(ROOT))

    @property
    def text(self) -> str:
        """Return its whole text."""
        return self.path.read_text()

    def blocks(self, *languages: str) -> list[str]:
        """Return the fenced blocks in one of `languages`."""
        return [body for language, body in _FENCE.findall(self.text) if language in languages]

    def inline_code(self) -> list[str]:
        """Return what stands between single backticks; in tables `\\|` is a `|`."""
        return [code.replace("\\|", "|") for code in _CODE.findall(_FENCE.sub("", self.text))]

    def links(self) -> list[str]:
        """Return the targets of links and pictures that lead into the repository."""
        prose = _CODE.sub("", _FENCE.sub("", self.text))
        return [target for target in _LINK.findall(prose) if "://" not in target]

    def anchors(self) -> set[str]:
        """Return the anchors of its headings, as GitHub makes them."""
        headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", self.text), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}

    def commands(self) -> list[list[str]]:
        """Return the words of each command of its shell blocks, and of those inside a line."""
        inline = [
            code
            for code in self.inline_code()
            if re.match(r"(python jobs/|restyle \w|make [a-z])", code) and "…" not in code
        ]
        scripts = [*self.blocks("sh", "bash"), *inline]
        return [words for script in scripts for words in _simple_commands(script)]


def all_documents() -> list[Document]:
    """Return every Markdown file of the repository."""
    folders = ("cluster", "jobs", "pipeline", "tests")
    found = [*ROOT.glob("*.md"), *ROOT.glob(".github/*.md")]
    found += [path for folder in folders for path in (ROOT / folder).rglob("*.md")]
    return [Document(path) for path in sorted(found)]


def _simple_commands(script: str) -> Iterator[list[str]]:
    """Yield the words of each command: cut at pipes and the like, without what a shell adds."""
    for line in script.replace("\\\n", " ").split("\n"):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not _SEPARATOR.fullmatch(word):
                words.append(word)
                continue
            while words and (words[0] in _SHELL_WORDS or re.match(r"\w+=", words[0])):
                del words[0]
            if words:
                yield words
            words = []


def program_of(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return the module of this project that a command runs and its arguments; None for others."""
    if words[:3] == ["ray", "job", "submit"] and "--" in words:
        words = words[words.index("--") + 1 :]
    if words[0] == "restyle":
        name = words[1] if len(words) > 1 else ""
        if name in JOBS:
            return f"jobs.{JOBS[name][0]}", list(words[2:])
        return "jobs.restyle", list(words[1:])
    if not re.search(r"(^|/)python$", words[0]):
        return None
    if words[1] == "-c":
        return None
    if words[1] == "-m":
        module = words[2]
        return (module if module == "pytest" else f"{module}.__main__"), list(words[3:])
    return words[1].removesuffix(".py").replace("/", "."), list(words[2:])


class _GivenError(Exception):
    """Carries the parser that a program is about to use."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


@contextmanager
def _no_parsing() -> Iterator[None]:
    def give(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _GivenError(parser)

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", give),
        mock.patch.object(argparse.ArgumentParser, "parse_intermixed_args", give),
    ):
        yield


@cache
def parser_of(module: str) -> argparse.ArgumentParser:
    """Return the parser that the program in `module` builds; nothing of it runs."""
    main = importlib.import_module(module).main
    try:
        with _no_parsing():
            main(*([[]] if inspect.signature(main).parameters else []))
    except _GivenError as given:
        return given.parser
    raise AssertionError(f"{module} does not parse its arguments")


def flags_of(module: str) -> set[str]:
    """Return every flag of the program in `module`."""
    return {flag for action in parser_of(module)._actions for flag in action.option_strings}
