// max_unpool2d of windows that overlap so much that to ask every window for each element takes longer than to let every
// window find its own. Compiled into every ISA namespace.
#pragma once
#include "max_unpool_gather.h"

namespace segops::SEGOPS_ISA {
namespace {

// Calls body(band) for `group` channels of every image at a time.
template <class P, class Body>
void for_each_plane(const P& p, int64_t group, const Parallel& parallel, const Body& body) {
  const int64_t groups = (p.channels + group - 1) / group;
  for_each_item(parallel, p.batch * groups, false, [&](int64_t item, int32_t worker) {
    const int64_t c = item % groups * group, channels = c + group < p.channels ? group : p.channels - c;
    body(Band{item / groups, c, channels, 0, 0, worker});
  });
}

// Planes (of neighbouring channels of dense pixels) made in memory of a worker's own, window after window.
template <class Element, class T, bool kSum>
class Scatter {
 public:
  explicit Scatter(const MaxUnpool& p)
      : p_(p), group_(both_channels_last(p.input, p.output) && p.indices.stride_c == 1 ? kGroup : 1) {
    const int64_t count = p.vertical.kernel * p.horizontal.kernel;
    for (int64_t tap = 0; tap < 256; ++tap)
      taps_[tap] = tap < count ? Tap{tap / p.horizontal.kernel * p.vertical.dilation,
                                     tap % p.horizontal.kernel * p.horizontal.dilation}
                               : Tap{-1, 0};
  }

  // Whether windows overlap enough, and planes are small and many enough.
  bool pays() const {
    constexpr int64_t kGivers = 12, kPlanes = 4, kBytes = 2 << 20;
    const Planes& out = p_.output;
    return p_.vertical.kernel * p_.horizontal.kernel > kGivers * p_.vertical.stride * p_.horizontal.stride &&
           may_split(p_.vertical, p_.horizontal) && out.batch * out.channels >= kPlanes * group_ && out.height < kBytes &&
           out.width < kBytes && bytes() <= kBytes;
  }

  Status run(const BadIndices& bad, const Parallel& parallel) const {
    const Memory scratch(parallel.workers * bytes(), false);
    if (!scratch.data) return Status::out_of_memory;
    for_each_plane(p_.output, group_, parallel, [&](const Band& b) {
      T* const plane = reinterpret_cast<T*>(scratch.data + b.worker * bytes());
      __builtin_memset(static_cast<void*>(plane), 0, static_cast<size_t>(bytes()));
      for (int64_t y = 0; y < p_.input.height; ++y) add_row(b, y, plane, bad);
      write(b, plane);
    });
    return Status::ok;
  }

 private:
  static constexpr int64_t kGroup = 64 / sizeof(T);  // channels that are taken together: a cache line

  int64_t bytes() const {
    return (p_.output.height * p_.output.width * group_ * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }

  void add_row(const Band& b, int64_t y, T* plane, const BadIndices& bad) const {
    const MaxUnpool& p = p_;
    const int64_t row = tap_position(p.vertical, y, 0), height = p.output.height, width = p.output.width;
    const int64_t channels = b.channels, step = p.input.stride_w, index_step = p.indices.stride_w;
    const int64_t last_y = (p.vertical.kernel - 1) * p.vertical.dilation;
    const int64_t last_x = (p.horizontal.kernel - 1) * p.horizontal.dilation;
    const bool whole_rows = row >= 0 && row + last_y < height;
    const Element* input = row_of<const Element>(p.input, b, y);
    const uint8_t* indices = row_of<const uint8_t>(p.indices, b, y);
    bool suspect = false;
    for (int64_t x = 0; x < p.input.width; ++x, input += step, indices += index_step) {
      const int64_t column = tap_position(p.horizontal, x, 0), first = row * width + column;
      const bool whole = whole_rows && column >= 0 && column + last_x < width;
      for (int64_t c = 0; c < channels; ++c) {
        const Tap tap = taps_[indices[c]];
        const bool inside =
            whole ? tap.y >= 0
                  : tap.y >= 0 && row + tap.y >= 0 && row + tap.y < height && column + tap.x >= 0 && column + tap.x < width;
        if (!inside) {
          suspect = true;
          continue;
        }
        T& element = plane[(first + tap.y * width + tap.x) * channels + c];
        const T value = load<1, T>(input + c)[0];
        if constexpr (kSum)
          element += value;
        else
          element = value;
      }
    }
    if (suspect) check_indices(p, b, y, 0, p.input.width, bad);
  }

  void write(const Band& b, const T* plane) const {
    const Planes& out = p_.output;
    const bool dense = out.stride_w == b.channels;
    const int64_t runs = dense ? 1 : out.width, count = dense ? out.width * b.channels : b.channels;
    for (int64_t y = 0; y < out.height; ++y)
      for (int64_t run = 0; run < runs; ++run, plane += count)
        write(plane, row_of<Element>(out, b, y) + run * out.stride_w, count);
  }

  static void write(const T* from, Element* to, int64_t count) {
    constexpr int kLanes = kNativeLanes<T>;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
      put_gathered<kSum, kLanes, Element, T>(to + i, *reinterpret_cast<const Unaligned<T, kLanes>*>(from + i), false);
    if constexpr (kSum)
      for (; i < count; ++i) store<1>(to + i, load<1, T>(from + i));
    else
      for (; i < count; ++i) to[i] = from[i];
  }

  // Where a tap is in its window; y is negative where there is none.
  struct Tap {
    int64_t y, x;
  };

  const MaxUnpool& p_;
  int64_t group_;
  Tap taps_[256];
};

}  // namespace
}  // namespace segops::SEGOPS_ISA
