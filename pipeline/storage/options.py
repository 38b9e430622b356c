"""How the files of an input are read: what travels with every shard to its reader."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ReadOptions:
    """Settings of listing and reading, the same for all shards of an input.

    `sniff`: files and members whose names end in no known extension are recognised as images by
    their first bytes; without it they are left out, and counted.
    """

    sniff: bool = True

    def to_json(self) -> str:
        """The options as a line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ReadOptions:
        """The options that `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields)
