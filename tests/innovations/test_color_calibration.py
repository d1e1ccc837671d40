"""Colour calibration: the network against per-pixel linear layers, the cameras' maps against known ones, the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT
from torch import Tensor, nn

from innovations import color_calibration as calibration
from innovations.color_calibration import CameraAffine, ColorCalibration, ColorCalibrationNetwork, NoColorCalibration
from ops import kernels
from utils.errors import UserError


def trained(hidden_dim: int = 16, num_layers: int = 3) -> ColorCalibrationNetwork:
    """A network that is far from the identity."""
    random = torch.Generator().manual_seed(1)
    network = ColorCalibrationNetwork(hidden_dim, num_layers, generator=random)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=random)
    return network


def picture(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2)) * (high - low) + low


def per_pixel(network: ColorCalibrationNetwork, image: Tensor) -> Tensor:
    """The same weights as nn.Linear on one pixel per row, and sigmoid(logit(x) + r) as it is written."""
    layers: list[nn.Module] = []
    for convolution in network.convolutions:
        linear = nn.Linear(convolution.in_channels, convolution.out_channels)
        linear.weight.data = convolution.weight.data[:, :, 0, 0].double()
        linear.bias.data = convolution.bias.data.double()
        layers += [linear, nn.ReLU()]
    pixels = image.double().movedim(-3, -1)
    return torch.sigmoid(torch.logit(pixels) + nn.Sequential(*layers[:-1])(pixels)).movedim(-1, -3).float()


def move(color: ColorCalibration) -> None:
    """One step of its optimizers, and no gradients afterwards."""
    for optimizer in color.optimizers:
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("hidden_dim, num_layers", [(16, 3), (24, 3), (1, 2), (7, 4), (5, 1)])
def test_equals_linear_layers_at_the_vertices(twin: str, hidden_dim: int, num_layers: int) -> None:
    network = trained(hidden_dim, num_layers)
    inner = ((network.vertices > 0) & (network.vertices < 1)).all(dim=1)  # the logit is infinite at the ends
    image = network.vertices[inner].T.reshape(3, 11, 121)
    torch.testing.assert_close(network(image), per_pixel(network, image), rtol=0, atol=2e-5)


def test_error_of_the_interpolation(twin: str) -> None:
    """Strong tone curves, fitted on the lattice: between the vertices it is the network per pixel, to 2e-4.

    That is the mean; the kinks of the network make single colors worse.
    """
    network, random = ColorCalibrationNetwork(24, generator=torch.Generator().manual_seed(1)), torch.Generator()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(80):
        image = torch.rand(3, 20, 50, generator=random)
        wanted = image ** torch.tensor([0.7, 1.0, 1.4]).view(3, 1, 1)
        (network(image) - wanted).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    image = picture(2, 3, 70, 67, low=0.01, high=0.99)
    out, exact = network(image).detach(), per_pixel(network, image)
    assert (exact - image).abs().mean() > 0.03
    assert (out - exact).abs().mean() < 2e-4 and (out - exact).abs().max() < 4e-3
    assert out.shape == image.shape
    torch.testing.assert_close(network(image[1, :, :1, :1]), out[1, :, :1, :1])  # one picture, one pixel


def test_starts_as_the_identity(twin: str) -> None:
    """Inside to rounding, at black and white exactly, and clamped outside."""
    image = torch.cat([picture(3, 40, 50, low=-0.2, high=1.2), torch.ones(3, 40, 20), torch.zeros(3, 40, 20)], dim=2)
    out = ColorCalibrationNetwork()(image)
    torch.testing.assert_close(out, image.clamp(0, 1), rtol=0, atol=2e-7)
    assert torch.equal(out[image >= 1], torch.ones(int((image >= 1).sum())))
    assert torch.equal(out[image <= 0], torch.zeros(int((image <= 0).sum())))


def test_white_and_black_stay_and_nothing_leaves_the_range(twin: str) -> None:
    network = trained()
    with torch.no_grad():
        network.convolutions[-1].weight *= 100  # residuals far beyond their limit
    image = picture(3, 30, 40, low=-1, high=2)
    image[:, :10], image[:, 10:12] = 1.0, 0.0
    out = network(image)
    assert out.min() >= 0 and out.max() <= 1
    assert torch.equal(out[:, :10], image[:, :10]) and torch.equal(out[:, 10:12], image[:, 10:12])


def test_gradients_by_finite_differences() -> None:
    """The PyTorch twin in float64, image and all weights, away from the clamp's edge."""
    network = trained(5, 3).double()
    image = picture(3, 3, 4, low=0.05, high=0.95).double().requires_grad_()
    names = [name for name, _ in network.named_parameters()]

    def run(image: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(network, dict(zip(names, weights)), image)

    assert torch.autograd.gradcheck(run, (image, *network.parameters()))


@pytest.mark.skipif(not kernels.available(), reason="no native library here")
@pytest.mark.parametrize("hidden_dim, num_layers", [(16, 3), (9, 2), (3, 5), (4, 1)])
def test_native_gradients_equal_the_twin(hidden_dim: int, num_layers: int) -> None:
    """Against the same network in float64; with pixels outside the range, a white margin and several chunks."""
    network = trained(hidden_dim, num_layers)
    image = picture(2, 3, 90, 75, low=-0.1, high=1.1)
    image[..., :30], image[:, :, 60:] = 1.0, 0.0
    image[..., :3] = 1.1
    cotangent = picture(*image.shape, low=-1)

    def gradients(network: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        leaf = image.to(dtype).requires_grad_()
        leaves = [leaf, *network.parameters()]
        return [g.float() for g in torch.autograd.grad(network(leaf), leaves, cotangent.to(dtype))]

    ours = gradients(network, torch.float32)
    for mine, exact in zip(ours, gradients(trained(hidden_dim, num_layers).double(), torch.float64)):
        torch.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-5 * exact.abs().max().item())
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(ours, gradients(network, torch.float32)))  # whatever the threads


def test_a_color_outside_comes_back_but_goes_no_further(twin: str) -> None:
    image = torch.tensor([1.5, 1.5, -0.5, -0.5, 1.0, 0.0]).expand(3, 1, 6).clone().requires_grad_()
    ColorCalibrationNetwork()(image).backward(torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0]).expand(3, 1, 6))
    expected = torch.tensor([1.0, 0.0, 0.0, -1.0, -1.0, 1.0]).expand(3, 1, 6)
    torch.testing.assert_close(image.grad, expected, rtol=0, atol=1e-6)


def test_flat_groups_have_the_gradient_of_a_trained_network(twin: str) -> None:
    """16 white or black pixels in a row take a short cut in the kernel: e^-r on white, e^r on black."""
    network = trained()
    for value, sign in ((1.0, -1.0), (0.0, 1.0)):
        image = torch.full((3, 4, 32), value, requires_grad=True)
        network(image).sum().backward()
        residual = network.residual(torch.full((1, 3), value)).detach()
        torch.testing.assert_close(
            image.grad, (sign * residual).exp().view(3, 1, 1).expand(3, 4, 32), rtol=1e-4, atol=0
        )


def test_nan_is_not_hidden(twin: str) -> None:
    image = picture(3, 4, 40)
    image[1, 2, 3] = torch.nan
    assert trained()(image)[1, 2, 3].isnan()
    broken = trained()
    with torch.no_grad():
        broken.convolutions[-1].bias[0] = torch.nan
    assert broken(picture(3, 4, 40))[0].isnan().all()


def test_sizes_and_bad_input() -> None:
    assert sum(p.numel() for p in ColorCalibrationNetwork().parameters()) == 387 < 10_000
    for arguments in ((0, 3), (-1, 3), (16, 0), (128, 3), (64, 9)):
        with pytest.raises(UserError, match="color_net"):
            ColorCalibrationNetwork(*arguments)
    for shape in ((1, 4, 4), (4, 4), (2, 4, 4, 4)):
        with pytest.raises(ValueError, match="expected an image"):
            ColorCalibrationNetwork()(torch.zeros(shape))


def test_what_has_decayed_to_nothing_is_zero_in_every_thread() -> None:
    """Denormals slow a network down whose weights decay; utils/threads.py flushes them."""
    program = (
        "import utils.threads, torch; torch.set_num_threads(4); "
        "products = torch.full((1 << 20,), 1e-30) * 1e-10; "
        "print(products.view(torch.int32).count_nonzero().item())"
    )
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    assert said.stdout == "0\n"


def test_regularizer_is_the_mean_of_squares() -> None:
    network = trained(4, 2)
    expected = np.mean(np.concatenate([p.detach().double().numpy().ravel() ** 2 for p in network.parameters()]))
    regularizer = network.regularizer()
    assert regularizer.item() == pytest.approx(expected, rel=1e-6)
    (3.0 * regularizer).backward()
    count = sum(p.numel() for p in network.parameters())
    for parameter in network.parameters():
        torch.testing.assert_close(parameter.grad, 6.0 * parameter.detach() / count)


def test_drift_is_the_change_of_the_colors_that_occur() -> None:
    """Against layers for each pixel in float64; the gradient reaches the network alone."""
    color = ColorCalibration(generator=torch.Generator().manual_seed(1))
    assert color.network is not None and color.drift(picture(3, 9, 9)).item() == 0
    with torch.no_grad():
        for parameter in color.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    image = picture(3, 61, 58, low=0.05, high=0.95).requires_grad_()
    drift = color.drift(image)
    seen = image.detach()[:, ::8, ::8]
    assert drift.item() == pytest.approx((per_pixel(color.network, seen) - seen).square().mean().item(), rel=0.05)
    drift.backward()
    assert image.grad is None and all(p.grad is not None and p.grad.any() for p in color.network.parameters())
    assert ColorCalibration(["a"], network=False, per_camera=True).drift(image) == 0


@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_what_all_cameras_share_belongs_to_the_avatar(weight: float) -> None:
    """Colors and network fitted together, the colors slower: only with the drift in the loss they are the true ones."""
    truth = picture(3, 24, 20, low=0.2, high=0.8)
    colors = nn.Parameter(truth + 0.1)
    color = ColorCalibration(generator=torch.Generator().manual_seed(1))
    slow = torch.optim.Adam([colors], lr=1e-3)
    for _ in range(250):
        loss = (color(colors, "a") - truth).abs().mean() + weight * color.drift(colors)
        loss.backward()
        slow.step()
        slow.zero_grad()
        move(color)
    left = (colors - truth).abs().mean().item()
    assert left < 0.01 if weight else left > 0.04


def test_network_learns_in_every_fourth_step_and_cameras_in_each() -> None:
    color = ColorCalibration(["a", "b"], per_camera=True)
    image = picture(3, 8, 8)
    changed = []
    for step in range(1, 9):
        before = [p.detach().clone() for p in color.parameters()]
        color.set_step(step)
        color(image, "a").square().sum().backward()
        move(color)
        moved_names = {
            name.split(".")[0]
            for (name, p), old in zip(color.parts.named_parameters(), before)
            if not torch.equal(p, old)
        }
        changed.append(moved_names)
    assert changed == [{"cameras"} if step % 4 else {"cameras", "network"} for step in range(1, 9)]


# ---- cameras ------------------------------------------------------------------


def perturbed(count: int) -> tuple[dict[str, Tensor], Tensor]:
    """Maps of random gain and offset by camera id, whose mean is the identity, and a known picture."""
    random = torch.Generator().manual_seed(3)
    change = torch.zeros(count, 3, 4)
    change[:, range(3), range(3)] = 0.1 * torch.randn(count, 3, generator=random)
    change[:, :, 3] = 0.05 * torch.randn(count, 3, generator=random)
    change -= change.mean(dim=0)
    return {f"cam{i}": torch.eye(3, 4) + c for i, c in enumerate(change)}, picture(3, 24, 20)


@pytest.mark.parametrize("masked", [False, True])
def test_recovers_the_gains_and_offsets_of_cameras(masked: bool) -> None:
    """With a squared error the optimum is the perturbation itself; the mean of all maps stays the identity.

    Masked: half of the picture is a white background that no camera touched, with a soft edge.
    """
    truth, subject = perturbed(5)
    background = torch.ones(3)
    alpha = torch.cat([torch.ones(1, 24, 8), torch.full((1, 24, 4), 0.5), torch.zeros(1, 24, 8)], dim=2)
    if not masked:
        alpha = torch.ones_like(alpha)
    behind = (1 - alpha) * background[:, None, None]
    image = alpha * subject + behind
    affine = CameraAffine(list(truth))
    optimizer = torch.optim.LBFGS(affine.parameters(), max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for camera_id, matrix in truth.items():
            seen = torch.einsum("ij,jhw->ihw", matrix[:, :3], subject) + matrix[:, 3, None, None]
            out = affine(image, camera_id, alpha, background)
            total = total + (out - (alpha * seen + behind)).square().mean()
        total.backward()
        return total

    optimizer.step(loss)
    for camera_id, matrix in truth.items():
        torch.testing.assert_close(affine.matrix(camera_id).detach(), matrix, rtol=0, atol=2e-3)
    mean = torch.stack([affine.matrix(camera_id) for camera_id in truth]).mean(dim=0)
    torch.testing.assert_close(mean, torch.eye(3, 4), rtol=0, atol=1e-6)
    assert affine(image, "unseen", alpha, background) is image


def test_no_common_drift() -> None:
    """A tint that all cameras share belongs to the avatar: it has no gradient here, whatever the loss asks for."""
    affine = CameraAffine(["a", "b", "c"])
    sum(affine(picture(3, 5, 5), camera_id).sum() for camera_id in "abc").backward()
    torch.testing.assert_close(affine.deviation.grad, torch.zeros(3, 3, 4), rtol=0, atol=1e-4)


@pytest.mark.parametrize("network", [False, True])
def test_training_with_adam_recovers_cameras_too(network: bool) -> None:
    """The object of the loop, with its own learning rates and one camera per step; the network takes nothing of it."""
    truth, subject = perturbed(3)
    color = ColorCalibration(list(truth), network=network, per_camera=True, generator=torch.Generator().manual_seed(1))
    assert color.cameras is not None
    targets = {k: torch.einsum("ij,jhw->ihw", m[:, :3], subject) + m[:, 3, None, None] for k, m in truth.items()}

    def error() -> float:
        with torch.no_grad():
            return sum((color(subject, k) - target).abs().mean().item() for k, target in targets.items())

    before = error()
    for step in range(450):
        camera_id = f"cam{step % 3}"
        ((color(subject, camera_id) - targets[camera_id]).abs().mean() + 10 * color.drift(subject)).backward()
        move(color)
    assert error() < 0.15 * before
    if color.network is not None:
        assert (color.network(subject) - subject).abs().mean() < 0.003
    for camera_id, target in targets.items():
        assert (color.cameras(subject, camera_id) - target).abs().mean() < 0.25 * (subject - target).abs().mean()


# ---- the object of the loop -----------------------------------------------------


def moved(**options: object) -> ColorCalibration:
    """A calibration after a step on random gradients."""
    color = ColorCalibration(
        ["b", "a", "a"], background=torch.ones(3), generator=torch.Generator().manual_seed(4), **options
    )
    random = torch.Generator().manual_seed(5)
    for _ in range(3):
        for parameter in color.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        color.optimizer.step()
        color.optimizer.zero_grad()
    return color


@pytest.mark.parametrize(
    "options", [{"per_camera": True}, {"hidden_dim": 8, "num_layers": 2}, {"network": False, "per_camera": True}]
)
def test_file_and_checkpoint_round_trip(tmp_path: Path, options: dict[str, object]) -> None:
    color, image = moved(**options), picture(3, 6, 7)
    alpha = picture(1, 6, 7)
    expected = color(image, "a", alpha)
    assert (expected - image).abs().max() > 1e-4
    color.save(tmp_path / "sub" / calibration.FILE_NAME)
    loaded = ColorCalibration.load(tmp_path / "sub" / calibration.FILE_NAME, background=torch.ones(3))
    assert torch.equal(loaded(image, "a", alpha), expected)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())

    torch.save(color.state_dict(), tmp_path / "state.pt")
    other = ColorCalibration(["a", "b"], background=torch.ones(3), **options)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for parts in (color, other):  # the optimizer's moments came along: the next step is the same
        (parts(image, "b", alpha).square().sum() + parts.regularizer()).backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad()
    assert torch.equal(other(image, "b", alpha), color(image, "b", alpha))


def test_reads_what_was_written_before_there_was_a_lattice(tmp_path: Path) -> None:
    """The names, shapes and sizes of the file are part of its format."""
    shapes = {"0.weight": (8, 3, 1, 1), "0.bias": (8,), "1.weight": (3, 8, 1, 1), "1.bias": (3,)}
    weights = {f"network.convolutions.{name}": 0.1 * picture(*shape) for name, shape in shapes.items()}
    content = {"format": calibration.FORMAT, "version": 1, "hidden_dim": 8, "num_layers": 2, "camera_ids": []}
    torch.save({**content, "weights": weights}, tmp_path / calibration.FILE_NAME)
    loaded, image = ColorCalibration.load(tmp_path / calibration.FILE_NAME), picture(3, 20, 20, low=0.01, high=0.99)
    assert loaded.network is not None and loaded.parts.state_dict().keys() == weights.keys()
    torch.testing.assert_close(loaded(image, ""), per_pixel(loaded.network, image), rtol=0, atol=2e-3)


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    state = moved().state_dict()
    for other in (
        ColorCalibration(hidden_dim=8),
        ColorCalibration(num_layers=2),
        ColorCalibration(["a"], per_camera=True),
    ):
        with pytest.raises(ValueError, match="expected"):
            other.load_state_dict(state)
    with pytest.raises(KeyError):
        ColorCalibration().load_state_dict({})
    with pytest.raises(ValueError):
        ColorCalibration().load_state_dict({**state, "weights": {}})


def test_bad_files_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / calibration.FILE_NAME
    with pytest.raises(UserError, match="does not exist"):
        ColorCalibration.load(path)
    color = moved()
    color.save(path)
    whole = path.read_bytes()
    content = torch.load(path, weights_only=True)
    for damage in (b"", whole[: len(whole) // 2], b"not a file"):
        path.write_bytes(damage)
        with pytest.raises(UserError, match="is not a colour calibration"):
            ColorCalibration.load(path)
    for change in (
        {"format": "other"},
        {"version": 2},
        {"hidden_dim": 10**9},
        {"hidden_dim": "16"},
        {"weights": {}},
        {"weights": {k: v * torch.nan for k, v in content["weights"].items()}},
    ):
        torch.save({**content, **change}, path)
        with pytest.raises(UserError, match="is not a colour calibration"):
            ColorCalibration.load(path)
    torch.save(color.parts["network"], path)  # a pickled module: code, not data
    with pytest.raises(UserError, match="is not a colour calibration"):
        ColorCalibration.load(path)


def test_off_is_the_image_itself(tmp_path: Path) -> None:
    color, image = NoColorCalibration(), picture(3, 4, 4)
    assert color(image, "a", image[:1]) is image
    assert color.regularizer() == 0.0 and not color.optimizers and color.state_dict() == {}
    path = tmp_path / calibration.FILE_NAME
    moved().save(path)
    color.save(path)
    assert not path.exists()


@pytest.mark.cuda
def test_cuda_equals_cpu() -> None:
    image = picture(3, 20, 30)
    torch.testing.assert_close(trained().cuda()(image.cuda()).cpu(), trained()(image), rtol=0, atol=1e-4)
