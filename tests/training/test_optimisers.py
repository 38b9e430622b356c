import pytest
import torch
from torch import nn

from pipeline.training.optimisers import make_optimiser


@pytest.mark.parametrize("name", ["adam", "ranger"])
def test_it_goes_down(name):
    weight = nn.Parameter(torch.ones(4, 4))
    optimiser = make_optimiser(name, [weight], 0.05)
    losses = []
    for _ in range(24):
        optimiser.zero_grad()
        loss = (weight - torch.eye(4)).square().sum()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    assert losses[-1] < 0.9 * losses[0]


def test_ranger_looks_ahead_every_six_steps():
    weight = nn.Parameter(torch.zeros(1))
    optimiser = make_optimiser("ranger", [weight], 0.1)
    for _ in range(6):
        weight.grad = torch.ones(1)
        optimiser.step()
    # Halfway back to where it stood six steps before, which was 0.
    assert -0.5 < weight.item() < -0.2
