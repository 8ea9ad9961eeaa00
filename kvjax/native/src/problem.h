// A call of attention, and how its work is shared out.

#pragma once

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdint>
#include <memory>
#include <vector>

#include "streams.h"
#include "tiles.h"

namespace {

constexpr int64_t kAlone = 1 << 18;  // bytes not worth waking a thread for

float* aligned(float* p) {  // the next vector that no cache line divides
  return (float*)((uintptr_t(p) + kLine - 1) / kLine * kLine);
}

// Positions that a row sees: [low, high], and sinks [sink_low, sink_high].
struct Range {
  int32_t low, high, sink_low, sink_high;

  bool sees(int32_t key) const {
    return ((key >= low) & (key <= high)) |
           ((key >= sink_low) & (key <= sink_high));
  }
};

struct Rule {
  float scale, softcap;
  int32_t causal, window, chunk, sink_tokens;
  int32_t first, last;  // positions that are shown at all

  Range range(int32_t p) const {
    if (p < 0) return {1, 0, 1, 0};
    const int32_t low = chunk > 0 ? p / chunk * chunk : 0;
    int32_t high = INT32_MAX;
    // Beyond the largest position, the end of a chunk is no int32.
    if (chunk > 0) high = low + std::min(chunk - 1, INT32_MAX - low);
    high = std::min(high, last);
    if (causal) high = std::min(high, p);
    const int32_t near = window > 0 ? std::max(low, p - window + 1) : low;
    return {std::max(near, first), high, std::max(low, first),
            std::min(high, sink_tokens - 1)};
  }
};

struct Item {  // a stretch of the blocks of one head, for one thread
  int64_t head, first, last;
};

struct Problem : Layout {
  int64_t T, E, rows, filled, position_heads;
  Rule rule;
  std::vector<Stream> keys;
  std::vector<const float*> queries;  // [B, K, G, T, H] of each key stream
  Stream value;
  int shared;  // the key stream that is the value as well, or -1
  const int32_t *positions, *slot_positions;
  std::unique_ptr<int32_t[]> gathered;  // slot_positions of pages
  float *out, *lse;

  std::vector<std::vector<Block>> seen;  // [B, position_heads]
  std::vector<Item> items;
  std::vector<int64_t> start;                // first item of each head
  std::unique_ptr<float[]> partial;          // [items, part_size()], aligned
  std::unique_ptr<std::atomic<int>[]> left;  // items of a head still to do

  int64_t list(int64_t head) const {
    return position_heads == 1 ? head / K : head;
  }
  // Of an item: each row's largest score, its sum of weights (both padded), and
  // [rows, padded(E)] of weighed values.
  int64_t part_size() const { return 2 * padded(rows) + rows * padded(E); }
  float* part(int64_t item) const {
    return aligned(partial.get()) + item * part_size();
  }

  void find(int64_t list);
  void plan(int64_t threads);
  void work(int64_t item);
  void merge(int64_t head) const;
};

// Lists the blocks in which some row of the batch row may see a slot.
void Problem::find(int64_t list) {
  Range some = {INT32_MAX, -1, INT32_MAX, -1}, all = {0, INT32_MAX, 0, 0};
  for (int64_t t = 0; t < T; ++t) {
    const Range r = rule.range(positions[list / position_heads * T + t]);
    all.low = std::max(all.low, r.low), all.high = std::min(all.high, r.high);
    if (r.low <= r.high) {
      some.low = std::min(some.low, r.low);
      some.high = std::max(some.high, r.high);
    }
    if (r.sink_low <= r.sink_high) {
      some.sink_low = std::min(some.sink_low, r.sink_low);
      some.sink_high = std::max(some.sink_high, r.sink_high);
    }
  }
  const int32_t* key = slot_positions + list * S;
  for (int64_t first = 0; first < filled; first += kSlots) {
    const int64_t slots = std::min(kSlots, filled - first);
    int32_t least = INT32_MAX, most = -1, any = 0;
    for (int64_t s = first; s < first + slots; ++s) {
      least = std::min(least, key[s]), most = std::max(most, key[s]);
      any |= some.sees(key[s]);
    }
    const bool whole = least >= all.low && most <= all.high && slots == kSlots;
    if (any) seen[list].push_back({first, slots, whole});
  }
}

// Shares the listed blocks out in stretches of about equal length.
void Problem::plan(int64_t threads) {
  int64_t total = 0, bytes = shared < 0 ? value.bytes() : 0;
  for (int64_t i = 0; i < B * K; ++i) total += seen[list(i)].size();
  for (const Stream& key : keys) bytes += key.bytes();
  const bool alone = threads == 1 || total * kSlots * bytes <= kAlone;
  const int64_t count = alone ? 1 : 6 * threads;
  const int64_t each = std::max<int64_t>((total + count - 1) / count, 1);
  left.reset(new std::atomic<int>[B * K]);
  for (int64_t i = 0; i < B * K; ++i) {
    start.push_back(items.size());
    const int64_t n = seen[list(i)].size();
    const int64_t parts = alone ? n > 0 : (n + each - 1) / each;
    for (int64_t j = 0; j < parts; ++j)
      items.push_back({i, n * j / parts, n * (j + 1) / parts});
    left[i] = int(parts);
  }
  start.push_back(items.size());
  partial.reset(new float[items.size() * part_size() + kLine / 4]);
  for (int64_t i = 0; i < B * K; ++i)
    if (left[i] == 0) merge(i);  // sees nothing: 0, and -inf
}

}  // namespace
