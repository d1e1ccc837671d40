// FLAME for one timestep, forward and analytic backward.
//
// Vertices come in blocks of 16, one vector lane each, as planes x, y, z. The
// displacement basis (expression modes, then pose correctives) is stored per
// block as the list of modes that move any vertex of the block: expression
// modes of many heads are local, teeth and scalp have none, and an iteration
// is bound by the bytes of this basis that it must stream.
//
// The five joints and their chain are computed in double: they cost nothing,
// and every vertex inherits their error.
//
// Sums over vertices run in 16 fixed chunks that are added in order, so the
// gradient does not depend on the number of threads.
#include "common.h"

#include <cmath>
#include <vector>

namespace {

using namespace native;

constexpr int kJoints = 5;
constexpr int kPose = 9 * (kJoints - 1);
constexpr int kChunks = 16;
constexpr int kParents[kJoints] = {-1, 0, 1, 1, 1};

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

inline float sum(const Vec& v) {
    float total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total += v[lane];
    return total;
}

struct Mat {
    double m[3][3];
};

Mat multiply(const Mat& a, const Mat& b) {
    Mat c{};
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j)
            for (int k = 0; k < 3; ++k) c.m[i][j] += a.m[i][k] * b.m[k][j];
    return c;
}

// R = I + a K + b K^2 (Rodrigues), with a = sin t / t, b = (1 - cos t) / t^2,
// and their derivatives divided by t. The series takes over where the closed
// forms of the derivatives cancel.
struct Rodrigues {
    double a, b, da, db;
    explicit Rodrigues(const double r[3]) {
        const double square = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
        if (square < 1e-6) {
            a = 1 - square / 6;
            b = 0.5 - square / 24;
            da = -1.0 / 3 + square / 30;
            db = -1.0 / 12 + square / 180;
        } else {
            const double angle = std::sqrt(square), half = std::sin(0.5 * angle) / angle;
            a = std::sin(angle) / angle;
            b = 2 * half * half;
            da = (std::cos(angle) - a) / square;
            db = (a - 2 * b) / square;
        }
    }
};

Mat skew(const double r[3]) { return {{{0, -r[2], r[1]}, {r[2], 0, -r[0]}, {-r[1], r[0], 0}}}; }

Mat rotation(const double r[3]) {
    const Rodrigues f(r);
    const Mat k = skew(r), kk = multiply(k, k);
    Mat out;
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) out.m[i][j] = (i == j) + f.a * k.m[i][j] + f.b * kk.m[i][j];
    return out;
}

// Gradient of <g, R(r)> with respect to r.
void rotation_backward(const double r[3], const Mat& g, double out[3]) {
    const Rodrigues f(r);
    const Mat k = skew(r), kk = multiply(k, k);
    double along_a = 0, along_b = 0;
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) {
            along_a += g.m[i][j] * k.m[i][j];
            along_b += g.m[i][j] * kk.m[i][j];
        }
    for (int c = 0; c < 3; ++c) {
        double unit[3] = {0, 0, 0};
        unit[c] = 1;
        const Mat dk = skew(unit), left = multiply(dk, k), right = multiply(k, dk);
        double direct = 0;
        for (int i = 0; i < 3; ++i)
            for (int j = 0; j < 3; ++j)
                direct += g.m[i][j] * (f.a * dk.m[i][j] + f.b * (left.m[i][j] + right.m[i][j]));
        out[c] = direct + r[c] * (f.da * along_a + f.db * along_b);
    }
}

// The skeleton at one timestep.
struct Chain {
    double joint[kJoints][3];     // rest positions
    double axis_angle[kJoints][3];
    Mat local[kJoints];           // R_j
    Mat world[kJoints];           // W_j, product along the chain
    double position[kJoints][3];  // posed joint positions
    double offset[kJoints][3];    // vertex -> W_j v + offset_j
    float coefficients[kMaxExpr + kPose];  // expression, then the 36 entries of R_j - I
};

void pose(Chain& c, int64_t n_expr, const double* joints, const double* joint_modes, const float* row) {
    for (int j = 0; j < kJoints; ++j)
        for (int i = 0; i < 3; ++i) {
            double value = joints[3 * j + i];
            for (int64_t d = 0; d < n_expr; ++d) value += joint_modes[15 * d + 3 * j + i] * row[d];
            c.joint[j][i] = value;
            c.axis_angle[j][i] = row[n_expr + 3 * j + i];
        }
    for (int j = 0; j < kJoints; ++j) {
        c.local[j] = rotation(c.axis_angle[j]);
        const int p = kParents[j];
        c.world[j] = p < 0 ? c.local[j] : multiply(c.world[p], c.local[j]);
        for (int i = 0; i < 3; ++i) {
            double value = p < 0 ? c.joint[j][i] : c.position[p][i];
            for (int k = 0; k < 3 && p >= 0; ++k) value += c.world[p].m[i][k] * (c.joint[j][k] - c.joint[p][k]);
            c.position[j][i] = value;
        }
        for (int i = 0; i < 3; ++i) {
            c.offset[j][i] = c.position[j][i];
            for (int k = 0; k < 3; ++k) c.offset[j][i] -= c.world[j].m[i][k] * c.joint[j][k];
        }
    }
    for (int64_t d = 0; d < n_expr; ++d) c.coefficients[d] = row[d];
    for (int j = 1; j < kJoints; ++j)
        for (int e = 0; e < 9; ++e)
            c.coefficients[n_expr + 9 * (j - 1) + e] = float(c.local[j].m[e / 3][e % 3] - (e % 4 == 0));
}

}  // namespace

// The row is: expression (n_expr), rotation, neck, jaw, left eye, right eye
// (3 each, axis-angle), translation (3). n_expr <= kMaxExpr. joints is [5][3],
// joint_modes [n_expr][5][3]; base [blocks][3][16]; mode_start [blocks + 1] and
// mode_id index basis [entries][3][16]; weights [blocks][5][16]. Writes
// vertices [V][3] and, for the backward, the unposed vertices [blocks][3][16].
NATIVE_EXPORT void flame_forward(
    int64_t vertices, int64_t n_expr, const double* joints, const double* joint_modes, const float* base,
    const int32_t* mode_start, const int32_t* mode_id, const float* basis, const float* weights, const float* row,
    float* out, float* shaped_out) {
    Chain chain;
    pose(chain, n_expr, joints, joint_modes, row);
    const float* translation = row + n_expr + 3 * kJoints;
    float transform[kJoints][3][4];
    for (int j = 0; j < kJoints; ++j)
        for (int i = 0; i < 3; ++i) {
            for (int k = 0; k < 3; ++k) transform[j][i][k] = float(chain.world[j].m[i][k]);
            transform[j][i][3] = float(chain.offset[j][i]);
        }
    const int64_t blocks = (vertices + kLanes - 1) / kLanes;
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        const Vec* start = reinterpret_cast<const Vec*>(base) + 3 * block;
        Vec v[3] = {start[0], start[1], start[2]};
        for (int32_t e = mode_start[block]; e < mode_start[block + 1]; ++e) {
            const float coefficient = chain.coefficients[mode_id[e]];
            const Vec* mode = reinterpret_cast<const Vec*>(basis) + 3 * int64_t(e);
            for (int i = 0; i < 3; ++i) v[i] += coefficient * mode[i];
        }
        Vec* shaped = reinterpret_cast<Vec*>(shaped_out) + 3 * block;
        for (int i = 0; i < 3; ++i) shaped[i] = v[i];

        const Vec* weight = reinterpret_cast<const Vec*>(weights) + kJoints * block;
        Vec posed[3] = {Vec{} + translation[0], Vec{} + translation[1], Vec{} + translation[2]};
        for (int j = 0; j < kJoints; ++j)
            for (int i = 0; i < 3; ++i)
                posed[i] += weight[j] * (transform[j][i][0] * v[0] + transform[j][i][1] * v[1] +
                                         transform[j][i][2] * v[2] + transform[j][i][3]);
        const int64_t lanes = vertices - block * kLanes < kLanes ? vertices - block * kLanes : kLanes;
        for (int64_t lane = 0; lane < lanes; ++lane)
            for (int i = 0; i < 3; ++i) out[3 * (block * kLanes + lane) + i] = posed[i][lane];
    }
}

// Gradient of the row from the gradient of the vertices [V][3].
NATIVE_EXPORT int flame_backward(
    int64_t vertices, int64_t n_expr, const double* joints, const double* joint_modes, const int32_t* mode_start,
    const int32_t* mode_id, const float* basis, const float* weights, const float* row, const float* shaped_in,
    const float* grad, float* grad_row) {
    Chain chain;
    pose(chain, n_expr, joints, joint_modes, row);
    const int64_t modes = n_expr + kPose;
    const int64_t blocks = (vertices + kLanes - 1) / kLanes;

    // Per chunk and lane: 12 entries of each joint's transform, the modes, the
    // translation (on its own, for skinning weights need not sum to exactly one).
    const int64_t sums = 12 * kJoints + modes + 3;
    std::vector<float> partial;
    std::vector<double> total;
    const int status = native::guarded([&] {
        partial.resize(size_t(kChunks * sums * kLanes));
        total.resize(size_t(sums));
    });
    if (status != 0) return status;
#pragma omp parallel for schedule(static)
    for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
        Vec* transform_sum = reinterpret_cast<Vec*>(partial.data()) + chunk * sums;
        Vec* mode_sum = transform_sum + 12 * kJoints;
        for (int64_t block = chunk * blocks / kChunks; block < (chunk + 1) * blocks / kChunks; ++block) {
            Vec g[3] = {}, gv[3] = {};
            const int64_t lanes = vertices - block * kLanes < kLanes ? vertices - block * kLanes : kLanes;
            for (int64_t lane = 0; lane < lanes; ++lane)
                for (int i = 0; i < 3; ++i) g[i][lane] = grad[3 * (block * kLanes + lane) + i];
            for (int i = 0; i < 3; ++i) mode_sum[modes + i] += g[i];
            const Vec* v = reinterpret_cast<const Vec*>(shaped_in) + 3 * block;
            const Vec* weight = reinterpret_cast<const Vec*>(weights) + kJoints * block;
            for (int j = 0; j < kJoints; ++j)
                for (int i = 0; i < 3; ++i) {
                    const Vec wg = weight[j] * g[i];
                    for (int k = 0; k < 3; ++k) {
                        transform_sum[12 * j + 4 * i + k] += wg * v[k];
                        gv[k] += float(chain.world[j].m[i][k]) * wg;
                    }
                    transform_sum[12 * j + 4 * i + 3] += wg;
                }
            for (int32_t e = mode_start[block]; e < mode_start[block + 1]; ++e) {
                const Vec* mode = reinterpret_cast<const Vec*>(basis) + 3 * int64_t(e);
                mode_sum[mode_id[e]] += gv[0] * mode[0] + gv[1] * mode[1] + gv[2] * mode[2];
            }
        }
    }
    for (int64_t chunk = 0; chunk < kChunks; ++chunk)
        for (int64_t s = 0; s < sums; ++s)
            total[s] += sum(reinterpret_cast<const Vec*>(partial.data())[chunk * sums + s]);

    // Back along the chain, children before parents.
    Mat g_world[kJoints];
    double g_position[kJoints][3], g_joint[kJoints][3] = {};
    for (int j = 0; j < kJoints; ++j)
        for (int i = 0; i < 3; ++i) {
            const double* entry = &total[12 * j + 4 * i];
            g_position[j][i] = entry[3];
            for (int k = 0; k < 3; ++k) {
                g_world[j].m[i][k] = entry[k] - entry[3] * chain.joint[j][k];
                g_joint[j][k] -= chain.world[j].m[i][k] * entry[3];
            }
        }
    double g_axis_angle[kJoints][3];
    for (int j = kJoints - 1; j >= 0; --j) {
        const int p = kParents[j];
        Mat g_local{};
        if (p < 0) {
            g_local = g_world[j];
            for (int i = 0; i < 3; ++i) g_joint[j][i] += g_position[j][i];
        } else {
            for (int i = 0; i < 3; ++i) {
                g_position[p][i] += g_position[j][i];
                for (int k = 0; k < 3; ++k) {
                    double to_parent = g_position[j][i] * (chain.joint[j][k] - chain.joint[p][k]);
                    for (int n = 0; n < 3; ++n) {
                        to_parent += g_world[j].m[i][n] * chain.local[j].m[k][n];
                        g_local.m[k][n] += chain.world[p].m[i][k] * g_world[j].m[i][n];
                    }
                    g_world[p].m[i][k] += to_parent;
                    g_joint[j][k] += chain.world[p].m[i][k] * g_position[j][i];
                    g_joint[p][k] -= chain.world[p].m[i][k] * g_position[j][i];
                }
            }
            for (int e = 0; e < 9; ++e)
                g_local.m[e / 3][e % 3] += total[12 * kJoints + n_expr + 9 * (j - 1) + e];
        }
        rotation_backward(chain.axis_angle[j], g_local, g_axis_angle[j]);
    }

    for (int64_t d = 0; d < n_expr; ++d) {
        double value = total[12 * kJoints + d];
        for (int s = 0; s < 3 * kJoints; ++s) value += joint_modes[15 * d + s] * g_joint[s / 3][s % 3];
        grad_row[d] = float(value);
    }
    for (int j = 0; j < kJoints; ++j)
        for (int i = 0; i < 3; ++i) grad_row[n_expr + 3 * j + i] = float(g_axis_angle[j][i]);
    for (int i = 0; i < 3; ++i)
        grad_row[n_expr + 3 * kJoints + i] = float(total[12 * kJoints + modes + i]);
    return 0;
}
