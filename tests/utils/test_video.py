"""PNG and mp4 files, decoded again by others."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from utils import images
from utils.errors import UserError
from utils.video import clip_writer, video_writer


def decode(path: Path) -> tuple[dict, np.ndarray]:
    """The meta data and the frames [T, H, W, 3] of a video."""
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return meta, np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def color_frame(width: int, height: int, color: tuple[int, int, int]) -> np.ndarray:
    return np.full((height, width, 3), color, dtype=np.uint8)


def test_frames_come_back_in_order_and_color(tmp_path: Path) -> None:
    colors = [(200, 60, 50), (40, 180, 70), (60, 80, 210), (255, 255, 255), (0, 0, 0)]
    with video_writer(tmp_path / "deep" / "a.mp4", 64, 48, fps=25) as video:
        for color in colors:
            video.add(color_frame(64, 48, color))
    meta, frames = decode(tmp_path / "deep" / "a.mp4")
    assert frames.shape == (5, 48, 64, 3)
    assert meta["fps"] == 25 and meta["codec"] == "h264" and "yuv420p" in meta["pix_fmt"]
    for frame, color in zip(frames, colors):
        assert np.abs(frame.astype(int) - color).max() <= 6
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.mp4"]  # no temporary left


def test_odd_sizes_are_padded_not_cropped(tmp_path: Path) -> None:
    frame = np.zeros((33, 51, 3), dtype=np.uint8)
    frame[-1, :] = 255  # the last row and column would be lost by cropping
    frame[:, -1] = 255
    with video_writer(tmp_path / "odd.mp4", 51, 33, quality=1) as video:
        video.add(frame)
    _, frames = decode(tmp_path / "odd.mp4")
    assert frames.shape == (1, 34, 52, 3)
    assert frames[0, 32:, 4:48].min() > 200 and frames[0, 4:30, 50:].min() > 200 and frames[0, 4:28, 4:44].max() < 60


def test_a_frame_of_another_size_is_fitted(tmp_path: Path) -> None:
    with video_writer(tmp_path / "mixed.mp4", 64, 32) as video:
        video.add(color_frame(64, 32, (255, 255, 255)))
        video.add(color_frame(64, 64, (255, 255, 255)))
    _, frames = decode(tmp_path / "mixed.mp4")
    assert frames.shape == (2, 32, 64, 3)
    assert frames[1, :, 20:44].min() > 200 and frames[1, :, :12].max() < 50 and frames[1, :, 52:].max() < 50


def test_a_webm_with_alpha(tmp_path: Path) -> None:
    frame = np.zeros((48, 64, 4), dtype=np.uint8)
    frame[:, :32] = (200, 60, 50, 255)
    frame[:, 32:] = (200, 60, 50, 100)
    with video_writer(tmp_path / "a.webm", 64, 48, fps=30, alpha=True) as video:
        for _ in range(3):
            video.add(frame)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *"-v error -c:v libvpx-vp9 -i".split(), str(tmp_path / "a.webm")]
    raw = subprocess.run([*command, *"-f rawvideo -pix_fmt rgba -".split()], capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, 48, 64, 4).astype(int)
    assert len(frames) == 3
    assert np.abs(frames[:, 8:40, 4:28] - (200, 60, 50, 255)).max() <= 8
    assert np.abs(frames[:, 8:40, 36:60] - (200, 60, 50, 100)).max() <= 8


def test_a_clip_goes_where_its_name_says(tmp_path: Path) -> None:
    frames = [color_frame(16, 16, (c, 0, 0)) for c in (10, 200)]
    for name, count in (("a.mp4", 2), ("folder", 2), ("one.png", 1)):
        with clip_writer(tmp_path / name, 16, 16, fps=5) as add:
            for frame in frames[-count:]:
                add(frame)
    assert decode(tmp_path / "a.mp4")[1].shape == (2, 16, 16, 3)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), frames[1])
    written = [np.asarray(Image.open(tmp_path / "folder" / f"0000{i}.png")) for i in (0, 1)]
    assert all(np.array_equal(*pair) for pair in zip(written, frames))
    with clip_writer(tmp_path / "folder", 16, 16, fps=5) as add:  # a shorter one
        add(frames[0])
    assert len(list((tmp_path / "folder").glob("*.png"))) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "00001.png").write_bytes(b"a photograph")
    with pytest.raises(UserError, match="pictures that are not of a clip"):
        with clip_writer(tmp_path / "mine", 16, 16, fps=5) as add:
            add(frames[0])
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["00001.png"]
    for name, alpha, message in (("a.gif", False, "another ending"), ("b.mp4", True, "no alpha channel")):
        with pytest.raises(UserError, match=message), clip_writer(tmp_path / name, 16, 16, fps=5, alpha=alpha):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "folder", "mine", "one.png"]


def test_frames_are_encoded_beside_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ffmpeg that takes nothing yet holds up nobody, until as many frames wait as may."""
    program, taken = tmp_path / "ffmpeg", tmp_path / "taken"
    program.write_text(f"#!/bin/sh\nwhile [ ! -e {taken} ]; do sleep 0.01; done\ncat > /dev/null\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with video_writer(tmp_path / "a.mp4", 640, 480) as video:
        for _ in range(8):
            video.add(color_frame(640, 480, (1, 2, 3)))
        taken.touch()
        for _ in range(8):
            video.add(color_frame(640, 480, (1, 2, 3)))


def test_a_failing_ffmpeg_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho 'Unknown encoder: libx264' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises(UserError, match="Unknown encoder: libx264"):
        with video_writer(tmp_path / "a.mp4", 640, 480) as video:
            for _ in range(50):
                video.add(color_frame(640, 480, (1, 2, 3)))
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        with video_writer(tmp_path / "a.mp4", 640, 480):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["ffmpeg"]


def test_an_error_of_the_caller_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        with video_writer(tmp_path / "a.mp4", 64, 48) as video:
            video.add(color_frame(64, 48, (1, 2, 3)))
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_png_round_trip_through_the_threads(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.rand(3, 17, 23, generator=generator) * 1.2 - 0.1 for _ in range(30)]
    with images.PngWriter(threads=2, backlog=3) as writer:
        for i, picture in enumerate(pictures):
            writer.write(tmp_path / f"{i:05d}.png", images.to_bytes(picture))
    assert len(list(tmp_path.iterdir())) == 30
    for i, picture in enumerate(pictures):
        read = np.asarray(Image.open(tmp_path / f"{i:05d}.png"))
        assert read.shape == (17, 23, 3)
        expected = np.rint(np.clip(picture.double().numpy(), 0, 1).transpose(1, 2, 0) * 255)
        assert np.abs(read - expected).max() <= 1 and (read == expected).mean() > 0.999  # a tie may round either way


def test_png_errors_reach_the_caller(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        with images.PngWriter() as writer:
            writer.write(tmp_path / "file" / "a.png", color_frame(4, 4, (0, 0, 0)))


def test_heat_map_gets_lighter_and_saturates() -> None:
    colors = images.heat_map(torch.linspace(0, 2, 201)[None], top=1.0)
    assert colors.shape == (3, 1, 201)
    lightness = (torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None] * colors**2.2).sum(0)[0]
    assert (lightness[1:101] > lightness[:100]).all()
    assert torch.equal(lightness[100:], lightness[100:101].expand(101))
    assert torch.allclose(colors[:, 0, 0], torch.tensor(images.MAGMA[0]))
    assert torch.allclose(colors[:, 0, 100], torch.tensor(images.MAGMA[-1]))


def test_error_map_is_black_where_equal() -> None:
    image = torch.full((3, 4, 4), 0.5)
    target = image.clone()
    target[:, 1, 2] += 0.5
    shown = images.error_map(image, target)
    bright = shown.sum(0) > 1.0
    assert bright.nonzero().tolist() == [[1, 2]]


def test_side_by_side_keeps_every_panel() -> None:
    strip = images.side_by_side([color_frame(2, 3, (10, 20, 30)), color_frame(4, 5, (40, 50, 60))])
    assert strip.shape == (5, 6, 3)
    assert (strip[:3, :2] == (10, 20, 30)).all() and (strip[3:, :2] == 255).all()
    assert (strip[:, 2:] == (40, 50, 60)).all()
