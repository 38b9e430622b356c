"""Load the models that made a table, by the names that it stores, and check their fingerprints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ModelError
from pipeline.models.files import ModelHints, check_model, hints_of
from pipeline.table.reader import Table

if TYPE_CHECKING:
    from pipeline.models import RestyleModel  # PyTorch is slow to import


def model_of(table: Table, name: str | None = None, device: str = "cpu") -> RestyleModel:
    """Load the model of the table's codes: `name`, by default the name that the table stores.

    Raises `ModelError` if its fingerprint is not the one that the table stores.
    """
    name = name or _name_of(table)
    hints = hints_of(table.spec.config)
    return _checked(table, name, table.spec.settings.get("model"), device, hints)


def check_model_of(table: Table, name: str | None = None) -> None:
    """Raise `ModelError` if the model that `model_of` would load does not exist."""
    check_model(name or _name_of(table))


def first_model_of(table: Table, device: str = "cpu") -> RestyleModel | None:
    """Load the model of the first step of a bootstrapped table (ReStyle, sec. 5).

    None for other tables. Raises `ModelError` if its fingerprint is not the one in the table.
    """
    name = table.spec.config.get("bootstrap")
    if not name:
        return None
    fingerprint = table.spec.settings.get("method", {}).get("bootstrap")
    return _checked(table, str(name), fingerprint, device, ModelHints())


def _name_of(table: Table) -> str:
    return str(table.spec.config.get("model", ""))


def _checked(
    table: Table, name: str, fingerprint: object, device: str, hints: ModelHints
) -> RestyleModel:
    from pipeline.models import load_model

    model = load_model(name, device, **hints)
    if fingerprint != model.fingerprint:
        raise ModelError(
            f"the codes of '{table.store.root}' belong to another model than '{name}' "
            f"(fingerprint {str(fingerprint)[:12]}, not {model.fingerprint[:12]}): give the model "
            "that made the table"
        )
    return model
