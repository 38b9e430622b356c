"""Reports on tables: contact sheets, evaluations, stop rules.

Imports nothing, so that jobs can check a request before they import PyTorch.
"""
