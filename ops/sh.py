"""Real spherical harmonics up to degree 3, in the order and signs of 3DGS.

The basis functions are the usual real ones (e.g. Sloan, "Stupid Spherical
Harmonics Tricks", 2008) with the Condon-Shortley phase, ordered by degree and
then by order -l..l.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ops import kernels

MAX_DEGREE = int(kernels.CONSTANTS["kMaxDegree"])
FACTORS = {name: value for name, value in kernels.CONSTANTS.items() if name.startswith("kHarmonic")}
C0 = FACTORS["kHarmonic0"]  # the constant basis function, 1 / (2 sqrt(pi))


def bases(degree: int) -> int:
    """Number of coefficients per channel up to `degree`."""
    return (degree + 1) ** 2


def degree_of(count: int) -> int:
    """The inverse of `bases`."""
    return math.isqrt(count) - 1


def basis(directions: Tensor, degree: int) -> Tensor:
    """Values of the basis functions.

    Args:
        directions: [..., 3] unit vectors.
        degree: 0..3.

    Returns:
        [..., (degree + 1)^2].

    Raises:
        ValueError: the degree is not supported.
    """
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"spherical harmonics of degree {degree} are not supported (0..{MAX_DEGREE})")
    x, y, z = directions.unbind(-1)
    values = [torch.full_like(x, C0)]
    if degree >= 1:
        c = FACTORS["kHarmonic1"]
        values += [-c * y, c * z, -c * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        c, of_zz = FACTORS["kHarmonic2Xy"], FACTORS["kHarmonic2Zz"]
        values += [c * x * y, -c * y * z, of_zz * (2 * zz - xx - yy), -c * x * z, c / 2 * (xx - yy)]
    if degree >= 3:
        xxx, xyz, xzz, zzz, xxz = (FACTORS[f"kHarmonic3{name}"] for name in ("Xxx", "Xyz", "Xzz", "Zzz", "Xxz"))
        values += [
            -xxx * y * (3 * xx - yy),
            xyz * x * y * z,
            -xzz * y * (4 * zz - xx - yy),
            zzz * z * (2 * zz - 3 * xx - 3 * yy),
            -xzz * x * (4 * zz - xx - yy),
            xxz * z * (xx - yy),
            -xxx * x * (xx - 3 * yy),
        ]
    return torch.stack(values, dim=-1)


def colors(sh: Tensor, means: Tensor, center: Tensor, degree: int) -> Tensor:
    """The colors of Gaussians seen from a point: max(SH + 0.5, 0).

    Args:
        sh: [N, K, 3] coefficients; those past (degree + 1)^2 are not used.
        means: [N, 3] metres, world space.
        center: [3] optical center, metres, world space.
        degree: active degree, 0..3.

    Returns:
        [N, 3], at least 0.

    Raises:
        ValueError: there are fewer coefficients than the degree needs.
    """
    if sh.shape[1] < bases(degree):
        raise ValueError(f"degree {degree} needs {bases(degree)} coefficients, sh has {sh.shape[1]}")
    directions = torch.nn.functional.normalize(means - center, dim=-1)
    values = (basis(directions, degree)[:, :, None] * sh[:, : bases(degree)]).sum(1)
    return (values + 0.5).clamp_min(0.0)


def from_colors(colors: Tensor) -> Tensor:
    """Degree-0 coefficients [..., 3] whose color is `colors` [..., 3]."""
    return (colors - 0.5) / C0
