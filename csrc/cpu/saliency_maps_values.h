// The values of a saliency map, and what is counted and summed of them by block, foreground and level.
//
// A map of bytes has 256 values: one histogram for each block tells all. A map of numbers is read by rows, in vectors.
#pragma once
#include "saliency_maps_distance.h"

namespace segops::SEGOPS_ISA {

constexpr int kReals = kNativeLanes<double>;
using Real = Vec<double, kReals>;
using RealBits = Vec<int64_t, kReals>;

SEGOPS_INLINE double sum_of(Real v) {
  double total = 0;
  for (int i = 0; i < kReals; ++i) total += v[i];
  return total;
}

SEGOPS_INLINE RealBits on_foreground(const uint8_t* distance) { return load_bytes<kReals, int64_t>(distance) == 0; }

// Where the lower and the right blocks begin: behind the centre of the foreground, or of the first pixel if there is none.
struct Centre {
  int64_t row, column;
};

inline Centre centre_of(const Foreground& f) {
  const double count = static_cast<double>(f.pixels > 0 ? f.pixels : 1);
  return {static_cast<int64_t>(__builtin_rint(static_cast<double>(f.rows) / count)) + 1,
          static_cast<int64_t>(__builtin_rint(static_cast<double>(f.columns) / count)) + 1};
}

// A value is (number - low) / range.
struct Stretch {
  double low, range;
};

inline Stretch stretch_of(double low, double high, bool normalize) {
  return normalize && low != high ? Stretch{low, high - low} : Stretch{0, 1};
}

// One map with its foreground.
struct Frame {
  int64_t height, width, pitch;
  const uint8_t* distance;  // [H, pitch], 0 on the foreground
  Centre centre;
  bool normalize;
  double* values;   // scratch [pitch]
  int32_t* places;  // scratch [pitch]

  // Calls body(side, first, end) for the columns of the left and of the right blocks that are not empty.
  template <class Body>
  SEGOPS_MEMBER void for_each_side(const Body& body) const {
    const int64_t middle = centre.column < width ? centre.column : width;
    body(0, 0, middle);
    if (middle < width) body(1, middle, width);
  }
  int64_t first_of(int block) const {
    const int64_t y = block & 2 ? centre.row : 0, x = block & 1 ? centre.column : 0;
    return (y < height ? y : height - 1) * width + (x < width ? x : width - 1);
  }
};

// Counters of places in [0, kPlaces). Neighbours mostly share a place, and an addition to memory waits for the one before
// it: copies in turn.
template <int kPlaces>
class Histogram {
 public:
  SEGOPS_MEMBER void add(const int32_t* place, int64_t size) {
    int64_t i = 0;
    for (; i + kCopies <= size; i += kCopies)
      for (int k = 0; k < kCopies; ++k) ++counts_[k][place[i + k]];
    for (; i < size; ++i) ++counts_[0][place[i]];
  }
  int64_t of(int place) const {
    int64_t total = 0;
    for (int k = 0; k < kCopies; ++k) total += counts_[k][place];
    return total;
  }

 private:
  static constexpr int kCopies = 4;
  uint32_t counts_[kCopies][kPlaces] = {};
};

// Adds the pixels of each level to the levels at or below it, which come later.
inline void accumulate_levels(SaliencyObserved& seen) {
  for (int i = 1; i < kSaliencyLevels; ++i) {
    seen.misses[i] += seen.misses[i - 1];
    seen.hits[i] += seen.hits[i - 1];
  }
}

class ByteMap {
 public:
  explicit ByteMap(const void* data) : data_(static_cast<const uint8_t*>(data)) {}

  // Fills what is known without the distances; false if a value is outside [0, 1].
  bool observe(const Frame& frame, SaliencyObserved& seen) {
    Histogram<kPlaces> upper[2], lower[2];
    for (int64_t y = 0; y < frame.height; ++y) {
      const uint8_t *const row = data_ + y * frame.width, *const distance = frame.distance + y * frame.pitch;
      for (int64_t x = 0; x < frame.width; ++x) frame.places[x] = row[x] | (distance[x] == 0 ? kBytes : 0);
      Histogram<kPlaces>* const half = y < frame.centre.row ? upper : lower;
      frame.for_each_side([&](int side, int64_t first, int64_t end) { half[side].add(frame.places + first, end - first); });
    }
    double counts[4][kPlaces];
    for (int block = 0; block < 4; ++block)
      for (int i = 0; i < kPlaces; ++i) counts[block][i] = static_cast<double>((block & 2 ? lower : upper)[block & 1].of(i));
    const auto occurs = [&](int byte) {
      double pixels = 0;
      for (int block = 0; block < 4; ++block) pixels += counts[block][byte] + counts[block][byte + kBytes];
      return pixels > 0;
    };
    int low = 0, high = kBytes - 1;
    while (!occurs(low)) ++low;
    while (!occurs(high)) --high;
    // Divided before the least is taken away: a level may depend on the rounding.
    const Stretch s = stretch_of(low / 255., high / 255., frame.normalize);
    for (int i = 0; i < kBytes; ++i) values_[i] = (i / 255. - s.low) / s.range;

    for (int block = 0; block < 4; ++block) {
      seen.first[block] = at(frame.first_of(block));
      for (int i = 0; i < kPlaces; ++i) {
        const int foreground = i / kBytes, byte = i % kBytes;
        const double count = counts[block][i], value = values_[byte], shifted = value - seen.first[block];
        if (count == 0) continue;
        seen.counts[block][foreground] += count;
        seen.total[block][foreground] += count * shifted;
        seen.square[block][foreground] += count * (shifted * shifted);
        seen.mean += count * value;
        double* const levels = foreground ? seen.hits : seen.misses;
        levels[kSaliencyLevels - 1 - static_cast<int>(value * 255)] += count;
      }
    }
    seen.mean /= seen.pixels;
    accumulate_levels(seen);
    return true;
  }

  SEGOPS_MEMBER void read(int64_t first, int64_t size, double* to) const {
    for (int64_t i = 0; i < size; ++i) to[i] = values_[data_[first + i]];
  }
  double at(int64_t i) const { return values_[data_[i]]; }

 private:
  static constexpr int kBytes = 256, kPlaces = 2 * kBytes;
  const uint8_t* const data_;
  double values_[kBytes];
};

template <class In>
class NumberMap {
 public:
  explicit NumberMap(const void* data) : data_(static_cast<const In*>(data)) {}

  // As of ByteMap.
  bool observe(const Frame& frame, SaliencyObserved& seen) {
    if (!find_stretch(frame)) return false;
    Histogram<2 * kSaliencyLevels> levels;
    Sums sums[4];
    Real all{};
    for (int block = 0; block < 4; ++block) seen.first[block] = at(frame.first_of(block));
    for (int64_t y = 0; y < frame.height; ++y) {
      const uint8_t* const distance = frame.distance + y * frame.pitch;
      double* const values = frame.values;
      read(y * frame.width, frame.width, values);
      for (int64_t x = frame.width; x < frame.width + kReals; ++x) values[x] = 0;
      for (int64_t x = 0; x < frame.width; x += kReals) all += load<kReals>(values + x);
      find_levels(frame, y * frame.width, distance);
      levels.add(frame.places, frame.width);
      const int half = y < frame.centre.row ? 0 : 2;
      frame.for_each_side([&](int side, int64_t first, int64_t end) {
        sums[half + side].add(values + first, distance + first, end - first, seen.first[half + side]);
      });
    }
    seen.mean = sum_of(all) / seen.pixels;
    for (int block = 0; block < 4; ++block) sums[block].store(seen, block);
    for (int i = 0; i < kSaliencyLevels; ++i) {
      seen.misses[kSaliencyLevels - 1 - i] = static_cast<double>(levels.of(i));
      seen.hits[kSaliencyLevels - 1 - i] = static_cast<double>(levels.of(i + kSaliencyLevels));
    }
    accumulate_levels(seen);
    return true;
  }

  SEGOPS_MEMBER void read(int64_t first, int64_t size, double* to) const {
    const In* const from = data_ + first;
    int64_t i = 0;
    for (; i + kReals <= size; i += kReals) store<kReals>(to + i, (load_reals(from + i) - stretch_.low) / stretch_.range);
    for (; i < size; ++i) to[i] = (number(from[i]) - stretch_.low) / stretch_.range;
  }
  double at(int64_t i) const { return (number(data_[i]) - stretch_.low) / stretch_.range; }

 private:
  // Sums of one block.
  struct Sums {
    Real counts[2]{}, total[2]{}, square[2]{};

    SEGOPS_MEMBER void add(const double* values, const uint8_t* distance, int64_t size, double first) {
      RealBits lane;
      for (int i = 0; i < kReals; ++i) lane[i] = i;
      for (int64_t x = 0; x < size; x += kReals) {
        const RealBits inside = lane < size - x, here = on_foreground(distance + x);
        const Real shifted = load<kReals>(values + x) - first, one = broadcast<kReals>(1.);
        for (int k = 0; k < 2; ++k) {
          const RealBits counts_here = inside & (k ? here : ~here);
          const Real v = counts_here ? shifted : Real{};
          counts[k] += counts_here ? one : Real{};
          total[k] += v;
          square[k] += v * v;
        }
      }
    }
    void store(SaliencyObserved& seen, int block) const {
      for (int k = 0; k < 2; ++k) {
        seen.counts[block][k] = sum_of(counts[k]);
        seen.total[block][k] = sum_of(total[k]);
        seen.square[block][k] = sum_of(square[k]);
      }
    }
  };

  static double number(const double x) { return x; }
  static double number(const float x) { return x; }
  template <class Half>
  static double number(const Half& x) {
    return load<1, float>(&x)[0];
  }
  SEGOPS_MEMBER static Real load_reals(const In* from) {
    if constexpr (sizeof(In) == sizeof(double))
      return load<kReals>(from);
    else
      return __builtin_convertvector((load<kReals, float>(from)), Real);
  }

  // From what is least and largest; false if that, or NaN, is outside [0, 1].
  bool find_stretch(const Frame& frame) {
    const int64_t size = frame.height * frame.width;
    double low = number(data_[0]), high = low;
    bool good = true;
    const auto see = [&](double x) {
      good = good && x >= 0 && x <= 1;
      low = x < low ? x : low;
      high = x > high ? x : high;
    };
    Real least = broadcast<kReals>(low), most = least;
    RealBits within = ~RealBits{};
    int64_t i = 0;
    for (; i + kReals <= size; i += kReals) {
      const Real x = load_reals(data_ + i);
      within &= (x >= 0.) & (x <= 1.);
      least = x < least ? x : least;
      most = x > most ? x : most;
    }
    for (; i < size; ++i) see(number(data_[i]));
    for (int k = 0; k < kReals; ++k) {
      see(least[k]);
      see(most[k]);
      good = good && within[k];
    }
    stretch_ = stretch_of(low, high, frame.normalize);
    return good;
  }

  // The places of a row in the histogram: its levels, and behind them those of the foreground.
  SEGOPS_MEMBER void find_levels(const Frame& frame, int64_t first, const uint8_t* distance) const {
    int32_t* const places = frame.places;
    bool single = false;
    if constexpr (sizeof(In) == sizeof(float)) {
      // In the precision of the map itself.
      single = !frame.normalize;
      if (single)
        for (int64_t x = 0; x < frame.width; ++x) places[x] = static_cast<int32_t>(data_[first + x] * 255.f);
    }
    if (!single)
      for (int64_t x = 0; x < frame.width; ++x) places[x] = static_cast<int32_t>(frame.values[x] * 255.);
    for (int64_t x = 0; x < frame.width; ++x) places[x] += distance[x] == 0 ? kSaliencyLevels : 0;
  }

  const In* const data_;
  Stretch stretch_{0, 1};
};

}  // namespace segops::SEGOPS_ISA
