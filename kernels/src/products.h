// Products of rows with a matrix. The result of a row has the same bits whatever rows are computed with it.
#pragma once

#include <vector>

#include "stack.h"
#include "lanes.h"

namespace lora_ft::LANES {

#if defined(__AVX512F__)
constexpr int kRows = 8;  // rows whose sums fit in registers
#else
constexpr int kRows = 2;
#endif

constexpr int kAhead = 8192;  // bytes; the processor looks less far ahead where many rows use each byte

// Rows as signed bytes, with what each group needs to become floats again.
struct Quantized {
    std::vector<int8_t> values;  // [rows, stride]
    std::vector<float> steps;    // [rows, groups]
    std::vector<int32_t> zeros;  // [rows, groups]: what the zero of the weights adds to a sum, negated
    int stride = 0, groups = 0;
    std::vector<float> lengths;  // [rows], of rows that were taken over

    // Quantizes rows [rows, inputs] as `matrix` takes them.
    void set(const float* from, int rows, const Matrix& matrix);
    // Takes over rows that were quantized for a matrix whose groups are multiples of those of `matrix`.
    void set(const Quantized& from, int rows, const Matrix& matrix);

  private:
    void set_group(const float* from, int count, const Matrix& matrix, size_t row, int group);
};

inline void Quantized::set(const float* from, int rows, const Matrix& matrix) {
    stride = matrix.stride;
    groups = matrix.groups();
    values.resize(static_cast<size_t>(rows) * stride);
    steps.resize(static_cast<size_t>(rows) * groups);
    zeros.resize(static_cast<size_t>(rows) * groups);
    for (int row = 0; row < rows; ++row)
        for (int group = 0; group < groups; ++group)
            set_group(from + static_cast<size_t>(row) * matrix.inputs + group * matrix.group, matrix.group, matrix, row,
                      group);
}

inline void Quantized::set(const Quantized& from, int rows, const Matrix& matrix) {
    stride = from.stride;
    groups = matrix.groups();
    values = from.values;
    steps.resize(static_cast<size_t>(rows) * groups);
    zeros.resize(static_cast<size_t>(rows) * groups);
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

inline void Quantized::set_group(const float* from, int count, const Matrix& matrix, size_t row, int group) {
    constexpr float kTiny = 1e-12f;
    int8_t* const to = values.data() + row * stride + group * matrix.group;
    const int whole = count / kLanes * kLanes;
    float step = matrix.step;
    if (!step) {
        Floats peaks{};
        for (int i = 0; i < whole; i += kLanes) peaks = larger(peaks, magnitude(floats(from + i)));
        float peak = maximum(peaks);
        for (int i = whole; i < count; ++i) peak = std::fabs(from[i]) > peak ? std::fabs(from[i]) : peak;
        step = peak * (1 / 127.0f);
        step = step > kTiny ? step : kTiny;
    }
    const float inverse = 1 / step;
    Ints totals{};
    for (int i = 0; i < count; i += kLanes) {
        float rest[kLanes] = {};
        if (i == whole) std::memcpy(rest, from + i, sizeof(float) * (count - whole));
        const Floats scaled = floats(i == whole ? rest : from + i) * inverse;
        const Ints bytes = rounded(smaller(larger(scaled, splat(-128.0f)), splat(127.0f)));
        totals += bytes;
        store_bytes(to + i, bytes);  // the stride leaves room for a whole vector
    }
    if (groups == 1)
        for (int i = (count + kLanes - 1) / kLanes * kLanes; i < stride; i += kLanes) store_bytes(to + i, Ints{});
    int32_t total = 0;
    for (int i = 0; i < kLanes; ++i) total += totals[i];
    steps[row * groups + group] = step;
    zeros[row * groups + group] = -matrix.zero() * total;
}

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

// Writes the products of `rows` (at most kRows) rows from `first` with one tile to `out` [rows, 32].
inline void product(const Matrix& matrix, int tile, const Quantized& x, int first, int rows, float* out) {
#define LORA_FT_ROWS(count)                                                                 \
    case count:                                                                             \
        return matrix.bits == 4 ? product_of<count, 4, true>(matrix, tile, x, first, out)   \
               : x.groups > 1   ? product_of<count, 8, true>(matrix, tile, x, first, out)   \
                                : product_of<count, 8, false>(matrix, tile, x, first, out);
    switch (rows) {
        LORA_FT_ROWS(1)
        LORA_FT_ROWS(2)
#if defined(__AVX512F__)
        LORA_FT_ROWS(3)
        LORA_FT_ROWS(4)
        LORA_FT_ROWS(5)
        LORA_FT_ROWS(6)
        LORA_FT_ROWS(7)
        LORA_FT_ROWS(8)
#endif
    }
#undef LORA_FT_ROWS
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

}  // namespace lora_ft::LANES
