// How a CPU kernel runs on several threads without knowing whose threads they are.
//
// Work is cut into items by shape alone, every item writes results of its own, and the results are combined in item order:
// the number of threads changes nothing in the output. Each thread has a stretch of items, and helps with others afterwards.
#pragma once
#include <stdint.h>

namespace segops {

// Calls body(context, worker) once for each worker in [0, workers), on the threads of the host framework.
struct Parallel {
  int32_t workers;
  void (*run)(int32_t workers, void (*body)(void* context, int32_t worker), void* context);
};

}  // namespace segops
