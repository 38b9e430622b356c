"""Job on a real Ray with stages that need no computation; settings are a JSON argument."""

from __future__ import annotations

import json
import sys

from pipeline.config import JobConfig
from pipeline.engine.run import run_job
from pipeline.errors import PipelineError, RequestError
from tests.faults.stages import HASHED


def main(settings: str) -> int:
    """Run to the end and print the last line of `jobs/invert_dataset.py`."""
    config = JobConfig.model_validate(json.loads(settings))
    try:
        outcome = run_job(config, HASHED)
    except PipelineError as error:
        print(f"{type(error).__name__}: {error}")
        return 2 if isinstance(error, RequestError) else 1
    print(json.dumps(outcome.to_dict(config.output)), flush=True)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
