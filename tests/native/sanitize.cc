// Random calls of the library, as XLA makes them, against loops in double.
//
// Every operand has a heap buffer of its exact size, so that the address
// sanitizer sees a read or a write of one byte too many. Page tables are
// corrupt, positions reach both ends of int32, widths are odd, and slots without
// a token are NaN. Some calls have an operand that is too small: the library
// must refuse it, or not touch what it lacks. Two threads call, and one pool
// serves both, as XLA's does; a task may still wait there when its call is over.
//
//   sanitize FIRST_SEED CALLS

#include <climits>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <random>
#include <thread>

#include "decode_cpu.cc"

namespace {

// ---------------------------------------------------------------- the pool

// Threads that take tasks; the caller is told of `count`. In a process that was
// forked, none is alive: a call must not wait for what they would do.
class Threads {
 public:
  Threads(int count, int alive) : claimed(count) {
    for (int i = 0; i < alive; ++i) threads.emplace_back([this] { serve(); });
  }
  ~Threads() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      over = true;
    }
    wake.notify_all();
    for (std::thread& thread : threads) thread.join();
    for (const auto& [task, data] : tasks) task(data);
  }
  void add(XLA_FFI_Task* task, void* data) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      tasks.push_back({task, data});
    }
    wake.notify_one();
  }
  int64_t count() const { return claimed; }

 private:
  void serve() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      wake.wait(lock, [this] { return over || !tasks.empty(); });
      if (tasks.empty()) return;
      const auto [task, data] = tasks.front();
      tasks.pop_front();
      lock.unlock();
      task(data);
      lock.lock();
    }
  }
  const int64_t claimed;
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<std::pair<XLA_FFI_Task*, void*>> tasks;
  bool over = false;
  std::vector<std::thread> threads;
};

Threads* threads;

XLA_FFI_Error* schedule(XLA_FFI_ThreadPool_Schedule_Args* args) {
  threads->add(args->task, args->data);
  return nullptr;
}

XLA_FFI_Error* num_threads(XLA_FFI_ThreadPool_NumThreads_Args* args) {
  *args->num_threads = threads->count();
  return nullptr;
}

ffi::ThreadPool pool() {
  static const XLA_FFI_Api api = [] {
    XLA_FFI_Api api = {};
    api.XLA_FFI_ThreadPool_Schedule = schedule;
    api.XLA_FFI_ThreadPool_NumThreads = num_threads;
    return api;
  }();
  static ffi::DiagnosticEngine diagnostic;
  return *ffi::CtxDecoding<ffi::ThreadPool>::Decode(&api, nullptr, diagnostic);
}

// ---------------------------------------------------------------- operands

class Random {
 public:
  explicit Random(uint64_t seed) : engine(seed) {}
  int64_t between(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine);
  }
  bool one_in(int64_t count) { return between(1, count) == 1; }
  float normal() { return std::normal_distribution<float>()(engine); }
  template <class T>
  T of(std::initializer_list<T> choices) {
    return choices.begin()[between(0, choices.size() - 1)];
  }

 private:
  std::mt19937_64 engine;
};

using Shape = std::vector<int64_t>;

int64_t product(const Shape& shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

// An operand or a result, in a heap buffer of its exact size.
struct Array {
  Array(ffi::DataType type, Shape shape)
      : type(type), shape(std::move(shape)),
        data(new char[product(this->shape) * ffi::ByteWidth(type)]()) {}

  int64_t count() const { return product(shape); }
  int64_t bytes() const { return count() * ffi::ByteWidth(type); }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data.get());
  }
  XLA_FFI_Buffer* buffer() {
    header = {};
    header.dtype = static_cast<XLA_FFI_DataType>(type);
    header.data = data.get();
    header.rank = shape.size();
    header.dims = shape.data();
    return &header;
  }
  // Of a floating type, NaN where `empty`; of int8, a code.
  void put(int64_t i, Random& random, bool empty) {
    const float x = empty ? NAN : random.normal();
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (type == ffi::F32) as<float>()[i] = x;
    if (type == ffi::BF16) as<uint16_t>()[i] = bits >> 16;
    if (type == ffi::S8) as<int8_t>()[i] = random.between(-127, 127);
    if (type == ffi::U8) as<uint8_t>()[i] = random.between(0, 255);
  }
  double get(int64_t i) const {
    if (type == ffi::F32) return as<float>()[i];
    if (type == ffi::S8) return as<int8_t>()[i];
    const uint32_t bits = uint32_t(as<uint16_t>()[i]) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }
  // Loses one line of an axis, and the memory of it.
  bool shrink(Random& random) {
    if (shape.empty() || count() == 0) return false;
    --shape[random.between(0, shape.size() - 1)];
    data.reset(new char[bytes()]());
    return true;
  }

  ffi::DataType type;
  Shape shape;
  std::unique_ptr<char[]> data;
  XLA_FFI_Buffer header;
};

template <ffi::DataType type>
ffi::Buffer<type> typed(Array& array) {
  return ffi::Buffer<type>(array.buffer());
}

constexpr int kChecks = 200;  // random numbers of a result that are compared

std::atomic<int64_t> refused{0};
std::mutex worst_mutex;
double worst = 0;

[[noreturn]] void fail(const char* call, const char* what, uint64_t seed) {
  std::fprintf(stderr, "%s: %s (seed %llu)\n", call, what,
               (unsigned long long)seed);
  std::_Exit(1);
}

// Compares with a double that is of size `scale`.
void compare(const char* call, float found, double want, double scale,
             uint64_t seed) {
  if (std::isinf(want) && want == found) return;
  const double error = std::abs(found - want) / std::max(scale, 1e-3);
  if (!(error < 1e-3)) fail(call, "a wrong answer", seed);
  std::lock_guard<std::mutex> lock(worst_mutex);
  worst = std::max(worst, error);
}

// ---------------------------------------------------------------- attention

int32_t draw_position(Random& random, int64_t slots) {
  switch (random.between(0, 9)) {
    case 0: return -1;
    case 1: return random.between(INT32_MIN, INT32_MAX);
    case 2: return INT32_MAX - random.between(0, 70);
    default: return random.between(0, slots);
  }
}

int32_t draw_rule(Random& random) {  // a window or a chunk; 0 for none
  if (random.one_in(2)) return 0;
  return random.one_in(6) ? INT32_MAX - random.between(0, 9)
                          : random.between(1, 90);
}

double half(uint16_t bits) {  // of a float16 that is no NaN
  const double size = 1 + (bits & 1023) / 1024.;
  return std::ldexp(bits >> 15 ? -size : size, (bits >> 10 & 31) - 15);
}

// A stream as it is stored: by features alone, or in codes of `bits` (0: int8)
// of which `scales` [..., groups] and `zeros` (size 0 for none) make numbers.
struct Coded {
  Array codes, scales, zeros;
  int32_t bits = 0, run = 1, offset = 0;

  int64_t stored() const { return codes.shape.back(); }
  int64_t width() const { return bits ? stored() * 8 / bits : stored(); }
  double number(int64_t line, int64_t e) const {
    if (scales.type == ffi::F32) {
      const double x = codes.get(line * stored() + e);
      return scales.count() ? x * scales.as<float>()[line] : x;
    }
    const int64_t groups = scales.shape.back();
    const int64_t at = line * groups + e / (width() / groups);
    const double zero = zeros.count() ? half(zeros.as<uint16_t>()[at]) : 0;
    return (code(line, e) - offset) * half(scales.as<uint16_t>()[at]) + zero;
  }
  int64_t code(int64_t line, int64_t e) const {
    if (!bits) return codes.get(line * stored() + e);
    const int64_t block = run * 8 / bits, part = e % block / run;
    const int64_t byte = e / block * run + e % run;
    const uint8_t packed = codes.as<uint8_t>()[line * stored() + byte];
    return packed >> bits * part & ((1 << bits) - 1);
  }
};

struct KeyStream {
  Array query;
  Coded key;
};

struct Attention {
  Random& random;
  const uint64_t seed;
  const bool paged = random.one_in(2);
  const int64_t B = size(3), K = size(3), G = size(4), T = size(5);
  const int64_t page = random.of<int64_t>({1, 2, 16, 48, 64, 96, 128});
  const int64_t columns = random.between(1, 5), pages = random.between(1, 7);
  const int64_t S = paged ? page * columns
                          : random.of<int64_t>({size(9), 64, 128, 300, 1000});
  const int64_t heads = !paged && random.one_in(2) ? K : 1;
  const Shape lead = paged ? Shape{K, pages, page} : Shape{B, K, S};
  Rule rule = {0.3f, random.one_in(3) ? 5.f : 0.f, random.one_in(2),
               draw_rule(random), draw_rule(random),
               int32_t(random.between(0, 5)), 0, INT32_MAX};
  Array positions{ffi::S32, {B, T}};
  Array slots{ffi::S32, paged ? Shape{1, pages, page} : Shape{B, heads, S}};
  Array filled{ffi::S32, {1}};
  Array table{ffi::S32, paged ? Shape{B, columns} : Shape{0}};
  std::vector<KeyStream> keys;
  std::vector<Coded> value;  // none if a key stream is the value
  int32_t shared = -1;

  int64_t size(int64_t most) {
    return random.between(random.one_in(12) ? 0 : 1, most);
  }

  Array codes(ffi::DataType type, int64_t width) {
    Array array(type, of_slots(width));
    for (int64_t i = 0; i < array.count(); ++i)
      array.put(i, random, stored(i / width) < 0);
    return array;
  }
  Array scales(const Array& codes) {
    const bool none = codes.type != ffi::S8 && !random.one_in(4);
    Array array(ffi::F32, none ? Shape{0} : lead);
    for (int64_t i = 0; i < array.count(); ++i)
      array.as<float>()[i] =
          stored(i) < 0 ? NAN : (codes.type == ffi::S8 ? .01f : 1.f) *
                                    (1.f + .1f * random.normal());
    return array;
  }
  // Numbers of groups, of size 2^exponent to 2^(exponent + 1).
  Array halves(int64_t groups, int64_t exponent) {
    Array array(ffi::F16, of_slots(groups));
    for (int64_t i = 0; i < array.count(); ++i)
      array.as<uint16_t>()[i] =
          stored(i / groups) < 0
              ? 0x7e00
              : random.between(0, 1) << 15 | (exponent + 15) << 10 |
                    random.between(0, 1023);
    return array;
  }
  Coded draw_stream() {
    if (random.one_in(2)) {
      Array plain = codes(random.of({ffi::F32, ffi::BF16, ffi::S8}),
                          draw_width());
      Array numbers = scales(plain);
      return {std::move(plain), std::move(numbers), Array(ffi::F32, {0})};
    }
    const int32_t bits = random.of({0, 2, 4, 4, 8});
    const int64_t width = random.of<int64_t>({8, 24, 32, 64, 96, 128, 192});
    const int64_t bytes = bits ? width * bits / 8 : width;
    int64_t groups = random.of<int64_t>({1, 2, 3, 4, width / 8, width / 32});
    if (groups < 1 || width % groups) groups = 1;
    int32_t run = random.of<int64_t>({1, 16, 32, bytes});
    if (bytes % run) run = bytes;
    const bool zero = random.one_in(2);
    return {codes(bits ? ffi::U8 : ffi::S8, bytes),
            halves(groups, -(bits ? bits : 8)),
            zero ? halves(groups, -1) : Array(ffi::F32, {0}),
            bits, run, zero || !bits ? 0 : 1 << (bits - 1)};
  }
  Shape of_slots(int64_t width) const {
    Shape shape = lead;
    shape.push_back(width);
    return shape;
  }
  // The position in one of all slots of a stream.
  int32_t stored(int64_t slot) const {
    const int32_t* p = slots.as<int32_t>();
    if (paged) return p[slot % (pages * page)];
    const int64_t head = slot / S;
    return p[(heads == 1 ? head / K : head) * S + slot % S];
  }

  Attention(Random& random, uint64_t seed) : random(random), seed(seed) {
    const bool in_order = random.one_in(2);  // blocks that are seen whole
    for (int64_t i = 0; i < slots.count(); ++i)
      slots.as<int32_t>()[i] = in_order ? i % std::max<int64_t>(S, 1)
                                        : draw_position(random, S);
    for (int64_t i = 0; i < positions.count(); ++i)
      positions.as<int32_t>()[i] = in_order && !random.one_in(5)
                                       ? S - 1
                                       : draw_position(random, S);
    for (int64_t i = 0; i < table.count(); ++i)
      table.as<int32_t>()[i] = random.one_in(20)
                                   ? random.between(INT32_MIN, INT32_MAX)
                                   : random.between(-1, pages);
    *filled.as<int32_t>() = random.one_in(3) ? random.between(-2, S + 2) : S;
    if (random.one_in(4)) rule.first = random.between(0, S);
    if (random.one_in(4)) rule.last = random.between(0, S);
    const int64_t streams = random.between(1, 2);
    for (int64_t i = 0; i < streams; ++i) {
      Coded key = draw_stream();
      Array query(ffi::F32, {B, K, G, T, key.width()});
      for (int64_t j = 0; j < query.count(); ++j) query.put(j, random, false);
      keys.push_back({std::move(query), std::move(key)});
    }
    if (random.one_in(3)) shared = random.between(0, streams - 1);
    else value.push_back(draw_stream());
  }

  int64_t draw_width() {
    return random.of<int64_t>({1, 3, 8, 16, 17, 24, 33, 64, 80, 128});
  }
  const Coded& value_stream() const {
    return shared < 0 ? value[0] : keys[shared].key;
  }

  void run() {
    const int64_t E = value_stream().width();
    Array out(ffi::F32, {B, K, G, T, E}), lse(ffi::F32, {B, K, G, T});
    std::vector<Array*> all = {&positions, &slots, &filled, &table};
    std::vector<int32_t> forms;
    const auto add = [&](Coded& x) {
      all.insert(all.end(), {&x.codes, &x.scales, &x.zeros});
      forms.insert(forms.end(), {x.bits, x.run, x.offset});
    };
    for (KeyStream& key : keys) all.push_back(&key.query), add(key.key);
    for (Coded& x : value) add(x);
    std::vector<Array*> any = all;
    any.insert(any.end(), {&out, &lse});
    const bool spoilt = random.one_in(8) &&
                        any[random.between(0, any.size() - 1)]->shrink(random);
    std::vector<XLA_FFI_ArgType> types(all.size(), XLA_FFI_ArgType_BUFFER);
    std::vector<void*> buffers;
    for (Array* array : all) buffers.push_back(array->buffer());
    XLA_FFI_Args args = {};
    args.size = all.size(), args.types = types.data();
    args.args = buffers.data();
    const ffi::Error error = Decode(
        pool(), typed<ffi::S32>(positions), typed<ffi::S32>(slots),
        typed<ffi::S32>(filled), typed<ffi::S32>(table),
        ffi::RemainingArgs(&args, 4), typed<ffi::F32>(out),
        typed<ffi::F32>(lse), rule.scale, rule.softcap, rule.causal,
        rule.window, rule.chunk, rule.sink_tokens, rule.first, rule.last,
        shared, ffi::Span<const int32_t>(forms.data(), forms.size()));
    // A table without rows is none, and then the streams do not fit.
    if (error.failure() && !spoilt && B) fail("decode", "refused", seed);
    refused += error.failure();
    if (spoilt) return;
    const int64_t rows = lse.count();
    for (int64_t i = 0; i < std::min<int64_t>(rows, kChecks / 10); ++i)
      check(random.between(0, rows - 1), out, lse);
  }

  // By the rule's words: int64 does not overflow.
  bool sees(int64_t p, int64_t key) const {
    if (p < 0 || key < 0 || key < rule.first || key > rule.last) return false;
    if (rule.causal && key > p) return false;
    if (rule.chunk && p / rule.chunk != key / rule.chunk) return false;
    return !rule.window || p - key < rule.window || key < rule.sink_tokens;
  }

  // Returns which of all slots of a stream a slot of a head is; -1: none.
  int64_t line(int64_t head, int64_t slot) const {
    if (!paged) return head * S + slot;
    const int64_t at = table.as<int32_t>()[head / K * columns + slot / page];
    if (at < 0 || at >= pages) return -1;
    return (head % K * pages + at) * page + slot % page;
  }

  void check(int64_t row, const Array& out, const Array& lse) const {
    const int64_t head = row / (G * T), E = out.shape.back();
    const int64_t p = positions.as<int32_t>()[head / K * T + row % T];
    const int64_t end = std::clamp<int64_t>(*filled.as<int32_t>(), 0, S);
    std::vector<double> score, values(E);
    std::vector<int64_t> lines;
    double top = -INFINITY, total = 0;
    for (int64_t s = 0; s < end; ++s) {
      const int64_t at = line(head, s);
      if (at < 0 || !sees(p, stored(at))) continue;
      lines.push_back(at);
      score.push_back(bounded(rule.scale * dot(row, at)));
      top = std::max(top, score.back());
    }
    double scale = 0;
    for (size_t i = 0; i < lines.size(); ++i) {
      const double weight = std::exp(score[i] - top);
      total += weight;
      for (int64_t e = 0; e < E; ++e) {
        const double x = value_stream().number(lines[i], e);
        values[e] += weight * x, scale = std::max(scale, std::abs(x));
      }
    }
    for (int64_t e = 0; e < E; ++e)
      compare("decode", out.as<float>()[row * E + e],
              total ? values[e] / total : 0, scale, seed);
    const double want = total ? top + std::log(total) : -INFINITY;
    compare("decode", lse.as<float>()[row], want, 1 + std::abs(want), seed);
  }
  double bounded(double x) const {
    return rule.softcap > 0 ? rule.softcap * std::tanh(x / rule.softcap) : x;
  }
  double dot(int64_t row, int64_t line) const {
    double sum = 0;
    for (const KeyStream& x : keys) {
      const int64_t width = x.key.width();
      for (int64_t h = 0; h < width; ++h)
        sum += x.query.get(row * width + h) * x.key.number(line, h);
    }
    return sum;
  }
};

// ---------------------------------------------------------------- projection

void run_projection(Random& random, uint64_t seed) {
  const int64_t M = random.of<int64_t>({1, 2, 4, 8, 12, 32, 36, 44, 132});
  const int64_t D = kLanes * random.of<int64_t>({1, 2, 3, 7, 33, 70});
  const int64_t N = random.of<int64_t>({kSums, kSums + 1, 37, 130, 700});
  Array rows(ffi::F32, {M, D}), out(ffi::F32, {M, N});
  Array weight(random.of({ffi::F32, ffi::BF16, ffi::S8}), {N, D});
  Array scales(ffi::F32, {random.one_in(2) ? N : 0});
  for (Array* array : {&rows, &weight, &scales})
    for (int64_t i = 0; i < array->count(); ++i) array->put(i, random, false);
  const auto any = {&rows, &weight, &scales, &out};
  const bool spoilt = random.one_in(8) && random.of(any)->shrink(random);
  const ffi::Error error = Project(
      pool(), typed<ffi::F32>(rows), ffi::AnyBuffer(weight.buffer()),
      typed<ffi::F32>(scales), typed<ffi::F32>(out));
  if (error.failure() && !spoilt) fail("project", "refused", seed);
  refused += error.failure();
  if (spoilt) return;
  for (int i = 0; i < kChecks; ++i) {
    const int64_t m = random.between(0, M - 1), n = random.between(0, N - 1);
    double sum = 0, size = 0;
    for (int64_t d = 0; d < D; ++d) {
      const double x = rows.get(m * D + d) * weight.get(n * D + d);
      sum += x, size += std::abs(x);
    }
    const double scale = scales.count() ? scales.get(n) : 1;
    compare("project", out.as<float>()[m * N + n], sum * scale,
            size * std::abs(scale), seed);
  }
}

// Weights of four bits: blocks of 32 with a scale and a zero.
void run_blocks(Random& random, uint64_t seed) {
  const int64_t M = random.of<int64_t>({1, 2, 4, 8});
  const int64_t D = 64 * random.between(1, 5);
  const int64_t N = random.of<int64_t>({kSums, 37, 700});
  Array rows(ffi::F32, {M, D}), out(ffi::F32, {M, N});
  Array codes(ffi::U8, {N, D / 2});
  Array scales(ffi::F16, {N, D / 32}), zeros(ffi::F16, {N, D / 32});
  for (Array* array : {&rows, &codes})
    for (int64_t i = 0; i < array->count(); ++i) array->put(i, random, false);
  for (Array* array : {&scales, &zeros})
    for (int64_t i = 0; i < array->count(); ++i)
      array->as<uint16_t>()[i] =
          random.between(0, 1) << 15 | 11 << 10 | random.between(0, 1023);
  const auto any = {&rows, &codes, &scales, &zeros, &out};
  const bool spoilt = random.one_in(8) && random.of(any)->shrink(random);
  const ffi::Error error = ProjectBlocks(
      pool(), typed<ffi::F32>(rows), typed<ffi::U8>(codes),
      typed<ffi::F16>(scales), typed<ffi::F16>(zeros), typed<ffi::F32>(out));
  if (error.failure() && !spoilt) fail("blocks", "refused", seed);
  refused += error.failure();
  if (spoilt) return;
  for (int i = 0; i < kChecks; ++i) {
    const int64_t m = random.between(0, M - 1), n = random.between(0, N - 1);
    double sum = 0, size = 0;
    for (int64_t d = 0; d < D; ++d) {
      const int64_t block = n * (D / 32) + d / 32;
      const uint8_t packed = codes.as<uint8_t>()[block * 16 + d % 16];
      const int code = d % 32 < 16 ? packed & 15 : packed >> 4;
      const double x = rows.get(m * D + d);
      sum += x * (code * half(scales.as<uint16_t>()[block]) +
                  half(zeros.as<uint16_t>()[block]));
      size += std::abs(x);
    }
    compare("blocks", out.as<float>()[m * N + n], sum, size, seed);
  }
}

// ---------------------------------------------------------------- writing

void run_write(Random& random, uint64_t seed) {
  const int64_t B = random.between(1, 3), K = random.between(1, 3);
  const int64_t S = random.between(0, 9), T = random.between(0, 4);
  const int64_t heads = random.one_in(2) ? 1 : K;
  const ffi::DataType type =
      random.of({ffi::BF16, ffi::F16, ffi::F32, ffi::F64, ffi::S8, ffi::U8,
                 ffi::F8E4M3FN, ffi::F8E5M2});
  Shape sizes = {B, K, S}, fresh_sizes = {B, K, T};
  int64_t width = 1;
  if (random.one_in(2)) {
    width = random.between(0, 5);
    sizes.push_back(width), fresh_sizes.push_back(width);
  }
  Array store(type, sizes), fresh(type, fresh_sizes), other(type, sizes);
  Array slots(ffi::S32, {B, heads, T});
  for (Array* array : {&store, &fresh})
    for (int64_t i = 0; i < array->bytes(); ++i)
      array->data[i] = random.between(0, 255);
  for (int64_t i = 0; i < slots.count(); ++i)
    slots.as<int32_t>()[i] = random.one_in(8)
                                 ? random.between(INT32_MIN, INT32_MAX)
                                 : random.between(-1, S);
  const bool spoilt =
      random.one_in(8) && random.of({&fresh, &slots})->shrink(random);
  const bool in_place = random.one_in(2);
  std::vector<char> want(store.data.get(), store.data.get() + store.bytes());
  Array& out = in_place ? store : other;
  const ffi::Error error = Write(
      ffi::AnyBuffer(store.buffer()), ffi::AnyBuffer(fresh.buffer()),
      typed<ffi::S32>(slots), ffi::AnyBuffer(out.buffer()));
  if (error.failure() && !spoilt && S * width) fail("write", "refused", seed);
  refused += error.failure();
  if (spoilt || error.failure()) return;
  const int64_t line = width * ffi::ByteWidth(type);
  for (int64_t i = 0; i < B * K; ++i)
    for (int64_t t = 0; t < T; ++t) {
      const int64_t list = heads == 1 ? i / K : i;
      const int64_t slot = slots.as<int32_t>()[list * T + t];
      if (slot < 0 || slot >= S) continue;
      std::copy_n(fresh.data.get() + (i * T + t) * line, line,
                  want.begin() + (i * S + slot) * line);
    }
  if (!std::equal(want.begin(), want.end(), out.data.get()))
    fail("write", "a wrong answer", seed);
}

void run(uint64_t seed) {
  Random random(seed);
  const int64_t call = random.between(0, 9);
  if (call < 6) Attention(random, seed).run();
  else if (call < 8) run_projection(random, seed);
  else if (call < 9) run_blocks(random, seed);
  else run_write(random, seed);
}

}  // namespace

int main(int, char** arguments) {
  const int64_t first = std::atoll(arguments[1]);
  const int64_t count = std::atoll(arguments[2]), callers = 2;
  {
    Threads shared_by_callers(3, 3);
    threads = &shared_by_callers;
    std::vector<std::thread> running;
    for (int64_t caller = 0; caller < callers; ++caller)
      running.emplace_back([=] {
        for (int64_t i = caller; i < count; i += callers) run(first + i);
      });
    for (std::thread& caller : running) caller.join();
  }
  {
    Threads forked(3, 0);
    threads = &forked;
    for (int64_t i = 0; i < count / 10; ++i) run(first + i);
  }
  std::printf("%lld calls, %lld refused, worst relative error %.1e\n",
              (long long)count, (long long)refused, worst);
}
