"""Forget images: erase them from every file of a table, and keep them out of later runs."""
