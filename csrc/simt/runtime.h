// The launch that runs: its threads, warps and shared memory. One at a time in a process.
#pragma once
#include <stdint.h>

#include <mutex>
#include <string>
#include <vector>

#include "fiber.h"
#include "schedule.h"
#include "simt.h"

namespace segops::simt {

constexpr int kLanes = 32, kMaxThreads = 1024;
constexpr int kSlotBytes = 64;

struct AsyncCopy {
  void* shared;
  const void* global;
  int group;
};

struct Thread {
  Fiber fiber;
  const char* waits_in = nullptr;  // the operation, or null
  Where where{};
  bool exited = false;
  std::vector<AsyncCopy> copies;  // issued and not waited for, in order
  int groups = 0;                 // committed so far
};

// What the lanes of a warp bring to an operation.
struct Exchange {
  uint32_t lanes;  // who took part
  const char* operation;
  Where where;
  alignas(16) unsigned char slot[kLanes][kSlotBytes];
};

struct Warp {
  uint32_t live = 0;     // lanes that have not exited
  uint32_t arrived = 0;  // lanes that wait in the operation under way
  uint32_t epoch = 0;    // operations and barriers so far
  uint32_t exchanges = 0;
  // Two in turn: a lane brings its share to the operation after next only when all have read their results of this one.
  Exchange exchange[2];
};

struct SharedArray {
  const void* tag;  // null: the dynamic one
  std::string name;
  unsigned char* data;
  size_t bytes;
};

struct Machine {
  Call call{};
  std::string kernel;
  bool in_kernel = false;  // a fiber runs
  int threads = 0, current = -1, alive = 0, in_barrier = 0;
  uint32_t barrier_epoch = 0;
  int64_t block = 0;  // flat index
  Where barrier_where{};
  std::vector<Thread> thread;
  std::vector<Warp> warp;
  std::vector<SharedArray> shared;
  Fiber main;
  Schedule schedule;
  cudaError_t error = cudaSuccess;
  std::string report;
};
extern Machine machine;

// Held while a launch runs.
std::mutex& launch_mutex();

struct Settings {
  Mode mode = Mode::uniform;
  uint64_t seed = 1;
  uint64_t launches = 0;  // since the settings were made: each launch has an order of its own
  std::string mistake;    // in the environment
};
Settings& settings();
bool set_schedule(const char* mode, uint64_t seed);

// Brings `bytes` of each live lane together. The result stays until this lane's operation after next.
const Exchange& exchange(const void* value, size_t bytes, const char* operation, Where where);
const SharedArray* shared_array_at(const void* address);

std::string name_of(Where where);
std::string name_of_block(int64_t flat);

// What access.cpp does in between; nothing in other builds.
#ifdef SEGOPS_SIMT_RACE
void access_launch_starts();
void access_block_starts();
void access_warp_met(int warp);
void access_block_met();
void access_block_ends();
void access_launch_ends();
#else
inline void access_launch_starts() {}
inline void access_block_starts() {}
inline void access_warp_met(int) {}
inline void access_block_met() {}
inline void access_block_ends() {}
inline void access_launch_ends() {}
#endif

}  // namespace segops::simt
