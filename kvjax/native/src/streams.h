// What tokens left behind: its numbers, and where in memory they are.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

// Codes [..., width] of all slots and their scales [...]; or codes of groups of
// features, (code - offset) * scale + zero with numbers [..., groups].
struct Stream {
  ffi::DataType type;
  const char* codes;
  const float* scales;  // nullptr: none
  int64_t width, size;  // elements of a slot, bytes of an element
  int64_t groups = 0;   // 0: none
  const uint16_t *group_scales = nullptr, *group_zeros = nullptr;  // float16
  int64_t bits = 0, run = 0, offset = 0;  // of packed codes; 0 bits: int8

  int64_t bytes() const { return bits ? width * bits / 8 : width * size; }
  // What `unpack` takes away from a code.
  int64_t middle() const { return bits == 8 ? 128 : 0; }

  // Calls f with a null pointer to the type of the codes.
  template <class F>
  void typed(F f) const {
    if (type == ffi::F32) f((const float*)nullptr);
    if (type == ffi::BF16) f((const uint16_t*)nullptr);
    if (type == ffi::S8) f((const int8_t*)nullptr);
  }
};

struct Block {
  int64_t first, slots;
  bool whole;  // a full block of which every row sees every slot
};

// Where the S slots of a head are: contiguous, [B, K, S], or in pages of a
// pool that rows share, [K, pages, page], as a table [B, S / page] says.
struct Layout {
  int64_t B, K, S;
  const int32_t* table = nullptr;  // nullptr: contiguous
  int64_t pages = 0, page = 0;

  // Returns the axes of a stream before its width.
  std::array<int64_t, 3> lead() const {
    if (table) return {K, pages, page};
    return {B, K, S};
  }

  // Returns which of all slots a slot of a head of B K is.
  int64_t line(int64_t head, int64_t slot) const {
    if (table == nullptr) return head * S + slot;
    const int64_t at = table[head / K * (S / page) + slot / page];
    return (head % K * pages + at) * page + slot % page;
  }

  // Returns how many slots are contiguous from this one on.
  int64_t run(int64_t slot) const {
    return table ? page - slot % page : S - slot;
  }

  // Calls f with each slot of a block, counted from its first, and its line.
  template <class F>
  void each(int64_t head, const Block& b, F f) const {
    for (int64_t s = 0; s < b.slots;) {
      const int64_t from = line(head, b.first + s) - s;
      const int64_t end = std::min(b.slots, s + run(b.first + s));
      for (; s < end; ++s) f(s, from + s);
    }
  }

  // Gathers positions [pages, page] of the first slots of each row, to [B, S]:
  // where the pool has no such page there is no token.
  void hold(const int32_t* slot_positions, int64_t first, int32_t* to) const {
    for (int64_t i = 0; i < B * S; i += page) {
      const int64_t at = table[i / page];
      if (i % S >= first) continue;
      if (at >= 0 && at < pages)
        std::copy_n(slot_positions + at * page, page, to + i);
      else
        std::fill_n(to + i, page, -1);
    }
  }
};

}  // namespace
