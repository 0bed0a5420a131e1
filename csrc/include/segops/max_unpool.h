// Contract of max_pool2d and max_unpool2d with window-local indices, and of max_unpool2d with flat ones.
//
// A local index is the position of an element inside its window, row-major: ky * kernel_w + kx.
#pragma once
#include "segops/planes.h"

namespace segops {

// One axis of the windows. Tap k of window i is at i * stride - padding + k * dilation, which may be outside the image.
struct WindowAxis {
  int64_t kernel, stride, padding, dilation;
};

SEGOPS_HOST_DEVICE inline int64_t tap_position(const WindowAxis& axis, int64_t window, int64_t tap) {
  return window * axis.stride - axis.padding + tap * axis.dilation;
}

// The taps of a window that are inside an axis of `size`: [begin, end), empty if none is.
struct Taps {
  int64_t begin, end;
};

SEGOPS_HOST_DEVICE inline Taps taps_inside(const WindowAxis& axis, int64_t window, int64_t size) {
  const int64_t first = tap_position(axis, window, 0);
  const int64_t begin = first < 0 ? (-first + axis.dilation - 1) / axis.dilation : 0;
  const int64_t room = first < size ? (size - first + axis.dilation - 1) / axis.dilation : 0;
  return Taps{begin, room < axis.kernel ? room : axis.kernel};
}

// The window whose tap `tap` is at `position`, or -1.
SEGOPS_HOST_DEVICE inline int64_t window_of(const WindowAxis& axis, int64_t position, int64_t tap, int64_t windows) {
  const int64_t offset = position + axis.padding - tap * axis.dilation;
  if (offset < 0 || offset % axis.stride != 0) return -1;
  const int64_t window = offset / axis.stride;
  return window < windows ? window : -1;
}

// output: the maximum of each window, indices: where it is. Among equals the first in row-major order, among NaNs the last:
// tap after tap, a value wins that is larger than the maximum so far or NaN; the first tap inside the image starts. Every
// window has a tap inside (the operator sees to it), and kernel_h * kernel_w <= 256.
struct MaxPool {
  Dtype dtype;                // any of ours but bool; int8 too
  ConstPlanes input;          // [N, C, H, W]
  Planes output;              // [N, C, h, w]
  PlanesOf<uint8_t> indices;  // [N, C, h, w], in the layout of output
  WindowAxis vertical, horizontal;
  bool warm;  // on a CPU: whether the memory of what is written has been touched before
};

// Each element of output [N, C, H, W] from the windows that point at it: the value of the latest in row-major order, or
// (accumulate; floating point) the sum of all in row-major order, in float (double for float64); 0 where none does.
// An index outside its window, or whose tap is outside the output, points nowhere and is recorded.
struct MaxUnpool {
  Dtype dtype;
  ConstPlanes input;                // [N, C, h, w]
  PlanesOf<const uint8_t> indices;  // [N, C, h, w], planar where input is, channels last where input is
  Planes output;                    // [N, C, H, W]
  WindowAxis vertical, horizontal;
  bool accumulate;
  BadData* bad_indices;  // positions are row-major in [N, C, h, w]; null: nobody asks
  bool warm;
};

// The transpose: each window's element is the one it points at in grad_output, or 0 where its index points nowhere; without
// `accumulate` also where a later window points at the same element.
struct MaxUnpoolBackward {
  Dtype dtype;
  ConstPlanes grad_output;          // [N, C, H, W]
  PlanesOf<const uint8_t> indices;  // [N, C, h, w], planar where grad_output is, channels last where grad_output is
  Planes grad_input;                // [N, C, h, w], in the layout of grad_output
  WindowAxis vertical, horizontal;
  bool accumulate;
  bool warm;
};

// The same with torch's indices y * W + x into a plane of output, arbitrary ones. An index outside the plane is recorded.
struct MaxUnpoolFlat {
  Dtype dtype;
  ConstPlanes input;                // [N, C, h, w]
  PlanesOf<const int64_t> indices;  // [N, C, h, w], planar where input is, channels last where input is
  Planes output;                    // [N, C, H, W]
  bool accumulate;
  BadData* bad_indices;
  bool warm;
};

// Every element gets the gradient of where it points to, duplicates too, as in torch; 0 outside the plane.
struct MaxUnpoolFlatBackward {
  Dtype dtype;
  ConstPlanes grad_output;          // [N, C, H, W]
  PlanesOf<const int64_t> indices;  // [N, C, h, w], planar where grad_output is, channels last where grad_output is
  Planes grad_input;                // [N, C, h, w]
};

}  // namespace segops
