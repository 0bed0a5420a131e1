#include "runtime.h"

#include <stdlib.h>
#include <string.h>

#include <map>
#include <unordered_map>

namespace segops::simt {

Builtins builtins;
Machine machine;

namespace {

// Only what is touched takes memory. Sanitizers' frames are larger.
constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kSharedAlignment = 128;  // all banks

std::unordered_map<const void*, size_t>& opted_in() {
  static std::unordered_map<const void*, size_t> kernels;
  return kernels;
}

void resume(int thread) {
  machine.current = thread;
  builtins.thread = make_uint3(static_cast<unsigned>(thread), 0, 0);
}

// "threads 0-31, 40"
std::string name_threads(const std::vector<int>& threads) {
  std::string text = threads.size() == 1 ? "thread " : "threads ";
  for (size_t i = 0; i < threads.size();) {
    size_t j = i;
    while (j + 1 < threads.size() && threads[j + 1] == threads[j] + 1) ++j;
    if (i > 0) text += ", ";
    text += std::to_string(threads[i]);
    if (j > i) text += "-" + std::to_string(threads[j]);
    i = j + 1;
  }
  return text;
}

// What the stacks of its threads hold is lost.
[[noreturn]] void end_launch(const std::string& text, cudaError_t error) {
  machine.report = machine.kernel + ", " + name_of_block(machine.block) + text;
  machine.error = error;
  machine.in_kernel = false;
  Fiber::switch_to(machine.thread[machine.current].fiber, machine.main, true);
  abort();
}

[[noreturn]] void fail_deadlock() {
  std::map<std::string, std::vector<int>> states;
  for (int t = 0; t < machine.threads; ++t) {
    const Thread& thread = machine.thread[t];
    states[thread.exited ? "exited" : std::string("wait in ") + thread.waits_in + " at " + name_of(thread.where)].push_back(
        t);
  }
  std::string text = ": deadlock";
  for (const auto& [state, threads] : states) text += "\n  " + name_threads(threads) + ": " + state;
  end_launch(text, cudaErrorLaunchFailure);
}

// The current thread waits, or is over.
void give_way(bool is_over) {
  const int from = machine.current;
  machine.schedule.set_waiting(from);
  const int to = machine.schedule.next(from);
  if (to < 0) {
    if (machine.alive > 0) fail_deadlock();
    machine.in_kernel = false;
    Fiber::switch_to(machine.thread[from].fiber, machine.main, true);
  }
  resume(to);
  Fiber::switch_to(machine.thread[from].fiber, machine.thread[to].fiber, is_over);
}

void wait_in(const char* operation, Where where) {
  Thread& thread = machine.thread[machine.current];
  thread.waits_in = operation;
  thread.where = where;
  give_way(false);
}

void make_ready(int thread) {
  machine.thread[thread].waits_in = nullptr;
  machine.schedule.set_ready(thread);
}

// All live lanes have arrived, the current thread last.
void complete_exchange(int w) {
  Warp& warp = machine.warp[w];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int t = w * kLanes + lane;
    if ((warp.arrived >> lane & 1) && t != machine.current) make_ready(t);
  }
  warp.arrived = 0;
  ++warp.exchanges;
  access_warp_met(w);
  ++warp.epoch;
}

void run_thread() {
  Fiber::started();
  machine.call.run(machine.call.closure);
  const int t = machine.current, w = t / kLanes;
  machine.thread[t].exited = true;
  --machine.alive;
  Warp& warp = machine.warp[w];
  warp.live &= ~(1u << t % kLanes);
  if (warp.arrived != 0 && warp.arrived == warp.live) complete_exchange(w);
  give_way(true);
  abort();
}

void run_block(int64_t flat) {
  const dim3 grid = builtins.grid_dim;
  machine.block = flat;
  builtins.block = make_uint3(static_cast<unsigned>(flat % grid.x), static_cast<unsigned>(flat / grid.x % grid.y),
                              static_cast<unsigned>(flat / grid.x / grid.y));
  for (const SharedArray& array : machine.shared) memset(array.data, 0xff, array.bytes);
  machine.alive = machine.threads;
  machine.in_barrier = 0;
  machine.barrier_epoch = 0;
  for (int t = 0; t < machine.threads; ++t) {
    Thread& thread = machine.thread[t];
    thread.waits_in = nullptr;
    thread.exited = false;
    thread.copies.clear();
    thread.groups = 0;
    thread.fiber.prepare(run_thread);
  }
  for (int w = 0; w * kLanes < machine.threads; ++w) {
    Warp& warp = machine.warp[w];
    const int lanes = machine.threads - w * kLanes;
    warp.live = lanes >= kLanes ? 0xffffffffu : (1u << lanes) - 1;
    warp.arrived = warp.epoch = warp.exchanges = 0;
  }
  machine.schedule.start_block(machine.threads);
  access_block_starts();
  machine.in_kernel = true;
  resume(machine.schedule.next(-1));
  Fiber::switch_to(machine.main, machine.thread[machine.current].fiber);
  if (machine.error == cudaSuccess) access_block_ends();
}

void add_shared(const void* tag, const char* name, size_t bytes) {
  void* data = nullptr;
  if (posix_memalign(&data, kSharedAlignment, bytes) != 0) abort();
  memset(data, 0xff, bytes);
  machine.shared.push_back({tag, name, static_cast<unsigned char*>(data), bytes});
}

cudaError_t refuse(const std::string& why, cudaError_t error) {
  machine.report = "LAUNCH of " + machine.kernel + ": " + why;
  return error;
}

constexpr const char* kModes = "expected uniform, warp, priority or last";

bool parse_mode(const std::string& text, Mode& mode) {
  const std::map<std::string, Mode> modes{
      {"uniform", Mode::uniform}, {"warp", Mode::warp}, {"priority", Mode::priority}, {"last", Mode::last}};
  const auto found = modes.find(text);
  if (found == modes.end()) return false;
  mode = found->second;
  return true;
}

size_t opted_in_bytes() {
  const auto found = opted_in().find(machine.call.function);
  return found == opted_in().end() ? 0 : found->second;
}

}  // namespace

std::mutex& launch_mutex() {
  static std::mutex mutex;
  return mutex;
}

Settings& settings() {
  static Settings current = [] {
    const char *mode = getenv("SEGOPS_SIMT_SCHEDULE"), *seed = getenv("SEGOPS_SIMT_SEED");
    Settings s;
    if (mode != nullptr && !parse_mode(mode, s.mode))
      s.mistake = std::string("SEGOPS_SIMT_SCHEDULE=") + mode + ": " + kModes;
    if (seed != nullptr) s.seed = strtoull(seed, nullptr, 10);
    return s;
  }();
  return current;
}

bool set_schedule(const char* mode, uint64_t seed) {
  const std::lock_guard lock(launch_mutex());
  Settings s;
  if (!parse_mode(mode, s.mode)) return false;
  s.seed = seed;
  settings() = s;
  return true;
}

std::string name_of(Where where) { return std::string(where.file) + ":" + std::to_string(where.line); }

std::string name_of_block(int64_t flat) {
  const int64_t x = builtins.grid_dim.x, y = builtins.grid_dim.y;
  return "block (" + std::to_string(flat % x) + ", " + std::to_string(flat / x % y) + ", " + std::to_string(flat / x / y) +
         ")";
}

const std::string& last_report() { return machine.report; }

cudaError_t launch(const Call& call) {
  const std::lock_guard lock(launch_mutex());
  machine.call = call;
  machine.kernel = call.kernel;
  if (machine.kernel.front() == '(') machine.kernel = machine.kernel.substr(1, machine.kernel.size() - 2);
  machine.report.clear();
  machine.error = cudaSuccess;
  Settings& s = settings();
  if (!s.mistake.empty()) return refuse(s.mistake, cudaErrorInvalidValue);
  const dim3 grid = call.grid;
  if (call.block < 1 || call.block > kMaxThreads) return refuse("1 to 1024 threads a block", cudaErrorInvalidConfiguration);
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return refuse("grid of a size that no device takes", cudaErrorInvalidConfiguration);
  }
  const size_t opt_in = opted_in_bytes();
  if (call.shared > kSharedLimit && call.shared > opt_in) {
    return refuse(
        std::to_string(call.shared) + " bytes of dynamic shared memory, more than 49152 or what OPT_IN_SHARED allowed",
        cudaErrorInvalidValue);
  }
  machine.threads = call.block;
  builtins.block_dim = dim3(static_cast<unsigned>(call.block));
  builtins.grid_dim = grid;
  while (machine.thread.size() < static_cast<size_t>(call.block)) {
    machine.thread.emplace_back().fiber.set_stack(new_stack(kStackBytes), kStackBytes);
  }
  machine.warp.resize((call.block + kLanes - 1) / kLanes);
  machine.main.adopt_thread();
  add_shared(nullptr, "dynamic shared memory", call.shared);
  machine.schedule.start_launch(s.mode, Random(s.seed * 0x9e3779b97f4a7c15 + s.launches++).next());
  access_launch_starts();
  for (const int64_t block : machine.schedule.block_order(int64_t{grid.x} * grid.y * grid.z)) {
    run_block(block);
    if (machine.error != cudaSuccess) break;
  }
  access_launch_ends();
  for (const SharedArray& array : machine.shared) free(array.data);
  machine.shared.clear();
  return machine.error;
}

void fail(const std::string& text, cudaError_t error) {
  end_launch(", thread " + std::to_string(machine.current) + ": " + text, error);
}

void fail_misaligned(const void* address, size_t bytes, Where where) {
  fail("address " + std::to_string(reinterpret_cast<uintptr_t>(address)) + " is no multiple of " + std::to_string(bytes) +
       ", which the access at " + name_of(where) + " needs");
}

void yield() {
  const int from = machine.current, to = machine.schedule.next(from);
  if (to == from) return;
  resume(to);
  Fiber::switch_to(machine.thread[from].fiber, machine.thread[to].fiber);
}

void sync_threads(Where where) {
  yield();
  if (machine.in_barrier == 0) {
    machine.barrier_where = where;
  } else if (machine.barrier_where.line != where.line || strcmp(machine.barrier_where.file, where.file) != 0) {
    fail("divergent barriers: this thread is in SYNC_THREADS at " + name_of(where) + ", others wait in that at " +
         name_of(machine.barrier_where));
  }
  if (++machine.in_barrier < machine.threads) return wait_in("SYNC_THREADS", where);
  machine.in_barrier = 0;
  access_block_met();
  ++machine.barrier_epoch;
  for (Warp& warp : machine.warp) ++warp.epoch;
  for (int t = 0; t < machine.threads; ++t) {
    if (t != machine.current) make_ready(t);
  }
  yield();
}

const Exchange& exchange(const void* value, size_t bytes, const char* operation, Where where) {
  yield();
  const int w = machine.current / kLanes, lane = machine.current % kLanes;
  Warp& warp = machine.warp[w];
  Exchange& e = warp.exchange[warp.exchanges & 1];
  if (warp.arrived == 0) {
    e.lanes = 0;
    e.operation = operation;
    e.where = where;
  } else if (e.operation != operation || e.where.line != where.line || strcmp(e.where.file, where.file) != 0) {
    fail(std::string("divergent warp: this thread is in ") + operation + " at " + name_of(where) +
         ", other lanes of its warp wait in " + e.operation + " at " + name_of(e.where));
  }
  if (bytes > 0) memcpy(e.slot[lane], value, bytes);
  e.lanes |= 1u << lane;
  warp.arrived |= 1u << lane;
  if (warp.arrived == warp.live) {
    complete_exchange(w);
    yield();
  } else {
    wait_in(operation, where);
  }
  return e;
}

void* shared_array(const void* tag, const char* name, size_t bytes) {
  size_t total = 0;
  for (const SharedArray& array : machine.shared) {
    if (array.tag == tag) return array.data;
    total += (array.bytes + 15) / 16 * 16;
  }
  total += bytes;
  const size_t opt_in = opted_in_bytes();
  if (total > kSharedLimit && (opt_in == 0 || total > kSharedOptInLimit)) {
    fail("shared memory of the launch adds up to " + std::to_string(total) +
             " bytes, more than 49152 and without OPT_IN_SHARED",
         cudaErrorInvalidValue);
  }
  add_shared(tag, name, bytes);
  return machine.shared.back().data;
}

void* dynamic_shared() { return machine.shared.front().data; }

const SharedArray* shared_array_at(const void* address) {
  for (const SharedArray& array : machine.shared) {
    if (address >= array.data && address < array.data + array.bytes) return &array;
  }
  return nullptr;
}

cudaError_t opt_in_shared(const void* kernel, size_t bytes) {
  const std::lock_guard lock(launch_mutex());
  if (bytes > kSharedOptInLimit) return cudaErrorInvalidValue;
  opted_in()[kernel] = bytes;
  return cudaSuccess;
}

}  // namespace segops::simt
