"""Expand and match name patterns: `{00000..00127}` and `{a,b}` as in bash, `*`, `?`, `[]`, `**`."""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from pipeline.storage.file_types import plain_name

_GLOB = re.compile(r"[*?\[]")
_MAX_BRACES = 64  # a name with more of them is taken literally
_MAX_DIGITS = 1000  # of a number in braces; file names are shorter
_TOO_LARGE = int("1" + "0" * _MAX_DIGITS)
_STEP = r"(?:\.\.([+-]?\d+))?"
_NUMBERS = re.compile(rf"([+-]?\d+)\.\.([+-]?\d+){_STEP}", re.ASCII)
_LETTERS = re.compile(rf"([a-zA-Z])\.\.([a-zA-Z]){_STEP}", re.ASCII)


def has_glob(text: str) -> bool:
    """Return whether `text` holds `*`, `?` or `[`. The `?` of a web address does not count."""
    return bool(_GLOB.search(plain_name(text)))


def has_braces(text: str) -> bool:
    """Return whether `text` holds braces that expand to several texts, unlike `{a}` and `{}`."""
    return _first_group(text) is not None


def literal_folder(pattern: str) -> str:
    """Return the folder that the whole pattern lies in: all before its first special component.

    Empty where the scheme, the bucket or the host is part of the pattern.
    """
    special = min(
        (match.start() for match in (_GLOB.search(pattern), re.search("{", pattern)) if match),
        default=len(pattern),
    )
    folder = pattern[:special].rpartition("/")[0]
    return "" if re.fullmatch(r"|[^/]*:/?", folder) and not pattern.startswith("/") else folder


def expand_braces(text: str) -> Iterator[str]:
    """Yield the expansions of `text`, the leftmost group varying slowest.

    A `text` without such braces is yielded itself.
    """
    group = _first_group(text)
    if group is None:
        yield text
        return
    begin, end = group
    for middle in _choices(text[begin + 1 : end]):
        for rest in expand_braces(text[end + 1 :]):
            yield text[:begin] + middle + rest


def count_braces(text: str) -> int:
    """Return the number of texts that `expand_braces` yields, without creating them."""
    group = _first_group(text)
    if group is None:
        return 1
    begin, end = group
    body = text[begin + 1 : end]
    numbers = _range(body)
    if numbers:  # `len` fails above 2**63
        here = (numbers[-1] - numbers[0]) // numbers.step + 1
    else:
        here = sum(count_braces(part) for part in _parts(body))
    return here * count_braces(text[end + 1 :])


class Glob:
    """A pattern of relative paths. A folder that fits includes everything below it."""

    def __init__(self, pattern: str) -> None:
        self._steps = [
            None if step == "**" else re.compile(fnmatch.translate(step))
            for step in pattern.split("/")
        ]

    def fits(self, path: str) -> bool:
        """Return whether the file `path`, or a folder that it lies in, fits the pattern."""
        return self._places(path) is True

    def may_hold(self, folder: str) -> bool:
        """Return whether files below `folder` can fit."""
        return bool(self._places(folder))

    def _places(self, path: str) -> frozenset[int] | bool:
        """Return the indices of the steps that may match next, behind `path`.

        Returns True if `path` or a folder above it fits the whole pattern. An empty set means that
        nothing below `path` can fit.
        """
        places = self._skip(frozenset({0}))
        if len(self._steps) in places:
            return True  # the pattern consists of `**` alone
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
        """Return `places` and the places behind each `**`, which also matches no folder at all."""
        reached = set(places)
        for place in sorted(places):
            while place < len(self._steps) and self._steps[place] is None:
                place += 1
                reached.add(place)
        return frozenset(reached)


@lru_cache(4096)
def _first_group(text: str) -> tuple[int, int] | None:
    """Return where the first braces that expand to several texts open and close."""
    if text.count("{") > _MAX_BRACES:
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
    """Return the numbers, or the codes of the letters, of `1..9`, `01..99..2` or `a..e..2`."""
    if match := _LETTERS.fullmatch(body):
        first, last = ord(match[1]), ord(match[2])
    elif match := _NUMBERS.fullmatch(body):
        first, last = _number(match[1]), _number(match[2])
    else:
        return None
    step = abs(_number(match[3] or "1")) or 1
    return range(first, last + 1, step) if last >= first else range(first, last - 1, -step)


def _number(text: str) -> int:
    """Parse `text`; numbers that are too long for Python become plus or minus `_TOO_LARGE`."""
    if len(text) <= _MAX_DIGITS:
        return int(text)
    return -_TOO_LARGE if text.startswith("-") else _TOO_LARGE


def _writer(body: str) -> Callable[[int], str]:
    """Return the function that writes a number of the range: as a letter, or padded with zeros.

    As in bash, numbers are padded to the width of the ends if one of these begins with a zero.
    """
    if _LETTERS.fullmatch(body):
        return chr
    ends = body.split("..")[:2]
    padded = any(re.match(r"-?0\d", end) for end in ends)
    width = max(map(len, ends)) if padded else 0
    return lambda number: f"{number:0{width}d}"


def _parts(body: str) -> list[str]:
    """Split `body` at the commas outside inner braces."""
    parts, depth = [""], 0
    for char in body:
        depth += (char == "{") - (char == "}")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return parts
