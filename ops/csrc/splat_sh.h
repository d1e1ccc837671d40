// Sixteen 3-vectors at once, and the spherical harmonics of sixteen directions.
#pragma once

#include "lanes.h"

namespace splat {

using lanes::broadcast;
using lanes::Lanes;

using Vec3 = native::Vector3<Lanes>;

// Real spherical harmonics in the 3DGS order and signs; basis[k] over sixteen directions.
ALWAYS_INLINE void sh_basis(const Vec3& d, int degree, Lanes* basis) {
    const Lanes &x = d.x, &y = d.y, &z = d.z;
    basis[0] = broadcast(kHarmonic0);
    if (degree < 1) return;
    basis[1] = -kHarmonic1 * y;
    basis[2] = kHarmonic1 * z;
    basis[3] = -kHarmonic1 * x;
    if (degree < 2) return;
    const Lanes xx = x * x, yy = y * y, zz = z * z;
    basis[4] = kHarmonic2Xy * (x * y);
    basis[5] = -kHarmonic2Xy * (y * z);
    basis[6] = kHarmonic2Zz * (2.0f * zz - xx - yy);
    basis[7] = -kHarmonic2Xy * (x * z);
    basis[8] = 0.5f * kHarmonic2Xy * (xx - yy);
    if (degree < 3) return;
    basis[9] = -kHarmonic3Xxx * y * (3.0f * xx - yy);
    basis[10] = kHarmonic3Xyz * (x * y) * z;
    basis[11] = -kHarmonic3Xzz * y * (4.0f * zz - xx - yy);
    basis[12] = kHarmonic3Zzz * z * (2.0f * zz - 3.0f * (xx + yy));
    basis[13] = -kHarmonic3Xzz * x * (4.0f * zz - xx - yy);
    basis[14] = kHarmonic3Xxz * z * (xx - yy);
    basis[15] = -kHarmonic3Xxx * x * (xx - 3.0f * yy);
}

// Sum over k of g[k] * gradient of basis[k] with respect to the direction.
ALWAYS_INLINE Vec3 sh_basis_backward(const Vec3& d, int degree, const Lanes* g) {
    Vec3 o = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
    if (degree < 1) return o;
    const Lanes &x = d.x, &y = d.y, &z = d.z;
    o.y += -kHarmonic1 * g[1];
    o.z += kHarmonic1 * g[2];
    o.x += -kHarmonic1 * g[3];
    if (degree < 2) return o;
    const Lanes c4 = kHarmonic2Xy * g[4], c5 = -kHarmonic2Xy * g[5];
    const Lanes c6 = 2.0f * kHarmonic2Zz * g[6], c7 = -kHarmonic2Xy * g[7];
    const Lanes c8 = kHarmonic2Xy * g[8];
    o.x += c4 * y - c6 * x + c7 * z + c8 * x;
    o.y += c4 * x + c5 * z - c6 * y - c8 * y;
    o.z += c5 * y + 2.0f * c6 * z + c7 * x;
    if (degree < 3) return o;
    const Lanes xx = x * x, yy = y * y, zz = z * z, xy = x * y, xz = x * z, yz = y * z;
    const Lanes c9 = -kHarmonic3Xxx * g[9], c10 = kHarmonic3Xyz * g[10];
    const Lanes c11 = -kHarmonic3Xzz * g[11], c12 = kHarmonic3Zzz * g[12];
    const Lanes c13 = -kHarmonic3Xzz * g[13], c14 = kHarmonic3Xxz * g[14];
    const Lanes c15 = -kHarmonic3Xxx * g[15];
    o.x += 6.0f * c9 * xy + c10 * yz - 2.0f * c11 * xy - 6.0f * c12 * xz + c13 * (4.0f * zz - 3.0f * xx - yy) +
           2.0f * c14 * xz + 3.0f * c15 * (xx - yy);
    o.y += 3.0f * c9 * (xx - yy) + c10 * xz + c11 * (4.0f * zz - xx - 3.0f * yy) - 6.0f * c12 * yz -
           2.0f * c13 * xy - 2.0f * c14 * yz - 6.0f * c15 * xy;
    o.z += c10 * xy + 8.0f * c11 * yz + c12 * (6.0f * zz - 3.0f * (xx + yy)) + 8.0f * c13 * xz + c14 * (xx - yy);
    return o;
}

}  // namespace splat
