"""The region weights: which cells get them, that they average 1, and that they follow assignments."""

from __future__ import annotations

import math

import pytest
import torch
from meshes import front_camera, joined, patch
from torch import Tensor

from innovations.region_adaptive_loss import NoRegionWeights, RegionAdaptiveLoss
from ops import kernels, losses
from ops.region_map import soft_map
from ops.types import Camera
from training import checkpoint
from utils.errors import UserError

H, W = 48, 64


def wall() -> tuple[Tensor, Tensor]:
    """A wall over the whole image of `front_camera`."""
    return patch(2.0, half=2.2, pieces=44)


def columns(vertices: Tensor, low: float, high: float) -> Tensor:
    """Vertices of the wall that appear between two x of the image, in pixels."""
    x = vertices[:, 0] / vertices[:, 2] * W / 2 + W / 2
    return torch.nonzero((x >= low) & (x <= high))[:, 0]


def loss_of_stripes(**weights: float) -> tuple[RegionAdaptiveLoss, Tensor]:
    """Eyes in pixels 8..16, mouth 24..32, face 8..56; no nose."""
    vertices, faces = wall()
    masks = {
        "left_eyeball": columns(vertices, 8, 12),
        "eye_region": columns(vertices, 11, 16),
        "lips": columns(vertices, 24, 32),
        "face": columns(vertices, 8, 56),
        "neck": columns(vertices, 0, 5),
    }
    return RegionAdaptiveLoss(faces=faces, masks=masks, **weights), vertices


def test_every_region_gets_its_weight_and_the_largest_wins() -> None:
    loss, vertices = loss_of_stripes()
    map_ = loss.weights(0, front_camera(), vertices)
    assert map_.shape == (1, H, W) and map_.dtype == torch.float32
    row = map_[0, H // 2] / map_[0, H // 2, 2]  # the neck has no weight of its own
    assert row[12].item() == pytest.approx(2.0, rel=1e-3)
    assert row[28].item() == pytest.approx(2.0, rel=1e-3)
    assert row[44].item() == pytest.approx(1.2, rel=1e-3)
    assert row[62].item() == pytest.approx(1.0, rel=1e-3)
    # Soft, and monotonous from one plateau to the next.
    edge = row[12:21]
    assert (edge.diff() <= 1e-6).all() and ((edge > 1.25) & (edge < 1.95)).sum() >= 2


@pytest.mark.parametrize("size", [(64, 48), (32, 24), (131, 97), (5, 3), (1, 1)])
def test_the_mean_is_one_at_every_size(size: tuple[int, int]) -> None:
    loss, vertices = loss_of_stripes(weight_eyes=7.0, weight_face=0.1)
    loss.weights(3, front_camera(), vertices)
    map_ = loss.weights(3, front_camera().resized(*size))  # another resolution, no mesh needed any more
    assert map_.shape == (1, size[1], size[0])
    assert map_.double().mean().item() == pytest.approx(1.0, abs=2e-6)


def test_the_map_of_a_smaller_camera_is_the_smaller_map() -> None:
    loss, vertices = loss_of_stripes()
    camera = front_camera(256, 192)
    large = loss.weights(0, camera, vertices)
    small = loss.weights(0, camera.scaled(0.5))
    pooled = torch.nn.functional.avg_pool2d(large, 2)
    assert torch.allclose(small, pooled, atol=0.02)


def test_equal_weights_are_exactly_the_plain_loss() -> None:
    loss, vertices = loss_of_stripes(weight_eyes=1.0, weight_mouth=1.0, weight_nose=1.0, weight_face=1.0)
    map_ = loss.weights(0, front_camera(), vertices)
    assert torch.equal(map_, torch.ones(1, H, W))
    image, ground_truth = torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(0))
    l1, dssim = loss(image, ground_truth, map_)
    plain_l1, plain_ssim = losses.photometric(image, ground_truth)
    if kernels.available():  # bit for bit; PyTorch's mean and sum of products round differently
        assert l1.item() == plain_l1.item() and dssim.item() == (1 - plain_ssim).item()
    assert torch.allclose(torch.stack([l1, 1 - dssim]), torch.stack([plain_l1, plain_ssim]), rtol=1e-6)


def test_the_terms_are_weighted_means() -> None:
    loss, vertices = loss_of_stripes()
    image, ground_truth = torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(1))
    map_ = loss.weights(0, front_camera(), vertices)
    l1, dssim = loss(image, ground_truth, map_)
    w = map_.double()
    expected = (w * (image - ground_truth).abs().double()).sum() / (3 * w.sum())
    assert l1.item() == pytest.approx(expected.item(), rel=1e-5)
    dissimilar = 1 - losses.ssim_map(image.double(), ground_truth.double())
    assert dssim.item() == pytest.approx(((w * dissimilar).sum() / (3 * w.sum())).item(), rel=1e-4)
    even, _ = loss(image, ground_truth, None)
    assert even.item() == pytest.approx((image - ground_truth).abs().mean().item(), rel=1e-5)


def test_assignments_take_effect_at_once() -> None:
    loss, vertices = loss_of_stripes()
    camera = front_camera()
    before = loss.weights(0, camera, vertices)
    loss.weight_eyes, loss.weight_face = 2.5, 0.5
    assert loss.weight_eyes == 2.5
    after = loss.weights(0, camera)
    fresh = loss_of_stripes(weight_eyes=2.5, weight_face=0.5)[0].weights(0, camera, vertices)
    assert torch.equal(after, fresh) and not torch.equal(after, before)
    row = after[0, H // 2] / after[0, H // 2, 2]
    assert row[44].item() == pytest.approx(0.5, rel=1e-3)


def test_what_is_hidden_or_turned_away_gets_no_weight() -> None:
    vertices, faces = wall()
    front = patch(1.0, half=2.2, pieces=4)
    camera = front_camera()
    region = columns(vertices, 20, 40)
    hidden = RegionAdaptiveLoss(faces=joined((vertices, faces), front)[1], masks={"nose": region})
    assert torch.equal(hidden.weights(0, camera, joined((vertices, faces), front)[0]), torch.ones(1, H, W))
    away = RegionAdaptiveLoss(faces=faces.flip(1), masks={"nose": region})
    assert torch.equal(away.weights(0, camera, vertices), torch.ones(1, H, W))
    open_ = RegionAdaptiveLoss(faces=faces, masks={"nose": region})
    assert open_.weights(0, camera, vertices).max() > 1.2


def test_a_region_smaller_than_a_cell_is_not_lost() -> None:
    vertices, faces = patch(2.0, half=2.2, pieces=300)
    middle = torch.nonzero((vertices[:, :2] - 0.111).norm(dim=1) < 0.012)[:, 0]
    loss = RegionAdaptiveLoss(faces=faces, masks={"nose": middle})
    assert loss.weights(0, front_camera(), vertices).max() > 1.1


def test_views_are_kept_apart_and_unnamed_ones_are_not_kept() -> None:
    loss, vertices = loss_of_stripes()
    camera = front_camera()
    moved = vertices + torch.tensor([0.5, 0.0, 0.0])
    first = loss.weights(0, camera, vertices)
    second = loss.weights(1, camera, moved)
    assert not torch.equal(first, second)
    assert torch.equal(loss.weights(0, camera, moved), first)  # the first visit counts
    assert torch.equal(loss.weights(None, camera, moved), second)
    with pytest.raises(ValueError, match="vertices"):
        loss.weights(None, camera)


def test_regions_of_ones_own() -> None:
    loss, vertices = loss_of_stripes()
    camera = front_camera()
    loss.weights(0, camera, vertices)
    loss.add_region("mole", columns(vertices, 40, 48), 3.0)
    row = loss.weights(0, camera, vertices)[0, H // 2]
    assert (row[44] / row[2]).item() == pytest.approx(3.0, rel=1e-3)
    for wrong, match in [
        (("mole", columns(vertices, 0, 9), 1.0), "already"),
        (("dot", columns(vertices, 0, 9)[:1], 1.0), "no triangle"),
        (("dot", columns(vertices, 0, 9), -1.0), "at least 0"),
        (("dot", torch.tensor([-1, 2]), 1.0), "vertex numbers"),
    ]:
        with pytest.raises(UserError, match=match):
            loss.add_region(*wrong)
    for name in "abc":
        loss.add_region(name, columns(vertices, 0, 9), 1.0)
    with pytest.raises(UserError, match="one too many"):
        loss.add_region("d", columns(vertices, 0, 9), 1.0)
    with pytest.raises(UserError, match="needs a mesh"):
        RegionAdaptiveLoss().add_region("mole", torch.arange(9), 3.0)


def test_regions_without_a_mask_are_told() -> None:
    loss, _ = loss_of_stripes()
    assert "nose" in loss.note and "eyes" not in loss.note and "\n" not in loss.note
    _, faces = wall()
    assert "eyes, mouth, nose, face" in RegionAdaptiveLoss(faces=faces, masks={}).note
    assert RegionAdaptiveLoss().note == ""


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "two", None])
def test_bad_weights(value: object) -> None:
    with pytest.raises(UserError, match="mouth"):
        RegionAdaptiveLoss(weight_mouth=value)
    loss = RegionAdaptiveLoss()
    with pytest.raises(UserError, match="nose"):
        loss.weight_nose = value
    assert loss.weight_nose == 1.5


def test_the_map_without_a_mesh() -> None:
    loss = RegionAdaptiveLoss()
    map_ = loss.create_simple_weight_map(512, 400, "cpu")
    assert map_.shape == (1, 512, 400) and map_.mean().item() == pytest.approx(1.0, abs=1e-5)
    floor = map_.min()
    assert (map_[0, 215, 148] / floor).item() == pytest.approx(2.0, rel=0.02)  # an eye
    assert (map_[0, 0, 0] / floor).item() == pytest.approx(1.0, rel=0.02)
    assert torch.equal(map_.flip(2), map_) or torch.allclose(map_.flip(2), map_, atol=1e-5)
    assert torch.equal(loss.weights(0, front_camera()), loss.create_simple_weight_map(H, W))
    loss.weight_eyes = 1.0
    assert not torch.equal(loss.create_simple_weight_map(512, 400), map_)


def test_off_means_no_map() -> None:
    off = NoRegionWeights()
    assert off.weights(0, front_camera()) is None and off.state_dict() == {} and off.note == ""
    off.load_state_dict({"anything": 1})


def test_a_resumed_run_has_the_same_maps(tmp_path) -> None:
    loss, vertices = loss_of_stripes()
    camera = front_camera()
    maps = [loss.weights(i, camera.resized(64, 48 + 8 * i), vertices + 0.05 * i) for i in range(3)]
    checkpoint.save(tmp_path / "chkpnt1.pth", {"region": loss.state_dict()})
    state = checkpoint.load(tmp_path / "chkpnt1.pth")["region"]
    resumed, _ = loss_of_stripes()
    resumed.load_state_dict(state)
    for i, map_ in enumerate(maps):  # although the mesh has moved on
        assert torch.equal(resumed.weights(i, camera.resized(64, 48 + 8 * i), vertices + 0.3), map_)
    changed, _ = loss_of_stripes(weight_eyes=3.0)  # weights may change on resume
    changed.load_state_dict(state)
    assert not torch.equal(changed.weights(0, camera), maps[0])
    # With other regions the old grids would be wrong, and are looked for anew.
    changed.add_region("mole", columns(vertices, 40, 48), 3.0)
    changed.load_state_dict(state)
    with pytest.raises(ValueError, match="vertices"):
        changed.weights(0, camera)

    damaged = {"_extra_state": {**state["_extra_state"]}}
    damaged["_extra_state"]["packed"] = damaged["_extra_state"]["packed"][:-9]
    with pytest.raises(ValueError):
        resumed.load_state_dict(damaged)
    damaged["_extra_state"]["packed"] = torch.arange(50, dtype=torch.uint8)
    with pytest.raises(ValueError, match="damaged"):
        resumed.load_state_dict(damaged)
    del damaged["_extra_state"]["views"]
    with pytest.raises(KeyError):
        resumed.load_state_dict(damaged)
    RegionAdaptiveLoss().load_state_dict(RegionAdaptiveLoss().state_dict())


@pytest.mark.skipif(not kernels.available(), reason="no compiler")
@pytest.mark.parametrize("shape", [(36, 64), (1, 1), (1, 7), (64, 3)])
def test_the_kernels_map_equals_its_twin(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    bits = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    table = 3 * torch.rand(256, generator=generator)
    for height, width in [(97, 131), (64, 3), (1, 1), (300, 200)]:
        one = soft_map(bits, table, height, width)
        assert torch.equal(soft_map(bits, table, height, width), one)
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "available", lambda: False)
            assert torch.allclose(one, soft_map(bits, table, height, width), atol=2e-5)


def test_the_names_that_scripts_import() -> None:
    from innovations import RegionAdaptiveLoss as first
    from utils.region_adaptive_loss import RegionAdaptiveLoss as second

    assert first is second is RegionAdaptiveLoss


@pytest.mark.cuda
def test_cuda_equals_the_cpu() -> None:
    loss, vertices = loss_of_stripes()
    here = loss.weights(0, front_camera(), vertices)
    there, _ = loss_of_stripes()
    camera: Camera = front_camera().to("cuda")
    assert torch.allclose(there.cuda().weights(0, camera, vertices.cuda()).cpu(), here, atol=1e-4)
    assert RegionAdaptiveLoss().create_simple_weight_map(512, 512, "cuda").is_cuda
