"""Pictures of what is in a table."""

from pipeline.reports.contact_sheet import Pixels, SheetRow, contact_sheet
from pipeline.reports.table_sheet import table_sheet

__all__ = ["Pixels", "SheetRow", "contact_sheet", "table_sheet"]
