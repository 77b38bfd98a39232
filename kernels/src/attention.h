// Attention of one query over the keys and values of one head.
#pragma once

#include <vector>

#include "lanes.h"

namespace lora_ft::LANES {

constexpr float kNever = -1e30f;  // score of a key that is not there

// Writes the attention of `query` [d] over `count` keys and values [count, d] to `out` [d].
//
// `weights` has room for `count` rounded up to 16, and holds what is added to each score.
template <int vectors>
inline void attend_of(const float* query, const float* keys, const float* values, int count, float* weights,
                      float* out) {
    constexpr int kSize = vectors * kLanes;
    Floats parts[vectors];
    for (int i = 0; i < vectors; ++i) parts[i] = floats(query + i * kLanes);
    Floats highest = splat(kNever);
    for (int first = 0; first < count; first += kLanes) {
        Floats each[kLanes];
        const int last = count - first < kLanes ? count - first : kLanes;
        for (int j = 0; j < last; ++j) {
            const float* const key = keys + static_cast<size_t>(first + j) * kSize;
            for (size_t line = 0; line < kSize; line += kLanes) prefetch(values + (key - keys) + line);
            each[j] = parts[0] * floats(key);
            for (int i = 1; i < vectors; ++i) each[j] = fma(parts[i], floats(key + i * kLanes), each[j]);
        }
        for (int j = last; j < kLanes; ++j) {
            each[j] = Floats{};
            weights[first + j] = kNever;
        }
        const Floats scores = sums(each) + floats(weights + first);
        highest = larger(highest, scores);
        store(weights + first, scores);
    }
    const float top = maximum(highest);
    Floats total{};
    for (int first = 0; first < count; first += kLanes) {
        const Floats share = exponential(floats(weights + first) - top);
        total += share;
        store(weights + first, share);
    }
    Floats mixed[vectors] = {};
    for (int j = 0; j < count; ++j)
        for (int i = 0; i < vectors; ++i)
            mixed[i] = fma(splat(weights[j]), floats(values + static_cast<size_t>(j) * kSize + i * kLanes), mixed[i]);
    const float norm = 1 / sum(total);
    for (int i = 0; i < vectors; ++i) store(out + i * kLanes, mixed[i] * norm);
}

inline void attend(const float* query, const float* keys, const float* values, int count, int d_kv, float* weights,
                   float* out) {
    switch (d_kv) {
        case 32: return attend_of<2>(query, keys, values, count, weights, out);
        case 64: return attend_of<4>(query, keys, values, count, weights, out);
        case 128: return attend_of<8>(query, keys, values, count, weights, out);
    }
}

}  // namespace lora_ft::LANES
