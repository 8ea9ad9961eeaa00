// A projection by weights of four bits: blocks of 32 numbers of an output
// channel share a scale and a zero, as in ggml's q4_1. Rows are rounded to
// int16, each block in a unit of its own, and multiplied as integers.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "codes.h"
#include "tiles.h"

namespace {

constexpr int64_t kPair = 64;  // numbers of two blocks, 32 bytes of codes

// Rows of D numbers in the order in which words of codes are read.
struct BlockRows {
  typedef int16_t Half VECTOR(16, 2);

  BlockRows(const float* rows, int64_t M, int64_t D)
      : pairs(D / kPair), wide(padded(2 * pairs)), numbers(M * D),
        units(M * pairs * 8), sums(M * wide) {
    for (int64_t m = 0; m < M; ++m)
      for (int64_t b = 0; b < 2 * pairs; ++b) {
        const float* from = rows + m * D + b * 32;
        int16_t natural[32];
        const float unit = round_numbers(from, 32, natural);
        int32_t sum = 0;
        for (int16_t number : natural) sum += number;
        int16_t* to = &numbers[(m * pairs + b / 2) * kPair + b % 2 * 8];
        for (int half = 0; half < 2; ++half) {
          const Shorts x = *reinterpret_cast<Shorts*>(natural + half * 16);
          *reinterpret_cast<Half*>(to + half * 32) = __builtin_shufflevector(
              x, x, 0, 2, 4, 6, 8, 10, 12, 14);
          *reinterpret_cast<Half*>(to + half * 32 + 16) =
              __builtin_shufflevector(x, x, 1, 3, 5, 7, 9, 11, 13, 15);
        }
        sums[m * wide + b] = sum * unit;
        std::fill_n(&units[(m * pairs + b / 2) * 8 + b % 2 * 4], 4, unit);
      }
  }
  int64_t pairs, wide;
  std::vector<int16_t> numbers;  // [M, pairs, kPair]
  std::vector<float> units;      // [M, pairs, 8]: of the lanes of sums
  std::vector<float> sums;       // [M, padded blocks]
};

// out[m][n] = rows[m] . weight[n] for R rows from m and n in [first, last). One
// row meets four channels at once, so that its numbers are loaded once.
template <int R>
void project_blocks(const BlockRows& rows, int64_t m, const Stream& weight,
                    int64_t N, int64_t first, int64_t last, float* out) {
  constexpr int C = R == 1 ? 4 : 1;
  typedef float Four VECTOR(16, 4);
  const int64_t pairs = rows.pairs, blocks = 2 * pairs, wide = rows.wide;
  thread_local std::vector<float> memory;
  memory.assign(2 * (8 * blocks + wide), 0.f);
  float *scales = memory.data(), *zeros = scales + 8 * blocks + wide;
  // Numbers of eight output channels are whole vectors.
  for (int64_t n = first; n < last; n += 8) {
    const int64_t channels = std::min<int64_t>(8, last - n);
    widen(weight.group_scales + n * blocks, channels * blocks, scales);
    widen(weight.group_zeros + n * blocks, channels * blocks, zeros);
    Eight sum[R][8] = {};
    for (int64_t c = 0; c < channels; c += C) {
      const char* from[C];
      const float *scale[C], *zero[C];
      UNROLL for (int k = 0; k < C; ++k) {
        // Beyond the last channel the last one is computed again.
        const int64_t channel = std::min(c + k, channels - 1);
        from[k] = weight.codes + (n + channel) * weight.bytes();
        scale[k] = scales + channel * blocks;
        zero[k] = zeros + channel * blocks;
      }
      const bool ahead = n + c + 8 + C <= last;
      Eight total[C][R] = {};
      for (int64_t i = 0; i < pairs; ++i)
        UNROLL for (int k = 0; k < C; ++k) {
          const char* at_codes = from[k] + i * 32;
          if (ahead && i % 2 == 0) ASK(at_codes + 8 * weight.bytes());
          Shorts codes = *reinterpret_cast<const Shorts*>(at_codes);
          KEEP(codes);
          const Shorts part[] = {codes & 15, codes >> 8 & 15, codes >> 4 & 15,
                                 codes >> 12 & 15};
          const Four two = *reinterpret_cast<const Four*>(scale[k] + 2 * i);
          const Eight both =
              __builtin_shufflevector(two, two, 0, 0, 0, 0, 1, 1, 1, 1);
          UNROLL for (int r = 0; r < R; ++r) {
            const int64_t at_row = (m + r) * pairs + i;
            const Shorts* x = (const Shorts*)&rows.numbers[at_row * kPair];
            const auto unit = *(const Eight*)&rows.units[at_row * 8];
            const Words products =
                (pair_sums(x[0], part[0]) + pair_sums(x[1], part[1])) +
                (pair_sums(x[2], part[2]) + pair_sums(x[3], part[3]));
            total[k][r] +=
                __builtin_convertvector(products, Eight) * (both * unit);
          }
        }
      // Beyond the blocks, sums of rows are zeros.
      UNROLL for (int k = 0; k < C; ++k)
        for (int r = 0; r < R; ++r) {
          for (int64_t b = 0; b < wide; b += 8)
            total[k][r] += *(const Eight*)(zero[k] + b) *
                           *(const Eight*)&rows.sums[(m + r) * wide + b];
          if (c + k < 8) sum[r][c + k] = total[k][r];
        }
    }
    for (int r = 0; r < R; ++r) {
      const Eight totals = sums_of_8(sum[r]);
      memcpy(out + (m + r) * N + n, &totals, channels * sizeof(float));
    }
  }
}

}  // namespace
