"""A small avatar without a training: a ball with jaw and eyes, expressions, correctives, and colors of degree 3."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import torch
from toy_capture import BALL

from arguments import Options, parse_train, write_cfg_args
from innovations.color_calibration import ColorCalibration, NoColorCalibration
from innovations.expression_appearance import ExpressionCode
from scene.avatar import save_avatar, saved_folder
from scene.flame import Flame, FlameParameters, load_head_model
from scene.flame.parameters import MOTION
from scene.gaussian_model import GaussianModel
from scene.motion.blendshapes import MODES_NAME

MODES = 6  # the last one moves nothing by more than a micrometer
TIMESTEPS = 9
DEGREE = 3
NAMED = ("eyeBlink_L", "eyeBlink_R", "jawOpen")  # the first of the modes
PER_TRIANGLE = 3
COLOR_MODES = 3


def write_head(path: Path, seed: int = 0) -> None:
    """A ball in FLAME's format, every part of which does something."""
    rng = np.random.default_rng(seed)
    points = np.asarray(BALL.vertices)
    x, y, z = points.T / 0.1
    weights = np.zeros((len(points), 5))
    weights[:, 2] = np.clip(-2 * y, 0, 1) * np.clip(2 * z, 0, 1)
    for joint, side in ((3, 0.45), (4, -0.45)):
        weights[:, joint] = np.exp(-12 * ((x - side) ** 2 + (y - 0.3) ** 2)) * (z > 0) * (1 - weights[:, 2])
    weights[:, 0] = 0.3 * (1 - weights.sum(1))
    weights[:, 1] = 1 - weights.sum(1)
    centers = 0.1 * np.array([[0, -1, 0], [0, -0.6, 0], [0, -0.2, 0], [0.4, 0.3, 0.6], [-0.4, 0.3, 0.6]])
    regressor = np.exp(-((centers[:, None] - points) ** 2).sum(2) / 0.03**2)
    modes = np.zeros((len(points), 3, 1 + MODES))
    modes[:, :, 0] = 0.2 * points
    for mode in range(1, 1 + MODES):
        bump = np.exp(-((points - points[rng.integers(len(points))]) ** 2).sum(1) / 0.05**2)
        modes[:, :, mode] = bump[:, None] * rng.normal(size=3) * 0.012
    modes[:, :, MODES] = 1e-6 / 3
    correctives = rng.normal(size=(len(points), 3, 36)) * 0.002
    correctives[:, :, 20:] = 0.0
    path.write_bytes(
        pickle.dumps(
            {
                "v_template": points,
                "f": np.asarray(BALL.faces),
                "shapedirs": modes,
                "n_shape": 1,
                "posedirs": correctives,
                "J_regressor": regressor / regressor.sum(1, keepdims=True),
                "weights": weights,
                "kintree_table": np.array([[-1, 0, 1, 1, 1], [0, 1, 2, 3, 4]]),
            }
        )
    )


def write_avatar(
    folder: Path, *, bound: bool = True, network: bool = False, expressive: bool = False, seed: int = 0
) -> Path:
    """An output folder as a training leaves it, with the head model in it; unbound: a static scene.

    Args:
        expressive: whether its colors follow the expression.
    """
    folder.mkdir(parents=True)
    write_cfg_args(folder, _options(folder, bound, network))
    rng = torch.Generator().manual_seed(seed)
    count = PER_TRIANGLE * len(BALL.faces)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    fields = {
        "xyz": 0.3 * noise(count, 3),
        "features_dc": noise(count, 1, 3),
        "features_rest": 0.15 * noise(count, (DEGREE + 1) ** 2 - 1, 3),
        "opacity": 2 * noise(count, 1),
        "scaling": 0.4 * noise(count, 3) - torch.tensor([1.5, 3.0, 1.5]),
        "rotation": noise(count, 4),
    }
    fields["opacity"][:5] = -8.0  # too faint to be drawn
    if bound:
        write_head(folder / "head_model.pkl", seed)
        (folder / MODES_NAME).write_text(json.dumps({"expression": list(NAMED)}))
        head = load_head_model(folder / "head_model.pkl")
        time = np.linspace(0, 1, TIMESTEPS)[:, None]
        arrays = {"expr": np.sin(7 * time + np.arange(MODES)), "shape": np.ones(1)}
        for name, width in MOTION.items():
            arrays[name] = 0.1 * np.sin(4 * time + np.arange(width)) * (0.1 if name == "translation" else 1)
        parameters = FlameParameters(arrays, None, head)
        binding = torch.arange(len(BALL.faces)).repeat(PER_TRIANGLE)
        model = GaussianModel(fields, sh_degree=DEGREE, binding=binding, flame=Flame(head), flame_parameters=parameters)
        if expressive:
            model.expression = ExpressionCode.of(parameters.values, parameters.columns, COLOR_MODES)
            model.modes = torch.nn.Parameter(0.4 * noise(count, COLOR_MODES, 3))
    else:
        fields["xyz"], fields["scaling"] = 0.1 * noise(count, 3), fields["scaling"] - 4
        model = GaussianModel(fields, sh_degree=DEGREE)
    color: ColorCalibration | NoColorCalibration = NoColorCalibration()
    if network:
        color = ColorCalibration(hidden_dim=8, generator=rng, background=torch.ones(3))
        with torch.no_grad():
            for weights in color.parameters():
                weights += 0.6 * noise(*weights.shape)
    save_avatar(saved_folder(folder, 1), model, color)
    return folder


def _options(folder: Path, bound: bool, network: bool) -> Options:
    words = ["-s", str(folder), "-m", str(folder), "--white_background"]
    return parse_train([*words, *["--bind_to_mesh"] * bound, *["--use_color_calibration"] * network])
