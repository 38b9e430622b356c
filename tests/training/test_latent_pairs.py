import io
import tarfile

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.training.latent_pairs import load_codes, load_pairs
from tests.storage.archives import write_tar


def test_all_shards_are_read_with_matching_codes(pair_shards):
    pairs = load_pairs(pair_shards, 32)
    assert pairs.images.shape == (24, 3, 32, 32)
    assert pairs.images.dtype == torch.uint8
    expected = np.clip(127 + 60 * pairs.w[:, :3].numpy(), 0, 255)
    assert np.abs(pairs.images.float().mean(dim=(2, 3)).numpy() - expected).max() < 4


def test_split_holds_out_the_last_pairs(pair_shards):
    pairs = load_pairs(pair_shards, 32)
    train, held_out = pairs.split(5)
    assert (len(train), len(held_out)) == (19, 5)
    assert torch.equal(torch.cat([train.w, held_out.w]), pairs.w)


def test_dot_slash_member_names_are_paired(pair_shards, tmp_path):
    with tarfile.open(pair_shards[0]) as archive:
        members = [(f"./{m.name}", archive.extractfile(m).read()) for m in archive]
    path = write_tar(tmp_path / "pairs-0.tar", members)
    expected, loaded = load_pairs(pair_shards[:1], 32), load_pairs([path], 32)
    assert torch.equal(loaded.w, expected.w)
    assert torch.equal(loaded.images, expected.images)
    assert torch.equal(load_codes([path]), expected.w)


@pytest.mark.parametrize("load", [load_codes, lambda shards: load_pairs(shards, 32)])
def test_shards_without_pairs_are_refused(tmp_path, load):
    sink = io.BytesIO()
    np.save(sink, np.zeros((10, 512), np.float16))
    members = [("0.w.npy", sink.getvalue()), ("0.jpg", b"image")]
    for shard, said in (
        (write_tar(tmp_path / "empty.tar", []), r"empty\.tar' holds no (pairs|codes)"),
        (tmp_path / "none.tar", r"there is no '.*none\.tar'"),
        (write_tar(tmp_path / "plus.tar", members), r"'0' in '.*plus\.tar' is \[10, 512\]"),
    ):
        with pytest.raises(InputError, match=said):
            load([shard])


def test_a_damaged_image_of_a_pair_is_named(tmp_path):
    sink = io.BytesIO()
    np.save(sink, np.zeros(512, np.float16))
    shard = write_tar(tmp_path / "pairs-0.tar", [("7.w.npy", sink.getvalue()), ("7.jpg", b"no")])
    with pytest.raises(InputError, match=r"the image of '7' in '.*pairs-0\.tar' cannot be read"):
        load_pairs([shard], 32)
