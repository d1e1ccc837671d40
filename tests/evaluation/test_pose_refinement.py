"""Pose refinement: on a ball that photographs itself at known poses, and against closed forms."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_capture import POSES, look_at, write_head_model

from evaluation import pose_refinement
from evaluation.pose_refinement import Fit, parameter_units, refine_poses, split_views, summary
from gaussian_renderer import choose_rasterizer, render
from ops.types import Camera, RenderOut
from scene.flame.head_model import load_head_model
from scene.flame.model import Flame, FlameParameters
from scene.gaussian_model import GaussianModel
from utils.errors import UserError

ERROR = {"expr": [0.05], "rotation": [0.02, -0.015, 0.02], "translation": [1e-3, -1e-3, 1e-3]}
MOMENTS, CAMERAS = 3, 3


class Scene:
    """A patterned ball at three moments, seen by three cameras; view 3 m + c is moment m in camera c."""

    def __init__(self, folder: Path) -> None:
        write_head_model(folder / "head_model.pkl")
        head = load_head_model(folder / "head_model.pkl")
        motion = {name: np.zeros((MOMENTS, width), np.float32) for name, width in POSES}
        motion["expr"] = np.linspace(0, 0.2, MOMENTS, dtype=np.float32)[:, None]
        motion["shape"] = np.zeros(1, np.float32)
        self.motion = FlameParameters(motion, None, head)
        generator = torch.Generator().manual_seed(0)
        self.avatar = GaussianModel.from_mesh(Flame(head), self.motion, sh_degree=0, generator=generator, device="cpu")
        with torch.no_grad():
            self.avatar.opacity.fill_(4.0)
            self.avatar.scaling.fill_(math.log(0.3))
            self.avatar.features.copy_(torch.rand(self.avatar.features.shape, generator=generator) * 3 - 1.5)
        self.cameras = []
        for moment in range(MOMENTS):
            for angle in (-0.6, 0.1, 0.7):
                pose = look_at(0.6 * np.array([math.sin(angle), 0.1, math.cos(angle)]))
                matrix = torch.from_numpy(np.linalg.inv(pose @ np.diag([1.0, -1, -1, 1]))).float()
                self.cameras.append(Camera(matrix, 150.0, 150.0, 32.0, 32.0, 64, 64, timestep=moment))
        self.draw = partial(
            render, background=torch.ones(3), sh_degree=0, rasterize=choose_rasterizer("auto", "cpu")[1]
        )
        with torch.no_grad():
            self.photographs = [self.draw(self.avatar(c.timestep)[0], c).image for c in self.cameras]
        self.true = self.motion.values.clone()
        self.units = parameter_units(self.motion.columns)

    def disturb(self) -> Tensor:
        """Gives all rows a tracking error; returns them."""
        self.motion.values.copy_(self.true)
        for name, error in ERROR.items():
            self.motion.values[:, self.motion.columns[name]] += torch.tensor(error)
        return self.motion.values.clone()

    def refine(self, indices: list[int], steps: int = 40, photographs: list[Tensor] | None = None) -> dict[int, Fit]:
        photographs = photographs or self.photographs
        fits = refine_poses(
            self.avatar,
            self.motion.row,
            self.cameras,
            lambda i: photographs[i],
            self.draw,
            self.units,
            indices=indices,
            steps=steps,
        )
        self.motion.clear_gradients()
        return fits

    def vertex_error(self, moment: int) -> float:
        """Metres, mean over the vertices, from the true pose."""
        with torch.no_grad():
            found = self.avatar.flame.vertices(self.motion, moment)
            kept = self.motion.values[moment].clone()
            self.motion.values[moment] = self.true[moment]
            true = self.avatar.flame.vertices(self.motion, moment)
            self.motion.values[moment] = kept
        return (found - true).norm(dim=1).mean().item()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("refinement"))


def test_poses_are_recovered_and_nothing_else_moves(scene: Scene) -> None:
    tracked = scene.disturb()
    before = [scene.vertex_error(moment) for moment in range(MOMENTS)]
    gaussians = {name: value.detach().clone() for name, value in scene.avatar.parameters().items()}
    fits = scene.refine([0, 2, 6, 8])
    assert list(fits) == [0, 2]
    for moment in (0, 2):
        assert before[moment] > 2e-3 and scene.vertex_error(moment) < before[moment] / 8
        assert fits[moment].after < fits[moment].before / 4
    assert torch.equal(scene.motion.values[1], tracked[1])
    # The neck, jaw and eyes of this ball move nothing, so nothing may move them.
    for name in ("neck_pose", "jaw_pose", "eyes_pose"):
        assert not scene.motion.values[:, scene.motion.columns[name]].any()
    for name, value in scene.avatar.parameters().items():
        assert torch.equal(value, gaussians[name]) and value.grad is None


def test_other_cameras_are_never_looked_at_and_a_run_repeats_itself(scene: Scene) -> None:
    scene.disturb()
    state = torch.get_rng_state()
    first = scene.refine([0, 2, 6, 8], steps=5)
    assert torch.equal(torch.get_rng_state(), state)
    expected = scene.motion.values.clone()
    scene.disturb()
    poison = [
        image if i in (0, 2, 6, 8) else torch.full_like(image, math.nan) for i, image in enumerate(scene.photographs)
    ]
    assert scene.refine([0, 2, 6, 8], steps=5, photographs=poison) == first
    assert torch.equal(scene.motion.values, expected)


def test_the_first_step_is_of_the_stated_length(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    # Adam's first step is the rate in the direction of the sign, whatever the size of the gradient.
    monkeypatch.setattr(pose_refinement, "RATE", 0.25)
    tracked = scene.disturb()
    scene.refine([3], steps=1)
    moved = (scene.motion.values[1] - tracked[1]) / (0.25 * scene.units)
    for name, part in scene.motion.columns.items():
        wanted = 1.0 if name in ERROR else 0.0
        assert torch.allclose(moved[part].abs(), torch.full_like(moved[part], wanted), atol=1e-2), name
    direction = moved[scene.motion.columns["expr"]]
    assert direction.item() < 0  # towards the truth


def test_a_true_pose_stays_and_a_broken_photograph_is_survived(scene: Scene) -> None:
    scene.motion.values.copy_(scene.true)
    fits = scene.refine([0, 1], steps=3)
    assert torch.equal(scene.motion.values, scene.true) and fits[0].after == fits[0].before
    tracked = scene.disturb()
    scene.refine([0], steps=3, photographs=[torch.full_like(scene.photographs[0], math.nan)])
    assert torch.equal(scene.motion.values, tracked)


def test_the_views_take_turns(scene: Scene) -> None:
    scene.disturb()
    seen: list[int] = []
    draw = scene.draw

    def noted(gaussians: object, camera: Camera) -> RenderOut:
        if torch.is_grad_enabled():
            seen.append(next(i for i, known in enumerate(scene.cameras) if known is camera))
        return draw(gaussians, camera)

    done: list[int] = []
    refine_poses(
        scene.avatar,
        scene.motion.row,
        scene.cameras,
        lambda i: scene.photographs[i],
        noted,
        scene.units,
        indices=[5, 3, 0],
        steps=4,
        on_timestep=done.append,
    )
    scene.motion.clear_gradients()
    assert seen == [0] * 4 + [5, 3, 5, 3]
    assert done == [0, 1]


def test_units_follow_the_columns() -> None:
    units = parameter_units({"expr": slice(0, 2), "jaw_pose": slice(2, 5), "translation": slice(5, 8)})
    assert torch.allclose(units, torch.tensor([0.03, 0.03, *[0.005] * 3, *[3e-4] * 3]))


def test_summary_is_the_mean() -> None:
    assert summary({3: Fit(0.5, 0.25), 9: Fit(0.25, 0.25)}) == {
        "timesteps": 2,
        "loss_as_tracked": 0.375,
        "loss_refined": 0.25,
    }


def test_splitting_the_views() -> None:
    #            0   1   2   3   4   5   6
    timesteps = [50, 50, 50, 51, 51, 52, 7]
    cameras = [6, 8, 9, 6, 8, 8, 6]
    # 52 is seen by no allowed camera, so it stays as tracked and is not measured; 7 was trained on.
    parts = split_views(timesteps, cameras, trained={7}, allowed=(6, 9))
    assert parts.looked_at == [0, 2, 3] and parts.measured == [1, 4]


@pytest.mark.parametrize(
    "trained, allowed, message",
    [
        ((), (3,), "--refine_cameras 3: .* only of 6, 8$"),
        ((50,), (6,), "was trained on"),
        ((), (6, 8), "leaves no view to measure"),
    ],
)
def test_splits_that_cannot_be(trained: tuple[int, ...], allowed: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_views([50, 50], [6, 8], trained=trained, allowed=allowed)
