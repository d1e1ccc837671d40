"""How far the tracked mesh is from the true one, before and after fine-tuning.

    python benchmarks/tracking_error.py -s DATA -m OUT

For captures that were rendered, so that the truth is known: DATA/true_flame_param/
holds a file per timestep (`python -m synthetic` writes it too). Prints the
mean distance of the vertices over the training timesteps.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from scene.dataset import load_dataset
from scene.flame.head_model import find_head_model, load_head_model
from scene.flame.model import Flame, FlameParameters
from scene.gaussian_model import FLAME_NAME
from utils.errors import UserError, run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-s", "--source_path", type=Path, required=True)
    parser.add_argument("-m", "--model_path", type=Path, required=True)
    options = parser.parse_args()
    truth = options.source_path / "true_flame_param"
    if not truth.is_dir():
        raise UserError(f"{truth} is not there: only a rendered capture knows its true parameters")

    dataset = load_dataset(options.source_path, bind_to_mesh=True, eval_split=True, white_background=True)
    rows = sorted({view.camera.timestep for view in dataset.train})
    head = load_head_model(find_head_model(None, options.source_path))
    flame = Flame(head)

    def vertices(parameters: FlameParameters) -> torch.Tensor:
        with torch.no_grad():
            return torch.stack([flame.vertices(parameters, row) for row in rows])

    # Identity and static offset are those of the tracker for all three: fine-tuning leaves them alone.
    arrays = dict(dataset.flame)
    files = [np.load(truth / f"{timestep:05d}.npz") for timestep in dataset.timesteps]
    for name in ("expr", "rotation", "neck_pose", "jaw_pose", "eyes_pose", "translation"):
        arrays[name] = np.concatenate([file[name].reshape(1, -1) for file in files])
    true = vertices(FlameParameters(arrays, dataset.timesteps, head))
    saved = sorted((options.model_path / "point_cloud").glob("iteration_*"), key=lambda p: int(p.name.split("_")[1]))
    tuned = {folder.name: FlameParameters.load(folder / FLAME_NAME, head) for folder in saved}
    for name, parameters in {"tracked": FlameParameters(dataset.flame, dataset.timesteps, head), **tuned}.items():
        distance = (vertices(parameters) - true).norm(dim=-1).mean().item()
        print(f"{name:<18} {1e3 * distance:.2f} mm")


if __name__ == "__main__":
    run_script(main)
