// Attention of a few query rows over a cache, on a CPU.
//
// One kv head of one batch row has R = G T query rows that all read the same
// slots. Slots are read in blocks, and in each a tile at a time for all R rows,
// from the first-level cache except for the first time. A later block is
// prefetched at the same time, one cache line after the other: memory would
// rest between two bursts. Narrow codes are widened in registers. The softmax
// runs block by block (FlashAttention, arXiv 2205.14135); stretches of blocks
// are shared out to the threads of XLA's own pool and merged by their sums
// (Flash-Decoding).
//
// A block in which no row may see a token is never read. In a block that is
// seen in part, a slot without a token counts as zeros, whatever is stored.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "streams.h"
#include "tiles.h"

namespace {

constexpr int64_t kAhead = 1 << 14;  // bytes from prefetching to reading
constexpr int64_t kAlone = 1 << 18;  // bytes not worth waking a thread for

int64_t padded(int64_t width) { return (width + kLanes - 1) / kLanes * kLanes; }

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

// The online softmax of one head over one stretch of its blocks.
class Stretch {
 public:
  Stretch(const Problem& p, const Item& item, float* part)
      : p(p), item(item), top(part), total(part + padded(p.rows)),
        acc(total + padded(p.rows)),
        slot_positions(p.slot_positions + p.list(item.head) * p.S) {
    int64_t widest = padded(p.E), query = 0;
    for (const Stream& key : p.keys) {
      widest = std::max(widest, padded(key.width));
      query += p.rows * padded(key.width);
    }
    thread_local std::vector<float> memory;
    memory.resize(kLine / 4 + query + kSlots * (1 + widest + 2 * p.rows) +
                  p.rows * kLanes);
    float* q = aligned(memory.data());
    scores = q + query;
    products = scores + p.rows * kSlots;
    sums = products + p.rows * kSlots;
    scales = sums + p.rows * kLanes;
    copy = scales + kSlots;
    for (size_t j = 0; j < p.keys.size(); ++j) {
      const int64_t width = p.keys[j].width, wide = padded(width);
      queries.push_back(q);
      for (int64_t r = 0; r < p.rows; ++r, q += wide) {
        std::fill_n(q, wide, 0.f);
        std::copy_n(p.queries[j] + (item.head * p.rows + r) * width, width, q);
      }
    }
    std::fill_n(top, p.rows, -INFINITY);
    std::fill_n(sums, p.rows * kLanes, 0.f);
    std::fill_n(acc, p.rows * padded(p.E), 0.f);
  }

  void run() {
    const std::vector<Block>& blocks = p.seen[p.list(item.head)];
    last = &blocks.back();
    for (int64_t i = item.first; i < item.last; ++i) {
      score(blocks[i]);
      softmax(blocks[i]);
      weigh_values(blocks[i]);
    }
    for (int64_t r = 0; r < p.rows; ++r)
      total[r] = reduce(at(sums + r * kLanes), std::plus<>());
  }

 private:
  const Problem& p;
  const Item& item;
  float *top, *total, *acc;  // of the part: [R], [R], [R, padded(E)]
  const int32_t* slot_positions;       // [S], of this head
  std::vector<const float*> queries;
  float *scores, *products, *sums, *scales, *copy;
  const Block* last;  // of the head: the next stretch is this thread's too

  bool in_place(const Stream& x, const Block& b) const {
    return b.whole && padded(x.width) == x.width && p.run(b.first) >= kSlots;
  }

  // Returns the codes of a block, rows padded; where they are not stored so, or
  // the block is not whole, a copy in which slots without a token are zeros.
  template <class T>
  const T* read(const Stream& x, const Block& b) const {
    const T* codes = (const T*)x.codes;
    if (in_place(x, b)) return codes + p.line(item.head, b.first) * x.width;
    const int64_t width = padded(x.width);
    T* to = reinterpret_cast<T*>(copy);
    memset(to, 0, kSlots * width * sizeof(T));
    p.each(item.head, b, [&](int64_t s, int64_t line) {
      if (slot_positions[b.first + s] >= 0)
        memcpy(to + s * width, codes + line * x.width, x.width * sizeof(T));
    });
    return to;
  }

  // Returns how many bytes after block b of a stream the block starts that is
  // prefetched while b is read; 0 for none. Nothing is prefetched for a copy.
  int64_t ahead(const Stream& x, const Block& b) const {
    const int64_t blocks = (kAhead - 1) / (kSlots * x.bytes()) + 1;
    if (last - &b < blocks || !in_place(x, b)) return 0;
    const int64_t later = p.line(item.head, (&b)[blocks].first);
    return (later - p.line(item.head, b.first)) * x.bytes();
  }

  // Multiplies [R, block] by the scales of the slots.
  void rescale(const Stream& x, const Block& b, float* to) const {
    if (x.scales == nullptr) return;
    std::fill_n(scales, kSlots, 0.f);
    p.each(item.head, b, [&](int64_t s, int64_t line) {
      if (b.whole || slot_positions[b.first + s] >= 0)
        scales[s] = x.scales[line];
    });
    for (int64_t r = 0; r < p.rows; ++r, to += kSlots)
      for (int64_t s = 0; s < kSlots; s += kLanes)
        at(to + s) *= at(scales + s);
  }

  void score(const Block& b) {
    for (size_t j = 0; j < p.keys.size(); ++j) {
      const Stream& key = p.keys[j];
      float* to = j == 0 ? scores : products;
      key.typed([&](auto* type) { multiply(key, b, queries[j], to, type); });
      rescale(key, b, to);
      if (j > 0)
        for (int64_t i = 0; i < p.rows * kSlots; ++i) scores[i] += to[i];
    }
  }

  template <class T>
  void multiply(const Stream& key, const Block& b, const float* q, float* to,
                const T*) {
    const T* k = read<T>(key, b);
    const int64_t width = padded(key.width), distance = ahead(key, b);
    for (int64_t first = 0; first < kSlots; first += kSums)
      by_rows(p.rows, [&](auto R, int64_t r) {
        constexpr int S = kSums / R;
        for (int64_t s = first; s < first + kSums; s += S) {
          const auto tile = r == 0 && distance ? dot_tile<R, true, T>
                                           : dot_tile<R, false, T>;
          tile(q + r * width, k + s * width, width, to + r * kSlots + s,
               kSlots, distance);
        }
      });
  }

  // Turns scores into weights. Each lane sums its own until the last block.
  void softmax(const Block& b) {
    const auto larger = [](auto x, auto y) { return x > y ? x : y; };
    for (int64_t r = 0; r < p.rows; ++r) {
      float* score = scores + r * kSlots;
      bound(score);
      if (!b.whole) mask(b, r, score);
      Vec best = at(score), sum = at(sums + r * kLanes);
      for (int64_t s = kLanes; s < kSlots; s += kLanes)
        best = larger(at(score + s), best);
      if (exceeds(best, top[r])) {
        rise(r, reduce(best, larger));
        sum = at(sums + r * kLanes);
      }
      const float shift = top[r] == -INFINITY ? 0.f : top[r];
      for (int64_t s = 0; s < kSlots; s += kLanes)
        sum += at(score + s) = exponential(at(score + s) - shift);
      at(sums + r * kLanes) = sum;
    }
  }

  // Brings what was added up to the scale of a larger score.
  void rise(int64_t r, float now) {
    const float keep = exponential(top[r] - now);
    at(sums + r * kLanes) *= keep;
    for (int64_t e = 0; e < padded(p.E); e += kLanes)
      at(acc + r * padded(p.E) + e) *= keep;
    top[r] = now;
  }

  void bound(float* score) const {
    const float cap = p.rule.softcap;
    for (int64_t s = 0; s < kSlots; s += kLanes) {
      const Vec x = at(score + s) * p.rule.scale;
      at(score + s) = cap > 0 ? cap * hyperbolic_tangent(x / cap) : x;
    }
  }

  void mask(const Block& b, int64_t row, float* score) const {
    const int64_t t = item.head / p.K * p.T + row % p.T;
    const Range range = p.rule.range(p.positions[t]);
    for (int64_t s = 0; s < b.slots; ++s)
      score[s] = range.sees(slot_positions[b.first + s]) ? score[s] : -INFINITY;
    std::fill_n(score + b.slots, kSlots - b.slots, -INFINITY);
  }

  // Strips of features, as wide as there are sums in registers for, one after
  // the other for all rows.
  void weigh_values(const Block& b) {
    const Stream& value = p.value;
    const int64_t width = padded(p.E);
    rescale(value, b, scores);
    value.typed([&](auto* type) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
      const T* v = read<T>(value, b);
      const int64_t distance = p.shared < 0 ? ahead(value, b) : 0;
      const int64_t strip = kSums / (p.rows < 4 ? p.rows : 4) * kLanes;
      for (int64_t e = 0; e < width; e += strip)
        by_rows(p.rows, [&](auto R, int64_t r) {
          weigh<R, kSums / R>(v, r, e, std::min(e + strip, width), distance);
        });
    });
  }

  // Adds weighed values to features [e, end) of R rows, at most N vectors at
  // once.
  template <int R, int N, class T>
  void weigh(const T* v, int64_t r, int64_t e, int64_t end, int64_t distance) {
    for (; e + N * kLanes <= end; e += N * kLanes) {
      const auto tile = r == 0 && distance ? weigh_tile<R, N, true, T>
                                       : weigh_tile<R, N, false, T>;
      tile(scores + r * kSlots, v + e, padded(p.E), acc + r * padded(p.E) + e,
           distance);
    }
    if constexpr (N > 1) weigh<R, N / 2>(v, r, e, end, distance);
  }
};

void Problem::work(int64_t item) {
  Stretch(*this, items[item], part(item)).run();
  if (--left[items[item].head] == 0) merge(items[item].head);
}

// Writes the output and log-sum-exp of one head from its stretches.
void Problem::merge(int64_t head) const {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t first = start[head], last = start[head + 1];
    float top = -INFINITY, total = 0.f, *to = out + (head * rows + r) * E;
    for (int64_t i = first; i < last; ++i) top = std::max(top, part(i)[r]);
    const float shift = top == -INFINITY ? 0.f : top;
    std::fill_n(to, E, 0.f);
    for (int64_t i = first; i < last; ++i) {
      const float keep = exponential(part(i)[r] - shift);
      const float* acc = part(i) + 2 * padded(rows) + r * padded(E);
      total += keep * part(i)[padded(rows) + r];
      for (int64_t e = 0; e < E; ++e) to[e] += keep * acc[e];
    }
    if (total != 0.f)
      for (int64_t e = 0; e < E; ++e) to[e] /= total;
    lse[head * rows + r] = total == 0.f ? -INFINITY : shift + std::log(total);
  }
}

}  // namespace
