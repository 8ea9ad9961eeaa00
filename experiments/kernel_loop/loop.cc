// Runs the CPU kernel in a loop without XLA, on threads that never sleep.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "attend.h"
#include "pool.h"
#include "project.h"

namespace {

double now() {
  const auto passed = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(passed).count();
}

// A pool for `share` whose threads spin until work arrives, so that the time
// measured never includes the waking of a thread.
class Spinning {
 public:
  explicit Spinning(int64_t threads) : slots(new Slot[threads]) {
    for (int64_t i = 1; i < threads; ++i)
      workers.emplace_back([this, i] { spin(slots[i]); });
  }
  ~Spinning() {
    over = true;
    for (std::thread& worker : workers) worker.join();
  }
  int64_t num_threads() const { return workers.size() + 1; }
  void Schedule(std::function<void()> work) {
    Slot& next = slots[1 + turn++ % workers.size()];
    while (next.ready) std::this_thread::yield();
    next.work = std::move(work);
    next.ready = true;
  }

 private:
  struct Slot {
    std::function<void()> work;
    std::atomic<bool> ready{false};
  };
  void spin(Slot& slot) {
    while (!over)
      if (slot.ready) {
        const auto work = std::move(slot.work);
        slot.ready = false;
        work();
      }
  }
  std::unique_ptr<Slot[]> slots;
  std::atomic<bool> over{false};
  std::vector<std::thread> workers;
  int64_t turn = 0;
};

constexpr int64_t kGroup = 32;
constexpr uint16_t kHundredth = 0x211f;  // .01 in float16

using Buffer = std::unique_ptr<char, decltype(&std::free)>;

Buffer buffer(int64_t bytes) {
  bytes = (bytes + kLine - 1) / kLine * kLine;
  return {static_cast<char*>(std::aligned_alloc(kLine, bytes)), &std::free};
}

// Random numbers between -1 and 1; of eight bits and fewer, random codes.
Buffer drawn(int64_t count, int64_t bits) {
  static std::mt19937 random(0);
  const int64_t size = std::max<int64_t>(bits / 8, 1);
  count = count * bits / 8 / size;
  Buffer numbers = buffer(count * size);
  for (int64_t i = 0; i < count; ++i) {
    const float x = float(int32_t(random())) / 2147483648.f;
    uint32_t word;
    std::memcpy(&word, &x, 4);
    if (size == 4) reinterpret_cast<float*>(numbers.get())[i] = x;
    if (size == 2) reinterpret_cast<uint16_t*>(numbers.get())[i] = word >> 16;
    if (size == 1) numbers.get()[i] = char(word >> 8);
  }
  return numbers;
}

// A stream of random numbers and its copies. Codes of eight bits have a float32
// scale a slot, packed ones a float16 scale and zero each kGroup features.
struct Copies {
  Copies(int64_t slots, int64_t width, int64_t bits, int64_t copies)
      : slots(slots), width(width), bits(bits) {
    const int64_t bytes = slots * width * bits / 8;
    const int64_t scales = bits > 8 ? 0 : bits == 8 ? slots : halves();
    codes.push_back(drawn(slots * width, bits));
    for (int64_t i = 0; i < copies; ++i) {
      if (i > 0) {
        codes.push_back(buffer(bytes));
        std::memcpy(codes[i].get(), codes[0].get(), bytes);
      }
      numbers.push_back(buffer(scales * 4 + kLine));
      const auto to = numbers[i].get();
      if (bits == 8) std::fill_n(reinterpret_cast<float*>(to), slots, .01f);
      else if (bits < 8)
        std::fill_n(reinterpret_cast<uint16_t*>(to), 2 * halves(), kHundredth);
    }
  }
  int64_t halves() const { return slots * width / kGroup; }
  Stream stream(int64_t i) const {
    const auto type = bits == 32   ? ffi::F32
                      : bits == 16 ? ffi::BF16
                      : bits == 8  ? ffi::S8
                                   : ffi::U8;
    Stream x = {type, codes[i].get(), nullptr, width,
                std::max<int64_t>(bits / 8, 1)};
    const auto from = numbers[i].get();
    if (bits == 8) x.scales = reinterpret_cast<float*>(from);
    if (bits > 4) return x;
    x.groups = width / kGroup, x.bits = bits, x.run = width * bits / 8;
    x.group_scales = reinterpret_cast<uint16_t*>(from);
    x.group_zeros = x.group_scales + halves();
    return x;
  }
  int64_t slots, width, bits;
  std::vector<Buffer> codes, numbers;
};

// Times `turns` passes over all copies, after a pass that is not timed.
template <class F>
void timed(int64_t copies, int64_t turns, double* seconds, F call) {
  for (int64_t turn = -1; turn < turns; ++turn) {
    const double start = now();
    for (int64_t i = 0; i < copies; ++i) call(i);
    if (turn >= 0) seconds[turn] = (now() - start) / copies;
  }
}

}  // namespace

// Attention of one token to S full slots of K heads with G queries each. Keys
// and values have width H. With rotary > 0 a latent of width H is both key and
// value, and a rotated key joins it.
extern "C" void loop_attention(int64_t K, int64_t G, int64_t H, int64_t S,
                               int64_t bits, int64_t rotary, int64_t threads,
                               int64_t copies, int64_t turns, double* seconds) {
  const int64_t other = rotary ? rotary : H;
  const Copies keys(K * S, H, bits, copies), second(K * S, other, bits, copies);
  const Buffer query = drawn(K * G * (H + other), 32);
  const float* queries = reinterpret_cast<float*>(query.get());
  std::vector<float> out(K * G * H), lse(K * G);
  std::vector<int32_t> positions(1, S - 1), slot_positions(S);
  for (int64_t s = 0; s < S; ++s) slot_positions[s] = s;
  Spinning pool(threads);
  timed(copies, turns, seconds, [&](int64_t i) {
    const auto p = std::make_shared<Problem>();
    p->B = p->T = p->position_heads = 1;
    p->K = K;
    p->S = p->filled = S;
    p->E = H;
    p->rows = G;
    p->shared = rotary ? 0 : -1;
    p->rule = {1 / std::sqrt(float(H)), 0, 1, 0, 0, 0, 0, INT32_MAX};
    p->keys = {keys.stream(i)};
    p->queries = {queries};
    if (rotary) {
      p->keys.push_back(second.stream(i));
      p->queries.push_back(queries + K * G * H);
    }
    p->value = rotary ? p->keys[0] : second.stream(i);
    p->positions = positions.data();
    p->slot_positions = slot_positions.data();
    p->out = out.data();
    p->lse = lse.data();
    p->seen.resize(1);
    p->find(0);
    p->plan(threads);
    share(pool, p->items.size(), [p](int64_t j) { p->work(j); });
  });
}

// M rows of D numbers times a weight of N output channels.
extern "C" void loop_projection(int64_t M, int64_t N, int64_t D, int64_t bits,
                                int64_t threads, int64_t copies, int64_t turns,
                                double* seconds) {
  const Copies weights(N, D, bits, copies);
  const Buffer input = drawn(M * D, 32);
  const Buffer out = buffer(M * N * 4);
  const auto rows = reinterpret_cast<const float*>(input.get());
  const auto to = reinterpret_cast<float*>(out.get());
  Spinning pool(threads);
  timed(copies, turns, seconds, [&](int64_t i) {
    Stream weight = weights.stream(i);
    weight.scales = nullptr;
    const Parts parts(M, weight, N, N * D * bits / 8, threads);
    share(pool, parts.rows * parts.channels, [=](int64_t i) {
      const auto [top, bottom] = parts.rows_of(i);
      const auto [first, last] = parts.channels_of(i);
      weight.typed([&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        project(rows + top * D, bottom - top,
                reinterpret_cast<T*>(weight.codes), nullptr, D, N, first, last,
                to + top * N);
      });
    });
  });
}

// Reads floats and adds them up: the limit of memory.
extern "C" void loop_read(int64_t bytes, int64_t threads, int64_t turns,
                          double* seconds) {
  const Buffer numbers = buffer(bytes);
  const auto from = reinterpret_cast<float*>(numbers.get());
  const int64_t parts = 8 * threads, each = bytes / 4 / parts;
  std::fill_n(from, bytes / 4, 1.f);
  std::vector<float> sums(parts);
  Spinning pool(threads);
  timed(1, turns, seconds, [&](int64_t) {
    share(pool, parts, [=, &sums](int64_t part) {
      Vec sum[8] = {};
      for (int64_t i = 0; i + 8 * kLanes <= each; i += 8 * kLanes)
        UNROLL for (int j = 0; j < 8; ++j)
          sum[j] += at(from + part * each + i + j * kLanes);
      for (int j = 1; j < 8; ++j) sum[0] += sum[j];
      sums[part] = reduce(sum[0], std::plus<>());
    });
  });
}

// `count` multiply-adds of vectors a thread, all in registers: the limit of the
// processor. The result depends on all products, so that none is optimized away.
extern "C" float loop_multiply(int64_t count, int64_t threads, int64_t turns,
                               double* seconds) {
  std::atomic<float> any{0};
  Spinning pool(threads);
  timed(1, turns, seconds, [&](int64_t) {
    share(pool, threads, [=, &any](int64_t) {
      const Vec factor = Vec{} + .999f;
      Vec sum[12];
      UNROLL for (int j = 0; j < 12; ++j) sum[j] = factor + float(j);
      for (int64_t i = 0; i < count; i += 12)
        UNROLL for (int j = 0; j < 12; ++j) sum[j] = sum[j] * factor + factor;
      UNROLL for (int j = 1; j < 12; ++j) sum[0] += sum[j];
      any = reduce(sum[0], std::plus<>());
    });
  });
  return any;
}

extern "C" int64_t loop_lanes() { return kLanes; }
