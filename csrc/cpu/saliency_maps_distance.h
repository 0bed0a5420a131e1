// The exact Euclidean distance of each pixel from the foreground, and where the nearest foreground pixel is: first within
// the column, for all columns at once, then along the row.
//
// The second step is the least g(x + d)^2 + d^2 of steps d to either side, and it is found by trying: a step costs five
// instructions for a vector of pixels, and none is tried that is as long as the distances found so far.
#pragma once
#include "segops/saliency_maps.h"
#include "vec.h"

namespace segops::SEGOPS_ISA {

constexpr int kBytes = SEGOPS_VECTOR_BYTES, kSquares = SEGOPS_VECTOR_BYTES / 2;
using Byte = Vec<uint8_t, kBytes>;
using Square = Vec<uint16_t, kSquares>;

// Rows of scratch are whole vectors of any instruction set.
constexpr int64_t kRowUnit = 64;
constexpr int64_t row_pitch(int64_t width) { return (width + kRowUnit - 1) / kRowUnit * kRowUnit; }
// Before and behind a row of squares: as far as a step goes.
constexpr int64_t kMargin = kSaliencyReach + 1;

template <class V, class T>
SEGOPS_INLINE V load_all(const T* p) {
  return *reinterpret_cast<const Unaligned<T, sizeof(V) / sizeof(T)>*>(p);
}
template <class V, class T>
SEGOPS_INLINE void store_all(T* p, V v) {
  *reinterpret_cast<Unaligned<T, sizeof(V) / sizeof(T)>*>(p) = v;
}

// A distance and 1, up to kSaliencyReach.
SEGOPS_INLINE Byte one_more(Byte distance) {
  return distance - reinterpret_cast<Byte>(distance != static_cast<uint8_t>(kSaliencyReach));
}

SEGOPS_INLINE Square lesser(Square a, Square b) { return a < b ? a : b; }

SEGOPS_INLINE bool any(Square condition) {
  const auto words = reinterpret_cast<Vec<int64_t, SEGOPS_VECTOR_BYTES / 8>>(condition);
  int64_t all = 0;
  for (int i = 0; i < SEGOPS_VECTOR_BYTES / 8; ++i) all |= words[i];
  return all != 0;
}

// Pixels of the foreground, and the sums of their rows and of their columns.
struct Foreground {
  int64_t pixels = 0, rows = 0, columns = 0;
};

// The distance of each pixel from the foreground above it in its column, 0 on the foreground and nowhere else: [H, pitch],
// where what is behind the width is background. `in_column` is scratch of `pitch` elements.
inline Foreground distances_from_above(const uint8_t* target, int64_t height, int64_t width, uint8_t* distance,
                                       int32_t* in_column) {
  const int64_t pitch = row_pitch(width);
  Foreground found;
  __builtin_memset(in_column, 0, static_cast<size_t>(pitch) * sizeof(int32_t));
  for (int64_t y = 0; y < height; ++y, target += width, distance += pitch) {
    for (int64_t x = 0; x < pitch; x += kBytes) {
      Byte label{};
      if (x + kBytes <= width)
        label = load_all<Byte>(target + x);
      else if (x < width)
        __builtin_memcpy(&label, target + x, static_cast<size_t>(width - x));
      const Byte above = y > 0 ? load_all<Byte>(distance - pitch + x) : ~Byte{};
      store_all(distance + x, one_more(above) & reinterpret_cast<Byte>(label == 0));
    }
    int32_t in_row = 0;
    for (int64_t x = 0; x < pitch; ++x) {
      const int32_t here = distance[x] == 0;
      in_column[x] += here;
      in_row += here;
    }
    found.pixels += in_row;
    found.rows += in_row * y;
  }
  for (int64_t x = 0; x < width; ++x) found.columns += in_column[x] * x;
  return found;
}

// Turns a row of distances from above into those in the column, given those from below in the row under it, and these into
// those of this row; `squares` gets their squares, between margins of kMargin elements that are all ones.
inline void distances_in_column(int64_t pitch, uint8_t* distance, uint8_t* below, uint16_t* squares) {
  for (int64_t x = 0; x < pitch; x += kBytes) {
    const Byte above = load_all<Byte>(distance + x);
    const Byte here = one_more(load_all<Byte>(below + x)) & reinterpret_cast<Byte>(above != 0);
    store_all(below + x, here);
    store_all(distance + x, here < above ? here : above);
  }
  for (int64_t x = 0; x < pitch; ++x) squares[x] = static_cast<uint16_t>(distance[x] * distance[x]);
}

// The squares of the distances of a row, [pitch].
inline void squared_distances(const uint16_t* squares, int64_t pitch, uint16_t* nearest) {
  constexpr int64_t kSteps = 5;  // between two looks at what was found
  static_assert(kSaliencyReach % kSteps == 0 && kSaliencyReach * kSaliencyReach <= UINT16_MAX);
  for (int64_t x = 0; x < pitch; x += kSquares) {
    const uint16_t* const at = squares + x;
    Square best = load_all<Square>(at);
    for (int64_t step = 1; step <= kSaliencyReach; step += kSteps) {
      if (!any(reinterpret_cast<Square>(best > static_cast<uint16_t>(step * step)))) break;
      for (int64_t d = step; d < step + kSteps; ++d) {
        const uint16_t raised = static_cast<uint16_t>(d * d);
        const Square other = lesser(load_all<Square>(at - d), load_all<Square>(at + d));
        // What would pass 16 bits stays beyond all distances.
        best = lesser(best, lesser(other, Square{} + static_cast<uint16_t>(UINT16_MAX - raised)) + raised);
      }
    }
    store_all(nearest + x, best);
  }
}

struct Place {
  int64_t row, column;
};

// The nearest foreground pixel, of equally near ones the first by rows, of the pixel (y, x), whose squared distance is
// known and below 25. `distance` is the row of distances in the column.
inline Place nearest_foreground(const uint8_t* distance, int64_t pitch, int64_t height, int64_t width, int64_t y, int64_t x,
                                int64_t square) {
  constexpr int64_t kNear = 4;
  Place found{height, 0};
  const int64_t last = x + kNear < width ? x + kNear : width - 1;
  for (int64_t column = x < kNear ? 0 : x - kNear; column <= last; ++column) {
    const int64_t away = distance[column];
    if (away * away + (column - x) * (column - x) != square) continue;
    const bool above = away <= y && distance[column - away * pitch] == 0;
    const int64_t row = above ? y - away : y + away;
    if (row < found.row) found = {row, column};
  }
  return found;
}

}  // namespace segops::SEGOPS_ISA
