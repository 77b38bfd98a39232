#include "decoder.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lora_ft {

namespace {
constexpr size_t kPage = size_t{1} << 21, kLine = 64;

size_t aligned(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }
}  // namespace

Memory::Memory(size_t bytes) : size_(aligned(bytes + kLine, kPage)) {
    begin_ = static_cast<uint8_t*>(std::aligned_alloc(kPage, size_));
    if (!begin_) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    madvise(begin_, size_, MADV_HUGEPAGE);
#endif
}

Memory::~Memory() { std::free(begin_); }

uint8_t* Memory::take(size_t bytes) {
    uint8_t* const taken = begin_ + used_;
    used_ += aligned(bytes, kLine);
    if (used_ > size_) throw std::bad_alloc();
    std::memset(taken, 0, bytes);
    return taken;
}

template <class Value, class Scale>
void Matrix::fill(Memory& memory, Value value, Scale scale) {
    uint8_t* const to = memory.take(tiles() * tile_bytes());
    float* const scales_to = reinterpret_cast<float*>(memory.take(sizeof(float) * tiles() * groups() * kTile));
    for (int n = 0; n < tiles() * kTile; ++n) {
        uint8_t* const tile = to + n / kTile * tile_bytes();
        for (int k = 0; k < stride; ++k) {
            const bool known = n < outputs && k < inputs;
            const int stored = known ? value(n, k) : zero();
            const int lane = n % kTile * 4 + k % 4;
            if (bits == 8)
                tile[k / 4 * 4 * kTile + lane] = static_cast<uint8_t>(stored);
            else
                tile[k / 8 * 4 * kTile + lane] |= static_cast<uint8_t>(stored << (k % 8 < 4 ? 0 : 4));
        }
        for (int g = 0; g < groups(); ++g)
            scales_to[(n / kTile * groups() + g) * kTile + n % kTile] = n < outputs ? scale(n, g) : 0.0f;
    }
    values = to;
    scales = scales_to;
}

void Matrix::pack(Memory& memory, const int8_t* from, const float* scale) {
    fill(
        memory, [&](int n, int k) { return from[static_cast<size_t>(k) * outputs + n] + 128; },
        [&](int n, int) { return scale[n]; });
}

void Matrix::pack_groups(Memory& memory, const uint8_t* from, const float* scale) {
    fill(
        memory,
        [&](int n, int k) {
            const size_t place = static_cast<size_t>(n) * inputs + k;
            return bits == 8 ? from[place] : from[place / 2] >> (place % 2 * 4) & 15;
        },
        [&](int n, int g) { return scale[static_cast<size_t>(n) * groups() + g]; });
}

std::vector<float> Matrix::pack_rounded(Memory& memory, const Matrix& from) {
    const size_t count = groups();
    std::vector<float> units(outputs * count), lost(static_cast<size_t>(tiles()) * kTile);
    std::vector<int8_t> fours(static_cast<size_t>(outputs) * inputs);
    for (int n = 0; n < outputs; ++n) {
        for (int g = 0; g < groups(); ++g) {
            const int first = g * group, last = first + group;
            const float scale = from.scale(n, first);
            int peak = 1;
            for (int k = first; k < last; ++k) peak = std::max(peak, std::abs(from.byte(n, k)));
            const float unit = static_cast<float>(peak) / 8;  // bytes for each step of 4 bits
            units[n * count + g] = unit * scale;
            for (int k = first; k < last; ++k) {
                const float byte = static_cast<float>(from.byte(n, k));
                const int four = std::min(static_cast<int>(byte / unit + 8.5f) - 8, 7);
                const float rest = (byte - static_cast<float>(four) * unit) * scale;
                fours[static_cast<size_t>(n) * inputs + k] = static_cast<int8_t>(four);
                lost[n] += rest * rest;
            }
        }
        lost[n] = std::sqrt(lost[n]);
    }
    fill(
        memory, [&](int n, int k) { return fours[static_cast<size_t>(n) * inputs + k] + zero(); },
        [&](int n, int g) { return units[n * count + g]; });
    return lost;
}

}  // namespace lora_ft
