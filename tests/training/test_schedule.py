import pytest
import torch
from torch import nn

from pipeline.training.trainer import learning_rate, update_average


def test_learning_rate_warms_up_and_decays():
    assert learning_rate(1.0, 0, 0.0) == pytest.approx(0.01)
    assert learning_rate(1.0, 5000, 0.5) == 1.0
    assert learning_rate(1.0, 5000, 0.75) == pytest.approx(0.5)
    assert learning_rate(1.0, 5000, 1.0) == pytest.approx(0.0)


def test_average_approaches_the_model():
    model, average = nn.Linear(2, 2), nn.Linear(2, 2)
    before = (average.weight - model.weight).abs().max()
    for batches in range(20):
        update_average(average, model, batches)
    assert (average.weight - model.weight).abs().max() < 0.01 * before


def test_average_without_window_equals_the_model():
    model, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    model(torch.randn(4, 2))
    nn.init.normal_(model.weight)
    update_average(average, model, 3, ema_window=0)
    assert torch.equal(average.weight, model.weight)
    assert torch.equal(average.running_mean, model.running_mean)
