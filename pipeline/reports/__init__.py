"""Reports on tables: a web page, comparisons, contact sheets, the calibration of stop rules.

Imports nothing, so that jobs can check a request before they import PyTorch.
"""
