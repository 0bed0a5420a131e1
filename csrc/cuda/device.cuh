// What a kernel file may use beyond plain C++: the only header with inline PTX besides mma.cuh.
//
// Each wrapper has the device's body and the host's. With SEGOPS_SIMT a plain C++ compiler builds the same kernels to run on
// the host (csrc/simt/simt.h). There `__shared__` and `__syncthreads` do not compile: the macros below are the only way.
//
//   SHARED_ARRAY(type, name, extent);   a flat shared array, aligned to 16 bytes
//   DYNAMIC_SHARED(type, name);         type* name: the launch's dynamic shared memory, aligned to 16 bytes
//   SYNC_THREADS();  SYNC_WARP();
//   OPT_IN_SHARED(kernel, bytes)        cudaError_t; allows more than 48 KB of dynamic shared memory
//   LAUNCH(kernel, grid, block, smem_bytes, stream, args...)
//                                       cudaError_t; a kernel with commas in its name goes in parentheses; blocks are 1-D.
//                                       cudaErrorInvalidValue above 48 KB of shared memory without the opt-in
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#ifdef SEGOPS_SIMT
#include <math.h>

#include "../simt/simt.h"
#define SEGOPS_WHERE , ::segops::simt::Where where = ::segops::simt::Where::here()
#else
#include <cuda_runtime.h>
#define SEGOPS_WHERE
#define SHARED_ARRAY(type, name, extent) __shared__ __align__(16) type name[extent]
#define DYNAMIC_SHARED(type, name)                                       \
  extern __shared__ __align__(16) unsigned char segops_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(segops_dynamic_shared)
#define SYNC_THREADS() __syncthreads()
#define SYNC_WARP() __syncwarp()
#define LAUNCH(kernel, grid, block, smem_bytes, stream, ...) \
  ::segops::device::launch(kernel, grid, block, smem_bytes, stream __VA_OPT__(, ) __VA_ARGS__)
#define OPT_IN_SHARED(kernel, bytes) \
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes))
#endif

namespace segops::device {

#ifndef SEGOPS_SIMT
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, int block, size_t smem_bytes, cudaStream_t stream, A&&... args) {
  kernel<<<grid, block, smem_bytes, stream>>>(static_cast<P>(args)...);
  return cudaGetLastError();
}
#endif

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

// Global memory. The loads go through the read-only path: not for memory that the same kernel writes.

__device__ __forceinline__ uint4 load_16(const void* global SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  return simt::load(static_cast<const uint4*>(global), where);
#else
  uint4 v;
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(global));
  return v;
#endif
}

__device__ __forceinline__ void store_16(void* global, uint4 v SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  simt::store(static_cast<uint4*>(global), v, where);
#else
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#endif
}

template <class T>
__device__ __forceinline__ T load(const T* global SEGOPS_WHERE) {
  static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
#ifdef SEGOPS_SIMT
  return simt::load(global, where);
#else
  T value;
  if constexpr (sizeof(T) == 1) {
    uint32_t bits;
    asm("ld.global.nc.u8 %0, [%1];" : "=r"(bits) : "l"(global));
    const uint8_t byte = static_cast<uint8_t>(bits);
    memcpy(&value, &byte, 1);
  } else if constexpr (sizeof(T) == 2) {
    uint16_t bits;
    asm("ld.global.nc.u16 %0, [%1];" : "=h"(bits) : "l"(global));
    memcpy(&value, &bits, 2);
  } else if constexpr (sizeof(T) == 4) {
    uint32_t bits;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(bits) : "l"(global));
    memcpy(&value, &bits, 4);
  } else {
    uint64_t bits;
    asm("ld.global.nc.u64 %0, [%1];" : "=l"(bits) : "l"(global));
    memcpy(&value, &bits, 8);
  }
  return value;
#endif
}

// Copies to shared memory that need no registers: issued, committed in groups, and there once waited for and, for other
// threads' copies, after a barrier.

__device__ __forceinline__ void cp_async_16(void* shared, const void* global SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  simt::cp_async_16(shared, global, where);
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#ifdef SEGOPS_SIMT
  simt::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `groups` of this thread's latest groups are under way.
template <int groups>
__device__ __forceinline__ void cp_async_wait() {
#ifdef SEGOPS_SIMT
  simt::cp_async_wait(groups);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
#endif
}

// Warp operations: all 32 lanes take part.

template <class T>
__device__ __forceinline__ T shuffle(T v, int lane SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  simt::shuffle(&v, sizeof v, lane, where);
  return v;
#else
  return __shfl_sync(kAllLanes, v, lane);
#endif
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T v, int lane_mask SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  simt::shuffle(&v, sizeof v, simt::lane() ^ lane_mask, where);
  return v;
#else
  return __shfl_xor_sync(kAllLanes, v, lane_mask);
#endif
}

// The last `delta` lanes get nothing to rely on.
template <class T>
__device__ __forceinline__ T shuffle_down(T v, int delta SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  simt::shuffle(&v, sizeof v, simt::lane() + delta, where);
  return v;
#else
  return __shfl_down_sync(kAllLanes, v, delta);
#endif
}

__device__ __forceinline__ uint32_t ballot(bool vote SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  return simt::ballot(vote, where);
#else
  return __ballot_sync(kAllLanes, vote);
#endif
}

__device__ __forceinline__ bool any(bool vote SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  return simt::ballot(vote, where) != 0;
#else
  return __any_sync(kAllLanes, vote) != 0;
#endif
}

__device__ __forceinline__ bool all(bool vote SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  return simt::ballot(!vote, where) == 0;
#else
  return __all_sync(kAllLanes, vote) != 0;
#endif
}

// Integers only: sums of floats would depend on the order. Return the old value.

__device__ __forceinline__ unsigned atomic_add(unsigned* address, unsigned value SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  return simt::atomic_add(address, value, where);
#else
  return atomicAdd(address, value);
#endif
}

__device__ __forceinline__ unsigned long long atomic_add(unsigned long long* address,
                                                         unsigned long long value SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  return simt::atomic_add(address, value, where);
#else
  return atomicAdd(address, value);
#endif
}

__device__ __forceinline__ unsigned atomic_max(unsigned* address, unsigned value SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  return simt::atomic_max(address, value, where);
#else
  return atomicMax(address, value);
#endif
}

__device__ __forceinline__ unsigned long long atomic_max(unsigned long long* address,
                                                         unsigned long long value SEGOPS_WHERE) {
#ifdef SEGOPS_SIMT
  return simt::atomic_max(address, value, where);
#else
  return atomicMax(address, value);
#endif
}

// Arithmetic.

__device__ __forceinline__ float exp2_approx(float x) {
#ifdef SEGOPS_SIMT
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

__device__ __forceinline__ float log2_approx(float x) {
#ifdef SEGOPS_SIMT
  return log2f(x);
#else
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

__device__ __forceinline__ float reciprocal_approx(float x) {
#ifdef SEGOPS_SIMT
  return 1 / x;
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16(x);
}

}  // namespace segops::device

#include "mma.cuh"
