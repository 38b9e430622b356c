import copy

import pytest
import torch

from pipeline.training.distributed import Group
from pipeline.training.e4e import Adversary, AdversaryPlan, gradient_penalty


@pytest.fixture
def adversary():
    torch.manual_seed(0)
    return Adversary(AdversaryPlan(lr=1e-3), lambda n: torch.randn(n, 512) + 1)


def test_discriminator_learns_to_separate_real_codes(adversary):
    codes = torch.randn(8, 2, 512) - 1
    before = adversary.penalty(codes)
    for batches in range(20):
        adversary.step(codes, batches, Group())
    assert adversary.penalty(codes) > 2 * before
    assert adversary.penalty(torch.randn(8, 2, 512) + 1) < before


def test_encoder_term_leaves_discriminator_unchanged(adversary):
    codes = torch.zeros(2, 2, 512, requires_grad=True)
    adversary.penalty(codes).backward()
    assert codes.grad is not None
    assert all(weight.grad is None for weight in adversary.network.parameters())


def test_gradient_penalty_is_exact_for_linear_networks():
    slope = torch.randn(512)
    real = torch.randn(3, 512, requires_grad=True)
    assert gradient_penalty(real @ slope, real) == pytest.approx(float(slope.square().sum()))


@pytest.mark.parametrize(("batches", "factor"), [(8, 6.0), (9, 0.0)])
def test_lazy_r1_is_scaled_by_its_interval(batches, factor):
    torch.manual_seed(0)
    real, codes = torch.randn(6, 512), torch.randn(3, 2, 512)
    adversary = Adversary(AdversaryPlan(r1=3.0, r1_every=4), lambda _: real.clone())
    judge = copy.deepcopy(adversary.network)
    adversary.optimiser = torch.optim.SGD(adversary.network.parameters(), lr=1.0)

    squares = []
    for row in real.split(1):
        (slope,) = torch.autograd.grad(judge(row.requires_grad_()), row, create_graph=True)
        squares.append(slope.square().sum())
    loss = torch.log1p(torch.exp(-judge(real))).mean()
    loss = loss + torch.log1p(torch.exp(judge(codes.flatten(0, 1)))).mean()
    (loss + factor * torch.stack(squares).mean()).backward()

    before = copy.deepcopy(adversary.network.state_dict())
    scalars = adversary.step(codes, batches, Group())
    assert scalars["discriminator"] == pytest.approx(loss.item())
    for name, weight in judge.named_parameters():
        moved = before[name] - adversary.network.state_dict()[name]
        assert torch.allclose(moved, weight.grad, atol=1e-6), name


def test_discriminator_resumes_from_its_state(adversary):
    codes = torch.randn(4, 1, 512)
    adversary.step(codes, 0, Group())
    other = Adversary(AdversaryPlan(lr=1e-3), adversary.real)
    other.restore(adversary.state())
    assert other.penalty(codes) == adversary.penalty(codes)
