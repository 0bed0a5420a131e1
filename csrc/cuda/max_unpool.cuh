// What the kernels of max_pool2d and max_unpool2d share: windows in 32 bits.
#pragma once
#include "planes.cuh"
#include "segops/max_unpool.h"

namespace segops::cuda {

constexpr int kMostWindowRows = 8;               // nothing is shared between them
constexpr int64_t kFarthest = int64_t{1} << 30;  // pixels that positions may be apart, for sums of them to fit 32 bits

// WindowAxis with `windows` of them over `size` pixels.
struct Axis {
  int kernel, stride, padding, dilation, windows, size;
  int step, carry;  // the dilation in strides, rounded down, and what is left of it

  Axis() = default;
  Axis(const WindowAxis& of, int64_t windows_, int64_t size_) {
    kernel = static_cast<int>(of.kernel);
    stride = static_cast<int>(of.stride < kFarthest ? of.stride : kFarthest);  // past every pixel as well
    padding = static_cast<int>(of.padding);
    dilation = static_cast<int>(of.kernel == 1 ? 1 : of.dilation);
    windows = static_cast<int>(windows_);
    size = static_cast<int>(size_);
    step = dilation / stride;
    carry = dilation % stride;
  }
  static bool fits(const WindowAxis& of, int64_t windows, int64_t size) {
    return windows <= INT32_MAX && size <= kFarthest && of.padding <= kFarthest - size &&
           (of.kernel == 1 || of.dilation <= kFarthest / (of.kernel - 1));
  }

  bool overlaps() const { return (kernel - 1) * dilation >= stride; }
  bool halves() const { return kernel == 2 && stride == 2 && padding == 0 && dilation == 1; }
  // Pairs of pixels, and windows that have none.
  int pairs() const { return windows > (size + 1) / 2 ? windows : (size + 1) / 2; }

  // Where a window begins: where it lies inside the image, 32 bits are enough.
  __device__ __forceinline__ int64_t begin(int window) const { return static_cast<int64_t>(window) * stride - padding; }
};

// The windows with a tap at one position of an axis, in ascending order: from the last tap to the first.
struct WindowsAt {
  int tap, window, rest;  // the tap is `rest` pixels before the position; behind it, before the first window

  __device__ __forceinline__ WindowsAt(const Axis& axis, int position) {
    tap = axis.kernel - 1;
    const int offset = position + axis.padding - tap * axis.dilation;
    window = offset / axis.stride;
    rest = offset - window * axis.stride;
  }
  // The windows after this one at tap `tap_` of its own.
  __device__ __forceinline__ WindowsAt(int window_, int tap_) : tap(tap_), window(window_), rest(0) {}

  __device__ __forceinline__ bool is_window(const Axis& axis) const {
    return rest == 0 && static_cast<unsigned>(window) < static_cast<unsigned>(axis.windows);
  }
  __device__ __forceinline__ void to_next_tap(const Axis& axis) {
    --tap;
    window += axis.step;
    rest += axis.carry;
    if (rest >= axis.stride) {
      rest -= axis.stride;
      ++window;
    }
  }
  __device__ __forceinline__ void to_next_position(const Axis& axis) {
    if (++rest == axis.stride) {
      rest = 0;
      ++window;
    }
  }
};

struct Windows {
  Axis vertical, horizontal;
  unsigned inverse_width;  // 2^16 / kernel_w, rounded up: of a byte, the quotient is exact

  Windows(const WindowAxis& v, const WindowAxis& h, int64_t windows_h, int64_t windows_w, int64_t height, int64_t width)
      : vertical(v, windows_h, height), horizontal(h, windows_w, width) {
    inverse_width = (65536u + static_cast<unsigned>(horizontal.kernel) - 1) / static_cast<unsigned>(horizontal.kernel);
  }

  // Which element index `local` of window (i, j) points at, and whether there is one.
  struct Target {
    int tap_y, tap_x;
    int64_t y, x;
    bool inside;
  };
  __device__ __forceinline__ Target target(int i, int j, unsigned local) const {
    Target t;
    t.tap_y = static_cast<int>(local * inverse_width >> 16);
    t.tap_x = static_cast<int>(local) - t.tap_y * horizontal.kernel;
    t.y = vertical.begin(i) + t.tap_y * vertical.dilation;
    t.x = horizontal.begin(j) + t.tap_x * horizontal.dilation;
    t.inside = t.tap_y < vertical.kernel && t.y >= 0 && t.y < vertical.size && t.x >= 0 && t.x < horizontal.size;
    return t;
  }
};

// How a kernel goes through windows and the image under them.
enum class Form {
  pairs,     // planar, 2x2 and stride 2: a vector of the image's row is whole windows
  channels,  // channels last, vectors of channels
  any,       // one element at a time
};

// `element`: bytes of one of coarse (a pixel a window) and fine.
template <class Coarse, class Index, class Fine>
Form form_of(const Windows& windows, const PlanesOf<Coarse>& coarse, const PlanesOf<Index>& indices,
             const PlanesOf<Fine>& fine, int64_t element) {
  const int64_t vector = 16 / element;
  if (is_planar(fine)) {
    const bool whole = windows.vertical.halves() && windows.horizontal.halves() && fine.width == 2 * coarse.width &&
                       fine.width % vector == 0;
    const bool fit = vectors_fit(fine, element, true) && vectors_fit(coarse, element, true, 8) &&
                     vectors_fit(indices, 1, true, vector / 2);
    return whole && fit ? Form::pairs : Form::any;
  }
  const bool fit =
      vectors_fit(fine, element, false) && vectors_fit(coarse, element, false) && vectors_fit(indices, 1, false, vector);
  return fit ? Form::channels : Form::any;
}

// A coarse image with as many rows and columns as a kernel walks over.
template <class Data>
PlanesOf<Data> resized(PlanesOf<Data> planes, int64_t height, int64_t width) {
  planes.height = height;
  planes.width = width;
  return planes;
}

}  // namespace segops::cuda
