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
    basis[0] = broadcast(0.28209479177387814f);
    if (degree < 1) return;
    basis[1] = -0.4886025119029199f * y;
    basis[2] = 0.4886025119029199f * z;
    basis[3] = -0.4886025119029199f * x;
    if (degree < 2) return;
    const Lanes xx = x * x, yy = y * y, zz = z * z;
    basis[4] = 1.0925484305920792f * (x * y);
    basis[5] = -1.0925484305920792f * (y * z);
    basis[6] = 0.31539156525252005f * (2.0f * zz - xx - yy);
    basis[7] = -1.0925484305920792f * (x * z);
    basis[8] = 0.5462742152960396f * (xx - yy);
    if (degree < 3) return;
    basis[9] = -0.5900435899266435f * y * (3.0f * xx - yy);
    basis[10] = 2.890611442640554f * (x * y) * z;
    basis[11] = -0.4570457994644658f * y * (4.0f * zz - xx - yy);
    basis[12] = 0.3731763325901154f * z * (2.0f * zz - 3.0f * (xx + yy));
    basis[13] = -0.4570457994644658f * x * (4.0f * zz - xx - yy);
    basis[14] = 1.445305721320277f * z * (xx - yy);
    basis[15] = -0.5900435899266435f * x * (xx - 3.0f * yy);
}

// Sum over k of g[k] * gradient of basis[k] with respect to the direction.
ALWAYS_INLINE Vec3 sh_basis_backward(const Vec3& d, int degree, const Lanes* g) {
    Vec3 o = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
    if (degree < 1) return o;
    const Lanes &x = d.x, &y = d.y, &z = d.z;
    o.y += -0.4886025119029199f * g[1];
    o.z += 0.4886025119029199f * g[2];
    o.x += -0.4886025119029199f * g[3];
    if (degree < 2) return o;
    const Lanes c4 = 1.0925484305920792f * g[4], c5 = -1.0925484305920792f * g[5];
    const Lanes c6 = 0.6307831305050401f * g[6], c7 = -1.0925484305920792f * g[7];
    const Lanes c8 = 1.0925484305920792f * g[8];
    o.x += c4 * y - c6 * x + c7 * z + c8 * x;
    o.y += c4 * x + c5 * z - c6 * y - c8 * y;
    o.z += c5 * y + 2.0f * c6 * z + c7 * x;
    if (degree < 3) return o;
    const Lanes xx = x * x, yy = y * y, zz = z * z, xy = x * y, xz = x * z, yz = y * z;
    const Lanes c9 = -0.5900435899266435f * g[9], c10 = 2.890611442640554f * g[10];
    const Lanes c11 = -0.4570457994644658f * g[11], c12 = 0.3731763325901154f * g[12];
    const Lanes c13 = -0.4570457994644658f * g[13], c14 = 1.445305721320277f * g[14];
    const Lanes c15 = -0.5900435899266435f * g[15];
    o.x += 6.0f * c9 * xy + c10 * yz - 2.0f * c11 * xy - 6.0f * c12 * xz + c13 * (4.0f * zz - 3.0f * xx - yy) +
           2.0f * c14 * xz + 3.0f * c15 * (xx - yy);
    o.y += 3.0f * c9 * (xx - yy) + c10 * xz + c11 * (4.0f * zz - xx - 3.0f * yy) - 6.0f * c12 * yz -
           2.0f * c13 * xy - 2.0f * c14 * yz - 6.0f * c15 * xy;
    o.z += c10 * xy + 8.0f * c11 * yz + c12 * (6.0f * zz - 3.0f * (xx + yy)) + 8.0f * c13 * xz + c14 * (xx - yy);
    return o;
}

}  // namespace splat
