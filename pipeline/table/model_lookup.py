"""The models that a table's codes come from, by the names it keeps, checked by what they are."""

from __future__ import annotations

from pipeline.errors import ModelError
from pipeline.models import RestyleModel, load_model
from pipeline.table.reader import Table


def model_of(table: Table, name: str | None = None, device: str = "cpu") -> RestyleModel:
    """The model that the table's codes belong to: `name`, or what the table was made with.

    Raises `ModelError` where its weights are not those that the table names.
    """
    name = name or str(table.spec.config.get("model", ""))
    return _checked(table, name, table.spec.settings.get("model"), device)


def first_model_of(table: Table, device: str = "cpu") -> RestyleModel | None:
    """The model that began each face of a bootstrapped table (ReStyle, sec. 5); else None.

    Raises `ModelError` where its weights are not those that the table names.
    """
    name = table.spec.config.get("bootstrap")
    if not name:
        return None
    told = table.spec.settings.get("method", {}).get("bootstrap")
    return _checked(table, str(name), told, device)


def _checked(table: Table, name: str, told: object, device: str) -> RestyleModel:
    model = load_model(name, device)
    if told != model.fingerprint:
        raise ModelError(
            f"the codes of '{table.store.root}' belong to another model than '{name}' is "
            f"(fingerprint {str(told)[:12]}, not {model.fingerprint[:12]}): bring that model back"
        )
    return model
