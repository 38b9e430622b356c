import itertools

import pytest
import torch

from pipeline.training.data import random_batches


def test_epochs_differ_and_repeat_no_sample():
    batches = random_batches(10, 5, seed=0)
    first, second = [torch.cat([next(batches), next(batches)]) for _ in range(2)]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("first", [1, 3, 4, 7])
def test_resumed_batches_equal_uninterrupted_ones(first):
    unbroken = itertools.islice(random_batches(11, 3, seed=5), first, first + 5)
    for expected, resumed in zip(
        unbroken, random_batches(11, 3, seed=5, first=first), strict=False
    ):
        assert torch.equal(expected, resumed)


def test_too_few_samples_raise_an_error():
    with pytest.raises(ValueError, match="3 samples do not fill a batch of 4"):
        next(random_batches(3, 4, seed=0))
