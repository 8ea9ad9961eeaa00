// A projection of few rows: each weight is read once, widened in registers.

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

// The same for one row, two, or a multiple of four, times the lines' scales.
template <class T>
void project(const float* rows, int64_t M, const T* weight, const float* scale,
             int64_t D, int64_t N, int64_t first, int64_t last, float* out) {
  // Rows may not fit the first cache: the more lines a tile has, the less
  // often they are read. But the more rows, the less often a code is widened.
  constexpr int kRows = sizeof(T) < 4 ? 4 : kSums / 4;
  if (M == 1)
    project_tiles<1>(rows, M, weight, D, N, first, last, out);
  else if (M == 2)
    project_tiles<2>(rows, M, weight, D, N, first, last, out);
  else
    project_tiles<kRows>(rows, M, weight, D, N, first, last, out);
  if (scale == nullptr) return;
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = first; n < last; ++n) out[m * N + n] *= scale[n];
}

}  // namespace
