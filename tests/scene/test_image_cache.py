"""The image cache: pixels, backgrounds, sizes, the file it shares between runs, and broken images."""

from __future__ import annotations

import dataclasses
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from places import ROOT

import scene.images.cache as module
from ops.types import Camera
from scene.dataset import View
from scene.images.cache import ImageCache, available_memory
from scene.images.decode import composite, recomposite, resize
from utils.errors import UserError

WHITE, BLACK = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)


def view(path: Path, width: int, height: int, mask: Path | None = None, source: tuple[int, int] | None = None) -> View:
    camera = Camera(torch.eye(4), 10.0, 10.0, 5.0, 5.0, width, height)
    return View(camera, path, mask, source_size=source or (width, height))


def noise(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def cached(views: list[View], background: tuple[float, float, float] = WHITE, **options) -> ImageCache:
    return ImageCache(views, background, **{"folder": None, "progress": False, **options})


def test_pixels_of_images_of_different_sizes(tmp_path: Path) -> None:
    images = [noise(20 + i, 31 - i, 3, i) for i in range(9)]
    views = [view(save(tmp_path / f"{i}.png", a), a.shape[1], a.shape[0]) for i, a in enumerate(images)]
    cache = cached(views, workers=2)
    assert len(cache) == 9 and cache.where == "ram" and cache.nbytes == sum(a.size for a in images)
    for index, expected in enumerate(images):
        assert cache[index].dtype == torch.uint8
        np.testing.assert_array_equal(cache[index].numpy(), expected)
        image = cache.image(index, "cpu")
        assert image.dtype == torch.float32 and image.is_contiguous() and image.shape == (3, *expected.shape[:2])
        np.testing.assert_array_equal(image.numpy(), expected.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    image.zero_()  # a new tensor: the cache is untouched
    np.testing.assert_array_equal(cache[-1].numpy(), images[-1])
    with pytest.raises(IndexError):
        cache[9]
    assert len(list(cache)) == 9
    assert len(cached([])) == 0


def test_alpha_of_masks_and_of_transparent_images(tmp_path: Path) -> None:
    rgb, alpha = noise(8, 12, 3), noise(8, 12, 1, 1)[..., 0]
    alpha[0, 0] = 0
    masked = dataclasses.replace(view(save(tmp_path / "a.png", rgb), 12, 8), mask_path=save(tmp_path / "m.png", alpha))
    transparent = view(save(tmp_path / "b.png", np.dstack([rgb, alpha])), 12, 8)
    opaque = view(save(tmp_path / "c.png", rgb), 12, 8)
    views = [masked, transparent, opaque]
    cache, plain = cached(views, alpha=True), cached(views)
    for index in range(3):
        assert torch.equal(cache[index], plain[index]) and cache.image(index, "cpu").shape == (3, 8, 12)
    for index in range(2):
        np.testing.assert_array_equal(cache.alpha(index, "cpu")[0].numpy(), alpha.astype(np.float32) / np.float32(255))
    assert cache.alpha(2, "cpu") is None
    halved = cache.at_scale(0.5)
    means = alpha.reshape(4, 2, 6, 2).astype(np.float64).mean(axis=(1, 3)) / 255
    assert np.abs(halved.alpha(1, "cpu")[0].numpy() - means).max() < 0.6 / 255
    assert halved.alpha(2, "cpu") is None and torch.equal(halved[2], plain.at_scale(0.5)[2])
    mapped = cached(views, alpha=True, ram_share=0.0, folder=tmp_path / "cache")
    assert torch.equal(mapped.alpha(0, "cpu"), cache.alpha(0, "cpu"))


def test_memory_mapped_file_equals_memory_and_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views = [view(save(tmp_path / f"{i}.png", noise(12, 17, 3, i)), 17, 12) for i in range(5)]
    folder = tmp_path / "cache"
    in_memory = cached(views)
    mapped = cached(views, ram_share=0.0, folder=folder)
    assert mapped.where == "mmap"
    for index in range(5):
        assert torch.equal(mapped[index], in_memory[index])
        assert torch.equal(mapped.image(index, "cpu"), in_memory.image(index, "cpu"))
    (file,) = folder.glob("*.images")
    assert file.stat().st_size == mapped.nbytes == 5 * 12 * 17 * 3

    decoded = []
    original = module._decode
    monkeypatch.setattr(module, "_decode", lambda jobs, *rest: decoded.append(len(jobs)) or original(jobs, *rest))
    assert torch.equal(cached(views, ram_share=0.0, folder=folder)[3], in_memory[3]) and not decoded
    os.truncate(file, 100)  # damaged: written again
    (folder / ".tmp-a1b2c3d4.images").write_bytes(b"left by a killed run")
    assert torch.equal(cached(views, ram_share=0.0, folder=folder)[3], in_memory[3]) and decoded == [5]
    assert not list(folder.glob(".tmp-*"))
    cached(views, BLACK, ram_share=0.0, folder=folder)  # another background is another file
    os.utime(views[0].image_path, ns=(1, 1))  # and so is a changed image
    cached(views, ram_share=0.0, folder=folder)
    assert decoded == [5, 5, 5] and len(list(folder.glob("*.images"))) == 3
    with pytest.raises(UserError, match="smaller --resolution"):
        cached(views, ram_share=0.0)


def test_two_runs_share_one_file(tmp_path: Path) -> None:
    pixels = [noise(40, 50, 3, i) for i in range(6)]
    for index, array in enumerate(pixels):
        save(tmp_path / f"{index}.png", array)
    script = """if True:
        import sys
        sys.path.insert(0, sys.argv[1])
        import torch
        from pathlib import Path
        from ops.types import Camera
        from scene.dataset import View
        from scene.images.cache import ImageCache
        folder = Path(sys.argv[2])
        views = [View(Camera(torch.eye(4), 1, 1, 1, 1, 50, 40), folder / f"{i}.png") for i in range(6)]
        cache = ImageCache(views, (1, 1, 1), ram_share=0.0, folder=folder / "c", progress=False)
        print(sum(int(image.long().sum()) for image in cache))
    """
    command = [sys.executable, "-c", script, str(ROOT), str(tmp_path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = [int(run.communicate(timeout=120)[0]) for run in runs]
    assert sums == [sum(int(a.sum()) for a in pixels)] * 2 and len(list((tmp_path / "c").glob("*.images"))) == 1


def test_transparent_images_are_composited(tmp_path: Path) -> None:
    rgba = noise(10, 14, 4)
    alpha = rgba[..., 3:].astype(np.float64) / 255
    v = view(save(tmp_path / "a.png", rgba), 14, 10)
    for background in (WHITE, BLACK, (0.2, 0.5, 0.9)):
        exact = rgba[..., :3] * alpha + 255 * np.array(background) * (1 - alpha)
        assert np.abs(cached([v], background)[0].numpy() - exact).max() <= 0.5 + 1e-4


def test_background_is_exchanged_exactly(tmp_path: Path) -> None:
    foreground = noise(30, 40, 3).astype(np.float64)
    alpha = np.clip(np.linspace(-0.5, 1.5, 40), 0, 1)[None, :, None].repeat(30, axis=0)
    alpha = np.round(alpha * 255) / 255
    over = {
        color: np.rint(foreground * alpha + 255 * np.array(color) * (1 - alpha)).astype(np.uint8)
        for color in (WHITE, BLACK, (0.0, 0.6, 0.0))
    }
    mask = save(tmp_path / "mask.png", np.round(alpha[..., 0] * 255).astype(np.uint8))
    for old, pixels in over.items():
        v = view(save(tmp_path / "image.png", pixels), 40, 30, mask)
        for new, expected in over.items():
            got = cached([v], new)[0].numpy()
            if new == old:
                np.testing.assert_array_equal(got, expected)  # identity, to the last bit
            else:
                assert np.abs(got.astype(int) - expected).max() <= 1


def test_photographed_background_is_faded_out() -> None:
    rgb, alpha = noise(20, 20, 3), noise(20, 20, 1, 1)[..., 0]
    alpha[:10] = 0
    weight = alpha[..., None] / 255
    assert np.abs(recomposite(rgb, alpha, list(WHITE)) - (rgb * weight + 255 * (1 - weight))).max() <= 0.5 + 1e-4
    full = np.full((20, 20), 255, np.uint8)
    np.testing.assert_array_equal(recomposite(rgb, full, list(BLACK)), rgb)  # nothing outside to judge by
    np.testing.assert_array_equal(composite(rgb, full, list(BLACK)), rgb)


def test_opaque_alpha_channel_gives_way_to_the_mask(tmp_path: Path) -> None:
    rgba = np.full((8, 8, 4), 255, np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    v = view(save(tmp_path / "a.png", rgba), 8, 8, save(tmp_path / "m.png", mask))
    np.testing.assert_array_equal(cached([v], BLACK)[0].numpy(), mask[..., None].repeat(3, axis=2))


def test_kinds_of_image_files(tmp_path: Path) -> None:
    gray = noise(9, 11, 1)[..., 0]
    deep = gray.astype(np.uint16) * 256 + 77
    three = gray[..., None].repeat(3, axis=2)
    Image.fromarray(gray).save(tmp_path / "grey.png")
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(three).quantize(256).save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([three, np.full_like(gray, 255)])).save(tmp_path / "opaque.png")
    # 16-bit RGB, which Pillow cannot write: filter byte 0 and big-endian samples in every row
    rows = b"".join(b"\0" + row.astype(">u2").repeat(3).tobytes() for row in deep)
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 11, 9, 16, 2, 0, 0, 0), b"IDAT" + zlib.compress(rows), b"IEND"]
    (tmp_path / "deep_rgb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    )
    views = [view(tmp_path / f"{name}.png", 11, 9) for name in ("grey", "deep", "palette", "opaque", "deep_rgb")]
    cache = cached(views)
    for image in cache:
        np.testing.assert_array_equal(image.numpy(), three)
    deep_mask = save(tmp_path / "mask.png", np.zeros((9, 11), np.uint16))
    assert not cached([view(tmp_path / "grey.png", 11, 9, deep_mask)], BLACK)[0].any()


def test_resizing(tmp_path: Path) -> None:
    pixels = noise(16, 24, 3)
    mean = pixels.astype(np.float64).reshape(8, 2, 12, 2, 3).mean(axis=(1, 3))
    v = view(save(tmp_path / "a.png", pixels), 12, 8, source=(24, 16))
    assert np.abs(cached([v])[0].numpy() - mean).max() <= 0.5 + 1e-4
    # No factor shifts the picture: a linear ramp stays the same ramp under the new pixel grid.
    ramp = np.broadcast_to(np.linspace(0, 255, 240)[None, :, None], (6, 240, 3)).astype(np.uint8)
    for width in (100, 175, 60):
        centers = (np.arange(width) + 0.5) * 240 / width - 0.5
        got = resize(ramp, width, 4)[2, :, 0].astype(float)
        assert np.abs(got - centers * 255 / 239)[5:-5].max() < 1.6


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing", "b.png does not exist"),
        ("truncated", "cannot decode the image .*b.png"),
        ("empty", "cannot read the image .*b.png"),
        ("text", "cannot read the image .*b.png"),
        ("size", "b.png is 15x12 pixels, but the camera file says 17x12"),
        ("mask size", "mask.png is 5x4 pixels, but its image has 17x12"),
        ("mask missing", "mask.png does not exist"),
        ("bomb", "cannot read the image .*b.png.*limit"),
        ("float", "cannot decode the image .*b.png"),
    ],
)
def test_broken_images(tmp_path: Path, kind: str, message: str) -> None:
    views = [view(save(tmp_path / f"{i}.png", noise(12, 17, 3, i)), 17, 12) for i in range(20)]
    path, mask = tmp_path / "b.png", None
    save(path, noise(12, 17, 3))
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    elif kind in ("empty", "text"):
        path.write_text("" if kind == "empty" else "this is no picture")
    elif kind == "size":
        save(path, noise(12, 15, 3))
    elif kind == "mask size":
        mask = save(tmp_path / "mask.png", noise(4, 5, 1)[..., 0])
    elif kind == "mask missing":
        mask = tmp_path / "mask.png"
    elif kind == "bomb":  # a header alone that announces 900 megapixels
        data = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + data + struct.pack(">I", zlib.crc32(data)) + b"\0\0\0\0IDAT"
        )
    elif kind == "float":
        Image.fromarray(np.zeros((12, 17), np.float32)).save(tmp_path / "b.tif")
        path = (tmp_path / "b.tif").rename(path)
    views.insert(11, view(path, 17, 12, mask))
    with pytest.raises(UserError, match=message):
        cached(views, workers=2)
    with pytest.raises(UserError, match=message):
        cached(views, workers=2, ram_share=0.0, folder=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.images")), "half a file was left"


def test_killed_worker_is_an_error_and_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = tmp_path / "dying.py"
    dying.write_text("import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 9)")
    monkeypatch.setattr(module.image_decode, "__file__", str(dying))
    views = [view(save(tmp_path / f"{i}.png", noise(4, 4, 3, i)), 4, 4) for i in range(20)]
    with pytest.raises(UserError, match="ended with status -9.*memory"):
        cached(views, workers=2)


def test_worker_does_not_import_torch() -> None:
    code = f"import runpy, sys; runpy.run_path({module.image_decode.__file__!r}); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_full_disk_and_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views = [view(save(tmp_path / "a.png", noise(4, 4, 3)), 4, 4)]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        cached(views, ram_share=0.0, folder=tmp_path / "file")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("", (), {"free": 3})())
    with pytest.raises(UserError, match="make room"):
        cached(views, ram_share=0.0, folder=tmp_path / "cache")


def test_unknown_device() -> None:
    with pytest.raises(UserError, match="--data_device toaster"):
        cached([], device="toaster")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="finds no CUDA device"):
            cached([], device="cuda")


def test_available_memory_is_plausible() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_memory() <= total


@pytest.mark.cuda
def test_images_move_to_the_gpu(tmp_path: Path) -> None:
    pixels = noise(12, 17, 3)
    views = [view(save(tmp_path / "a.png", pixels), 17, 12)]
    cache = cached(views, device="cuda")
    assert cache.where == "cuda" and cache[0].is_cuda
    np.testing.assert_array_equal(cache[0].cpu().numpy(), pixels)
    assert torch.equal(cache.image(0, "cuda").cpu(), cached(views).image(0, "cpu"))
    assert torch.equal(cached(views).image(0, "cuda"), cache.image(0, "cuda"))
