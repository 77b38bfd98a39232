// Layers of both stacks: products of rows with a matrix, and what is between them.
//
// The result of a row has the same bits whatever rows are computed with it.
#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "lanes.h"
#include "stack.h"

namespace lora_ft::LANES {

#if defined(__AVX512F__)
constexpr int kRows = 8;  // rows whose sums fit in registers
#else
constexpr int kRows = 2;
#endif

constexpr int kAhead = 8192;  // bytes; the processor looks less far ahead where many rows use each byte

inline std::pair<int, int> share(int count, int thread, int threads) {
    return {count * thread / threads, count * (thread + 1) / threads};
}

// Rows as signed bytes, with what each group needs to become floats again.
struct Quantized {
    std::vector<int8_t> values;  // [rows, stride]
    std::vector<float> steps;    // [rows, groups]
    std::vector<int32_t> zeros;  // [rows, groups]: what the zero of the weights adds to a sum, negated
    int stride = 0, groups = 0;
    std::vector<float> lengths;  // [rows], of rows that were taken over

    // Quantizes rows [rows, inputs] as `matrix` takes them.
    void set(const float* from, int rows, const Matrix& matrix) {
        resize(rows, matrix);
        values.resize(static_cast<size_t>(rows) * stride);
        for (size_t row = 0; row < static_cast<size_t>(rows); ++row)
            for (int group = 0; group < groups; ++group)
                set_group(from + row * matrix.inputs + group * matrix.group, matrix, row, group);
    }

    // Takes over rows that were quantized for a matrix whose groups are multiples of those of `matrix`.
    void set(const Quantized& from, int rows, const Matrix& matrix) {
        resize(rows, matrix);
        values = from.values;
        lengths.resize(rows);
        for (int row = 0; row < rows; ++row) {
            float squares = 0;
            for (int group = 0; group < groups; ++group) {
                const int8_t* const first = values.data() + row * stride + group * matrix.group;
                const float step = from.steps[row * from.groups + group * from.groups / groups];
                int32_t total = 0, square = 0;
                for (int i = 0; i < matrix.group; ++i) total += first[i], square += first[i] * first[i];
                steps[row * groups + group] = step;
                zeros[row * groups + group] = -matrix.zero() * total;
                squares += static_cast<float>(square) * step * step;
            }
            lengths[row] = std::sqrt(squares);
        }
    }

  private:
    void resize(int rows, const Matrix& matrix) {
        stride = matrix.stride;
        groups = matrix.groups();
        steps.resize(static_cast<size_t>(rows) * groups);
        zeros.resize(static_cast<size_t>(rows) * groups);
    }

    void set_group(const float* from, const Matrix& matrix, size_t row, int group) {
        constexpr float kTiny = 1e-12f;
        const int count = matrix.group;  // a multiple of 16, as are all sizes of a stack
        int8_t* const to = values.data() + row * stride + group * matrix.group;
        float step = matrix.step;
        if (!step) {
            Floats peaks{};
            for (int i = 0; i < count; i += kLanes) peaks = larger(peaks, magnitude(floats(from + i)));
            step = maximum(peaks) * (1 / 127.0f);
            step = step > kTiny ? step : kTiny;
        }
        const float inverse = 1 / step;
        Ints totals{};
        for (int i = 0; i < count; i += kLanes) {
            const Floats scaled = floats(from + i) * inverse;
            const Ints bytes = rounded(smaller(larger(scaled, splat(-128.0f)), splat(127.0f)));
            totals += bytes;
            store_bytes(to + i, bytes);
        }
        if (groups == 1)
            for (int i = count; i < stride; i += kLanes) store_bytes(to + i, Ints{});
        int32_t total = 0;
        for (int i = 0; i < kLanes; ++i) total += totals[i];
        steps[row * groups + group] = step;
        zeros[row * groups + group] = -matrix.zero() * total;
    }
};

template <int rows, int bits, bool grouped>
inline void product_of(const Matrix& matrix, int tile, const Quantized& x, size_t first, float* out) {
    constexpr int kInputs = bits == 8 ? 4 : 8;  // of one line of both halves of a tile
    const uint8_t* weights = matrix.values + tile * matrix.tile_bytes();
    const float* scales = matrix.scales + static_cast<size_t>(tile) * matrix.groups() * kTile;
    const int8_t* const inputs = x.values.data() + first * x.stride;
    Floats results[rows][2] = {};
    const int groups = grouped ? x.groups : 1, size = groups == 1 ? matrix.stride : matrix.group;
    for (int group = 0; group < groups; ++group) {
        Ints sums[rows][2];
        for (int row = 0; row < rows; ++row)
            sums[row][0] = sums[row][1] = splat(x.zeros[(first + row) * groups + group]);
        for (int i = 0; i < size; i += kInputs, weights += 128) {
            const Bytes left = load<Bytes>(weights), right = load<Bytes>(weights + 64);
            if (rows > 2) prefetch(weights + kAhead), prefetch(weights + kAhead + 64);
            for (int row = 0; row < rows; ++row) {
                int32_t four[kInputs / 4];
                std::memcpy(four, inputs + row * x.stride + group * matrix.group + i, kInputs);
                if (bits == 8) {
                    sums[row][0] = dot(sums[row][0], left, four[0]);
                    sums[row][1] = dot(sums[row][1], right, four[0]);
                } else {
                    sums[row][0] = dot(sums[row][0], left & 15, four[0]);
                    sums[row][1] = dot(sums[row][1], right & 15, four[0]);
                    sums[row][0] = dot(sums[row][0], left >> 4, four[kInputs / 4 - 1]);
                    sums[row][1] = dot(sums[row][1], right >> 4, four[kInputs / 4 - 1]);
                }
            }
        }
        for (int row = 0; row < rows; ++row)
            for (int half = 0; half < 2; ++half) {
                const float step = x.steps[(first + row) * groups + group];
                const Floats scale = floats(scales + group * kTile + half * kLanes) * step;
                results[row][half] = fma(to_floats(sums[row][half]), scale, results[row][half]);
            }
    }
    for (int row = 0; row < rows; ++row)
        for (int half = 0; half < 2; ++half) store(out + row * kTile + half * kLanes, results[row][half]);
}

// Writes the products of `rows` (`known` to kRows) rows from `first` with one tile to `out` [rows, 32].
template <int known = 1>
inline void product(const Matrix& matrix, int tile, const Quantized& x, int first, int rows, float* out) {
    if constexpr (known < kRows)
        if (rows > known) return product<known + 1>(matrix, tile, x, first, rows, out);
    return matrix.bits == 4 ? product_of<known, 4, true>(matrix, tile, x, first, out)
           : x.groups > 1   ? product_of<known, 8, true>(matrix, tile, x, first, out)
                            : product_of<known, 8, false>(matrix, tile, x, first, out);
}

// Calls `sink(row, values [32])` for each of `rows` rows, for one tile.
template <class Sink>
inline void each_product(const Matrix& matrix, int tile, const Quantized& x, int rows, Sink sink) {
    float out[kRows * kTile];
    const int passes = (rows + kRows - 1) / kRows;  // of equal size, since one or two rows do not fill the lanes
    for (int pass = 0; pass < passes; ++pass) {
        const int first = rows * pass / passes, count = rows * (pass + 1) / passes - first;
        product(matrix, tile, x, first, count, out);
        for (int row = 0; row < count; ++row) sink(first + row, out + row * kTile);
    }
}

inline void embed(const Stack& stack, int64_t token, float* to) {
    const int8_t* const from = stack.embedding + token * stack.sizes.d_model;
    for (int i = 0; i < stack.sizes.d_model; ++i) to[i] = static_cast<float>(from[i]) * stack.embedding_scale[token];
}

// Writes the norms of rows [rows, d_model].
inline void norm(const Sizes& sizes, const float* from, int rows, const float* weight, float* to) {
    const int size = sizes.d_model;
    for (int row = 0; row < rows; ++row, from += size, to += size) {
        Floats squares{};
        for (int i = 0; i < size; i += kLanes) squares = fma(floats(from + i), floats(from + i), squares);
        const float factor = 1 / std::sqrt(sum(squares) / static_cast<float>(size) + sizes.epsilon);
        for (int i = 0; i < size; i += kLanes) store(to + i, floats(from + i) * factor * floats(weight + i));
    }
}

inline Floats activated(int activation, Floats x) {
    if (activation == kRelu) return larger(x, Floats{});
    Floats power = -x;  // of x / (1 + e^power)
    if (activation == kGelu) power = fma(x * x, splat(0.044715f), splat(1.0f)) * x * -1.5957691216f;
    return x / (exponential(power) + 1.0f);
}

// Writes the first projection of a feed-forward to `to` [rows, d_ff], in the tiles from `begin` to before `end`.
//
// `each_row(tile, sink)` calls `sink(row, values [32])` for each row of a tile. The gate's tiles are the first, and are
// read first, in the order in which they lie.
template <class EachRow>
inline void feed(const Sizes& sizes, int begin, int end, float* to, EachRow each_row) {
    const auto place = [&](int row, int tile) { return to + static_cast<size_t>(row) * sizes.d_ff + tile * kTile; };
    for (int tile = begin; tile < end; ++tile)
        each_row(tile, [&](int row, const float* values) {
            for (int half = 0; half < kTile; half += kLanes)
                store(place(row, tile) + half, activated(sizes.activation, floats(values + half)));
        });
    for (int tile = begin; sizes.gated && tile < end; ++tile)
        each_row(sizes.d_ff / kTile + tile, [&](int row, const float* values) {
            float* const gates = place(row, tile);
            for (int half = 0; half < kTile; half += kLanes)
                store(gates + half, floats(gates + half) * floats(values + half));
        });
}

// Adds the values of a tile to those at `to`.
inline void add_tile(float* to, const float* values) {
    for (int half = 0; half < kTile; half += kLanes) store(to + half, floats(to + half) + floats(values + half));
}

}  // namespace lora_ft::LANES
