"""Which face of a table each imported code began as, by names: the column `refined_from`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.errors import ConfigError, InputError, TableError
from pipeline.interop.code_files import FaceName, faces_of
from pipeline.interop.exporting import without_suffix
from pipeline.table.reader import open_table

_ROWS = 4096
_SHOWN = 3


@dataclass(frozen=True)
class Lineage:
    """The image ids, in the table at `uri`, that names of codes stand for."""

    uri: str
    image_ids: Mapping[str, str]  # by the name of the code
    unmatched: int  # codes whose name fits no face, or several

    @property
    def digest(self) -> str:
        """What changes when any code gets another ancestor."""
        lines = "\n".join(f"{name}\0{image}" for name, image in sorted(self.image_ids.items()))
        return hashlib.sha256(lines.encode(errors="replace")).hexdigest()


def lineage_of(names: Iterable[str], uri: str) -> Lineage:
    """Match names of codes to the faces of the table at `uri`.

    A name is an image id, a key or a file name, with or without an image's extension and `#<face>`:
    what an export calls the faces. A name that fits several faces has no ancestor.
    Raises `ConfigError` where no name fits any, or there is no table.
    """
    faces = [face for _, chosen in faces_of(names) for face in chosen]
    wanted = {form for face in faces for form in _forms(face)}
    owners: dict[str, str] = {}
    fits: Counter[str] = Counter()
    try:
        table = open_table(uri)
    except (InputError, TableError) as error:
        raise ConfigError(f"--refined-from: {error}") from error
    query = "SELECT image_id, key, face_index FROM latents"
    for batch in table.batches(query, _ROWS):
        for row in batch.to_pylist():
            for form in _forms_of_row(row["image_id"], row["key"], row["face_index"]) & wanted:
                owners[form] = row["image_id"]
                fits[form] += 1
    found = {}
    for face in faces:
        best = next((form for form in _forms(face) if fits[form]), None)
        if best is not None and fits[best] == 1:
            found[face.name] = owners[best]
    if not found:
        listed = ", ".join(f"'{face.name}'" for face in faces[:_SHOWN])
        raise ConfigError(
            f"--refined-from: no code ({listed}, ...) has the name of a face of the table '{uri}': "
            "its image ids, keys or file names"
        )
    return Lineage(table.store.root, found, len(faces) - len(found))


def _forms(face: FaceName) -> list[str]:
    """How a row may be called that a code's name means, the more exact first."""
    number = face.name[len(face.key) :]  # "#1" where the name says which face
    return [face.name, f"{without_suffix(face.key)}{number}"]


def _forms_of_row(image_id: str, key: str, face_index: int) -> set[str]:
    number = f"#{face_index}"
    texts = {image_id.removesuffix(number), key, key.rsplit("/", 1)[-1]}
    texts |= {without_suffix(text) for text in texts}
    return texts | {f"{text}{number}" for text in texts}
