"""What a run looks like, for people: pictures of inversions."""

from pipeline.reports.contact_sheet import SheetRow, contact_sheet

__all__ = ["SheetRow", "contact_sheet"]
