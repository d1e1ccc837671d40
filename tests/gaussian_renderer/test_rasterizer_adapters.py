"""The adapters of the CUDA rasterizers against stand-ins with their documented interfaces.

The real packages need a GPU; test_rasterizer_contract.py runs them where there
is one. Here only our side is checked: argument layout, units, hooks, radii.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fake_rasterizers import OLD_FIELDS, fake_dgr
from places import ROOT
from raster_scenes import compare, gsplat_pipeline, make_scene
from torch import Tensor

import gaussian_renderer
from gaussian_renderer import choose_device_and_rasterizer, choose_rasterizer
from gaussian_renderer.backends import dgr as dgr_backend
from gaussian_renderer.backends import gsplat as gsplat_backend
from ops import kernels
from ops.types import Camera, Gaussians
from utils.errors import UserError, warn_once


def _fake_gsplat_rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float,
    eps2d: float,
    sh_degree: int,
    packed: bool,
    backgrounds: Tensor,
    absgrad: bool,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    assert viewmats.shape == (1, 4, 4) and Ks.shape == (1, 3, 3) and backgrounds.shape == (1, 3)
    assert (near_plane, eps2d, packed) == (0.2, 0.3, False)
    (fx, _, cx), (_, fy, cy), _ = Ks[0].tolist()
    camera = Camera(viewmats[0], fx, fy, cx, cy, width, height)
    gaussians = Gaussians(means, quats, scales, opacities, colors)
    image, alpha, meta = gsplat_pipeline(gaussians, camera, backgrounds[0], sh_degree)
    return image.permute(1, 2, 0)[None], alpha.permute(1, 2, 0)[None], meta


@pytest.mark.parametrize("absolute", [False, True])
def test_gsplat_adapter(monkeypatch: pytest.MonkeyPatch, absolute: bool) -> None:
    import raster_scenes  # imports the real package's PyTorch functions before the stand-in hides them

    scene = make_scene(60, 80)
    raster_scenes.gsplat_pipeline(scene.gaussians, scene.camera, scene.background, 0)
    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=_fake_gsplat_rasterization))
    expected, actual = compare(gsplat_backend.rasterize, scene, absolute=absolute)
    shown = (actual.out.radii > 0) & (expected.out.radii > 0)
    assert shown.sum() > 40 and (actual.out.radii - expected.out.radii)[shown].abs().max() <= 1


def test_gsplat_adapter_without_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace())
    scene = make_scene(0, 0)
    out = gsplat_backend.rasterize(scene.gaussians, scene.camera, scene.background, sh_degree=3)
    assert torch.equal(out.image, scene.background[:, None, None].expand(3, 41, 53)) and (out.alpha == 0).all()


def test_broken_rows_become_harmless() -> None:
    from gaussian_renderer.backends.guards import without_broken

    scene = make_scene(61, 6)
    scene.gaussians.means[1, 0] = math.nan
    scene.gaussians.quats[3] = 0.0
    scene.gaussians.sh[4, 0, 0] = math.nan
    leaves = Gaussians(*(field.requires_grad_() for field in scene.gaussians))
    safe, sound = without_broken(leaves, 0)
    assert sound.tolist() == [True, False, True, False, False, True]
    assert all(torch.isfinite(field).all() for field in safe) and (safe.opacities[~sound] == 0).all()
    sum((field * field).sum() for field in safe).backward()
    assert all(torch.isfinite(field.grad).all() for field in leaves)
    assert (leaves.means.grad[~sound] == 0).all() and (leaves.quats.grad[~sound] == 0).all()


@pytest.mark.parametrize("fields,results", [(OLD_FIELDS, 2), ((*OLD_FIELDS, "antialiasing"), 3)])
def test_dgr_adapter(fields: tuple[str, ...], results: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diff_gaussian_rasterization", fake_dgr(fields, results))
    expected, actual = compare(dgr_backend.rasterize, make_scene(62, 80, centered=True, degree=2))
    assert torch.equal(actual.out.radii, expected.out.radii)


def test_dgr_projects_like_the_textbook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diff_gaussian_rasterization", fake_dgr(OLD_FIELDS, 2))
    scene = make_scene(63, 4, centered=True)
    settings = dgr_backend._settings(scene.camera, scene.background, 0, 1.0)
    near, far = dgr_backend.NEAR, dgr_backend.FAR
    projection = torch.tensor(
        [
            [1 / settings.tanfovx, 0, 0, 0],
            [0, 1 / settings.tanfovy, 0, 0],
            [0, 0, far / (far - near), -far * near / (far - near)],
            [0, 0, 1, 0],
        ]
    )
    assert torch.allclose(settings.projmatrix, (projection @ scene.camera.world_to_camera).T, atol=1e-6)


def test_dgr_says_what_to_do_about_an_off_center_camera() -> None:
    scene = make_scene(64, 4)
    with pytest.raises(UserError, match="pixels off.*install gsplat .*--rasterizer gsplat, or .*--device cpu"):
        dgr_backend.rasterize(scene.gaussians, scene.camera, scene.background, sh_degree=3)


# ---- which backends are there -------------------------------------------------


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts stand-ins for the CUDA packages in place: a module, or None for one that is not installed."""

    def install(gsplat: Any, dgr: Any = None, triton: Any = None) -> None:
        for name in [name for name in sys.modules if name == "gsplat" or name.startswith("gsplat.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "gsplat", None)
        if gsplat is not None:
            monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", gsplat)
        monkeypatch.setitem(sys.modules, "diff_gaussian_rasterization", dgr)
        monkeypatch.setitem(sys.modules, "triton", triton and types.SimpleNamespace(jit=object()))
        monkeypatch.setitem(sys.modules, "gaussian_renderer.backends.triton", triton)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        gaussian_renderer._gpu_fault.cache_clear()
        warn_once.cache_clear()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr("utils.device.gpu_fault", lambda number: None)

    yield install
    gaussian_renderer._gpu_fault.cache_clear()
    warn_once.cache_clear()


class Broken(types.ModuleType):
    """A package whose kernels do not load."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("Error building extension 'gsplat_cuda': [1/2]\nnvcc: a hundred lines")


READY = types.SimpleNamespace(_C=object())
NO_TOOLKIT = types.SimpleNamespace(_C=None)
DGR = types.SimpleNamespace(GaussianRasterizer=object())
TRITON = types.SimpleNamespace(fault=lambda device: None, rasterize=lambda: None)
DISTRUSTED = types.SimpleNamespace(
    fault=lambda device: "it fails its self-test: its image is off", rasterize=lambda: None
)
needs_native = pytest.mark.skipif(not kernels.available(), reason="the native library cannot be built here")


@pytest.mark.parametrize(
    "gsplat,triton,dgr,expected",
    [
        (READY, TRITON, DGR, ["gsplat", "triton", "dgr", "reference"]),
        (READY, DISTRUSTED, None, ["gsplat", "reference"]),
        (NO_TOOLKIT, TRITON, DGR, ["triton", "dgr", "reference"]),
        (NO_TOOLKIT, DISTRUSTED, DGR, ["dgr", "reference"]),
        (None, TRITON, None, ["triton", "reference"]),
        (None, None, None, ["reference"]),
        (Broken("gsplat"), None, None, ["reference"]),
    ],
)
def test_what_can_run_on_a_gpu(
    packages: Callable[..., None], gsplat: Any, triton: Any, dgr: Any, expected: list[str]
) -> None:
    packages(gsplat, dgr, triton)
    assert gaussian_renderer.available_backends("cuda") == expected
    assert choose_rasterizer("auto", "cuda")[0] == expected[0]


@pytest.mark.parametrize(
    "gsplat,reason",
    [
        (NO_TOOLKIT, r"CUDA toolkit \(nvcc\)"),
        (None, "the package gsplat is not installed"),
        (Broken("gsplat"), r"RuntimeError: Error building extension 'gsplat_cuda': \[1/2\]"),
    ],
)
def test_why_gsplat_is_not_used(
    packages: Callable[..., None], capfd: pytest.CaptureFixture[str], gsplat: Any, reason: str
) -> None:
    packages(gsplat)
    with pytest.raises(UserError, match=rf"--rasterizer gsplat cannot run: .*{reason}[^\n]*$"):
        choose_rasterizer("gsplat", "cuda")
    assert capfd.readouterr().err == ""
    for _ in range(2):
        assert choose_rasterizer("auto", "cuda")[0] == "reference"
    (line,) = capfd.readouterr().err.splitlines()  # once, and one line
    assert line.startswith("warning: ") and re.search(reason, line)


@needs_native
def test_a_gpu_without_a_cuda_backend_leaves_the_work_to_the_cpu(
    packages: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    packages(NO_TOOLKIT)
    for _ in range(2):
        device, name, rasterize = choose_device_and_rasterizer("auto", "auto")
        assert (device.type, name, rasterize.__module__) == ("cpu", "native", "gaussian_renderer.backends.native")
    (line,) = capfd.readouterr().err.splitlines()
    assert "GPU" in line and "nvcc" in line and "triton" in line
    assert [str(part) for part in choose_device_and_rasterizer("cuda", "auto")[:2]] == ["cuda", "reference"]
    assert [str(part) for part in choose_device_and_rasterizer("auto", "reference")[:2]] == ["cuda", "reference"]


@needs_native
def test_a_gpu_is_used_where_triton_is(packages: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    packages(NO_TOOLKIT, triton=TRITON)
    assert [str(part) for part in choose_device_and_rasterizer("auto", "auto")[:2]] == ["cuda", "triton"]
    assert capfd.readouterr().err == ""
    packages(NO_TOOLKIT, triton=DISTRUSTED)
    with pytest.raises(UserError, match="--rasterizer triton cannot run: it fails its self-test.*--rasterizer auto"):
        choose_rasterizer("triton", "cuda")
    with pytest.raises(UserError, match="--rasterizer triton cannot run: it needs a GPU, this is cpu"):
        choose_rasterizer("triton", "cpu")
    assert [str(part) for part in choose_device_and_rasterizer("auto", "auto")[:2]] == ["cpu", "native"]
    (line,) = capfd.readouterr().err.splitlines()
    assert "GPU is left unused" in line and "triton cannot run: it fails its self-test: its image is off" in line


@needs_native
def test_the_device_suits_the_rasterizer(packages: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    packages(READY)
    assert [str(part) for part in choose_device_and_rasterizer("auto", "auto")[:2]] == ["cuda", "gsplat"]
    assert [str(part) for part in choose_device_and_rasterizer("auto", "native")[:2]] == ["cpu", "native"]
    assert [str(part) for part in choose_device_and_rasterizer("cpu", "auto")[:2]] == ["cpu", "native"]
    with pytest.raises(UserError, match="--rasterizer native cannot run on cuda.*--device cpu"):
        choose_device_and_rasterizer("cuda", "native")
    with pytest.raises(UserError, match="opengl is unknown"):
        choose_device_and_rasterizer("auto", "opengl")
    assert capfd.readouterr().err == ""


def test_the_real_gsplat_without_a_toolkit() -> None:
    """In a process that finds no nvcc; and with the CPU chosen, gsplat is not even imported."""
    pytest.importorskip("packaging", reason="gsplat does not declare it")
    environment = {**os.environ, "CUDA_HOME": "/nowhere", "CUDA_PATH": "/nowhere", "PATH": "/nowhere"}
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import gaussian_renderer as g\n"
        "try: g.choose_rasterizer('gsplat', 'cpu')\n"
        "except g.UserError: pass\n"
        "g.available_backends('cpu')\n"
        "print('gsplat' in sys.modules)\n"
        "print(g._gpu_fault('gsplat', 'cuda'))\n"
        "try: import gsplat; print('installed')\n"
        "except ImportError: print('not installed')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    lines = result.stdout.splitlines()
    assert lines[0] == "False", result.stderr
    if lines[-1] == "not installed":
        pytest.skip("gsplat is not installed (test-only)")
    assert "CUDA toolkit (nvcc)" in lines[-2]
