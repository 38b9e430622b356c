"""How the files of an input are read: what travels with every shard to its reader."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# Values of `image_field` that are no field's name.
ALL_IMAGES, ONE_IMAGE = "all", "one"


@dataclass(frozen=True)
class ReadOptions:
    """Settings of listing and reading, the same for all shards of an input.

    `sniff`: files and members whose names end in no known extension are recognised as images by
    their first bytes; without it they are left out, and counted. `image_field`: of several images
    with one webdataset key in a tar or zip, all are samples, or one, or the first of these fields
    that there is (`jpg,png`). `image_column` names the Parquet column to read. `keep_columns` are
    the fields that travel with each sample, each with the name of its type (`kept.arrow_type`).
    """

    sniff: bool = True
    image_field: str = ALL_IMAGES
    image_column: str | None = None
    keep_columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def image_fields(self) -> tuple[str, ...]:
        """The fields that are images, the preferred first; empty where any image is one."""
        if self.image_field in (ALL_IMAGES, ONE_IMAGE):
            return ()
        return tuple(self.image_field.split(","))

    def to_json(self) -> str:
        """The options as a line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ReadOptions:
        """The options that `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields)
