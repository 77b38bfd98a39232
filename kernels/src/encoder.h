// The encoder, and the decoder's projection of its result onto keys and values, as each thread of a call runs them.
//
// The tokens of all sources lie one after another, so padding costs nothing. A thread computes tokens of its own, a few
// at a time, so that they stay in the cache of its core. It needs the others' only for attention: their keys and values
// of a layer, which it waits for. Those of consecutive layers are in two places, so it waits once a layer.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "attention.h"
#include "layers.h"
#include "threads.h"

namespace lora_ft::LANES {

constexpr int kChunk = 64;       // tokens that go through a layer together
constexpr int kTogether = 2048;  // tokens of sources that are encoded at a time; one source may have more

class Encode {
  public:
    // Encodes the sources from `first` to before `last`.
    Encode(const Stack& stack, const Sources& call, int first, int last) : stack_(stack), call_(call) {
        for (int number = first; number < last; ++number) {
            const int length = static_cast<int>(call.lengths[number]);
            sources_.insert(sources_.end(), length, {number, count_, length});
            count_ += length;
            longest_ = std::max(longest_, length);
        }
        room_ = count_ + kLanes;  // whole vectors of keys are read
        reach_ = longest_ + kLanes;
        hidden_.reset(new float[static_cast<size_t>(count_) * sizes_.d_model]);
        query_.reset(new float[static_cast<size_t>(count_) * sizes_.width()]);
        past_.reset(new float[static_cast<size_t>(4) * room_ * sizes_.width()]);
        const int far = sizes_.far, offsets = 2 * far + 1;
        for (int layer = 0; layer < (sizes_.bias_per_layer ? sizes_.layers : 1); ++layer) {
            std::vector<float>& bias = bias_.emplace_back(static_cast<size_t>(2) * reach_ * sizes_.heads);
            for (int head = 0; head < sizes_.heads; ++head)
                for (int i = 0; i < 2 * reach_; ++i)
                    bias[static_cast<size_t>(head) * 2 * reach_ + i] =
                        stack.layers[layer].bias[head * offsets + far + std::clamp(i - reach_, -far, far)];
        }
    }

    void run(int thread) {
        Own& own = own_[thread];
        own.normed.resize(kChunk * sizes_.d_model);
        own.mixed.resize(kChunk * sizes_.width());
        own.inner.resize(kChunk * sizes_.d_ff);
        own.queries.resize(kLanes * sizes_.d_kv);
        own.scores.resize(static_cast<size_t>(longest_ + kLanes) * kLanes);
        const auto [first, last] = share((count_ + kRows - 1) / kRows, thread, threads_);
        const int stop = std::min(last * kRows, count_);
        for (int number = -1; number < sizes_.layers; ++number) {
            for (int begin = first * kRows; begin < stop; begin += kChunk) {
                const int end = std::min(begin + kChunk, stop);
                if (number < 0) {
                    embed(begin, end);
                } else {
                    const Layer& layer = stack_.layers[number];
                    attend(number, begin, end, own);
                    add(layer.self_out, own.mixed, begin, end, own);
                    normed(layer.norms[1], layer.up, begin, end, own);
                    feed(sizes_, 0, sizes_.d_ff / kTile, own.inner.data(), [&](int tile, auto sink) {
                        each_product(layer.up, tile, own.input, end - begin, sink);
                    });
                    add(layer.down, own.inner, begin, end, own);
                }
                if (number + 1 < sizes_.layers)
                    project(number + 1, begin, end, own);
                else
                    cross(begin, end, own);
            }
            barrier_.wait(threads_);
        }
    }

  private:
    struct Own {  // of one thread
        Quantized input;
        std::vector<float> normed, mixed, inner, queries, scores;
    };
    struct Source {
        int number, begin, length;
    };

    float* place(int layer, int kind, int head, int token) {  // 0: key, 1: value
        const size_t row = (static_cast<size_t>(layer % 2 * 2 + kind) * sizes_.heads + head) * room_ + token;
        return past_.get() + row * sizes_.d_kv;
    }

    void embed(int begin, int end) {
        for (int token = begin; token < end; ++token) {
            const Source& from = sources_[token];
            const size_t place = static_cast<size_t>(from.number) * call_.length + token - from.begin;
            LANES::embed(stack_, call_.ids[place], hidden_.get() + static_cast<size_t>(token) * sizes_.d_model);
        }
    }

    void normed(const float* weight, const Matrix& matrix, int begin, int end, Own& own) {
        const float* const from = hidden_.get() + static_cast<size_t>(begin) * sizes_.d_model;
        norm(sizes_, from, end - begin, weight, own.normed.data());
        own.input.set(own.normed.data(), end - begin, matrix);
    }

    void project(int number, int begin, int end, Own& own) {
        const Layer& layer = stack_.layers[number];
        const int size = sizes_.d_kv, width = sizes_.width();
        normed(layer.norms[0], layer.joined, begin, end, own);
        for (int tile = 0; tile < layer.joined.tiles(); ++tile) {
            const int kind = tile * kTile / width, column = tile * kTile % width;
            each_product(layer.joined, tile, own.input, end - begin, [&](int row, const float* values) {
                float* const to = kind ? place(number, kind - 1, column / size, begin + row) + column % size
                                       : query_.get() + static_cast<size_t>(begin + row) * width + column;
                std::memcpy(to, values, sizeof(float) * kTile);
            });
        }
    }

    void attend(int number, int begin, int end, Own& own) {
        const int size = sizes_.d_kv, width = sizes_.width();
        const std::vector<float>& bias = bias_[sizes_.bias_per_layer ? number : 0];
        for (int query = begin, next; query < end; query = next) {
            const Source& from = sources_[query];
            next = std::min({query + kLanes, end, from.begin + from.length});
            const int64_t* const mask = call_.mask + static_cast<size_t>(from.number) * call_.length;
            for (int head = 0; head < sizes_.heads; ++head) {
                for (int lane = 0; lane < next - query; ++lane) {
                    const float* const row = query_.get() + static_cast<size_t>(query + lane) * width + head * size;
                    for (int i = 0; i < size; i += kLanes) prefetch(row + size + i);  // of the next head
                    for (int i = 0; i < size; ++i) own.queries[i * kLanes + lane] = row[i];
                }
                const float* const by_offset =
                    bias.data() + (static_cast<size_t>(head) * 2 + 1) * reach_ + query - from.begin;
                float* const out = own.mixed.data() + static_cast<size_t>(query - begin) * width + head * size;
                LANES::attend(Group{own.queries.data(), next - query, place(number, 0, head, from.begin),
                                    place(number, 1, head, from.begin), from.length, mask, by_offset},
                              size, own.scores.data(), out, width);
            }
        }
    }

    // Adds the product of `from` with a matrix to the hidden states.
    void add(const Matrix& matrix, const std::vector<float>& from, int begin, int end, Own& own) {
        own.input.set(from.data(), end - begin, matrix);
        for (int tile = 0; tile < matrix.tiles(); ++tile)
            each_product(matrix, tile, own.input, end - begin, [&](int row, const float* values) {
                add_tile(hidden_.get() + static_cast<size_t>(begin + row) * sizes_.d_model + tile * kTile, values);
            });
    }

    void cross(int begin, int end, Own& own) {
        const int size = sizes_.d_kv, width = sizes_.width();
        normed(stack_.final_norm, stack_.head, begin, end, own);
        for (int tile = 0; tile < stack_.head.tiles(); ++tile) {
            const int column = tile * kTile % width;
            Half* const keys = call_.cross[tile * kTile / width];
            each_product(stack_.head, tile, own.input, end - begin, [&](int row, const float* values) {
                const Source& from = sources_[begin + row];
                const size_t first = static_cast<size_t>(from.number) * sizes_.heads + column / size;
                Half* const to = keys + (first * call_.length + begin + row - from.begin) * size + column % size;
                for (int i = 0; i < kTile; ++i) to[i] = nearest(values[i]);
            });
        }
    }

    const Stack& stack_;
    const Sources& call_;
    const int threads_ = call_.threads;
    const Sizes& sizes_ = stack_.sizes;
    int count_ = 0, longest_ = 0, reach_, room_;  // reach_: offsets of a row of the bias on each side
    std::vector<Source> sources_;  // of each token
    std::unique_ptr<float[]> hidden_, query_, past_;  // not zeroed: every float is written before it counts
    std::vector<std::vector<float>> bias_;  // [heads, 2 * reach], of each layer that has its own: by query - key
    std::vector<Own> own_ = std::vector<Own>(threads_);
    Barrier barrier_;
};

inline void run_encoder(const Stack& stack, const Sources& call, Pool& pool) {
    for (int first = 0, last; first < call.rows; first = last) {
        int64_t tokens = call.lengths[first];
        for (last = first + 1; last < call.rows && tokens + call.lengths[last] <= kTogether; ++last)
            tokens += call.lengths[last];
        Encode encode(stack, call, first, last);
        pool.run(call.threads, [&](int thread) { encode.run(thread); });
    }
}

}  // namespace lora_ft::LANES
