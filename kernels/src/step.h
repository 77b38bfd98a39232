// One step of the decoder, as each thread of a call runs it.
//
// A thread computes queries, keys and values of its heads and their attention, so threads wait for each other only
// where a product needs all columns of its input, six times a layer, and with adapters where it needs all of A's.
#pragma once

#include <algorithm>
#include <vector>

#include "adapters.h"
#include "attention.h"
#include "layers.h"
#include "threads.h"

namespace lora_ft::LANES {

constexpr int kPreviewed = 2;  // tokens of a call up to which the preview of the head saves time

class Step {
  public:
    Step(const Stack& decoder, const Call& call) : decoder_(decoder), call_(call) {
        for (int source = 0; source < call.sources; ++source) {
            const int64_t* const mask = call.mask + static_cast<size_t>(source) * call.source_length;
            int length = call.source_length;
            while (length > 0 && !mask[length - 1]) --length;
            attended_[source] = length;
            float* const added = masks_.data() + (mask - call.mask);
            for (int key = 0; key < length; ++key) added[key] = mask[key] ? 0.0f : kNever;
        }
    }

    void run(int thread) {
        Own& own = own_[thread];
        own.normed.resize(static_cast<size_t>(count_) * sizes_.d_model);
        own.weights.resize(static_cast<size_t>(kQueries) * room_);
        own.bias.resize(room_ + kLanes + call_.tokens);
        embed(thread);
        wait();
        for (int i = 0; i < sizes_.layers; ++i) {
            const Layer& layer = decoder_.layers[i];
            attend_self(i, thread);
            wait();
            add(layer.self_out, mixed_, thread);
            wait();
            attend_source(i, thread);
            wait();
            add(layer.cross_out, mixed_, thread);
            wait();
            feed(layer, thread);
            wait();
            add(layer.down, inner_, thread);
            wait();
        }
        choose(thread);
    }

    // Chooses the tokens, after all threads.
    void finish() {
        for (int row = 0; row < count_; ++row) {
            float best = -INFINITY;
            int64_t token = 0;
            for (const Own& own : own_)
                for (int i = 0; i < kLanes; ++i) {
                    const float score = own.best[row * kLanes + i];
                    const int64_t here = own.where[row * kLanes + i];
                    if (score > best || (score == best && here < token)) best = score, token = here;
                }
            call_.next[row] = token;
        }
    }

  private:
    struct Own {  // of one thread
        Quantized input;
        Additions additions;
        std::vector<float> normed, weights, bias;  // weights: [kQueries, room_]
        std::vector<float> best;     // [rows, 16]: highest logit of each lane, and its token
        std::vector<int32_t> where;
        Quantized rounded;          // the input of the preview
        std::vector<float> bounds;  // [tiles, rows]: what no logit of the tile should exceed
        std::vector<float> known;   // [rows]: highest logit before any tile is ruled out
    };

    void embed(int thread) {
        const auto [begin, end] = share(count_, thread, threads_);
        for (int i = begin; i < end; ++i)
            LANES::embed(decoder_, call_.ids[i], hidden_.data() + static_cast<size_t>(i) * sizes_.d_model);
    }

    void normed(int thread, const float* weight, const Matrix& matrix, int tile) {
        float* const rows = own_[thread].normed.data();
        norm(sizes_, hidden_.data(), count_, weight, rows);
        take(thread, rows, matrix, tile);
    }

    // Makes rows the inputs of a matrix, of which the thread computes this tile first.
    void take(int thread, const float* from, const Matrix& matrix, int tile) {
        Own& own = own_[thread];
        own.input.set(from, count_, matrix);
        if (added_.empty()) return;
        for (int source = 0; source < call_.sources; ++source)
            if (const LowRank* const adapters = call_.adapters[source]; adapters && adapters[matrix.number].a)
                prefetch_tile(adapters[matrix.number], tile);
        own.additions.set(call_, matrix, from, own.input, thread, threads_, added_);
        wait();
    }

    // Calls `sink(row, values [32])` with each row's product with one tile, and what its adapter adds.
    template <class Sink>
    void each_row(const Matrix& matrix, int tile, Own& own, Sink sink) const {
        each_product(matrix, tile, own.input, count_, [&](int row, float* values) {
            if (const LowRank* const adapter = added_.empty() ? nullptr : added_[row].adapter) {
                if (!row || adapter != added_[row - 1].adapter) prefetch_tile(*adapter, tile + 1);
                own.additions.prefetch_next(row);
                add_product(added_[row], tile, values);
            }
            sink(row, values);
        });
    }

    // Multiplies the normed rows with the columns of this thread's heads, of which a matrix has those of several kinds
    // side by side, and writes them to `place(kind, row, head)`.
    template <class Place>
    void project(int thread, const float* weight, const Matrix& matrix, Place place) {
        const int tiles = sizes_.d_kv / kTile;
        const auto [begin, end] = share(sizes_.heads, thread, threads_);
        normed(thread, weight, matrix, begin * tiles);
        for (int kind = 0; kind < matrix.outputs / sizes_.width(); ++kind)
            for (int tile = begin * tiles; tile < end * tiles; ++tile)
                each_row(matrix, kind * sizes_.heads * tiles + tile, own_[thread], [&](int row, const float* values) {
                    float* const to = place(kind, row, tile / tiles) + tile % tiles * kTile;
                    std::memcpy(to, values, sizeof(float) * kTile);
                });
    }

    float* query(int row, int head) {
        return query_.data() + static_cast<size_t>(row) * sizes_.width() + head * sizes_.d_kv;
    }

    void attend_self(int number, int thread) {
        const Layer& layer = decoder_.layers[number];
        Own& own = own_[thread];
        const int size = sizes_.d_kv, width = sizes_.width();
        const auto position = [&](int row) {
            const int answer = call_.lengths_count == 1 ? 0 : row / call_.tokens;
            return static_cast<int>(call_.lengths[answer]) + row % call_.tokens;
        };
        const auto cached = [&](int kind, int row, int head) {
            const size_t first = static_cast<size_t>(row / call_.tokens) * sizes_.heads + head;
            return call_.past[2 * number + kind] + first * call_.room * size;
        };
        project(thread, layer.norms[0], layer.joined, [&](int kind, int row, int head) {
            if (!kind) return query(row, head);
            return cached(kind - 1, row, head) + static_cast<size_t>(position(row)) * size;
        });
        const auto [begin, end] = share(sizes_.heads, thread, threads_);
        for (int head = begin; head < end; ++head) {
            const float* const by_distance = layer.bias + static_cast<size_t>(head) * (sizes_.far + 1);
            for (int row = 0; row < count_; row += call_.tokens) {
                const int last = position(row + call_.tokens - 1), first = position(row) + 1;
                for (int key = 0; key <= last; ++key) own.bias[key] = by_distance[std::min(last - key, sizes_.far)];
                const size_t place = static_cast<size_t>(row) * width + head * size;
                const float* const added = own.bias.data() + call_.tokens - 1;
                attend(Queries<float>{query_.data() + place, mixed_.data() + place, width, call_.tokens,
                                      cached(0, row, head), cached(1, row, head), first, 1, added},
                       size, own.weights.data(), room_);
            }
        }
    }

    void attend_source(int number, int thread) {
        const Layer& layer = decoder_.layers[number];
        const int size = sizes_.d_kv, width = sizes_.width();
        const int shared = count_ / call_.sources;  // tokens of each source
        project(thread, layer.norms[1], layer.query, [&](int, int row, int head) { return query(row, head); });
        const auto [begin, end] = share(sizes_.heads, thread, threads_);
        for (int head = begin; head < end; ++head) {
            for (int source = 0; source < call_.sources; ++source) {
                const size_t length = call_.source_length;
                const size_t first = (static_cast<size_t>(source) * sizes_.heads + head) * length * size;
                const size_t place = static_cast<size_t>(source) * shared * width + head * size;
                attend(Queries<Half>{query_.data() + place, mixed_.data() + place, width, shared,
                                     call_.cross[2 * number] + first, call_.cross[2 * number + 1] + first,
                                     attended_[source], 0, masks_.data() + source * length},
                       size, own_[thread].weights.data(), room_);
            }
        }
    }

    // Adds the product of `from` with a matrix to the hidden states.
    void add(const Matrix& matrix, const std::vector<float>& from, int thread) {
        const auto [begin, end] = share(matrix.tiles(), thread, threads_);
        take(thread, from.data(), matrix, begin);
        for (int tile = begin; tile < end; ++tile)
            each_row(matrix, tile, own_[thread], [&](int row, const float* values) {
                add_tile(hidden_.data() + static_cast<size_t>(row) * sizes_.d_model + tile * kTile, values);
            });
    }

    void feed(const Layer& layer, int thread) {
        const auto [begin, end] = share(sizes_.d_ff / kTile, thread, threads_);
        normed(thread, layer.norms[2], layer.up, begin);
        LANES::feed(sizes_, begin, end, inner_.data(),
                    [&](int tile, auto sink) { each_row(layer.up, tile, own_[thread], sink); });
    }

    void choose(int thread) {
        Own& own = own_[thread];
        const Matrix& head = decoder_.head;
        norm(sizes_, hidden_.data(), count_, decoder_.final_norm, own.normed.data());
        own.input.set(own.normed.data(), count_, head);
        own.best.assign(count_ * kLanes, -INFINITY);
        own.where.assign(count_ * kLanes, 0);
        const auto [begin, end] = share(head.tiles(), thread, threads_);
        if (decoder_.preview.outputs && !call_.logits && count_ <= kPreviewed) return score_likely(thread, begin, end);
        for (int tile = begin; tile < end; ++tile) score(own, tile);
    }

    // Updates the best logits with those of one tile.
    void score(Own& own, int tile) {
        const Matrix& head = decoder_.head;
        const int first = tile * kTile, known = std::min(kTile, head.outputs - first);
        Ints lanes;
        for (int i = 0; i < kLanes; ++i) lanes[i] = i;
        float barred[kTile] = {};  // not read from memory, which would take 0.06 of a step of 8 rows
        for (int i = 0; i < decoder_.barred_counts[call_.forbid_ends]; ++i)
            if (decoder_.barred[i] / kTile == tile) barred[decoder_.barred[i] % kTile] = -INFINITY;
        each_product(head, tile, own.input, count_, [&](int row, const float* values) {
            for (int half = 0; half < kTile; half += kLanes) {
                const Floats scores = floats(values + half) + floats(barred + half);
                float* const best = own.best.data() + row * kLanes;
                int32_t* const where = own.where.data() + row * kLanes;
                const Ints is_better = scores > floats(best);
                store(best, is_better ? scores : floats(best));
                store(where, is_better ? lanes + (first + half) : load<Ints>(where));
            }
            if (!call_.logits) return;
            std::memcpy(call_.logits + static_cast<size_t>(row) * head.outputs + first, values, sizeof(float) * known);
        });
    }

    // Scores the tiles that may have the best logit of a row, by the preview of all logits.
    void score_likely(int thread, int begin, int end) {
        Own& own = own_[thread];
        own.rounded.set(own.input, count_, decoder_.preview);
        own.bounds.resize(static_cast<size_t>(end - begin) * count_);
        own.known.resize(count_);
        const auto bound = [&](int tile, int row) -> float& { return own.bounds[(tile - begin) * count_ + row]; };
        std::vector<int> highest(count_, begin);
        for (int tile = begin; tile < end; ++tile)
            each_product(decoder_.preview, tile, own.rounded, count_, [&](int row, const float* values) {
                const float* const doubt = decoder_.doubt + tile * kTile;
                const Floats length = splat(own.rounded.lengths[row]);
                bound(tile, row) = maximum(larger(fma(floats(doubt), length, floats(values)),
                                                  fma(floats(doubt + kLanes), length, floats(values + kLanes))));
                if (bound(tile, row) > bound(highest[row], row)) highest[row] = tile;
            });
        for (int row = 0; row < count_ && begin < end; ++row) score(own, highest[row]);
        for (int row = 0; row < count_; ++row) own.known[row] = maximum(floats(own.best.data() + row * kLanes));
        wait();
        std::vector<float> known(count_, -INFINITY);
        for (int row = 0; row < count_; ++row)
            for (const Own& each : own_) known[row] = std::max(known[row], each.known[row]);
        for (int tile = begin; tile < end; ++tile) {
            bool is_likely = false;
            for (int row = 0; row < count_; ++row) is_likely |= bound(tile, row) >= known[row];
            if (is_likely) score(own, tile);
        }
    }

    std::vector<float> zeros(int width) const { return std::vector<float>(static_cast<size_t>(count_) * width); }
    void wait() { barrier_.wait(threads_); }

    const Stack& decoder_;
    const Call& call_;
    const int threads_ = call_.threads;
    const Sizes& sizes_ = decoder_.sizes;
    const int count_ = call_.rows * call_.tokens;  // tokens of all rows
    const int room_ = (std::max(call_.source_length, call_.room) + kLanes - 1) / kLanes * kLanes;  // keys of a query
    std::vector<float> hidden_ = zeros(sizes_.d_model);
    std::vector<float> mixed_ = zeros(sizes_.width());
    std::vector<float> inner_ = zeros(sizes_.d_ff);
    std::vector<float> query_ = zeros(sizes_.width());
    std::vector<Addition> added_ = std::vector<Addition>(call_.adapters ? count_ : 0);  // [rows], or empty
    std::vector<int> attended_ = std::vector<int>(call_.sources);  // of each source: tokens up to the last not masked
    // [sources, length], and up to 15 more: what is added to the scores of each key
    std::vector<float> masks_ = std::vector<float>(static_cast<size_t>(call_.sources) * call_.source_length + kLanes);
    std::vector<Own> own_ = std::vector<Own>(threads_);
    Barrier barrier_;
};

inline void run_step(const Stack& decoder, const Call& call, Pool& pool) {
    Step step(decoder, call);
    pool.run(call.threads, [&](int thread) { step.run(thread); });
    step.finish();
}

}  // namespace lora_ft::LANES
