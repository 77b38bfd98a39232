// The weights of the encoder or the decoder of a T5, as Python packed them, and the arguments of their calls.
//
// Python mirrors these structures (lora_ft_kernels/*.py) and keeps their memory, in arrays at multiples of 64 bytes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace lora_ft {

constexpr int kTile = 32;  // outputs that are computed together

using Half = uint16_t;  // a float of 16 bits

// Static, since each instruction set has code of its own for it.
static inline Half nearest(float value) {  // of two, the even one; beyond the largest, that
    const float size = std::min(std::fabs(value), 65504.0f) * 0x1p-112f;  // with a half's exponent
    uint32_t sign, bits;
    std::memcpy(&sign, &value, sizeof sign);
    std::memcpy(&bits, &size, sizeof bits);
    return static_cast<Half>((bits + 0xfff + (bits >> 13 & 1)) >> 13 | (sign >> 16 & 0x8000));
}

// A linear layer's weights as unsigned bytes or halves of bytes, in tiles of 32 outputs.
//
// Of each tile, four inputs of all outputs lie side by side. In 4 bits, the next four are in the upper halves.
// A weight is (stored value - zero) * scale of its output and group.
struct Matrix {
    int outputs, inputs, bits;
    int group;   // inputs that share a scale
    int stride;  // inputs, rounded up to a multiple of 64
    int number;  // among those of the stack
    float step;  // fixed scale of the input, or 0 for one per row and group
    const uint8_t* values;
    const float* scales;  // [tiles, groups, 32]

    int zero() const { return bits == 8 ? 128 : 8; }
    int groups() const { return inputs / group; }
    int tiles() const { return (outputs + kTile - 1) / kTile; }
    size_t tile_bytes() const { return static_cast<size_t>(stride) * kTile * bits / 8; }
};

enum Activation { kRelu, kGelu, kSilu };

struct Sizes {
    int layers, heads, d_kv, d_model, d_ff, vocabulary;
    int far;  // largest distance that has its own position bias
    int gated, activation, bias_per_layer;
    float epsilon;

    int width() const { return heads * d_kv; }
};

struct Layer {
    Matrix joined, self_out, query, cross_out, up, down;  // an encoder lacks query and cross_out
    const float* norms[3];                                // an encoder has two
    const float* bias;  // [heads, far + 1], by distance; of an encoder [heads, 2 * far + 1], by query - key
};

struct Stack {
    Sizes sizes;
    Matrix head;     // of an encoder: the projections onto the keys and values of each decoder layer
    Matrix preview;  // the head in 4 bits; without outputs if the head has no bytes
    const Layer* layers;
    const float* doubt;  // [tiles, 32]: how much a logit may exceed its preview, for an input of length 1
    const float* final_norm;
    const int8_t* embedding;       // [vocabulary, d_model]
    const float* embedding_scale;  // [vocabulary]
    const int64_t* barred;         // the rest of the last tile, which is no token, then the ends of an answer
    int barred_counts[2];          // of the former, and of both
};

// What an adapter adds to the product with a matrix. A, its scales and B lie one after another.
struct LowRank {
    int parts, tiles;      // parts of the outputs, each with columns of A of its own, and tiles of each
    int rank;              // a multiple of 4
    float step;            // fixed scale of the input, or 0 for one per row
    const uint8_t* a;      // [parts * rank, stride] around 128, or null if nothing is added
    const float* a_scale;  // [parts * rank, and up to 15 more]
    const uint8_t* b;      // of each tile, float scales [32], then [rank / 4, 32, 4] around 128
};

// Arguments of a step. Keys and values, those of the sources as halves, are [rows, heads, length, d_kv] in turns, for
// each layer.
struct Call {
    int rows, tokens, sources, source_length, room, lengths_count, threads, forbid_ends;
    const int64_t* ids;      // [rows, tokens]
    const int64_t* lengths;  // [rows] or [1]
    const int64_t* mask;     // [sources, source_length]
    float* const* past;
    const Half* const* cross;
    int64_t* next;  // [rows, tokens]
    float* logits;  // [rows, tokens, vocabulary], or null
    const LowRank* const* adapters;  // [sources][matrices], or null where there is none
};

// Sources to be encoded. Keys and values [rows, heads, length, d_kv] are in turns, for each layer of the decoder.
struct Sources {
    int rows, length, threads;  // threads: at most the kernel's, as in a step
    const int64_t* ids;      // [rows, length]
    const int64_t* mask;     // [rows, length]
    const int64_t* lengths;  // [rows]: tokens up to the last that is not masked
    Half* const* cross;      // behind the lengths, nothing is written
};

class Pool;

// What each instruction set has its own code for.
struct Functions {
    void (*step)(const Stack&, const Call&, Pool&);
    void (*encode)(const Stack&, const Sources&, Pool&);
};

}  // namespace lora_ft
