// max_unpool2d with torch's indices into planes. Windows claim elements with the largest of their positions, an atomic
// maximum of integers; then each element of the output is written once, with the value of the window that has it. Sums of
// all windows (second derivatives alone) are a warp's for each plane: it adds 32 windows after 32, in order.
#include "max_unpool.cuh"
#include "max_unpool_record.cuh"

namespace segops::cuda {
namespace {

constexpr int kSumThreads = 128;

// Elements of a plane: positions are 32-bit, and one more than a position is what scratch holds.
template <class Data>
struct FlatPlane {
  PlanesOf<Data> planes;
  unsigned elements;
  bool dense;  // its rows touch

  explicit FlatPlane(const PlanesOf<Data>& p)
      : planes(p),
        elements(static_cast<unsigned>(p.height * p.width)),
        dense(p.height <= 1 || p.stride_h == p.width * p.stride_w) {}

  __device__ __forceinline__ int64_t offset(unsigned position) const {
    if (dense) return position * planes.stride_w;
    const unsigned width = static_cast<unsigned>(planes.width), y = position / width;
    return y * planes.stride_h + (position - y * width) * planes.stride_w;
  }
};

struct Flat {
  FlatPlane<const void> input;
  FlatPlane<const int64_t> indices;
  Planes output;
  BadData* bad_indices;
  unsigned elements;  // of a plane of output
  bool across;        // scratch holds the channels of a pixel side by side
};

// Of the first element of a plane in scratch, and between its elements.
struct Scratch {
  int64_t begin, apart;

  __device__ __forceinline__ Scratch(const Flat& p, int64_t image, int channel) {
    const int64_t channels = p.output.channels;
    begin = p.across ? image * channels * p.elements + channel : (image * channels + channel) * p.elements;
    apart = p.across ? channels : 1;
  }
};

__global__ void __launch_bounds__(kPlaneThreads, 1) max_unpool_flat_clear_kernel(uint4* scratch, int64_t pieces) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kPlaneThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kPlaneThreads + threadIdx.x; i < pieces; i += step)
    device::store_16(scratch + i, make_uint4(0, 0, 0, 0));
}

__global__ void __launch_bounds__(kPlaneThreads, 1) max_unpool_flat_claim_kernel(Flat p, Tiling tiling, unsigned* winners) {
  const Place place(tiling, 1);
  if (!place.active) return;
  const PlanesOf<const int64_t>& indices = p.indices.planes;
  const int64_t* from = place.begin<const int64_t>(indices) + place.row * indices.stride_h + place.column * indices.stride_w;
  const Scratch scratch(p, place.image, place.channel);
  unsigned position = static_cast<unsigned>(place.row * indices.width + place.column);
  BadCount bad;
#pragma unroll 2
  for (int r = 0; r < place.rows; ++r, from += indices.stride_h, position += static_cast<unsigned>(indices.width)) {
    const int64_t to = device::load(from);
    if (static_cast<uint64_t>(to) < p.elements)
      device::atomic_max(winners + scratch.begin + to * scratch.apart, position + 1);
    else
      bad.add((place.image * indices.channels + place.channel) * p.indices.elements + position);
  }
  bad.report(p.bad_indices);
}

// V elements of a row, V channels of a pixel, or one element of any layout.
template <class U, int V, bool kAcross>
__global__ void __launch_bounds__(kPlaneThreads, 1)
    max_unpool_flat_write_kernel(Flat p, Tiling tiling, const unsigned* winners) {
  const Place place(tiling, V);
  if (!place.active) return;
  const int first = kAcross ? place.column : place.column * V;
  const PlanesOf<const void>& input = p.input.planes;
  const U* const plane = place.begin<const U>(input);
  const Scratch scratch(p, place.image, place.channel);
  const int64_t width = p.output.width;
  const unsigned* at = winners + scratch.begin + (place.row * width + first) * scratch.apart;
  U* to = place.begin<U>(p.output) + place.row * p.output.stride_h + first * p.output.stride_w;
  for (int r = 0; r < place.rows; ++r, at += width * scratch.apart, to += p.output.stride_h) {
    constexpr int kPiece = V < 4 ? V : 4;
    U out[V];
#pragma unroll
    for (int piece = 0; piece < V; piece += kPiece) {
      unsigned winner[kPiece];
      load_vector(at + piece, winner);
#pragma unroll
      for (int v = 0; v < kPiece; ++v) {
        const U* const from = plane + (kAcross ? piece + v : 0) * input.stride_c;
        out[piece + v] = winner[v] == 0 ? U(0) : device::load(from + p.input.offset(winner[v] - 1));
      }
    }
    store_vector(to, out);
  }
}

// A warp adds up a plane. The first of 32 windows at an element adds the values of all of them.
template <class T>
__global__ void __launch_bounds__(kSumThreads, 1)
    max_unpool_flat_sum_kernel(Flat p, int64_t planes, AccumulatorOf<T>* sums) {
  using A = AccumulatorOf<T>;
  constexpr unsigned kNowhere = UINT32_MAX;
  const int lane = lane_of_warp();
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kSumThreads / device::kWarp);
  const unsigned channels = static_cast<unsigned>(p.output.channels), windows = p.indices.elements;
  BadCount bad;
  for (int64_t plane = blockIdx.x * (kSumThreads / device::kWarp) + threadIdx.x / device::kWarp; plane < planes;
       plane += warps) {
    const unsigned image = static_cast<unsigned>(plane) / channels, channel = static_cast<unsigned>(plane) % channels;
    const PlanesOf<const int64_t>& indices = p.indices.planes;
    const PlanesOf<const void>& input = p.input.planes;
    const int64_t* const from = indices.data + image * indices.stride_n + channel * indices.stride_c;
    const T* const values = static_cast<const T*>(input.data) + image * input.stride_n + channel * input.stride_c;
    const Scratch scratch(p, image, static_cast<int>(channel));
    for (int64_t begin = 0; begin < windows; begin += device::kWarp) {
      unsigned to = kNowhere;
      A value = 0, total = 0;
      if (begin + lane < windows) {
        const unsigned position = static_cast<unsigned>(begin + lane);
        const int64_t index = device::load(from + p.indices.offset(position));
        if (static_cast<uint64_t>(index) < p.elements) {
          to = static_cast<unsigned>(index);
          value = widen<A>(device::load(values + p.input.offset(position)));
          total = sums[scratch.begin + to * scratch.apart];
        } else {
          bad.add(plane * windows + position);
        }
      }
      bool is_first = to != kNowhere;
      for (int l = 0; l < device::kWarp; ++l) {
        const unsigned other = device::shuffle(to, l);
        const A addend = device::shuffle(value, l);
        if (other != to) continue;
        is_first &= l >= lane;
        total += addend;
      }
      if (is_first) sums[scratch.begin + to * scratch.apart] = total;
      SYNC_WARP();
    }
  }
  bad.report(p.bad_indices);
}

template <class T>
__global__ void __launch_bounds__(kPlaneThreads, 1)
    max_unpool_flat_round_kernel(Flat p, Tiling tiling, const AccumulatorOf<T>* sums) {
  const Place place(tiling, 1);
  if (!place.active) return;
  const Scratch scratch(p, place.image, place.channel);
  T* const to = place.begin<T>(p.output) + place.column * p.output.stride_w;
  for (int row = place.row; row < place.row + place.rows; ++row) {
    const int64_t position = row * p.output.width + place.column;
    to[row * p.output.stride_h] = narrow<T>(device::load(sums + scratch.begin + position * scratch.apart));
  }
}

template <class U>
__global__ void __launch_bounds__(kPlaneThreads, 1)
    max_unpool_flat_pick_kernel(FlatPlane<const void> grad_output, PlanesOf<const int64_t> indices, Planes grad_input,
                                Tiling tiling) {
  const Place place(tiling, 1);
  if (!place.active) return;
  const U* const plane = place.begin<const U>(grad_output.planes);
  const int64_t* const at = place.begin<const int64_t>(indices) + place.column * indices.stride_w;
  U* const to = place.begin<U>(grad_input) + place.column * grad_input.stride_w;
#pragma unroll 2
  for (int row = place.row; row < place.row + place.rows; ++row) {
    const int64_t from = device::load(at + row * indices.stride_h);
    const bool inside = static_cast<uint64_t>(from) < grad_output.elements;
    to[row * grad_input.stride_h] = inside ? device::load(plane + grad_output.offset(static_cast<unsigned>(from))) : U(0);
  }
}

template <class U, int V, bool kAcross>
cudaError_t write(const Flat& p, const unsigned* winners, cudaStream_t stream) {
  const Tiling tiling(p.output, V, p.across, kMostWindowRows);
  return over(tiling, [&] {
    return LAUNCH((max_unpool_flat_write_kernel<U, V, kAcross>), tiling.grid(), tiling.threads(), 0, stream, p, tiling,
                  winners);
  });
}

template <class U>
cudaError_t unpool(const Flat& p, unsigned* winners, cudaStream_t stream) {
  constexpr int V = kVector<U>;
  const Tiling tiling(p.indices.planes, 1, !is_planar(p.indices.planes), kMostWindowRows);
  const cudaError_t error = over(tiling, [&] {
    return LAUNCH(max_unpool_flat_claim_kernel, tiling.grid(), tiling.threads(), 0, stream, p, tiling, winners);
  });
  if (error != cudaSuccess) return error;
  const bool fit = vectors_fit(p.output, sizeof(U), !p.across);
  if (fit && p.across) return write<U, V, true>(p, winners, stream);
  if (fit && p.output.width % V == 0) return write<U, V, false>(p, winners, stream);
  return write<U, 1, true>(p, winners, stream);
}

template <class T>
cudaError_t sum(const Flat& p, void* scratch, cudaStream_t stream) {
  AccumulatorOf<T>* const sums = static_cast<AccumulatorOf<T>*>(scratch);
  const Tiling tiling(p.output, 1, p.across, kMostWindowRows);
  const int64_t planes = p.output.batch * p.output.channels;
  if (planes > INT32_MAX) return cudaErrorInvalidValue;
  return over(tiling, [&] {
    const int64_t blocks = (planes + kSumThreads / device::kWarp - 1) / (kSumThreads / device::kWarp);
    const cudaError_t error =
        LAUNCH(max_unpool_flat_sum_kernel<T>, static_cast<unsigned>(blocks), kSumThreads, 0, stream, p, planes, sums);
    if (error != cudaSuccess) return error;
    return LAUNCH(max_unpool_flat_round_kernel<T>, tiling.grid(), tiling.threads(), 0, stream, p, tiling, sums);
  });
}

cudaError_t unpool(const Flat& p, const MaxUnpoolFlat& params, void* scratch, cudaStream_t stream) {
  const int64_t pieces = max_unpool2d_flat_scratch_bytes(params) / 16;
  if (pieces > 0) {
    const int64_t most = 8448, blocks = (pieces + kPlaneThreads - 1) / kPlaneThreads;
    const cudaError_t error = LAUNCH(max_unpool_flat_clear_kernel, static_cast<unsigned>(blocks < most ? blocks : most),
                                     kPlaneThreads, 0, stream, static_cast<uint4*>(scratch), pieces);
    if (error != cudaSuccess) return error;
  }
  if (params.accumulate) {
    return as_float(params.dtype, [&]<class T>(T) { return sum<T>(p, scratch, stream); });
  }
  unsigned* const winners = static_cast<unsigned*>(scratch);
  return as_bits(params.dtype, [&]<class U>(U) { return unpool<U>(p, winners, stream); });
}

// Whether one more than a position in a plane fits 32 bits.
template <class Data>
bool fits(const PlanesOf<Data>& planes) {
  return planes.height <= INT32_MAX && planes.width <= INT32_MAX &&
         planes.height * planes.width < static_cast<int64_t>(UINT32_MAX);
}

}  // namespace

int64_t max_unpool2d_flat_scratch_bytes(const MaxUnpoolFlat& p) {
  const int64_t elements = p.output.batch * p.output.channels * p.output.height * p.output.width;
  const int64_t bytes = elements * (p.accumulate ? accumulator_bytes(p.dtype) : 4);
  return (bytes + 15) / 16 * 16;
}

Failure max_unpool2d_flat(const MaxUnpoolFlat& p, void* scratch, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  if (!fits(p.indices) || !fits(p.output)) return failure(cudaErrorInvalidValue);
  const Flat flat{FlatPlane(p.input),
                  FlatPlane(p.indices),
                  p.output,
                  p.bad_indices,
                  static_cast<unsigned>(p.output.height * p.output.width),
                  !is_planar(p.output)};
  return failure(with_record(p.bad_indices, p.indices, queue, [&] { return unpool(flat, p, scratch, queue); }));
}

Failure max_unpool2d_flat_backward(const MaxUnpoolFlatBackward& p, void* stream) {
  if (!fits(p.indices) || !fits(p.grad_output)) return failure(cudaErrorInvalidValue);
  const Tiling tiling(p.grad_input, 1, !is_planar(p.grad_input), kMostWindowRows);
  return failure(over(tiling, [&] {
    return as_float_bits(p.dtype, [&]<class U>(U) {
      return LAUNCH(max_unpool_flat_pick_kernel<U>, tiling.grid(), tiling.threads(), 0, static_cast<cudaStream_t>(stream),
                    FlatPlane(p.grad_output), p.indices, p.grad_input, tiling);
    });
  }));
}

}  // namespace segops::cuda
