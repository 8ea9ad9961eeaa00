// A projection of few rows: each weight is read once, widened in registers. Of
// eight-bit weights, a projection of any number of rows.

#pragma once

#include <algorithm>
#include <cstdint>

#include "tiles.h"

namespace {

// out[m][n] = rows[m] . weight[n] for n in [first, last): at least kSums, of a
// width D that vectors divide, and R or a multiple of R rows.
template <int R, class T>
void project_tiles(const float* rows, int64_t M, const T* weight, int64_t D,
                   int64_t N, int64_t first, int64_t last, float* out) {
  constexpr int64_t S = kSums / R;
  for (int64_t n = first; n < last; n += S) {
    // The last tile reaches back, over sums that come out the same.
    const int64_t at = std::min<int64_t>(n, last - S);
    const T* lines = weight + at * D;
    dot_tile<R, true>(rows, lines, D, out + at, N);
    for (int64_t m = R; m < M; m += R)
      dot_tile<R, false>(rows + m * D, lines, D, out + m * N + at, N);
  }
}

constexpr int kWays = kLanes / 8;  // vectors of lines side by side: 2 or 1
constexpr int kPanel = kWays * kLanes;
constexpr int64_t kDeep = 1024;  // numbers of a line in a panel
constexpr int64_t kMany = 32;    // rows from which turning pays

// Writes codes of kPanel lines as floats, the lines side by side:
// panel[k][line] for k < depth, a multiple of four.
inline void turn(const int8_t* codes, int64_t D, int64_t depth, float* panel) {
  int32_t fours[kDeep / 4 * kPanel];
  for (int64_t line = 0; line < kPanel; ++line)
    for (int64_t k = 0; k < depth; k += 4)
      memcpy(fours + k / 4 * kPanel + line, codes + line * D + k, 4);
  for (int64_t k = 0; k < depth; k += 4)
    for (int64_t w = 0; w < kPanel; w += kLanes) {
      const Ints four = *(const Ints*)(fours + k / 4 * kPanel + w);
      for (int i = 0; i < 4; ++i)  // the first in the lowest byte
        at(panel + (k + i) * kPanel + w) =
            __builtin_convertvector(four << (24 - 8 * i) >> 24, Vec);
    }
}

// out[r][line] (+)= sum over k of rows[r][k] panel[k][line].
template <int R>
inline void panel_tile(const float* rows, int64_t D, const float* panel,
                       int64_t depth, bool more, float* out, int64_t N) {
  Vec sum[R][kWays] = {};
  for (int64_t k = 0; k < depth; ++k)
    for (int w = 0; w < kWays; ++w) {
      Vec line = at(panel + k * kPanel + w * kLanes);
      KEEP(line);
      for (int r = 0; r < R; ++r) sum[r][w] += line * rows[r * D + k];
    }
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < kWays; ++w) {
      Vec& to = at(out + r * N + w * kLanes);
      to = more ? to + sum[r][w] : sum[r][w];
    }
}

// project_tiles for many rows, a multiple of four, and at least kPanel lines:
// codes are widened once for all of them, and no weight ever is as a whole.
inline void project_panels(const float* rows, int64_t M, const int8_t* weight,
                           int64_t D, int64_t N, int64_t first, int64_t last,
                           float* out) {
  static thread_local float panel[kDeep * kPanel];  // much for a stack
  for (int64_t n = first; n < last; n += kPanel)
    for (int64_t d = 0; d < D; d += kDeep) {
      const int64_t line = std::min(n, last - kPanel);
      const int64_t depth = std::min(kDeep, D - d);
      turn(weight + line * D + d, D, depth, panel);
      int64_t m = 0;
      for (; m + 8 <= M; m += 8)
        panel_tile<8>(rows + m * D + d, D, panel, depth, d > 0,
                      out + m * N + line, N);
      if (m < M)
        panel_tile<4>(rows + m * D + d, D, panel, depth, d > 0,
                      out + m * N + line, N);
    }
}

// The same for one row, two, or a multiple of four.
template <class T>
void project_lines(const float* rows, int64_t M, const T* weight, int64_t D,
                   int64_t N, int64_t first, int64_t last, float* out) {
  if constexpr (sizeof(T) == 1)
    if (M >= kMany && last - first >= kPanel)
      return project_panels(rows, M, weight, D, N, first, last, out);
  // Rows may not fit the first cache: the more lines a tile has, the less
  // often they are read. But the more rows, the less often a code is widened.
  constexpr int kRows = sizeof(T) < 4 ? 4 : kSums / 4;
  if (M == 1)
    project_tiles<1>(rows, M, weight, D, N, first, last, out);
  else if (M == 2)
    project_tiles<2>(rows, M, weight, D, N, first, last, out);
  else
    project_tiles<kRows>(rows, M, weight, D, N, first, last, out);
}

// The same, times the lines' scales.
template <class T>
void project(const float* rows, int64_t M, const T* weight, const float* scale,
             int64_t D, int64_t N, int64_t first, int64_t last, float* out) {
  project_lines(rows, M, weight, D, N, first, last, out);
  if (scale == nullptr) return;
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = first; n < last; ++n) out[m * N + n] *= scale[n];
}

}  // namespace
