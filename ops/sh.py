"""Real spherical harmonics up to degree 3, in the order and signs of 3DGS.

The basis functions are the usual real ones (e.g. Sloan, "Stupid Spherical
Harmonics Tricks", 2008) with the Condon-Shortley phase, ordered by degree and
then by order -l..l.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ops import kernels

MAX_DEGREE = int(kernels.CONSTANTS["kMaxDegree"])
C0 = 0.28209479177387814  # the constant basis function, 1 / (2 sqrt(pi))


def bases(degree: int) -> int:
    """Number of coefficients per channel up to `degree`."""
    return (degree + 1) ** 2


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
        c = 0.4886025119029199
        values += [-c * y, c * z, -c * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        c = 1.0925484305920792
        values += [c * x * y, -c * y * z, 0.31539156525252005 * (2 * zz - xx - yy), -c * x * z, c / 2 * (xx - yy)]
    if degree >= 3:
        values += [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ]
    return torch.stack(values, dim=-1)


def colors(sh: Tensor, means: Tensor, center: Tensor, degree: int) -> Tensor:
    """The colours of Gaussians seen from a point: max(SH + 0.5, 0).

    Args:
        sh: [N, K, 3] coefficients; those past (degree + 1)^2 are not used.
        means: [N, 3] metres, world space.
        center: [3] optical centre, metres, world space.
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
    """Degree-0 coefficients [..., 3] whose colour is `colors` [..., 3]."""
    return (colors - 0.5) / C0
