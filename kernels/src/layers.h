// Parts that both stacks share.
#pragma once

#include <cmath>
#include <utility>

#include "stack.h"
#include "lanes.h"

namespace lora_ft::LANES {

inline std::pair<int, int> share(int count, int thread, int threads) {
    return {count * thread / threads, count * (thread + 1) / threads};
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

// Adds the values of a tile to those at `to`.
inline void add_tile(float* to, const float* values) {
    for (int half = 0; half < kTile; half += kLanes) store(to + half, floats(to + half) + floats(values + half));
}

}  // namespace lora_ft::LANES
