// max_unpool2d of windows that overlap so much that to ask every window for each element takes longer than to let every window
// find its own. Compiled into every ISA namespace.
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

// How many neighbouring channels of dense pixels one worker takes: whole cache lines, as many as leave something to share out.
inline int64_t channels_at_once(const Planes& out, int64_t element) {
  constexpr int64_t kItems = 4;
  const int64_t line = 64 / element, lines = (out.channels + line - 1) / line, parts = kItems / (out.batch + 1) + 1;
  return (lines + parts - 1) / parts * line;
}

// Planes (of neighbouring channels of dense pixels) made in memory of a worker's own, window after window.
template <class Element, class T, bool kSum>
class Scatter {
 public:
  explicit Scatter(const MaxUnpool& p)
      : p_(p),
        group_(both_channels_last(p.input, p.output) && p.indices.stride_c == 1 ? channels_at_once(p.output, sizeof(Element))
                                                                               : 1) {
    for (int64_t tap = 0; tap < p.vertical.kernel * p.horizontal.kernel; ++tap)
      taps_[tap] = Tap{static_cast<int32_t>(tap / p.horizontal.kernel * p.vertical.dilation),
                       static_cast<int32_t>(tap % p.horizontal.kernel * p.horizontal.dilation)};
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
  int64_t bytes() const {
    return (p_.output.height * p_.output.width * group_ * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }

  void add_row(const Band& b, int64_t y, T* plane, const BadIndices& bad) const {
    const MaxUnpool& p = p_;
    const int64_t width = p.output.width, height = p.output.height, channels = b.channels;
    const uint32_t taps = static_cast<uint32_t>(p.vertical.kernel * p.horizontal.kernel);
    const uint8_t* const indices = row_of<const uint8_t>(p.indices, b, y);
    const Element* const input = row_of<const Element>(p.input, b, y);
    const int64_t row = tap_position(p.vertical, y, 0);
    bool suspect = false;
    for (int64_t x = 0; x < p.input.width; ++x) {
      const int64_t column = tap_position(p.horizontal, x, 0);
      for (int64_t c = 0; c < channels; ++c) {
        const uint32_t index = indices[x * p.indices.stride_w + c];
        const int64_t to_y = index < taps ? row + taps_[index].y : -1, to_x = index < taps ? column + taps_[index].x : -1;
        if (to_y < 0 || to_y >= height || to_x < 0 || to_x >= width) {
          suspect = true;
          continue;
        }
        T& element = plane[(to_y * width + to_x) * channels + c];
        const T value = load<1, T>(input + x * p.input.stride_w + c)[0];
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

  // Where taps are in their window.
  struct Tap {
    int32_t y, x;
  };

  const MaxUnpool& p_;
  int64_t group_;
  Tap taps_[256];
};

}  // namespace
}  // namespace segops::SEGOPS_ISA
