"""Ray Train trainer that does not restart workers after a `RequestError`.

It is a module of its own: `training.run` sets Ray Train's environment before it is imported.
"""

from __future__ import annotations

from typing import Any, cast

from ray.train.v2.api.config import FailureConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from pipeline.engine.ray_callbacks import failure_handling
from pipeline.errors import RequestError

_policy = failure_handling()


def refusal_in(error: Exception) -> RequestError | None:
    """Return the `RequestError` of a worker inside an error of Ray Train, else None."""
    failures = getattr(error, "worker_failures", {}).values()
    return next((failure for failure in failures if isinstance(failure, RequestError)), None)


class RetryUnlessRefused(_policy.DefaultFailurePolicy):  # type: ignore[misc,name-defined]
    """Failure policy that restarts workers as configured, but not after a `RequestError`."""

    def make_decision(self, training_failed_error: Any) -> Any:
        """Return RAISE for a `RequestError`, else the decision of Ray Train."""
        if refusal_in(training_failed_error):
            return _policy.FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class Trainer(TorchTrainer):
    """Torch trainer with our failure policy, which Ray Train has no setting for."""

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        policy = RetryUnlessRefused(cast(FailureConfig, self.run_config.failure_config))
        return super()._initialize_and_run_controller(**settings | {"failure_policy": policy})

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C to the job, which reports it: Ray Train's handler may exit with 0."""
