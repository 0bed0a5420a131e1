// Runs of elements that begin anywhere, moved between memory and shared memory such that no sector is asked for twice: whole
// sectors 16 bytes at a time, and those of the first and the last sector one by one.
#pragma once
#include "common.cuh"

namespace segops::cuda {

// uint4s of shared memory for a run of so many elements.
constexpr int room_of(int count, int element) { return (count * element + 15) / 16 + 1; }

template <class E>
struct Run {
  static constexpr int kPiece = 16 / static_cast<int>(sizeof(E)), kSector = 2 * kPiece;
  E* memory;
  E* shared;  // aligned as in memory
  int count;

  __device__ __forceinline__ Run(E* memory_, int count_, uint4* room)
      : memory(memory_), shared(reinterpret_cast<E*>(room) + before(kPiece)), count(count_) {}

  // By so many threads, of which there are as many as two sectors have elements. The copies are to be waited for, and a
  // barrier must follow.
  __device__ __forceinline__ void fetch(int thread, int threads) const {
    each(
        thread, threads, [&](int at) { device::cp_async_16(shared + at, memory + at); },
        [&](int at) { shared[at] = device::load(memory + at); });
  }
  // A barrier must precede.
  __device__ __forceinline__ void leave(int thread, int threads) const {
    each(
        thread, threads, [&](int at) { device::store_16(memory + at, *reinterpret_cast<const uint4*>(shared + at)); },
        [&](int at) { memory[at] = shared[at]; });
  }

 private:
  // Elements between the last multiple of so many and the run's first.
  __device__ __forceinline__ int before(int multiple) const {
    return static_cast<int>(reinterpret_cast<uintptr_t>(memory) / sizeof(E) % static_cast<unsigned>(multiple));
  }

  template <class OfPiece, class OfElement>
  __device__ __forceinline__ void each(int thread, int threads, const OfPiece& of_piece, const OfElement& of_element) const {
    const int to_sector = (kSector - before(kSector)) % kSector;
    const int head = to_sector < count ? to_sector : count, tail = count - (count - head) % kSector;
    for (int at = head + thread * kPiece; at < tail; at += threads * kPiece) of_piece(at);
    const int at = thread < kSector ? thread : tail + thread - kSector;
    if (thread < kSector ? at < head : at < count) of_element(at);
  }
};

}  // namespace segops::cuda
