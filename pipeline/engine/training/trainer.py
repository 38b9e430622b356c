"""Ray Train's trainer, which does not restart workers that refused the request.

Apart from `training.run`, which sets Ray Train's environment before this is imported.
"""

from __future__ import annotations

from typing import Any, cast

from ray.train.v2.api.config import FailureConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from pipeline.engine.ray_callbacks import failure_handling
from pipeline.errors import RequestError

_policy = failure_handling()


def refusal_in(error: Exception) -> RequestError | None:
    """What a worker refused, of an error of Ray Train's; None where it failed otherwise."""
    failures = getattr(error, "worker_failures", {}).values()
    return next((failure for failure in failures if isinstance(failure, RequestError)), None)


class RefusalsEndIt(_policy.DefaultFailurePolicy):  # type: ignore[misc,name-defined]
    """Starts workers again as often as is asked for, but not to be refused once more."""

    def make_decision(self, training_failed_error: Any) -> Any:
        """Raise a refusal, else what Ray Train decides."""
        if refusal_in(training_failed_error):
            return _policy.FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class Trainer(TorchTrainer):
    """Ray Train's, with a say in which failures are final, which its settings do not give."""

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        policy = RefusalsEndIt(cast(FailureConfig, self.run_config.failure_config))
        return super()._initialize_and_run_controller(**settings | {"failure_policy": policy})

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C to the job, which tells of it: Ray Train's handler may end it with 0."""
