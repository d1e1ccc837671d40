"""A saved avatar, opened: the one place that knows which files make one, and how they are put to use.

from scene import load_avatar

avatar = load_avatar("OUT")  # the newest iteration saved there
pose = avatar.pose(0, jaw_pose=(0.2, 0.0, 0.0))  # of timestep 0, but with the mouth open
image = avatar.render(camera, pose)  # ops.types.Camera -> [3, H, W], 0..1
avatar.save("FOLDER")
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arguments import (
    ExportOptions,
    InnovationOptions,
    ModelOptions,
    Options,
    RenderOptions,
    ViewOptions,
    read_cfg_args,
    write_cfg_args,
)
from gaussian_renderer import Rasterizer, choose_device_and_rasterizer, render
from innovations.color_calibration import FILE_NAME as COLOR_NAME
from innovations.color_calibration import ColorCalibration, NoColorCalibration
from innovations.expression_appearance import FILE_NAME as APPEARANCE_NAME
from ops.types import Camera, Gaussians, RenderOut
from scene.dataset import Dataset
from scene.flame import Flame, FlameParameters, HeadModel, find_head_model, load_head_model
from scene.gaussian_model import FLAME_NAME, PLY_NAME, GaussianModel
from scene.ply import is_bound
from utils.errors import UserError
from utils.files import remove

NEWEST = -1


@dataclass
class Avatar:
    """What evaluation, viewers and exporters work on; `load_avatar` opens one."""

    model: GaussianModel
    head: HeadModel | None  # None: a static scene
    color: ColorCalibration | NoColorCalibration
    options: Options  # those it was trained with
    iteration: int
    path: Path  # of the PLY
    background: Tensor  # [3] what it was trained over
    backend: str  # name of the rasterizer
    rasterize: Rasterizer
    head_file: Path | None = None  # of the head model
    note: str = ""  # what a user may not expect, in a sentence

    def neutral(self) -> Tensor:
        """[D] the pose of a face at rest, its head where it is at the first timestep; UserError for a static scene."""
        motion = self.motion()
        row = torch.zeros_like(motion.values[0])
        for name in ("rotation", "translation"):
            row[motion.columns[name]] = motion.values[0, motion.columns[name]].detach()
        return row

    def pose(self, timestep: int, **changes: Sequence[float] | Tensor) -> Tensor:
        """[D] the FLAME parameters of a timestep as the capture numbers it, with some of them replaced.

        Args:
            changes: `expr` (coefficients; those left out stay), `rotation`, `neck_pose`, `jaw_pose` (3), `eyes_pose`
                (6; left, right), all axis-angle in radians, and `translation` (3, meters).

        Raises:
            UserError: a static scene, an unknown timestep or parameter, or too many values.
        """
        motion = self.motion()
        row = motion.values[self.row(timestep)].detach().clone()
        for name, change in changes.items():
            if name not in motion.columns:
                raise UserError(f"there is no FLAME parameter '{name}', only {', '.join(motion.columns)}")
            values = torch.as_tensor(change, dtype=row.dtype, device=row.device).flatten()
            part = row[motion.columns[name]]
            if len(values) > len(part) or (name != "expr" and len(values) != len(part)):
                raise UserError(f"'{name}' has {len(part)} values, got {len(values)}")
            part[: len(values)] = values
        return row

    def gaussians(self, pose: Tensor | None = None) -> tuple[Gaussians, Tensor | None]:
        """World-space Gaussians and the mesh [V, 3] in a pose [D] (None: the first timestep, or a static scene)."""
        return self.model(0) if pose is None else self.model.posed(pose)

    @torch.no_grad()
    def render(self, camera: Camera, pose: Tensor | None = None, background: Tensor | None = None) -> Tensor:
        """[3, H, W] 0..1: the picture in calibrated colors; `pose` as in `gaussians`, `background` [3] 0..1."""
        out = self.look(self.gaussians(pose)[0], camera)
        image = out.image if background is None else self.over(out, background)
        return image.clamp(0.0, 1.0)

    @torch.no_grad()
    def look(self, gaussians: Gaussians, camera: Camera) -> RenderOut:
        """The picture in calibrated colors, over the background that the avatar was trained with, not clamped."""
        out = self.draw(gaussians, camera)
        return out._replace(image=self.color(out.image, camera.camera_id, out.alpha))

    def over(self, out: RenderOut, background: Tensor) -> Tensor:
        """[3, H, W] a picture of `look` over another background [3], which is not calibrated."""
        return out.image + (1.0 - out.alpha) * (background.to(self.background) - self.background)[:, None, None]

    def cut_out(self, out: RenderOut) -> Tensor:
        """[4, H, W] 0..1: a picture of `look` as color, not multiplied by alpha, and alpha; black where nothing is."""
        own = out.image - (1.0 - out.alpha) * self.background[:, None, None]
        color = torch.where(out.alpha > 0, own / out.alpha.clamp(min=1e-6), torch.zeros_like(own))
        return torch.cat([color, out.alpha]).clamp(0.0, 1.0)

    def draw(self, gaussians: Gaussians, camera: Camera, **changes: Any) -> RenderOut:
        """What the rasterizer makes of it, before the color calibration; `changes` are arguments of `render`."""
        settings = {
            "background": self.background,
            "sh_degree": self.model.active_sh_degree,
            "convert_SHs_python": self.options.pipeline.convert_SHs_python,
            "rasterize": self.rasterize,
            **changes,
        }
        return render(gaussians, camera, **settings)

    @property
    def calibrated(self) -> bool:
        """Whether its pictures go through a trained color calibration."""
        return isinstance(self.color, ColorCalibration)

    @property
    def folder(self) -> Path:
        """What its training left; where it was handed on without that, the folder of the PLY."""
        saved = self.path.parent
        return saved.parents[1] if saved.parent.name == "point_cloud" else saved

    def motion(self) -> FlameParameters:
        """Its FLAME parameters over time; UserError for a static scene."""
        if self.model.flame_parameters is None:
            raise UserError(f"{self.path} is not bound to a head mesh, so it has no pose")
        return self.model.flame_parameters

    def row(self, timestep: int) -> int:
        """The row of its motion that a timestep of the capture is, 0 for a static scene; UserError if there is none."""
        if self.model.flame_parameters is None:
            return 0
        known = self.model.flame_parameters.timesteps
        if timestep not in known:
            raise UserError(
                f"no timestep {timestep}: there are the timesteps {min(known)} to {max(known)}, {len(known)} in all"
            )
        return known.index(timestep)

    def rows(self, timesteps: Sequence[int]) -> list[int]:
        """The row of its motion that each timestep of a capture is.

        Raises:
            UserError: the avatar knows another set of timesteps.
        """
        motion = self.model.flame_parameters
        if motion is None:
            return [0] * max(1, len(timesteps))  # a static scene
        row = {timestep: index for index, timestep in enumerate(motion.timesteps)}
        if all(timestep in row for timestep in timesteps):
            return [row[timestep] for timestep in timesteps]
        # Files of other trainers carry no numbers: then all rows in order, if they are as many.
        if len(motion) == len(timesteps) and motion.timesteps == list(range(len(motion))):
            return list(range(len(motion)))
        absent = next(timestep for timestep in timesteps if timestep not in row)
        raise UserError(
            f"{self.path.parent / FLAME_NAME} has no timestep {absent}, which the capture has: "
            "it was trained on another capture"
        )

    def follow(self, capture: Dataset, source: str | Path) -> None:
        """Replaces its motion by that of another rigged capture, which was read from `source`.

        The person stays: identity and offset are the avatar's. The capture's per-timestep offsets belong to the other
        face and are left out.
        """
        arrays = {name: value for name, value in (capture.flame or {}).items() if name != "dynamic_offset"}
        self._move_by(arrays, capture.timesteps, source)

    def play(self, rows: np.ndarray) -> None:
        """Replaces its motion by poses [T, D], laid out as the rows of its own."""
        self._move_by({name: rows[:, part] for name, part in self.motion().columns.items()}, None, "the motion")

    def _move_by(self, moving: dict[str, np.ndarray], timesteps: Sequence[int] | None, source: str | Path) -> None:
        """Replaces all that varies over time; the person stays."""
        motion = self.motion()
        person = {"shape": motion.shape.cpu().numpy(), "static_offset": motion.static_offset.cpu().numpy()}
        assert self.head is not None  # what has a motion has a head
        self.model.flame_parameters = FlameParameters(
            moving | person, timesteps, self.head, device=self.model.device, trainable=False, source=source
        )

    def save(self, folder: str | Path) -> None:
        """Writes it into another output folder, from which `load_avatar` and `render.py` open it."""
        write_cfg_args(folder, self.options)
        save_avatar(saved_folder(Path(folder), self.iteration), self.model, self.color)


def load_avatar(
    folder: str | Path,
    *,
    iteration: int = NEWEST,
    source: str | Path | None = None,
    head_model: str | Path | None = None,
    calibrated: bool = True,
    device: str = "auto",
    rasterizer: str = "auto",
    threads: int = 0,
) -> Avatar:
    """Opens the avatar in the output folder of a training, ours or of another program, with its own motion.

    The folder may also be one that holds the PLY itself, and `cfg_args` may be missing: whether it rides on a head, the
    degree of its colors and its motion are told by the PLY and the `flame_param.npz` beside it.

    Args:
        iteration: one of those saved.
        source: folder of the capture, where a head model may lie; default: as when it was trained.
        head_model: the head model's file; default: as when it was trained, or what `find_head_model` finds.
        calibrated: whether its pictures go through the color calibration that it was trained with, if any.
        device, rasterizer, threads: as on the command line.

    Raises:
        UserError: no such avatar, a broken file, or no head model.
    """
    folder = Path(folder)
    iteration, saved = find_saved(folder, iteration)
    options, note = options_of(folder, saved)
    chosen_device, backend, rasterize = choose_device_and_rasterizer(device, rasterizer, threads)
    background = torch.tensor([1.0 if options.model.white_background else 0.0] * 3, device=chosen_device)
    head = head_file = None
    if options.model.bind_to_mesh:
        source = source or options.model.source_path
        head_file = find_head_model(head_model or options.model.head_model, source, avatar=folder)
        head = load_head_model(head_file)
        if not (saved / FLAME_NAME).is_file():
            raise UserError(
                f"{saved / FLAME_NAME} does not exist: {PLY_NAME} beside it rides on a head mesh (binding_0), which "
                "moves by that file of the same avatar; put it there"
            )
        motion = FlameParameters.load(saved / FLAME_NAME, head, device=chosen_device, trainable=False)
        flame = Flame(head, device=chosen_device)
        model = GaussianModel.load(saved, flame=flame, flame_parameters=motion, device=chosen_device)
    else:
        model = GaussianModel.load(saved, device=chosen_device)
    color: ColorCalibration | NoColorCalibration = NoColorCalibration()
    if calibrated and options.innovations.use_color_calibration:
        color = ColorCalibration.load(saved / COLOR_NAME, background=background, device=chosen_device)
    return Avatar(
        model, head, color, options, iteration, saved / PLY_NAME, background, backend, rasterize, head_file, note
    )


def open_avatar(options: RenderOptions | ViewOptions | ExportOptions, iteration: int | None = None) -> Avatar:
    """`load_avatar` as a command line says, or another iteration than it says."""
    return load_avatar(
        options.model_path,
        iteration=options.iteration if iteration is None else iteration,
        source=options.source_path,
        head_model=options.head_model,
        calibrated=not options.no_color_calibration,
        device=options.device,
        rasterizer=options.rasterizer,
        threads=options.threads,
    )


def saved_folder(output: Path, iteration: int) -> Path:
    """Where the avatar of an iteration is saved."""
    return output / "point_cloud" / f"iteration_{iteration}"


def save_avatar(folder: Path, model: GaussianModel, color: ColorCalibration | NoColorCalibration) -> None:
    """Writes the avatar and, beside it, what its colors go through, in the order that `GaussianModel.save` explains."""
    remove(folder / PLY_NAME)
    color.save(folder / COLOR_NAME)
    model.save(folder)


def find_saved(folder: Path, wanted: int = NEWEST) -> tuple[int, Path]:
    """The saved iteration that was asked for, or the newest, and where it is; UserError when there is no such one.

    What lies in the folder itself, as avatars are handed around, counts as iteration 0.
    """
    found = {
        int(saved.name.removeprefix("iteration_")): saved
        for saved in (folder / "point_cloud").glob("iteration_*")
        if re.fullmatch(r"iteration_[0-9]+", saved.name) and (saved / PLY_NAME).is_file()
    }
    if not found and (folder / PLY_NAME).is_file():
        found = {0: folder}
    if not found:
        raise UserError(
            f"{folder} holds no avatar: neither point_cloud/iteration_<N>/{PLY_NAME} (nothing was saved there yet) "
            f"nor {PLY_NAME}"
        )
    number = max(found) if wanted == NEWEST else wanted
    if number not in found:
        there = ", ".join(map(str, sorted(found)))
        raise UserError(f"--iteration {wanted} was not saved in {folder}; there are {there}")
    return number, found[number]


def options_of(folder: Path, saved: Path) -> tuple[Options, str]:
    """The options that the avatar in `saved` was trained with, and a note where they were guessed or a file is gone.

    They stand in the `cfg_args` of its output folder. Without one: as the heads of this family are trained, and as the
    files tell. Whether it is bound to a head mesh is always told by the PLY.

    Raises:
        UserError: a broken file.
    """
    bound = is_bound(saved / PLY_NAME)
    if os.path.lexists(folder / "cfg_args"):
        options, note = read_cfg_args(folder), ""
        if options.innovations.use_expression_appearance and not (saved / APPEARANCE_NAME).is_file():
            note = f"{saved / APPEARANCE_NAME} does not exist: the colors are those of the average expression"
        return replace(options, model=replace(options.model, bind_to_mesh=bound)), note
    model = ModelOptions(model_path=str(folder), bind_to_mesh=bound, white_background=bound, eval=True)
    innovations = InnovationOptions(use_color_calibration=(saved / COLOR_NAME).is_file())
    background = "white" if bound else "black"
    note = f"{folder} has no cfg_args: it is taken to be trained over a {background} background"
    return Options(model=model, innovations=innovations), note
