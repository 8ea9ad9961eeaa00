// A projection of dozens of rows: weights are widened and transposed once for
// them, a block that the second cache holds at a time (the layers of Goto and
// van de Geijn 2008, "Anatomy of high-performance matrix multiplication").

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "tiles.h"

namespace {

// Sums of a tile, a vector of each way and a number of a row take 27 of 32
// registers, or 15 of 16.
constexpr int kWays = 2;  // adjacent vectors of channels
constexpr int kTall = kLanes == 16 ? 12 : 6;
constexpr int kPanel = kWays * kLanes;
constexpr int64_t kDeep = 512;               // numbers of a channel in a panel
constexpr int64_t kBlock = 128;              // channels of a block of panels
constexpr int64_t kStride = kDeep + kLanes;  // of rows: no two share a set

template <int Step, size_t... I>
inline void swap(Vec& a, Vec& b, std::index_sequence<I...>) {
  const Vec low = __builtin_shufflevector(
      a, b, (I & Step ? kLanes + I - Step : I)...);
  b = __builtin_shufflevector(a, b, (I & Step ? kLanes + I : I + Step)...);
  a = low;
}

// One step of a transposition: swaps squares of Step lanes, then smaller ones.
template <int Step>
inline void transpose(Vec* v) {
  for (int i = 0; i < kLanes; ++i)
    if (!(i & Step))
      swap<Step>(v[i], v[i + Step], std::make_index_sequence<kLanes>());
  if constexpr (Step > 1) transpose<Step / 2>(v);
}

// Transposes kPanel channels into a panel: panel[k][channel] for k < depth.
template <class T>
inline void transpose_channels(const T* channels, int64_t D, int64_t depth,
                               float* panel) {
  for (int w = 0; w < kWays; ++w)
    for (int64_t k = 0; k < depth; k += kLanes) {
      Vec v[kLanes];
      for (int i = 0; i < kLanes; ++i)
        v[i] = wide(channels + (w * kLanes + i) * D + k);
      transpose<kLanes / 2>(v);
      for (int i = 0; i < kLanes; ++i)
        at(panel + (k + i) * kPanel + w * kLanes) = v[i];
    }
}

// out[r][channel] (+)= sum over k of rows[r][k] panel[k][channel].
template <int R>
inline void panel_tile(const float* rows, const float* panel, int64_t depth,
                       bool add, float* out, int64_t N) {
  Vec sum[R][kWays] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec channel[kWays];
    for (int w = 0; w < kWays; ++w) {
      channel[w] = at(panel + k * kPanel + w * kLanes);
      KEEP(channel[w]);
    }
    for (int r = 0; r < R; ++r) {
      const Vec x = rows[r * kStride + k] - Vec{};
      for (int w = 0; w < kWays; ++w) sum[r][w] += channel[w] * x;
    }
  }
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < kWays; ++w) {
      Vec& to = at(out + r * N + w * kLanes);
      to = add ? to + sum[r][w] : sum[r][w];
    }
}

// All rows by `count` panels, R of them at a time and then fewer.
template <int R>
inline void panel_rows(const float* rows, int64_t M, int64_t D,
                       const float* panels, int64_t count, int64_t depth,
                       bool add, float* out, int64_t N) {
  for (; M >= R; M -= R, rows += R * D, out += R * N) {
    alignas(64) float near[R * kStride];
    for (int r = 0; r < R; ++r)
      memcpy(near + r * kStride, rows + r * D, depth * sizeof(float));
    for (int64_t i = 0; i < count; ++i)
      panel_tile<R>(near, panels + i * kDeep * kPanel, depth, add,
                    out + i * kPanel, N);
  }
  if constexpr (R > 2)
    panel_rows<(R > 8 ? 8 : R > 4 ? 4 : 2)>(rows, M, D, panels, count, depth,
                                            add, out, N);
}

// out[m][n] = rows[m] . weight[n] for n in [first, last), at least kPanel,
// and an even number of rows.
template <class T>
void project_panels(const float* rows, int64_t M, const T* weight, int64_t D,
                    int64_t N, int64_t first, int64_t last, float* out) {
  // Much for a stack.
  alignas(64) static thread_local float panels[kBlock * kDeep];
  for (int64_t n = first, next; n < last; n = next) {
    const int64_t count = std::min(kBlock, last - n) / kPanel;
    next = n + std::max<int64_t>(count, 1) * kPanel;
    // The last panel reaches back, over sums that come out the same.
    const int64_t channel = std::min(n, last - kPanel);
    for (int64_t d = 0; d < D; d += kDeep) {
      const int64_t depth = std::min(kDeep, D - d);
      const int64_t whole = std::max<int64_t>(count, 1);
      for (int64_t i = 0; i < whole; ++i)
        transpose_channels(weight + (channel + i * kPanel) * D + d, D, depth,
             panels + i * kDeep * kPanel);
      panel_rows<kTall>(rows + d, M, D, panels, whole, depth, d > 0,
                        out + channel, N);
    }
  }
}

}  // namespace
