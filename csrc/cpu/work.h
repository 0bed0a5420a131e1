// Items of work handed to the threads of Parallel, and memory that may be missing. Compiled into every ISA namespace.
#pragma once
#include <stdint.h>
#include <stdlib.h>

#include "parallel.h"

namespace segops::SEGOPS_ISA {

// Memory for the duration of a launch, zeroed unless told otherwise; data is null if there was none to be had.
struct Memory {
  char* data = nullptr;
  explicit Memory(int64_t bytes, bool zeroed = true) {
    void* pointer = nullptr;
    const int64_t size = bytes > 0 ? (bytes + 63) / 64 * 64 : 64;
    if (posix_memalign(&pointer, 64, static_cast<size_t>(size)) != 0) return;
    data = static_cast<char*>(pointer);
    if (zeroed) __builtin_memset(data, 0, static_cast<size_t>(size));
  }
  ~Memory() { free(data); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
};

// Calls work(item, worker) for every item once, in any order. The items are cut into as many stretches as there are workers:
// a worker goes through its own, so that what it asked for ahead of an item is the next one's, and then helps with others.
template <class Work>
inline void for_each_item(const Parallel& parallel, int64_t items, bool serial, const Work& work) {
  constexpr int32_t kStretches = 64;
  struct alignas(64) Stretch {
    int64_t next, end;
  };
  struct Queue {
    const Work& work;
    const int32_t stretches;
    Stretch each[kStretches];
    Queue(const Work& w, int32_t count) : work(w), stretches(count) {}
  } queue(work, serial || items <= 1 ? 1 : parallel.workers < kStretches ? parallel.workers : kStretches);
  for (int32_t k = 0; k < queue.stretches; ++k)
    queue.each[k] = Stretch{items * k / queue.stretches, items * (k + 1) / queue.stretches};
  auto body = [](void* context, int32_t worker) {
    Queue& q = *static_cast<Queue*>(context);
    for (int32_t k = 0; k < q.stretches; ++k) {
      Stretch& own = q.each[(worker + k) % q.stretches];
      for (;;) {
        const int64_t item = __atomic_fetch_add(&own.next, 1, __ATOMIC_RELAXED);
        if (item >= own.end) break;
        q.work(item, worker);
      }
    }
  };
  if (queue.stretches == 1) return body(&queue, 0);
  parallel.run(parallel.workers, body, &queue);
}

}  // namespace segops::SEGOPS_ISA
