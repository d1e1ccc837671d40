// Projection of 3-D Gaussians to the image (EWA splatting, Zwicker et al. 2001, as
// used by Kerbl et al. 2023), their colors from spherical harmonics, and the
// gradients of both. Sixteen Gaussians at a time.
#include <limits>

#include "splat.h"
#include "splat_sh.h"

namespace splat {
namespace {

using namespace lanes;

// rows of the camera rotation times a vector, and its transpose times a vector
ALWAYS_INLINE Vec3 rotate(const float* m, const Vec3& v) {
    return {v.x * m[0] + v.y * m[1] + v.z * m[2], v.x * m[3] + v.y * m[4] + v.z * m[5],
            v.x * m[6] + v.y * m[7] + v.z * m[8]};
}
ALWAYS_INLINE Vec3 rotate_back(const float* m, const Vec3& v) {
    return {v.x * m[0] + v.y * m[3] + v.z * m[6], v.x * m[1] + v.y * m[4] + v.z * m[7],
            v.x * m[2] + v.y * m[5] + v.z * m[8]};
}

struct Inputs {  // of sixteen Gaussians
    Vec3 mean, scale;
    Lanes quat[4], opacity;
};

// Lanes past `live` hold NaN, which the visibility test culls.
Inputs gather(const float* means, const float* quats, const float* scales, const float* opacities, int live) {
    float field[11][kLanes];
    for (auto& row : field)
        for (float& value : row) value = std::numeric_limits<float>::quiet_NaN();
    for (int i = 0; i < live; ++i) {
        for (int k = 0; k < 3; ++k) field[k][i] = means[3 * i + k];
        for (int k = 0; k < 3; ++k) field[3 + k][i] = scales[3 * i + k];
        for (int k = 0; k < 4; ++k) field[6 + k][i] = quats[4 * i + k];
        field[10][i] = opacities[i];
    }
    Inputs in;
    in.mean = {load(field[0]), load(field[1]), load(field[2])};
    in.scale = {load(field[3]), load(field[4]), load(field[5])};
    for (int k = 0; k < 4; ++k) in.quat[k] = load(field[6 + k]);
    in.opacity = load(field[10]);
    return in;
}

struct Projection {
    Lanes norm;           // of the quaternion
    Lanes q[4];           // unit
    Vec3 scale;           // with the modifier
    Vec3 axis[3];         // camera-space axes of the Gaussian, unit
    Vec3 camera;          // mean in camera space
    Lanes inverse_z;
    Lanes ux, uy;         // x/z, y/z inside the guard band
    Mask free_x, free_y;  // where the guard does not hold
    Vec3 u, v;            // rows of J R S: the 2-D covariance is [u.u u.v; u.v v.v] + low-pass
    Lanes cov_xx, cov_xy, cov_yy;
    Lanes p, slope, r;    // see Splat, without the log2(e)/2
};

ALWAYS_INLINE Projection project_block(const Inputs& in, const View& view) {
    Projection o;
    const Lanes* q = in.quat;
    o.norm = sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
    const Lanes inverse_norm = 1.0f / o.norm;
    for (int k = 0; k < 4; ++k) o.q[k] = in.quat[k] * inverse_norm;
    const Lanes &w = o.q[0], &x = o.q[1], &y = o.q[2], &z = o.q[3];
    o.axis[0] = rotate(view.rotation, {1.0f - 2.0f * (y * y + z * z), 2.0f * (x * y + w * z), 2.0f * (x * z - w * y)});
    o.axis[1] = rotate(view.rotation, {2.0f * (x * y - w * z), 1.0f - 2.0f * (x * x + z * z), 2.0f * (y * z + w * x)});
    o.axis[2] = rotate(view.rotation, {2.0f * (x * z + w * y), 2.0f * (y * z - w * x), 1.0f - 2.0f * (x * x + y * y)});
    o.scale = in.scale * broadcast(view.scale_modifier);

    const Vec3 turned = rotate(view.rotation, in.mean);
    o.camera = {turned.x + view.translation[0], turned.y + view.translation[1], turned.z + view.translation[2]};
    o.inverse_z = 1.0f / o.camera.z;

    // The guard band keeps the linearisation sane far outside the image. It is
    // measured from the image's edges, so an off-center principal point shifts it.
    const float guard_x = kGuard * 0.5f * view.width / view.fx, guard_y = kGuard * 0.5f * view.height / view.fy;
    const float left = -(view.cx / view.fx + guard_x), right = (view.width - view.cx) / view.fx + guard_x;
    const float top = -(view.cy / view.fy + guard_y), bottom = (view.height - view.cy) / view.fy + guard_y;
    const Lanes tan_x = o.camera.x * o.inverse_z, tan_y = o.camera.y * o.inverse_z;
    o.ux = min(max(tan_x, left), right);
    o.uy = min(max(tan_y, top), bottom);
    o.free_x = o.ux == tan_x;
    o.free_y = o.uy == tan_y;

    const Lanes ax = view.fx * o.inverse_z, ay = view.fy * o.inverse_z;
    o.u = {ax * o.scale.x * (o.axis[0].x - o.ux * o.axis[0].z), ax * o.scale.y * (o.axis[1].x - o.ux * o.axis[1].z),
           ax * o.scale.z * (o.axis[2].x - o.ux * o.axis[2].z)};
    o.v = {ay * o.scale.x * (o.axis[0].y - o.uy * o.axis[0].z), ay * o.scale.y * (o.axis[1].y - o.uy * o.axis[1].z),
           ay * o.scale.z * (o.axis[2].y - o.uy * o.axis[2].z)};
    const Lanes uu = dot(o.u, o.u), vv = dot(o.v, o.v);
    o.cov_xx = uu + kLowPass;
    o.cov_xy = dot(o.u, o.v);
    o.cov_yy = vv + kLowPass;
    // |u x v|^2 instead of uu vv - uv^2: nothing cancels when u and v are nearly parallel.
    const Vec3 normal = cross(o.u, o.v);
    const Lanes det = dot(normal, normal) + kLowPass * (uu + vv) + kLowPass * kLowPass;
    o.r = 1.0f / o.cov_yy;
    o.p = o.cov_yy / det;
    o.slope = o.cov_xy * o.r;
    return o;
}

struct Direction {
    Vec3 unit;  // from the camera to the mean
    Lanes inverse_length;
};
ALWAYS_INLINE Direction direction(const Vec3& mean, const View& view) {
    const Vec3 d = {mean.x - view.center[0], mean.y - view.center[1], mean.z - view.center[2]};
    const Lanes inverse = 1.0f / sqrt(dot(d, d));
    return {d * inverse, inverse};
}

// How many tiles the box around a Gaussian meets; at least as many as `bin` will find.
uint32_t tiles_in_box(float x, float y, float extent_x, float extent_y, const View& view) {
    const TileRange columns = tile_range(x - extent_x, x + extent_x, view.width);
    const TileRange rows = tile_range(y - extent_y, y + extent_y, view.height);
    // Far outside a float's whole numbers rounding may leave an empty range.
    if (columns.first > columns.last || rows.first > rows.last) return 0;
    return uint32_t(columns.last - columns.first + 1) * uint32_t(rows.last - rows.first + 1);
}

int bases(int degree) { return (degree + 1) * (degree + 1); }

}  // namespace

void project(Workspace& w, const float* means, const float* quats, const float* scales, const float* opacities,
             const float* sh, int32_t* radii) {
    const View& view = w.view;
    const int64_t count = w.count, blocks = (count + kLanes - 1) / kLanes;
    Splat* splats = w.splats.reserve(count);
    uint32_t* boxed = w.boxed.reserve(count);
    float* depth = w.depth.reserve(count);
    const int active = bases(view.sh_degree);

#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = block * kLanes;
        const int live = int(count - first < kLanes ? count - first : kLanes);
        const Inputs in = gather(means + 3 * first, quats + 4 * first, scales + 3 * first, opacities + first, live);
        const Projection o = project_block(in, view);

        const Lanes x = view.fx * (o.camera.x * o.inverse_z) + view.cx;
        const Lanes y = view.fy * (o.camera.y * o.inverse_z) + view.cy;
        // ellipse alpha = 1/255: (d^T cov^-1 d) = reach
        float log_opacity[kLanes];
        store(log_opacity, in.opacity);
        for (float& value : log_opacity) value = smaller(std::log2(value), 100.0f);  // `exp2` must not overflow
        const Lanes reach = (load(log_opacity) - kLog2MinAlpha) * (2.0f / kLog2E);
        const Lanes extent_x = sqrt(reach * o.cov_xx), extent_y = sqrt(reach * o.cov_yy);
        const Lanes y_of_extent_x = o.cov_xy * sqrt(reach / o.cov_xx);
        const Lanes half_gap = 0.5f * (o.cov_xx - o.cov_yy);
        const Lanes largest = 0.5f * (o.cov_xx + o.cov_yy) + sqrt(half_gap * half_gap + o.cov_xy * o.cov_xy);
        const Lanes radius = 3.0f * sqrt(largest);

        // 0 * value is 0 for every finite value and NaN otherwise: one test for all of them.
        Lanes finite = 0.0f * (in.mean.x + in.mean.y + in.mean.z) + 0.0f * in.opacity + 0.0f * radius + 0.0f * o.slope;
        finite = finite + 0.0f * (in.scale.x + in.scale.y + in.scale.z) + 0.0f * (x + y) + 0.0f * (extent_x + extent_y);
        finite = finite + 0.0f * o.camera.z + 0.0f * y_of_extent_x;
        const Mask seen = (finite == 0.0f) & (o.norm >= kMinLength) & (o.norm <= kMaxLength) &
                          (o.camera.z > kNear) & (in.opacity >= kMinAlpha) & (o.p > 0.0f) & (o.r > 0.0f);
        uint32_t visible = bits(seen);

        float fx[kLanes], fy[kLanes], fex[kLanes], fey[kLanes];
        store(fx, x), store(fy, y), store(fex, extent_x), store(fey, extent_y);
        for (int i = 0; i < live; ++i) {
            splats[first + i].slots = boxed[first + i] = 0;
            radii[first + i] = 0;
            if (!(visible >> i & 1)) continue;
            // first and last pixel center inside the box, clipped to the image
            const float x0 = larger(std::ceil(fx[i] - fex[i] - 0.5f), 0.0f);
            const float x1 = smaller(std::floor(fx[i] + fex[i] - 0.5f), float(view.width - 1));
            const float y0 = larger(std::ceil(fy[i] - fey[i] - 0.5f), 0.0f);
            const float y1 = smaller(std::floor(fy[i] + fey[i] - 0.5f), float(view.height - 1));
            if (x0 <= x1 && y0 <= y1)
                boxed[first + i] = tiles_in_box(fx[i], fy[i], fex[i], fey[i], view);
            else
                visible &= ~(1u << i);
        }
        if (!visible) continue;

        Lanes basis_lanes[kMaxBases];
        float basis[kMaxBases][kLanes];
        sh_basis(direction(in.mean, view).unit, view.sh_degree, basis_lanes);
        for (int k = 0; k < active; ++k) store(basis[k], basis_lanes[k]);

        float slope[kLanes], p[kLanes], r[kLanes], ydx[kLanes], z[kLanes], rad[kLanes];
        store(slope, o.slope), store(p, o.p * (0.5f * kLog2E)), store(r, o.r * (0.5f * kLog2E));
        store(ydx, y_of_extent_x), store(z, o.camera.z), store(rad, min(radius, 1e9f));
        for (int i = 0; i < live; ++i) {
            if (!(visible >> i & 1)) continue;
            Splat& s = splats[first + i];
            const float* coefficients = sh + (first + i) * view.sh_bases * 3;
            float color[3] = {0.5f, 0.5f, 0.5f};
            for (int k = 0; k < active; ++k)
                for (int c = 0; c < 3; ++c) color[c] += basis[k][i] * coefficients[3 * k + c];
            if (0.0f * color[0] + 0.0f * color[1] + 0.0f * color[2] != 0.0f) {  // NaN: not finite, so culled
                boxed[first + i] = 0;
                continue;
            }
            for (int c = 0; c < 3; ++c) s.color[c] = color[c] < 0.0f ? 0.0f : color[c];
            s.x = fx[i], s.y = fy[i], s.slope = slope[i], s.p = p[i], s.r = r[i];
            s.log2_opacity = log_opacity[i];
            s.extent_x = fex[i], s.extent_y = fey[i], s.y_of_extent_x = ydx[i];
            depth[first + i] = z[i];
            radii[first + i] = int32_t(std::ceil(rad[i]));
        }
    }
}

void project_backward(const Workspace& w, const float* means, const float* quats, const float* scales,
                      const float* opacities, const float* sh, float* grad_means, float* grad_quats,
                      float* grad_scales, float* grad_opacities, float* grad_sh, float* grad_means2d, bool absolute) {
    const int collected = absolute ? kAllPartials : kPartials;
    const View& view = w.view;
    const int64_t count = w.count, blocks = (count + kLanes - 1) / kLanes;
    const int active = bases(view.sh_degree);
    const float half_width = 0.5f * view.width, half_height = 0.5f * view.height;

#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = block * kLanes;
        const int live = int(count - first < kLanes ? count - first : kLanes);

        // The rows of `partials` lie in order of depth, all over the memory: fetch the next block's ahead.
        for (int64_t i = first + kLanes; i < first + 2 * kLanes && i < count; ++i) {
            const Splat& s = w.splats[i];
            for (uint32_t j = 0; j < s.slots && j < 4; ++j)
                __builtin_prefetch(w.partials.data() + size_t(s.first_slot + j) * kPartialStride);
        }

        // The partials of each Gaussian, summed over its tiles in the order they were listed.
        float sums[kAllPartials][kLanes] = {};
        float lit[3][kLanes] = {};  // 1 where the color was not clamped at 0
        uint32_t visible = 0;
        for (int i = 0; i < live; ++i) {
            const Splat& s = w.splats[first + i];
            if (!s.slots) continue;
            visible |= 1u << i;
            const float* rows = w.partials.data() + size_t(s.first_slot) * kPartialStride;
            for (uint32_t j = 0; j < s.slots; ++j)
                for (int k = 0; k < collected; ++k) sums[k][i] += rows[j * kPartialStride + k];
            for (int c = 0; c < 3; ++c) lit[c][i] = s.color[c] > 0.0f ? 1.0f : 0.0f;
        }
        if (!visible) {
            std::memset(grad_means + 3 * first, 0, sizeof(float) * 3 * live);
            std::memset(grad_quats + 4 * first, 0, sizeof(float) * 4 * live);
            std::memset(grad_scales + 3 * first, 0, sizeof(float) * 3 * live);
            std::memset(grad_opacities + first, 0, sizeof(float) * live);
            std::memset(grad_sh + 3 * view.sh_bases * first, 0, sizeof(float) * 3 * view.sh_bases * live);
            std::memset(grad_means2d + 2 * first, 0, sizeof(float) * 2 * live);
            continue;
        }

        const Inputs in = gather(means + 3 * first, quats + 4 * first, scales + 3 * first, opacities + first, live);
        const Projection o = project_block(in, view);

        // colors and the direction they depend on
        const Direction toward = direction(in.mean, view);
        Lanes basis_lanes[kMaxBases];
        float basis[kMaxBases][kLanes], grad_basis[kMaxBases][kLanes] = {};
        sh_basis(toward.unit, view.sh_degree, basis_lanes);
        for (int k = 0; k < active; ++k) store(basis[k], basis_lanes[k]);
        for (int i = 0; i < live; ++i) {
            const int64_t row = (first + i) * view.sh_bases * 3;
            float* out = grad_sh + row;
            if (!(visible >> i & 1)) {
                std::memset(out, 0, sizeof(float) * 3 * view.sh_bases);
                continue;
            }
            const float color[3] = {sums[0][i] * lit[0][i], sums[1][i] * lit[1][i], sums[2][i] * lit[2][i]};
            for (int k = 0; k < active; ++k) {
                const float* coefficients = sh + row + 3 * k;
                for (int c = 0; c < 3; ++c) out[3 * k + c] = basis[k][i] * color[c];
                grad_basis[k][i] = coefficients[0] * color[0] + coefficients[1] * color[1] + coefficients[2] * color[2];
            }
            std::memset(out + 3 * active, 0, sizeof(float) * 3 * (view.sh_bases - active));
        }
        Lanes grad_basis_lanes[kMaxBases];
        for (int k = 0; k < active; ++k) grad_basis_lanes[k] = load(grad_basis[k]);
        const Vec3 g_unit = sh_basis_backward(toward.unit, view.sh_degree, grad_basis_lanes);
        Vec3 g_mean = (g_unit - toward.unit * dot(g_unit, toward.unit)) * toward.inverse_length;

        // the 2-D Gaussian: with E the exponent -(p w^2 + r dy^2)/2, the sums are
        // those of dL/dE times 1, w, dy, w^2, w dy, dy^2
        const Lanes total = load(sums[3]), sum_w = load(sums[4]), sum_y = load(sums[5]);
        const Lanes sum_ww = load(sums[6]), sum_wy = load(sums[7]), sum_yy = load(sums[8]);
        const Lanes g_x = o.p * sum_w;
        const Lanes g_y = o.r * sum_y - o.slope * g_x;
        const Lanes g_p = -0.5f * sum_ww, g_slope = o.p * sum_wy, g_r = -0.5f * sum_yy;

        // p, slope, r -> u, v. What remains of u without its part along v, u - slope v, is all that the width
        // depends on; as v x (u x v) it keeps its digits for needles, whose u and v are long and nearly parallel.
        const Vec3 across = (cross(o.v, cross(o.u, o.v)) + o.u * broadcast(kLowPass)) * o.r;
        const Lanes width = 2.0f * o.p * o.p * g_p, lean = o.r * g_slope;
        const Vec3 g_u = o.v * lean - across * width;
        const Vec3 g_v = across * (o.slope * width + lean) - o.v * (o.slope * lean + 2.0f * o.r * o.r * g_r);

        // u, v -> the Gaussian's camera-space axes, and the Jacobian's own dependence on the mean
        const Lanes ax = view.fx * o.inverse_z, ay = view.fy * o.inverse_z;
        const Lanes gu[3] = {g_u.x, g_u.y, g_u.z}, gv[3] = {g_v.x, g_v.y, g_v.z};
        const Lanes size[3] = {o.scale.x, o.scale.y, o.scale.z};
        Lanes g_ux = broadcast(0.0f), g_uy = broadcast(0.0f), g_scale[3];
        Vec3 g_axis[3];  // world space
        for (int k = 0; k < 3; ++k) {
            const Lanes a = ax * gu[k], b = ay * gv[k];
            const Vec3 g = {a, b, -(o.ux * a + o.uy * b)};  // of the scaled axis
            g_scale[k] = dot(g, o.axis[k]) * view.scale_modifier;
            g_ux += -(a * size[k] * o.axis[k].z);
            g_uy += -(b * size[k] * o.axis[k].z);
            g_axis[k] = rotate_back(view.rotation, g * size[k]);
        }
        const Lanes g_tan_x = view.fx * g_x + select(o.free_x, g_ux, 0.0f);
        const Lanes g_tan_y = view.fy * g_y + select(o.free_y, g_uy, 0.0f);
        // by x/z and y/z: products with x, y or z themselves overflow for a Gaussian very far away
        const Lanes g_log_z = dot(g_u, o.u) + dot(g_v, o.v) + (o.camera.x * o.inverse_z) * g_tan_x +
                              (o.camera.y * o.inverse_z) * g_tan_y;
        const Vec3 g_camera = Vec3{g_tan_x, g_tan_y, -g_log_z} * o.inverse_z;
        g_mean = g_mean + rotate_back(view.rotation, g_camera);

        // axes -> quaternion, then only the part that does not change its length
        const Lanes &qw = o.q[0], &qx = o.q[1], &qy = o.q[2], &qz = o.q[3];
        const Vec3 &c0 = g_axis[0], &c1 = g_axis[1], &c2 = g_axis[2];
        const Lanes turn_x = c1.z - c2.y, turn_y = c2.x - c0.z, turn_z = c0.y - c1.x;
        const Lanes sum_01 = c1.x + c0.y, sum_02 = c2.x + c0.z, sum_12 = c2.y + c1.z;
        Lanes g_q[4];
        g_q[0] = 2.0f * (qx * turn_x + qy * turn_y + qz * turn_z);
        g_q[1] = 2.0f * (qw * turn_x + qy * sum_01 + qz * sum_02 - 2.0f * qx * (c1.y + c2.z));
        g_q[2] = 2.0f * (qw * turn_y + qx * sum_01 + qz * sum_12 - 2.0f * qy * (c0.x + c2.z));
        g_q[3] = 2.0f * (qw * turn_z + qx * sum_02 + qy * sum_12 - 2.0f * qz * (c0.x + c1.y));
        const Lanes along = g_q[0] * qw + g_q[1] * qx + g_q[2] * qy + g_q[3] * qz;
        const Lanes inverse_norm = 1.0f / o.norm;

        float result[13][kLanes];
        store(result[0], g_mean.x), store(result[1], g_mean.y), store(result[2], g_mean.z);
        for (int k = 0; k < 4; ++k) store(result[3 + k], (g_q[k] - o.q[k] * along) * inverse_norm);
        for (int k = 0; k < 3; ++k) store(result[7 + k], g_scale[k]);
        store(result[10], total / in.opacity);
        // The absolute ones were summed in the tiles' units, in which p and r carry log2(e)/2.
        const Lanes along_x = absolute ? load(sums[9]) * kTwoLn2 : g_x;
        const Lanes along_y = absolute ? load(sums[10]) * kTwoLn2 : g_y;
        store(result[11], along_x * half_width), store(result[12], along_y * half_height);
        for (int i = 0; i < live; ++i) {
            const bool on = visible >> i & 1;  // a culled lane may hold NaN
            const int64_t n = first + i;
            for (int k = 0; k < 3; ++k) grad_means[3 * n + k] = on ? result[k][i] : 0.0f;
            for (int k = 0; k < 4; ++k) grad_quats[4 * n + k] = on ? result[3 + k][i] : 0.0f;
            for (int k = 0; k < 3; ++k) grad_scales[3 * n + k] = on ? result[7 + k][i] : 0.0f;
            grad_opacities[n] = on ? result[10][i] : 0.0f;
            for (int k = 0; k < 2; ++k) grad_means2d[2 * n + k] = on ? result[11 + k][i] : 0.0f;
        }
    }
}

}  // namespace splat
