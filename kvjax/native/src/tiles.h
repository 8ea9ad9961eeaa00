// Vectors of floats, and the two products that attention is made of.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
// Sums in registers: half of what there are, so that operands have room.
constexpr int kSums = kLanes;
constexpr int64_t kSlots = 64;  // slots read at a time: the stride of weights
constexpr int64_t kLine = 64;   // bytes of a cache line

// A vector type of `bytes`, at any address that suits its elements.
#define VECTOR(bytes, align) \
  __attribute__((vector_size(bytes), aligned(align), may_alias))

typedef float Vec VECTOR(kLanes * 4, 4);
typedef int32_t Ints VECTOR(kLanes * 4, 4);
typedef float Oct VECTOR(32, 32);
typedef float Eight VECTOR(32, 4);

// Holds a vector in a register where GCC would load it again for every use.
#if defined(__AVX__)
#define KEEP(x) asm("" : "+v"(x))
#else
#define KEEP(x) ((void)0)
#endif

// An array stays in registers only if loops over it are gone early enough.
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

// Lines are prefetched to the second-level cache, which keeps more of them in
// flight than the first, and has room for them.
#define ASK(address) __builtin_prefetch(address, 0, 2)

inline int64_t padded(int64_t width) {
  return (width + kLanes - 1) / kLanes * kLanes;
}

inline Vec& at(float* p) { return *reinterpret_cast<Vec*>(p); }
inline Vec at(const float* p) { return *reinterpret_cast<const Vec*>(p); }

// Loads kLanes codes as floats.
inline Vec wide(const float* p) { return at(p); }
inline Vec wide(const uint16_t* p) {  // bfloat16
#if defined(__AVX512F__)  // GCC 12 makes 5 instructions of the generic form
  const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(codes), 16);
#else
  typedef uint16_t Codes VECTOR(kLanes * 2, 2);
  typedef uint32_t Bits VECTOR(kLanes * 4, 4);
  const Codes codes = *reinterpret_cast<const Codes*>(p);
  return (Vec)(__builtin_convertvector(codes, Bits) << 16);
#endif
}
inline Vec wide(const int8_t* p) {
#if defined(__AVX512F__)
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
#elif defined(__AVX2__)  // GCC 12 makes 20 instructions of the generic form
  const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
#else
  typedef int8_t Codes VECTOR(kLanes, 1);
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
#if defined(__AVX512F__)
  return f(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
           __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
#else
  return v;
#endif
}

// [sum(v[0]), sum(v[1]), ...] of eight vectors of eight.
inline Eight sums_of_8(const Eight* v) {
  const auto pairs = [](Eight x, Eight y) {
    return __builtin_shufflevector(x, y, 0, 2, 8, 10, 4, 6, 12, 14) +
           __builtin_shufflevector(x, y, 1, 3, 9, 11, 5, 7, 13, 15);
  };
  Eight a[2];
  UNROLL for (int i = 0; i < 2; ++i)
    a[i] = pairs(pairs(v[4 * i], v[4 * i + 1]),
                 pairs(v[4 * i + 2], v[4 * i + 3]));
  return __builtin_shufflevector(a[0], a[1], 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(a[0], a[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

// Sums of as many vectors as one has lanes.
inline Vec sums(const Vec* v) {
#if defined(__AVX512F__)
  const auto halves = [](Vec x, Vec y) {  // [x02, x13, y02, y13] of quarters
    return (Vec)_mm512_shuffle_f32x4((__m512)x, (__m512)y, 0x44) +
           (Vec)_mm512_shuffle_f32x4((__m512)x, (__m512)y, 0xee);
  };
  Vec a[4];
  UNROLL for (int i = 0; i < 4; ++i) {
    const Vec x = halves(v[i], v[i + 4]), y = halves(v[i + 8], v[i + 12]);
    a[i] = (Vec)_mm512_shuffle_f32x4((__m512)x, (__m512)y, 0x88) +
           (Vec)_mm512_shuffle_f32x4((__m512)x, (__m512)y, 0xdd);
  }
  UNROLL for (int i = 0; i < 2; ++i) {
    const __m512 x = (__m512)a[2 * i], y = (__m512)a[2 * i + 1];
    a[i] = (Vec)_mm512_shuffle_ps(x, y, 0x44) +
           (Vec)_mm512_shuffle_ps(x, y, 0xee);
  }
  const __m512 x = (__m512)a[0], y = (__m512)a[1];
  return (Vec)_mm512_shuffle_ps(x, y, 0x88) +
         (Vec)_mm512_shuffle_ps(x, y, 0xdd);
#else
  return sums_of_8(reinterpret_cast<const Eight*>(v));
#endif
}

// Combines all lanes of v by f, a function of two vectors.
template <class F>
inline float reduce(Vec v, F f) {
  Oct a = fold(v, f);
  a = f(a, __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3));
  a = f(a, __builtin_shufflevector(a, a, 2, 3, 0, 1, 6, 7, 4, 5));
  return f(a, __builtin_shufflevector(a, a, 1, 0, 3, 2, 5, 4, 7, 6))[0];
}

// Whether some lane of v is more than x.
inline bool exceeds(Vec v, float x) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(x), _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)(v > x)) != 0;
#else
  return reduce(v, [](auto a, auto b) { return a > b ? a : b; }) > x;
#endif
}

// ------------------------------------------------------------------ tiles

// out[r][s] = q[r] . k[s] for R rows and kSums / R slots. `Ahead` prefetches
// the slots that are `ahead` bytes further, each cache line once.
template <int R, bool Ahead, class T>
inline void dot_tile(const float* q, const T* k, int64_t width, float* out,
                     int64_t stride, int64_t ahead) {
  constexpr int S = kSums / R;
  Vec sum[kSums];
  UNROLL for (Vec& x : sum) x = Vec{};
  for (int64_t h = 0; h < width; h += kLanes) {
    Vec key[S];
    UNROLL for (int s = 0; s < S; ++s) {
      const T* from = k + s * width + h;
      key[s] = wide(from);
      if (Ahead && h * sizeof(T) % kLine == 0) ASK((const char*)from + ahead);
    }
    UNROLL for (int r = 0; r < R; ++r) {
      Vec x = at(q + r * width + h);
      KEEP(x);
      UNROLL for (int s = 0; s < S; ++s) sum[r * S + s] += x * key[s];
    }
  }
  const Vec total = sums(sum);
  for (int r = 0; r < R; ++r)
    memcpy(out + r * stride, (const float*)&total + r * S, S * 4);
}

// Makes numbers of codes that are numbers themselves.
struct Widened {
  template <class T>
  Vec operator()(const T* code, int64_t) const {
    return wide(code);
  }
};

// acc[r] += sum over a block's slots of p[r][s] v[s]: N vectors of R rows in
// registers. `load` makes numbers of the codes of a slot; `Ahead` as above.
template <int R, int N, bool Ahead, class T, class Load>
inline void weigh_tile(const float* p, const T* v, int64_t width, float* acc,
                       int64_t ahead, Load load) {
  Vec sum[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) sum[r][n] = at(acc + r * width + n * kLanes);
  for (int64_t s = 0; s < kSlots; ++s, v += width) {
    if (Ahead && (uintptr_t)v % kLine == 0)
      UNROLL for (int64_t i = 0; i < N * kLanes * int64_t(sizeof(T)); i += kLine)
        ASK((const char*)v + i + ahead);
    // Sums and what they are made of fit the registers in one of two orders.
    if constexpr (R < N) {
      UNROLL for (int n = 0; n < N; ++n) {
        Vec x = load(v + n * kLanes, s);
        KEEP(x);
        for (int r = 0; r < R; ++r) sum[r][n] += x * p[r * kSlots + s];
      }
    } else {
      Vec x[N];
      for (int n = 0; n < N; ++n) {
        x[n] = load(v + n * kLanes, s);
        KEEP(x[n]);
      }
      for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sum[r][n] += x[n] * p[r * kSlots + s];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) at(acc + r * width + n * kLanes) = sum[r][n];
}

// Calls f with 8 (if that leaves two lines a tile), 4, 2 or 1, a compile-time
// constant, and a tile's first row.
template <class F>
inline void by_rows(int64_t rows, F f) {
  int64_t r = 0;
  if constexpr (kSums >= 16)
    for (; r + 8 <= rows; r += 8) f(std::integral_constant<int, 8>(), r);
  for (; r + 4 <= rows; r += 4) f(std::integral_constant<int, 4>(), r);
  if (r + 2 <= rows) f(std::integral_constant<int, 2>(), r), r += 2;
  if (r < rows) f(std::integral_constant<int, 1>(), r);
}

}  // namespace
