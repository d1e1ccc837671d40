"""The data of the page, read back here: what each number may be off by, what is left out, and the same bytes again."""

from __future__ import annotations

import gzip
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_ball import MODES, write_avatar

from arguments import Options
from exporters.html.pack import QUALITIES, Life, pack
from exporters.html.page import page
from innovations.color_calibration import NoColorCalibration
from scene import Avatar, load_avatar
from scene.flame import Flame, FlameParameters, HeadModel
from scene.flame.parameters import MOTION
from scene.gaussian_model import GaussianModel
from utils.errors import UserError

KINDS = {"i8": np.int8, "i16": np.int16, "i32": np.int32, "f32": np.float32}


@pytest.fixture(scope="module")
def avatar(tmp_path_factory: pytest.TempPathFactory) -> Avatar:
    return load_avatar(write_avatar(tmp_path_factory.mktemp("html") / "model"), device="cpu")


def unpacked(content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header, and the integers of each array; written from the description in pack.py."""
    data = gzip.decompress(content)
    (length,) = struct.unpack_from("<I", data)
    header = json.loads(data[4 : 4 + length])
    start, arrays = 4 + length, {}
    for about in header["arrays"]:
        kind = np.dtype(KINDS[about["type"]])
        count = math.prod(about["shape"])
        part = np.frombuffer(data, np.uint8, count * kind.itemsize, start)
        start += part.size
        if kind.kind == "i":
            part = np.ascontiguousarray(part.reshape(kind.itemsize, count).T)
        values = part.reshape(-1).view(kind).reshape(about["shape"]).astype(np.float64)
        arrays[about["name"]] = np.cumsum(values, axis=0) if about["delta"] else values
    assert start == len(data)
    return header, arrays


def life(avatar: Avatar) -> Life:
    return Life(avatar.motion().values.double().numpy(), [])


def off(values: np.ndarray, truth: np.ndarray) -> float:
    assert values.shape == truth.shape
    return float(np.abs(values - truth).max())


@pytest.mark.parametrize("quality", QUALITIES)
def test_no_number_is_off_by_more_than_half_a_step(avatar: Avatar, quality: str) -> None:
    steps = QUALITIES[quality]
    content, kept = pack(avatar, steps, {}, life(avatar))
    header, arrays = unpacked(content)
    step = {about["name"]: about["step"] for about in header["arrays"]}
    fields = {name: value.double().numpy() for name, value in avatar.model.fields().items()}
    opacity = torch.from_numpy(fields["opacity"][:, 0]).sigmoid().numpy()
    rows = np.flatnonzero(opacity >= 1 / 255)
    rows = rows[np.argsort(avatar.model.binding.numpy()[rows], kind="stable")]
    assert kept == {"gaussians": len(rows), "expressions": MODES - 1} and len(rows) == len(avatar.model) - 5

    used = np.unique(avatar.model.binding.numpy()[rows])
    assert np.array_equal(used[arrays["triangles"].astype(int)], avatar.model.binding.numpy()[rows])
    for name, field, wanted in (
        ("means", "xyz", steps.mean),
        ("scales", "scaling", steps.scale),
        ("opacities", None, steps.opacity),
    ):
        truth = opacity[rows] if field is None else fields[field][rows]
        assert step[name] == wanted and off(wanted * arrays[name], truth) <= wanted / 2 + 1e-9, name
    color = np.concatenate([fields["features_dc"], fields["features_rest"]], axis=1)[rows]
    assert step["harmonics"] == [steps.color, steps.harmonics]
    assert off(steps.color * arrays["harmonics"][:, 0], color[:, 0]) <= steps.color / 2 + 1e-9
    assert off(steps.harmonics * arrays["harmonics"][:, 1:], color[:, 1:]) <= steps.harmonics / 2 + 1e-9
    # Quaternions: three components are off by half a step, the largest (at least 1/2) by at most three times that.
    three, largest = steps.rotation * arrays["rotations"], arrays["largest"].astype(int)
    whole = np.sqrt(1 - (three**2).sum(1))
    found = np.stack([np.insert(row, at, most) for row, at, most in zip(three, largest, whole)])
    truth = fields["rotation"][rows] / np.linalg.norm(fields["rotation"][rows], axis=1, keepdims=True)
    assert np.minimum(np.abs(found - truth).max(1), np.abs(found + truth).max(1)).max() <= 2 * steps.rotation

    head, motion = avatar.head, avatar.motion()
    assert head is not None and [mode["index"] for mode in header["modes"]] == list(range(MODES - 1))
    sizes = np.array([mode["step"] for mode in header["modes"]])[:, None]
    reach = np.maximum(motion.values[:, : MODES - 1].abs().amax(0).numpy(), 1.0)
    modes = head.exprdirs[..., : MODES - 1].permute(2, 0, 1).flatten(1).double().numpy()
    assert off(reach[:, None] * sizes * arrays["modes"], reach[:, None] * modes) <= steps.displacement / 2 + 1e-12
    assert [mode["feature"] for mode in header["correctives"]] == list(range(20))
    correctives = head.posedirs[..., :20].permute(2, 0, 1).flatten(1).double().numpy()
    assert off(steps.displacement * arrays["correctives"], correctives) <= steps.displacement / 2 + 1e-12

    parts = {name: part.double().numpy() for name, part in motion.split(motion.values).items()}
    ticks = np.array([mode["tick"] for mode in header["modes"]])
    assert ticks == pytest.approx(steps.expression * reach)
    assert (np.abs(ticks * arrays["expression"] - parts["expr"][:, : MODES - 1]) <= ticks / 2 + 1e-9).all()
    angles = np.concatenate([parts[name] for name in ("rotation", "neck_pose", "jaw_pose", "eyes_pose")], axis=1)
    assert off(step["poses"] * arrays["poses"], angles) <= steps.pose / 2 + 1e-9
    assert off(step["translation"] * arrays["translation"], parts["translation"]) <= steps.translation / 2 + 1e-9
    shaped = head.v_template + head.shapedirs @ motion.shape + motion.static_offset
    assert off(step["base"] * arrays["base"], shaped.numpy()) <= step["base"] / 2 + 1e-7
    assert off(step["weights"] * arrays["weights"], head.weights.numpy()) <= step["weights"] / 2 + 1e-7
    assert pack(avatar, steps, {}, life(avatar))[0] == content  # nothing depends on the time or the order of a set


@pytest.mark.parametrize("quality", QUALITIES)
def test_the_page_mixes_colors_by_the_code_of_the_moment(quality: str, tmp_path: Path) -> None:
    avatar, steps = load_avatar(write_avatar(tmp_path / "model", expressive=True), device="cpu"), QUALITIES[quality]
    model, motion, expression = avatar.model, avatar.motion(), avatar.model.expression
    with torch.no_grad():
        motion.values[:, 0] = 0.7  # what is always the same, and hardly moves anything, may be left out
        avatar.head.exprdirs[..., 0] = 0.0
        motion.values[0, 1] += 50.0  # beyond the range
    content, kept = pack(avatar, steps, {}, life(avatar))
    header, arrays = unpacked(content)
    assert [mode["index"] for mode in header["modes"]] == [1, 2, 3, 4, 5]  # the last moves nothing, but colors
    rule = {name: np.array(value) for name, value in header["code"].items()}
    rows = np.delete(motion.values.double().numpy(), 0, axis=1)
    codes = np.clip(rows @ rule["directions"].T + rule["start"], rule["low"], rule["high"])
    wanted = torch.stack([expression(row) for row in motion.values]).numpy()
    np.testing.assert_allclose(codes, wanted, atol=1e-5)
    assert np.isin(wanted[0], [*expression.high.float().numpy(), *expression.low.float().numpy()]).any()
    step = next(about["step"] for about in header["arrays"] if about["name"] == "changes")
    drawn = np.flatnonzero(model.opacity.detach().sigmoid().numpy()[:, 0] >= 1 / 255)
    drawn = drawn[np.argsort(model.binding.numpy()[drawn], kind="stable")]
    assert step == steps.change and len(drawn) == kept["gaussians"]
    assert off(step * arrays["changes"], model.modes.detach().double().numpy()[drawn]) <= step / 2 + 1e-9


def test_what_no_rasterizer_draws_is_left_out(avatar: Avatar) -> None:
    before = {name: value.detach().clone() for name, value in avatar.model.parameters().items()}
    with torch.no_grad():
        avatar.model.rotation[100] = 0.0
        avatar.model.scaling[200] = 120.0
    kept = pack(avatar, QUALITIES["high"], {}, life(avatar))[1]
    with torch.no_grad():
        for name, value in avatar.model.parameters().items():
            value.copy_(before[name])
    assert kept["gaussians"] == len(avatar.model) - 5 - 2


def test_values_beyond_16_bits_get_a_larger_step(avatar: Avatar) -> None:
    model = avatar.model
    before = model.xyz.detach().clone()
    with torch.no_grad():
        model.xyz[100] = 1e4
    header, arrays = unpacked(pack(avatar, QUALITIES["high"], {}, life(avatar))[0])
    with torch.no_grad():
        model.xyz.copy_(before)
    step = next(about["step"] for about in header["arrays"] if about["name"] == "means")
    assert step == pytest.approx(1e4 / 32767) and arrays["means"].max() == 32767


def test_names_label_the_modes_and_eyelids_are_those_that_are_kept(avatar: Avatar) -> None:
    known = life(avatar)
    closing = np.arange(known.rows.shape[1], dtype=np.float64)
    named = known._replace(names=["jawOpen", "eyeBlink_L"], blink=closing)  # fewer than there are modes
    header, _ = unpacked(pack(avatar, QUALITIES["high"], {}, named)[0])
    assert [mode.get("name") for mode in header["modes"]] == ["jawOpen", "eyeBlink_L", None, None, None]
    assert header["blink"] == [*range(MODES - 1), *range(MODES, len(closing))]


def test_nothing_to_see_is_said(tmp_path: Path) -> None:
    avatar = load_avatar(write_avatar(tmp_path / "model", bound=False), device="cpu")
    with torch.no_grad():
        avatar.model.opacity.fill_(-20.0)
    with pytest.raises(UserError, match="no Gaussian is opaque enough"):
        pack(avatar, QUALITIES["high"], {}, None)


@pytest.fixture(scope="module")
def crowd() -> Avatar:
    """As large as those of FLAME: 20,000 Gaussians, 100 expressions, 1,000 timesteps; numbers without any order."""
    rng = np.random.default_rng(0)
    vertices, faces, modes, rows, count = 5143, 10144, 100, 1000, 20_000
    points = rng.normal(size=(vertices, 3)) * 0.08
    # Most of the face's, a centimeter at first and then less and less; FLAME's are smoother.
    reach = np.exp(-((points - [0, -0.03, 0.1]) ** 2).sum(1) / 0.07**2)[:, None, None]
    strength = 0.01 / np.arange(1, modes + 1) ** 0.75

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).float()

    weights = rng.random((vertices, 5)) ** 3
    head = HeadModel(
        tensor(points),
        torch.from_numpy(rng.integers(vertices, size=(faces, 3))),
        torch.zeros(vertices, 3, 1),
        tensor(rng.normal(size=(vertices, 3, modes)) * reach * strength / 3),
        tensor(rng.normal(size=(vertices, 3, 36)) * reach * 0.002),
        tensor(np.full((5, vertices), 1 / vertices)),
        tensor(weights / weights.sum(1, keepdims=True)),
    )
    time = np.linspace(0, 40, rows)[:, None]
    arrays = {"expr": np.sin(time * (1 + np.arange(modes) / 30)) + 0.05 * rng.normal(size=(rows, modes))}
    arrays |= {name: 0.05 * rng.normal(size=(rows, width)).cumsum(0) * 0.1 for name, width in MOTION.items()}
    parameters = FlameParameters({**arrays, "shape": np.zeros(1)}, None, head)
    fields = {
        "xyz": 0.4 * rng.normal(size=(count, 3)),
        "features_dc": rng.normal(size=(count, 1, 3)),
        "features_rest": 0.08 * rng.normal(size=(count, 15, 3)),
        "opacity": 2 * rng.normal(size=(count, 1)),
        "scaling": rng.normal(size=(count, 3)) - 1,
        "rotation": rng.normal(size=(count, 4)),
    }
    model = GaussianModel(
        {name: tensor(value) for name, value in fields.items()},
        sh_degree=3,
        binding=torch.from_numpy(np.concatenate([np.arange(faces), rng.integers(faces, size=count - faces)])),
        flame=Flame(head),
        flame_parameters=parameters,
    )
    model.active_sh_degree = 3
    options, black = Options(), torch.zeros(3)
    return Avatar(model, head, NoColorCalibration(), options, 1, Path("none.ply"), black, "native", lambda *_: None)


@pytest.mark.parametrize("quality, megabytes", [("high", 6.0), ("small", 2.0)])
def test_an_avatar_of_flame_is_small_enough_to_send(crowd: Avatar, quality: str, megabytes: float) -> None:
    content, kept = pack(crowd, QUALITIES[quality], {}, life(crowd))
    assert kept["gaussians"] > 19_000 and kept["expressions"] > 90
    size = len(page("head", "#fff", bytes(60_000), content)) / 1e6
    print(f"{quality}: {size:.2f} MB")
    assert size <= megabytes
