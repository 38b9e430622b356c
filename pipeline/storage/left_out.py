"""Count the files of an input that are not read as images, by extension."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pipeline.storage.file_types import is_hidden

HIDDEN = "(hidden)"  # `.DS_Store`, `__MACOSX/...`
NO_EXTENSION = "(no extension)"
NUMBERED = "(numbered)"  # `a.0001`: each number as a label would give a label per file
SPECIAL = "(special file)"  # sockets, pipes and devices
FOLDER_LOOP = "(folder loop)"  # links to a folder that contains them
NAMED_TWICE = "(named twice)"  # files that a list or a pattern names again; they are read once
OTHER = "(other)"  # extensions with odd characters or lengths, and labels beyond `MAX_LABELS`
MAX_LABELS = 64
_SHOWN = 8

_EXTENSION = re.compile(r"\.[a-z0-9][a-z0-9_+~-]{0,15}", re.ASCII)
# The table's JSON documents blank out values under such names.
_SECRET = re.compile(r"secret|passw|token|credential|_key")
_PACKED = re.compile(r"(\.tar)(\.[a-z0-9]{1,8})$", re.ASCII)


class LeftOut(dict[str, int]):
    """Counts by label, such as `{".json": 12, "(hidden)": 1}`.

    JSON-ready, with at most `MAX_LABELS` + 1 printable labels.
    """

    def add(self, label: str, count: int = 1) -> None:
        """Count under `label`, or under `OTHER` if `MAX_LABELS` other labels exist already."""
        has_place = label in self or len(self) < MAX_LABELS
        counted = label if has_place else OTHER
        self[counted] = self.get(counted, 0) + count

    def add_file(self, name: str) -> None:
        """Count the file of this path inside the input or the archive."""
        self.add(label_of(name))

    def merge(self, counts: Mapping[str, int]) -> None:
        """Add the counts of another part of the input."""
        for label, count in counts.items():
            self.add(label, count)

    def ordered(self) -> dict[str, int]:
        """Return a copy with the largest counts first, equal counts sorted by label."""
        return dict(sorted(dict(self).items(), key=lambda item: (-item[1], item[0])))

    def summary(self) -> str:
        """Return the largest counts as text for messages."""
        largest = [f"{count:,} {label}" for label, count in [*self.ordered().items()][:_SHOWN]]
        return "left out: " + ", ".join([*largest, *(["..."] if len(self) > _SHOWN else [])])

    def to_text(self) -> str:
        """Return the counts as one line of JSON; empty if nothing was counted."""
        return json.dumps(self.ordered()) if self else ""

    @classmethod
    def from_text(cls, text: str) -> LeftOut:
        """Read what `to_text` wrote; raises `TypeError` or `ValueError` for any other text."""
        return cls.from_dict(json.loads(text)) if text else cls()

    @classmethod
    def from_dict(cls, counts: Any) -> LeftOut:
        """Read the counts from a JSON object; raises `TypeError` for any other value."""
        if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
            raise TypeError("'left_out' is not a JSON object of counts")
        result = cls()
        result.merge(counts)
        return result


def label_of(name: str) -> str:
    """Return the label that counts the file `name`: its extension in lower case, `.tar.rar` whole.

    Text behind a `?` is not part of the extension: crawlers keep it from the URL. The label has at
    most 18 ASCII characters for every possible name.
    """
    if is_hidden(name):
        return HIDDEN
    last = name.rsplit("/", 1)[-1].split("?", 1)[0].strip().lower()
    packed = _PACKED.search(last)
    if packed:
        return packed[0]
    stem, dot, ending = last.rpartition(".")
    if not dot or not stem or not ending:
        return NO_EXTENSION
    if ending.isdigit():
        return NUMBERED
    extension = f".{ending}"
    plain = _EXTENSION.fullmatch(extension) and not _SECRET.search(extension)
    return extension if plain else OTHER
