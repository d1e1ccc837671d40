"""A static scene in COLMAP's text format, cut out of a rigged capture: one moment, seen by all its cameras.

    python -m benchmarks.static_scene -s CAPTURE --out DIR

`python -m benchmarks.static_race -s DIR` trains it, or any other.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from PIL import Image

from benchmarks.common import mesh_vertices, new_parser
from ops.rotations import matrix_to_quaternion
from scene.dataset import load_dataset
from scene.flame import FlameParameters, find_head_model, load_head_model
from scene.images.decode import decode
from utils.errors import run_script

GRAY = "128 128 128"  # of the start points: the mesh has no colors


def static_flags(iterations: int) -> list[str]:
    """The flags of a static scene in doc/data_formats.md; those that count iterations, for a short run of so many."""
    flags = {
        "position_lr_init": 0.00016,
        "position_lr_final": 0.0000016,
        "position_lr_max_steps": iterations,
        "scaling_lr": 0.005,
        "densify_from_iter": iterations // 10,
        "densify_until_iter": 2 * iterations // 3,
        "densification_interval": max(1, iterations // 30),
        "opacity_reset_interval": 5 * iterations,  # beyond the end: there is no time to recover
        "sh_increase_interval": max(1, iterations // 6),
    }
    return [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]


def static_scene(capture: Path, folder: Path) -> Path:
    """Writes `images/` (over white) and `sparse/0/` into `folder`, and returns it.

    It is the earliest of the moments that the most cameras saw; the points are the vertices of the tracked mesh.

    Raises:
        UserError: `capture` is not a rigged capture, or is damaged.
    """
    dataset = load_dataset(capture, bind_to_mesh=True, eval_split=False, white_background=True)
    assert dataset.flame is not None
    moment = Counter(view.camera.timestep for view in dataset.train).most_common(1)[0][0]
    views = [view for view in dataset.train if view.camera.timestep == moment]
    head = load_head_model(find_head_model(None, capture))
    vertices = mesh_vertices(head, FlameParameters(dataset.flame, dataset.timesteps, head), [moment])[0]

    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    (folder / "images").mkdir()
    cameras, poses = [], []
    for number, view in enumerate(views, 1):
        camera = view.camera
        job = {
            "image": str(view.image_path),
            "mask": str(view.mask_path) if view.mask_path else None,
            "source_size": view.source_size,
            "size": (camera.width, camera.height),
            "background": dataset.background,
        }
        name = f"{camera.name}.png"
        Image.fromarray(decode(job).transpose(1, 2, 0)).save(folder / "images" / name)
        numbers = (number, "PINHOLE", camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy)
        cameras.append(" ".join(map(str, numbers)))
        world = camera.world_to_camera.double()
        pose = (number, *matrix_to_quaternion(world[:3, :3]).tolist(), *world[:3, 3].tolist(), number, name)
        poses.append(" ".join(map(str, pose)) + "\n")  # the empty line: no 2-D points
    points = [f"{i} {x} {y} {z} {GRAY} 0" for i, (x, y, z) in enumerate(vertices.tolist(), 1)]
    for name, lines in (("cameras", cameras), ("images", poses), ("points3D", points)):
        (sparse / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def main() -> None:
    options = new_parser(__doc__, "source_path", "out").parse_args()
    static_scene(options.source_path, options.out)


if __name__ == "__main__":
    run_script(main)
