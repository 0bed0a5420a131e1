// Which thread runs next, and in which order blocks run.
//
// Uniformly random choices alone miss bugs: threads stay close together, so nobody runs far ahead of a missing barrier.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

namespace segops::simt {

enum class Mode {
  uniform,   // each time any thread
  warp,      // threads of one warp until all of them wait, then another warp
  priority,  // the first of a random ranking of threads or of warps, in which few threads change places (Burckhardt et al.,
             // ASPLOS 2010)
  last,      // whoever became ready last, until it waits (at first the threads before a random one); blocks backwards
};

class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed) {}
  uint64_t next();
  int below(int n) { return static_cast<int>((next() >> 32) * static_cast<uint64_t>(n) >> 32); }

 private:
  uint64_t state_;
};

class Schedule {
 public:
  void start_launch(Mode mode, uint64_t seed);
  std::vector<int64_t> block_order(int64_t blocks);
  void start_block(int threads);  // all of them ready
  void set_ready(int thread);
  void set_waiting(int thread);
  // The thread to run now, possibly `current`, or -1 where none is ready.
  int next(int current);

 private:
  int any_ready();
  int any_of_warp(int warp);
  bool is_ready(int thread) const { return ready_[thread / 32] >> thread % 32 & 1; }

  Mode mode_ = Mode::uniform;
  Random random_;
  int count_ = 0;
  std::vector<uint32_t> ready_;        // a bit for each lane of each warp
  std::vector<int> order_;             // uniform and warp: the ready threads; priority: the ranking; last: the stack
  std::vector<int> place_;             // where each thread is in order_
  std::vector<uint64_t> ready_ranks_;  // priority: a bit for each rank
};

}  // namespace segops::simt
