// upsample_bilinear2d backward: the transpose, as a gather. The gradient of a coarse element is the sum, rows first, over
// the fine elements that read it, in their order: whatever the cut, the same sum.
//
// Going down the fine rows, a thread adds each to the sums of the two coarse rows that it reads. Planar gradients are then
// summed along the row through shared memory, so that a block reads them once and side by side. Channels last, a thread sums
// along the row itself: what two neighbouring pixels read is loaded twice, the second time from the cache.
#include "planes.cuh"
#include "segops/interpolate.h"

namespace segops::cuda {
namespace {

// Of coarse rows: a lane works out where each begins, and one lane more on either side.
constexpr int kMostRows = device::kWarp - 2;
constexpr int kMostStaged = 4096;  // coarse columns of a block

// As linear_tap has it, for an output whose tap is known to begin at `low`.
template <class A>
__device__ __forceinline__ A weight_of(const LinearAxis& axis, int64_t i, int64_t low) {
  const double weight = linear_source(axis, i) - static_cast<double>(low);
  return static_cast<A>(weight < 1 ? weight : 1.);
}

// Calls emit(sums, row of the strip) for the coarse rows of a strip, each summed over the fine rows that read it; for all
// threads of a block alike. read(fine row, values) gets one.
template <class A, int V, class Read, class Emit>
__device__ __forceinline__ void sum_rows(const LinearAxis& axis, const Place& place, const Read& read, const Emit& emit) {
  const int own_first = static_cast<int>(first_output(axis, static_cast<int64_t>(place.row) - 1 + lane_of_warp()));
  A next[V];
#pragma unroll
  for (int v = 0; v < V; ++v) next[v] = 0;
  for (int r = -1; r < place.rows; ++r) {
    const int low = place.row + r, begin = device::shuffle(own_first, r + 1), end = device::shuffle(own_first, r + 2);
    const bool is_last = low == axis.in - 1;
    A sum[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      sum[v] = next[v];
      next[v] = 0;
    }
    for (int chunk = begin; chunk < end; chunk += device::kWarp) {
      const A own_weight = weight_of<A>(axis, chunk + lane_of_warp(), low);
      const int count = end - chunk < device::kWarp ? end - chunk : device::kWarp;
#pragma unroll 2
      for (int i = 0; i < count; ++i) {
        const A weight = device::shuffle(own_weight, i), rest = is_last ? A(1) : A(1) - weight;
        A value[V];
        read(chunk + i, value);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          sum[v] += rest * value[v];
          next[v] += weight * value[v];
        }
      }
    }
    if (r >= 0) emit(sum, r);
  }
}

// Where a fine column's number lies in shared memory: so far apart that powers of two as strides are served at once.
SEGOPS_HOST_DEVICE inline int padded(int x) { return x + x / device::kWarp; }

// Parts of the dynamic shared memory: weights of the fine columns, first fine columns, and two buffers of sums.
template <class T>
struct Shared {
  int weights, firsts, sums, bytes;
  int slot, buffer;  // sums of a plane, and of the block's planes

  Shared(const Tiling& tiling, int coarse) {
    using A = AccumulatorOf<T>;
    const int fine = tiling.span * kVector<T>;
    weights = 0;
    slot = padded(fine);
    firsts = slot * static_cast<int>(sizeof(A));
    sums = (firsts + (coarse + 2) * 4 + 15) / 16 * 16;
    buffer = slot * tiling.folded;
    bytes = sums + 2 * buffer * static_cast<int>(sizeof(A));
  }
};

// Planar: a block has `coarse` columns of the result, and all fine columns that read them, kVector a thread.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kPlaneThreads, 2)
    upsample_bilinear_backward_staged_kernel(UpsampleBilinearBackward p, Tiling tiling, int coarse, Shared<T> at) {
  using A = AccumulatorOf<T>;
  constexpr int V = kVector<T>;
  DYNAMIC_SHARED(unsigned char, shared);
  A* const weights = reinterpret_cast<A*>(shared + at.weights);
  int* const firsts = reinterpret_cast<int*>(shared + at.firsts);
  A* const sums = reinterpret_cast<A*>(shared + at.sums);
  const Place place(tiling, 1);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int lane = thread % tiling.span, fine_width = static_cast<int>(p.grad_output.width);
  const int begin = place.tile * coarse, coarse_width = static_cast<int>(p.grad_input.width);
  const int count = coarse_width - begin < coarse ? coarse_width - begin : coarse;
  // The first fine column, aligned like the row.
  const int origin = static_cast<int>(first_output(p.horizontal, static_cast<int64_t>(begin) - 1)) / V * V;

  for (int i = thread; i < tiling.span * V; i += threads) {
    const int64_t fine = origin + i < fine_width ? origin + i : fine_width - 1;
    weights[padded(i)] = static_cast<A>(linear_tap(p.horizontal, fine).weight);
  }
  for (int j = thread; j < count + 2; j += threads)
    firsts[j] = static_cast<int>(first_output(p.horizontal, static_cast<int64_t>(begin) - 1 + j)) - origin;

  const bool active = place.slot < tiling.folded && place.image * tiling.channels + place.channel < tiling.planes;
  const T* const plane = place.begin<const T>(p.grad_output) + origin;
  T* const to = place.begin<T>(p.grad_input) + begin * p.grad_input.stride_w;
  const int rest = fine_width - origin, first = kAligned ? lane * V : lane;
  const bool whole = kAligned && active && first + V <= rest;

  const auto read = [&](int row, A(&value)[V]) {
    const T* const from = plane + row * p.grad_output.stride_h;
    if (whole) {
      T loaded[V];
      load_vector(from + first, loaded);
#pragma unroll
      for (int v = 0; v < V; ++v) value[v] = widen<A>(loaded[v]);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int x = kAligned ? first + v : first + v * tiling.span;
        value[v] = active && x < rest ? widen<A>(device::load(from + x)) : A(0);
      }
    }
  };
  sum_rows<A, V>(p.vertical, place, read, [&](const A(&sum)[V], int r) {
    // The other buffer may still be read; this one was before the last barrier.
    A* const row = sums + (r % 2) * at.buffer + place.slot * at.slot;
    if (active) {
#pragma unroll
      for (int v = 0; v < V; ++v) row[padded(kAligned ? first + v : first + v * tiling.span)] = sum[v];
    }
    SYNC_THREADS();
    if (!active) return;
    T* const result = to + (place.row + r) * p.grad_input.stride_h;
    for (int j = lane; j < count; j += tiling.span) {
      const int from = firsts[j], middle = firsts[j + 1], end = firsts[j + 2];
      const bool is_last = begin + j == coarse_width - 1;
      A total = 0;
      for (int x = from; x < middle; ++x) total += weights[padded(x)] * row[padded(x)];
      for (int x = middle; x < end; ++x) total += (is_last ? A(1) : A(1) - weights[padded(x)]) * row[padded(x)];
      result[j * p.grad_input.stride_w] = narrow<T>(total);
    }
  });
}

// V channels of a pixel, or one element of any layout.
template <class T, int V>
__global__ void __launch_bounds__(kPlaneThreads, V == 1 ? 1 : 2)
    upsample_bilinear_backward_kernel(UpsampleBilinearBackward p, Tiling tiling) {
  using A = AccumulatorOf<T>;
  const Place place(tiling, V);
  const int64_t column = place.column, stride = p.grad_output.stride_w;
  const int from = static_cast<int>(first_output(p.horizontal, column - 1));
  const int middle = static_cast<int>(first_output(p.horizontal, column));
  const int end = static_cast<int>(first_output(p.horizontal, column + 1));
  const bool is_last = column == p.horizontal.in - 1;
  const T* const plane = place.begin<const T>(p.grad_output);
  T* const to = place.begin<T>(p.grad_input) + column * p.grad_input.stride_w;

  const auto read = [&](int row, A(&value)[V]) {
#pragma unroll
    for (int v = 0; v < V; ++v) value[v] = 0;
    if (!place.active) return;
    const T* fine = plane + row * p.grad_output.stride_h + from * stride;
    const auto add = [&](A weight) {
      T loaded[V];
      load_vector(fine, loaded);
#pragma unroll
      for (int v = 0; v < V; ++v) value[v] += weight * widen<A>(loaded[v]);
      fine += stride;
    };
    for (int x = from; x < middle; ++x) add(weight_of<A>(p.horizontal, x, column - 1));
    for (int x = middle; x < end; ++x) add(is_last ? A(1) : A(1) - weight_of<A>(p.horizontal, x, column));
  };
  sum_rows<A, V>(p.vertical, place, read, [&](const A(&sum)[V], int r) {
    if (!place.active) return;
    T out[V];
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] = narrow<T>(sum[v]);
    store_vector(to + (place.row + r) * p.grad_input.stride_h, out);
  });
}

// Coarse columns that a block of the staged kernel can have, with all the fine columns that read them; 0 if that are too few
// to be worth it.
int staged_columns(const LinearAxis& axis, int vector) {
  const int64_t room = static_cast<int64_t>(kPlaneThreads) * vector;
  if (axis.in <= kMostStaged && axis.out <= room) return static_cast<int>(axis.in);
  const double most = static_cast<double>(room - 2 * vector) * axis.step - 2;
  const int columns = most < kMostStaged ? static_cast<int>(most) : kMostStaged;
  if (columns < 8) return 0;
  // The ends of the row may have more: what lies outside of the inputs is read like them.
  for (int64_t begin = 0; begin < axis.in; begin += columns)
    if (first_output(axis, begin + columns) - first_output(axis, begin - 1) + vector > room) return 0;
  return columns;
}

template <class T, bool kAligned>
cudaError_t launch_staged(const UpsampleBilinearBackward& p, int coarse, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  Tiling tiling(p.grad_input, 1, false, kMostRows);
  const bool one_tile = coarse == p.grad_input.width;
  tiling.tiles = (static_cast<int>(p.grad_input.width) + coarse - 1) / coarse;
  tiling.span = one_tile ? static_cast<int>((p.grad_output.width + V - 1) / V) : kPlaneThreads;
  tiling.cut(kMostRows);
  if (!tiling.fits()) return cudaErrorInvalidValue;
  if (tiling.blocks == 0) return cudaSuccess;
  const Shared<T> shared(tiling, coarse);
  return LAUNCH((upsample_bilinear_backward_staged_kernel<T, kAligned>), tiling.grid(), tiling.threads(), shared.bytes,
                stream, p, tiling, coarse, shared);
}

template <class T, int V>
cudaError_t launch(const UpsampleBilinearBackward& p, bool across, cudaStream_t stream) {
  const Tiling tiling(p.grad_input, V, across, kMostRows);
  return over(tiling, [&] {
    return LAUNCH((upsample_bilinear_backward_kernel<T, V>), tiling.grid(), tiling.threads(), 0, stream, p, tiling);
  });
}

template <class T>
cudaError_t backward(const UpsampleBilinearBackward& p, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  if (is_planar(p.grad_output)) {
    if (const int coarse = staged_columns(p.horizontal, V))
      return vectors_fit(p.grad_output, sizeof(T), true) ? launch_staged<T, true>(p, coarse, stream)
                                                         : launch_staged<T, false>(p, coarse, stream);
    return launch<T, 1>(p, false, stream);
  }
  if (vectors_fit(p.grad_output, sizeof(T), false) && vectors_fit(p.grad_input, sizeof(T), false))
    return launch<T, V>(p, true, stream);
  return launch<T, 1>(p, true, stream);
}

}  // namespace

Failure upsample_bilinear2d_backward(const UpsampleBilinearBackward& p, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return failure(as_float(p.dtype, [&]<class T>(T) { return backward<T>(p, queue); }));
}

}  // namespace segops::cuda
