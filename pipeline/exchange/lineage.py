"""Which faces of a table codes were exported from, by the names that an export gives them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from pipeline.errors import InputError
from pipeline.exchange.code_files import listed
from pipeline.exchange.exporting import without_suffix
from pipeline.table.reader import Table


def exported_from(table: Table, names: Iterable[str]) -> dict[str, str]:
    """Return the image id in `table` by code name, for those of `names` that an export gives.

    A name is an image id, or the last component of a key, with or without an image's extension.
    Raises `InputError` where one fits several faces, or none fits.
    """
    ids: set[str] = set()
    by_base: dict[str, list[str]] = defaultdict(list)
    for batch in table.batches("SELECT image_id, key FROM latents", 4096):
        for row in batch.to_pylist():
            ids.add(row["image_id"])
            by_base[_base(row["key"])].append(row["image_id"])
    found, several = {}, {}
    for name in names:
        owners = [name] if name in ids else by_base.get(_base(name), [])
        if len(owners) == 1:
            found[name] = owners[0]
        elif owners:
            several[name] = owners
    if several:
        raise InputError(
            f"names that fit several faces of '{table.store.root}': {listed(several)}; export "
            "codes with --names id"
        )
    if not found:
        raise InputError(f"no code is called as a face of '{table.store.root}' is")
    return found


def _base(name: str) -> str:
    return without_suffix(name.rsplit("/", 1)[-1])
