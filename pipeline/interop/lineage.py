"""Match imported codes to the faces that they were refined from: the column `refined_from`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from pipeline.errors import ConfigError, InputError, TableError
from pipeline.interop.code_files import FaceName, faces_of
from pipeline.interop.codes import Lineage
from pipeline.storage.file_types import without_image_suffix
from pipeline.table.reader import open_table

_ROWS = 4096
_LISTED = 3


def lineage_of(
    names: Iterable[str], uri: str, image_ids: Mapping[str, str] | None = None
) -> Lineage:
    """Match names of codes to the faces of the table at `uri`.

    A name is an image id, a key or a file name, with or without an image's extension and `#<face>`,
    as in an export; `image_ids` has the image id of each name where the codes come with them. A
    name that matches more than one face is not used. Raises `ConfigError` when no name matches or
    the table does not exist.
    """
    faces = [face for _, chosen in faces_of(names) for face in chosen]
    forms_of = {
        face.name: _forms(face) if image_ids is None else [image_ids.get(face.name, "")]
        for face in faces
    }
    candidates = {form for forms in forms_of.values() for form in forms}
    image_id_of: dict[str, str] = {}
    matches: Counter[str] = Counter()
    try:
        table = open_table(uri)
    except (InputError, TableError) as error:
        raise ConfigError(f"--refined-from: {error}") from error
    query = "SELECT image_id, key, face_index FROM latents"
    for batch in table.batches(query, _ROWS):
        for row in batch.to_pylist():
            for form in _forms_of_row(row["image_id"], row["key"], row["face_index"]) & candidates:
                image_id_of[form] = row["image_id"]
                matches[form] += 1
    matched = {}
    for name, forms in forms_of.items():
        best = next((form for form in forms if matches[form]), None)
        if best is not None and matches[best] == 1:
            matched[name] = image_id_of[best]
    if not matched:
        listed = ", ".join(f"'{name}'" for name in list(forms_of)[:_LISTED])
        raise ConfigError(
            f"--refined-from: no name of a code ({listed}, ...) matches an image id, key or file "
            f"name of the table '{uri}'"
        )
    return Lineage(table.store.root, matched, len(faces) - len(matched))


def _forms(face: FaceName) -> list[str]:
    """Return the names of a row that a code's name can mean, the most specific first."""
    number = face.name[len(face.key) :]  # "#1" if the name has a face index
    return [face.name, f"{without_image_suffix(face.key)}{number}"]


def _forms_of_row(image_id: str, key: str, face_index: int) -> set[str]:
    number = f"#{face_index}"
    texts = {image_id.removesuffix(number), key, key.rsplit("/", 1)[-1]}
    texts |= {without_image_suffix(text) for text in texts}
    return texts | {f"{text}{number}" for text in texts}
