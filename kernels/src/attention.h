// Attention over the keys and values of one head.
#pragma once

#include <algorithm>

#include "lanes.h"

namespace lora_ft::LANES {

constexpr float kNever = -1e30f;  // score of a key that is not there

constexpr int kQueries = 8;  // queries that read keys and values together, while these are in the nearest cache

// Queries [number, d_kv] of one head, and the keys and values [count, d_kv] that they see, floats or halves.
template <class Number>
struct Queries {
    const float* from;
    float* to;  // their attention, apart like the queries
    int stride, number;
    const Number *keys, *values;
    int count, more;     // keys of the first query, and how many more each has than the one before
    const float* added;  // to the scores of the first query, readable up to a multiple of 16; next: at added - more
};

// Calls `use(query, block)` for each query, given `count` keys or values. Halves are expanded once for several.
template <int size, class Number, class Use>
inline void each_query(const Number* block, int count, int begin, int end, Use use) {
    alignas(64) float expanded[2 * kLanes * size];
    const bool together = sizeof(Number) < sizeof(float) && end - begin > 1;
    for (int i = 0; together && i < count * size; i += kLanes) store(expanded + i, floats(block + i));
    for (int query = begin; query < end; ++query)
        if (together)
            use(query, static_cast<const float*>(expanded));
        else
            use(query, block);
}

// Writes the attention of the queries from `begin` to `end`, at most kQueries. `weights` [kQueries, room] is room.
template <int vectors, class Number>
inline void attend_of(const Queries<Number>& all, int begin, int end, float* weights, int room) {
    constexpr int kSize = vectors * kLanes, kLine = 64 / sizeof(Number);
    Ints lanes;
    for (int i = 0; i < kLanes; ++i) lanes[i] = i;
    const auto count = [&](int query) { return all.count + query * all.more; };
    const int longest = count(end - 1);
    Floats highest[kQueries];
    for (Floats& each : highest) each = splat(kNever);
    for (int first = 0; first < longest; first += kLanes) {
        const int known = std::min(longest - first, kLanes);
        const size_t offset = static_cast<size_t>(first) * kSize;
        each_query<kSize>(all.keys + offset, known, begin, end, [&](int query, const auto* keys) {
            const int last = std::min(count(query) - first, kLanes);
            if (last <= 0) return;
            Floats parts[vectors], each[kLanes];
            for (int i = 0; i < vectors; ++i) parts[i] = floats(all.from + query * all.stride + i * kLanes);
            for (int j = 0; j < last; ++j, keys += kSize) {
                for (int i = 0; query == begin && i < kSize; i += kLine) prefetch(all.values + offset + j * kSize + i);
                each[j] = parts[0] * floats(keys);
                for (int i = 1; i < vectors; ++i) each[j] = fma(parts[i], floats(keys + i * kLanes), each[j]);
            }
            for (int j = last; j < kLanes; ++j) each[j] = Floats{};
            const Floats all_scores = sums(each) + floats(all.added - query * all.more + first);
            const Floats scores = lanes < splat(last) ? all_scores : splat(kNever);
            highest[query - begin] = larger(highest[query - begin], scores);
            store(weights + (query - begin) * room + first, scores);
        });
    }
    float norms[kQueries];
    for (int query = begin; query < end; ++query) {
        const float top = maximum(highest[query - begin]);
        Floats total{};
        for (int first = 0; first < count(query); first += kLanes) {
            float* const place = weights + (query - begin) * room + first;
            const Floats share = exponential(floats(place) - top);
            total += share;
            store(place, share);
        }
        norms[query - begin] = 1 / sum(total);
    }
    const int block = end - begin > 1 ? 2 * kLanes : longest;
    for (int first = 0; first < longest; first += block) {
        const int known = std::min(longest - first, block);
        const size_t offset = static_cast<size_t>(first) * kSize;
        each_query<kSize>(all.values + offset, known, begin, end, [&](int query, const auto* values) {
            float* const to = all.to + query * all.stride;
            Floats mixed[vectors] = {};
            for (int i = 0; first && i < vectors; ++i) mixed[i] = floats(to + i * kLanes);
            for (int j = first; j < std::min(first + block, count(query)); ++j, values += kSize) {
                const Floats weight = splat(weights[(query - begin) * room + j]);
                for (int i = 0; i < vectors; ++i) mixed[i] = fma(weight, floats(values + i * kLanes), mixed[i]);
            }
            const float norm = first + block < longest ? 1 : norms[query - begin];
            for (int i = 0; i < vectors; ++i) store(to + i * kLanes, mixed[i] * norm);
        });
    }
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
    const auto function = d_kv == 32 ? attend_lanes<32> : d_kv == 64 ? attend_lanes<64> : attend_lanes<128>;
    function(group, scores, out, stride);
}

template <class Number>
inline void attend(const Queries<Number>& queries, int d_kv, float* weights, int room) {
    for (int begin = 0; begin < queries.number; begin += kQueries) {
        const int end = std::min(begin + kQueries, queries.number);
        switch (d_kv) {
            case 32: attend_of<2>(queries, begin, end, weights, room); break;
            case 64: attend_of<4>(queries, begin, end, weights, room); break;
            case 128: attend_of<8>(queries, begin, end, weights, room); break;
        }
    }
}

}  // namespace lora_ft::LANES
