// Vectors of 16 lanes, in GCC's and Clang's vector extensions, with intrinsics where compilers find no good code.
//
// CMake defines LANES to a name and compiles this with flags of its own for each instruction set, so each has its own
// copy of everything that is built on lanes. Sums have a fixed order in each copy.
#pragma once

#include <cstdint>
#include <cstring>

#include "stack.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace lora_ft::LANES {

constexpr int kLanes = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint8_t Bytes __attribute__((vector_size(64)));
typedef Half Halves __attribute__((vector_size(32)));

template <class Vector, class Element>
inline Vector load(const Element* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

template <class Vector, class Element>
inline void store(Element* to, Vector vector) {
    std::memcpy(to, &vector, sizeof vector);
}

inline Floats floats(const float* from) { return load<Floats>(from); }
inline void prefetch(const void* address) { __builtin_prefetch(address); }
inline Ints splat(int32_t value) { return Ints{} + value; }
inline Floats to_floats(Ints a) { return __builtin_convertvector(a, Floats); }
inline Floats magnitude(Floats a) { return (Floats)((Ints)a & 0x7fffffff); }

#if defined(__AVX512F__)
inline Floats splat(float value) { return _mm512_set1_ps(value); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Ints rounded(Floats a) { return (Ints)_mm512_cvtps_epi32(a); }
inline float sum(Floats a) { return _mm512_reduce_add_ps(a); }
inline float maximum(Floats a) { return _mm512_reduce_max_ps(a); }
inline Floats floats(const Half* from) { return _mm512_cvtph_ps(load<__m256i>(from)); }
inline void store_bytes(int8_t* to, Ints a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8((__m512i)a));
}
#else
inline Floats splat(float value) { return Floats{} + value; }
inline Floats fma(Floats a, Floats b, Floats c) { return a * b + c; }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline Ints rounded(Floats a) {  // to even, by the addition that leaves no bits behind the point
    const Floats shift = splat(12582912.0f);
    return (Ints)(a + shift) - (Ints)shift;
}
inline float sum(Floats a) {
    for (int half = kLanes / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) a[i] += a[i + half];
    return a[0];
}
inline float maximum(Floats a) {
    float most = a[0];
    for (int i = 1; i < kLanes; ++i) most = a[i] > most ? a[i] : most;
    return most;
}
inline Floats floats(const Half* from) {
    const Ints bits = __builtin_convertvector(load<Halves>(from), Ints);
    const Floats sizes = (Floats)((bits & 0x7fff) << 13) * 0x1p112f;
    return (Floats)((Ints)sizes | (bits & 0x8000) << 16);
}
inline void store_bytes(int8_t* to, Ints a) {
    for (int i = 0; i < kLanes; ++i) to[i] = static_cast<int8_t>(a[i]);
}
#endif

// Adds to each lane the products of its four unsigned bytes with its four signed bytes. Exact.
inline Ints dot(Ints sums, Bytes weights, Ints fours) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, (__m512i)fours);
#elif defined(__AVX2__)
    // Sums of two products with a whole byte overflow 16 bits, those with half a byte do not.
    __m256i parts[2], totals[2], inputs[2];
    std::memcpy(parts, &weights, sizeof parts);
    std::memcpy(inputs, &fours, sizeof inputs);
    std::memcpy(totals, &sums, sizeof totals);
    const __m256i low = _mm256_set1_epi8(15);
    for (int i = 0; i < 2; ++i) {
        const __m256i lows = _mm256_maddubs_epi16(_mm256_and_si256(parts[i], low), inputs[i]);
        const __m256i highs = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(parts[i], 4), low), inputs[i]);
        totals[i] = _mm256_add_epi32(totals[i], _mm256_madd_epi16(lows, _mm256_set1_epi16(1)));
        totals[i] = _mm256_add_epi32(totals[i], _mm256_madd_epi16(highs, _mm256_set1_epi16(16)));
    }
    std::memcpy(&sums, totals, sizeof totals);
    return sums;
#else
    int8_t inputs[4 * kLanes];
    std::memcpy(inputs, &fours, sizeof inputs);
    for (int i = 0; i < kLanes; ++i)
        for (int j = 4 * i; j < 4 * i + 4; ++j) sums[i] += weights[j] * inputs[j];
    return sums;
#endif
}
inline Ints dot(Ints sums, Bytes weights, int32_t four) { return dot(sums, weights, splat(four)); }

// Returns the sum of each of 16 vectors, as a vector.
inline Floats sums(const Floats (&each)[kLanes]) {
#if defined(__AVX512F__)
    __m512 a[8], b[4];
    for (int i = 0; i < 8; ++i)
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(each[2 * i], each[2 * i + 1]),
                             _mm512_unpackhi_ps(each[2 * i], each[2 * i + 1]));
    for (int i = 0; i < 4; ++i) {
        const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
        b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    // each quarter of b[i] has partial sums of vectors 4i to 4i+3
    const __m512 c0 = _mm512_add_ps(_mm512_shuffle_f32x4(b[0], b[1], 0x88), _mm512_shuffle_f32x4(b[0], b[1], 0xdd));
    const __m512 c1 = _mm512_add_ps(_mm512_shuffle_f32x4(b[2], b[3], 0x88), _mm512_shuffle_f32x4(b[2], b[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(c0, c1, 0x88), _mm512_shuffle_f32x4(c0, c1, 0xdd));
#else
    Floats result;
    for (int i = 0; i < kLanes; ++i) result[i] = sum(each[i]);
    return result;
#endif
}

// Returns e^x, with a relative error below 3e-7; 0 below -87.
inline Floats exponential(Floats x) {
    const Floats inside = smaller(larger(x, splat(-87.0f)), splat(88.0f));
    const Ints power = rounded(inside * 1.44269504f);
    const Floats whole = to_floats(power);
    const Floats rest = fma(whole, splat(2.12194440e-4f), fma(whole, splat(-0.693359375f), inside));
    Floats series = splat(1.9875691500e-4f);
    for (float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        series = fma(series, rest, splat(next));
    series = fma(series, rest * rest, rest + 1.0f);
    const Floats result = series * (Floats)((power + 127) << 23);
    return x < splat(-87.0f) ? Floats{} : result;
}

}  // namespace lora_ft::LANES
