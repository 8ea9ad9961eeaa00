// A projection of few rows: each weight is read once, widened in registers. A
// projection of dozens of rows by eight-bit weights is in `panels.h`.

#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "panels.h"
#include "streams.h"
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
    const T* channels = weight + at * D;
    // What follows the last tile is another thread's.
    const auto first_rows =
        n + S < last ? dot_tile<R, true, T> : dot_tile<R, false, T>;
    first_rows(rows, channels, D, out + at, N, S * D * sizeof(T));
    for (int64_t m = R; m < M; m += R)
      dot_tile<R, false>(rows + m * D, channels, D, out + m * N + at, N, 0);
  }
}

constexpr int64_t kPanelRows = 32;  // rows from which a transposed weight pays

// The same for one row, two, or a multiple of four.
template <class T>
void project_channels(const float* rows, int64_t M, const T* weight, int64_t D,
                   int64_t N, int64_t first, int64_t last, float* out) {
  if constexpr (sizeof(T) == 1)  // by floats XLA multiplies as fast
    if (M >= kPanelRows && last - first >= kPanel)
      return project_panels(rows, M, weight, D, N, first, last, out);
  // Rows may not fit the first cache: the more channels a tile has, the less
  // often they are read. But the more rows, the less often a code is widened,
  // and the more evenly channels are prefetched.
  constexpr int kRows = sizeof(T) < 4 ? 4 : kSums / 4;
  if (M == 1)
    project_tiles<1>(rows, M, weight, D, N, first, last, out);
  else if (M == 2)
    project_tiles<2>(rows, M, weight, D, N, first, last, out);
  else if (kSums >= 16 && M % 8 == 0)
    project_tiles<8>(rows, M, weight, D, N, first, last, out);
  else
    project_tiles<kRows>(rows, M, weight, D, N, first, last, out);
}

// The same, times the channels' scales.
template <class T>
void project(const float* rows, int64_t M, const T* weight, const float* scale,
             int64_t D, int64_t N, int64_t first, int64_t last, float* out) {
  project_channels(rows, M, weight, D, N, first, last, out);
  if (scale == nullptr) return;
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = first; n < last; ++n) out[m * N + n] *= scale[n];
}

constexpr int64_t kPiece = 1 << 18;  // bytes of weights, for up to eight rows

// The parts that threads take: ranges of channels, and of dozens of rows by few
// channels ranges of rows as well.
struct Parts {
  Parts(int64_t M, const Stream& weight, int64_t N, int64_t work,
        int64_t threads)
      : M(M), N(N) {
    const bool by_panels =
        weight.size == 1 && M >= kPanelRows && N >= kPanel;
    unit = by_panels ? kPanel : kSums;
    if (threads == 1) return;
    channels = std::max(threads, by_panels ? N / kBlock : work / kPiece);
    channels = std::min(channels, N / unit);
    if (by_panels && channels < 2 * threads)
      rows = std::clamp<int64_t>(2 * threads / channels, 1,
                                 std::max<int64_t>(M / kPanelRows / 2, 1));
  }
  using Range = std::pair<int64_t, int64_t>;
  Range channels_of(int64_t i) const {
    return cut(N, unit, channels, i / rows);
  }
  Range rows_of(int64_t i) const { return cut(M, kTall, rows, i % rows); }
  // The i-th range of `parts`, of whole units; the last takes the rest.
  static Range cut(int64_t size, int64_t unit, int64_t parts, int64_t i) {
    const auto start = [=](int64_t i) {
      return size / unit * i / parts * unit;
    };
    return {start(i), i + 1 < parts ? start(i + 1) : size};
  }
  int64_t M, N, unit, channels = 1, rows = 1;
};

}  // namespace
