"""The Triton backend against the float64 reference: on a GPU compiled, elsewhere in Triton's interpreter."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from raster_scenes import FIELDS, Scene, compare, fragile_pixels, join, make_scene, run

from gaussian_renderer import self_test
from gaussian_renderer.backends import reference
from ops.types import Gaussians, RenderOut

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch's GPU wheels and for Linux only")

from gaussian_renderer.backends import triton as backend  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NumPy, where a kernel makes NaN


@pytest.fixture(autouse=True)
def _no_room_from_before() -> Iterator[None]:
    backend._rooms.clear()
    yield


def _hostile() -> Scene:
    """In front, behind, around the near plane, far outside, too transparent, not finite."""
    scene = join(
        make_scene(2, 30),
        make_scene(3, 4, depth=(-3.0, -0.3)),
        make_scene(4, 6, depth=(0.21, 0.35)),
        make_scene(5, 4, depth=(0.01, 0.19)),
        make_scene(6, 6, spread=9.0),
    )
    fields = Gaussians(*(field.clone() for field in scene.gaussians))
    fields.opacities[:2] = 0.003
    fields.means[5, 1] = fields.quats[7, 0] = fields.opacities[9] = fields.sh[11, 0, 1] = float("nan")
    fields.scales[6, 2] = fields.means[10, 2] = fields.sh[12, -1, 2] = float("inf")
    fields.quats[8] = 0.0
    return scene._replace(gaussians=fields)


SCENES = {
    "plain": lambda: make_scene(1, 50),
    "hostile": _hostile,
    "tiny": lambda: make_scene(7, 60, sigma=(1e-4, 0.05)),
    "larger than the image": lambda: join(
        make_scene(8, 4, sigma=(30.0, 300.0), opacity=(0.05, 0.3)),
        make_scene(9, 10, sigma=(0.05, 200.0), opacity=(0.05, 0.4)),
    ),
    "opaque": lambda: make_scene(10, 40, size=(37, 19), sigma=(3.0, 12.0), opacity=(0.9, 1.0)),
    "around the edges": lambda: join(make_scene(11, 25, spread=1.6), make_scene(12, 12, spread=3.0, sigma=(10, 60))),
    "one pixel, degree 0": lambda: make_scene(20, 60, size=(1, 1), sigma=(0.5, 3.0), degree=0),
    "one row, degree 1": lambda: make_scene(20, 60, size=(17, 1), sigma=(0.5, 3.0), degree=1),
    "one column of tiles, degree 2": lambda: make_scene(20, 60, size=(3, 41), sigma=(0.5, 3.0), degree=2),
}


@pytest.mark.parametrize("name", SCENES)
def test_it_matches_the_reference(name: str) -> None:
    scene = SCENES[name]()
    expected, actual = compare(backend.rasterize, scene, device=DEVICE, absolute=True)
    assert ((actual.out.radii > 0) == (expected.out.radii > 0)).all() and (actual.out.radii > 0).any()
    assert (actual.out.radii - expected.out.radii).abs().max() <= 1  # it is rounded up from a float


def test_needles_keep_their_digits() -> None:
    scene = make_scene(50, 8, size=(101, 37), sigma=(0.02, 400.0), opacity=(0.05, 0.3))
    expected, actual = compare(backend.rasterize, scene, device=DEVICE)  # here without the absolute gradients
    for name in ("means", "quats", "scales", "means2d"):
        value = expected.grads[name]
        assert (actual.grads[name] - value).abs().max() <= 5e-5 * value.abs().max(), name


def test_more_pairs_than_there_was_room_for() -> None:
    """The room is that of the last passes: too little is noticed, and all is done again, with the same bits."""
    scene = make_scene(43, 12)
    cotangents = torch.ones(3, 41, 53), torch.ones(1, 41, 53)
    first = run(backend.rasterize, scene, *cotangents, device=DEVICE)
    ((place, enough),) = backend._rooms.items()
    for room in (7, 40 * backend.BLOCK):
        backend._rooms[place] = room
        again = run(backend.rasterize, scene, *cotangents, device=DEVICE)
        assert backend._rooms[place] == (enough if room < enough else room - room // 64)
        assert all(torch.equal(a, b) for a, b in zip(first.out, again.out))
        assert all(torch.equal(first.grads[name], again.grads[name]) for name in FIELDS if name != "background")
    with pytest.raises(MemoryError, match="too many"):
        backend._roomy(1 << 31)


def test_passes_do_not_mix() -> None:
    """Two forwards before their backwards, one of them pulled back twice; inputs that are views of other types."""
    scenes = make_scene(41, 12, size=(20, 9)), make_scene(42, 9, size=(11, 33))
    expected = []
    for scene in scenes:
        ones = torch.ones(4, scene.camera.height, scene.camera.width)
        expected.append(run(backend.rasterize, scene, ones[:3], ones[3:], device=DEVICE).grads)
    leaves = [
        Gaussians(*(torch.stack([f, f], -1)[..., 0].to(DEVICE, torch.float64).requires_grad_() for f in s.gaussians))
        for s in scenes
    ]
    outs = [
        backend.rasterize(fields, scene.camera, scene.background, sh_degree=3) for fields, scene in zip(leaves, scenes)
    ]
    (outs[0].image.sum() + outs[0].alpha.sum()).backward(retain_graph=True)
    (outs[1].image.sum() + outs[1].alpha.sum()).backward()
    (outs[0].image.sum() + outs[0].alpha.sum()).backward()
    for name, first, second in zip(Gaussians._fields, *leaves):
        assert torch.equal(first.grad.float().cpu(), 2 * expected[0][name]), name
        assert torch.equal(second.grad.float().cpu(), expected[1][name]), name
    with torch.no_grad():
        out = backend.rasterize(leaves[0], scenes[0].camera, scenes[0].background, sh_degree=3)
    assert torch.equal(out.image, outs[0].image) and not out.image.requires_grad and not out.means2d.requires_grad


def test_no_gaussians_and_wrong_shapes() -> None:
    scene = make_scene(0, 0)
    result = run(backend.rasterize, scene, torch.ones(3, 41, 53), torch.ones(1, 41, 53), device=DEVICE)
    assert torch.equal(result.out.image, scene.background[:, None, None].expand(3, 41, 53))
    assert (result.out.alpha == 0).all() and result.out.radii.shape == (0,)
    scene = make_scene(1, 3)
    with pytest.raises(ValueError, match="shapes"):
        cut = scene.gaussians._replace(scales=scene.gaussians.scales[:-1])
        backend.rasterize(cut, scene.camera, scene.background, sh_degree=3)
    with pytest.raises(ValueError, match="coefficients"):
        cut = scene.gaussians._replace(sh=scene.gaussians.sh[:, :4])
        backend.rasterize(cut, scene.camera, scene.background, sh_degree=2)


# ---- trust: the self-test at first use ------------------------------------------------------------


def test_the_self_test_s_scene_is_far_from_every_threshold() -> None:
    gaussians, camera, background = self_test.small_scene()
    sound = torch.isfinite(gaussians.means).all(1)
    scene = Scene(Gaussians(*(field[sound] for field in gaussians)), camera, background, 3)
    assert not fragile_pixels(scene).any()
    drawn = reference.rasterize(gaussians, camera, background, sh_degree=3)
    assert 15 <= (drawn.radii > 0).sum() < len(gaussians.means) and (drawn.alpha > 0.99).any()


def test_the_self_test_trusts_what_draws_like_the_reference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NATIVE_CACHE", str(tmp_path / "cache"))
    configs = backend.blend.configs
    assert backend.fault(DEVICE) is None and backend.blend.configs is configs
    (passed,) = (tmp_path / "cache").iterdir()
    # remembered: it does not draw again
    monkeypatch.setattr(backend, "rasterize", None)
    assert backend.fault(DEVICE) is None
    # another compiler is another combination
    monkeypatch.setattr(backend.triton, "__version__", "0.0")
    assert "self-test cannot run (TypeError" in str(backend.fault(DEVICE))
    assert list((tmp_path / "cache").iterdir()) == [passed]


@pytest.mark.parametrize(
    "spoil,says",
    [
        (lambda out: out._replace(image=out.image + 0.001), "image is off by up to 0.001"),
        (lambda out: out._replace(alpha=out.alpha * float("nan")), "alpha is off by up to nan"),
        (lambda out: out._replace(image=out.image + 0.05 * (out.image - out.image.detach())), "gradient of the"),
        (lambda out: 1 / 0, r"cannot run \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_the_self_test_finds_what_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spoil: Callable[[RenderOut], RenderOut], says: str
) -> None:
    monkeypatch.setenv("NATIVE_CACHE", str(tmp_path / "cache"))

    def rasterize(*args: Any, **options: Any) -> RenderOut:
        return spoil(reference.rasterize(*args, **options))

    found = self_test.fault(rasterize, "cpu", ways=[contextlib.nullcontext], code=[])
    assert re.search(says, str(found)) and "\n" not in str(found) and not (tmp_path / "cache").exists()
