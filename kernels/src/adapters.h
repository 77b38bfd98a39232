// What adapters add to the products of their rows: B times the rounded product with A, in bytes as in a bank's graphs.
//
// A is the same for all tiles, so each thread computes all of its product. B's is computed tile by tile.
#pragma once

#include <vector>

#include "products.h"

namespace lora_ft::LANES {

class Additions {
  public:
    // Multiplies rows [rows, inputs] with the A of their adapters.
    void set(const Call& call, const Matrix& matrix, const float* from, const Quantized& input);
    // Adds B's product to the row's product [32] with a tile.
    void add(int tile, int row, float* values) const;

  private:
    struct Row {
        const LowRank* adapter;  // or null
        float step;
        size_t place;  // of the product with A
    };

    void multiply(const LowRank& adapter, const int8_t* x, int stride, float factor);

    std::vector<Row> rows_;      // empty without adapters
    std::vector<int8_t> inner_;  // products with A
    Quantized own_;              // a row, where the matrix takes it rounded otherwise
};

inline void Additions::set(const Call& call, const Matrix& matrix, const float* from, const Quantized& input) {
    rows_.clear();
    inner_.clear();
    const int count = call.adapters ? call.rows * call.tokens : 0;
    for (int row = 0; row < count; ++row) {
        const LowRank* const adapters = call.adapters[row / (count / call.sources)];
        if (!adapters || !adapters[matrix.number].a) {
            rows_.push_back({});
            continue;
        }
        const LowRank& adapter = adapters[matrix.number];
        const bool same = input.groups == 1 && matrix.step == adapter.step;
        if (!same) {
            Matrix plain = matrix;
            plain.bits = 8, plain.group = matrix.inputs, plain.step = adapter.step;
            own_.set(from + static_cast<size_t>(row) * matrix.inputs, 1, plain);
        }
        const Quantized& x = same ? input : own_;
        const size_t at = same ? row : 0;
        // with a scale per row, A's scales are in its units
        rows_.push_back({&adapter, adapter.step ? 1 : x.steps[at], inner_.size()});
        multiply(adapter, x.values.data() + at * x.stride, x.stride, adapter.step ? adapter.step : 1);
    }
}

inline void Additions::multiply(const LowRank& adapter, const int8_t* x, int stride, float factor) {
    const int columns = adapter.parts * adapter.rank;
    Ints zeros{};
    for (int i = 0; i < stride; i += 64) zeros = dot(zeros, Bytes{} + 128, load<Ints>(x + i));
    for (int first = 0; first < columns; first += kLanes) {
        Floats each[kLanes] = {};
        for (int j = 0; j < kLanes && first + j < columns; ++j) {
            const uint8_t* const column = adapter.a + static_cast<size_t>(first + j) * stride;
            Ints total = -zeros;
            for (int i = 0; i < stride; i += 64) total = dot(total, load<Bytes>(column + i), load<Ints>(x + i));
            each[j] = to_floats(total);
        }
        const Floats product = sums(each) * (floats(adapter.a_scale + first) * factor);
        inner_.resize(inner_.size() + kLanes);
        store_bytes(&inner_[inner_.size() - kLanes], rounded(smaller(larger(product, splat(-128.0f)), splat(127.0f))));
    }
}

inline void Additions::add(int tile, int row, float* values) const {
    if (rows_.empty() || !rows_[row].adapter) return;
    const LowRank& adapter = *rows_[row].adapter;
    const int8_t* x = inner_.data() + rows_[row].place;
    for (int end = adapter.tiles; tile >= end; end += adapter.tiles) x += adapter.rank;
    const uint8_t* const scales = adapter.b + static_cast<size_t>(tile) * kTile * (sizeof(float) + adapter.rank);
    const uint8_t* weights = scales + kTile * sizeof(float);
    Ints zeros{}, sums[2] = {};
    for (int i = 0; i < adapter.rank; i += 4, weights += 128) {
        int32_t four;
        std::memcpy(&four, x + i, 4);
        zeros = dot(zeros, Bytes{} + 128, four);
        for (int half = 0; half < 2; ++half) sums[half] = dot(sums[half], load<Bytes>(weights + 64 * half), four);
    }
    for (int half = 0; half < 2; ++half) {
        float* const to = values + half * kLanes;
        const Floats scale = load<Floats>(scales + 64 * half) * rows_[row].step;
        store(to, fma(to_floats(sums[half] - zeros), scale, floats(to)));
    }
}

}  // namespace lora_ft::LANES
