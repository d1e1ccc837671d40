"""On a GPU: train.py and render.py from end to end, what stays there, and that the host does not wait for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from raster_scenes import make_scene
from runs import gaussians, train_on
from watching import FLAGS_OF_LOSSES, watch_training

import render
from arguments import parse_render
from gaussian_renderer import available_backends
from gaussian_renderer.backends import gsplat as gsplat_backend
from ops import lpips
from ops.types import Gaussians
from scene.images.cache import ImageCache
from training import checkpoint, views

pytestmark = pytest.mark.cuda

ITERATIONS = 30
# Densifications at 10, 15, 20 and 25; checkpoints at 12, 24 and 30.
SCHEDULE = (
    f"--iterations {ITERATIONS} --interval 12 --densify_from_iter 5 --densification_interval 5 "
    "--densify_until_iter 28 --densify_grad_threshold 0.0005 --sh_increase_interval 10"
)


@pytest.fixture(scope="module")
def rasterizer() -> str:
    """The toy's cameras are off-centre, which diff-gaussian-rasterization does not do."""
    return next(name for name in available_backends("cuda") if name != "dgr")


def run(capture: Path, model: Path, *more: object) -> dict[str, Any]:
    # The last --device on the command line holds.
    return train_on(capture, model, SCHEDULE, *more)


@contextlib.contextmanager
def waiting(mode: str) -> Iterator[None]:
    """What happens where the host would wait for the GPU: "default", nothing, or "error"."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def points(model: Path, iteration: int) -> int:
    return len(gaussians(model, iteration)["xyz"])


def test_train_resume_and_render(
    capture: Path, tmp_path: Path, rasterizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = []

    class Watched(ImageCache):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            caches.append(self)

    monkeypatch.setattr(views, "ImageCache", Watched)
    on_gpu = ["--device", "cuda", "--rasterizer", rasterizer]
    whole = run(capture, tmp_path / "whole", *on_gpu)
    assert (whole["backend"], whole["iterations"]) == (rasterizer, ITERATIONS)
    assert whole["peak_memory"]["cuda_bytes"] > 0
    assert points(tmp_path / "whole", 12) > 320 and points(tmp_path / "whole", ITERATIONS) > points(
        tmp_path / "whole", 12
    )

    # The images went there once and never come back.
    (cache,) = caches
    assert cache.where == "cuda"
    with waiting("error"):
        assert cache.image(0, torch.device("cuda")).device.type == "cuda"

    # The same pictures as the CPU's; backends differ in rounding, which densification may amplify.
    cpu = run(capture, tmp_path / "cpu", "--device", "cpu")
    for split in ("val", "test"):
        assert whole["metrics"][split]["psnr"] == pytest.approx(cpu["metrics"][split]["psnr"], abs=0.3)
        assert whole["metrics"][split]["ssim"] == pytest.approx(cpu["metrics"][split]["ssim"], abs=0.02)

    # Resumed from the middle: all state comes back onto the GPU. Sums there have no fixed order.
    middle = tmp_path / "whole" / "chkpnt12.pth"
    rest = run(capture, tmp_path / "rest", *on_gpu, "--start_checkpoint", middle)
    assert rest["points"] == pytest.approx(whole["points"], rel=0.02)
    for split in ("val", "test"):
        assert rest["metrics"][split]["psnr"] == pytest.approx(whole["metrics"][split]["psnr"], abs=0.2)
    # A checkpoint can be read where there is no GPU.
    state = checkpoint.load(tmp_path / "rest" / f"chkpnt{ITERATIONS}.pth")
    assert {value.device.type for value in state["avatar"]["fields"].values()} == {"cpu"}

    measured = render.render_avatar(
        parse_render(
            ["-m", str(tmp_path / "whole"), "--skip_train", "--render_mesh", "--quiet", "--threads", "1", *on_gpu]
        )
    )
    for split in ("val", "test"):
        for name in ("psnr", "ssim", "l1", "flip"):
            assert measured[split][name] == pytest.approx(whole["metrics"][split][name], rel=1e-3)
        folder = tmp_path / "whole" / split / f"ours_{ITERATIONS}"
        assert (folder / "renders.mp4").stat().st_size > 0 and list((folder / "renders_mesh").glob("*.png"))


@pytest.mark.parametrize("flags", FLAGS_OF_LOSSES)
def test_training_does_not_wait(capture: Path, tmp_path: Path, rasterizer: str, flags: str) -> None:
    names = {"data", "avatar", "loss", "optimizer", "density"}
    if rasterizer != "reference":
        names.add("backward")  # of the reference nobody asks it
    more = f"--device cuda --rasterizer {rasterizer}"
    watch_training(capture, tmp_path, names, lambda: waiting("error"), flags, more)


def test_the_gsplat_adapter_does_not_wait(rasterizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gsplat = pytest.importorskip("gsplat")
    if rasterizer != "gsplat":
        pytest.skip("gsplat cannot run here")
    original = gsplat.rasterization

    def rasterization(**arguments: Any) -> Any:
        with waiting("default"):
            return original(**arguments)

    monkeypatch.setattr(gsplat, "rasterization", rasterization)
    scene = make_scene(70, 200)
    camera, background = scene.camera.to("cuda"), scene.background.cuda()
    for settled in (False, True):
        leaves = Gaussians(*(field.cuda().requires_grad_() for field in scene.gaussians))
        with waiting("error") if settled else contextlib.nullcontext():
            out = gsplat_backend.rasterize(leaves, camera, background, sh_degree=3)
            (out.image.square().sum() + out.alpha.sum()).backward()
    assert out.means2d.grad.abs().sum() > 0 and out.image.device.type == "cuda"


@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_lpips_is_the_cpu_s(network: str) -> None:
    torch.manual_seed(3)
    model = lpips.LPIPS(network).eval()
    image, target = torch.rand(2, 3, 96, 64)
    allowed = torch.backends.cudnn.allow_tf32
    expected = model(image, target).item()
    actual = model.to("cuda")(image.cuda(), target.cuda()).item()
    assert actual == pytest.approx(expected, rel=2e-5)  # TF32 is off by about 1e-3
    assert torch.backends.cudnn.allow_tf32 == allowed
