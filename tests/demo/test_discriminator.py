import pytest
import torch

from pipeline.demo.discriminator import DiscriminatorPlan, ImageAdversary
from pipeline.training.distributed import Group
from pipeline.training.trainer import TrainState

PLAN = DiscriminatorPlan(weight=0.5, start=0.2, rise=0.2, head_start=0.1, lr=1e-2, r1_every=4)


def state(batches: int) -> TrainState:
    return TrainState(batches, batches, planned=100)


@pytest.fixture
def adversary() -> ImageAdversary:
    torch.manual_seed(0)
    return ImageAdversary(PLAN, size=8)


def images(brightness: float) -> torch.Tensor:
    return brightness + 0.1 * torch.randn(8, 3, 8, 8)


def test_weight_rises_after_its_start():
    weights = [PLAN.weight_at(progress) for progress in (0.1, 0.3, 0.4, 1.0)]
    assert weights == pytest.approx([0.0, 0.25, 0.5, 0.5])


def test_discriminator_learns_to_tell_images_apart(adversary):
    for batches in range(10, 50):
        adversary.step(images(-0.5), images(0.5), state(batches), Group())
    with torch.no_grad():
        assert adversary.network(images(0.5)).min() > adversary.network(images(-0.5)).max()


def test_discriminator_waits_and_skips_batches(adversary):
    before = adversary.network.last.weight.clone()
    for batches in (0, 8, 11):
        adversary.step(images(-0.5), images(0.5), state(batches), Group())
    assert torch.equal(adversary.network.last.weight, before)
    adversary.step(images(-0.5), images(0.5), state(10), Group())
    assert not torch.equal(adversary.network.last.weight, before)


def test_penalty_has_gradients_at_the_images_only(adversary):
    made = images(0.0).requires_grad_()
    adversary.penalty(made).backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in adversary.network.parameters())


def test_restored_discriminator_goes_on_alike(adversary):
    adversary.step(images(-0.5), images(0.5), state(10), Group())
    other = ImageAdversary(PLAN, size=8)
    other.restore(adversary.state())
    made, real = images(-0.5), images(0.5)
    losses = [one.step(made, real, state(12), Group()) for one in (adversary, other)]
    assert losses[0] == losses[1]
