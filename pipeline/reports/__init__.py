"""Pictures and figures of what is in tables: contact sheets, evaluations, stop rules.

Nothing is imported here: a job checks its request by the light modules before PyTorch is imported.
"""
