// Runs the kernels of csrc/cuda on the host, from the very source that nvcc compiles: what they see of CUDA.
//
// What is modelled
//   Threads are fibers of the calling thread, one launch at a time; blocks run one after the other. Which thread goes on is
//   drawn at every operation that another thread could see: barriers, warp operations, atomics and cp.async, and with
//   SEGOPS_SIMT_RACE every access to shared or global memory. schedule.h tells the orders there are.
//   SYNC_THREADS    waits for all threads of the block, exited ones included: who exited before a barrier is reported as
//                   missing. Threads that meet at different lines are reported.
//   Warp operations (SYNC_WARP, shuffles, votes, ldmatrix, mma) wait for all lanes that have not exited, which must meet in
//                   the same operation at the same line. What comes from an exited or absent lane is all ones: NaN, or -1.
//   Shared memory   is all ones before each block; each array is an allocation of its own, of the exact size and aligned
//                   to 16 bytes. More than 48 KB need OPT_IN_SHARED, as on the device.
//   cp.async        writes all ones when issued and the data when waited for.
//   mma             sums in float, in order of k; tf32 operands lose their low 13 bits.
//   A launch that fails returns an error and leaves a text in last_report(): nothing is thrown, nothing aborts.
// With SEGOPS_SIMT_RACE (access.h) also: data races within and across blocks, accesses outside registered buffers, and
// counts of requests, sectors and bank conflicts.
//
// What is not modelled
//   nvcc's code generation; blocks that run at the same time and wait for each other; weak memory order; the matrix units'
//   order of additions; fma contraction and approximate instructions' last bits; launch bounds; local memory limits;
//   clusters, mbarrier, TMA, wgmma, grid-wide barriers, 2-D and 3-D blocks.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <driver_types.h>
#include <stddef.h>
#include <stdint.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <string>
#include <tuple>

#include "access.h"

#undef __launch_bounds__
#define __launch_bounds__(...)

// These mean nothing to a host compiler and would silently be ordinary memory and no barrier.
#undef __shared__
#pragma GCC poison __shared__ __syncthreads __syncwarp

namespace segops::simt {

// A place in the source, taken where a function with such a default argument is called.
struct Where {
  const char* file;
  int line;
  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// The built-in variables of the thread that runs.
struct Builtins {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
};
extern Builtins builtins;

constexpr size_t kSharedLimit = 48 * 1024, kSharedOptInLimit = 227 * 1024;

void* shared_array(const void* tag, const char* name, size_t bytes);
void* dynamic_shared();
cudaError_t opt_in_shared(const void* kernel, size_t bytes);

void sync_threads(Where where = Where::here());
void sync_warp(Where where = Where::here());
// Replaces the value with that of another lane of the warp.
void shuffle(void* value, size_t bytes, int source_lane, Where where);
uint32_t ballot(bool vote, Where where);
int lane();

unsigned atomic_add(unsigned* address, unsigned value, Where where);
unsigned long long atomic_add(unsigned long long* address, unsigned long long value, Where where);
unsigned atomic_max(unsigned* address, unsigned value, Where where);
unsigned long long atomic_max(unsigned long long* address, unsigned long long value, Where where);

void cp_async_16(void* shared, const void* global, Where where);
void cp_async_commit();
void cp_async_wait(int groups);

enum class Matrix { bf16_16x8x16, f16_16x8x16, tf32_16x8x8 };
void mma(float* d, const uint32_t* a, const uint32_t* b, Matrix matrix, Where where);
void ldmatrix_x4(uint32_t* r, const void* shared_row, bool transposed, Where where);

// Another thread may run here.
void yield();
// Ends the launch with this text. Does not return.
[[noreturn]] void fail(const std::string& text, cudaError_t error = cudaErrorLaunchFailure);
[[noreturn]] void fail_misaligned(const void* address, size_t bytes, Where where);

inline void check_aligned(const void* address, size_t bytes, Where where) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) [[unlikely]]
    fail_misaligned(address, bytes, where);
}

template <class T>
__forceinline__ T load(const T* address, Where where) {
  check_aligned(address, sizeof(T), where);
  T value;
  load_bytes(&value, address, sizeof value);
  return value;
}

template <class T>
__forceinline__ void store(T* address, T value, Where where) {
  check_aligned(address, sizeof(T), where);
  store_bytes(address, &value, sizeof value);
}

// What went wrong in the last launch, or nothing.
const std::string& last_report();

struct Call {
  const char* kernel;    // as written in LAUNCH
  const char* launcher;  // the function that launches, with its template arguments
  const void* function;
  dim3 grid;
  int block;
  size_t shared;
  void (*run)(const void* closure);
  const void* closure;
  size_t closure_bytes;
};
cudaError_t launch(const Call& call);

template <class... P, class... A>
cudaError_t launch(const char* name, const char* launcher, void (*kernel)(P...), dim3 grid, int block, size_t shared,
                   cudaStream_t, A&&... args) {
  using Closure = std::tuple<void (*)(P...), P...>;
  const Closure closure(kernel, static_cast<P>(args)...);
  const auto run = [](const void* c) {
    std::apply([](auto function, auto... values) { function(values...); }, *static_cast<const Closure*>(c));
  };
  return launch(
      Call{name, launcher, reinterpret_cast<const void*>(kernel), grid, block, shared, run, &closure, sizeof closure});
}

template <class... P>
cudaError_t opt_in_shared(void (*kernel)(P...), size_t bytes) {
  return opt_in_shared(reinterpret_cast<const void*>(kernel), bytes);
}

}  // namespace segops::simt

#define threadIdx (::segops::simt::builtins.thread)
#define blockIdx (::segops::simt::builtins.block)
#define blockDim (::segops::simt::builtins.block_dim)
#define gridDim (::segops::simt::builtins.grid_dim)

#define SHARED_ARRAY(type, name, extent)               \
  static constexpr char name##_tag = 0;                \
  type(&name)[extent] = *static_cast<type(*)[extent]>( \
      ::segops::simt::shared_array(&name##_tag, #name, sizeof(type) * static_cast<size_t>(extent)))
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::segops::simt::dynamic_shared())
#define LAUNCH(kernel, grid, block, smem_bytes, stream, ...) \
  ::segops::simt::launch(#kernel, __PRETTY_FUNCTION__, kernel, grid, block, smem_bytes, stream __VA_OPT__(, ) __VA_ARGS__)
#define OPT_IN_SHARED(kernel, bytes) ::segops::simt::opt_in_shared(kernel, bytes)
#define SYNC_THREADS() ::segops::simt::sync_threads()
#define SYNC_WARP() ::segops::simt::sync_warp()
