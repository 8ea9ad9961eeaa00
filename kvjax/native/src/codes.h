// Codes of eight bits and fewer: unpacked to int8, and multiplied as integers.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "streams.h"
#include "tiles.h"

namespace {

typedef int16_t Shorts VECTOR(32, 2);
typedef int32_t Words VECTOR(32, 4);

// Features whose products are summed as integers: those of even bytes, then of
// odd ones. AVX2 widens words by shifts faster than bytes by shuffles.
constexpr int64_t kChunk = 32;

// Returns the sum of each two adjacent products.
inline Words pair_sums(Shorts x, Shorts y) {
#if defined(__AVX2__)
  return (Words)_mm256_madd_epi16((__m256i)x, (__m256i)y);
#else
  const Words a = (Words)x, b = (Words)y;
  return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// Loads kLanes numbers of float16.
inline Vec halves(const uint16_t* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__) && defined(__F16C__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  typedef uint16_t Codes VECTOR(kLanes * 2, 2);
  const Codes codes = *reinterpret_cast<const Codes*>(p);
  const Ints bits = __builtin_convertvector(codes, Ints);
  const Vec size = (Vec)((bits & 0x7fff) << 13) * 0x1p112f;
  return (Vec)((Ints)size | (bits & 0x8000) << 16);
#endif
}

// Widens `count` numbers of float16, and reads no other.
inline void widen(const uint16_t* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) at(to + i) = halves(from + i);
  if (i == count) return;
  uint16_t last[kLanes] = {};
  memcpy(last, from + i, (count - i) * sizeof(uint16_t));
  const Vec x = halves(last);
  memcpy(to + i, &x, (count - i) * sizeof(float));
}

// Unpacks runs of `Bits` a code to int8, by N bytes at once.
template <int Bits, int N>
inline void unpack_runs(const uint8_t* from, int64_t bytes, int64_t run,
                        int8_t* to) {
  typedef uint8_t Bytes VECTOR(N, 1);
  constexpr int kParts = 8 / Bits;
  for (int64_t first = 0; first < bytes; first += run, to += kParts * run)
    for (int64_t i = 0; i < run; i += N) {
      const Bytes packed = *reinterpret_cast<const Bytes*>(from + first + i);
      for (int part = 0; part < kParts; ++part) {
        Bytes& code = *reinterpret_cast<Bytes*>(to + part * run + i);
        if constexpr (Bits == 8) code = packed - 128;
        else code = packed >> (Bits * part) & ((1 << Bits) - 1);
      }
    }
}

template <int Bits>
inline void unpack_bits(const uint8_t* from, int64_t bytes, int64_t run,
                        int8_t* to) {
  if (run % 32 == 0) return unpack_runs<Bits, 32>(from, bytes, run, to);
  if (run % 16 == 0) return unpack_runs<Bits, 16>(from, bytes, run, to);
  unpack_runs<Bits, 1>(from, bytes, run, to);
}

// Unpacks codes to int8, less `middle`.
inline void unpack(const Stream& x, const char* codes, int64_t bytes,
                   int8_t* to) {
  const auto from = reinterpret_cast<const uint8_t*>(codes);
  if (x.bits == 4) return unpack_bits<4>(from, bytes, x.run, to);
  if (x.bits == 2) return unpack_bits<2>(from, bytes, x.run, to);
  unpack_bits<8>(from, bytes, x.run, to);
}

// Whether products read packed keys as they are stored.
inline bool in_words(const Stream& x) {
  return x.bits == 4 && x.run % kChunk == 0;
}

// Returns the first feature of a chunk, in the order in which they are read.
inline int64_t feature_of(const Stream& x, int64_t chunk) {
  if (!in_words(x)) return chunk * kChunk;
  const int64_t byte = chunk / 2 * kChunk, part = chunk % 2;
  return byte / x.run * 2 * x.run + part * x.run + byte % x.run;
}

// Rows of queries as integers, for one stream of keys.
struct Rounded {
  const int16_t* rows;    // [R, width], chunks in the order of `feature_of`
  const int32_t* groups;  // of the chunks
  const float* sums;      // [R, padded groups]: of each group's integers
  const float* units;     // [R]
};

// Rounds `count` numbers, which vectors divide, to int16 and returns the unit of
// these integers.
inline float round_numbers(const float* from, int64_t count, int16_t* to) {
  typedef int16_t Numbers VECTOR(kLanes * 2, 2);
  const auto larger = [](auto x, auto y) { return x > y ? x : y; };
  Vec largest{}, invalid{};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec x = at(from + i);
    largest = larger(x < 0.f ? -x : x, largest);
    invalid += x * 0.f;
  }
  const float top = reduce(largest, larger);
  const float bad = reduce(invalid, std::plus<>());
  const bool rounds = bad == 0.f && top > 1e-30f;
  const Vec factor = Vec{} + (rounds ? INT16_MAX / top : 0.f);
  const Vec magic = Vec{} + 12582912.f;  // rounds to an integer
  for (int64_t i = 0; i < count; i += kLanes) {
    const Ints number = (Ints)(at(from + i) * factor + magic) - (Ints)magic;
    *reinterpret_cast<Numbers*>(to + i) =
        __builtin_convertvector(rounds ? number : Ints{}, Numbers);
  }
  return top / INT16_MAX + bad;
}

// The codes of a block and what makes numbers of them.
struct Levels {
  const int8_t* codes;
  const float *scale, *zero;  // [slots, groups]
  int64_t width, groups;
  int64_t bytes;      // of a slot's codes
  int64_t ahead = 0;  // bytes to what is prefetched
};

// out[r][s] = q[r] . k[s] for R rows and 8 / R slots, in units of the rows.
template <int R, int Bits>
inline void dot_codes(const Rounded& q, int64_t row, const Levels& k,
                      int64_t slot, float* out, int64_t stride) {
  constexpr int S = 8 / R;
  const int64_t width = k.width, wide = padded(k.groups);
  Eight sum[8];
  UNROLL for (Eight& x : sum) x = Eight{};
  UNROLL for (int s = 0; s < S; ++s) {
    const int8_t* from = k.codes + (slot + s) * k.bytes;
    const float* scale = k.scale + (slot + s) * k.groups;
    const int16_t* x = q.rows + row * width;
    const int32_t* group = q.groups;
    for (int64_t i = 0; i < k.bytes; i += kChunk) {
      if (k.ahead && row == 0 && i % kLine == 0)
        ASK((const char*)from + i + k.ahead);
      const Shorts codes = *reinterpret_cast<const Shorts*>(from + i);
      UNROLL for (int part = 0; part < 8 / Bits; ++part) {
        Shorts even = codes << 8 >> 8, odd = codes >> 8;
        if constexpr (Bits == 4) {
          even = (part ? codes >> 4 : codes) & 15;
          odd = (part ? codes >> 12 : codes >> 8) & 15;
        }
        UNROLL for (int r = 0; r < R; ++r) {
          const Shorts* at = reinterpret_cast<const Shorts*>(x + r * width);
          const Words products = pair_sums(at[0], even) + pair_sums(at[1], odd);
          sum[r * S + s] +=
              __builtin_convertvector(products, Eight) * scale[*group];
        }
        x += kChunk, ++group;
      }
    }
  }
  // A lane beyond the groups has the zero of another slot, and no sum.
  for (int64_t g = 0; g < k.groups; g += 8)
    UNROLL for (int i = 0; i < 8; ++i)
      sum[i] += *reinterpret_cast<const Eight*>(
                    k.zero + (slot + i % S) * k.groups + g) *
                *reinterpret_cast<const Eight*>(
                    q.sums + (row + i / S) * wide + g);
  const Eight total = sums_of_8(sum);
  for (int r = 0; r < R; ++r)
    memcpy(out + r * stride, (const float*)&total + r * S, S * 4);
}

// Makes numbers of codes of one group.
struct Rescaled {
  const float *scale, *zero;  // of its first slot
  int64_t groups;

  Vec operator()(const int8_t* code, int64_t slot) const {
    return wide(code) * scale[slot * groups] + zero[slot * groups];
  }
};

}  // namespace
