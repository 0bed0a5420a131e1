// max_pool2d and the transpose of max_unpool2d for windows of 2 x 2 that tile the image. Compiled into every ISA namespace.
//
// There is little to compute, so memory decides: what is read is fetched ahead (rows are too short for a processor to
// follow two of them), and what is written goes past the caches where they cannot hold it.
#pragma once
#include "max_unpool_taps.h"

namespace segops::SEGOPS_ISA {
namespace {

// Which stores go past the caches.
struct PastCaches {
  bool values, indices;
};

// What a vector of windows gives, of a run of neighbouring ones: stored at places at, at + kLanes..
template <class Visitor, class U, int kLanes>
class RunWriter {
 public:
  RunWriter(U* values, uint8_t* indices, PastCaches past) : values_(values), indices_(indices), past_(past) {}

  SEGOPS_MEMBER void write(int64_t at, const Visitor& visitor) {
    put<U, kLanes>(values_ + at, visitor.value(), past_.values);
    if constexpr (Visitor::kIndices) {
      uint8_t* const group = past_.indices ? numbers_ : indices_ + at;
      const int64_t in_group = past_.indices ? at % kBytes : 0;
      *reinterpret_cast<Unaligned<uint8_t, kLanes>*>(group + in_group) = visitor.number();
      if (past_.indices && in_group + kLanes == kBytes)
        put<uint8_t, kBytes>(indices_ + at - in_group, *reinterpret_cast<const Unaligned<uint8_t, kBytes>*>(numbers_), true);
    }
  }

 private:
  static constexpr int kBytes = SEGOPS_VECTOR_BYTES;
  U* values_;
  uint8_t* indices_;
  PastCaches past_;
  alignas(kBytes) uint8_t numbers_[kBytes];
};

// A run of `count` windows, at least kLanes. tap(number, at): that tap of the windows from `at` on.
template <class Visitor, class U, int kLanes, class Start, class Tap>
SEGOPS_INLINE void visit_run(int64_t count, RunWriter<Visitor, U, kLanes> writer, const Start& start, const Tap& tap) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t at = i < count - kLanes ? i : count - kLanes;
    Visitor visitor(start(at));
    for (int number = 0; number < 4; ++number) visitor.tap(number, tap(number, at));
    writer.write(at, visitor);
  }
}

inline bool is_pair(const WindowAxis& axis) {
  return axis.kernel == 2 && axis.stride == 2 && axis.padding == 0 && axis.dilation == 1;
}

// Whether the windows are pairs of an image they fit in.
inline bool are_pairs(const ConstPlanes& image, const Planes& windows, const WindowAxis& vertical,
                      const WindowAxis& horizontal) {
  return is_pair(vertical) && is_pair(horizontal) && 2 * windows.width <= image.width && 2 * windows.height <= image.height;
}

// Visits pairs. of_pixels: kLanes channels (there are as many) at a time, otherwise kLanes windows of a dense row.
// start(band, y, x, c): what visitors of windows (channels) from there on start with.
template <class Visitor, class U, int kLanes, class Start>
void visit_pairs(const ConstPlanes& image, const Planes& windows, const PlanesOf<uint8_t>& indices, bool of_pixels,
                 bool warm, const Parallel& parallel, const Start& start) {
  const int64_t bytes = image.batch * image.channels * image.height * image.width * static_cast<int64_t>(sizeof(U));
  const int64_t run = of_pixels ? windows.channels : windows.width;
  const bool past = kLanes * sizeof(U) == SEGOPS_VECTOR_BYTES && warm && exceeds_caches(bytes + bytes / 4);
  const auto whole = [&](const auto& planes, int64_t element) {
    return past && run * element % SEGOPS_VECTOR_BYTES == 0 && begins_lines(planes, element, of_pixels) &&
           (!of_pixels || planes.stride_w * element % SEGOPS_VECTOR_BYTES == 0);
  };
  const PastCaches stores{whole(windows, sizeof(U)), whole(indices, 1)};
  using Writer = RunWriter<Visitor, U, kLanes>;
  for_each_band(windows, of_pixels, windows.height, bytes, parallel, [&](const Band& b) {
    const auto vector = [](const U* p) { return *reinterpret_cast<const Unaligned<U, kLanes>*>(p); };
    for (int64_t y = b.begin; y < b.end; ++y) {
      const U *const upper = row_of<const U>(image, b, 2 * y), *const lower = upper + image.stride_h;
      U* const to = row_of<U>(windows, b, y);
      uint8_t* const to_indices = Visitor::kIndices ? row_of<uint8_t>(indices, b, y) : nullptr;
      if (!of_pixels) {
        visit_run(
            run, Writer(to, to_indices, stores), [&](int64_t x) { return start(b, y, x, 0); },
            [&](int number, int64_t x) {
              const U *const first = (number < 2 ? upper : lower) + 2 * x, *const second = first + kLanes;
              if (number % 2 == 0) fetch_ahead(first), fetch_ahead(second);
              return every_other<U, kLanes>(vector(first), vector(second), number % 2);
            });
        continue;
      }
      for (int64_t x = 0; x < windows.width; ++x)
        visit_run(
            run, Writer(to + x * windows.stride_w, to_indices + x * indices.stride_w, stores),
            [&](int64_t c) { return start(b, y, x, c); },
            [&](int number, int64_t c) {
              const U* const first = (number < 2 ? upper : lower) + (2 * x + number % 2) * image.stride_w + c;
              fetch_ahead(first);
              return vector(first);
            });
    }
  });
}

// Calls visit(lanes, of pixels?) with the widest vectors that `windows` fill; false if they fill none.
template <class U, class Visit>
bool in_pairs(const Planes& windows, bool dense, bool last, const Visit& visit) {
  constexpr int kNative = kNativeLanes<U>, kLeast = 16 / sizeof(U);
  if (dense && windows.width >= kNative) return visit(Lanes<kNative>{}, false), true;
  if (dense && windows.width >= kLeast) return visit(Lanes<kLeast>{}, false), true;
  if (last && windows.channels >= kNative) return visit(Lanes<kNative>{}, true), true;
  if (last && windows.channels >= kLeast) return visit(Lanes<kLeast>{}, true), true;
  return false;
}

// Whether pooling was of pairs, and is done.
template <class Element>
bool pool_pairs(const MaxPool& p, const Parallel& parallel) {
  using U = typename Compared<Element>::Memory;
  using Number = typename TapNumber<sizeof(U)>::type;
  if (!are_pairs(p.input, p.output, p.vertical, p.horizontal)) return false;
  const bool dense = p.input.stride_w == 1 && p.output.stride_w == 1 && p.indices.stride_w == 1;
  const bool last = both_channels_last(p.input, p.output) && p.indices.stride_c == 1;
  return in_pairs<U>(p.output, dense, last, [&](auto lanes, bool of_pixels) {
    constexpr int kLanes = decltype(lanes)::kValue;
    visit_pairs<PoolVisitor<Element, kLanes>, U, kLanes>(
        p.input, p.output, p.indices, of_pixels, p.warm, parallel,
        [](const Band&, int64_t, int64_t, int64_t) { return Vec<Number, kLanes>{}; });
  });
}

// The same of the transpose of unpooling.
template <class U>
bool pick_pairs(const MaxUnpoolBackward& p, const Parallel& parallel) {
  using Number = typename TapNumber<sizeof(U)>::type;
  if (!are_pairs(p.grad_output, p.grad_input, p.vertical, p.horizontal)) return false;
  const bool dense = p.grad_output.stride_w == 1 && p.grad_input.stride_w == 1 && p.indices.stride_w == 1;
  const bool last = both_channels_last(p.grad_output, p.grad_input) && p.indices.stride_c == 1;
  return in_pairs<U>(p.grad_input, dense, last, [&](auto lanes, bool of_pixels) {
    constexpr int kLanes = decltype(lanes)::kValue;
    visit_pairs<PickVisitor<U, kLanes>, U, kLanes>(p.grad_output, p.grad_input, PlanesOf<uint8_t>{}, of_pixels, p.warm,
                                                   parallel, [&](const Band& b, int64_t y, int64_t x, int64_t c) {
                                                     const uint8_t* const from =
                                                         row_of<const uint8_t>(p.indices, b, y) + x * p.indices.stride_w + c;
                                                     fetch_ahead(from, 1024);
                                                     return load_indices<Number, kLanes>(from);
                                                   });
  });
}

}  // namespace
}  // namespace segops::SEGOPS_ISA
