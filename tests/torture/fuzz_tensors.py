"""The formats with tensors in them: checkpoints, colour calibrations, the LPIPS weights and what they are made from."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torture import fuzz_mutations as spoil
from torture.fuzz_mutations import ARRAYS, Format, Spoiler, saved_bytes

import ops.lpips
from arguments import Options, parse_train
from innovations.color_calibration import ColorCalibration
from scene.gaussian_model import GaussianModel
from training import checkpoint
from training.density_control import DensityControl, DensitySchedule, fixed_threshold
from training.optimizers import GaussianOptimizer
from training.sampler import ShuffledSampler
from utils.lpips_weights import load as load_lpips
from utils.lpips_weights import read_arrays
from utils.tensor_files import save_tensors

TENSORS = (
    *spoil.EXTREME_VALUES,
    torch.zeros(0),
    torch.zeros(3),
    torch.full((3,), torch.nan),
    torch.arange(5),
    torch.zeros(1).expand(2**40),
    torch.zeros(2, 2, dtype=torch.float64),
    torch.zeros(6)[1:5:2],
    torch.ones(2) > 0,
    torch.eye(2).to_sparse(),
    torch.zeros(3, device="meta"),
    torch.zeros(2, dtype=torch.complex64),
    b"bytes",
    {1, 2},
    np.float64(1),
)


def _spoil_tensors(original: dict[str, Any]) -> Spoiler:
    def run(random: Random, data: bytes, other: bytes) -> bytes:
        kind = random.random()
        if kind < 0.2:
            return spoil.spoil_bytes(random, data, other)
        if kind < 0.6:
            return spoil.spoil_zip(random, data, other)
        stream = io.BytesIO()
        torch.save(spoil.spoil_values(random, original, TENSORS), stream)
        return stream.getvalue()

    return run


def _avatar() -> GaussianModel:
    points = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    return GaussianModel.from_points(points, np.full_like(points, 0.5), sh_degree=1, device="cpu")


def _parts(avatar: GaussianModel) -> dict[str, Any]:
    optimizer = GaussianOptimizer(
        avatar,
        extent=1.0,
        position_lr_init=1e-3,
        position_lr_final=1e-4,
        position_lr_max_steps=9,
        feature_lr=1e-3,
        opacity_lr=1e-3,
        scaling_lr=1e-3,
        rotation_lr=1e-3,
    )
    density = DensityControl(
        avatar,
        optimizer,
        DensitySchedule(1, 9, 1, 9, 0.01, False),
        fixed_threshold(1.0),
        extent=1.0,
        generator=torch.Generator().manual_seed(1),
    )
    color = ColorCalibration(["a", "b"], hidden_dim=4, num_layers=2, per_camera=True)
    for parameter in (*avatar.parameters().values(), *color.parameters()):
        parameter.grad = torch.ones_like(parameter)
    return {"optimizer": optimizer, "density": density, "sampler": ShuffledSampler(5, seed=2), "color": color}


def _go_on(path: Path, options: Options) -> None:
    """What train.py does with a checkpoint, and one step on what came of it."""
    resume = checkpoint.load(path)
    checkpoint.check_resumable(resume, options)
    with checkpoint.fitting("avatar"):
        avatar = GaussianModel.from_state(resume["avatar"], flame=None, flame_parameters=None, device="cpu")
    parts = _parts(avatar)
    checkpoint.restore(parts, resume)
    parts["optimizer"].set_step(resume["step"] + 1)
    parts["optimizer"].step()
    parts["color"].optimizer.step()
    parts["sampler"].next()


def tensors(folder: Path) -> dict[str, Format]:
    """Checkpoints and what else is read as tensors."""
    options = parse_train(["-s", str(folder), "-m", str(folder / "model"), "--sh_degree", "1"])
    avatar = _avatar()
    parts = _parts(avatar)
    parts["optimizer"].step()
    parts["color"].optimizer.step()
    state = {
        "format": checkpoint.FORMAT,
        "version": checkpoint.VERSION,
        "step": 7,
        "avatar": avatar.state_dict(),
        "options": dataclasses.asdict(options),
        **{name: part.state_dict() for name, part in parts.items()},
    }
    path = folder / "chkpnt7.pth"
    whole = saved_bytes(lambda path: save_tensors(path, state), path)

    color = ColorCalibration(["a", "b"], hidden_dim=4, num_layers=2, per_camera=True)
    colors = saved_bytes(color.save, folder / "color_calibration.pt")

    layer = ops.lpips.Layer
    ops.lpips.NETWORKS["tiny"] = (layer(2, 3, 1, 1, None, True), layer(3, 3, 1, 1, (2, 2), True))
    os.environ["LPIPS_CACHE"] = str(folder)
    weights = ops.lpips.LPIPS("tiny").state_dict()
    jax = {"VGG16_0": {"Conv_0": {"kernel": np.zeros((3, 3, 3, 4), np.float32), "bias": np.zeros(4, np.float32)}}}
    jax_values = (*ARRAYS, np.zeros(3, np.float32))

    def spoil_jax(random: Random, data: bytes, other: bytes) -> bytes:
        if random.random() < 0.7:
            return spoil.spoil_pickle(random, data, other)
        return spoil.dump_pickle(random, spoil.spoil_values(random, jax, jax_values))

    return {
        "checkpoint": Format(path, [whole], _spoil_tensors(state), lambda path: _go_on(path, options)),
        "color_calibration": Format(
            folder / "color_calibration.pt",
            [colors],
            _spoil_tensors(torch.load(io.BytesIO(colors), weights_only=True)),
            ColorCalibration.load,
        ),
        "lpips_weights": Format(
            folder / "tiny.pt",
            [saved_bytes(lambda path: save_tensors(path, weights), folder / "tiny.pt")],
            _spoil_tensors(dict(weights)),
            lambda path: load_lpips("tiny"),
        ),
        "lpips_pickle": Format(
            folder / "vgg16.ckpt",
            [pickle.dumps(jax, protocol=p) for p in (3, 4)],
            spoil_jax,
            lambda path: read_arrays(path.read_bytes()),
        ),
    }
