"""Settings of reading an input, which are passed to the reader of every shard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Values of `image_field` that are not names of fields.
ALL_IMAGES, ONE_IMAGE = "all", "one"


@dataclass(frozen=True)
class ReadOptions:
    """Settings of listing and reading, the same for all shards of an input.

    `sniff`: files and members without a known extension are recognised as images by their first
    bytes; without it they are left out and counted. `image_field`: of several images with one
    webdataset key in a tar or zip, `all` reads each of them, `one` the main image, and `jpg,png`
    the first of these fields that exists. `image_column` names the Parquet column to read.
    `keep_columns` maps each field that is copied with a sample to its type
    (`kept_columns.arrow_type`).
    """

    sniff: bool = True
    image_field: str = ALL_IMAGES
    image_column: str | None = None
    keep_columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def image_fields(self) -> tuple[str, ...]:
        """Return the named image fields, the preferred one first; empty for `all` and `one`."""
        if self.image_field in (ALL_IMAGES, ONE_IMAGE):
            return ()
        return tuple(self.image_field.split(","))
