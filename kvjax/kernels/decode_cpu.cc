// Attention of a few query rows over a cache, on a CPU, through the XLA FFI.
//
// One kv head of one batch row has R = G T query rows that all read the same
// slots. Slots are read in blocks that fit the first-level cache, for all R
// rows at once; narrow codes are widened in registers. The softmax runs block
// by block (FlashAttention, arXiv 2205.14135); stretches of blocks are shared
// out to the threads of XLA's own pool and merged by their sums
// (Flash-Decoding).
//
// A block in which no row may see a token is never read. In a block that is
// seen in part, a slot without a token counts as zeros, whatever is stored.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
constexpr int64_t kLine = 64;           // bytes of a cache line
constexpr int64_t kMostSlots = 64;      // of a block
constexpr int64_t kBlockBytes = 8192;   // of the keys in a block, about
constexpr int64_t kAlone = 1 << 18;     // bytes not worth waking a thread for

// ---------------------------------------------------------------- vectors

typedef float Vec __attribute__((vector_size(kLanes * 4), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4), aligned(4)));
typedef float Oct __attribute__((vector_size(32)));

// Holds a vector in a register where GCC would load it again for every use.
#if defined(__x86_64__)
#define KEEP(x) asm("" : "+v"(x))
#else
#define KEEP(x) ((void)0)
#endif

inline Vec& at(float* p) { return *reinterpret_cast<Vec*>(p); }
inline Vec at(const float* p) { return *reinterpret_cast<const Vec*>(p); }

// Loads kLanes codes as floats.
inline Vec wide(const float* p) { return at(p); }
inline Vec wide(const uint16_t* p) {  // bfloat16
  typedef uint16_t Codes __attribute__((vector_size(kLanes * 2), aligned(2)));
  typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
  const Codes codes = *reinterpret_cast<const Codes*>(p);
  return (Vec)(__builtin_convertvector(codes, Bits) << 16);
}
inline Vec wide(const int8_t* p) {
#if defined(__AVX512F__)
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
#elif defined(__AVX2__)  // GCC 12 makes 20 instructions of the generic form
  const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
#else
  typedef int8_t Codes __attribute__((vector_size(kLanes), aligned(1)));
  const Codes codes = *reinterpret_cast<const Codes*>(p);
  return __builtin_convertvector(__builtin_convertvector(codes, Ints), Vec);
#endif
}

// e^x for x <= 0, relative error 2e-7; exactly 0 below -87 (Cephes expf).
inline Vec exponential(Vec x) {
  const Vec magic = Vec{} + 12582912.f;
  const Vec shifted = x * 1.44269504f + magic;
  const Vec n = shifted - magic;
  const Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec y = Vec{} + 1.9875691500e-4f;
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                  1.6666665459e-1f, 5.0000001201e-1f})
    y = y * r + c;
  y = y * (r * r) + r + 1.f;
  const Ints power = ((Ints)shifted - (Ints)magic + 127) << 23;
  return x < -87.f ? Vec{} : y * (Vec)power;
}

inline float exponential(float x) { return exponential(Vec{} + x)[0]; }

inline Vec hyperbolic_tangent(Vec x) {  // Cephes tanhf
  const Vec size = x < 0.f ? -x : x, square = x * x;
  Vec y = Vec{} - 5.70498872745e-3f;
  for (float c : {2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                  -3.33332819422e-1f})
    y = y * square + c;
  const Vec decay = exponential(-2.f * size);
  const Vec far = (1.f - decay) / (1.f + decay);
  return size < 0.625f ? x + x * square * y : (x < 0.f ? -far : far);
}

template <class F>
inline Oct fold(Vec v, F f) {
  Oct half[2];
  memcpy(half, &v, sizeof v);
  return kLanes == 8 ? half[0] : f(half[0], half[1]);
}

// Sums of eight vectors at once: [sum(v[0]), ..., sum(v[7])].
inline Oct sums(const Vec (&v)[8]) {
  Oct a[8];
  for (int i = 0; i < 8; ++i)
    a[i] = fold(v[i], [](Oct x, Oct y) { return x + y; });
  for (int step : {4, 2}) {
    for (int i = 0; i < step; ++i) {
      const Oct x = a[2 * i], y = a[2 * i + 1];
      a[i] = __builtin_shufflevector(x, y, 0, 2, 8, 10, 4, 6, 12, 14) +
             __builtin_shufflevector(x, y, 1, 3, 9, 11, 5, 7, 13, 15);
    }
  }
  return __builtin_shufflevector(a[0], a[1], 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(a[0], a[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

// Combines all lanes of v by f, a function of two vectors.
template <class F>
inline float reduce(Vec v, F f) {
  Oct a = fold(v, f);
  a = f(a, __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3));
  a = f(a, __builtin_shufflevector(a, a, 2, 3, 0, 1, 6, 7, 4, 5));
  return f(a, __builtin_shufflevector(a, a, 1, 0, 3, 2, 5, 4, 7, 6))[0];
}

// ------------------------------------------------------------------ tiles

// out[r][s] = q[r] . k[s] for R rows and 8 / R slots: 8 sums in registers.
template <int R, class T>
inline void dot_tile(const float* q, const T* k, int64_t width, float* out) {
  constexpr int S = 8 / R;
  Vec sum[8] = {};
  for (int64_t h = 0; h < width; h += kLanes) {
    Vec key[S];
    for (int s = 0; s < S; ++s) key[s] = wide(k + s * width + h);
    for (int r = 0; r < R; ++r) {
      Vec x = at(q + r * width + h);
      KEEP(x);
      for (int s = 0; s < S; ++s) sum[r * S + s] += x * key[s];
    }
  }
  const Oct total = sums(sum);
  for (int r = 0; r < R; ++r)
    memcpy(out + r * kMostSlots, (const float*)&total + r * S, S * 4);
}

// acc[r] += sum over slots of p[r][s] v[s]: N vectors of R rows in registers.
template <int R, int N, class T>
inline void weigh_tile(const float* p, const T* v, int64_t width,
                       int64_t slots, float* acc) {
  Vec sum[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) sum[r][n] = at(acc + r * width + n * kLanes);
  for (int64_t s = 0; s < slots; ++s) {
    Vec x[N];
    for (int n = 0; n < N; ++n) {
      x[n] = wide(v + s * width + n * kLanes);
      KEEP(x[n]);
    }
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) sum[r][n] += x[n] * p[r * kMostSlots + s];
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) at(acc + r * width + n * kLanes) = sum[r][n];
}

// Calls f with 4, 2 or 1, a compile-time constant, and a tile's first row.
template <class F>
inline void by_rows(int64_t rows, F f) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) f(std::integral_constant<int, 4>(), r);
  if (r + 2 <= rows) f(std::integral_constant<int, 2>(), r), r += 2;
  if (r < rows) f(std::integral_constant<int, 1>(), r);
}

// --------------------------------------------------------------- problem

int64_t padded(int64_t width) { return (width + kLanes - 1) / kLanes * kLanes; }

// What every token left behind: codes [B, K, S, width], scales [B, K, S].
struct Stream {
  ffi::DataType type;
  const char* codes;
  const float* scales;  // nullptr: none
  int64_t width, size;  // elements of a slot, bytes of an element

  int64_t bytes() const { return width * size; }

  // Calls f with a null pointer to the type of the codes.
  template <class F>
  void typed(F f) const {
    if (type == ffi::F32) f((const float*)nullptr);
    if (type == ffi::BF16) f((const uint16_t*)nullptr);
    if (type == ffi::S8) f((const int8_t*)nullptr);
  }
};

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

  Range range(int32_t p) const {
    if (p < 0) return {1, 0, 1, 0};
    const int32_t low = chunk > 0 ? p / chunk * chunk : 0;
    int32_t high = chunk > 0 ? low + chunk - 1 : INT32_MAX;
    if (causal) high = std::min(high, p);
    const int32_t near = window > 0 ? std::max(low, p - window + 1) : low;
    return {near, high, low, std::min(high, sink_tokens - 1)};
  }
};

struct Block {
  int64_t first, slots;
  bool whole;  // a full block of which every row sees every slot
};

struct Item {  // a stretch of the blocks of one head, for one thread
  int64_t head, first, last;
};

struct Problem {
  int64_t B, K, T, S, E, rows, block, filled, held_heads;
  Rule rule;
  std::vector<Stream> keys;
  std::vector<const float*> queries;  // [B, K, G, T, H] of each key stream
  Stream value;
  int shared;  // the key stream that is the value as well, or -1
  const int32_t *positions, *held;
  float *out, *lse;

  std::vector<std::vector<Block>> seen;  // [B, held_heads]
  std::vector<Item> items;
  std::vector<int64_t> start;                // first item of each head
  std::unique_ptr<float[]> partial;          // [items, part_size()]
  std::unique_ptr<std::atomic<int>[]> left;  // items of a head still to do
  std::atomic<int64_t> next{0}, done{0};

  int64_t list(int64_t head) const { return held_heads == 1 ? head / K : head; }
  int64_t part_size() const { return rows * (2 + padded(E)); }
  float* part(int64_t item) const { return &partial[item * part_size()]; }

  void find(int64_t list);
  void plan(int64_t threads);
  void work();
  void merge(int64_t head) const;
};

// Lists the blocks in which some row of the batch row may see a slot.
void Problem::find(int64_t list) {
  Range some = {1, 0, 1, 0}, all = {0, INT32_MAX, 0, 0};
  for (int64_t t = 0; t < T; ++t) {
    const Range r = rule.range(positions[list / held_heads * T + t]);
    all.low = std::max(all.low, r.low), all.high = std::min(all.high, r.high);
    if (r.high < r.low) continue;
    if (some.high < some.low) some = r;
    some.low = std::min(some.low, r.low);
    some.high = std::max(some.high, r.high);
    some.sink_low = std::min(some.sink_low, r.sink_low);
    some.sink_high = std::max(some.sink_high, r.sink_high);
  }
  const int32_t* key = held + list * S;
  for (int64_t first = 0; first < filled; first += block) {
    const int64_t slots = std::min(block, filled - first);
    int32_t least = INT32_MAX, most = -1, any = 0;
    for (int64_t s = first; s < first + slots; ++s) {
      least = std::min(least, key[s]), most = std::max(most, key[s]);
      any |= some.sees(key[s]);
    }
    const bool whole = least >= all.low && most <= all.high && slots == block;
    if (any) seen[list].push_back({first, slots, whole});
  }
}

// Shares the listed blocks out in stretches of about equal length.
void Problem::plan(int64_t threads) {
  int64_t total = 0, bytes = shared < 0 ? value.bytes() : 0;
  for (int64_t i = 0; i < B * K; ++i) total += seen[list(i)].size();
  for (const Stream& key : keys) bytes += key.bytes();
  const bool alone = threads == 1 || total * block * bytes <= kAlone;
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
  partial.reset(new float[items.size() * part_size()]);
  for (int64_t i = 0; i < B * K; ++i)
    if (left[i] == 0) merge(i);  // sees nothing: 0, and -inf
}

// ------------------------------------------------------------- one stretch

// The online softmax of one head over one stretch of its blocks.
class Stretch {
 public:
  Stretch(const Problem& p, const Item& item, float* part)
      : p(p), item(item), top(part), total(part + p.rows),
        acc(part + 2 * p.rows), held(p.held + p.list(item.head) * p.S) {
    int64_t widest = padded(p.E), query = 0;
    for (const Stream& key : p.keys) {
      widest = std::max(widest, padded(key.width));
      query += p.rows * padded(key.width);
    }
    thread_local std::vector<float> memory;
    memory.resize(query + kMostSlots + p.block * widest +
                  2 * p.rows * kMostSlots);
    float* q = memory.data();
    scores = q + query;
    products = scores + p.rows * kMostSlots;
    scales = products + p.rows * kMostSlots;
    copy = scales + kMostSlots;
    for (size_t j = 0; j < p.keys.size(); ++j) {
      const int64_t width = p.keys[j].width, wide = padded(width);
      queries.push_back(q);
      for (int64_t r = 0; r < p.rows; ++r, q += wide) {
        std::fill_n(q, wide, 0.f);
        std::copy_n(p.queries[j] + (item.head * p.rows + r) * width, width, q);
      }
    }
    std::fill_n(top, p.rows, -INFINITY);
    std::fill_n(total, p.part_size() - p.rows, 0.f);
  }

  void run() {
    const std::vector<Block>& blocks = p.seen[p.list(item.head)];
    for (int64_t i = item.first; i < item.last; ++i) {
      then = i + 1 < item.last ? &blocks[i + 1] : nullptr;
      score(blocks[i]);
      softmax(blocks[i]);
      weigh_values(blocks[i]);
    }
  }

 private:
  const Problem& p;
  const Item& item;
  float *top, *total, *acc;  // of the part: [R], [R], [R, padded(E)]
  const int32_t* held;       // [S], of this head
  std::vector<const float*> queries;
  float *scores, *products, *scales, *copy;
  const Block* then = nullptr;  // the block after this one

  // Returns the codes of a block, rows padded; where it is not whole a copy in
  // which slots without a token are zeros.
  template <class T>
  const T* read(const Stream& x, const Block& b) const {
    const int64_t width = padded(x.width);
    const T* from = (const T*)x.codes + (item.head * p.S + b.first) * x.width;
    if (b.whole && width == x.width) return from;
    T* to = reinterpret_cast<T*>(copy);
    memset(to, 0, p.block * width * sizeof(T));
    for (int64_t s = 0; s < b.slots; ++s)
      if (held[b.first + s] >= 0)
        memcpy(to + s * width, from + s * x.width, x.width * sizeof(T));
    return to;
  }

  // Asks for slots of the next block, while this one is worked on.
  void prefetch(const Stream& x, int64_t slot, int64_t slots) const {
    if (then == nullptr) return;
    const char* first =
        x.codes + (item.head * p.S + then->first + slot) * x.bytes();
    for (int64_t i = 0; i < slots * x.bytes(); i += kLine)
      __builtin_prefetch(first + i, 0, 3);
  }

  // Multiplies [R, block] by the scales of the slots.
  void rescale(const Stream& x, const Block& b, float* to) const {
    if (x.scales == nullptr) return;
    std::fill_n(scales, p.block, 0.f);
    for (int64_t s = 0; s < b.slots; ++s)
      if (b.whole || held[b.first + s] >= 0)
        scales[s] = x.scales[item.head * p.S + b.first + s];
    for (int64_t r = 0; r < p.rows; ++r, to += kMostSlots)
      for (int64_t s = 0; s < p.block; s += kLanes) at(to + s) *= at(scales + s);
  }

  void score(const Block& b) {
    for (size_t j = 0; j < p.keys.size(); ++j) {
      const Stream& key = p.keys[j];
      float* to = j == 0 ? scores : products;
      key.typed([&](auto* type) { multiply(key, b, queries[j], to, type); });
      rescale(key, b, to);
      if (j > 0)
        for (int64_t i = 0; i < p.rows * kMostSlots; ++i) scores[i] += to[i];
    }
  }

  template <class T>
  void multiply(const Stream& key, const Block& b, const float* q, float* to,
                const T*) {
    const T* k = read<T>(key, b);
    const int64_t width = padded(key.width);
    by_rows(p.rows, [&](auto R, int64_t r) {
      constexpr int S = 8 / R;
      for (int64_t s = 0; s < p.block; s += S) {
        if (r == 0) prefetch(key, s, S);
        dot_tile<R>(q + r * width, k + s * width, width,
                    to + r * kMostSlots + s);
      }
    });
  }

  // Turns scores into weights, and what was added up into the same scale.
  void softmax(const Block& b) {
    const auto more = [](auto x, auto y) { return x > y ? x : y; };
    const auto plus = [](auto x, auto y) { return x + y; };
    for (int64_t r = 0; r < p.rows; ++r) {
      float* score = scores + r * kMostSlots;
      bound(score);
      if (!b.whole) mask(b, r, score);
      Vec best = Vec{} + top[r], sum = {};
      for (int64_t s = 0; s < p.block; s += kLanes)
        best = more(at(score + s), best);
      const float now = reduce(best, more);
      const float shift = now == -INFINITY ? 0.f : now;
      for (int64_t s = 0; s < p.block; s += kLanes)
        sum += at(score + s) = exponential(at(score + s) - shift);
      if (now != top[r]) {
        const float keep = exponential(top[r] - shift);
        total[r] *= keep;
        for (int64_t e = 0; e < padded(p.E); e += kLanes)
          at(acc + r * padded(p.E) + e) *= keep;
      }
      total[r] += reduce(sum, plus);
      top[r] = now;
    }
  }

  void bound(float* score) const {
    const float cap = p.rule.softcap;
    for (int64_t s = 0; s < p.block; s += kLanes) {
      const Vec x = at(score + s) * p.rule.scale;
      at(score + s) = cap > 0 ? cap * hyperbolic_tangent(x / cap) : x;
    }
  }

  void mask(const Block& b, int64_t row, float* score) const {
    const int64_t t = item.head / p.K * p.T + row % p.T;
    const Range range = p.rule.range(p.positions[t]);
    for (int64_t s = 0; s < b.slots; ++s)
      score[s] = range.sees(held[b.first + s]) ? score[s] : -INFINITY;
    std::fill_n(score + b.slots, p.block - b.slots, -INFINITY);
  }

  void weigh_values(const Block& b) {
    const Stream& value = p.value;
    rescale(value, b, scores);
    value.typed([&](auto* type) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
      const T* v = read<T>(value, b);
      by_rows(p.rows, [&](auto R, int64_t r) { weigh<R>(v, r); });
    });
  }

  template <int R, class T>
  void weigh(const T* v, int64_t r) {
    constexpr int64_t N = 8 / R, kWidth = N * kLanes;
    const int64_t width = padded(p.E), slots = p.block * kWidth / width;
    const float* weights = scores + r * kMostSlots;
    float* to = acc + r * width;
    int64_t e = 0;
    for (; e + kWidth <= width; e += kWidth) {
      // Each strip of features asks for its share of the next block's slots.
      if (r == 0 && p.shared < 0) prefetch(p.value, e / kWidth * slots, slots);
      weigh_tile<R, N>(weights, v + e, width, p.block, to + e);
    }
    for (; e < width; e += kLanes)
      weigh_tile<R, 1>(weights, v + e, width, p.block, to + e);
  }
};

void Problem::work() {
  const int64_t count = items.size();
  for (int64_t i; (i = next++) < count; ++done) {
    Stretch(*this, items[i], part(i)).run();
    if (--left[items[i].head] == 0) merge(items[i].head);
  }
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
      const float* acc = part(i) + 2 * rows + r * padded(E);
      total += keep * part(i)[rows + r];
      for (int64_t e = 0; e < E; ++e) to[e] += keep * acc[e];
    }
    if (total != 0.f)
      for (int64_t e = 0; e < E; ++e) to[e] /= total;
    lse[head * rows + r] = total == 0.f ? -INFINITY : shift + std::log(total);
  }
}

// -------------------------------------------------------------- operands

bool read_stream(const ffi::AnyBuffer& codes, const ffi::AnyBuffer& scales,
                 const Problem& p, Stream* to) {
  const auto shape = codes.dimensions();
  const ffi::DataType type = codes.element_type();
  const int64_t scaled = scales.element_count();
  *to = {type, static_cast<const char*>(codes.untyped_data()),
         scaled ? static_cast<const float*>(scales.untyped_data()) : nullptr,
         shape.size() == 4 ? shape[3] : 0,
         type == ffi::F32 ? 4 : type == ffi::BF16 ? 2 : 1};
  return shape.size() == 4 && shape[0] == p.B && shape[1] == p.K &&
         shape[2] == p.S && scales.element_type() == ffi::F32 &&
         (type == ffi::F32 || type == ffi::BF16 || type == ffi::S8) &&
         (scaled == 0 || scaled == p.B * p.K * p.S);
}

// Operands: positions [B, T], held [B, 1 | K, S], filled []; of each key
// stream the queries [B, K, G, T, H], codes, and scales (of size 0 for none);
// then codes and scales of the value, unless key stream `shared` is the value.
ffi::Error Decode(ffi::ThreadPool pool, ffi::Buffer<ffi::S32> positions,
                  ffi::Buffer<ffi::S32> held, ffi::Buffer<ffi::S32> filled,
                  ffi::RemainingArgs streams, ffi::ResultBuffer<ffi::F32> out,
                  ffi::ResultBuffer<ffi::F32> lse, float scale, float softcap,
                  int32_t causal, int32_t window, int32_t chunk,
                  int32_t sink_tokens, int32_t shared) {
  // Owned by every worker: one may wake when this call has long returned.
  const auto p = std::make_shared<Problem>();
  const auto shape = out->dimensions(), slots = held.dimensions();
  if (shape.size() != 5 || slots.size() != 3)
    return ffi::Error::InvalidArgument("kvjax_decode: wrong rank");
  p->B = shape[0], p->K = shape[1], p->T = shape[3], p->E = shape[4];
  p->S = slots[2], p->held_heads = slots[1], p->rows = shape[2] * shape[3];
  p->rule = {scale, softcap, causal, window, chunk, sink_tokens};
  p->shared = shared;
  p->positions = positions.typed_data(), p->held = held.typed_data();
  p->out = out->typed_data(), p->lse = lse->typed_data();
  p->filled = std::clamp<int64_t>(*filled.typed_data(), 0, p->S);
  bool fits = slots[0] == p->B && (slots[1] == 1 || slots[1] == p->K) &&
              int64_t(positions.element_count()) == p->B * p->T &&
              int64_t(lse->element_count()) == p->B * p->K * p->rows;

  const auto operand = [&](size_t i) { return *streams.get<ffi::AnyBuffer>(i); };
  const size_t count = streams.size() / 3;
  int64_t bytes = 0;
  for (size_t i = 0; i < count && fits; ++i) {
    Stream key;
    const ffi::AnyBuffer q = operand(3 * i);
    fits = read_stream(operand(3 * i + 1), operand(3 * i + 2), *p, &key) &&
           q.element_type() == ffi::F32 &&
           int64_t(q.element_count()) == p->B * p->K * p->rows * key.width;
    p->keys.push_back(key);
    p->queries.push_back(static_cast<const float*>(q.untyped_data()));
    bytes += key.bytes();
  }
  if (fits && shared < 0)
    fits = read_stream(operand(3 * count), operand(3 * count + 1), *p, &p->value);
  else if (fits)
    p->value = p->keys[shared];
  if (!fits || p->value.width != p->E)
    return ffi::Error::InvalidArgument("kvjax_decode: shapes do not fit");

  p->block = std::clamp<int64_t>(
      kBlockBytes / std::max<int64_t>(bytes, 1) / 16 * 16, 16, kMostSlots);
  p->seen.resize(p->B * p->held_heads);
  for (int64_t i = 0; i < p->B * p->held_heads; ++i) p->find(i);
  const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
  p->plan(threads);
  const int64_t items = p->items.size();
  for (int64_t i = 1; i < std::min(threads, items); ++i) {
    auto work = [p] { p->work(); };
    pool.Schedule(std::move(work));
  }
  p->work();
  while (p->done < items) std::this_thread::yield();
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    kvjax_decode, Decode,
    ffi::Ffi::Bind()
        .Ctx<ffi::ThreadPool>()
        .Arg<ffi::Buffer<ffi::S32>>()
        .Arg<ffi::Buffer<ffi::S32>>()
        .Arg<ffi::Buffer<ffi::S32>>()
        .RemainingArgs()
        .Ret<ffi::Buffer<ffi::F32>>()
        .Ret<ffi::Buffer<ffi::F32>>()
        .Attr<float>("scale")
        .Attr<float>("softcap")
        .Attr<int32_t>("causal")
        .Attr<int32_t>("window")
        .Attr<int32_t>("chunk")
        .Attr<int32_t>("sink_tokens")
        .Attr<int32_t>("shared"));
