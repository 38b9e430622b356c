"""The models that a table's codes come from, by the names it keeps, checked by what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ModelError
from pipeline.models.files import ModelHints, check_model, hints_of
from pipeline.table.reader import Table

if TYPE_CHECKING:
    from pipeline.models import RestyleModel  # PyTorch is slow to import


def model_of(table: Table, name: str | None = None, device: str = "cpu") -> RestyleModel:
    """The model that the table's codes belong to: `name`, or what the table was made with.

    Raises `ModelError` where its weights are not those that the table names.
    """
    name = name or _name_of(table)
    hints = hints_of(table.spec.config)
    return _checked(table, name, table.spec.settings.get("model"), device, hints)


def check_model_of(table: Table, name: str | None = None) -> None:
    """Raise `ModelError` where the model that `model_of` would load is not there."""
    check_model(name or _name_of(table))


def first_model_of(table: Table, device: str = "cpu") -> RestyleModel | None:
    """The model that began each face of a bootstrapped table (ReStyle, sec. 5); else None.

    Raises `ModelError` where its weights are not those that the table names.
    """
    name = table.spec.config.get("bootstrap")
    if not name:
        return None
    told = table.spec.settings.get("method", {}).get("bootstrap")
    return _checked(table, str(name), told, device, ModelHints())


def _name_of(table: Table) -> str:
    return str(table.spec.config.get("model", ""))


def _checked(table: Table, name: str, told: object, device: str, hints: ModelHints) -> RestyleModel:
    from pipeline.models import load_model

    model = load_model(name, device, **hints)
    if told != model.fingerprint:
        raise ModelError(
            f"the codes of '{table.store.root}' belong to another model than '{name}' is "
            f"(fingerprint {str(told)[:12]}, not {model.fingerprint[:12]}): bring that model back"
        )
    return model
