// The rasterizer that one writes first: tiles of 16x16 pixels, every pixel of a tile against every Gaussian whose
// 3-sigma box meets it, and the compiler's vectors. A yardstick for `raster_turns.py`, which builds and feeds it.
// No projection, no colors from harmonics, no sort: it gets all that ready made. Reads a scene from the file named,
// then does one forward + backward for every line of input, and answers with its milliseconds.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <vector>

constexpr int kTile = 16, kPixels = kTile * kTile;
struct Splat { float x, y, a, b, c, opacity, color[3], radius; };  // front to back; a, b, c: the inverse covariance
struct Scene { std::vector<Splat> splats; std::vector<float> grad, image, grad_splats; int width, height; };

void both(Scene& s) {  // over black
    const int across = s.width / kTile, plane = s.width * s.height;
    std::vector<std::vector<int>> lists(across * (s.height / kTile));
    for (int i = 0; i < int(s.splats.size()); ++i) {
        const Splat& g = s.splats[i];
        const auto tile = [](float at, int pixels) { return std::fmin(std::fmax(at, 0.0f), pixels - 1.0f) / kTile; };
        for (int y = tile(g.y - g.radius, s.height); y <= int(tile(g.y + g.radius, s.height)); ++y)
            for (int x = tile(g.x - g.radius, s.width); x <= int(tile(g.x + g.radius, s.width)); ++x)
                lists[y * across + x].push_back(i);
    }
    s.grad_splats.assign(s.splats.size() * 9, 0.0f);
#pragma omp parallel for schedule(dynamic)
    for (int t = 0; t < int(lists.size()); ++t) {
        const int x0 = t % across * kTile, y0 = t / across * kTile;
        alignas(64) float rest[kPixels], color[3][kPixels] = {}, behind[kPixels] = {}, alpha[kPixels], weight[kPixels];
        alignas(64) float grad[3][kPixels], dx[kPixels], dy[kPixels];
        for (int i = 0; i < kPixels; ++i) {
            rest[i] = 1.0f;
            for (int c = 0; c < 3; ++c)
                grad[c][i] = s.grad[c * plane + (y0 + i / kTile) * s.width + x0 + i % kTile];
        }
        const auto alphas = [&](const Splat& g) {
            for (int i = 0; i < kPixels; ++i) {
                dx[i] = x0 + i % kTile + 0.5f - g.x, dy[i] = y0 + i / kTile + 0.5f - g.y;
                const float square = g.a * dx[i] * dx[i] + 2.0f * g.b * dx[i] * dy[i] + g.c * dy[i] * dy[i];
                const float e = g.opacity * std::exp(-0.5f * square);
                alpha[i] = e < 1.0f / 255.0f ? 0.0f : e > 0.99f ? 0.99f : e;
            }
        };
        for (int k : lists[t]) {
            alphas(s.splats[k]);
            for (int i = 0; i < kPixels; ++i) {
                for (int c = 0; c < 3; ++c) color[c][i] += alpha[i] * rest[i] * s.splats[k].color[c];
                rest[i] *= 1.0f - alpha[i];
            }
        }
        for (int i = 0; i < kPixels; ++i)
            for (int c = 0; c < 3; ++c) s.image[c * plane + (y0 + i / kTile) * s.width + x0 + i % kTile] = color[c][i];
        for (int at = int(lists[t].size()); at--;) {
            const Splat& g = s.splats[lists[t][at]];
            float sums[9] = {};
            alphas(g);
            for (int i = 0; i < kPixels; ++i) {
                const float inverse = 1.0f / (1.0f - alpha[i]);
                rest[i] *= inverse;
                weight[i] = alpha[i] * rest[i];
                const float own = grad[0][i] * g.color[0] + grad[1][i] * g.color[1] + grad[2][i] * g.color[2];
                const float slope = alpha[i] * (rest[i] * own - behind[i] * inverse);
                behind[i] += weight[i] * own;
                for (int c = 0; c < 3; ++c) sums[c] += weight[i] * grad[c][i];
                sums[3] += slope, sums[4] += slope * dx[i], sums[5] += slope * dy[i];
                sums[6] += slope * dx[i] * dx[i], sums[7] += slope * dx[i] * dy[i], sums[8] += slope * dy[i] * dy[i];
            }
            for (int k = 0; k < 9; ++k)
#pragma omp atomic
                s.grad_splats[lists[t][at] * 9 + k] += sums[k];
        }
    }
}

int main(int, char** arguments) {
    Scene s;
    int sizes[3];
    FILE* file = std::fopen(arguments[1], "rb");
    if (!file || std::fread(sizes, sizeof(int), 3, file) != 3) return 1;
    s.splats.resize(sizes[0]), s.width = sizes[1], s.height = sizes[2];
    s.grad.resize(size_t(3) * s.width * s.height), s.image = s.grad;
    if (std::fread(s.splats.data(), sizeof(Splat), s.splats.size(), file) != s.splats.size()) return 1;
    if (std::fread(s.grad.data(), sizeof(float), s.grad.size(), file) != s.grad.size()) return 1;
    char line[16];
    for (std::puts("0"), std::fflush(stdout); std::fgets(line, sizeof line, stdin); std::fflush(stdout)) {
        const auto start = std::chrono::steady_clock::now();
        both(s);
        std::printf("%g\n", std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    }
}
