"""Appearance that follows the expression: the base color of every Gaussian moves along a few modes of its own.

    color(moment) = color + sum over k of code_k(moment) mode_k

Skin changes with what the face does: lines darken a smile, blood comes into the cheeks, an opening mouth moves shadows.
A Gaussian that only rides on its triangle keeps one color through all of it.

The code of a moment is what its row of FLAME parameters says of expression, neck, jaw and eyes, less their mean over
the training timesteps, along the directions in which these vary most (the principal axes), in standard deviations.
It stays within what training saw: nobody knows which colors belong to more. The modes begin at zero, and the code is no
way for a color to move the face: gradients reach colors and modes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ops.one_thread import on_one_thread
from ops.shade import shade
from utils.errors import UserError
from utils.npz import read_npz, write_npz

FILE_NAME = "expression_appearance.npz"  # beside the PLY
MOST_MODES = 64
MAX_FILE_BYTES = 1 << 30
# The parts of a row that change what skin looks like; the head as a whole turns with its lighting, or does not.
DRIVING = ("expr", "neck_pose", "jaw_pose", "eyes_pose")
FLAT = 1e-6  # of the strongest direction: weaker ones are rounding


class ExpressionCode(NamedTuple):
    """What of a row of FLAME parameters [D] drives the colors."""

    mean: Tensor  # [D] float64
    directions: Tensor  # [D, K] float64, from the units of the row to standard deviations; 0 for what does not drive
    low: Tensor  # [K] float64, the range in training
    high: Tensor  # [K] float64

    @classmethod
    def of(cls, rows: Tensor, columns: Mapping[str, slice], most: int) -> ExpressionCode:
        """The strongest directions of the training timesteps, at most `most`, and as many as these have.

        The same on every machine's number of threads; of the two signs, the one whose largest entry is positive.

        Args:
            rows: [T, D] FLAME parameters.
            columns: of each parameter in a row.

        Raises:
            UserError: the timesteps do not differ.
        """
        values = rows.detach().cpu().double()
        driving = torch.zeros(values.shape[1], dtype=torch.float64)
        for name in DRIVING:
            driving[columns[name]] = 1.0
        mean = values.mean(dim=0)

        def axes(centered: Tensor) -> Tensor:  # [T, D] -> [min(T, D), 1 + D]  strength and direction
            _, strengths, found = torch.linalg.svd(centered, full_matrices=False)
            return torch.cat([strengths[:, None], found], dim=1)

        found = on_one_thread(axes, (values - mean) * driving)[:most]
        found = found[found[:, 0] > FLAT * max(float(found[0, 0]), 1e-3)]
        if not len(found):
            raise UserError(
                "--use_expression_appearance learns from expressions that differ, and those of the training timesteps "
                "do not: add --no_expression_appearance"
            )
        strengths, axis = found[:, 0], found[:, 1:] * driving  # exactly 0 for what does not drive
        largest = axis.gather(1, axis.abs().argmax(dim=1, keepdim=True))
        directions = (axis * largest.sign() / strengths[:, None]).T * len(values) ** 0.5
        code = cls(mean, directions.contiguous(), torch.empty(0), torch.empty(0))
        codes = torch.stack([code.unclamped(row) for row in values])
        return code._replace(low=codes.amin(dim=0), high=codes.amax(dim=0)).to(rows.device)

    def to(self, device: torch.device | str) -> ExpressionCode:
        return ExpressionCode(*(value.to(device) for value in self))

    def unclamped(self, row: Tensor) -> Tensor:
        """[K] float64, of a row [D]. Not a matrix product, whose order of adding depends on the threads."""
        return ((row.detach().double() - self.mean)[:, None] * self.directions).sum(dim=0)

    def __call__(self, row: Tensor) -> Tensor:
        """[K] float32, the code of a row [D]; without gradient."""
        return torch.minimum(torch.maximum(self.unclamped(row), self.low), self.high).float()

    def shaded(
        self,
        features: Tensor,  # [N, B, 3]  coefficients of the spherical harmonics
        modes: Tensor,  # [N, K, 3]  of the first of them
        row: Tensor,  # [D]
    ) -> Tensor:  # [N, B, 3]
        """The coefficients at the moment of `row`; differentiable in `features` and `modes`."""
        return shade(features, modes, self(row))


def write_appearance(path: Path, modes: Tensor, code: ExpressionCode) -> None:
    """Writes the modes [N, K, 3] and their code to `expression_appearance.npz`."""
    arrays = {"modes": modes, **code._asdict()}
    write_npz(path, {name: value.detach().cpu().numpy() for name, value in arrays.items()})


def read_appearance(path: Path, gaussians: int, width: int) -> tuple[Tensor, ExpressionCode]:
    """A file of `write_appearance`, on the CPU: the modes [N, K, 3] float32, and their code.

    Args:
        gaussians: N of the avatar.
        width: D, the numbers in a row of its FLAME parameters.

    Raises:
        UserError: missing, damaged, or not this avatar's.
    """
    names = ("modes", *ExpressionCode._fields)
    arrays = read_npz(path, names, limit=MAX_FILE_BYTES)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise UserError(f"{path}: '{missing[0]}' is missing; without this file the avatar opens in its mean colors")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite
        modes = torch.from_numpy(arrays["modes"].astype(np.float32))
    code = ExpressionCode(*(torch.from_numpy(arrays[name].astype(np.float64)) for name in ExpressionCode._fields))
    try:
        check_appearance(modes, code, gaussians, width)
    except ValueError as error:
        raise UserError(
            f"{path} does not belong to the avatar beside it: {error}; without this file it opens in its mean colors"
        ) from error
    return modes, code


def check_appearance(modes: Tensor, code: ExpressionCode, gaussians: int, width: int) -> None:
    """What reads modes and code from a file asks; arguments as `read_appearance`'s.

    Raises:
        ValueError: they do not fit each other or the avatar.
    """
    count = modes.shape[1] if modes.ndim == 3 else 0
    if modes.shape != (gaussians, count, 3) or not 0 < count <= MOST_MODES or modes.dtype != torch.float32:
        raise ValueError(f"'modes' has shape {tuple(modes.shape)}, expected ({gaussians}, 1 to {MOST_MODES}, 3)")
    if not modes.isfinite().all():
        raise ValueError("'modes' holds values that are not finite")
    for name, shape in {"mean": (width,), "directions": (width, count), "low": (count,), "high": (count,)}.items():
        value = getattr(code, name)
        if value.shape != shape or value.dtype != torch.float64:
            raise ValueError(f"'{name}' has shape {tuple(value.shape)}, expected {shape}")
        if not value.isfinite().all():
            raise ValueError(f"'{name}' holds values that are not finite")
    if (code.low > code.high).any():
        raise ValueError("'low' is above 'high'")
