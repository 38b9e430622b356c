"""Codes and pictures of tables in the layouts of the published scripts: out of a table, and in."""
