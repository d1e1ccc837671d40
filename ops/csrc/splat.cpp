// The C interface of the splatting rasterizer; see gaussian_renderer/backends/native.py.
#include "splat.h"

#include <new>

namespace {

template <typename Work>
void timed(double& seconds, Work work) {
    const double start = omp_get_wtime();
    work();
    seconds = omp_get_wtime() - start;
}

}  // namespace

NATIVE_EXPORT void* splat_create() { return new (std::nothrow) splat::Workspace; }

NATIVE_EXPORT void splat_destroy(void* workspace) { delete static_cast<splat::Workspace*>(workspace); }

// Seconds of the last project, bin, blend, blend backward and project backward.
NATIVE_EXPORT void splat_seconds(const void* workspace, double* seconds) {
    const auto& w = *static_cast<const splat::Workspace*>(workspace);
    for (int i = 0; i < 5; ++i) seconds[i] = w.seconds[i];
}

NATIVE_EXPORT int splat_forward(void* workspace, const splat::View* view, int64_t count, const float* means,
                                const float* quats, const float* scales, const float* opacities, const float* sh,
                                const float* background, float* image, float* alpha, int32_t* radii, bool keep) {
    auto& w = *static_cast<splat::Workspace*>(workspace);
    w.view = *view;
    w.count = count;
    w.tiles_x = (view->width + splat::kTile - 1) / splat::kTile;
    w.tiles_y = (view->height + splat::kTile - 1) / splat::kTile;
    return native::guarded([&] {
        timed(w.seconds[0], [&] { splat::project(w, means, quats, scales, opacities, sh, radii); });
        timed(w.seconds[1], [&] { splat::bin(w); });
        timed(w.seconds[2], [&] { splat::blend(w, background, image, alpha, keep); });
    });
}

// Needs the workspace as `splat_forward` with `keep` left it; may be called again.
NATIVE_EXPORT int splat_backward(void* workspace, const float* means, const float* quats, const float* scales,
                                 const float* opacities, const float* sh, const float* background,
                                 const float* grad_image, const float* grad_alpha, float* grad_means,
                                 float* grad_quats, float* grad_scales, float* grad_opacities, float* grad_sh,
                                 float* grad_means2d, bool absolute) {
    auto& w = *static_cast<splat::Workspace*>(workspace);
    return native::guarded([&] {
        timed(w.seconds[3], [&] { splat::blend_backward(w, background, grad_image, grad_alpha, absolute); });
        timed(w.seconds[4], [&] {
            splat::project_backward(w, means, quats, scales, opacities, sh, grad_means, grad_quats, grad_scales,
                                    grad_opacities, grad_sh, grad_means2d, absolute);
        });
    });
}
