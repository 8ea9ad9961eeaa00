// The kernel as XLA calls it: operands checked, work shared out to its threads.

#include <algorithm>
#include <memory>
#include <thread>

#include "attend.h"
#include "tiles.h"
#include "xla/ffi/api/ffi.h"

namespace {

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
                  int32_t sink_tokens, int32_t first, int32_t last,
                  int32_t shared) {
  // Owned by every worker: one may wake when this call has long returned.
  const auto p = std::make_shared<Problem>();
  const auto shape = out->dimensions(), slots = held.dimensions();
  if (shape.size() != 5 || slots.size() != 3)
    return ffi::Error::InvalidArgument("kvjax_decode: wrong rank");
  p->B = shape[0], p->K = shape[1], p->T = shape[3], p->E = shape[4];
  p->S = slots[2], p->held_heads = slots[1], p->rows = shape[2] * shape[3];
  p->rule = {scale, softcap, causal, window, chunk, sink_tokens,
             first, last};
  p->shared = shared;
  p->positions = positions.typed_data(), p->held = held.typed_data();
  p->out = out->typed_data(), p->lse = lse->typed_data();
  p->filled = std::clamp<int64_t>(*filled.typed_data(), 0, p->S);
  bool fits = slots[0] == p->B && (slots[1] == 1 || slots[1] == p->K) &&
              int64_t(positions.element_count()) == p->B * p->T &&
              int64_t(lse->element_count()) == p->B * p->K * p->rows;

  const auto operand = [&](size_t i) {
    return *streams.get<ffi::AnyBuffer>(i);
  };
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
    fits = read_stream(operand(3 * count), operand(3 * count + 1), *p,
                       &p->value);
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
        .Attr<int32_t>("first")
        .Attr<int32_t>("last")
        .Attr<int32_t>("shared"));
