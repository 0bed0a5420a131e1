// How the kernels of max_unpool.h cut their work, and where they note bad indices. Compiled into every ISA namespace.
#pragma once
#include "segops/max_unpool.h"
#include "vec.h"
#include "work.h"

namespace segops::SEGOPS_ISA {
namespace {

// Rows [begin, end) of channels [c, c + channels) of image n, for one worker: of one channel where rows are dense, of all
// where pixels are.
struct Band {
  int64_t n, c, channels, begin, end;
  int32_t worker;
};

// Whether rows may be split by stride: that takes memory in proportion to strides and windows, however small the image.
inline bool may_split(const WindowAxis& vertical, const WindowAxis& horizontal) {
  constexpr int64_t kMost = 1024;
  const auto small = [&](const WindowAxis& axis) {
    return axis.stride <= kMost && (axis.kernel - 1) * axis.dilation <= kMost;
  };
  return small(vertical) && small(horizontal);
}

template <class P, class Q>
bool both_channels_last(const P& p, const Q& q) {
  return p.stride_w != 1 && q.stride_w != 1 && p.stride_c == 1 && q.stride_c == 1;
}

// Bytes of an item of work, of `all`: more of a large image, each item of which lets the memory begin anew.
inline int64_t item_bytes(int64_t all) {
  constexpr int64_t kLeast = 128 << 10, kMost = 1 << 20, kItems = 128;
  return all < kItems * kLeast ? kLeast : all > kItems * kMost ? kMost : all / kItems;
}

// Calls body(band) for all `rows` of every plane of `of`, of which `bytes` in all are touched. Stores past the caches are
// done when it returns.
template <class Body>
void for_each_band(const Planes& of, bool together, int64_t rows, int64_t bytes, const Parallel& parallel,
                   const Body& body) {
  const int64_t channels = together ? of.channels : 1, groups = together ? 1 : of.channels;
  const int64_t all = of.batch * groups * rows;
  if (all == 0 || channels == 0) return;
  const int64_t row_bytes = bytes / all + 1, item = item_bytes(bytes),
                rows_per_item = row_bytes < item ? item / row_bytes : 1;
  for_each_item(parallel, (all + rows_per_item - 1) / rows_per_item, false, [&](int64_t item, int32_t worker) {
    const int64_t begin = item * rows_per_item, end = begin + rows_per_item < all ? begin + rows_per_item : all;
    for (int64_t i = begin; i < end;) {
      const int64_t plane = i / rows, first = i % rows, last = first + end - i < rows ? first + end - i : rows;
      body(Band{plane / groups, plane % groups, channels, first, last, worker});
      i += last - first;
    }
    streaming_done();
  });
}

// Where rows of a band begin.
template <class Element, class P>
SEGOPS_INLINE Element* row_of(const P& planes, const Band& band, int64_t row) {
  return static_cast<Element*>(planes.data) + band.n * planes.stride_n + band.c * planes.stride_c + row * planes.stride_h;
}

// The first of the output's rows (columns) that go with window row (column) `window`: each goes with one of them.
SEGOPS_INLINE int64_t first_owned(const WindowAxis& axis, int64_t window, int64_t windows, int64_t size) {
  if (window <= 0) return 0;
  const int64_t first = window * axis.stride - axis.padding;
  return window >= windows || first > size ? size : first > 0 ? first : 0;
}

// Every worker's own record of bad indices. The first one is that of the lowest position: no order of items matters.
class BadIndices {
 public:
  explicit BadIndices(const Parallel& parallel) : workers_(parallel.workers), records_(workers_ * kStride) {}
  bool allocated() const { return records_.data != nullptr; }

  void note(int32_t worker, int64_t position, int64_t value) const {
    BadData& record = of(worker);
    if (record.count++ == 0 || position < record.position) {
      record.position = position;
      record.value = value;
    }
  }

  void report(BadData* out) const {
    if (!out) return;
    BadData all{};
    for (int32_t worker = 0; worker < workers_; ++worker) {
      const BadData& record = of(worker);
      if (record.count == 0) continue;
      if (all.count == 0 || record.position < all.position) {
        all.position = record.position;
        all.value = record.value;
      }
      all.count += record.count;
    }
    *out = all;
  }

 private:
  static constexpr int64_t kStride = 64;  // a cache line
  BadData& of(int32_t worker) const { return *reinterpret_cast<BadData*>(records_.data + worker * kStride); }

  int32_t workers_;
  Memory records_;
};

}  // namespace
}  // namespace segops::SEGOPS_ISA
