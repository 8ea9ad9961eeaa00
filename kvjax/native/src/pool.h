// Work shared out to the threads of a pool: XLA's own, where XLA calls.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

namespace {

// Calls work(i) for every i < count, here and on threads of the pool, and
// returns when all are done. Each thread takes neighbours in order, so that one
// may ask for what the next will read, and then what others have left. `work`
// owns what it needs: a thread may wake when this call has long returned.
template <class Pool, class F>
void share(Pool& pool, int64_t count, F work) {
  struct Range {
    std::atomic<int64_t> next;
    int64_t end;
  };
  struct Tasks {
    Tasks(F work, int64_t count, int64_t threads)
        : work(std::move(work)), threads(threads), ranges(new Range[threads]) {
      for (int64_t i = 0; i < threads; ++i) {
        ranges[i].next = count * i / threads;
        ranges[i].end = count * (i + 1) / threads;
      }
    }
    void run(int64_t first) {
      for (int64_t i = first; i < first + threads; ++i) {
        Range& range = ranges[i % threads];
        for (int64_t j; (j = range.next++) < range.end; ++done) work(j);
      }
    }
    F work;
    const int64_t threads;
    const std::unique_ptr<Range[]> ranges;
    std::atomic<int64_t> done{0};
  };
  const int64_t threads =
      std::clamp<int64_t>(pool.num_threads(), 1, std::max<int64_t>(count, 1));
  const auto tasks = std::make_shared<Tasks>(std::move(work), count, threads);
  for (int64_t i = 1; i < threads; ++i)
    pool.Schedule([tasks, i] { tasks->run(i); });
  tasks->run(0);
  while (tasks->done < count) std::this_thread::yield();
}

}  // namespace
