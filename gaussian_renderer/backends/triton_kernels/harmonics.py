"""Triton: the basis of the real spherical harmonics, and its gradient, as in ops/csrc/splat_sh.h."""

from __future__ import annotations

import triton
import triton.language as tl

from ops.sh import FACTORS

C0 = tl.constexpr(FACTORS["kHarmonic0"])
C1 = tl.constexpr(FACTORS["kHarmonic1"])
XY = tl.constexpr(FACTORS["kHarmonic2Xy"])
ZZ = tl.constexpr(FACTORS["kHarmonic2Zz"])
XXX = tl.constexpr(FACTORS["kHarmonic3Xxx"])
XYZ = tl.constexpr(FACTORS["kHarmonic3Xyz"])
XZZ = tl.constexpr(FACTORS["kHarmonic3Xzz"])
ZZZ = tl.constexpr(FACTORS["kHarmonic3Zzz"])
XXZ = tl.constexpr(FACTORS["kHarmonic3Xxz"])


@triton.jit
def basis(direction, DEGREE: tl.constexpr):
    """The (DEGREE + 1)^2 values for a unit vector."""
    x, y, z = direction
    values = (x * 0.0 + C0,)
    if DEGREE >= 1:
        values = values + (-C1 * y, C1 * z, -C1 * x)
    if DEGREE >= 2:
        xx, yy, zz = x * x, y * y, z * z
        values = values + (XY * x * y, -XY * y * z, ZZ * (2.0 * zz - xx - yy), -XY * x * z, 0.5 * XY * (xx - yy))
        if DEGREE >= 3:
            values = values + (
                -XXX * y * (3.0 * xx - yy),
                XYZ * x * y * z,
                -XZZ * y * (4.0 * zz - xx - yy),
                ZZZ * z * (2.0 * zz - 3.0 * (xx + yy)),
                -XZZ * x * (4.0 * zz - xx - yy),
                XXZ * z * (xx - yy),
                -XXX * x * (xx - 3.0 * yy),
            )
    return values


@triton.jit
def basis_backward(direction, g, DEGREE: tl.constexpr):
    """The sum over k of g[k] times the gradient of value k with respect to the vector."""
    x, y, z = direction
    gx, gy, gz = x * 0.0, x * 0.0, x * 0.0
    if DEGREE >= 1:
        gx -= C1 * g[3]
        gy -= C1 * g[1]
        gz += C1 * g[2]
    if DEGREE >= 2:
        c4, c5, c6, c7, c8 = XY * g[4], -XY * g[5], 2.0 * ZZ * g[6], -XY * g[7], XY * g[8]
        gx += c4 * y - c6 * x + c7 * z + c8 * x
        gy += c4 * x + c5 * z - c6 * y - c8 * y
        gz += c5 * y + 2.0 * c6 * z + c7 * x
    if DEGREE >= 3:
        xx, yy, zz, xy, xz, yz = x * x, y * y, z * z, x * y, x * z, y * z
        c9, c10, c11, c12 = -XXX * g[9], XYZ * g[10], -XZZ * g[11], ZZZ * g[12]
        c13, c14, c15 = -XZZ * g[13], XXZ * g[14], -XXX * g[15]
        gx += 6.0 * c9 * xy + c10 * yz - 2.0 * c11 * xy - 6.0 * c12 * xz
        gx += c13 * (4.0 * zz - 3.0 * xx - yy) + 2.0 * c14 * xz + 3.0 * c15 * (xx - yy)
        gy += 3.0 * c9 * (xx - yy) + c10 * xz + c11 * (4.0 * zz - xx - 3.0 * yy) - 6.0 * c12 * yz
        gy -= 2.0 * c13 * xy + 2.0 * c14 * yz + 6.0 * c15 * xy
        gz += c10 * xy + 8.0 * c11 * yz + c12 * (6.0 * zz - 3.0 * (xx + yy)) + 8.0 * c13 * xz + c14 * (xx - yy)
    return gx, gy, gz
