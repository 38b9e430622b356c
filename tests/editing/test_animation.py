"""Animations read back with their frames, durations and size."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.editing.animation import check_animation, write_animation
from pipeline.errors import ConfigError, RequestError, ShapeError

COUNT = 12


def frames(width: int = 33, height: int = 21) -> list[np.ndarray]:
    """Return frames that differ: a gradient that moves and grows bluer."""
    y, x = np.mgrid[:height, :width]
    return [
        np.stack([x * 5 + step, y * 6, np.full_like(x, step * 20)], -1).astype(np.uint8)
        for step in range(COUNT)
    ]


def difference(picture: np.ndarray, frame: np.ndarray) -> float:
    return float(np.abs(picture.astype(int) - frame).mean())


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_pictures_of_webp_and_gif_are_the_frames(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"walk{suffix}"
    assert write_animation(str(path), iter(frames()), fps=12) == (COUNT, 33, 21)
    durations = []
    with Image.open(path) as animation:
        assert (animation.n_frames, animation.size) == (COUNT, (33, 21))
        assert animation.info["loop"] == 0
        for step, frame in enumerate(frames()):
            animation.seek(step)
            assert difference(np.asarray(animation.convert("RGB")), frame) < 6
            durations.append(animation.info["duration"])
    assert sum(durations) == 1000
    assert len(set(durations)) == 2, "1/12 s is no whole number of their units"


def test_mp4_of_odd_frames_decodes_to_the_frames(tmp_path: Path) -> None:
    path = tmp_path / "walk.mp4"
    assert write_animation(str(path), iter(frames()), fps=12) == (COUNT, 33, 21)
    with av.open(str(path)) as video:
        (stream,) = video.streams.video
        assert (stream.average_rate, stream.codec_context.pix_fmt) == (12, "yuv420p")
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
    assert [picture.shape for picture in pictures] == [(22, 34, 3)] * COUNT
    for picture, frame in zip(pictures, frames(), strict=True):
        assert difference(picture[:21, :33], frame) < 8


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".mp4"])
def test_encoder_takes_frames_one_by_one(tmp_path: Path, suffix: str) -> None:
    alive = 0

    class Counted(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def stream() -> Iterator[np.ndarray]:
        nonlocal alive
        for step in range(40):
            alive += 1
            assert alive <= 4, "frames pile up"
            frame = np.full((16, 16, 3), step, np.uint8).view(Counted)
            yield frame
            del frame

    assert write_animation(str(tmp_path / f"a{suffix}"), stream()).frames == 40


def test_failure_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield frames()[0]
        yield frames(width=20)[0]

    for suffix in (".webp", ".gif", ".mp4"):
        with pytest.raises(ShapeError, match="of one size"):
            write_animation(str(tmp_path / f"a{suffix}"), broken())
    with pytest.raises(ConfigError, match="at least one frame"):
        write_animation(str(tmp_path / "a.webp"), [])
    assert list(tmp_path.iterdir()) == []


def test_wrong_names_and_rates_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"name an animation \*.webp"):
        check_animation("walk.avi")
    with pytest.raises(ConfigError, match="1 to 50 frames per second, got 60"):
        check_animation("walk.gif", fps=60)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "pipeline.editing.animation.find_spec",
        lambda name: None if name == "av" else find_spec(name),
    )
    with pytest.raises(RequestError, match=r"pip install 'restyle-pipeline\[video\]'"):
        check_animation("s3://bucket/walk.mp4")
    check_animation("s3://bucket/walk.webp")
