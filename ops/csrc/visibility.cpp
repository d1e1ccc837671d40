// Which triangles of a mesh a camera sees, and the nearest one in every cell of a coarse grid.
//
// Not a picture: a head has far more triangles than a coarse grid has cells, so
// one sample per cell would lose nearly all of them. Instead every triangle asks
// at its own centroid, "is anything in front of me?", and every cell asks at its
// center, "who is first?". Both are exact for their ray, whatever the grid; the
// cells are also the bins in which the triangles to compare with are looked up.
// Same rules as the PyTorch twin in ops/visibility.py.
//
// Each answer depends on its own cell only, so the number of threads changes nothing.
#include "common.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace {

using namespace native;

struct Corner {
    double x, y, z;    // camera space, metres
    double u, v, iz;   // cells, cells, 1/metre
    bool usable;
};

struct Triangle {
    // Three edge functions and 1/depth, each x a + y b + c with (x, y) in cells; the edges positive inside.
    float a[4], b[4];
    double c[4];
    float center_u, center_v, center_iz;
    int left, right, top, bottom;  // cells touched, inclusive; right < left for none
    int center_cell;               // -1: outside the grid
};

void set_edges(Triangle& t, const Corner* const* corner) {
    double a[3], b[3], c[3];
    // Relative to the first corner, where it is most exact.
    const double ou = corner[0]->u, ov = corner[0]->v;
    double x[3], y[3];
    for (int i = 0; i < 3; ++i) x[i] = corner[i]->u - ou, y[i] = corner[i]->v - ov;
    const double sign = x[1] * y[2] - y[1] * x[2] < 0.0 ? -1.0 : 1.0;
    for (int i = 0; i < 3; ++i) {  // the edge opposite of corner i
        const int j = (i + 1) % 3, k = (i + 2) % 3;
        a[i] = -sign * (y[k] - y[j]), b[i] = sign * (x[k] - x[j]);
        c[i] = -(a[i] * x[j] + b[i] * y[j]) + kOverlap * std::sqrt(a[i] * a[i] + b[i] * b[i]);
    }
    // The edge functions sum to a constant; over it they are weights of the corners, none of
    // them negative inside, so that even a sliver never gets a depth its corners do not have.
    const double total = c[0] + c[1] + c[2];
    if (!(total > 0.0)) t.right = t.left - 1;  // a point covers nothing
    double plane[3] = {0.0, 0.0, 0.0};
    for (int i = 0; i < 3; ++i) {
        const double share = corner[i]->iz / total;
        plane[0] += share * a[i], plane[1] += share * b[i], plane[2] += share * c[i];
        t.a[i] = static_cast<float>(a[i]), t.b[i] = static_cast<float>(b[i]), t.c[i] = c[i] - a[i] * ou - b[i] * ov;
    }
    t.a[3] = static_cast<float>(plane[0]), t.b[3] = static_cast<float>(plane[1]);
    t.c[3] = plane[2] - plane[0] * ou - plane[1] * ov;
}

// The triangles of one cell as columns, so that 16 are compared with a point at once.
struct Columns {
    std::vector<float> e[9], plane[3];
    std::vector<int32_t> id;
    int size = 0;

    // Empties it and makes room for `count`; never shrinks, since growing again would fill with zeros.
    void reset(size_t count) {
        if (count > id.size()) {
            for (auto& column : e) column.resize(count);
            for (auto& column : plane) column.resize(count);
            id.resize(count);
        }
        size = 0;
    }

    // (ox, oy): the cell's center, to which everything in here is relative.
    void add(const Triangle& t, int32_t face, float ox, float oy) {
        float c[4];
        for (int i = 0; i < 4; ++i) c[i] = static_cast<float>(t.c[i] + double(t.a[i]) * ox + double(t.b[i]) * oy);
        for (int i = 0; i < 3; ++i) {
            if (c[i] + 0.5f * (std::fabs(t.a[i]) + std::fabs(t.b[i])) < 0.0f) return;  // the box meets the cell, it not
        }
        for (int i = 0; i < 3; ++i) {
            e[3 * i][size] = t.a[i], e[3 * i + 1][size] = t.b[i], e[3 * i + 2][size] = c[i];
        }
        plane[0][size] = t.a[3], plane[1][size] = t.b[3], plane[2][size] = c[3];
        id[size++] = face;
    }

    // The nearest at the center, of equals the one that comes first in the mesh; -1 for none.
    int32_t first(float& inverse_depth) const {
        int32_t found = -1;
        inverse_depth = 0.0f;
        for (int k = 0; k < size; ++k) {
            const bool inside = (e[2][k] >= 0.0f) & (e[5][k] >= 0.0f) & (e[8][k] >= 0.0f);
            if (inside && plane[2][k] > inverse_depth) inverse_depth = plane[2][k], found = id[k];
        }
        return found;
    }

    bool hidden(float x, float y, float iz, int32_t self) const {
        const float limit = iz * (1.0f + kSameDepth);
        const float *a0 = e[0].data(), *b0 = e[1].data(), *c0 = e[2].data(), *a1 = e[3].data(), *b1 = e[4].data(),
                    *c1 = e[5].data(), *a2 = e[6].data(), *b2 = e[7].data(), *c2 = e[8].data(),
                    *px = plane[0].data(), *py = plane[1].data(), *pc = plane[2].data();
        const int32_t* who = id.data();
        int nearer = 0;
        #pragma omp simd reduction(| : nearer)
        for (int k = 0; k < size; ++k) {
            const float least = std::min(std::min(a0[k] * x + b0[k] * y + c0[k], a1[k] * x + b1[k] * y + c1[k]),
                                         a2[k] * x + b2[k] * y + c2[k]);
            nearer |= (least >= 0.0f) & (px[k] * x + py[k] * y + pc[k] > limit) & (who[k] != self);
        }
        return nearer;
    }
};

// Cell lists by counting: `starts` has one entry more than there are cells.
template <typename Each>
void bin(int64_t cells, Each each, std::vector<int64_t>& starts, std::vector<int32_t>& list) {
    starts.assign(cells + 1, 0);
    each([&](int64_t cell, int32_t) { ++starts[cell + 1]; });
    for (int64_t i = 0; i < cells; ++i) starts[i + 1] += starts[i];
    list.resize(starts[cells]);
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    each([&](int64_t cell, int32_t face) { list[next[cell]++] = face; });
}

int clamped_floor(double value, int limit) {
    return static_cast<int>(std::floor(std::min(std::max(value, -1.0), static_cast<double>(limit))));
}

}  // namespace

// pose [4, 4] world to camera; intrinsics {fx, fy, cx, cy} in cells; vertices [V, 3]; faces [F, 3].
// Writes visible [F], facing [F] (cosine, negative from behind), center_cell [F] (-1: none) and
// the grid [rows, columns]: first (face, -1 for none) and depth (metres along the axis, infinite for none).
NATIVE_EXPORT int visibility_faces(const float* pose, const double* intrinsics, const float* vertices,
                                   int64_t vertex_count, const int64_t* faces, int64_t face_count, int64_t rows,
                                   int64_t columns, bool* visible, float* facing, int64_t* center_cell,
                                   int64_t* first, float* depth) {
    const int64_t cells = rows * columns;
    std::vector<Corner> corners;
    std::vector<Triangle> triangles;
    std::vector<int64_t> starts, query_starts;
    std::vector<int32_t> list, queries;
    int status = native::guarded([&] { corners.resize(vertex_count), triangles.resize(face_count); });
    if (status != 0) return status;
    const double fx = intrinsics[0], fy = intrinsics[1], cx = intrinsics[2], cy = intrinsics[3];

    #pragma omp parallel
    {
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < vertex_count; ++i) {
            const double x = vertices[3 * i], y = vertices[3 * i + 1], z = vertices[3 * i + 2];
            Corner& c = corners[i];
            c.x = pose[0] * x + pose[1] * y + pose[2] * z + pose[3];
            c.y = pose[4] * x + pose[5] * y + pose[6] * z + pose[7];
            c.z = pose[8] * x + pose[9] * y + pose[10] * z + pose[11];
            const double u = fx * c.x / c.z + cx, v = fy * c.y / c.z + cy;
            c.usable = c.z > kMeshNear && std::fabs(u) < kFarAway && std::fabs(v) < kFarAway;  // false for NaN
            c.u = u, c.v = v, c.iz = 1.0 / c.z;
        }
        #pragma omp for schedule(static)
        for (int64_t f = 0; f < face_count; ++f) {
            const Corner* c[3];
            for (int i = 0; i < 3; ++i) c[i] = &corners[faces[3 * f + i]];
            Triangle& t = triangles[f];
            t.left = 0, t.right = -1, t.top = 0, t.bottom = -1, t.center_cell = -1;
            facing[f] = 0.0f, center_cell[f] = -1;
            if (!(c[0]->usable && c[1]->usable && c[2]->usable)) continue;
            const double u0 = c[0]->u, u1 = c[1]->u, u2 = c[2]->u, v0 = c[0]->v, v1 = c[1]->v, v2 = c[2]->v;
            t.left = std::max(0, clamped_floor(std::min({u0, u1, u2}) - kOverlap, columns));
            t.top = std::max(0, clamped_floor(std::min({v0, v1, v2}) - kOverlap, rows));
            t.right = std::min<int>(columns - 1, clamped_floor(std::max({u0, u1, u2}) + kOverlap, columns));
            t.bottom = std::min<int>(rows - 1, clamped_floor(std::max({v0, v1, v2}) + kOverlap, rows));
            set_edges(t, c);

            const double x = (c[0]->x + c[1]->x + c[2]->x) / 3, y = (c[0]->y + c[1]->y + c[2]->y) / 3,
                         z = (c[0]->z + c[1]->z + c[2]->z) / 3;
            const double ax = c[1]->x - c[0]->x, ay = c[1]->y - c[0]->y, az = c[1]->z - c[0]->z;
            const double bx = c[2]->x - c[0]->x, by = c[2]->y - c[0]->y, bz = c[2]->z - c[0]->z;
            const double nx = ay * bz - az * by, ny = az * bx - ax * bz, nz = ax * by - ay * bx;
            const double length = std::sqrt((nx * nx + ny * ny + nz * nz) * (x * x + y * y + z * z));
            facing[f] = length > 0 ? static_cast<float>(-(nx * x + ny * y + nz * z) / length) : 0.0f;
            t.center_u = static_cast<float>(fx * x / z + cx), t.center_v = static_cast<float>(fy * y / z + cy);
            t.center_iz = static_cast<float>(1.0 / z);
            const int column = clamped_floor(t.center_u, columns), row = clamped_floor(t.center_v, rows);
            if (column < 0 || column >= columns || row < 0 || row >= rows) continue;
            t.center_cell = static_cast<int>(row * columns + column);
            center_cell[f] = t.center_cell;
        }
    }

    status = native::guarded([&] {
        bin(cells, [&](auto put) {
            for (int64_t f = 0; f < face_count; ++f) {
                const Triangle& t = triangles[f];
                for (int64_t row = t.top; row <= t.bottom; ++row) {
                    for (int64_t column = t.left; column <= t.right; ++column) put(row * columns + column, f);
                }
            }
        }, starts, list);
        bin(cells, [&](auto put) {
            for (int64_t f = 0; f < face_count; ++f) {
                if (facing[f] > 0.0f && triangles[f].center_cell >= 0) put(triangles[f].center_cell, f);
            }
        }, query_starts, queries);
    });
    if (status != 0) return status;

    std::fill_n(visible, face_count, false);
    #pragma omp parallel reduction(| : status)
    {
        Columns near;
        #pragma omp for schedule(dynamic, 16)
        for (int64_t cell = 0; cell < cells; ++cell) {
            status |= native::guarded([&] {
                const float ox = cell % columns + 0.5f, oy = cell / columns + 0.5f;
                near.reset(starts[cell + 1] - starts[cell]);
                for (int64_t i = starts[cell]; i < starts[cell + 1]; ++i) near.add(triangles[list[i]], list[i], ox, oy);
                float best;
                first[cell] = near.first(best);
                depth[cell] = best > 0.0f ? 1.0f / best : std::numeric_limits<float>::infinity();
                for (int64_t i = query_starts[cell]; i < query_starts[cell + 1]; ++i) {
                    const Triangle& t = triangles[queries[i]];
                    visible[queries[i]] = !near.hidden(t.center_u - ox, t.center_v - oy, t.center_iz, queries[i]);
                }
            });
        }
    }
    // A large triangle may be seen although its centroid is not.
    for (int64_t cell = 0; cell < cells && status == 0; ++cell) {
        if (first[cell] >= 0 && facing[first[cell]] > 0.0f) visible[first[cell]] = true;
    }
    return status;
}
