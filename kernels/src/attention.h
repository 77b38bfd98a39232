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

// Up to 16 queries, a lane each, and the keys and values [count, d_kv] of their source.
struct Group {
    const float* queries;  // [d_kv, 16]
    int used;              // queries
    const float *keys, *values;  // readable up to a multiple of 16 keys
    int count;
    const int64_t* mask;
    const float* by_offset;  // what is added to the scores of the first key; to those of key j: at by_offset - j
};

// Writes the attention of a group to rows of `out`, which are `stride` apart.
//
// `scores` is room for [count rounded up to 16, 16].
template <int size>
inline void attend_lanes(const Group& group, float* scores, float* out, int stride) {
    Floats highest = splat(kNever);
    for (int first = 0; first < group.count; first += kLanes) {
        const float* const block = group.keys + static_cast<size_t>(first) * size;
        Floats each[kLanes];
        for (int j = 0; j < kLanes; ++j) each[j] = floats(group.by_offset - first - j);
        for (int i = 0; i < size; ++i) {
            const Floats query = floats(group.queries + i * kLanes);
            for (int j = 0; j < kLanes; ++j) each[j] = fma(query, splat(block[j * size + i]), each[j]);
        }
        for (int j = 0; j < kLanes && first + j < group.count; ++j) {
            const Floats score = group.mask[first + j] ? each[j] : splat(kNever);
            highest = larger(highest, score);
            store(scores + (first + j) * kLanes, score);
        }
    }
    Floats total{};
    for (int key = 0; key < group.count; ++key) {
        const Floats part = exponential(floats(scores + key * kLanes) - highest);
        total += part;
        store(scores + key * kLanes, part);
    }
    float norms[kLanes];
    store(norms, 1.0f / total);
    constexpr int kHalf = kLanes / 2;
    for (int lane = 0; lane < group.used; lane += kHalf)
        for (int column = 0; column < size; column += 2 * kLanes) {
            Floats mixed[kHalf][2] = {};
            for (int key = 0; key < group.count; ++key) {
                const float* const value = group.values + static_cast<size_t>(key) * size + column;
                const Floats left = floats(value), right = floats(value + kLanes);
                for (int j = 0; j < kHalf; ++j) {
                    const Floats part = splat(scores[key * kLanes + lane + j]);
                    mixed[j][0] = fma(part, left, mixed[j][0]);
                    mixed[j][1] = fma(part, right, mixed[j][1]);
                }
            }
            for (int j = 0; j < kHalf && lane + j < group.used; ++j)
                for (int half = 0; half < 2; ++half)
                    store(out + (lane + j) * stride + column + half * kLanes, mixed[j][half] * norms[lane + j]);
        }
}

inline void attend(const Group& group, int d_kv, float* scores, float* out, int stride) {
    switch (d_kv) {
        case 32: return attend_lanes<32>(group, scores, out, stride);
        case 64: return attend_lanes<64>(group, scores, out, stride);
        case 128: return attend_lanes<128>(group, scores, out, stride);
    }
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
