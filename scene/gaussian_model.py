"""The avatar: raw parameters of the Gaussians, bound to a head mesh or free in space."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import Parameter

from innovations.expression_appearance import FILE_NAME as APPEARANCE_NAME
from innovations.expression_appearance import ExpressionCode, check_appearance, read_appearance, write_appearance
from ops import rig
from ops.sh import C0, degree_of
from ops.types import Gaussians
from scene.flame.model import Flame, FlameParameters
from scene.ply import read_ply, write_ply
from utils.errors import UserError
from utils.files import remove

START_OPACITY = 0.1
PLY_NAME = "point_cloud.ply"
FLAME_NAME = "flame_param.npz"


class GaussianModel:
    """Gaussians before their activations, and the head that moves them.

    Raw values are what is optimised and saved: log standard deviations, logit
    opacities, quaternions of any length. A bound Gaussian's position, rotation
    and scale are in the frame of its triangle (`ops/rig.py`); an unbound
    one's are in world space. Calling the model with a timestep gives activated
    world-space Gaussians.
    """

    def __init__(
        self,
        fields: dict[str, Tensor],  # the raw parameters, see `scene/ply.py`
        *,
        sh_degree: int,
        binding: Tensor | None = None,  # [N] int64, the triangle of each Gaussian
        flame: Flame | None = None,
        flame_parameters: FlameParameters | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.sh_degree = sh_degree
        self.active_sh_degree = 0
        self.flame = flame
        self.flame_parameters = flame_parameters
        self.binding = None if binding is None else binding.to(self.device)
        self.xyz = self._parameter(fields["xyz"])  # [N, 3]
        # One tensor, as the rasterizers want it: joining two in every iteration, and
        # splitting their gradient, costs more than the projection of the Gaussians.
        self.features = self._parameter(  # [N, (sh_degree+1)^2, 3]
            torch.cat([fields["features_dc"], fields["features_rest"]], dim=1)
        )
        self.opacity = self._parameter(fields["opacity"])  # [N, 1] logit
        self.scaling = self._parameter(fields["scaling"])  # [N, 3] log
        self.rotation = self._parameter(fields["rotation"])  # [N, 4] wxyz
        self.modes: Parameter | None = None  # [N, K, 3] of the base color, where that follows the expression
        self.expression: ExpressionCode | None = None  # what mixes them; there when they are

    def _parameter(self, value: Tensor) -> Parameter:
        return Parameter(value.detach().to(self.device, torch.float32).contiguous())

    # ---- construction -------------------------------------------------------

    @classmethod
    def from_mesh(
        cls,
        flame: Flame,
        flame_parameters: FlameParameters,
        *,
        sh_degree: int,
        generator: torch.Generator,
        device: torch.device | str,
    ) -> GaussianModel:
        """One Gaussian per triangle: centred, filling it, almost transparent, near black."""
        count = flame.faces.shape[0]
        # Near black, but not equal: identical colours would get identical gradients.
        colors = torch.rand(count, 3, generator=generator) / 255.0
        fields = _start(torch.zeros(count, 3), torch.zeros(count, 3), colors, sh_degree)
        return cls(
            fields,
            sh_degree=sh_degree,
            binding=torch.arange(count),
            flame=flame,
            flame_parameters=flame_parameters,
            device=device,
        )

    @classmethod
    def from_points(
        cls, points: np.ndarray, colors: np.ndarray, *, sh_degree: int, device: torch.device | str
    ) -> GaussianModel:
        """One isotropic Gaussian per point, as large as the distance to its neighbours.

        Args:
            points: [P, 3] metres, world space.
            colors: [P, 3] in 0..1.

        Raises:
            UserError: fewer than two points.
        """
        if len(points) < 2:
            raise UserError(f"a static scene needs at least 2 start points, got {len(points)}")
        neighbors = min(4, len(points))  # the nearest is the point itself
        distances = cKDTree(points).query(points, k=neighbors)[0][:, 1:]
        # Coinciding points would give scale zero and with it an infinite logarithm.
        scale = np.sqrt(np.maximum((distances**2).mean(axis=1), 1e-7))
        log_scales = torch.from_numpy(np.log(scale)).float()[:, None].repeat(1, 3)
        fields = _start(torch.from_numpy(points).float(), log_scales, torch.from_numpy(colors).float(), sh_degree)
        return cls(fields, sh_degree=sh_degree, device=device)

    # ---- files --------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Writes `point_cloud.ply`, and beside it `flame_param.npz` for a bound avatar, and how its colors change.

        The PLY is what makes the folder a saved avatar, so that of an earlier run goes first and the new one
        comes last: whoever finds it has the files that belong to it.
        """
        remove(folder / PLY_NAME)
        fields: dict[str, Tensor | None] = {name: value.cpu() for name, value in self.fields().items()}
        fields["binding"] = None if self.binding is None else self.binding.cpu()
        if self.flame_parameters is not None:
            self.flame_parameters.save(folder / FLAME_NAME)
        if self.modes is not None and self.expression is not None:
            write_appearance(folder / APPEARANCE_NAME, self.modes, self.expression)
        else:
            remove(folder / APPEARANCE_NAME)
        write_ply(folder / PLY_NAME, fields)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        flame: Flame | None = None,
        flame_parameters: FlameParameters | None = None,
        device: torch.device | str = "cpu",
    ) -> GaussianModel:
        """Reads an avatar written by `save` or by another program of this family.

        Raises:
            UserError: a broken file, or triangles that the head model does not have.
        """
        path = folder / PLY_NAME
        columns = read_ply(path)
        binding = columns.pop("binding")
        fields = {name: column for name, column in columns.items() if column is not None}
        if binding is not None:
            if flame is None:
                raise UserError(f"{path} is bound to a head mesh (binding_0), but no head model was given")
            faces = flame.faces.shape[0]
            if len(binding) and int(binding.max()) >= faces:
                raise UserError(
                    f"{path}: binding_0 names triangle {int(binding.max())}, but the head model has "
                    f"{faces}; give the head model of this avatar with --head_model"
                )
        degree = degree_of(fields["features_rest"].shape[1] + 1)
        model = cls(
            fields,
            sh_degree=degree,
            binding=binding,
            flame=flame if binding is not None else None,
            flame_parameters=flame_parameters if binding is not None else None,
            device=device,
        )
        model.active_sh_degree = degree
        if model.flame_parameters is not None and (folder / APPEARANCE_NAME).is_file():
            width = model.flame_parameters.values.shape[1]
            modes, expression = read_appearance(folder / APPEARANCE_NAME, len(model), width)
            model.modes, model.expression = model._parameter(modes), expression.to(model.device)
        return model

    # ---- use ----------------------------------------------------------------

    def parameters(self) -> dict[str, Parameter]:
        """The trainable rows by name, in the order of the optimizer's groups."""
        return {
            "xyz": self.xyz,
            "features": self.features,
            "opacity": self.opacity,
            "scaling": self.scaling,
            "rotation": self.rotation,
            **({} if self.modes is None else {"modes": self.modes}),
        }

    def fields(self) -> dict[str, Tensor]:
        """The raw values by their names in the PLY; views of the parameters, without gradient."""
        fields = {name: value.detach() for name, value in self.parameters().items() if name != "modes"}
        features = fields.pop("features")
        return {**fields, "features_dc": features[:, :1], "features_rest": features[:, 1:]}

    def replace_rows(self, parameters: dict[str, Parameter], binding: Tensor | None) -> None:
        """Puts the result of `training.row_surgery.gather_rows` in place."""
        for name, parameter in parameters.items():
            setattr(self, name, parameter)
        self.binding = binding

    def spread(self, binding: Tensor, weights: Tensor, vertices: Tensor) -> None:
        """Puts copies of each triangle's Gaussian elsewhere on it, instead of the one there is.

        Args:
            binding: [N] int64, their triangles; at the start the Gaussians are in the order of the triangles.
            weights: [N, 3] of the triangle's corners: where each is to be.
            vertices: [V, 3] of the mesh in some pose, meters.
        """
        assert self.flame is not None  # it is bound
        frames = rig.triangle_frames(vertices, self.flame.faces)
        offset = torch.einsum("nc,ncd->nd", weights, vertices[self.flame.faces[binding]]) - frames.origin[binding]
        xyz = torch.einsum("nij,ni->nj", frames.rotation[binding], offset) / frames.scale[binding, None]
        moved = {name: value[binding] for name, value in self.parameters().items()} | {"xyz": xyz}
        self.replace_rows({name: Parameter(value.detach().contiguous()) for name, value in moved.items()}, binding)

    def __len__(self) -> int:
        return self.xyz.shape[0]

    def __call__(self, timestep: int) -> tuple[Gaussians, Tensor | None]:
        """Activated Gaussians in world space, and the mesh vertices [V, 3] they ride on (None when unbound).

        `timestep` is a row of the FLAME parameters; unbound scenes ignore it.
        """
        if self.binding is None or self.flame is None or self.flame_parameters is None:
            quats = torch.nn.functional.normalize(self.rotation, dim=1)
            opacities = self.opacity.sigmoid().squeeze(1)
            return Gaussians(self.xyz, quats, self.scaling.exp(), opacities, self.features), None
        vertices = self.flame.vertices(self.flame_parameters, timestep)
        return self._ride(self.flame, vertices, self.flame_parameters.values[timestep])

    def posed(self, row: Tensor) -> tuple[Gaussians, Tensor | None]:
        """The same in a pose of its own: [D] laid out as a row of the FLAME parameters; without dynamic offsets."""
        if self.flame is None or self.flame_parameters is None:
            return self(0)
        parameters = self.flame_parameters
        return self._ride(self.flame, self.flame.from_row(row, parameters.shape, parameters.static_offset), row)

    def _ride(self, flame: Flame, vertices: Tensor, row: Tensor) -> tuple[Gaussians, Tensor]:
        assert self.binding is not None  # what has a head is bound to it
        means, quats, scales, opacities = rig.bind(
            vertices, flame.faces, self.xyz, self.rotation, self.scaling, self.opacity, self.binding
        )
        return Gaussians(means, quats, scales, opacities, self._colors(row)), vertices

    def _colors(self, row: Tensor) -> Tensor:
        """[N, K, 3] the coefficients of the colors in the pose of a row [D] of FLAME parameters."""
        if self.expression is None or self.modes is None:
            return self.features
        return self.expression.shaded(self.features, self.modes, row)

    def triangle_scales(self, vertices: Tensor) -> Tensor:
        """[F] metres per triangle unit, for a bound avatar whose mesh has the `vertices` [V, 3]; differentiable."""
        assert self.flame is not None  # it is bound
        return rig.triangle_frames(vertices, self.flame.faces).scale

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer and the (constant) head model."""
        follows: dict[str, Any] = {}
        if self.modes is not None and self.expression is not None:
            follows = {"modes": self.modes.detach(), "expression": self.expression._asdict()}
        return {
            **follows,
            "fields": self.fields(),
            "binding": self.binding,
            "sh_degree": self.sh_degree,
            "active_sh_degree": self.active_sh_degree,
        }

    @classmethod
    def from_state(
        cls,
        state: dict[str, Any],
        *,
        flame: Flame | None,
        flame_parameters: FlameParameters | None,
        device: torch.device | str,
    ) -> GaussianModel:
        """The inverse of `state_dict`.

        Raises:
            Exception: a state of other names, types or shapes; the kernels trust them.
        """
        fields, binding, degree = state["fields"], state["binding"], state["sh_degree"]
        if type(degree) is not int or not 0 <= degree <= 3 or state["active_sh_degree"] not in range(degree + 1):
            raise ValueError("the degree of the view-dependent colour is not 0 to 3")
        count = len(fields["xyz"])
        for name, shape in {
            "xyz": (3,),
            "features_dc": (1, 3),
            "features_rest": ((degree + 1) ** 2 - 1, 3),
            "opacity": (1,),
            "scaling": (3,),
            "rotation": (4,),
        }.items():
            if fields[name].shape != (count, *shape) or not fields[name].is_floating_point():
                raise ValueError(f"{name} has shape {tuple(fields[name].shape)}, expected {(count, *shape)}")
        if (binding is None) != (flame is None):
            raise ValueError("only one of the saved and this run is bound to a head mesh")
        if flame is not None:
            numbers = binding.dtype == torch.int64 and binding.shape == (count,)
            if not numbers or count and not 0 <= int(binding.min()) <= int(binding.max()) < flame.faces.shape[0]:
                raise ValueError("it names triangles that the head model does not have")
        model = cls(
            state["fields"],
            sh_degree=state["sh_degree"],
            binding=state["binding"],
            flame=flame,
            flame_parameters=flame_parameters,
            device=device,
        )
        model.active_sh_degree = state["active_sh_degree"]
        if state.get("modes") is not None and flame_parameters is not None:
            code = ExpressionCode(**state["expression"])
            check_appearance(state["modes"], code, count, flame_parameters.values.shape[1])
            model.modes, model.expression = model._parameter(state["modes"]), code.to(model.device)
        return model


def _start(xyz: Tensor, log_scales: Tensor, colors: Tensor, sh_degree: int) -> dict[str, Tensor]:
    """Raw parameters of Gaussians with identity rotation and the common start opacity."""
    count = xyz.shape[0]
    rotation = torch.zeros(count, 4)
    rotation[:, 0] = 1.0
    return {
        "xyz": xyz,
        "features_dc": ((colors - 0.5) / C0)[:, None, :],
        "features_rest": torch.zeros(count, (sh_degree + 1) ** 2 - 1, 3),
        "opacity": torch.full((count, 1), math.log(START_OPACITY / (1 - START_OPACITY))),
        "scaling": log_scales,
        "rotation": rotation,
    }
