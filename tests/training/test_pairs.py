import numpy as np
import pytest
import torch

from pipeline.training.pairs import load_pairs, to_unit


def test_every_pair_of_every_shard_is_read_with_its_own_code(pair_shards):
    pairs = load_pairs(pair_shards, 32)
    assert pairs.images.shape == (24, 3, 32, 32)
    assert pairs.images.dtype == torch.uint8
    expected = np.clip(127 + 60 * pairs.w[:, :3].numpy(), 0, 255)
    assert np.abs(pairs.images.float().mean(dim=(2, 3)).numpy() - expected).max() < 4


def test_held_out_pairs_are_the_last_and_in_neither_part_twice(pair_shards):
    pairs = load_pairs(pair_shards, 32)
    train, held_out = pairs.split(5)
    assert (len(train), len(held_out)) == (19, 5)
    assert torch.equal(torch.cat([train.w, held_out.w]), pairs.w)


def test_no_shards_is_an_error_that_says_what_to_pass():
    with pytest.raises(FileNotFoundError, match=r"pairs-\*\.tar"):
        load_pairs([], 32)


def test_pixels_span_minus_one_to_one():
    assert to_unit(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
