// The kernel as XLA calls it: operands checked, work shared out to its threads.

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>

#include "attend.h"
#include "pool.h"
#include "project.h"
#include "project_blocks.h"
#include "streams.h"
#include "xla/ffi/api/ffi.h"

namespace {

// Finds where slots are stored, and their positions: [B, 1 | K, S] or, with a
// table [B, S / page], those of a pool [1, pages, page].
bool read_layout(ffi::Buffer<ffi::S32> slot_positions,
                 ffi::Buffer<ffi::S32> table, int32_t filled, Problem* p) {
  const auto slots = slot_positions.dimensions(), columns = table.dimensions();
  const bool paged = table.element_count() > 0;
  if (slots.size() != 3 || (paged && columns.size() != 2)) return false;
  p->slot_positions = slot_positions.typed_data();
  p->position_heads = paged ? 1 : slots[1];
  p->S = paged ? columns[1] * slots[2] : slots[2];
  p->filled = std::clamp<int64_t>(filled, 0, p->S);
  if (!paged) return slots[0] == p->B && (slots[1] == 1 || slots[1] == p->K);
  if (slots[0] != 1 || columns[0] != p->B) return false;
  p->table = table.typed_data(), p->pages = slots[1], p->page = slots[2];
  p->gathered.reset(new int32_t[p->B * p->S]);
  p->hold(p->slot_positions, p->filled, p->gathered.get());
  p->slot_positions = p->gathered.get();
  return true;
}

// A stream's codes, scales and zeros (of size 0 for none), and its form: bits
// of a packed code or 0, their run, and their offset.
struct Operands {
  ffi::AnyBuffer codes, scales, zeros;
  const int32_t* form;
};

bool read_groups(const Operands& x, const Layout& p, Stream* to) {
  const auto shape = x.scales.dimensions();
  const auto lead = p.lead();
  const int64_t zeros = x.zeros.element_count();
  if (shape.size() != 4 || x.scales.element_type() != ffi::F16 ||
      !std::equal(lead.begin(), lead.end(), shape.begin()) || shape[3] < 1 ||
      (zeros && (x.zeros.element_type() != ffi::F16 ||
                 zeros != int64_t(x.scales.element_count()))))
    return false;
  to->groups = shape[3];
  to->group_scales = static_cast<const uint16_t*>(x.scales.untyped_data());
  if (zeros)
    to->group_zeros = static_cast<const uint16_t*>(x.zeros.untyped_data());
  to->bits = x.form[0], to->run = x.form[1], to->offset = x.form[2];
  if (to->bits) {
    if (to->type != ffi::U8 || to->run < 1 || to->width % to->run ||
        (to->bits != 2 && to->bits != 4 && to->bits != 8))
      return false;
    to->width = to->width * 8 / to->bits;
  }
  return to->width % to->groups == 0 && std::abs(to->offset) < 256 &&
         (to->bits || to->type == ffi::S8);
}

bool read_stream(const Operands& x, const Layout& p, Stream* to) {
  const auto shape = x.codes.dimensions();
  const ffi::DataType type = x.codes.element_type();
  const int64_t scaled = x.scales.element_count();
  *to = {type, static_cast<const char*>(x.codes.untyped_data()), nullptr,
         shape.size() == 4 ? shape[3] : 0,
         type == ffi::F32 ? 4 : type == ffi::BF16 ? 2 : 1};
  const auto lead = p.lead();
  if (shape.size() != 4 || !std::equal(lead.begin(), lead.end(), shape.begin()))
    return false;
  if (x.scales.element_type() == ffi::F16) return read_groups(x, p, to);
  if (scaled) to->scales = static_cast<const float*>(x.scales.untyped_data());
  return x.scales.element_type() == ffi::F32 && !x.zeros.element_count() &&
         (type == ffi::F32 || type == ffi::BF16 || type == ffi::S8) &&
         (scaled == 0 || scaled == lead[0] * lead[1] * lead[2]);
}

// Operands: positions [B, T]; slot_positions, filled [] and table (size 0 for
// none) as above; of each key stream the queries [B, K, G, T, H], codes, scales
// and zeros; then those three of the value, unless key stream `shared` is the
// value. `forms` has three numbers a stream, as in `Operands`.
ffi::Error Decode(ffi::ThreadPool pool, ffi::Buffer<ffi::S32> positions,
                  ffi::Buffer<ffi::S32> slot_positions,
                  ffi::Buffer<ffi::S32> filled,
                  ffi::Buffer<ffi::S32> table, ffi::RemainingArgs streams,
                  ffi::ResultBuffer<ffi::F32> out,
                  ffi::ResultBuffer<ffi::F32> lse, float scale, float softcap,
                  int32_t causal, int32_t window, int32_t chunk,
                  int32_t sink_tokens, int32_t first, int32_t last,
                  int32_t shared, ffi::Span<const int32_t> forms) {
  // Owned by every worker: one may wake when this call has long returned.
  const auto p = std::make_shared<Problem>();
  const auto shape = out->dimensions();
  if (shape.size() != 5)
    return ffi::Error::InvalidArgument("kvjax_decode: wrong rank");
  p->B = shape[0], p->K = shape[1], p->T = shape[3], p->E = shape[4];
  p->rows = shape[2] * shape[3];
  p->rule = {scale, softcap, causal, window, chunk, sink_tokens,
             first, last};
  p->shared = shared;
  p->positions = positions.typed_data();
  p->out = out->typed_data(), p->lse = lse->typed_data();
  bool fits =
      filled.element_count() == 1 &&
      read_layout(slot_positions, table, *filled.typed_data(), p.get()) &&
      int64_t(positions.element_count()) == p->B * p->T &&
      int64_t(lse->element_count()) == p->B * p->K * p->rows;

  const auto operand = [&](size_t i) {
    return *streams.get<ffi::AnyBuffer>(i);
  };
  const auto stored = [&](size_t i, size_t stream) {
    return Operands{operand(i), operand(i + 1), operand(i + 2),
                    forms.begin() + 3 * stream};
  };
  const size_t count = streams.size() / 4;
  fits = fits && count > 0 && shared < int64_t(count) &&
         streams.size() == 4 * count + (shared < 0 ? 3 : 0) &&
         forms.size() == 3 * (count + (shared < 0));
  for (size_t i = 0; i < count && fits; ++i) {
    Stream key;
    const ffi::AnyBuffer q = operand(4 * i);
    fits = read_stream(stored(4 * i + 1, i), *p, &key) && key.width > 0 &&
           q.element_type() == ffi::F32 &&
           int64_t(q.element_count()) == p->B * p->K * p->rows * key.width;
    p->keys.push_back(key);
    p->queries.push_back(static_cast<const float*>(q.untyped_data()));
  }
  if (fits && shared < 0)
    fits = read_stream(stored(4 * count, count), *p, &p->value);
  else if (fits)
    p->value = p->keys[shared];
  if (!fits || p->E < 1 || p->value.width != p->E)
    return ffi::Error::InvalidArgument("kvjax_decode: shapes do not fit");
  if (out->element_count() == 0) return ffi::Error::Success();

  p->seen.resize(p->B * p->position_heads);
  for (int64_t i = 0; i < p->B * p->position_heads; ++i) p->find(i);
  const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
  p->plan(threads);
  share(pool, p->items.size(), [p](int64_t i) { p->work(i); });
  return ffi::Error::Success();
}

// Rows [M, D] times a weight [N, D] and its scales [N] (of size 0 for none).
ffi::Error Project(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> rows,
                   ffi::AnyBuffer weight, ffi::Buffer<ffi::F32> scales,
                   ffi::ResultBuffer<ffi::F32> out) {
  const auto shape = weight.dimensions(), given = rows.dimensions();
  const int64_t scaled = scales.element_count();
  const ffi::DataType type = weight.element_type();
  if (type != ffi::F32 && type != ffi::BF16 && type != ffi::S8)
    return ffi::Error::InvalidArgument("kvjax_project: no such weights");
  if (shape.size() != 2 || given.size() != 2 || shape[1] != given[1] ||
      shape[1] % kLanes || shape[0] < kSums || given[0] < 1 ||
      (given[0] > 2 && given[0] % 4) || (scaled && scaled != shape[0]) ||
      int64_t(out->element_count()) != given[0] * shape[0])
    return ffi::Error::InvalidArgument("kvjax_project: shapes do not fit");
  const int64_t M = given[0], D = given[1], N = shape[0];
  const Stream stream = {type, static_cast<const char*>(weight.untyped_data()),
                         scaled ? scales.typed_data() : nullptr, D,
                         int64_t(ffi::ByteWidth(type))};
  const int64_t work = weight.size_bytes() * std::max<int64_t>(M / 8, 1);
  const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
  const Parts parts(M, stream, N, work, work <= kAlone ? 1 : threads);
  const float* from = rows.typed_data();
  float* to = out->typed_data();
  share(pool, parts.rows * parts.channels, [=](int64_t i) {
    const auto [top, bottom] = parts.rows_of(i);
    const auto [first, last] = parts.channels_of(i);
    stream.typed([&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      project(from + top * D, bottom - top, reinterpret_cast<T*>(stream.codes),
              stream.scales, D, N, first, last, to + top * N);
    });
  });
  return ffi::Error::Success();
}

// Rows [M, D] times a weight of four bits, codes [N, D / 2], and scales and
// zeros [N, D / 32].
ffi::Error ProjectBlocks(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> rows,
                         ffi::Buffer<ffi::U8> codes,
                         ffi::Buffer<ffi::F16> scales,
                         ffi::Buffer<ffi::F16> zeros,
                         ffi::ResultBuffer<ffi::F32> out) {
  const auto shape = codes.dimensions(), given = rows.dimensions();
  if (shape.size() != 2 || given.size() != 2 || 2 * shape[1] != given[1] ||
      shape[0] < kSums || given[0] < 1 || (given[0] > 2 && given[0] % 4) ||
      shape[1] < 1 || given[1] % kPair ||
      int64_t(scales.element_count()) != shape[0] * given[1] / 32 ||
      scales.element_count() != zeros.element_count() ||
      int64_t(out->element_count()) != given[0] * shape[0])
    return ffi::Error::InvalidArgument("kvjax_project_blocks: shapes do not fit");
  const int64_t M = given[0], D = given[1], N = shape[0];
  Stream weight = {ffi::U8, reinterpret_cast<const char*>(codes.typed_data()),
                   nullptr, D, 1};
  weight.bits = 4;
  weight.group_scales = static_cast<const uint16_t*>(scales.untyped_data());
  weight.group_zeros = static_cast<const uint16_t*>(zeros.untyped_data());
  const auto from = std::make_shared<BlockRows>(rows.typed_data(), M, D);
  const int64_t work = weight.bytes() * N * std::max<int64_t>(M / 8, 1);
  const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
  Parts parts(M, {ffi::F32, nullptr, nullptr, D, 4}, N, work,
              work <= kAlone ? 1 : threads);
  float* to = out->typed_data();
  share(pool, parts.channels, [=](int64_t i) {
    const auto [first, last] = parts.channels_of(i);
    if (M == 1) project_blocks<1>(*from, 0, weight, N, first, last, to);
    else if (M == 2) project_blocks<2>(*from, 0, weight, N, first, last, to);
    else
      for (int64_t m = 0; m < M; m += 4)
        project_blocks<4>(*from, m, weight, N, first, last, to);
  });
  return ffi::Error::Success();
}

// Writes new [B, K, T, ...] into a store [B, K, S, ...] at slots [B, 1 | K, T],
// all with any axes before; the result is the store, in place. A store may have
// other axes, as a pool has, if its order in memory is the same.
ffi::Error Write(ffi::AnyBuffer store, ffi::AnyBuffer fresh,
                 ffi::Buffer<ffi::S32> slots, ffi::Result<ffi::AnyBuffer> out) {
  const auto at = slots.dimensions(), shape = fresh.dimensions();
  const size_t rank = at.size();
  if (rank < 3 || shape.size() < rank)
    return ffi::Error::InvalidArgument("kvjax_write: wrong rank");
  const int64_t heads = at[rank - 2], T = at[rank - 1];
  const int64_t K = shape[rank - 2];
  int64_t B = 1, width = 1;
  for (size_t i = 0; i + 2 < rank; ++i) B *= shape[i];
  for (size_t i = rank; i < shape.size(); ++i) width *= shape[i];
  const int64_t each = std::max<int64_t>(B * K * width, 1);
  const int64_t S = store.element_count() / each;
  // XLA holds types of four bits at half a byte, and reports a byte for each.
  switch (store.element_type()) {
    case ffi::BF16:
    case ffi::F16:
    case ffi::F32:
    case ffi::F64:
    case ffi::S8:
    case ffi::U8:
    case ffi::F8E4M3FN:
    case ffi::F8E5M2:
      break;
    default:
      return ffi::Error::InvalidArgument("kvjax_write: no such store");
  }
  if ((heads != 1 && heads != K) || store.element_count() % each ||
      int64_t(slots.element_count()) != B * heads * T ||
      int64_t(fresh.element_count()) != B * K * T * width ||
      fresh.element_type() != store.element_type())
    return ffi::Error::InvalidArgument("kvjax_write: shapes do not fit");
  const int64_t line = store.size_bytes() / std::max<int64_t>(B * K * S, 1);
  const char* from = static_cast<const char*>(fresh.untyped_data());
  char* to = static_cast<char*>(out->untyped_data());
  if (to != store.untyped_data())
    std::memcpy(to, store.untyped_data(), store.size_bytes());
  for (int64_t i = 0; i < B * K; ++i)
    for (int64_t t = 0; t < T; ++t, from += line) {
      const int64_t list = heads == 1 ? i / K : i;
      const int32_t slot = slots.typed_data()[list * T + t];
      if (slot >= 0 && slot < S)
        std::memcpy(to + (i * S + slot) * line, from, line);
    }
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
        .Attr<int32_t>("shared")
        .Attr<ffi::Span<const int32_t>>("forms"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(kvjax_project, Project,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(kvjax_project_blocks, ProjectBlocks,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::Buffer<ffi::F16>>()
                                  .Arg<ffi::Buffer<ffi::F16>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(kvjax_write, Write,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>());
