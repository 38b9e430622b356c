"""The last words of a job that did not start or could not go on."""

from __future__ import annotations

import json
import os
import sys

from pipeline.errors import PipelineError, RequestError


def report_refusal(error: PipelineError) -> int:
    """Say `error` on stderr; the exit code: 2 for a wrong request, 1 for one to be repeated.

    Ray makes every exit code but 0 a 1: in a Ray job the last line of stdout says the real one.
    """
    code = 2 if isinstance(error, RequestError) else 1
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        print(json.dumps({"error": str(error), "exit_code": code}), flush=True)
    return code
