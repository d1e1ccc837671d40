"""Opening a saved avatar, posing it, looking at it, saving it elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from runs import train_on
from toy_datasets import load

from scene import load_avatar
from utils.errors import UserError


@pytest.fixture(scope="module")
def output(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("avatar") / "model"
    train_on(capture, model, "--iterations 4 --interval 2 --use_color_calibration")
    return model


def test_the_newest_is_opened_and_poses_are_the_head_models(output: Path) -> None:
    avatar = load_avatar(output, device="cpu")
    assert avatar.iteration == 4 and avatar.calibrated
    motion = avatar.motion()
    timestep = motion.timesteps[1]
    assert torch.equal(avatar.pose(timestep), motion.values[1])
    pose = avatar.pose(timestep, jaw_pose=(0.3, 0.0, 0.0), expr=[1.5])
    assert pose[motion.columns["jaw_pose"]].tolist() == pytest.approx([0.3, 0.0, 0.0])
    assert pose[motion.columns["expr"]][0] == 1.5
    # Independently of the path of training: the batched function of every input.
    parts = motion.split(pose[None])
    flame = avatar.model.flame
    wanted = flame(motion.shape, static_offset=motion.static_offset, **parts)[0]
    _, vertices = avatar.gaussians(pose)
    torch.testing.assert_close(vertices, wanted, rtol=0, atol=1e-6)
    assert not torch.allclose(vertices, avatar.gaussians(avatar.pose(timestep))[1], atol=1e-4)


def test_a_picture_is_that_of_the_saved_avatar(output: Path, tmp_path: Path) -> None:
    avatar = load_avatar(output, device="cpu", iteration=2)
    camera = load(Path(avatar.options.model.source_path)).train[0].camera
    image = avatar.render(camera)
    assert image.shape == (3, camera.height, camera.width) and 0 <= image.min() <= image.max() <= 1
    assert not torch.equal(image, avatar.render(camera, background=torch.tensor([0.0, 1.0, 0.0])))
    avatar.save(tmp_path / "copy")
    again = load_avatar(tmp_path / "copy", device="cpu")
    assert again.iteration == 2 and torch.equal(again.render(camera), image)
    assert again.path.read_bytes() == avatar.path.read_bytes()
    before, after = (np.load(a.path.parent / "flame_param.npz") for a in (avatar, again))
    assert all(np.array_equal(before[name], after[name]) for name in before.files)


def test_mistakes_are_one_sentence(output: Path, tmp_path: Path) -> None:
    avatar = load_avatar(output, device="cpu")
    for message, call in (
        ("no timestep 77", lambda: avatar.pose(77)),
        ("no FLAME parameter 'jaw'", lambda: avatar.pose(avatar.motion().timesteps[0], jaw=(0, 0, 0))),
        ("'jaw_pose' has 3 values", lambda: avatar.pose(avatar.motion().timesteps[0], jaw_pose=(0, 0))),
        ("'expr' has", lambda: avatar.pose(avatar.motion().timesteps[0], expr=[0.0] * 500)),
        ("--iteration 3 was not saved", lambda: load_avatar(output, iteration=3)),
        ("holds no avatar", lambda: load_avatar(tmp_path)),
    ):
        with pytest.raises(UserError, match=message):
            call()
