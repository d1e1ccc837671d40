"""How far the tracked mesh is from the true one, before and after fine-tuning: mean over vertices and timesteps.

    python -m benchmarks.tracking_error -m OUT

For avatars of captures that were rendered, so that the truth is known: the capture's `true_flame_param/`
holds a file per timestep (`python -m synthetic` writes it too). Over the training timesteps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.common import Table, mesh_vertices, new_parser, open_trained, publish
from scene.flame import FlameParameters
from utils.errors import UserError, run_script


def main() -> None:
    options = new_parser(__doc__, "model_path", "json").parse_args()
    avatar, dataset = open_trained(options.model_path)
    truth = Path(avatar.options.model.source_path) / "true_flame_param"
    if not truth.is_dir():
        raise UserError(f"{truth} is not there: only a rendered capture knows its true parameters")
    head, tracked, timesteps = avatar.head, dataset.flame, dataset.timesteps
    assert head is not None and tracked is not None
    # Identity and static offset are those of the tracker in all three: fine-tuning leaves them alone.
    true = dict(tracked)
    files = [np.load(truth / f"{timestep:05d}.npz") for timestep in timesteps]
    for name in ("expr", "rotation", "neck_pose", "jaw_pose", "eyes_pose", "translation"):
        true[name] = np.concatenate([file[name].reshape(1, -1) for file in files])
    rows = sorted({view.camera.timestep for view in dataset.train})
    known = FlameParameters(true, timesteps, head), FlameParameters(tracked, timesteps, head)
    expected, before, after = (mesh_vertices(head, parameters, rows) for parameters in (*known, avatar.motion()))
    error = [
        {"mesh": name, "error, mm": round(1e3 * (mesh - expected).norm(dim=-1).mean().item(), 2)}
        for name, mesh in (("tracked", before), ("fine-tuned", after))
    ]
    publish(options, [Table("Mean distance of the vertices from the true mesh:", error)])


if __name__ == "__main__":
    run_script(main)
