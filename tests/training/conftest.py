import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_shard(path: Path, count: int, seed: int) -> None:
    """Write `count` pairs with a flat colour computed from the code's first three numbers."""
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for index in range(count):
            code = rng.standard_normal(512).astype(np.float16)
            colour = np.clip(127 + 60 * code[:3].astype(np.float32), 0, 255).astype(np.uint8)
            image, packed = io.BytesIO(), io.BytesIO()
            Image.fromarray(np.broadcast_to(colour, (128, 128, 3)).copy()).save(image, "JPEG")
            np.save(packed, code)
            for name, content in (("jpg", image), ("w.npy", packed)):
                member = tarfile.TarInfo(f"{seed:03d}{index:04d}.{name}")
                member.size = len(content.getvalue())
                tar.addfile(member, io.BytesIO(content.getvalue()))


@pytest.fixture(scope="session")
def pair_shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pairs")
    for number in range(2):
        write_shard(folder / f"pairs-{number:05d}.tar", 12, number)
    return sorted(folder.glob("*.tar"))
