import subprocess
import sys

import pytest
import torch

from pipeline.errors import ConfigError, InputError
from pipeline.storage import Store
from pipeline.storage.readers.pairs import pair_tars
from pipeline.training.config import load_train_config
from pipeline.training.latent_pairs import load_codes

PATHS = {"input": "in", "output": "out", "model": "demo"}


def test_codes_are_equal_from_disk_and_bucket(pair_shards, s3):
    folder, bucket = pair_shards[0].parent, Store(f"{s3.uri}/pairs")
    for shard in pair_shards:
        bucket.put(shard.name, shard.read_bytes())
    bucket.put("pairs-notes.txt", b"no tar")
    bucket.put("pairs-more/pairs-0.tar", b"of another folder")
    assert pair_tars(str(folder)) == list(map(str, pair_shards))
    assert pair_tars(bucket.root) == [f"{bucket.root}/{shard.name}" for shard in pair_shards]
    assert torch.equal(load_codes(pair_tars(bucket.root)), load_codes(pair_shards))


def test_config_with_folder_without_codes_is_refused(tmp_path, pair_shards):
    for nowhere in (str(tmp_path), "/nope", "memory://nope"):
        with pytest.raises(InputError, match=r"holds no pairs-\*\.tar"):
            load_train_config(None, {**PATHS, "codes": nowhere})
    assert load_train_config(None, {**PATHS, "codes": str(pair_shards[0].parent)}).codes
    with pytest.raises(ConfigError):
        load_train_config(None, {"codes": "/nope"})


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, bytes(10_240)])
def test_damaged_tar_gives_one_clear_line(tmp_path, content):
    (tmp_path / "pairs-0.tar").write_bytes(content)
    with pytest.raises(
        InputError, match=r"pairs-0\.tar' (is no tar, or damaged|holds no codes)"
    ) as error:
        load_codes(pair_tars(str(tmp_path)))
    assert "\n" not in str(error.value)


def test_config_check_does_not_import_pytorch():
    code = "import sys, pipeline.training.config; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
