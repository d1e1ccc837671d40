"""An avatar without a training: the procedural head, a grey Gaussian on each of its triangles, far off in its world."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from toy_head import write_pickle

from arguments import parse_train, write_cfg_args
from ops.types import Camera
from scene.cameras import write_cameras_json
from scene.flame import Flame, FlameParameters, load_head_model
from scene.flame.parameters import MOTION
from scene.gaussian_model import GaussianModel
from synthetic.blendshapes import blendshape_mapping
from synthetic.model import make_head_model
from synthetic.modes import IDENTITY_NAMES
from utils.blendshapes import MAPPING_NAME

TIMESTEPS = [5, 6, 8]
ROTATION, TRANSLATION = (0.2, 0.5, -0.1), (0.3, -0.2, 2.0)  # of the first timestep
IDENTITY, EXPRESSIONS = len(IDENTITY_NAMES), 20


def write_avatar(folder: Path) -> Path:
    """Output folder of a training whose capture is gone; the head model and its mapping are in it."""
    folder.mkdir(parents=True)
    model, masks = make_head_model()
    # A tenth of the columns: the others are zero.
    modes = model["shapedirs"]
    model["shapedirs"] = np.concatenate([modes[..., :IDENTITY], modes[..., 300 : 300 + EXPRESSIONS]], axis=-1)
    write_pickle(folder / "head_model.pkl", {**model, "n_shape": IDENTITY})
    write_pickle(folder / "masks.pkl", masks)
    np.savez(folder / MAPPING_NAME, **blendshape_mapping())
    head = load_head_model(folder / "head_model.pkl")
    motion = FlameParameters(toy_motion(), TIMESTEPS, head)
    avatar = GaussianModel.from_mesh(
        Flame(head), motion, sh_degree=0, generator=torch.Generator().manual_seed(0), device="cpu"
    )
    with torch.no_grad():
        avatar.opacity.fill_(6.0)
        avatar.scaling.fill_(math.log(0.3))
        avatar.features.fill_(0.0)
    avatar.save(folder / "point_cloud" / "iteration_7")
    source = folder.parent / "gone"
    write_cfg_args(folder, parse_train(["-s", str(source), "-m", str(folder), "--eval", "--bind_to_mesh", "-w"]))
    cameras = []
    for number in (4, 8):
        matrix = torch.eye(4)
        matrix[:3, 3] = torch.tensor([-0.3, 0.2 * number, 3.0])
        cameras.append(Camera(matrix, 300.0, 310.0, 52.0, 41.0, 96, 80, 0, f"cam_{number:02d}", f"00005_{number:02d}"))
    write_cameras_json(folder / "cameras.json", cameras)
    return folder


def toy_motion(count: int = len(TIMESTEPS), seed: int = 0) -> dict[str, np.ndarray]:
    """FLAME arrays of a motion whose first row is the head at `ROTATION` and `TRANSLATION`."""
    rng = np.random.default_rng(seed)
    arrays = {name: 0.1 * rng.normal(size=(count, width)).astype(np.float32) for name, width in MOTION.items()}
    arrays["rotation"][0], arrays["translation"] = ROTATION, arrays["translation"] + TRANSLATION
    arrays["translation"][0] = TRANSLATION
    arrays["expr"] = rng.random((count, 17)).astype(np.float32)
    arrays["shape"] = np.zeros(IDENTITY, np.float32)
    return arrays


def write_keys(path: Path, *entries: dict, **more: object) -> Path:
    """A file of key frames."""
    content = {"format": "head avatar key frames", "version": 1, "key_frames": list(entries), **more}
    path.write_text(json.dumps(content))
    return path
