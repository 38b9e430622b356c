import itertools

import pytest
import torch

from pipeline.training.data import random_batches


def test_an_epoch_shows_each_sample_at_most_once_and_the_next_has_another_order():
    batches = random_batches(10, 5, seed=0)
    first, second = [torch.cat([next(batches), next(batches)]) for _ in range(2)]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("first", [1, 3, 4, 7])
def test_starting_at_a_batch_gives_what_an_unbroken_run_sees_there(first):
    unbroken = itertools.islice(random_batches(11, 3, seed=5), first, first + 5)
    for one, other in zip(unbroken, random_batches(11, 3, seed=5, first=first), strict=False):
        assert torch.equal(one, other)


def test_too_few_samples_are_an_error_that_says_so():
    with pytest.raises(ValueError, match="3 samples do not fill a batch of 4"):
        next(random_batches(3, 4, seed=0))
