// The color calibration network of ops/color_net.py: every pixel through
// a small network of 1x1 convolutions with ReLU, whose three outputs r shift the logit of the color:
//
//   y = x e^r / (1 - x + x e^r)      x = the image, clamped to [0, 1]
//   dy/dx = e^r / D^2, dy/dr = x (1 - x) e^r / D^2      D = 1 - x + x e^r
//
// The floor: 3 h + h^2 + 3 h multiplications per pixel and direction with h hidden units
// and three layers, 352 for 16. The backward computes the activations again instead of
// reading them (32 floats per pixel would be ten times the picture), so a
// training step has four such passes: forward, forward again, and the gradients of
// the inputs and of the weights. For 256 x 352 pixels that is 127 million fused
// multiply-adds, a millisecond for two cores with one 16-float unit of 2 GHz each, half of
// it with two units. Memory does not matter: the picture is read and written once.
// Where only the inputs' gradient is wanted, two passes do: the forward keeps r and,
// a bit each, which units were active.
//
// A block of pixels stays in the first-level cache through all layers: row k of
// a buffer holds channel k of the block. All widths are padded to whole tiles with
// zero weights, so that there is one inner loop and it holds its sums in registers.
// The weight gradients are summed within chunks of fixed size and these serially:
// the result does not depend on the number of threads.
#include "common.h"
#include "lanes.h"

#include <algorithm>
#include <vector>

namespace {

using namespace lanes;
using Buffer = native::Buffer<float>;
using native::kResidualLimit;

constexpr int kTile = 4;               // rows of a tile: channels computed together; widths are padded to it
constexpr int kColumns = 4;            // 16-pixel columns of a tile; 4 x 4 sums keep both vector units busy
constexpr int64_t kBlock = 64;        // pixels that go through all layers together
constexpr int64_t kChunk = 64 * kBlock;  // pixels whose weight gradients are summed in single precision
constexpr float kLog2e = 1.44269504f;

int64_t padded(int64_t width) { return (width + kTile - 1) / kTile * kTile; }

// Weights of one layer in the order of the inner loop: [rows / kTile][inner][kTile].
struct Matrix {
    int64_t rows, inner;
    std::vector<float> weights, bias;

    Matrix(int64_t rows, int64_t inner)
        : rows(padded(rows)), inner(padded(inner)), weights(this->rows * this->inner), bias(this->rows) {}
    float& at(int64_t row, int64_t k) { return weights[(row / kTile * inner + k) * kTile + row % kTile]; }
};

struct Layer {
    int64_t out, in;       // channels
    int64_t offset;        // of its weights [out, in] among all parameters; its bias [out] follows
    Matrix forward, back;  // and the transposed one
};

std::vector<Layer> unpack(const float* parameters, const int64_t* widths, int64_t count) {
    std::vector<Layer> layers;
    int64_t offset = 0;
    for (int64_t l = 0; l < count; ++l) {
        const int64_t in = widths[l], out = widths[l + 1];
        Layer layer{out, in, offset, Matrix(out, in), Matrix(in, out)};
        for (int64_t o = 0; o < out; ++o) {
            for (int64_t i = 0; i < in; ++i)
                layer.forward.at(o, i) = layer.back.at(i, o) = parameters[offset + o * in + i];
            layer.forward.bias[o] = parameters[offset + out * in + o];
        }
        offset += out * in + out;
        layers.push_back(std::move(layer));
    }
    return layers;
}

// out[row] = finish(bias[row] + sum_k weights[row][k] in[k], row, column)
template <typename Finish>
ALWAYS_INLINE void product(const Matrix& m, const float* in, float* out, Finish finish) {
    for (int64_t row = 0; row < m.rows; row += kTile) {
        for (int64_t x = 0; x < kBlock; x += kColumns * kLanes) {
            Lanes sum[kTile][kColumns];
            for (int r = 0; r < kTile; ++r)
                for (int c = 0; c < kColumns; ++c) sum[r][c] = broadcast(m.bias[row + r]);
            const float* weights = m.weights.data() + row * m.inner;
            for (int64_t k = 0; k < m.inner; ++k, weights += kTile) {
                Lanes value[kColumns];
                for (int c = 0; c < kColumns; ++c) value[c] = load(in + k * kBlock + x + c * kLanes);
                for (int r = 0; r < kTile; ++r)
                    for (int c = 0; c < kColumns; ++c) sum[r][c] += weights[r] * value[c];
            }
            #pragma GCC unroll 4  // or the sums would leave their registers to be indexed
            for (int r = 0; r < kTile; ++r)
                #pragma GCC unroll 4
                for (int c = 0; c < kColumns; ++c) {
                    const int64_t at = (row + r) * kBlock + x + c * kLanes;
                    store(out + at, finish(sum[r][c], at));
                }
        }
    }
}

// sums[row][k] += slope[row] in[k] and bias[row] += slope[row], lane by lane over the pixels.
void outer(const Matrix& m, const float* slope, const float* in, float* sums, float* bias) {
    for (int64_t row = 0; row < m.rows; row += kTile) {
        for (int64_t k = 0; k < m.inner; k += kTile) {
            Lanes sum[kTile][kTile];
            float* const tile = sums + (row * m.inner + k * kTile) * kLanes;
            for (int r = 0; r < kTile; ++r)
                for (int c = 0; c < kTile; ++c) sum[r][c] = load(tile + (r * kTile + c) * kLanes);
            for (int64_t x = 0; x < kBlock; x += kLanes) {
                Lanes value[kTile];
                for (int c = 0; c < kTile; ++c) value[c] = load(in + (k + c) * kBlock + x);
                for (int r = 0; r < kTile; ++r) {
                    const Lanes g = load(slope + (row + r) * kBlock + x);
                    for (int c = 0; c < kTile; ++c) sum[r][c] += g * value[c];
                }
            }
            for (int r = 0; r < kTile; ++r)
                for (int c = 0; c < kTile; ++c) store(tile + (r * kTile + c) * kLanes, sum[r][c]);
        }
        for (int r = 0; r < kTile; ++r) {
            Lanes sum = load(bias + (row + r) * kLanes);
            for (int64_t x = 0; x < kBlock; x += kLanes) sum += load(slope + (row + r) * kBlock + x);
            store(bias + (row + r) * kLanes, sum);
        }
    }
}

float total(const float* lane_sums) {
    float sum = 0.0f;
    for (int i = 0; i < kLanes; ++i) sum += lane_sums[i];
    return sum;
}

// NaN passes through: a broken picture must not look like a white one.
ALWAYS_INLINE Lanes clamped(const Lanes& a, float low, float high) {
    const Lanes b = select(a < low, broadcast(low), a);
    return select(b > high, broadcast(high), b);
}

enum class Flat { kWhite, kBlack };

// What a forward pass leaves for a backward pass that needs no activations. Either both pointers or none.
struct Kept {
    float* residual;   // r, laid out as the image; not written where the picture is white or black
    uint16_t* active;  // [pixels / 16, units]: one bit per pixel, the hidden units of all layers in turn

    Kept from(int64_t start, int64_t group, int64_t units) const {
        return residual ? Kept{residual + start, active + group * units} : *this;
    }
};

// Hidden units, with the padding of each layer.
int64_t units_of(const std::vector<Layer>& layers) {
    int64_t units = 0;
    for (size_t l = 1; l < layers.size(); ++l) units += layers[l].forward.inner;
    return units;
}

// The buffers of one thread, and what happens to the pixels of a chunk.
class Block {
public:
    explicit Block(const std::vector<Layer>& layers) : layers_(layers), units_(units_of(layers)) {
        int64_t widest = kTile;
        for (const Layer& layer : layers) {
            activations_.emplace_back(layer.forward.inner * kBlock);
            widest = std::max(widest, std::max(layer.forward.rows, layer.forward.inner));
        }
        for (Buffer* buffer : {&residual_, &image_, &direct_}) *buffer = Buffer(kTile * kBlock);
        for (Buffer* buffer : {&slope_, &next_}) *buffer = Buffer(widest * kBlock);
        for (const Layer& layer : layers) {
            weight_sums_.emplace_back(layer.forward.rows * layer.forward.inner * kLanes);
            bias_sums_.emplace_back(layer.forward.rows * kLanes);
        }
    }

    void clear_sums() {
        for (Buffer& sums : weight_sums_) sums.clear();
        for (Buffer& sums : bias_sums_) sums.clear();
    }

    // Adds up the lanes into the order of the parameters.
    void write_sums(float* out) const {
        for (size_t l = 0; l < layers_.size(); ++l) {
            const Layer& layer = layers_[l];
            for (int64_t o = 0; o < layer.out; ++o) {
                for (int64_t i = 0; i < layer.in; ++i) {
                    const int64_t tile = o / kTile * kTile * layer.forward.inner + i / kTile * kTile * kTile;
                    const int64_t at = tile + o % kTile * kTile + i % kTile;
                    out[layer.offset + o * layer.in + i] = total(weight_sums_[l] + at * kLanes);
                }
                out[layer.offset + layer.out * layer.in + o] = total(bias_sums_[l] + o * kLanes);
            }
        }
    }

    // y of `length` pixels, in planes of `plane` pixels.
    void forward(const float* image, int64_t plane, int64_t length, float* out, const Kept& kept) {
        for_groups(image, plane, length, [&](int64_t at, Flat) {
            for (int c = 0; c < 3; ++c) store(out + c * plane + at, clamped(load(image + c * plane + at), 0.0f, 1.0f));
        }, [&] {
            residual(image, plane);
            if (kept.residual) keep(kept, plane);
            for (int64_t at = 0; at < 3 * kBlock; at += kLanes) {
                const Lanes x = load(activations_[0] + at), e = growth(load(residual_ + at));
                store(slope_ + at, x * e / ((1.0f - x) + x * e));
            }
            scatter(slope_, plane, out);
        });
    }

    // The gradient of the image, unless null, and, if wanted, that of the parameters added to the sums.
    // With what a forward has kept, that of the parameters cannot be had.
    void backward(const float* image, const float* gradient, int64_t plane, int64_t length, float* image_gradient,
                  bool parameters, const Kept& kept) {
        for_groups(image, plane, length, [&](int64_t at, Flat flat) {
            // x (1 - x) is zero here: nothing reaches the network, and dy/dx is 1 / e^r on white and e^r on black.
            for (int c = 0; image_gradient && c < 3; ++c) {
                const Lanes x = load(image + c * plane + at);
                const float slope = flat == Flat::kWhite ? 1.0f / white_[c] : black_[c];
                store(image_gradient + c * plane + at, inward(load(gradient + c * plane + at) * slope, x));
            }
        }, [&] {
            if (kept.residual) {
                load_inputs(image, plane);
                gather(kept.residual, plane, residual_);
            } else {
                residual(image, plane);
            }
            gather(gradient, plane, next_);
            std::fill(slope_ + 3 * kBlock, slope_ + kTile * kBlock, 0.0f);
            for (int64_t at = 0; at < 3 * kBlock; at += kLanes) {
                const Lanes x = load(activations_[0] + at), r = load(residual_ + at), e = growth(r);
                const Lanes inverse = 1.0f / ((1.0f - x) + x * e);
                const Lanes direct = load(next_ + at) * e * inverse * inverse;
                store(direct_ + at, direct);
                store(slope_ + at, select(abs(r) <= kResidualLimit, direct * x * (1.0f - x), 0.0f));
            }
            int64_t units = units_;
            for (int64_t l = int64_t(layers_.size()) - 1; l >= 0; --l) {
                const float* in = activations_[l].data();
                if (parameters) outer(layers_[l].forward, slope_ + 0, in, weight_sums_[l] + 0, bias_sums_[l] + 0);
                if (l == 0) break;
                if (kept.residual) {
                    units -= layers_[l].forward.inner;
                    product(layers_[l].back, slope_ + 0, next_ + 0, [&](const Lanes& sum, int64_t at) {
                        const uint16_t* active = kept.active + group_[at % kBlock / kLanes].at / kLanes * units_ + units;
                        return select(mask_of(active[at / kBlock]), sum, 0.0f);
                    });
                } else {
                    product(layers_[l].back, slope_ + 0, next_ + 0, [in](const Lanes& sum, int64_t at) {
                        return select(load(in + at) > 0.0f, sum, 0.0f);
                    });
                }
                std::swap(slope_, next_);
            }
            if (!image_gradient) return;
            product(layers_[0].back, slope_ + 0, next_ + 0, [this](const Lanes& sum, int64_t at) {
                return inward(sum + load(direct_ + at), load(image_ + at));
            });
            scatter(next_, plane, image_gradient);
        });
    }

    // Prepares `backward`: e^r of white and of black.
    void learn_flat_colors() {
        const float image[2 * 3] = {1.0f, 0.0f, 1.0f, 0.0f, 1.0f, 0.0f};
        groups_ = 1, group_[0] = {0, 2};
        residual(image, 2);
        groups_ = 0;
        for (int c = 0; c < 3; ++c) {
            float e[kLanes];
            store(e, growth(load(residual_ + c * kBlock)));
            white_[c] = e[0], black_[c] = e[1];
        }
    }

private:
    // e^r; a NaN stays one, which `exp2` alone would lose.
    ALWAYS_INLINE static Lanes growth(const Lanes& r) {
        const Lanes bounded = clamped(r, -kResidualLimit, kResidualLimit);
        return exp2(bounded * kLog2e) + (bounded - bounded);
    }

    // A color outside [0, 1] may come back but not go further out.
    ALWAYS_INLINE static Lanes inward(const Lanes& slope, const Lanes& x) {
        const Lanes below = select((x > 1.0f) & (slope < 0.0f), broadcast(0.0f), slope);
        return select((x < 0.0f) & (below > 0.0f), broadcast(0.0f), below);
    }

    // Calls flat(first pixel, which) for groups of 16 white or black pixels, and block()
    // whenever `group_` holds a block of others, and for the rest of them.
    template <typename OnFlat, typename OnBlock>
    void for_groups(const float* image, int64_t plane, int64_t length, OnFlat on_flat, OnBlock on_block) {
        constexpr uint32_t all = (1u << kLanes) - 1;
        for (int64_t at = 0; at < length; at += kLanes) {
            const int64_t count = std::min<int64_t>(kLanes, length - at);
            if (count == kLanes) {
                const Lanes r = load(image + at), g = load(image + plane + at), b = load(image + 2 * plane + at);
                const bool white = bits((r >= 1.0f) & (g >= 1.0f) & (b >= 1.0f)) == all;
                if (white || bits((r <= 0.0f) & (g <= 0.0f) & (b <= 0.0f)) == all) {
                    on_flat(at, white ? Flat::kWhite : Flat::kBlack);
                    continue;
                }
            }
            group_[groups_++] = {at, count};
            if (groups_ == kBlock / kLanes) on_block(), groups_ = 0;
        }
        if (groups_) on_block(), groups_ = 0;
    }

    // The pixels of the groups, side by side, zeros after them; and back.
    void gather(const float* from, int64_t plane, Buffer& to) const {
        for (int c = 0; c < 3; ++c) {
            float* row = to + c * kBlock;
            std::fill(row + (groups_ - 1) * kLanes, row + kBlock, 0.0f);
            for (int i = 0; i < groups_; ++i)
                std::copy_n(from + c * plane + group_[i].at, group_[i].count, row + i * kLanes);
        }
    }
    void scatter(const Buffer& from, int64_t plane, float* to) const {
        for (int c = 0; c < 3; ++c)
            for (int i = 0; i < groups_; ++i)
                std::copy_n(from + c * kBlock + i * kLanes, group_[i].count, to + c * plane + group_[i].at);
    }

    void load_inputs(const float* image, int64_t plane) {
        gather(image, plane, image_);
        for (int64_t at = 0; at < 3 * kBlock; at += kLanes)
            store(activations_[0] + at, clamped(load(image_ + at), 0.0f, 1.0f));
    }

    void keep(const Kept& kept, int64_t plane) const {
        scatter(residual_, plane, kept.residual);
        for (int i = 0; i < groups_; ++i) {
            uint16_t* active = kept.active + group_[i].at / kLanes * units_;
            for (size_t l = 1; l < layers_.size(); ++l) {
                const float* unit = activations_[l] + i * kLanes;
                for (int64_t k = 0; k < layers_[l].forward.inner; ++k, unit += kBlock)
                    *active++ = static_cast<uint16_t>(bits(load(unit) > 0.0f));
            }
        }
    }

    // Leaves the inputs of all layers in `activations_` and r in `residual_`.
    void residual(const float* image, int64_t plane) {
        load_inputs(image, plane);
        for (size_t l = 0; l + 1 < layers_.size(); ++l) {
            product(layers_[l].forward, activations_[l].data(), activations_[l + 1].data(),
                    [](const Lanes& sum, int64_t) { return select(sum < 0.0f, broadcast(0.0f), sum); });
        }
        product(layers_.back().forward, activations_.back().data(), residual_.data(),
                [](const Lanes& sum, int64_t) { return sum; });
    }

    struct Group {
        int64_t at, count;  // first pixel in the chunk; fewer than 16 at its end
    };

    const std::vector<Layer>& layers_;
    const int64_t units_;
    Group group_[kBlock / kLanes] = {};  // what the buffers hold
    int groups_ = 0;
    float white_[3], black_[3];     // e^r there
    std::vector<Buffer> activations_;  // the input of each layer
    Buffer image_, residual_, direct_, slope_, next_;
    std::vector<Buffer> weight_sums_, bias_sums_;
};

// Calls work(block, first pixel of the chunk in its channel, its length, chunk number, its first group of 16) for all.
template <typename Work>
int for_chunks(const std::vector<Layer>& layers, int64_t images, int64_t pixels, Work work) {
    const int64_t per_image = (pixels + kChunk - 1) / kChunk, groups = (pixels + kLanes - 1) / kLanes;
    int status = 0;
    #pragma omp parallel reduction(| : status)
    {
        // An exception may not leave the region, so every thread makes its buffers under guard.
        std::vector<Block> block;
        status |= native::guarded([&] { block.emplace_back(layers); });
        #pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < images * per_image; ++task) {
            if (block.empty()) continue;
            const int64_t first = task % per_image * kChunk, image = task / per_image;
            work(block.front(), 3 * pixels * image + first, std::min(kChunk, pixels - first), task,
                 groups * image + first / kLanes);
        }
    }
    return status;
}

}  // namespace

// Elements of `active` for a picture.
NATIVE_EXPORT int64_t color_net_active_size(int64_t images, int64_t pixels, const int64_t* widths, int64_t count) {
    int64_t units = 0;
    for (int64_t l = 1; l < count; ++l) units += padded(widths[l]);
    return images * ((pixels + kLanes - 1) / kLanes) * units;
}

// image, out: [images, 3, pixels]; widths[count + 1]: channels from 3 to 3; parameters:
// the weights [out, in] and the bias [out] of each layer in turn. residual, as the image, and active
// keep what a backward needs that leaves the parameters alone; both or neither may be null.
NATIVE_EXPORT int color_net_forward(const float* image, int64_t images, int64_t pixels, const float* parameters,
                                    const int64_t* widths, int64_t count, float* out, float* residual,
                                    uint16_t* active) {
    int status = 0;
    status |= native::guarded([&] {
        const std::vector<Layer> layers = unpack(parameters, widths, count);
        const Kept kept{residual, active};
        const int64_t units = units_of(layers);
        status |= for_chunks(layers, images, pixels,
                             [&](Block& block, int64_t start, int64_t length, int64_t, int64_t group) {
            block.forward(image + start, pixels, length, out + start, kept.from(start, group, units));
        });
    });
    return status;
}

// gradient: of `out`. Writes the gradients of the image and of the parameters, each unless null.
// residual and active: what the forward kept, then without the parameters' gradient, or null.
NATIVE_EXPORT int color_net_backward(const float* image, const float* gradient, int64_t images, int64_t pixels,
                                     const float* parameters, const int64_t* widths, int64_t count,
                                     float* residual, uint16_t* active, float* image_gradient,
                                     float* parameter_gradient) {
    int status = 0;
    status |= native::guarded([&] {
        const std::vector<Layer> layers = unpack(parameters, widths, count);
        const Kept kept{residual, active};
        const int64_t units = units_of(layers);
        const int64_t size = layers.back().offset + layers.back().out * (layers.back().in + 1);
        const int64_t chunks = images * ((pixels + kChunk - 1) / kChunk);
        std::vector<float> sums(parameter_gradient ? chunks * size : 0);
        status |= for_chunks(layers, images, pixels,
                             [&](Block& block, int64_t start, int64_t length, int64_t task, int64_t group) {
            block.clear_sums();
            block.learn_flat_colors();
            block.backward(image + start, gradient + start, pixels, length,
                           image_gradient ? image_gradient + start : nullptr, parameter_gradient != nullptr,
                           kept.from(start, group, units));
            if (parameter_gradient) block.write_sums(&sums[task * size]);
        });
        for (int64_t i = 0; parameter_gradient && i < size; ++i) {
            double sum = 0.0;
            for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += sums[chunk * size + i];
            parameter_gradient[i] = static_cast<float>(sum);
        }
    });
    return status;
}
