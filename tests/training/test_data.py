import pytest
import torch

from pipeline.errors import InputError
from pipeline.storage import Store
from pipeline.training.data import (
    CropFile,
    Crops,
    match_keys,
    put_crops,
    put_index,
    put_pairs,
    read_index,
    read_pairs,
    windowed,
)


@pytest.fixture
def crops(tmp_path) -> Crops:
    """Seven crops in three files, each with a different grey."""
    store, files = Store(str(tmp_path)), []
    for number, greys in enumerate([(0, 1, 2), (3,), (4, 5, 6)]):
        images = torch.tensor(greys, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
        files.append(CropFile(f"{number}.safetensors", len(greys)))
        put_crops(store, files[-1].name, images)
    put_index(store, files, {"samples": 9})
    return Crops(store, window=1)


def test_crops_are_read_by_number_across_files(crops):
    index = torch.tensor([6, 0, 3, 2, 4])
    assert crops.images(index)[:, 0, 0, 0].tolist() == index.tolist()
    assert len(crops) == 7


def test_memory_keeps_at_most_a_window_of_files(crops):
    crops.images(torch.arange(7))
    assert len(crops._loaded) == 2


def test_crops_without_index_are_refused(tmp_path):
    assert read_index(Store(str(tmp_path))) is None
    with pytest.raises(InputError, match="no complete set of crops"):
        Crops(Store(str(tmp_path)))


def test_windowed_order_has_each_sample_once():
    counts = [5, 3, 4, 5, 2, 3]
    file_of = torch.arange(6).repeat_interleave(torch.tensor(counts))
    for seed in range(20):
        order = windowed(counts, window=2)(torch.Generator().manual_seed(seed))
        assert sorted(order.tolist()) == list(range(22))
        files = file_of[order].tolist()
        while files:
            window = set(list(dict.fromkeys(files))[:2])
            inside = sum(counts[file] for file in window)
            assert set(files[:inside]) == window
            files = files[inside:]
    again = windowed(counts, window=2)(torch.Generator().manual_seed(seed))
    assert torch.equal(order, again)


def test_pairs_match_keys_without_image_extension():
    numbers, ambiguous = match_keys(
        ["a/1.jpg", "2", "3.png", "x.v2"], ["x.v2", "3.JPG", "a/1", "9"]
    )
    assert numbers.tolist() == [[0, 2], [2, 1], [3, 0]]
    assert ambiguous == {}
    _, ambiguous = match_keys(["1.jpg", "1.png"], ["1"])
    assert ambiguous == {"1": ["1.jpg", "1.png"]}


def test_pairs_index_both_sets_of_crops(crops):
    put_pairs(crops.store, torch.tensor([[1, 6], [3, 0], [4, 4], [6, 5]]))
    pairs = read_pairs(crops, crops)
    assert (len(pairs), pairs.counts) == (4, [1, 1, 2])
    index = torch.tensor([3, 0])
    inputs, targets = pairs.pairs(index)
    assert inputs[:, 0, 0, 0].tolist() == [6, 1]
    assert targets[:, 0, 0, 0].tolist() == [5, 6]
    inputs, targets = crops.pairs(index)
    assert inputs is targets
