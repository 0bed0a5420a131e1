// Kernels with one planted bug each, which the host execution must find, and access patterns with known costs.
#include "device.cuh"

#define EXPORT extern "C" __attribute__((visibility("default"))) int

namespace segops::device {
namespace {

enum Bug {
  kNone,
  kNoBarrierBeforeRead,
  kNoBarrierBeforeRewrite,
  kShuffleEndsEarly,
};

// x [blocks, threads] -> out [blocks]: the sum of each row, `rounds` times.
template <Bug bug>
__global__ void sum_kernel(const float* x, float* out, int rounds) {
  SHARED_ARRAY(float, part, 32);
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
  float total = 0;
  for (int round = 0; round < rounds; ++round) {
    float v = x[blockIdx.x * blockDim.x + threadIdx.x] * static_cast<float>(round + 1);
    for (int mask = 16; mask > (bug == kShuffleEndsEarly ? 1 : 0); mask /= 2) v += shuffle_xor(v, mask);
    if (threadIdx.x % 32 == 0) part[warp] = v;
    if (bug != kNoBarrierBeforeRead) SYNC_THREADS();
    for (int w = 0; w < warps; ++w) total += part[w];
    if (bug != kNoBarrierBeforeRewrite) SYNC_THREADS();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = total;
}

// Half of the block waits elsewhere, or not at all.
__global__ void divergent_kernel(int* out, int kind) {
  const int t = threadIdx.x, half = blockDim.x / 2;
  if (kind == 0) {
    if (t < half) {
      SYNC_THREADS();  // one line
    } else {
      SYNC_THREADS();  // another line
    }
  } else if (kind == 1) {
    if (t >= half) return;
    SYNC_THREADS();  // waited for in vain
  } else if (kind == 2) {
    if (t % 2 == 0) {
      out[t] = static_cast<int>(ballot(true));  // even lanes
    } else {
      out[t] = shuffle(t, 0);  // odd lanes
    }
  } else if (kind == 4) {
    if (t % 2 == 0) {
      out[t] = shuffle(t, 0);  // one shuffle
    } else {
      out[t] = shuffle(t, 0);  // another shuffle
    }
  } else {
    if (t % 32 == 5) SYNC_THREADS();
    SYNC_WARP();
  }
  out[t] = t;
}

// x [tiles, 64, 4] -> out [64]: first elements summed over tiles; `pending` groups too many may be under way.
template <int pending, bool barrier_after_wait>
__global__ void pipeline_kernel(const float* x, float* out, int tiles) {
  SHARED_ARRAY(float4, stage, 2 * 64);
  const int t = threadIdx.x, other = 63 - t;
  cp_async_16(stage + t, x + t * 4);
  cp_async_commit();
  float sum = 0;
  for (int i = 0; i < tiles; ++i) {
    if (i + 1 < tiles) cp_async_16(stage + (i + 1) % 2 * 64 + t, x + ((i + 1) * 64 + t) * 4);
    cp_async_commit();
    cp_async_wait<1 + pending>();
    if (barrier_after_wait) SYNC_THREADS();
    sum += stage[i % 2 * 64 + other].x;
    SYNC_THREADS();
  }
  out[other] = sum;
}

// Counts in shared memory without an atomic.
__global__ void lost_atomic_kernel(const int* x, unsigned* out) {
  SHARED_ARRAY(unsigned, counts, 8);
  if (threadIdx.x < 8) counts[threadIdx.x] = 0;
  SYNC_THREADS();
  ++counts[x[threadIdx.x]];
  SYNC_THREADS();
  if (threadIdx.x < 8) out[threadIdx.x] = counts[threadIdx.x];
}

// Atomics that start before all bins are zero.
__global__ void early_atomic_kernel(const int* x, unsigned* out) {
  SHARED_ARRAY(unsigned, counts, 8);
  if (threadIdx.x < 8) counts[threadIdx.x] = 0;
  atomic_add(counts + x[threadIdx.x], 1u);
  SYNC_THREADS();
  if (threadIdx.x < 8) out[threadIdx.x] = counts[threadIdx.x];
}

// Lanes exchange values through shared memory.
__global__ void exchange_kernel(int* out, bool synchronised) {
  SHARED_ARRAY(int, tile, 32);
  tile[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (synchronised) SYNC_WARP();
  out[threadIdx.x] = tile[31 - threadIdx.x];
}

// One value is read by every `step`-th thread, and written by one of these.
__global__ void readers_kernel(int* out, unsigned step, unsigned writer) {
  SHARED_ARRAY(int, value, 1);
  if (threadIdx.x == 0) value[0] = 0;
  SYNC_THREADS();
  if (threadIdx.x % step == 0) out[threadIdx.x] = value[0];
  if (threadIdx.x == writer) value[0] = 1;
}

// Reads another thread's copy before that thread has waited for it.
__global__ void early_read_kernel(const float* x, float* out) {
  SHARED_ARRAY(float, stage, 32 * 4);
  const unsigned t = threadIdx.x;
  cp_async_16(stage + t * 4, x + t * 4);
  cp_async_commit();
  SYNC_WARP();
  out[t] = stage[(31 - t) * 4];
  cp_async_wait<0>();
}

// Reads eight bytes, of which four are the last of a shared array.
__global__ void across_kernel(float* out) {
  SHARED_ARRAY(float, tile, 33);
  tile[32] = 1;
  const float2 v = *reinterpret_cast<const float2*>(tile + 32 * static_cast<int>(out[0]));
  out[0] = v.x;
}

// Accesses by each block: 0 writes its own place, 1 all write one place, 2 reads what the block before it writes, 3 adds
// atomically to one place, 4 adds with a plain read beside it, 5 all read one place and block 0 writes it.
__global__ void blocks_kernel(unsigned* out, int kind) {
  const unsigned b = blockIdx.x;
  if (kind == 0) out[b] = b;
  if (kind == 1) out[0] = 7;
  if (kind == 2) out[b] = b > 0 ? out[b - 1] + 1 : 0;
  if (kind == 3) atomic_add(out, 1u);
  if (kind == 4 && b > 0) atomic_add(out, 1u);
  if (kind == 4 && b == 0) out[1] = out[0];
  if (kind == 5) {
    const unsigned v = out[0];
    if (b == 0) out[0] = v + 1;
    out[b + 1] = v;
  }
}

// x [n] read at place i, written to out [n] at place j, and one float of shared memory at place k of 32.
__global__ void place_kernel(const float* x, float* out, int i, int j, int k) {
  SHARED_ARRAY(float, tile, 32);
  tile[threadIdx.x] = x[i];
  SYNC_THREADS();
  if (threadIdx.x == 0) out[j] = tile[k];
}

__global__ void vector_kernel(const void* x, void* out) { store_16(out, load_16(x)); }

__global__ void write_input_kernel(float* x) { x[threadIdx.x] = 1; }

// Reads through the read-only path what it has written itself.
__global__ void stale_kernel(float* out) {
  out[threadIdx.x] = 1;
  out[threadIdx.x] = load(out + threadIdx.x) + 1;
}

// Patterns of access to global memory. Offsets and strides in elements.
template <class T>
__global__ void global_kernel(const T* x, T* out, int offset, int stride) {
  out[threadIdx.x] = load(x + offset + static_cast<int>(threadIdx.x) * stride);
}

__global__ void global_16_kernel(const uint4* x, uint4* out) { store_16(out + threadIdx.x, load_16(x + threadIdx.x)); }

// Lane t writes column t and reads row t, column 0, of a tile of 32 rows and this many columns.
template <class T>
__global__ void column_kernel(T* out, int columns) {
  DYNAMIC_SHARED(T, tile);
  const T value = out[threadIdx.x];
  for (int row = 0; row < 32; ++row) tile[row * columns + threadIdx.x] = value;
  SYNC_WARP();
  out[threadIdx.x] = tile[threadIdx.x * columns];
}

// x [threads, 3] -> out [threads, 3], by way of a function call.
__global__ void copy_kernel(const float* x, float* out, int floats) {
  memset(out + threadIdx.x * 3, 0, floats * sizeof(float));
  memcpy(out + threadIdx.x * 3, x + threadIdx.x * 3, floats * sizeof(float));
}

// Reads shared memory with an instruction for global memory.
__global__ void space_kernel(float* out) {
  SHARED_ARRAY(float, tile, 32);
  tile[threadIdx.x] = 1;
  out[threadIdx.x] = load(tile + threadIdx.x);
}

__global__ void overflow_kernel(int* x) { x[0] = x[0] + 1; }

// A million accesses: rounds of copies between two buffers.
__global__ void many_kernel(const float* x, float* out, int rounds) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
  for (int i = 0; i < rounds; ++i) out[at + i * step] = x[at + i * step];
}

template <class T>
int run_column(void* out, int columns) {
  return LAUNCH(column_kernel<T>, 1, 32, 32 * columns * sizeof(T), nullptr, static_cast<T*>(out), columns);
}

}  // namespace

EXPORT broken_sum(int bug, const float* x, float* out, int threads, int rounds) {
  if (bug == kNone) return LAUNCH(sum_kernel<kNone>, 1, threads, 0, nullptr, x, out, rounds);
  if (bug == kNoBarrierBeforeRead) return LAUNCH(sum_kernel<kNoBarrierBeforeRead>, 1, threads, 0, nullptr, x, out, rounds);
  if (bug == kNoBarrierBeforeRewrite) {
    return LAUNCH(sum_kernel<kNoBarrierBeforeRewrite>, 1, threads, 0, nullptr, x, out, rounds);
  }
  return LAUNCH(sum_kernel<kShuffleEndsEarly>, 1, threads, 0, nullptr, x, out, rounds);
}

EXPORT broken_divergent(int* out, int threads, int kind) {
  return LAUNCH(divergent_kernel, 1, threads, 0, nullptr, out, kind);
}

EXPORT broken_pipeline(const float* x, float* out, int tiles, int bug) {
  if (bug == 0) return LAUNCH((pipeline_kernel<0, true>), 1, 64, 0, nullptr, x, out, tiles);
  if (bug == 1) return LAUNCH((pipeline_kernel<1, true>), 1, 64, 0, nullptr, x, out, tiles);
  return LAUNCH((pipeline_kernel<0, false>), 1, 64, 0, nullptr, x, out, tiles);
}

EXPORT broken_lost_atomic(const int* x, unsigned* out, int threads) {
  return LAUNCH(lost_atomic_kernel, 1, threads, 0, nullptr, x, out);
}

EXPORT broken_early_atomic(const int* x, unsigned* out, int threads) {
  return LAUNCH(early_atomic_kernel, 1, threads, 0, nullptr, x, out);
}

EXPORT broken_exchange(int* out, bool synchronised) { return LAUNCH(exchange_kernel, 1, 32, 0, nullptr, out, synchronised); }

EXPORT broken_readers(int* out, int threads, int step, int writer) {
  return LAUNCH(readers_kernel, 1, threads, 0, nullptr, out, static_cast<unsigned>(step), static_cast<unsigned>(writer));
}

EXPORT broken_early_read(const float* x, float* out) { return LAUNCH(early_read_kernel, 1, 32, 0, nullptr, x, out); }

EXPORT broken_across(float* out) { return LAUNCH(across_kernel, 1, 1, 0, nullptr, out); }

EXPORT broken_blocks(unsigned* out, int blocks, int kind) { return LAUNCH(blocks_kernel, blocks, 1, 0, nullptr, out, kind); }

EXPORT broken_place(const float* x, float* out, int i, int j, int k) {
  return LAUNCH(place_kernel, 1, 32, 0, nullptr, x, out, i, j, k);
}

EXPORT broken_vector(const void* x, void* out) { return LAUNCH(vector_kernel, 1, 1, 0, nullptr, x, out); }

EXPORT broken_write_input(float* x, int threads) { return LAUNCH(write_input_kernel, 1, threads, 0, nullptr, x); }

EXPORT broken_space(float* out) { return LAUNCH(space_kernel, 1, 32, 0, nullptr, out); }

EXPORT broken_copy(const float* x, float* out, int floats) { return LAUNCH(copy_kernel, 1, 32, 0, nullptr, x, out, floats); }

EXPORT broken_overflow(int* x) { return LAUNCH(overflow_kernel, 1, 1, 0, nullptr, x); }

EXPORT broken_stale(float* out) { return LAUNCH(stale_kernel, 1, 32, 0, nullptr, out); }

EXPORT pattern_global(int bytes, const void* x, void* out, int offset, int stride, int lanes) {
  if (bytes == 1) {
    return LAUNCH(global_kernel<uint8_t>, 1, lanes, 0, nullptr, static_cast<const uint8_t*>(x), static_cast<uint8_t*>(out),
                  offset, stride);
  }
  if (bytes == 16)
    return LAUNCH(global_16_kernel, 1, lanes, 0, nullptr, static_cast<const uint4*>(x), static_cast<uint4*>(out));
  return LAUNCH(global_kernel<float>, 1, lanes, 0, nullptr, static_cast<const float*>(x), static_cast<float*>(out), offset,
                stride);
}

EXPORT pattern_column(int bytes, void* out, int columns) {
  if (bytes == 2) return run_column<uint16_t>(out, columns);
  if (bytes == 4) return run_column<float>(out, columns);
  if (bytes == 8) return run_column<uint2>(out, columns);
  return run_column<uint4>(out, columns);
}

EXPORT pattern_many(const float* x, float* out, int blocks, int rounds) {
  return LAUNCH(many_kernel, blocks, 128, 0, nullptr, x, out, rounds);
}

}  // namespace segops::device
