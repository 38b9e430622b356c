"""What an input holds besides its images: files that are passed over, counted by extension."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pipeline.storage.file_types import is_hidden

HIDDEN = "(hidden)"  # `.DS_Store`, `__MACOSX/...`
NO_EXTENSION = "(no extension)"
NUMBERED = "(numbered)"  # `a.0001`: a label for each number would be as many as files
SPECIAL = "(special file)"  # sockets, pipes and devices
FOLDER_LOOP = "(folder loop)"  # links to a folder that they lie in, which is read once
NAMED_TWICE = "(named twice)"  # files that a list or a pattern names again, read once
OTHER = "(other)"  # extensions of odd characters or lengths, and labels beyond `MOST_LABELS`
MOST_LABELS = 64
_SHOWN = 8

_EXTENSION = re.compile(r"\.[a-z0-9][a-z0-9_+~-]{0,15}", re.ASCII)
# A document of the table blanks out what stands under such a name.
_SECRET = re.compile(r"secret|passw|token|credential|_key")
_PACKED = re.compile(r"(\.tar)(\.[a-z0-9]{1,8})$", re.ASCII)


class LeftOut(dict[str, int]):
    """Counts by label, such as `{".json": 12, "(hidden)": 1}`: JSON-ready, few and printable."""

    def add(self, label: str, count: int = 1) -> None:
        """Count under `label`; under `OTHER` where there are `MOST_LABELS` others already."""
        known = label in self or len(self) < MOST_LABELS
        place = label if known else OTHER
        self[place] = self.get(place, 0) + count

    def add_file(self, name: str) -> None:
        """Count the file of this path inside the input or the archive."""
        self.add(label_of(name))

    def merge(self, counts: Mapping[str, int]) -> None:
        """Add the counts of another part of the input."""
        for label, count in counts.items():
            self.add(label, count)

    @property
    def total(self) -> int:
        """All files that were counted."""
        return sum(list(self.values()))

    def ordered(self) -> dict[str, int]:
        """A copy with the largest count first; equal ones by label."""
        return dict(sorted(dict(self).items(), key=lambda item: (-item[1], item[0])))

    def summary(self) -> str:
        """The largest counts, for a person."""
        shown = [f"{count:,} {label}" for label, count in [*self.ordered().items()][:_SHOWN]]
        return "left out: " + ", ".join([*shown, *(["..."] if len(self) > _SHOWN else [])])

    def to_text(self) -> str:
        """A line of JSON; empty where nothing was counted."""
        return json.dumps(self.ordered()) if self else ""

    @classmethod
    def from_text(cls, text: str) -> LeftOut:
        """The counts that `to_text` wrote; `TypeError` or `ValueError` if it wrote nothing such."""
        return cls.from_dict(json.loads(text)) if text else cls()

    @classmethod
    def from_dict(cls, counts: Any) -> LeftOut:
        """The counts out of a JSON object; `TypeError` if they are none."""
        if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
            raise TypeError("'left_out' is no object of counts")
        found = cls()
        found.merge(counts)
        return found


def label_of(name: str) -> str:
    """The label of a file that is passed over: its extension in lower case, `.tar.rar` whole.

    What stands behind a `?` belongs to no extension: crawlers keep it from the URL. The label has
    at most 18 ASCII characters, whatever the name is made of.
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
