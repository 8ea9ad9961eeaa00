// Attention of a few query rows over a cache, on a CPU.
//
// One kv head of one batch row has R = G T query rows that all read the same
// slots. Slots are read in blocks, and in each a tile at a time for all R rows,
// from the first-level cache except for the first time. A later block is
// prefetched at the same time, one cache line after the other: memory would
// rest between two bursts. Narrow codes are widened in registers; packed ones
// are unpacked to the first-level cache, a block at a time. Keys whose groups of
// features have a scale are multiplied as integers, by queries of 16 bits: eight
// floats take the time of sixteen integers. The softmax
// runs block by block (FlashAttention, arXiv 2205.14135); stretches of blocks
// are shared out to the threads of XLA's own pool and merged by their sums
// (Flash-Decoding).
//
// A block in which no row may see a token is never read. In a block that is
// seen in part, a slot without a token counts as zeros, whatever is stored.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "codes.h"
#include "problem.h"
#include "streams.h"
#include "tiles.h"

namespace {

constexpr int64_t kAhead = 1 << 14;  // bytes from prefetching to reading

// Whether chunks of features have a scale: keys are multiplied as integers.
bool by_chunks(const Stream& x) {
  return x.groups && x.width / x.groups % kChunk == 0;
}

// The queries of one key stream: floats and, for codes, integers.
struct Query {
  const float* rows;
  Rounded rounded;
};

// The online softmax of one head over one stretch of its blocks.
class Stretch {
 public:
  Stretch(const Problem& p, const Item& item, float* part)
      : p(p), item(item), top(part), total(part + padded(p.rows)),
        acc(total + padded(p.rows)),
        slot_positions(p.slot_positions + p.list(item.head) * p.S) {
    int64_t widest = padded(p.E), groups = padded(p.value.groups), query = 0;
    for (const Stream& key : p.keys) {
      widest = std::max(widest, padded(key.width));
      groups = std::max(groups, padded(key.groups));
      query += (2 * p.rows + 1) * padded(key.width) + padded(p.rows) +
               p.rows * padded(key.groups) + kLanes;
    }
    thread_local std::vector<float> memory;
    memory.resize(kLine / 4 + query + p.rows * (2 * kSlots + kLanes) +
                  kSlots * (1 + widest + widest / 4) +
                  2 * (kSlots * groups + kLanes));
    float* next = aligned(memory.data());
    const auto take = [&](int64_t count) {
      float* taken = next;
      next += padded(count);
      return taken;
    };
    scores = take(p.rows * kSlots);
    products = take(p.rows * kSlots);
    sums = take(p.rows * kLanes);
    scales = take(kSlots);
    copy = take(kSlots * widest);
    unpacked = reinterpret_cast<int8_t*>(take(kSlots * widest / 4));
    group_scales = take(kSlots * groups + kLanes);
    group_zeros = take(kSlots * groups + kLanes);
    for (size_t j = 0; j < p.keys.size(); ++j) {
      const int64_t width = p.keys[j].width, wide = padded(width);
      const float* from = p.queries[j] + item.head * p.rows * width;
      float* rows = take(p.rows * wide);
      for (int64_t r = 0; r < p.rows; ++r) {
        std::fill_n(rows + r * wide, wide, 0.f);
        std::copy_n(from + r * width, width, rows + r * wide);
      }
      queries.push_back({rows, {}});
      if (!by_chunks(p.keys[j])) continue;
      queries[j].rounded = rounded(p.keys[j], from, take);
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
  std::vector<Query> queries;
  float *scores, *products, *sums, *scales, *copy;
  int8_t* unpacked;                   // [slots, width]
  float *group_scales, *group_zeros;  // [slots, groups]
  const Block* last;  // of the head: the next stretch is this thread's too

  // Rounds the queries [R, width] of a key stream.
  template <class F>
  Rounded rounded(const Stream& x, const float* from, F take) const {
    const int64_t width = x.width, wide = padded(x.groups);
    const auto rows = reinterpret_cast<int16_t*>(take(p.rows * width / 2));
    const auto groups = reinterpret_cast<int32_t*>(take(width / kChunk));
    float *sums = take(p.rows * wide), *units = take(p.rows);
    std::vector<int16_t> natural_row(width);
    std::fill_n(sums, p.rows * wide, 0.f);
    for (int64_t c = 0; c < width / kChunk; ++c)
      groups[c] = feature_of(x, c) * x.groups / width;
    for (int64_t r = 0; r < p.rows; ++r) {
      int16_t* row = rows + r * width;
      int16_t* natural = natural_row.data();
      units[r] = round_numbers(from + r * width, width, natural);
      for (int64_t i = 0; i < width; ++i) {
        const int64_t c = i / kChunk, half = i % 2 * kChunk / 2;
        const int16_t number = natural[feature_of(x, c) + i % kChunk];
        row[c * kChunk + i % kChunk / 2 + half] = number;
        sums[r * wide + groups[c]] += number;
      }
    }
    return {rows, groups, sums, units};
  }

  bool in_place(const Stream& x, const Block& b) const {
    const int64_t width = x.bytes() / x.size;
    return b.whole && padded(width) == width && p.run(b.first) >= kSlots;
  }

  // Returns the codes of a block, rows padded; where they are not stored so, or
  // the block is not whole, a copy in which slots without a token are zeros.
  template <class T>
  const T* read(const Stream& x, const Block& b) const {
    const T* codes = (const T*)x.codes;
    const int64_t width = x.bytes() / sizeof(T), wide = padded(width);
    if (in_place(x, b)) return codes + p.line(item.head, b.first) * width;
    T* to = reinterpret_cast<T*>(copy);
    memset(to, 0, kSlots * wide * sizeof(T));
    p.each(item.head, b, [&](int64_t s, int64_t line) {
      if (slot_positions[b.first + s] >= 0)
        memcpy(to + s * wide, codes + line * width, x.bytes());
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

  // Widens numbers of groups, 0 for a slot without a token.
  void read_groups(const Stream& x, const Block& b) const {
    const int64_t groups = x.groups, count = kSlots * groups;
    if (!b.whole) {
      std::fill_n(group_scales, count, 0.f);
      std::fill_n(group_zeros, count, 0.f);
    }
    const auto read = [&](int64_t s, int64_t line, int64_t slots) {
      const int64_t from = line * groups, to = s * groups, n = slots * groups;
      widen(x.group_scales + from, n, group_scales + to);
      if (x.group_zeros) widen(x.group_zeros + from, n, group_zeros + to);
    };
    if (b.whole && p.run(b.first) >= kSlots)
      read(0, p.line(item.head, b.first), kSlots);
    else
      p.each(item.head, b, [&](int64_t s, int64_t line) {
        if (slot_positions[b.first + s] >= 0) read(s, line, 1);
      });
    const float shift = x.middle() - x.offset;
    if (!x.group_zeros) std::fill_n(group_zeros, count, 0.f);
    for (int64_t i = 0; i < count && shift != 0; ++i)
      group_zeros[i] += shift * group_scales[i];
    std::fill_n(group_zeros + count, kLanes, 0.f);
  }

  // Returns the codes of a block, unpacked to int8 where they are packed, or
  // for products that read them `packed`; and the numbers of their groups.
  Levels levels(const Stream& x, const Block& b, bool packed) const {
    const int64_t width = x.width, bytes = x.bytes(), later = ahead(x, b);
    read_groups(x, b);
    Levels found = {unpacked, group_scales, group_zeros, width, x.groups, width};
    if (!x.bits || packed) {
      found.codes = read<int8_t>(x, b);
      found.bytes = x.bits ? bytes : padded(width);
      found.ahead = later;
      return found;
    }
    if (!b.whole) memset(unpacked, 0, kSlots * width);
    p.each(item.head, b, [&](int64_t s, int64_t line) {
      if (!b.whole && slot_positions[b.first + s] < 0) return;
      const char* from = x.codes + line * bytes;
      unpack(x, from, bytes, unpacked + s * width);
      for (int64_t i = 0; later && i < bytes; i += kLine) ASK(from + i + later);
    });
    return found;
  }

  // Returns the numbers of a block, rows padded, for groups of any size.
  const float* numbers(const Stream& x, const Block& b) const {
    const Levels k = levels(x, b, false);
    const int64_t width = padded(x.width), group = x.width / x.groups;
    // The codes may be in `copy`.
    if (!x.bits) memcpy(unpacked, k.codes, kSlots * k.bytes);
    std::fill_n(copy, kSlots * width, 0.f);
    for (int64_t s = 0; s < kSlots; ++s)
      for (int64_t h = 0; h < x.width; ++h) {
        const int64_t at = s * x.groups + h / group;
        copy[s * width + h] =
            unpacked[s * k.bytes + h] * k.scale[at] + k.zero[at];
      }
    return copy;
  }

  // Returns the scales of a block's slots, 0 for one without a token.
  const float* slot_scales(const Stream& x, const Block& b) const {
    if (b.whole && p.run(b.first) >= kSlots)
      return x.scales + p.line(item.head, b.first);
    std::fill_n(scales, kSlots, 0.f);
    p.each(item.head, b, [&](int64_t s, int64_t line) {
      if (slot_positions[b.first + s] >= 0) scales[s] = x.scales[line];
    });
    return scales;
  }

  // Multiplies [R, block] by the scales of the slots.
  void rescale(const Stream& x, const Block& b, float* to) const {
    if (x.scales == nullptr) return;
    const float* scale = slot_scales(x, b);
    for (int64_t r = 0; r < p.rows; ++r, to += kSlots)
      for (int64_t s = 0; s < kSlots; s += kLanes)
        at(to + s) *= at(scale + s);
  }

  void score(const Block& b) {
    for (size_t j = 0; j < p.keys.size(); ++j) {
      const Stream& key = p.keys[j];
      float* to = j == 0 ? scores : products;
      if (by_chunks(key))
        multiply_codes(key, b, queries[j].rounded, to);
      else if (key.groups)
        multiply(key, queries[j].rows, to, numbers(key, b), 0);
      else
        key.typed([&](auto* type) {
          using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
          const T* k = read<T>(key, b);
          multiply(key, queries[j].rows, to, k, ahead(key, b));
        });
      rescale(key, b, to);
      if (j > 0)
        for (int64_t i = 0; i < p.rows * kSlots; ++i) scores[i] += to[i];
    }
  }

  template <class T>
  void multiply(const Stream& key, const float* q, float* to, const T* k,
                int64_t distance) {
    const int64_t width = padded(key.width);
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

  void multiply_codes(const Stream& key, const Block& b, const Rounded& q,
                      float* to) {
    const bool packed = in_words(key);
    const Levels k = levels(key, b, packed);
    for (int64_t first = 0; first < kSlots; first += 8)
      by_rows(p.rows, [&](auto R, int64_t r) {
        const auto tile = packed ? dot_codes<R, 4> : dot_codes<R, 8>;
        for (int64_t s = first; s < first + 8; s += 8 / R)
          tile(q, r, k, s, to + r * kSlots + s, kSlots);
      });
    for (int64_t r = 0; r < p.rows; ++r)
      for (int64_t s = 0; s < kSlots; s += kLanes)
        at(to + r * kSlots + s) *= q.units[r];
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

  void weigh_values(const Block& b) {
    const Stream& value = p.value;
    if (by_chunks(value)) return weigh_groups(b);
    if (value.groups)
      return weigh_strips(numbers(value, b), 0, padded(p.E), 0, Widened());
    rescale(value, b, scores);
    value.typed([&](auto* type) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
      const T* v = read<T>(value, b);
      const int64_t distance = p.shared < 0 ? ahead(value, b) : 0;
      weigh_strips(v, 0, padded(p.E), distance, Widened());
    });
  }

  void weigh_groups(const Block& b) {
    const Levels v = levels(p.value, b, false);
    const int64_t group = p.E / v.groups;
    const int64_t distance = p.shared < 0 ? v.ahead : 0;
    for (int64_t g = 0; g < v.groups; ++g)
      weigh_strips(v.codes, g * group, (g + 1) * group, distance,
                   Rescaled{v.scale + g, v.zero + g, v.groups});
  }

  // Strips of features, as wide as there are sums in registers for, one after
  // the other for all rows.
  template <class T, class Load>
  void weigh_strips(const T* v, int64_t first, int64_t end, int64_t distance,
                    Load load) {
    const int64_t strip = kSums / (p.rows < 4 ? p.rows : 4) * kLanes;
    for (int64_t e = first; e < end; e += strip)
      by_rows(p.rows, [&](auto R, int64_t r) {
        weigh<R, kSums / R>(v, r, e, std::min(e + strip, end), distance, load);
      });
  }

  // Adds weighed values to features [e, end) of R rows, at most N vectors at
  // once.
  template <int R, int N, class T, class Load>
  void weigh(const T* v, int64_t r, int64_t e, int64_t end, int64_t distance,
             Load load) {
    for (; e + N * kLanes <= end; e += N * kLanes) {
      const auto tile = r == 0 && distance ? weigh_tile<R, N, true, T, Load>
                                       : weigh_tile<R, N, false, T, Load>;
      tile(scores + r * kSlots, v + e, padded(p.E), acc + r * padded(p.E) + e,
           distance, load);
    }
    if constexpr (N > 1) weigh<R, N / 2>(v, r, e, end, distance, load);
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
