"""Triton: the camera, and a Gaussian on its image plane (`flatten`), for forward and backward.

The formulas are those of ops/csrc/splat_project.cpp, and the numbers come from ops/csrc/constants.h.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ops.kernels import CONSTANTS
from ops.triton_kernels.vectors import added, cross, dot, rotate, rotate_back, scaled

NEAR = tl.constexpr(CONSTANTS["kNear"])
LOW_PASS = tl.constexpr(CONSTANTS["kLowPass"])
GUARD = tl.constexpr(CONSTANTS["kGuard"])


@triton.jit
def load_camera(world):
    """From world-to-camera [4, 4]: the rotation's rows, the translation, and the optical center in world space."""
    right = tl.load(world), tl.load(world + 1), tl.load(world + 2)
    down = tl.load(world + 4), tl.load(world + 5), tl.load(world + 6)
    ahead = tl.load(world + 8), tl.load(world + 9), tl.load(world + 10)
    shift = tl.load(world + 3), tl.load(world + 7), tl.load(world + 11)
    back = rotate_back((right, down, ahead), shift)
    return (right, down, ahead), shift, (-back[0], -back[1], -back[2])


@triton.jit
def towards(mean, center):
    """The unit vector from the optical center to the mean, and the inverse of their distance."""
    offset = mean[0] - center[0], mean[1] - center[1], mean[2] - center[2]
    inverse = 1.0 / tl.sqrt(dot(offset, offset))
    return scaled(offset, inverse), inverse


@triton.jit
def flatten(mean, quat, scale, rotation, shift, fx, fy, cx, cy, width, height):
    """Gaussians on the image plane.

    Args:
        mean, quat, scale: world space; the scale with its modifier.
        rotation, shift: world to camera.

    Returns:
        norm: of the quaternion.
        unit: the quaternion, of length 1.
        axes: three unit vectors in camera space.
        camera: the mean in camera space, and the inverse of its z.
        slopes: x/z and y/z inside the guard band; whether it leaves them as they are.
        u, v: rows of J R S: the 2-D covariance is [u.u u.v; u.v v.v] + low-pass.
        covariance: xx, xy, yy, pixel^2.
        form: p, slope, r of the exponent -(p w^2 + r dy^2) / 2, w = dx - slope dy.
    """
    w, x, y, z = quat
    norm = tl.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w / norm, x / norm, y / norm, z / norm
    a0 = rotate(rotation, (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y)))
    a1 = rotate(rotation, (2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x)))
    a2 = rotate(rotation, (2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y)))

    camera = added(rotate(rotation, mean), shift)
    inverse_z = 1.0 / camera[2]
    tan_x, tan_y = camera[0] * inverse_z, camera[1] * inverse_z
    # Measured from the image's edges: an off-center principal point shifts the guard band.
    guard_x, guard_y = GUARD * 0.5 * width / fx, GUARD * 0.5 * height / fy
    ux = tl.minimum(tl.maximum(tan_x, -(cx / fx + guard_x)), (width - cx) / fx + guard_x)
    uy = tl.minimum(tl.maximum(tan_y, -(cy / fy + guard_y)), (height - cy) / fy + guard_y)

    along_x, along_y = fx * inverse_z, fy * inverse_z
    u = (
        along_x * scale[0] * (a0[0] - ux * a0[2]),
        along_x * scale[1] * (a1[0] - ux * a1[2]),
        along_x * scale[2] * (a2[0] - ux * a2[2]),
    )
    v = (
        along_y * scale[0] * (a0[1] - uy * a0[2]),
        along_y * scale[1] * (a1[1] - uy * a1[2]),
        along_y * scale[2] * (a2[1] - uy * a2[2]),
    )
    uu, uv, vv = dot(u, u), dot(u, v), dot(v, v)
    # |u x v|^2 instead of uu vv - uv^2: nothing cancels when u and v are nearly parallel.
    normal = cross(u, v)
    determinant = dot(normal, normal) + LOW_PASS * (uu + vv) + LOW_PASS * LOW_PASS
    xx, yy = uu + LOW_PASS, vv + LOW_PASS
    r = 1.0 / yy
    return (
        norm,
        (w, x, y, z),
        (a0, a1, a2),
        (camera, inverse_z),
        (ux, uy, ux == tan_x, uy == tan_y),
        u,
        v,
        (xx, uv, yy),
        (yy / determinant, uv * r, r),
    )
