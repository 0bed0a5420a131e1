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

// Calls work(item, worker) for every item once, in any order; each worker takes the next item when it is free.
template <class Work>
inline void for_each_item(const Parallel& parallel, int64_t items, bool serial, const Work& work) {
  struct Queue {
    const Work& work;
    int64_t items;
    int64_t next;
  } queue{work, items, 0};
  auto body = [](void* context, int32_t worker) {
    Queue& q = *static_cast<Queue*>(context);
    for (;;) {
      const int64_t item = __atomic_fetch_add(&q.next, 1, __ATOMIC_RELAXED);
      if (item >= q.items) return;
      q.work(item, worker);
    }
  };
  if (serial || parallel.workers == 1 || items <= 1) return body(&queue, 0);
  parallel.run(parallel.workers, body, &queue);
}

}  // namespace segops::SEGOPS_ISA
