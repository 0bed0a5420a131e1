// Correct kernels that show what the host execution does with each thing that device.cuh offers.
#include "device.cuh"

#define EXPORT extern "C" __attribute__((visibility("default"))) int

namespace segops::device {
namespace {

enum Matrix { kBf16, kF16, kTf32 };

// One 16 x 8 tile a block: a [tiles, 32, 4], b [tiles, 32, 2], c and d [tiles, 32, 4], in each lane's registers.
template <Matrix matrix>
__global__ void mma_kernel(const uint32_t* a, const uint32_t* b, const float* c, float* d) {
  const int at = blockIdx.x * 32 + threadIdx.x;
  uint32_t ra[4], rb[2];
  float rd[4];
  for (int i = 0; i < 4; ++i) ra[i] = a[at * 4 + i];
  for (int i = 0; i < 2; ++i) rb[i] = b[at * 2 + i];
  for (int i = 0; i < 4; ++i) rd[i] = c[at * 4 + i];
  if constexpr (matrix == kBf16) mma_bf16_16x8x16(rd, ra, rb);
  if constexpr (matrix == kF16) mma_f16_16x8x16(rd, ra, rb);
  if constexpr (matrix == kTf32) mma_tf32_16x8x8(rd, ra, rb);
  for (int i = 0; i < 4; ++i) d[at * 4 + i] = rd[i];
}

// x [4, 8, 8] -> out [32, 4]. Rows lie 48 bytes apart.
__global__ void ldmatrix_kernel(const uint16_t* x, uint32_t* out, bool transposed) {
  constexpr int kPitch = 24;
  SHARED_ARRAY(uint16_t, tile, 32 * kPitch);
  for (int i = 0; i < 8; ++i) tile[threadIdx.x * kPitch + i] = x[threadIdx.x * 8 + i];
  SYNC_WARP();
  uint32_t r[4];
  const uint16_t* row = tile + threadIdx.x * kPitch;
  if (transposed) {
    ldmatrix_x4_trans(r, row);
  } else {
    ldmatrix_x4(r, row);
  }
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = r[i];
}

// x, out [32]; lanes from `leaving` on exit first.
template <class T>
__global__ void shuffle_kernel(const T* x, T* out, int kind, int argument, int leaving) {
  const int lane = threadIdx.x;
  if (lane >= leaving) return;
  const T v = x[lane];
  if (kind == 0) out[lane] = shuffle(v, argument);
  if (kind == 1) out[lane] = shuffle_xor(v, argument);
  if (kind == 2) out[lane] = shuffle_down(v, argument);
}

// votes [32] -> out [32, 3]: ballot, any, all.
__global__ void vote_kernel(const uint8_t* votes, uint32_t* out, int leaving) {
  const int lane = threadIdx.x;
  if (lane >= leaving) return;
  const bool vote = votes[lane] != 0;
  out[lane * 3] = ballot(vote);
  out[lane * 3 + 1] = any(vote);
  out[lane * 3 + 2] = all(vote);
}

// x [blocks, threads] -> out [blocks]: sums, each by way of shared memory, over and over.
__global__ void __launch_bounds__(1024) block_sum_kernel(const float* x, float* out, int rounds) {
  SHARED_ARRAY(float, part, 32);
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
  float total = 0;
  for (int round = 0; round < rounds; ++round) {
    float v = x[blockIdx.x * blockDim.x + threadIdx.x];
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) v += shuffle_xor(v, mask);
    if (threadIdx.x % 32 == 0) part[warp] = v;
    SYNC_THREADS();
    for (int w = 0; w < warps; ++w) total += part[w];
    SYNC_THREADS();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = total / static_cast<float>(rounds);
}

// x [n] -> counts [bins], through a histogram in shared memory.
__global__ void histogram_kernel(const int* x, unsigned* counts, unsigned long long* total, int n, int bins) {
  DYNAMIC_SHARED(unsigned, mine);
  for (int i = threadIdx.x; i < bins; i += blockDim.x) mine[i] = 0;
  SYNC_THREADS();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    atomic_add(mine + load(x + i), 1u);
    atomic_add(total, 1ull);
  }
  SYNC_THREADS();
  for (int i = threadIdx.x; i < bins; i += blockDim.x) atomic_add(counts + i, mine[i]);
}

// x [n] -> the largest, in both widths.
__global__ void largest_kernel(const int* x, unsigned* largest, unsigned long long* wide, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    atomic_max(largest, static_cast<unsigned>(load(x + i)));
    atomic_max(wide, static_cast<unsigned long long>(load(x + i)) << 40);
  }
}

// x [tiles, threads, 4] -> out [threads, 4]: the sum over tiles, each copied while the one before it is added.
__global__ void pipeline_kernel(const float* x, float* out, int tiles) {
  SHARED_ARRAY(float4, stage, 2 * 64);
  const int t = threadIdx.x, other = blockDim.x - 1 - t, threads = blockDim.x;
  cp_async_16(stage + t, x + t * 4);
  cp_async_commit();
  float4 sum = make_float4(0, 0, 0, 0);
  for (int i = 0; i < tiles; ++i) {
    if (i + 1 < tiles) cp_async_16(stage + (i + 1) % 2 * 64 + t, x + ((i + 1) * threads + t) * 4);
    cp_async_commit();
    cp_async_wait<1>();
    SYNC_THREADS();
    const float4 v = stage[i % 2 * 64 + other];  // another thread's copy
    sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    SYNC_THREADS();
  }
  uint4 bits;
  memcpy(&bits, &sum, 16);
  store_16(out + other * 4, bits);
}

// x [threads, 4] -> before, after [threads, 4]: shared memory before and after the wait.
__global__ void async_kernel(const float* x, float* before, float* after) {
  SHARED_ARRAY(float, stage, 32 * 4);
  const int t = threadIdx.x;
  for (int i = 0; i < 4; ++i) stage[t * 4 + i] = 0;
  cp_async_16(stage + t * 4, x + t * 4);
  cp_async_commit();
  for (int i = 0; i < 4; ++i) before[t * 4 + i] = stage[t * 4 + i];
  cp_async_wait<0>();
  for (int i = 0; i < 4; ++i) after[t * 4 + i] = stage[t * 4 + i];
}

// What shared memory holds at first, after whatever an earlier block left there.
template <class T>
__global__ void fresh_kernel(T* out) {
  SHARED_ARRAY(T, fixed, 4);
  DYNAMIC_SHARED(T, dynamic);
  out[blockIdx.x * 2] = fixed[3];
  out[blockIdx.x * 2 + 1] = dynamic[3];
  fixed[3] = dynamic[3] = T(1.0f);
}

__global__ void large_kernel(float* out, bool use_more) {
  SHARED_ARRAY(float, fixed, 1024);
  DYNAMIC_SHARED(float, dynamic);
  fixed[0] = 1;
  if (use_more) dynamic[0] = 2;
  *out = fixed[0] + (use_more ? dynamic[0] : 0.0f);
}

// out [blocks, 3]: indices of the block, at its place in the grid.
__global__ void index_kernel(unsigned* out) {
  const unsigned at = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  out[at * 3] = blockIdx.x;
  out[at * 3 + 1] = blockIdx.y;
  out[at * 3 + 2] = blockIdx.z;
}

// Threads draw a number each, in the order in which they come; zero [1] is zero.
__global__ void ticket_kernel(const int* zero, unsigned* out) {
  SHARED_ARRAY(unsigned, next, 1);
  if (threadIdx.x == 0) next[0] = static_cast<unsigned>(zero[0]);
  SYNC_THREADS();
  out[threadIdx.x] = atomic_add(next, 1u);
}

// x [n] -> out [n, 2]: 2^x and log2 of that, rounded to T in between.
template <class T>
__global__ void convert_kernel(const float* x, float* out) {
  const float y = to_float(from_float<T>(exp2_approx(x[threadIdx.x])));
  out[threadIdx.x * 2] = y;
  out[threadIdx.x * 2 + 1] = log2_approx(y);
}

template <class T>
int run_shuffle(const void* x, void* out, int kind, int argument, int leaving) {
  return LAUNCH(shuffle_kernel<T>, 1, 32, 0, nullptr, static_cast<const T*>(x), static_cast<T*>(out), kind, argument,
                leaving);
}

}  // namespace

EXPORT run_mma(int matrix, int tiles, const uint32_t* a, const uint32_t* b, const float* c, float* d) {
  if (matrix == kBf16) return LAUNCH(mma_kernel<kBf16>, tiles, 32, 0, nullptr, a, b, c, d);
  if (matrix == kF16) return LAUNCH(mma_kernel<kF16>, tiles, 32, 0, nullptr, a, b, c, d);
  return LAUNCH(mma_kernel<kTf32>, tiles, 32, 0, nullptr, a, b, c, d);
}

EXPORT run_ldmatrix(const uint16_t* x, uint32_t* out, bool transposed) {
  return LAUNCH(ldmatrix_kernel, 1, 32, 0, nullptr, x, out, transposed);
}

EXPORT run_shuffle(int type, const void* x, void* out, int kind, int argument, int leaving) {
  if (type == 0) return run_shuffle<float>(x, out, kind, argument, leaving);
  if (type == 1) return run_shuffle<double>(x, out, kind, argument, leaving);
  if (type == 2) return run_shuffle<int32_t>(x, out, kind, argument, leaving);
  if (type == 3) return run_shuffle<uint32_t>(x, out, kind, argument, leaving);
  return run_shuffle<int64_t>(x, out, kind, argument, leaving);
}

EXPORT run_vote(const uint8_t* votes, uint32_t* out, int leaving) {
  return LAUNCH(vote_kernel, 1, 32, 0, nullptr, votes, out, leaving);
}

EXPORT run_block_sum(const float* x, float* out, int blocks, int threads, int rounds) {
  return LAUNCH(block_sum_kernel, blocks, threads, 0, nullptr, x, out, rounds);
}

EXPORT run_histogram(const int* x, unsigned* counts, unsigned long long* total, int n, int bins, int blocks, int threads) {
  return LAUNCH(histogram_kernel, blocks, threads, bins * sizeof(unsigned), nullptr, x, counts, total, n, bins);
}

EXPORT run_largest(const int* x, unsigned* largest, unsigned long long* wide, int n, int blocks, int threads) {
  return LAUNCH(largest_kernel, blocks, threads, 0, nullptr, x, largest, wide, n);
}

EXPORT run_pipeline(const float* x, float* out, int tiles) {
  return LAUNCH(pipeline_kernel, 1, 64, 0, nullptr, x, out, tiles);
}

EXPORT run_async(const float* x, float* before, float* after) {
  return LAUNCH(async_kernel, 1, 32, 0, nullptr, x, before, after);
}

EXPORT run_fresh(int type, void* out, int blocks) {
  if (type == 0) return LAUNCH(fresh_kernel<float>, blocks, 1, 16, nullptr, static_cast<float*>(out));
  if (type == 1) return LAUNCH(fresh_kernel<double>, blocks, 1, 32, nullptr, static_cast<double*>(out));
  if (type == 2) return LAUNCH(fresh_kernel<__half>, blocks, 1, 8, nullptr, static_cast<__half*>(out));
  return LAUNCH(fresh_kernel<__nv_bfloat16>, blocks, 1, 8, nullptr, static_cast<__nv_bfloat16*>(out));
}

EXPORT run_large(float* out, size_t bytes, size_t opt_in, bool use_more) {
  if (opt_in > 0) {
    const cudaError_t error = OPT_IN_SHARED(large_kernel, opt_in);
    if (error != cudaSuccess) return error;
  }
  return LAUNCH(large_kernel, 1, 1, bytes, nullptr, out, use_more);
}

EXPORT run_index(unsigned* out, int x, int y, int z) { return LAUNCH(index_kernel, dim3(x, y, z), 1, 0, nullptr, out); }

EXPORT run_ticket(const int* zero, unsigned* out, int threads) {
  return LAUNCH(ticket_kernel, 1, threads, 0, nullptr, zero, out);
}

EXPORT run_convert(int type, const float* x, float* out, int n) {
  if (type == 0) return LAUNCH(convert_kernel<float>, 1, n, 0, nullptr, x, out);
  if (type == 1) return LAUNCH(convert_kernel<__half>, 1, n, 0, nullptr, x, out);
  return LAUNCH(convert_kernel<__nv_bfloat16>, 1, n, 0, nullptr, x, out);
}

}  // namespace segops::device
