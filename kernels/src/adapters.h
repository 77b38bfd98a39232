// What adapters add to the products of their rows: B times the rounded product with A, in bytes as in a bank's graphs.
//
// The threads share the rows of A's products. B's are computed tile by tile, with the tiles that they are added to.
#pragma once

#include <vector>

#include "layers.h"

namespace lora_ft::LANES {

// What is added to a row of products with one matrix.
struct Addition {
    const LowRank* adapter = nullptr;
    float step = 0;
    const int8_t* inner = nullptr;  // product with A
};

// The part of one thread in the additions of a call.
class Additions {
  public:
    // Multiplies this thread's rows of `all` [rows] with the A of their adapters, given rows [rows, inputs].
    void set(const Call& call, const Matrix& matrix, const float* from, const Quantized& input, int thread, int threads,
             std::vector<Addition>& all) {
        const int count = call.rows * call.tokens, shared = count / call.sources;
        const auto [begin, end] = share(count, thread, threads);
        begin_ = begin;
        rows_.resize(end - begin);
        for (int row = begin; row < end; ++row) {
            const LowRank* const adapters = call.adapters[row / shared];
            const LowRank* const adapter = adapters && adapters[matrix.number].a ? adapters + matrix.number : nullptr;
            auto& [inner, next, next_end] = rows_[row - begin];
            all[row].adapter = adapter;
            next = next_end = nullptr;
            if (!adapter) continue;
            inner.resize((adapter->parts * adapter->rank + kLanes - 1) / kLanes * kLanes);
            const bool same = input.groups == 1 && matrix.step == adapter->step;
            if (!same) {
                Matrix plain = matrix;
                plain.bits = 8, plain.group = matrix.inputs, plain.step = adapter->step;
                rounded_.set(from + static_cast<size_t>(row) * matrix.inputs, 1, plain);
            }
            const Quantized& x = same ? input : rounded_;
            const size_t at = same ? row : 0;
            // with a scale per row, A's scales are in its units
            all[row] = {adapter, adapter->step ? 1 : x.steps[at], inner.data()};
            const float factor = adapter->step ? adapter->step : 1;
            multiply(*adapter, x.values.data() + at * x.stride, x.stride, factor, inner.data());
            if (row > begin && adapter == all[row - 1].adapter) continue;
            next = adapter[1].a;
            next_end = reinterpret_cast<const uint8_t*>(adapter[1].a_scale);
        }
    }

    // Fetches a part of the A that the row needs for the next matrix, if this thread multiplies it.
    void prefetch_next(int row) {
        constexpr int kLines = 16;
        if (row < begin_ || row >= begin_ + static_cast<int>(rows_.size())) return;
        Row& own = rows_[row - begin_];
        for (int i = 0; i < kLines && own.next < own.next_end; ++i, own.next += 64) prefetch(own.next);
    }

  private:
    struct Row {
        std::vector<int8_t> inner;       // product with A
        const uint8_t *next, *next_end;  // what of the next A is not fetched
    };

    void multiply(const LowRank& adapter, const int8_t* x, int stride, float factor, int8_t* to) {
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
            store_bytes(to + first, rounded(smaller(larger(product, splat(-128.0f)), splat(127.0f))));
        }
    }

    int begin_ = 0;  // first row
    std::vector<Row> rows_;
    Quantized rounded_;  // a row, where the matrix takes it rounded otherwise
};

inline const uint8_t* tile_of(const LowRank& adapter, int tile) {
    return adapter.b + static_cast<size_t>(tile) * kTile * (sizeof(float) + adapter.rank);
}

// Fetches the part of B that is added to a tile.
inline void prefetch_tile(const LowRank& adapter, int tile) {
    const uint8_t* const end = tile_of(adapter, tile + 1);
    for (const uint8_t* line = tile_of(adapter, tile); line < end; line += 64) prefetch(line);
}

// Adds B's product to the row's product [32] with a tile.
inline void add_product(const Addition& addition, int tile, float* values) {
    const LowRank& adapter = *addition.adapter;
    const int8_t* x = addition.inner;
    for (int end = adapter.tiles; tile >= end; end += adapter.tiles) x += adapter.rank;
    const uint8_t* const scales = tile_of(adapter, tile);
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
        const Floats scale = load<Floats>(scales + 64 * half) * addition.step;
        store(to, fma(to_floats(sums[half] - zeros), scale, floats(to)));
    }
}

}  // namespace lora_ft::LANES
