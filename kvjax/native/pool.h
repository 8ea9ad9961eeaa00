// Work shared out to the threads of XLA's own pool.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace {

// Calls work(i) for every i < count, here and on threads of the pool, and
// returns when all are done. `work` owns what it needs: a thread may wake when
// this call has long returned.
template <class F>
void share(xla::ffi::ThreadPool& pool, int64_t count, F work) {
  struct Turns {
    Turns(F work, int64_t count) : work(std::move(work)), count(count) {}
    void run() {
      for (int64_t i; (i = next++) < count; ++done) work(i);
    }
    F work;
    const int64_t count;
    std::atomic<int64_t> next{0}, done{0};
  };
  const auto turns = std::make_shared<Turns>(std::move(work), count);
  const int64_t threads = std::min<int64_t>(pool.num_threads(), count);
  for (int64_t i = 1; i < threads; ++i)
    pool.Schedule([turns] { turns->run(); });
  turns->run();
  while (turns->done < count) std::this_thread::yield();
}

}  // namespace
