// Values of eight bits and fewer, weighed as integers: weights are rounded to
// int16, those of a block of slots in a unit of their own, and two slots are
// multiplied and added at once.

#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "streams.h"
#include "tiles.h"

namespace {

// kHalves features of every slot: where their codes are, and their group.
struct Chunk {
  int64_t byte, feature, group;
  int shift;  // of packed codes
};

// Whether values are weighed as integers.
inline bool by_halves(const Stream& x) {
  const int64_t group = x.groups ? x.width / x.groups : x.width;
  return (x.groups || x.type == ffi::S8 && x.scales) && group % kHalves == 0;
}

// Whether codes are read as they are packed.
inline bool in_halves(const Stream& x) {
  return x.bits == 4 && x.run % kHalves == 0;
}

inline std::vector<Chunk> chunks_of(const Stream& x) {
  std::vector<Chunk> chunks;
  const int parts = in_halves(x) ? 2 : 1;
  for (int64_t byte = 0; byte < x.width / parts; byte += kHalves)
    for (int part = 0; part < parts; ++part) {
      int64_t feature = byte;
      if (parts == 2) feature += (byte / x.run + part) * x.run;
      const int64_t group = x.groups ? feature * x.groups / x.width : 0;
      chunks.push_back({byte, feature, group, 4 * part});
    }
  return chunks;
}

// Transposes numbers [kSlots, groups].
inline void transpose(const float* from, int64_t groups, float* to) {
  typedef float Four VECTOR(16, 4);
  if (groups % 4) {
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t s = 0; s < kSlots; ++s)
        to[g * kSlots + s] = from[s * groups + g];
    return;
  }
  for (int64_t s = 0; s < kSlots; s += 4)
    for (int64_t g = 0; g < groups; g += 4) {
      Four x[4];
      for (int i = 0; i < 4; ++i)
        x[i] = *reinterpret_cast<const Four*>(from + (s + i) * groups + g);
      const Four a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5);
      const Four b = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5);
      const Four c = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
      const Four d = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
      const Four y[4] = {__builtin_shufflevector(a, b, 0, 1, 4, 5),
                         __builtin_shufflevector(a, b, 2, 3, 6, 7),
                         __builtin_shufflevector(c, d, 0, 1, 4, 5),
                         __builtin_shufflevector(c, d, 2, 3, 6, 7)};
      for (int i = 0; i < 4; ++i)
        *reinterpret_cast<Four*>(to + (g + i) * kSlots + s) = y[i];
    }
}

// Weights of a block for R rows, and what makes numbers of their sums.
struct Weights {
  int64_t rows;
  const int16_t* numbers;       // [groups, R, kSlots]
  const float *units, *shifts;  // [groups, R]
};

// Rounds kSlots weights times their scales to int16. Returns the unit of these
// integers.
inline float round_weights(const float* weights, const float* scale,
                           int16_t* to) {
  typedef int16_t Shorts VECTOR(kLanes * 2, 2);
  const auto larger = [](auto x, auto y) { return x > y ? x : y; };
  const Vec magic = Vec{} + 12582912.f;  // rounds to an integer
  Vec largest{}, invalid{};
  Vec x[kSlots / kLanes];
  UNROLL for (int i = 0; i < kSlots / kLanes; ++i) {
    x[i] = at(weights + i * kLanes) * at(scale + i * kLanes);
    largest = larger(x[i] < 0.f ? -x[i] : x[i], largest);
    invalid += x[i] * 0.f;
  }
  const float top = reduce(largest, larger);
  const float bad = reduce(invalid, std::plus<>());
  const float factor = bad == 0.f && top > 1e-30f ? INT16_MAX / top : 0.f;
  UNROLL for (int i = 0; i < kSlots / kLanes; ++i) {
    const Vec finite = factor == 0.f ? Vec{} : x[i] * factor;
    const Ints number = (Ints)(finite + magic) - (Ints)magic;
    *reinterpret_cast<Shorts*>(to + i * kLanes) =
        __builtin_convertvector(number, Shorts);
  }
  return top / INT16_MAX + bad;
}

// Interleaves features of two slots, so that products of neighbours are added.
// Features are in order within 128 bits.
inline void interleave(Halves a, Halves b, Halves* pairs) {
#if defined(__AVX512BW__)
  pairs[0] = (Halves)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b);
  pairs[1] = (Halves)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b);
#else
  pairs[0] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 8, 24,
                                     9, 25, 10, 26, 11, 27);
  pairs[1] = __builtin_shufflevector(a, b, 4, 20, 5, 21, 6, 22, 7, 23, 12, 28,
                                     13, 29, 14, 30, 15, 31);
#endif
}

// Puts sums of interleaved features in order again.
inline void in_order(Vec a, Vec b, Vec* ordered) {
#if defined(__AVX512BW__)
  ordered[0] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5,
                                       6, 7, 20, 21, 22, 23);
  ordered[1] = __builtin_shufflevector(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12,
                                       13, 14, 15, 28, 29, 30, 31);
#else
  ordered[0] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
  ordered[1] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
#endif
}

// acc[r] += sum over a block's slots of weights[r][s] v[s], for R rows from
// `row` and U chunks of features.
template <int R, int U, int Bits, bool Ahead>
inline void weigh_chunks(const Weights& w, int64_t row, const int8_t* codes,
                         int64_t bytes, const Chunk* chunk, float* acc,
                         int64_t width, int64_t ahead) {
  Ints sum[U][R][2];
  UNROLL for (auto& rows : sum)
    UNROLL for (auto& halves : rows) halves[0] = halves[1] = Ints{};
  for (int64_t s = 0; s < kSlots; s += 2, codes += 2 * bytes)
    UNROLL for (int u = 0; u < U; ++u) {
      const int8_t* from = codes + chunk[u].byte;
      if (Ahead && chunk[u].byte % kLine == 0)
        UNROLL for (int i = 0; i < 2; ++i)
          ASK((const char*)from + i * bytes + ahead);
      Halves pairs[2];
      interleave(integers(from), integers(from + bytes), pairs);
      UNROLL for (Halves& pair : pairs)
        if (Bits == 4) pair = pair >> chunk[u].shift & 15;
      UNROLL for (int r = 0; r < R; ++r) {
        int32_t two;
        const int64_t at = chunk[u].group * w.rows + row + r;
        memcpy(&two, w.numbers + at * kSlots + s, sizeof two);
        const Halves both = (Halves)(Ints{} + two);
        UNROLL for (int i = 0; i < 2; ++i)
          sum[u][r][i] = add_products(sum[u][r][i], both, pairs[i]);
      }
    }
  for (int u = 0; u < U; ++u)
    for (int r = 0; r < R; ++r) {
      const int64_t at_row = chunk[u].group * w.rows + row + r;
      Vec ordered[2];
      in_order(__builtin_convertvector(sum[u][r][0], Vec),
               __builtin_convertvector(sum[u][r][1], Vec), ordered);
      float* to = acc + r * width + chunk[u].feature;
      for (int i = 0; i < 2; ++i)
        at(to + i * kLanes) +=
            ordered[i] * w.units[at_row] + w.shifts[at_row];
    }
}

}  // namespace
