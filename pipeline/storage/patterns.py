"""Patterns of names: `{00000..00127}` and `{a,b}` as bash has them, `*`, `?`, `[...]` and `**`."""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from pipeline.storage.file_types import plain_name

_GLOB = re.compile(r"[*?\[]")
_MOST_BRACES = 64  # more are a name that happens to hold them
_MOST_DIGITS = 1000  # of a number in braces: a longer one is no part of a file's name
_TOO_LARGE = int("1" + "0" * _MOST_DIGITS)
_STEP = r"(?:\.\.([+-]?\d+))?"
_NUMBERS = re.compile(rf"([+-]?\d+)\.\.([+-]?\d+){_STEP}", re.ASCII)
_LETTERS = re.compile(rf"([a-zA-Z])\.\.([a-zA-Z]){_STEP}", re.ASCII)


def has_glob(text: str) -> bool:
    """Whether `text` holds one of the characters `*`, `?`, `[`; no `?` of the web is meant."""
    return bool(_GLOB.search(plain_name(text)))


def has_braces(text: str) -> bool:
    """Whether `text` holds braces that stand for several texts; `{a}` and `{}` stand for one."""
    return _first_group(text) is not None


def literal_folder(pattern: str) -> str:
    """The folder that the whole pattern lies in: what comes before its first special component.

    Empty where the scheme, the bucket or the host is part of the pattern.
    """
    special = min(
        (match.start() for match in (_GLOB.search(pattern), re.search("{", pattern)) if match),
        default=len(pattern),
    )
    folder = pattern[:special].rpartition("/")[0]
    return "" if re.fullmatch(r"|[^/]*:/?", folder) and not pattern.startswith("/") else folder


def expand_braces(text: str) -> Iterator[str]:
    """The texts that `text` stands for, the leftmost group slowest; `text` itself without any."""
    group = _first_group(text)
    if group is None:
        yield text
        return
    begin, end = group
    for middle in _choices(text[begin + 1 : end]):
        for rest in expand_braces(text[end + 1 :]):
            yield text[:begin] + middle + rest


def count_braces(text: str) -> int:
    """How many texts `expand_braces` gives, without making them."""
    group = _first_group(text)
    if group is None:
        return 1
    begin, end = group
    body = text[begin + 1 : end]
    numbers = _range(body)
    if numbers:  # `len` takes none above 2**63
        here = (numbers[-1] - numbers[0]) // numbers.step + 1
    else:
        here = sum(count_braces(part) for part in _parts(body))
    return here * count_braces(text[end + 1 :])


class Glob:
    """A pattern of relative paths. A folder that fits stands for all that is below it."""

    def __init__(self, pattern: str) -> None:
        self._steps = [
            None if step == "**" else re.compile(fnmatch.translate(step))
            for step in pattern.split("/")
        ]

    def fits(self, path: str) -> bool:
        """Whether the file `path`, or a folder that it lies in, fits the pattern."""
        return self._places(path) is True

    def may_hold(self, folder: str) -> bool:
        """Whether files below `folder` can fit."""
        return bool(self._places(folder))

    def _places(self, path: str) -> frozenset[int] | bool:
        """Where in the pattern one is behind `path`; True once all of the pattern fitted."""
        places = self._skip(frozenset({0}))
        if len(self._steps) in places:
            return True  # nothing but `**`
        for name in path.split("/"):
            places = self._skip(frozenset(self._after(places, name)))
            if len(self._steps) in places:
                return True
        return places

    def _after(self, places: frozenset[int], name: str) -> Iterator[int]:
        for place in places:
            step = self._steps[place]
            if step is None:
                yield place
            elif step.match(name):
                yield place + 1

    def _skip(self, places: frozenset[int]) -> frozenset[int]:
        """With the places behind each `**`, which also stands for no folder at all."""
        found = set(places)
        for place in sorted(places):
            while place < len(self._steps) and self._steps[place] is None:
                place += 1
                found.add(place)
        return frozenset(found)


@lru_cache(4096)
def _first_group(text: str) -> tuple[int, int] | None:
    """Where the first braces that stand for several texts open and close."""
    if text.count("{") > _MOST_BRACES:
        return None
    for begin, char in enumerate(text):
        if char == "{" and (end := _closing(text, begin)) is not None:
            body = text[begin + 1 : end]
            if _range(body) or len(_parts(body)) > 1:
                return begin, end
    return None


def _closing(text: str, begin: int) -> int | None:
    depth = 0
    for place in range(begin, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if not depth:
            return place
    return None


def _choices(body: str) -> Iterator[str]:
    numbers = _range(body)
    if numbers:
        yield from map(_writer(body), numbers)
    else:
        yield from itertools.chain.from_iterable(map(expand_braces, _parts(body)))


def _range(body: str) -> range | None:
    """The numbers, or the codes of the letters, of `1..9`, `01..99..2` or `a..e..2`."""
    if match := _LETTERS.fullmatch(body):
        first, last = ord(match[1]), ord(match[2])
    elif match := _NUMBERS.fullmatch(body):
        first, last = _number(match[1]), _number(match[2])
    else:
        return None
    step = abs(_number(match[3] or "1")) or 1
    return range(first, last + 1, step) if last >= first else range(first, last - 1, -step)


def _number(text: str) -> int:
    """The number; one of over `_MOST_DIGITS` as the smallest such, as Python reads none so long."""
    if len(text) <= _MOST_DIGITS:
        return int(text)
    return -_TOO_LARGE if text.startswith("-") else _TOO_LARGE


def _writer(body: str) -> Callable[[int], str]:
    """How the numbers of a range are written: as letters, or as wide as an end with zeros is."""
    if _LETTERS.fullmatch(body):
        return chr
    ends = body.split("..")[:2]
    padded = any(re.match(r"-?0\d", end) for end in ends)
    width = max(map(len, ends)) if padded else 0
    return lambda number: f"{number:0{width}d}"


def _parts(body: str) -> list[str]:
    """`body` cut at the commas outside inner braces."""
    parts, depth = [""], 0
    for char in body:
        depth += (char == "{") - (char == "}")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return parts
