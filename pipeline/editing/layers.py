"""Ranges of a code's rows as text: `4-8`, `0-3,6-`."""

from __future__ import annotations

import re

from pipeline.errors import ConfigError

_RANGE = re.compile(r"(\d{1,4})(-)?(\d{1,4})?", re.ASCII)


def parse_layers(text: str, n_styles: int) -> list[int]:
    """Return the rows that `text` names, sorted; rows count from 0 and ranges include their ends.

    `4-8` are five rows, `6-` all from row 6, `0,3-5` four rows, "" all rows. Raises `ConfigError`
    for anything else, and for a row that a code of `n_styles` rows does not have.
    """
    if not text:
        return list(range(n_styles))
    rows: set[int] = set()
    for piece in text.split(","):
        match = _RANGE.fullmatch(piece.strip())
        if not match or (match[3] and not match[2]):
            raise ConfigError(
                f"layers '{text}': '{piece}' is not a row such as 4, nor a range such as 4-8 or 6-"
            )
        first = int(match[1])
        last = int(match[3]) if match[3] else n_styles - 1 if match[2] else first
        if max(first, last) >= n_styles or first > last:
            raise ConfigError(
                f"layers '{text}': '{piece}' is not a range of the model's {n_styles} rows, which "
                f"are 0-{n_styles - 1}"
            )
        rows.update(range(first, last + 1))
    return sorted(rows)
