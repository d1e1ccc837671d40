"""Degenerate scenes against the rules of the rasterizer (`backends/reference.py`), drawn by hypothesis."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from raster_scenes import FIELDS, Scene, compare, fragile_pixels, make_scene, run
from torch import Tensor

from gaussian_renderer import Rasterizer
from gaussian_renderer.backends import native, reference
from ops.kernels import available, library
from ops.types import Camera, Gaussians

pytestmark = pytest.mark.skipif(not available(), reason="the native library cannot be built here")

# The same examples every time, and no files left behind.
FUZZ = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))

SIDES = st.sampled_from([1, 2, 3, 13, 16, 17, 31, 37])  # pixels: one, primes, a tile and one more
EXTREMES = [0.0, 1e-45, 1e-38, 1e-20, 1e-12, 1e-8, 1e-3, 1.0, 1e3, 1e10, 1e15, 1e19, 1e30, 3e38, math.inf, math.nan]
ABSURD = st.one_of(
    st.sampled_from(EXTREMES + [-value for value in EXTREMES]), st.floats(width=32, allow_subnormal=False)
)
FAR = "mean seen from the camera"  # a factor that leaves the place in the image as it is
WIDE = "all scales"  # a factor
COLUMNS = [
    "mean x",
    "mean y",
    "mean z",
    "quat w",
    "quat x",
    "quat y",
    "quat z",
    "scale x",
    "scale y",
    "scale z",
    "opacity",
]


def changed(scene: Scene, changes: list[tuple[int, str, float]]) -> Scene:
    """`scene` with some numbers replaced: (row, what, value), the row modulo their number."""
    gaussians = scene.gaussians
    rows = torch.cat([gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities[:, None]], dim=1)
    center = scene.camera.center
    for row, what, value in changes if len(rows) else []:
        of_row = rows[row % len(rows)]
        if what == FAR:
            of_row[:3] = center + (of_row[:3] - center) * value
        elif what == WIDE:
            of_row[7:10] *= value
        else:
            of_row[COLUMNS.index(what)] = value
    means, quats, scales, opacities = (part.contiguous() for part in rows.split([3, 4, 3, 1], dim=1))
    return scene._replace(gaussians=Gaussians(means, quats, scales, opacities[:, 0].contiguous(), gaussians.sh))


@st.composite
def absurd_scenes(draw: st.DrawFn) -> Scene:
    """Any float32 anywhere but in the colours. Only some numbers are replaced, or little would be visible."""
    scene = make_scene(draw(st.integers(0, 99)), draw(st.integers(0, 20)), size=(draw(SIDES), draw(SIDES)))
    what = st.sampled_from([FAR, WIDE, *COLUMNS])
    return changed(scene, draw(st.lists(st.tuples(st.integers(0, 19), what, ABSURD), max_size=12)))


@st.composite
def moderate_scenes(draw: st.DrawFn) -> Scene:
    """What training may run into: points, needles and walls, the camera inside them, opacities 0 and 1."""
    scene = make_scene(draw(st.integers(0, 99)), draw(st.integers(1, 20)), size=(draw(SIDES), draw(SIDES)))
    change = st.one_of(
        st.tuples(
            st.integers(0, 19),
            st.sampled_from(["scale x", "scale y", "scale z"]),
            st.sampled_from([1e-8, 1e-4, 0.1, 1.0, 30.0, 1e3]),
        ),
        st.tuples(st.integers(0, 19), st.just("opacity"), st.sampled_from([0.0, 1 / 255, 0.99, 1.0])),
        st.tuples(st.integers(0, 19), st.just(WIDE), st.sampled_from([1e-6, 1e-2, 10.0, 1e3])),
        # nearer, into the Gaussian, to the camera itself and behind it
        st.tuples(st.integers(0, 19), st.just(FAR), st.sampled_from([-1.0, 0.0, 0.05, 0.2, 0.5])),
    )
    return changed(scene, draw(st.lists(change, max_size=8)))


def cotangents(scene: Scene) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    size = scene.camera.height, scene.camera.width
    return torch.randn(3, *size, generator=random), torch.randn(1, *size, generator=random)


def hold_rules(rasterize: Rasterizer, scene: Scene) -> None:
    """What must be true of any scene whose colours are finite."""
    gaussians = scene.gaussians
    result = run(rasterize, scene, *cotangents(scene))
    out, grads = result
    assert torch.isfinite(out.image).all() and torch.isfinite(out.alpha).all()
    assert out.alpha.min() >= 0 and out.alpha.max() <= 1
    for name in FIELDS:
        assert torch.isfinite(grads[name]).all(), name

    length = gaussians.quats.double().norm(dim=1)
    broken = ~torch.cat(
        [gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities[:, None]], 1
    ).isfinite().all(1)
    broken |= (length < 0.99e-12) | (length > 1.01e18) | (gaussians.opacities < 1 / 256)
    culled = out.radii == 0
    assert culled[broken].all()
    for name in FIELDS:
        if name != "background":
            assert (grads[name][culled] == 0).all(), name

    # The culled ones might as well not be there, and the same inputs give the same bits.
    without = run(
        rasterize, scene._replace(gaussians=Gaussians(*(field[~culled] for field in gaussians))), *cotangents(scene)
    )
    assert torch.equal(without.out.radii, out.radii[~culled])
    if rasterize is native.rasterize:
        again = run(rasterize, scene, *cotangents(scene))
        assert all(torch.equal(a, b) for a, b in zip(out, again.out))
        assert all(torch.equal(grads[name], again.grads[name]) for name in FIELDS)
        assert torch.equal(without.out.image, out.image) and torch.equal(without.out.alpha, out.alpha)
        assert all(torch.equal(without.grads[name], grads[name][~culled]) for name in FIELDS if name != "background")
    else:
        # In the reference the rounding of a matrix product depends on the number of its rows.
        assert torch.allclose(without.out.image, out.image, atol=1e-4)


@settings(FUZZ, max_examples=100)
@given(absurd_scenes())
def test_absurd_scenes_keep_the_rules(scene: Scene) -> None:
    hold_rules(native.rasterize, scene)


@settings(FUZZ, max_examples=40)
@given(absurd_scenes())
def test_absurd_scenes_keep_the_rules_in_the_reference(scene: Scene) -> None:
    hold_rules(reference.rasterize, scene)


@settings(FUZZ, max_examples=60)
@given(moderate_scenes())
def test_moderate_scenes_match_the_reference(scene: Scene) -> None:
    assume((~fragile_pixels(scene)).float().mean() > 0.97)
    expected, actual = compare(native.rasterize, scene, floor=1e-3)  # 1 - alpha of an opaque pixel has few digits
    assert ((actual.out.radii > 0) == (expected.out.radii > 0)).all()


@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_needles(seed: int) -> None:
    """A pixel wide and up to a thousand images long: what their width depends on must not drown in their length."""
    compare(native.rasterize, make_scene(seed, 8, sigma=(1.0, 5e4), opacity=(0.1, 0.5)))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 300])
@pytest.mark.parametrize("size", [(1, 1), (13, 1), (37, 31)])
def test_counts_and_sizes_keep_the_rules(count: int, size: tuple[int, int]) -> None:
    hold_rules(native.rasterize, make_scene(count, count, size=size))


@pytest.mark.parametrize("rasterize,dtype", [(native.rasterize, torch.float32), (reference.rasterize, torch.float64)])
def test_gradients_of_very_far_gaussians(rasterize: Rasterizer, dtype: torch.dtype) -> None:
    """Where depth times gradient does not fit float32; the same Gaussian, smaller and nearer, tells what is right."""
    camera = Camera(torch.eye(4), 30.0, 30.0, 10.3, 8.9, 20, 17)
    ones = torch.ones(3, 17, 20), torch.ones(1, 17, 20)
    near, *far = (
        (
            depth,
            run(
                rasterize,
                Scene(
                    Gaussians(
                        torch.tensor([[0.06, -0.07, 1.0]]) * depth,
                        torch.tensor([[0.9, 0.1, -0.3, 0.2]]),
                        torch.tensor([[0.1, 0.04, 0.2]]) * depth,
                        torch.tensor([0.5]),
                        torch.full((1, 16, 3), 0.3),
                    ),
                    camera,
                    torch.zeros(3),
                    0,
                ),
                *ones,
                dtype,
            ),
        )
        for depth in (1.0, 1e15, 1e30, 1e36, 1e37, 3e37)
    )
    for depth, result in far:
        assert result.out.radii.item() == near[1].out.radii.item()
        for name in FIELDS:
            unit = depth if name in ("means", "scales") else 1.0
            found = result.grads[name].double() * unit
            if unit < 1e35:  # beyond, they are so small that float32 keeps few of their digits
                largest = near[1].grads[name].abs().max().item()
                assert torch.allclose(found, near[1].grads[name].double(), rtol=1e-3, atol=1e-4 * largest), name
            assert torch.isfinite(found).all(), name


@pytest.mark.parametrize("rasterize", [native.rasterize, reference.rasterize])
def test_lengths_of_quaternions(rasterize: Rasterizer) -> None:
    scene = make_scene(60, 40)
    unit = torch.nn.functional.normalize(scene.gaussians.quats, dim=1)
    expected = run(rasterize, scene._replace(gaussians=scene.gaussians._replace(quats=unit)), *cotangents(scene)).out
    for length in (2e-12, 1e-6, 1e6, 0.9e18):
        scaled = scene._replace(gaussians=scene.gaussians._replace(quats=unit * length))
        assert torch.allclose(run(rasterize, scaled, *cotangents(scene)).out.image, expected.image, atol=1e-4), length
    for length in (0.0, 0.9e-12, 1e-30, 1.1e18, 1e20, 3e38):
        scaled = scene._replace(gaussians=scene.gaussians._replace(quats=unit * length))
        assert (run(rasterize, scaled, *cotangents(scene)).out.radii == 0).all(), length


def test_out_of_memory_is_an_error_code_not_the_end_of_the_process() -> None:
    """Sizes whose buffers nobody has, asked of the plain C functions; a process of its own, for it may die."""
    script = (
        "import ctypes, sys\n"
        "library = ctypes.CDLL(sys.argv[1])\n"
        "size, real, none = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p(None)\n"
        "some = (ctypes.c_double * 64)()\n"
        "print(library.regularizer_rows(none, none, size(1 << 62), real(1), ctypes.c_bool(True), some, none),\n"
        "      library.ssim_forward(none, none, none, size(1), size(1 << 58), size(1), some, none),\n"
        "      library.ssim_forward(some, some, none, size(1), size(1), size(1 << 58), some, some),\n"
        "      library.rig_backward(size(0), size(0), size(1 << 58), *[none] * 12, some))\n"
    )
    result = subprocess.run([sys.executable, "-c", script, library()._name], capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == ["-1"] * 4, result.stderr[-2000:]


def test_harmonics_of_a_culled_gaussian_are_not_looked_at() -> None:
    scene = make_scene(61, 20, depth=(-3.0, -1.0))
    broken = scene.gaussians._replace(sh=torch.full_like(scene.gaussians.sh, math.nan))
    out = run(native.rasterize, scene._replace(gaussians=broken), *cotangents(scene)).out
    assert torch.equal(out.image, scene.background[:, None, None].expand_as(out.image))
