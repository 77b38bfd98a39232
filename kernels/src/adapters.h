// What adapters add to the products of their rows: B times the rounded product with A, in bytes as in a bank's graphs.
//
// The threads share the rows of A's products. B's are computed tile by tile, with the tiles that they are added to.
#pragma once

#include <vector>

#include "layers.h"
#include "products.h"

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
             std::vector<Addition>& all);
    // Fetches a part of the A that the row needs for the next matrix, if this thread multiplies it.
    void prefetch_next(int row);

  private:
    void multiply(const LowRank& adapter, const int8_t* x, int stride, float factor, int8_t* to);

    int begin_ = 0;                     // first row
    std::vector<int8_t> inner_;         // products with A
    std::vector<std::pair<const uint8_t*, const uint8_t*>> next_;  // of each row: what of the next A is not fetched
    Quantized own_;                     // a row, where the matrix takes it rounded otherwise
};

inline void Additions::set(const Call& call, const Matrix& matrix, const float* from, const Quantized& input,
                           int thread, int threads, std::vector<Addition>& all) {
    const int count = call.rows * call.tokens, shared = count / call.sources;
    const auto [begin, end] = share(count, thread, threads);
    const auto adapter_of = [&](int row) {
        const LowRank* const adapters = call.adapters[row / shared];
        return adapters && adapters[matrix.number].a ? adapters + matrix.number : nullptr;
    };
    int width = 0;
    for (int row = begin; row < end; ++row)
        if (const LowRank* const adapter = adapter_of(row)) width = std::max(width, adapter->parts * adapter->rank);
    width = (width + kLanes - 1) / kLanes * kLanes;
    inner_.resize(static_cast<size_t>(end - begin) * width);
    next_.assign(end - begin, {});
    begin_ = begin;
    for (int row = begin; row < end; ++row) {
        const LowRank* const adapter = adapter_of(row);
        all[row].adapter = adapter;
        if (!adapter) continue;
        const bool same = input.groups == 1 && matrix.step == adapter->step;
        if (!same) {
            Matrix plain = matrix;
            plain.bits = 8, plain.group = matrix.inputs, plain.step = adapter->step;
            own_.set(from + static_cast<size_t>(row) * matrix.inputs, 1, plain);
        }
        const Quantized& x = same ? input : own_;
        const size_t at = same ? row : 0;
        int8_t* const inner = inner_.data() + static_cast<size_t>(row - begin) * width;
        // with a scale per row, A's scales are in its units
        all[row] = {adapter, adapter->step ? 1 : x.steps[at], inner};
        multiply(*adapter, x.values.data() + at * x.stride, x.stride, adapter->step ? adapter->step : 1, inner);
        if (row == begin || adapter != all[row - 1].adapter)
            next_[row - begin] = {adapter[1].a, reinterpret_cast<const uint8_t*>(adapter[1].a_scale)};
    }
}

inline void Additions::prefetch_next(int row) {
    constexpr int kLines = 16;
    if (row < begin_ || row >= begin_ + static_cast<int>(next_.size())) return;
    auto& [at, end] = next_[row - begin_];
    for (int i = 0; i < kLines && at < end; ++i, at += 64) prefetch(at);
}

inline void Additions::multiply(const LowRank& adapter, const int8_t* x, int stride, float factor, int8_t* to) {
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
