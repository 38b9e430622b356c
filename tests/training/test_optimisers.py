import copy

import pytest
import torch
from torch import nn

from pipeline.training.optimisers import groups_of, make_optimiser, restore, step


@pytest.mark.parametrize("name", ["adam", "ranger"])
def test_optimiser_minimises_a_parabola(name):
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
    # Halfway back to the value six steps before, which was 0.
    assert -0.5 < weight.item() < -0.2


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))


def move(network, optimiser, batches, without=()):
    """Run steps with gradients seeded by the batch number."""
    for batch in batches:
        torch.manual_seed(batch)
        for part in network:
            for weight in part.parameters():
                gradient = torch.randn_like(weight)
                weight.grad = None if part in without else gradient
        step(optimiser)


def weights_of(part):
    return [weight.detach().clone() for weight in part.parameters()]


@pytest.mark.parametrize("name", ["adam", "ranger"])
@pytest.mark.parametrize("resumed", [False, True])
def test_late_parts_match_a_new_optimiser(name, resumed):
    network, fresh = layers(), layers()
    late = [network[1]]
    optimiser = make_optimiser(name, groups_of(network, late), 0.1)
    move(network, optimiser, range(32), without=late)
    if resumed:
        state = optimiser.state_dict()
        optimiser = make_optimiser(name, groups_of(network, late), 0.1)
        restore(optimiser, state)
    move(network, optimiser, range(32, 48))
    move(fresh, make_optimiser(name, groups_of(fresh), 0.1), range(32, 48))
    assert all(map(torch.equal, weights_of(network[1]), weights_of(fresh[1])))
    assert not any(map(torch.equal, weights_of(network[0]), weights_of(fresh[0])))


@pytest.mark.parametrize("name", ["adam", "ranger"])
def test_single_group_state_is_restored(name):
    single, cut = layers(), layers()
    before = make_optimiser(name, groups_of(single), 0.1)
    move(single, before, range(8))
    cut.load_state_dict(single.state_dict())
    after = make_optimiser(name, groups_of(cut, [cut[1]]), 0.1)
    assert [len(group["params"]) for group in after.param_groups] == [2, 2, 2]
    restore(after, copy.deepcopy(before.state_dict()))
    move(single, before, range(8, 20))
    move(cut, after, range(8, 20))
    assert all(map(torch.equal, weights_of(single), weights_of(cut)))
