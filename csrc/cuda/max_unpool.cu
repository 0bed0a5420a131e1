// max_unpool2d with indices into windows, and its transpose. An element of the output asks the windows over it whether they
// point at it, so each is written once and nothing is set to zero before. Of 2x2 windows side by side, each writes its four.
#include "max_unpool.cuh"
#include "max_unpool_record.cuh"

namespace segops::cuda {
namespace {

// 32-bit windows besides the params.
struct Unpool {
  ConstPlanes input;
  PlanesOf<const uint8_t> indices;
  Planes output;
  Windows windows;
  BadData* bad_indices;
};

struct Pick {
  ConstPlanes grad_output;
  PlanesOf<const uint8_t> indices;
  Planes grad_input;
  Windows windows;
  bool latest_only;  // windows overlap, and the latest of those that point at an element has it
};

__device__ __forceinline__ int64_t position_of(const PlanesOf<const uint8_t>& indices, const Place& place, int64_t row,
                                               int64_t column) {
  return ((place.image * indices.channels + place.channel) * indices.height + row) * indices.width + column;
}

// 2x2 windows, planar: V elements of two rows are from V / 2 windows.
template <class U>
__global__ void __launch_bounds__(kPlaneThreads, 1) max_unpool_pairs_kernel(Unpool p, Tiling tiling) {
  constexpr int V = kVector<U>, kWindows = V / 2;
  const Place place(tiling, kWindows);
  if (!place.active) return;
  const int first = place.column * kWindows, windows = p.windows.vertical.windows, height = p.windows.vertical.size;
  const U* from = place.begin<const U>(p.input) + place.row * p.input.stride_h + first;
  const uint8_t* at = place.begin<const uint8_t>(p.indices) + place.row * p.indices.stride_h + first;
  U* to = place.begin<U>(p.output) + int64_t{2} * place.row * p.output.stride_h + 2 * first;
  BadCount bad;
#pragma unroll 2
  for (int r = 0; r < place.rows; ++r) {
    const int row = place.row + r, rows = height - 2 * row;
    U value[kWindows] = {};
    uint8_t local[kWindows] = {};
    if (row < windows) {
      load_vector(from, value);
      load_vector(at, local);
    }
    U top[V], bottom[V];
#pragma unroll
    for (int q = 0; q < kWindows; ++q) {
      top[2 * q] = local[q] == 0 ? value[q] : U(0);
      top[2 * q + 1] = local[q] == 1 ? value[q] : U(0);
      bottom[2 * q] = local[q] == 2 ? value[q] : U(0);
      bottom[2 * q + 1] = local[q] == 3 ? value[q] : U(0);
      const int inside = rows >= 2 ? 4 : 2 * rows;
      if (row < windows && local[q] >= inside) bad.add(position_of(p.indices, place, row, first + q));
    }
    if (rows > 0) store_vector(to, top);
    if (rows > 1) store_vector(to + p.output.stride_h, bottom);
    from += p.input.stride_h;
    at += p.indices.stride_h;
    to += 2 * p.output.stride_h;
  }
  bad.report(p.bad_indices);
}

// 2x2 windows, channels last: V channels of four pixels are from those of one window.
template <class U>
__global__ void __launch_bounds__(kPlaneThreads, 1) max_unpool_squares_kernel(Unpool p, Tiling tiling) {
  constexpr int V = kVector<U>;
  const Place place(tiling, V);
  if (!place.active) return;
  const Axis &vertical = p.windows.vertical, &horizontal = p.windows.horizontal;
  const int columns = horizontal.size - 2 * place.column;
  const U* from = place.begin<const U>(p.input) + place.row * p.input.stride_h + place.column * p.input.stride_w;
  const uint8_t* at =
      place.begin<const uint8_t>(p.indices) + place.row * p.indices.stride_h + place.column * p.indices.stride_w;
  U* to =
      place.begin<U>(p.output) + int64_t{2} * place.row * p.output.stride_h + int64_t{2} * place.column * p.output.stride_w;
  BadCount bad;
#pragma unroll 2
  for (int r = 0; r < place.rows; ++r) {
    const int row = place.row + r, rows = vertical.size - 2 * row;
    const bool is_window = row < vertical.windows && place.column < horizontal.windows;
    U value[V] = {};
    uint8_t local[V] = {};
    if (is_window) {
      load_vector(from, value);
      load_vector(at, local);
    }
#pragma unroll
    for (int tap = 0; tap < 4; ++tap) {
      const bool inside = tap / 2 < rows && tap % 2 < columns;
      U out[V];
#pragma unroll
      for (int v = 0; v < V; ++v) out[v] = local[v] == tap ? value[v] : U(0);
      if (inside) store_vector(to + (tap / 2) * p.output.stride_h + (tap % 2) * p.output.stride_w, out);
    }
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (is_window && (local[v] > 3 || local[v] / 2 >= rows || local[v] % 2 >= columns))
        bad.add(position_of(p.indices, place, row, place.column) + v * p.indices.height * p.indices.width);
    from += p.input.stride_h;
    at += p.indices.stride_h;
    to += 2 * p.output.stride_h;
  }
  bad.report(p.bad_indices);
}

// Any windows: V channels of a pixel, or one element of any layout. T: unsigned integers where bits are moved.
template <class T, int V, bool kAccumulate>
__global__ void __launch_bounds__(kPlaneThreads, 1) max_unpool_gather_kernel(Unpool p, Tiling tiling) {
  using A = AccumulatorOf<T>;
  const Place place(tiling, V);
  if (!place.active) return;
  const Axis &vertical = p.windows.vertical, &horizontal = p.windows.horizontal;
  const T* const input = place.begin<const T>(p.input);
  const uint8_t* const indices = place.begin<const uint8_t>(p.indices);
  T* to = place.begin<T>(p.output) + place.row * p.output.stride_h + place.column * p.output.stride_w;
  const WindowsAt columns(horizontal, place.column);
  WindowsAt rows(vertical, place.row);
  for (int r = 0; r < place.rows; ++r, rows.to_next_position(vertical), to += p.output.stride_h) {
    T out[V] = {};
    A sum[V] = {};
    for (WindowsAt i = rows; i.tap >= 0; i.to_next_tap(vertical)) {
      if (!i.is_window(vertical)) continue;
      for (WindowsAt j = columns; j.tap >= 0; j.to_next_tap(horizontal)) {
        if (!j.is_window(horizontal)) continue;
        uint8_t local[V];
        load_vector(indices + i.window * p.indices.stride_h + j.window * p.indices.stride_w, local);
        const int tap = i.tap * horizontal.kernel + j.tap;
        bool any = false;
#pragma unroll
        for (int v = 0; v < V; ++v) any |= local[v] == tap;
        if (!any) continue;
        T value[V];
        load_vector(input + i.window * p.input.stride_h + j.window * p.input.stride_w, value);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if (local[v] != tap) continue;
          if constexpr (kAccumulate)
            sum[v] += widen<A>(value[v]);
          else
            out[v] = value[v];
        }
      }
    }
    if constexpr (kAccumulate) {
#pragma unroll
      for (int v = 0; v < V; ++v) out[v] = narrow<T>(sum[v]);
    }
    store_vector(to, out);
  }
}

// Windows whose index points nowhere, where the windows' own kernel does not see each index once. kAcross: as move_strip's.
template <int V, bool kAcross>
__global__ void __launch_bounds__(kPlaneThreads, 1) max_unpool_check_kernel(Unpool p, Tiling tiling) {
  const Place place(tiling, V);
  if (!place.active) return;
  const int first = kAcross ? place.column : place.column * V;
  const uint8_t* at = place.begin<const uint8_t>(p.indices) + place.row * p.indices.stride_h + first * p.indices.stride_w;
  BadCount bad;
  for (int r = 0; r < place.rows; ++r, at += p.indices.stride_h) {
    uint8_t local[V];
    load_vector(at, local);
    for (int v = 0; v < V; ++v) {
      if (p.windows.target(place.row + r, kAcross ? first : first + v, local[v]).inside) continue;
      const int64_t apart = kAcross ? p.indices.height * p.indices.width : 1;
      bad.add(position_of(p.indices, place, place.row + r, first) + v * apart);
    }
  }
  bad.report(p.bad_indices);
}

// The transposes.

template <class U>
__global__ void __launch_bounds__(kPlaneThreads, 1) max_unpool_pairs_backward_kernel(Pick p, Tiling tiling) {
  constexpr int V = kVector<U>, kWindows = V / 2;
  const Place place(tiling, kWindows);
  if (!place.active) return;
  const int first = place.column * kWindows, height = p.windows.vertical.size;
  const U* from = place.begin<const U>(p.grad_output) + int64_t{2} * place.row * p.grad_output.stride_h + 2 * first;
  const uint8_t* at = place.begin<const uint8_t>(p.indices) + place.row * p.indices.stride_h + first;
  U* to = place.begin<U>(p.grad_input) + place.row * p.grad_input.stride_h + first;
#pragma unroll 2
  for (int r = 0; r < place.rows; ++r) {
    const int rows = height - 2 * (place.row + r);
    U top[V] = {}, bottom[V] = {}, out[kWindows];
    uint8_t local[kWindows];
    load_vector(at, local);
    if (rows > 0) load_vector(from, top);
    if (rows > 1) load_vector(from + p.grad_output.stride_h, bottom);
#pragma unroll
    for (int q = 0; q < kWindows; ++q) {
      const U upper = local[q] == 0 ? top[2 * q] : top[2 * q + 1];
      const U lower = local[q] == 2 ? bottom[2 * q] : bottom[2 * q + 1];
      out[q] = local[q] > 3 ? U(0) : local[q] < 2 ? upper : lower;
    }
    store_vector(to, out);
    from += 2 * p.grad_output.stride_h;
    at += p.indices.stride_h;
    to += p.grad_input.stride_h;
  }
}

template <class U>
__global__ void __launch_bounds__(kPlaneThreads, 1) max_unpool_squares_backward_kernel(Pick p, Tiling tiling) {
  constexpr int V = kVector<U>;
  const Place place(tiling, V);
  if (!place.active) return;
  const int columns = p.windows.horizontal.size - 2 * place.column, height = p.windows.vertical.size;
  const U* from = place.begin<const U>(p.grad_output) + int64_t{2} * place.row * p.grad_output.stride_h +
                  int64_t{2} * place.column * p.grad_output.stride_w;
  const uint8_t* at =
      place.begin<const uint8_t>(p.indices) + place.row * p.indices.stride_h + place.column * p.indices.stride_w;
  U* to = place.begin<U>(p.grad_input) + place.row * p.grad_input.stride_h + place.column * p.grad_input.stride_w;
  for (int r = 0; r < place.rows; ++r) {
    const int rows = height - 2 * (place.row + r);
    U out[V] = {};
    uint8_t local[V];
    load_vector(at, local);
#pragma unroll
    for (int tap = 0; tap < 4; ++tap) {
      if (tap / 2 >= rows || tap % 2 >= columns) continue;
      U fine[V];
      load_vector(from + (tap / 2) * p.grad_output.stride_h + (tap % 2) * p.grad_output.stride_w, fine);
#pragma unroll
      for (int v = 0; v < V; ++v) out[v] = local[v] == tap ? fine[v] : out[v];
    }
    store_vector(to, out);
    from += 2 * p.grad_output.stride_h;
    at += p.indices.stride_h;
    to += p.grad_input.stride_h;
  }
}

// Whether a window after (i, j), in row-major order, points at the same element.
__device__ __forceinline__ bool is_overwritten(const Windows& windows, const PlanesOf<const uint8_t>& planes,
                                               const uint8_t* indices, int i, int j, const Windows::Target& t) {
  const WindowsAt columns(windows.horizontal, static_cast<int>(t.x));
  WindowsAt own(j, t.tap_x);
  own.to_next_tap(windows.horizontal);
  for (WindowsAt row(i, t.tap_y); row.tap >= 0; row.to_next_tap(windows.vertical)) {
    if (!row.is_window(windows.vertical)) continue;
    for (WindowsAt column = row.window == i ? own : columns; column.tap >= 0; column.to_next_tap(windows.horizontal)) {
      if (!column.is_window(windows.horizontal)) continue;
      const uint8_t local = device::load(indices + row.window * planes.stride_h + column.window * planes.stride_w);
      if (local == row.tap * windows.horizontal.kernel + column.tap) return true;
    }
  }
  return false;
}

template <class U>
__global__ void __launch_bounds__(kPlaneThreads, 1) max_unpool_pick_kernel(Pick p, Tiling tiling) {
  const Place place(tiling, 1);
  if (!place.active) return;
  const U* const plane = place.begin<const U>(p.grad_output);
  const uint8_t* const indices = place.begin<const uint8_t>(p.indices);
  U* const to = place.begin<U>(p.grad_input) + place.column * p.grad_input.stride_w;
  for (int r = 0; r < place.rows; ++r) {
    const int row = place.row + r;
    const uint8_t local = device::load(indices + row * p.indices.stride_h + place.column * p.indices.stride_w);
    const Windows::Target t = p.windows.target(row, place.column, local);
    U out = 0;
    if (t.inside && !(p.latest_only && is_overwritten(p.windows, p.indices, indices, row, place.column, t)))
      out = device::load(plane + t.y * p.grad_output.stride_h + t.x * p.grad_output.stride_w);
    to[row * p.grad_input.stride_h] = out;
  }
}

template <int V, bool kAcross>
cudaError_t check(const Unpool& p, bool across, cudaStream_t stream) {
  const Tiling tiling(p.indices, V, across, kMostWindowRows);
  return over(tiling, [&] {
    return LAUNCH((max_unpool_check_kernel<V, kAcross>), tiling.grid(), tiling.threads(), 0, stream, p, tiling);
  });
}

cudaError_t check(const Unpool& p, cudaStream_t stream) {
  if (p.bad_indices == nullptr) return cudaSuccess;
  const bool planar = is_planar(p.indices);
  const bool fit = vectors_fit(p.indices, 1, planar) && (!planar || p.indices.width % 16 == 0);
  if (!fit) return check<1, true>(p, !planar, stream);
  return planar ? check<16, false>(p, false, stream) : check<16, true>(p, true, stream);
}

template <class T, int V, bool kAccumulate>
cudaError_t gather(const Unpool& p, cudaStream_t stream) {
  const Tiling tiling(p.output, V, V > 1 || !is_planar(p.output), kMostWindowRows);
  const cudaError_t error = check(p, stream);
  if (error != cudaSuccess) return error;
  return over(tiling, [&] {
    return LAUNCH((max_unpool_gather_kernel<T, V, kAccumulate>), tiling.grid(), tiling.threads(), 0, stream, p, tiling);
  });
}

// T: of the sums, or unsigned integers of that size.
template <class T, bool kAccumulate>
cudaError_t unpool(const Unpool& p, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  const Axis &vertical = p.windows.vertical, &horizontal = p.windows.horizontal;
  const Form form = form_of(p.windows, p.input, p.indices, p.output, sizeof(T));
  // Windows apart from each other have nothing to add.
  if constexpr (!kAccumulate) {
    if (form == Form::pairs) {
      const Tiling tiling(resized(p.input, vertical.pairs(), horizontal.windows), V / 2, false, kMostWindowRows);
      return over(tiling,
                  [&] { return LAUNCH(max_unpool_pairs_kernel<T>, tiling.grid(), tiling.threads(), 0, stream, p, tiling); });
    }
    if (form == Form::channels && vertical.halves() && horizontal.halves()) {
      const Tiling tiling(resized(p.input, vertical.pairs(), horizontal.pairs()), V, true, kMostWindowRows);
      return over(tiling, [&] {
        return LAUNCH(max_unpool_squares_kernel<T>, tiling.grid(), tiling.threads(), 0, stream, p, tiling);
      });
    }
  }
  return form == Form::channels ? gather<T, V, kAccumulate>(p, stream) : gather<T, 1, kAccumulate>(p, stream);
}

cudaError_t unpool(const Unpool& p, Dtype dtype, bool accumulate, cudaStream_t stream) {
  if (accumulate && (p.windows.vertical.overlaps() || p.windows.horizontal.overlaps())) {
    return as_float(dtype, [&]<class T>(T) { return unpool<T, true>(p, stream); });
  }
  return as_bits(dtype, [&]<class U>(U) { return unpool<U, false>(p, stream); });
}

template <class U>
cudaError_t pick(const Pick& p, cudaStream_t stream) {
  constexpr int V = kVector<U>;
  const Form form = form_of(p.windows, p.grad_input, p.indices, p.grad_output, sizeof(U));
  if (form == Form::pairs) {
    const Tiling tiling(p.grad_input, V / 2, false, kMostWindowRows);
    return over(tiling, [&] {
      return LAUNCH(max_unpool_pairs_backward_kernel<U>, tiling.grid(), tiling.threads(), 0, stream, p, tiling);
    });
  }
  if (form == Form::channels && p.windows.vertical.halves() && p.windows.horizontal.halves()) {
    const Tiling tiling(p.grad_input, V, true, kMostWindowRows);
    return over(tiling, [&] {
      return LAUNCH(max_unpool_squares_backward_kernel<U>, tiling.grid(), tiling.threads(), 0, stream, p, tiling);
    });
  }
  const Tiling tiling(p.grad_input, 1, !is_planar(p.grad_input), kMostWindowRows);
  return over(tiling,
              [&] { return LAUNCH(max_unpool_pick_kernel<U>, tiling.grid(), tiling.threads(), 0, stream, p, tiling); });
}

}  // namespace

Failure max_unpool2d(const MaxUnpool& p, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  const int64_t h = p.indices.height, w = p.indices.width;
  if (!Axis::fits(p.vertical, h, p.output.height) || !Axis::fits(p.horizontal, w, p.output.width))
    return failure(cudaErrorInvalidValue);
  const Unpool unpooled{p.input, p.indices, p.output,
                        Windows(p.vertical, p.horizontal, h, w, p.output.height, p.output.width), p.bad_indices};
  return failure(
      with_record(p.bad_indices, p.indices, queue, [&] { return unpool(unpooled, p.dtype, p.accumulate, queue); }));
}

Failure max_unpool2d_backward(const MaxUnpoolBackward& p, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  const int64_t h = p.indices.height, w = p.indices.width, height = p.grad_output.height, width = p.grad_output.width;
  if (!Axis::fits(p.vertical, h, height) || !Axis::fits(p.horizontal, w, width)) return failure(cudaErrorInvalidValue);
  Pick picked{p.grad_output, p.indices, p.grad_input, Windows(p.vertical, p.horizontal, h, w, height, width), false};
  picked.latest_only = !p.accumulate && (picked.windows.vertical.overlaps() || picked.windows.horizontal.overlaps());
  return failure(as_float_bits(p.dtype, [&]<class U>(U) { return pick<U>(picked, queue); }));
}

}  // namespace segops::cuda
