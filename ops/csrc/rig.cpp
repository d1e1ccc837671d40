// The rig: triangle frames, and Gaussians from their triangle into the world,
// forward and analytic backward. Formulas in ops/rig.py.
//
// Every sum has a fixed order that does not depend on the number of threads:
// each thread owns a range of triangles (then of vertices), walks all
// Gaussians (then all triangles) in order and adds only what it owns. Walking
// is a few bytes per element; no sorting and no atomics.
#include "common.h"

#include <cmath>
#include <cstring>
#include <memory>

namespace {

using namespace native;
using Vec3 = native::Vector3<float>;

inline Vec3 load(const float* p) { return {p[0], p[1], p[2]}; }
inline void store(float* p, Vec3 v) {
    p[0] = v.x;
    p[1] = v.y;
    p[2] = v.z;
}

// One triangle's frame; 20 floats, as the caller's buffer [F][20] has them.
struct Frame {
    Vec3 origin, a0, a1, a2;  // the axes are the columns of R
    float quat[4];            // of R, wxyz, unit
    float scale;              // (length + height) / 2
    float length;             // |e1|; 0 marks a triangle without orientation
    float height;             // -a2 . e2 > 0
    float along;              // a0 . e2
};
static_assert(sizeof(Frame) == 20 * sizeof(float), "the buffer is allocated as [F][20]");

void quaternion(const Frame& f, float q[4]) {
    const Vec3 a = f.a0, b = f.a1, c = f.a2;
    const float squares[4] = {1 + a.x + b.y + c.z, 1 + a.x - b.y - c.z, 1 - a.x + b.y - c.z, 1 - a.x - b.y + c.z};
    int largest = 0;
    for (int i = 1; i < 4; ++i)
        if (squares[i] > squares[largest]) largest = i;
    switch (largest) {
        case 0: q[0] = squares[0]; q[1] = b.z - c.y; q[2] = c.x - a.z; q[3] = a.y - b.x; break;
        case 1: q[0] = b.z - c.y; q[1] = squares[1]; q[2] = a.y + b.x; q[3] = c.x + a.z; break;
        case 2: q[0] = c.x - a.z; q[1] = a.y + b.x; q[2] = squares[2]; q[3] = b.z + c.y; break;
        default: q[0] = a.y - b.x; q[1] = c.x + a.z; q[2] = b.z + c.y; q[3] = squares[3];
    }
    const float scale = 1 / std::sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
    for (int i = 0; i < 4; ++i) q[i] *= scale;
}

Frame frame(Vec3 v0, Vec3 v1, Vec3 v2) {
    Frame f;
    const Vec3 e1 = v1 - v0, e2 = v2 - v0, normal = cross(e1, e2);
    const float length = std::sqrt(dot(e1, e1)), other = std::sqrt(dot(e2, e2));
    const float area = std::sqrt(dot(normal, normal));
    f.origin = (v0 + v1 + v2) * (1.0f / 3);
    if (length < kMinEdge || other < kMinEdge || area < kMinSine * length * other) {
        f.a0 = {1, 0, 0};
        f.a1 = {0, 1, 0};
        f.a2 = {0, 0, 1};
        f.quat[0] = 1;
        f.quat[1] = f.quat[2] = f.quat[3] = 0;
        f.scale = 0.5f * length;
        f.length = f.height = f.along = 0;
        return f;
    }
    f.a0 = e1 * (1 / length);
    f.a1 = normal * (1 / area);
    f.a2 = cross(f.a0, f.a1);
    f.length = length;
    f.height = -dot(f.a2, e2);
    f.along = dot(f.a0, e2);
    f.scale = 0.5f * (length + std::fabs(f.height));
    quaternion(f, f.quat);
    return f;
}

inline Vec3 rotate(const Frame& f, Vec3 v) { return f.a0 * v.x + f.a1 * v.y + f.a2 * v.z; }
inline Vec3 rotate_back(const Frame& f, Vec3 v) { return {dot(f.a0, v), dot(f.a1, v), dot(f.a2, v)}; }

inline void multiply(const float a[4], const float b[4], float out[4]) {
    out[0] = a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3];
    out[1] = a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2];
    out[2] = a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1];
    out[3] = a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0];
}

// As torch.nn.functional.normalize: the length is at least 1e-12.
inline float inverse_length(const float q[4]) {
    const float length = std::sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
    return 1 / (length > 1e-12f ? length : 1e-12f);
}

// The range of `count` items that this thread owns.
inline void own_range(int64_t count, int64_t& first, int64_t& last) {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    first = thread * count / threads;
    last = (thread + 1) * count / threads;
}

}  // namespace

// vertices [V][3], faces [F][3], xyz [N][3], rotation [N][4], scaling [N][3]
// already exponentiated, binding [N] -> means, quats, scales, and the frames
// [F][20] for the backward. The caller has checked all indices.
NATIVE_EXPORT void rig_forward(
    int64_t n_faces, int64_t count, const float* vertices, const int64_t* faces, const float* xyz,
    const float* rotation, const float* scaling, const int64_t* binding, float* frames_out, float* means,
    float* quats, float* scales) {
    Frame* frames = reinterpret_cast<Frame*>(frames_out);
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t f = 0; f < n_faces; ++f)
            frames[f] = frame(load(vertices + 3 * faces[3 * f]), load(vertices + 3 * faces[3 * f + 1]),
                              load(vertices + 3 * faces[3 * f + 2]));
#pragma omp for schedule(static)
        for (int64_t n = 0; n < count; ++n) {
            const Frame& f = frames[binding[n]];
            store(means + 3 * n, rotate(f, load(xyz + 3 * n)) * f.scale + f.origin);
            store(scales + 3 * n, load(scaling + 3 * n) * f.scale);
            float unit[4];
            const float inverse = inverse_length(rotation + 4 * n);
            for (int i = 0; i < 4; ++i) unit[i] = inverse * rotation[4 * n + i];
            multiply(f.quat, unit, quats + 4 * n);
        }
    }
}

// Gradients of means, quats and scales to those of xyz, rotation, log scale
// and, if grad_vertices is not null, vertices [V][3].
NATIVE_EXPORT int rig_backward(
    int64_t n_vertices, int64_t n_faces, int64_t count, const int64_t* faces, const float* xyz, const float* rotation,
    const float* scaling, const int64_t* binding, const float* frames_in, const float* g_means, const float* g_quats,
    const float* g_scales, float* g_xyz, float* g_rotation, float* g_scaling, float* g_vertices) {
    const Frame* frames = reinterpret_cast<const Frame*>(frames_in);
    // What a Gaussian, then a triangle, passes to its frame: gradient of the
    // origin, torque (gradient of a turn of R in world axes), gradient of the scale.
    struct Load {
        float v[8];
    };
    // Not vectors: those would first be zeroed, by one thread.
    std::unique_ptr<Load[]> loads, face_loads;
    std::unique_ptr<float[]> corners;
    const int status = native::guarded([&] {
        if (!g_vertices) return;
        loads.reset(new Load[size_t(count)]);
        face_loads.reset(new Load[size_t(n_faces)]);
        corners.reset(new float[size_t(9 * n_faces)]);
    });
    if (status != 0) return status;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t n = 0; n < count; ++n) {
            const Frame& f = frames[binding[n]];
            const Vec3 gm = load(g_means + 3 * n), gs = load(g_scales + 3 * n);
            const Vec3 local = load(xyz + 3 * n), size = load(scaling + 3 * n);
            store(g_xyz + 3 * n, rotate_back(f, gm) * f.scale);
            store(g_scaling + 3 * n, Vec3{gs.x * size.x, gs.y * size.y, gs.z * size.z} * f.scale);

            const float* raw = rotation + 4 * n;
            const float inverse = inverse_length(raw);
            float unit[4], back[4], world[4];
            for (int i = 0; i < 4; ++i) unit[i] = inverse * raw[i];
            multiply(f.quat, unit, world);
            const float conjugate[4] = {f.quat[0], -f.quat[1], -f.quat[2], -f.quat[3]};
            const float* gq = g_quats + 4 * n;
            multiply(conjugate, gq, back);
            float radial = back[0] * unit[0] + back[1] * unit[1] + back[2] * unit[2] + back[3] * unit[3];
            if (inverse >= 1e12f) radial = 0;  // clamped length: constant
            for (int i = 0; i < 4; ++i) g_rotation[4 * n + i] = inverse * (back[i] - radial * unit[i]);

            if (!g_vertices) continue;
            const Vec3 arm = rotate(f, local);
            // <gq, (0, w)/2 * Q> for the three unit turns w, and the mean's lever.
            const Vec3 turn = {gq[1] * world[0] - gq[0] * world[1] - gq[2] * world[3] + gq[3] * world[2],
                               gq[2] * world[0] - gq[0] * world[2] - gq[3] * world[1] + gq[1] * world[3],
                               gq[3] * world[0] - gq[0] * world[3] - gq[1] * world[2] + gq[2] * world[1]};
            const Vec3 torque = turn * 0.5f + cross(arm, gm) * f.scale;
            loads[n] = {{gm.x, gm.y, gm.z, torque.x, torque.y, torque.z, dot(arm, gm) + dot(size, gs), 0}};
        }
        if (g_vertices) {
            int64_t first, last;
            own_range(n_faces, first, last);
            std::memset(face_loads.get() + first, 0, size_t(last - first) * sizeof(Load));
            for (int64_t n = 0; n < count; ++n) {
                if (binding[n] < first || binding[n] >= last) continue;
                float* sum = face_loads[binding[n]].v;
                for (int i = 0; i < 8; ++i) sum[i] += loads[n].v[i];
            }
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t t = 0; t < n_faces; ++t) {
                const Frame& f = frames[t];
                const float* sum = face_loads[t].v;
                const Vec3 third = load(sum) * (1.0f / 3);
                Vec3 g1 = {0, 0, 0}, g2 = {0, 0, 0};
                if (f.length > 0) {
                    const Vec3 turn = rotate_back(f, load(sum + 3));
                    const float half = 0.5f * sum[6], slope = f.along / f.length;
                    g1 = f.a0 * half + f.a1 * ((turn.z - slope * turn.x * f.length / f.height) / f.length) +
                         f.a2 * (half * slope - turn.y / f.length);
                    g2 = f.a1 * (turn.x / f.height) - f.a2 * half;
                }
                store(&corners[9 * t], third - g1 - g2);
                store(&corners[9 * t + 3], third + g1);
                store(&corners[9 * t + 6], third + g2);
            }
            own_range(n_vertices, first, last);
            std::memset(g_vertices + 3 * first, 0, size_t(3 * (last - first)) * sizeof(float));
            for (int64_t c = 0; c < 3 * n_faces; ++c) {
                if (faces[c] < first || faces[c] >= last) continue;
                for (int i = 0; i < 3; ++i) g_vertices[3 * faces[c] + i] += corners[3 * c + i];
            }
        }
    }
    return 0;
}
