"""Every backend against the float64 reference, and the reference against things that are not ours."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from raster_scenes import FIELDS, Scene, compare, fragile_pixels, gsplat_pipeline, join, make_camera, make_scene, run

import gaussian_renderer
from gaussian_renderer.backends import native, reference
from ops import sh as harmonics
from ops.kernels import available
from ops.types import Camera, Gaussians
from utils.errors import UserError

needs_native = pytest.mark.skipif(not available(), reason="the native library cannot be built here")


def _plain(degree: int = 3) -> Scene:
    return make_scene(1, 150, degree=degree)


def _culled() -> Scene:
    """In front, behind, right at the near plane, far outside, too transparent, not finite."""
    scene = join(
        make_scene(2, 60),
        make_scene(3, 20, depth=(-3.0, -0.3)),
        make_scene(4, 20, depth=(0.21, 0.35)),
        make_scene(5, 20, depth=(0.01, 0.19)),
        make_scene(6, 20, spread=9.0),
    )
    gaussians = Gaussians(*(field.clone() for field in scene.gaussians))
    gaussians.opacities[:5] = 0.003
    gaussians.means[5, 1] = math.nan
    gaussians.scales[6, 2] = math.inf
    gaussians.quats[7, 0] = math.nan
    gaussians.quats[8] = 0.0
    gaussians.opacities[9] = math.nan
    gaussians.means[10, 2] = math.inf
    gaussians.sh[11, 0, 1] = math.nan
    gaussians.sh[12, -1, 2] = -math.inf
    return scene._replace(gaussians=gaussians)


def _tiny() -> Scene:
    return make_scene(7, 200, sigma=(1e-4, 0.05))


def _huge() -> Scene:
    """Larger than the image, and long thin ones."""
    return join(
        make_scene(8, 12, sigma=(30.0, 300.0), opacity=(0.05, 0.3)),
        make_scene(9, 30, sigma=(0.05, 200.0), opacity=(0.05, 0.4)),
    )


def _saturated() -> Scene:
    """Opaque layers: alpha at its cap, and pixels that stop early."""
    return make_scene(10, 150, sigma=(3.0, 12.0), opacity=(0.9, 1.0))


def _edges() -> Scene:
    """Around and beyond the borders, where the guard band of the Jacobian holds."""
    return join(make_scene(11, 100, spread=1.6, sigma=(2.0, 8.0)), make_scene(12, 60, spread=3.0, sigma=(10.0, 60.0)))


def _faint() -> Scene:
    """Nothing that the CUDA backends may cut or cap otherwise: centred camera, opacity under exp(4.5)/255."""
    return make_scene(13, 150, opacity=(0.02, 0.34), centered=True)


SCENES: dict[str, Callable[[], Scene]] = {
    "plain": _plain,
    "culled": _culled,
    "tiny": _tiny,
    "huge": _huge,
    "saturated": _saturated,
    "edges": _edges,
    "faint": _faint,
}


@needs_native
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("name", SCENES)
def test_native_matches_reference(name: str, absolute: bool) -> None:
    expected, actual = compare(native.rasterize, SCENES[name](), absolute=absolute)
    assert ((actual.out.radii > 0) == (expected.out.radii > 0)).all()
    assert (actual.out.radii - expected.out.radii).abs().max() <= 1  # it is rounded up from a float
    assert (actual.out.radii > 0).any()


@pytest.mark.parametrize("name", ["plain", "huge"])
def test_float32_reference_matches_float64(name: str) -> None:
    compare(reference.rasterize, SCENES[name]())


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["plain", "faint", "tiny", "edges"])
@pytest.mark.parametrize("backend", ["gsplat", "triton", "dgr", "reference"])
def test_cuda_backends_match_reference(backend: str, name: str) -> None:
    if backend not in gaussian_renderer.available_backends("cuda"):
        pytest.skip(f"{backend} is not installed")
    if backend == "dgr" and name != "faint":
        pytest.skip("diff-gaussian-rasterization cuts Gaussians at three sigma and needs a centred camera")
    _, rasterize = gaussian_renderer.choose_rasterizer(backend, "cuda")
    compare(rasterize, SCENES[name](), device="cuda")
    if backend != "dgr":
        compare(rasterize, SCENES[name](), device="cuda", absolute=True)


@needs_native
@pytest.mark.parametrize("seed", [50, 51, 52])
def test_needles_keep_their_digits(seed: int) -> None:
    """Hundreds of pixels long and a half wide: about the mean, the squares of the far tiles' pixels would cancel."""
    scene = make_scene(seed, 25, size=(200, 150), sigma=(0.02, 400.0), opacity=(0.05, 0.3))
    expected, actual = compare(native.rasterize, scene)
    for name in ("means", "quats", "scales", "means2d"):
        value = expected.grads[name]
        assert (actual.grads[name] - value).abs().max() <= 5e-5 * value.abs().max(), name


@needs_native
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_degrees_and_unused_coefficients(degree: int) -> None:
    _, actual = compare(native.rasterize, _plain(degree))
    used = harmonics.bases(degree)
    assert (actual.grads["sh"][:, used:] == 0).all()
    assert (actual.grads["sh"][:, :used] != 0).any()


@pytest.mark.parametrize("rasterize", [pytest.param(native.rasterize, marks=needs_native), reference.rasterize])
def test_coefficients_out_of_use_are_not_looked_at(rasterize: gaussian_renderer.Rasterizer) -> None:
    scene = make_scene(1, 50, degree=1)
    sh = torch.cat([scene.gaussians.sh[:, :4], torch.full((50, 12, 3), math.nan)], dim=1)
    cotangents = torch.ones(3, 41, 53), torch.ones(1, 41, 53)
    expected = run(rasterize, scene, *cotangents)
    found = run(rasterize, scene._replace(gaussians=scene.gaussians._replace(sh=sh)), *cotangents)
    assert torch.equal(found.out.image, expected.out.image) and (found.out.radii > 0).any()
    assert (found.grads["sh"][:, 4:] == 0).all()


@needs_native
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 1), (3, 40), (33, 31)])
def test_image_sizes(size: tuple[int, int]) -> None:
    compare(native.rasterize, make_scene(20, 60, size=size, sigma=(0.5, 3.0)))


@pytest.mark.parametrize("rasterize", [pytest.param(native.rasterize, marks=needs_native), reference.rasterize])
def test_no_gaussians(rasterize: gaussian_renderer.Rasterizer) -> None:
    scene = make_scene(0, 0)
    result = run(rasterize, scene, torch.ones(3, 41, 53), torch.ones(1, 41, 53))
    assert torch.allclose(result.out.image, scene.background[:, None, None].expand(3, 41, 53))
    assert (result.out.alpha == 0).all() and result.out.radii.shape == (0,)


@pytest.mark.parametrize("rasterize", [pytest.param(native.rasterize, marks=needs_native), reference.rasterize])
def test_broken_rows_change_nothing_else(rasterize: gaussian_renderer.Rasterizer) -> None:
    scene = _culled()
    broken = slice(5, 13)
    cotangents = torch.ones(3, 41, 53), torch.ones(1, 41, 53)
    result = run(rasterize, scene, *cotangents)
    assert (result.out.radii[broken] == 0).all()
    for name in FIELDS:
        assert torch.isfinite(result.grads[name]).all(), name
        if name != "background":
            assert (result.grads[name][broken] == 0).all(), name
    kept = torch.ones(len(scene.gaussians.means), dtype=torch.bool)
    kept[broken] = False
    without = run(rasterize, scene._replace(gaussians=Gaussians(*(f[kept] for f in scene.gaussians))), *cotangents)
    assert torch.allclose(result.out.image, without.out.image, atol=1e-6)


@pytest.mark.parametrize("rasterize", [pytest.param(native.rasterize, marks=needs_native), reference.rasterize])
def test_one_gaussian_in_closed_form(rasterize: gaussian_renderer.Rasterizer) -> None:
    """A ball of 3 cm at 2 m, seen along the axis: its image is a Gaussian of variance (f s / z)^2 + 0.3."""
    camera = Camera(torch.eye(4), 100.0, 80.0, 11.0, 9.0, 24, 20)
    color, background = torch.tensor([0.9, 0.2, 0.4]), torch.tensor([0.1, 0.5, 1.0])
    ball = Gaussians(
        torch.tensor([[0.0, 0.0, 2.0]]),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.full((1, 3), 0.03),
        torch.tensor([0.8]),
        harmonics.from_colors(color)[None, None],
    )
    out = rasterize(ball, camera, background, sh_degree=0, scale_modifier=2.0)
    vx, vy = (100 * 0.06 / 2) ** 2 + 0.3, (80 * 0.06 / 2) ** 2 + 0.3
    x, y = torch.meshgrid(torch.arange(24) + 0.5 - 11, torch.arange(20) + 0.5 - 9, indexing="xy")
    alpha = 0.8 * torch.exp(-0.5 * (x**2 / vx + y**2 / vy))
    alpha = torch.where(alpha < 1 / 255, torch.zeros_like(alpha), alpha)
    assert torch.allclose(out.alpha[0], alpha, atol=1e-5)
    assert torch.allclose(out.image, alpha * color[:, None, None] + (1 - alpha) * background[:, None, None], atol=1e-5)
    assert out.radii.tolist() == [math.ceil(3 * math.sqrt(max(vx, vy)))]


def _wide_scene() -> Scene:
    """Few Gaussians wide enough that no pixel comes near a threshold: smooth everywhere."""
    return make_scene(30, 5, size=(9, 7), sigma=(6.0, 12.0), opacity=(0.3, 0.7), depth=(1.0, 3.0))


def test_reference_gradients_by_finite_differences() -> None:
    scene = _wide_scene()
    background = scene.background.double()

    def image_and_alpha(means2d: torch.Tensor, *fields: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = reference._rasterize(Gaussians(*fields), means2d, scene.camera, background, 3, 1.0)
        return out.image, out.alpha

    fields = [field.double().requires_grad_() for field in scene.gaussians]
    means2d = torch.zeros(5, 2, dtype=torch.float64, requires_grad=True)
    # all colours away from their clamp at zero
    with torch.no_grad():
        fields[4][:, 0] += 2.0
    assert torch.autograd.gradcheck(image_and_alpha, (means2d, *fields), eps=1e-6, atol=1e-6, rtol=1e-5)


def test_means2d_gradient_is_in_ndc_units() -> None:
    """Moving the principal point by one pixel moves all 2-D means by 2/W in NDC."""
    scene = _wide_scene()
    random = torch.Generator().manual_seed(3)
    cotangent = torch.randn(3, 7, 9, generator=random, dtype=torch.float64)
    result = run(reference.rasterize, scene, cotangent, torch.zeros(1, 7, 9), torch.float64)
    fields = Gaussians(*(field.double() for field in scene.gaussians))

    def loss(cx: float, cy: float) -> float:
        camera = scene.camera
        moved = Camera(camera.world_to_camera, camera.fx, camera.fy, camera.cx + cx, camera.cy + cy, 9, 7)
        out = reference.rasterize(fields, moved, scene.background.double(), sh_degree=3)
        return (out.image * cotangent).sum().item()

    step = 1e-5
    expected = [(loss(step, 0) - loss(-step, 0)) / (2 * step), (loss(0, step) - loss(0, -step)) / (2 * step)]
    actual = result.grads["means2d"].sum(0) * torch.tensor([2 / 9, 2 / 7])
    assert actual.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "rasterize,dtype,tolerance",
    [
        pytest.param(native.rasterize, torch.float32, 1e-4, marks=needs_native),
        (reference.rasterize, torch.float64, 1e-12),
    ],
)
def test_absolute_gradient_is_the_sum_over_single_pixels(
    rasterize: gaussian_renderer.Rasterizer, dtype: torch.dtype, tolerance: float
) -> None:
    scene = _wide_scene()
    image, alpha = torch.zeros(3, 7, 9), torch.zeros(1, 7, 9)
    random = torch.Generator().manual_seed(5)
    cotangent, alpha_cotangent = torch.randn(3, 7, 9, generator=random), torch.randn(1, 7, 9, generator=random)
    expected = torch.zeros(len(scene.gaussians.means), 2, dtype=dtype)
    for y in range(7):
        for x in range(9):
            image[:, y, x], alpha[:, y, x] = cotangent[:, y, x], alpha_cotangent[:, y, x]
            expected += run(rasterize, scene, image, alpha, dtype).grads["means2d"].abs()
            image.zero_(), alpha.zero_()
    plain = run(rasterize, scene, cotangent, alpha_cotangent, dtype)
    absolute = run(rasterize, scene, cotangent, alpha_cotangent, dtype, absolute=True)
    torch.testing.assert_close(
        absolute.grads["means2d"], expected, rtol=tolerance, atol=tolerance * expected.max().item()
    )
    assert (absolute.grads["means2d"] > 1.01 * plain.grads["means2d"].abs()).any()
    for name in plain.grads.keys() - {"means2d"}:
        torch.testing.assert_close(absolute.grads[name], plain.grads[name], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["plain", "edges"])
@pytest.mark.parametrize(
    "rasterize,dtype,tolerance",
    [
        pytest.param(native.rasterize, torch.float32, 1e-3, marks=needs_native),
        pytest.param(reference.rasterize, torch.float64, 1e-9),
    ],
)
def test_projection_and_harmonics_match_gsplat(
    rasterize: gaussian_renderer.Rasterizer, dtype: torch.dtype, tolerance: float, name: str
) -> None:
    scene = SCENES[name]()
    sound = ~fragile_pixels(scene)
    random = torch.Generator().manual_seed(5)
    grad_image = torch.randn(3, 41, 53, generator=random, dtype=torch.float64) * sound
    grad_alpha = torch.randn(1, 41, 53, generator=random, dtype=torch.float64) * sound
    leaves = Gaussians(*(field.double().requires_grad_() for field in scene.gaussians))
    image, alpha, _ = gsplat_pipeline(leaves, scene.camera, scene.background.double(), scene.degree)
    torch.autograd.backward([image, alpha], [grad_image, grad_alpha])
    result = run(rasterize, scene, grad_image, grad_alpha, dtype)
    assert ((result.out.image - image).abs() * sound).max() <= max(1e-4 * tolerance / 1e-3, 1e-10)
    for field, leaf in zip(Gaussians._fields, leaves):
        expected = leaf.grad
        error = (result.grads[field] - expected).abs() - tolerance * (expected.abs() + 1e-2 * expected.abs().max())
        assert error.max() <= 0, field


@needs_native
def test_native_repeats_bit_for_bit() -> None:
    scene = make_scene(40, 3000, size=(100, 70))
    random = torch.Generator().manual_seed(0)
    cotangents = torch.randn(3, 70, 100, generator=random), torch.randn(1, 70, 100, generator=random)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (threads, threads, 1, 3):
            torch.set_num_threads(count)
            results.append(run(native.rasterize, scene, *cotangents))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0].out, other.out))
        # the gradient of the background is PyTorch's sum, which depends on the threads
        assert all(torch.equal(results[0].grads[name], other.grads[name]) for name in FIELDS if name != "background")


@needs_native
def test_native_workspaces_do_not_mix() -> None:
    """Two forwards before their backwards, one of them run twice, other renderings in between."""
    first, second = make_scene(41, 200), make_scene(42, 350, size=(70, 30))
    ones = {"a": (torch.ones(3, 41, 53), torch.ones(1, 41, 53)), "b": (torch.ones(3, 30, 70), torch.ones(1, 30, 70))}
    expected = run(native.rasterize, first, *ones["a"]).grads, run(native.rasterize, second, *ones["b"]).grads

    leaves = [Gaussians(*(field.clone().requires_grad_() for field in scene.gaussians)) for scene in (first, second)]
    outs = [native.rasterize(g, s.camera, s.background, sh_degree=3) for g, s in zip(leaves, (first, second))]
    with torch.no_grad():
        native.rasterize(leaves[1], second.camera, second.background, sh_degree=3)
    torch.autograd.backward([outs[0].image, outs[0].alpha], list(ones["a"]), retain_graph=True)
    torch.autograd.backward([outs[1].image, outs[1].alpha], list(ones["b"]))
    torch.autograd.backward([outs[0].image, outs[0].alpha], list(ones["a"]))
    for name, field in zip(Gaussians._fields, leaves[0]):
        assert torch.equal(field.grad, 2 * expected[0][name]), name
    for name, field in zip(Gaussians._fields, leaves[1]):
        assert torch.equal(field.grad, expected[1][name]), name


@needs_native
def test_native_takes_views_and_other_types() -> None:
    scene = _plain()
    expected = native.rasterize(scene.gaussians, scene.camera, scene.background, sh_degree=3).image
    strided = Gaussians(*(torch.stack([field, field], dim=-1)[..., 0] for field in scene.gaussians))
    assert not strided.means.is_contiguous()
    assert torch.equal(native.rasterize(strided, scene.camera, scene.background, sh_degree=3).image, expected)
    double = Gaussians(*(field.double().requires_grad_() for field in scene.gaussians))
    out = native.rasterize(double, scene.camera, scene.background, sh_degree=3)
    assert torch.equal(out.image, expected)
    out.image.sum().backward()
    assert double.means.grad.dtype == torch.float64


@needs_native
def test_native_keeps_nothing_without_grad() -> None:
    scene = _plain()
    leaves = Gaussians(*(field.clone().requires_grad_() for field in scene.gaussians))
    with torch.no_grad():
        out = native.rasterize(leaves, scene.camera, scene.background, sh_degree=3)
    assert not out.image.requires_grad and not out.means2d.requires_grad
    kept = native.rasterize(leaves, scene.camera, scene.background, sh_degree=3)
    assert torch.equal(out.image, kept.image) and kept.means2d.requires_grad and kept.means2d.is_leaf


@needs_native
def test_wrong_shapes_are_refused() -> None:
    scene = _plain()
    with pytest.raises(ValueError, match="shapes"):
        native.rasterize(
            scene.gaussians._replace(scales=scene.gaussians.scales[:-1]), scene.camera, scene.background, sh_degree=3
        )
    with pytest.raises(ValueError, match="coefficients"):
        native.rasterize(
            scene.gaussians._replace(sh=scene.gaussians.sh[:, :4]), scene.camera, scene.background, sh_degree=2
        )


def test_convert_shs_python_gives_the_same_picture_and_gradients() -> None:
    scene = _plain()
    grads = []
    for convert in (False, True):
        leaves = Gaussians(*(field.double().requires_grad_() for field in scene.gaussians))
        out = gaussian_renderer.render(
            leaves,
            scene.camera,
            scene.background.double(),
            sh_degree=3,
            rasterize=reference.rasterize,
            convert_SHs_python=convert,
        )
        (out.image**2).sum().backward()
        grads.append([out.image.detach(), *(field.grad for field in leaves)])
    for a, b in zip(*grads):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def test_choosing_a_backend() -> None:
    cpu = torch.device("cpu")
    name, rasterize = gaussian_renderer.choose_rasterizer("auto", cpu)
    assert name == gaussian_renderer.available_backends(cpu)[0] and callable(rasterize)
    assert name == ("native" if available() else "reference")
    with pytest.raises(UserError, match="gsplat"):
        gaussian_renderer.choose_rasterizer("gsplat", cpu)
    with pytest.raises(UserError, match="unknown"):
        gaussian_renderer.choose_rasterizer("opengl", cpu)


def test_dgr_refuses_an_off_center_camera() -> None:
    from gaussian_renderer.backends import dgr as dgr_backend

    scene = _plain()
    with pytest.raises(UserError, match="principal point"):
        dgr_backend.rasterize(scene.gaussians, make_camera(53, 41, centered=False), scene.background, sh_degree=3)
