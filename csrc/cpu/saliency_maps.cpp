// saliency_maps on the CPU: a map is read twice, downwards for what is counted and summed by block and level, upwards for
// the errors that the distance from the foreground weighs. Maps are shared out to the threads.
#include "segops/saliency_maps.h"

#include "isa.h"
#include "parallel.h"
#include "saliency_maps_distance.h"
#include "saliency_maps_values.h"
#include "vec.h"
#include "work.h"

namespace segops::SEGOPS_ISA {
namespace {

constexpr int64_t kSerialPixels = 1 << 15;
// The Gaussian of Margolin et al., "How to evaluate foreground maps?" (CVPR 2014): 7 x 7 pixels, sigma 5.
constexpr int kHalf = 3, kKernel = 2 * kHalf + 1;
constexpr double kSigma = 5;
// The square of the largest distance from the foreground within its reach.
constexpr int kNearSquare = 2 * kHalf * kHalf;

// What one worker needs for one map after the other.
struct Scratch {
  static constexpr int64_t kBefore = 8, kBehind = 24;  // zeros beside a row, which the kernel sees

  int64_t pitch, stride;  // of rows of bytes, and of rows of doubles with what is before and behind them
  double *rows, *nothing, *smoothed, *values, *weights;
  int32_t* places;
  uint16_t *squares, *nearest;
  uint8_t *below, *distance;

  static int64_t bytes(int64_t height, int64_t width) {
    const int64_t pitch = row_pitch(width);
    return 8 * ((kKernel + 2) * stride_of(pitch) + 2 * (pitch + kRowUnit)) + 4 * pitch + 2 * (2 * pitch + 2 * kMargin) +
           pitch * (height + 1) + kRowUnit;
  }
  Scratch(char* memory, int64_t width) : pitch(row_pitch(width)), stride(stride_of(pitch)) {
    rows = reinterpret_cast<double*>(memory);
    nothing = rows + kKernel * stride;
    smoothed = nothing + stride;
    values = smoothed + stride;
    weights = values + pitch + kRowUnit;
    places = reinterpret_cast<int32_t*>(weights + pitch + kRowUnit);
    squares = reinterpret_cast<uint16_t*>(places + pitch) + kMargin;
    nearest = squares + pitch + kMargin;
    below = reinterpret_cast<uint8_t*>(nearest + pitch);
    distance = below + pitch;
    __builtin_memset(rows, 0, static_cast<size_t>(values - rows) * sizeof(double));
    __builtin_memset(squares - kMargin, 0xff, static_cast<size_t>(pitch + 2 * kMargin) * sizeof(uint16_t));
  }

 private:
  static int64_t stride_of(int64_t pitch) { return kBefore + pitch + kBehind; }
};

// The sums of the errors of one map, by rows from the last to the first.
template <class Map>
class Errors {
 public:
  Errors(const Frame& frame, const Scratch& scratch, const Map& map, const double* nearness)
      : frame_(frame), scratch_(scratch), map_(map), nearness_(nearness) {
    double sum = 0;
    for (int i = -kHalf; i <= kHalf; ++i) sum += __builtin_exp(-0.5 * (i / kSigma) * (i / kSigma));
    for (int i = 0; i <= kHalf; ++i) kernel_[i] = __builtin_exp(-0.5 * (i / kSigma) * (i / kSigma)) / sum;
  }

  void add(SaliencyObserved& seen) {
    threshold_ = seen.mean * 2 < 1 ? seen.mean * 2 : 1;
    __builtin_memset(scratch_.below, 0xff, static_cast<size_t>(scratch_.pitch));
    for (int64_t y = frame_.height - 1; y >= -kHalf; --y) {
      if (y >= 0) weigh(y);
      if (y + kHalf < frame_.height) smooth(y + kHalf);
    }
    seen.lost = sum_of(lost_);
    seen.weighted = sum_of(weighted_);
    for (int k = 0; k < 2; ++k) seen.above[k] = sum_of(above_[k]);
  }

 private:
  // A row of errors as the kernel sees them, or one of zeros where the map has none.
  double* row(int64_t y) const {
    if (y < 0 || y >= frame_.height) return scratch_.nothing + Scratch::kBefore;
    return scratch_.rows + y % kKernel * scratch_.stride + Scratch::kBefore;
  }
  uint8_t* distance(int64_t y) const { return scratch_.distance + y * scratch_.pitch; }

  void weigh(int64_t y) {
    const int64_t width = frame_.width;
    uint8_t* const in_column = distance(y);
    distances_in_column(scratch_.pitch, in_column, scratch_.below, scratch_.squares);
    squared_distances(scratch_.squares, scratch_.pitch, scratch_.nearest);
    double *const values = scratch_.values, *const weights = scratch_.weights, *const seen = row(y);
    map_.read(y * width, width, values);
    for (int64_t x = 0; x < width; ++x) weights[x] = nearness_[scratch_.nearest[x]];
    for (int64_t x = width; x < width + kReals; ++x) {
      values[x] = -1;  // above nothing
      weights[x] = 0;
    }
    const Real one = broadcast<kReals>(1.), zero{};
    for (int64_t x = 0; x < width; x += kReals) {
      const RealBits here = on_foreground(in_column + x);
      const Real value = load<kReals>(values + x), missing = one - value;
      const RealBits above = value >= threshold_;
      above_[0] += above & ~here ? one : zero;
      above_[1] += above & here ? one : zero;
      weighted_ += (here ? missing : value) * load<kReals>(weights + x);
      store<kReals>(seen + x, here ? missing : zero);
    }
    // The kernel sees, instead of a pixel off the foreground, the foreground pixel that is nearest to it.
    for (int64_t x = 0; x < width; ++x) {
      const int64_t square = scratch_.nearest[x];
      if (square == 0 || square > kNearSquare) continue;
      const Place at = nearest_foreground(in_column, scratch_.pitch, frame_.height, width, y, x, square);
      seen[x] = 1 - map_.at(at.row * width + at.column);
    }
  }

  void smooth(int64_t y) {
    const uint8_t* const in_column = distance(y);
    int64_t first = 0, end = frame_.width;
    while (first < end && in_column[first] != 0) ++first;
    while (first < end && in_column[end - 1] != 0) --end;
    if (first == end) return;
    first = first / kReals * kReals;  // no vector reaches into another row
    const double* rows[kKernel];
    for (int i = 0; i < kKernel; ++i) rows[i] = row(y + i - kHalf);
    double* const smoothed = scratch_.smoothed + Scratch::kBefore;
    for (int64_t x = first - kHalf; x < end + kHalf; x += kReals) {
      Real sum = load<kReals>(rows[kHalf] + x) * kernel_[0];
      for (int i = 1; i <= kHalf; ++i)
        sum += (load<kReals>(rows[kHalf - i] + x) + load<kReals>(rows[kHalf + i] + x)) * kernel_[i];
      store<kReals>(smoothed + x, sum);
    }
    for (int64_t x = first; x < end; x += kReals) {
      Real sum = load<kReals>(smoothed + x) * kernel_[0];
      for (int i = 1; i <= kHalf; ++i) sum += (load<kReals>(smoothed + x - i) + load<kReals>(smoothed + x + i)) * kernel_[i];
      const Real error = load<kReals>(rows[kHalf] + x), least = sum < error ? sum : error;
      lost_ += on_foreground(in_column + x) ? least : Real{};
    }
  }

  const Frame& frame_;
  const Scratch& scratch_;
  const Map& map_;
  const double* const nearness_;
  double kernel_[kHalf + 1], threshold_ = 0;
  Real lost_{}, weighted_{}, above_[2]{};
};

template <class Map>
void observe(const SaliencyMaps& p, const void* prediction, const uint8_t* target, const Scratch& scratch,
             SaliencyObserved& seen) {
  seen = SaliencyObserved{};
  const Foreground foreground = distances_from_above(target, p.height, p.width, scratch.distance, scratch.places);
  const Frame frame{p.height,    p.width,        scratch.pitch, scratch.distance, centre_of(foreground),
                    p.normalize, scratch.values, scratch.places};
  Map map(prediction);
  seen.pixels = static_cast<double>(p.height * p.width);
  if (!map.observe(frame, seen)) {
    seen = SaliencyObserved{};
    seen.bad = 1;
    return;
  }
  Errors<Map>(frame, scratch, map, p.nearness).add(seen);
}

template <class Map, class In>
Status observe_all(const SaliencyMaps& p, const Parallel& parallel) {
  const int64_t pixels = p.height * p.width, bytes = Scratch::bytes(p.height, p.width) / 64 * 64 + 64;
  Parallel few = parallel;
  if (p.maps < few.workers) few.workers = static_cast<int32_t>(p.maps > 0 ? p.maps : 1);
  const Memory memory(few.workers * bytes, false);
  if (!memory.data) return Status::out_of_memory;
  for_each_item(few, p.maps, p.maps * pixels < kSerialPixels, [&](int64_t i, int32_t worker) {
    const Scratch scratch(memory.data + worker * bytes, p.width);
    observe<Map>(p, static_cast<const In*>(p.prediction) + i * pixels, p.target + i * pixels, scratch, p.observed[i]);
  });
  return Status::ok;
}

}  // namespace

Status saliency_maps(const SaliencyMaps& p, const Parallel& parallel) {
  switch (p.prediction_dtype) {
    case Dtype::uint8: return observe_all<ByteMap, uint8_t>(p, parallel);
    case Dtype::float32: return observe_all<NumberMap<float>, float>(p, parallel);
    case Dtype::float64: return observe_all<NumberMap<double>, double>(p, parallel);
    case Dtype::bfloat16: return observe_all<NumberMap<BFloat16>, BFloat16>(p, parallel);
    case Dtype::float16: return observe_all<NumberMap<Float16>, Float16>(p, parallel);
    default: return Status::unsupported;
  }
}

}  // namespace segops::SEGOPS_ISA

#ifdef SEGOPS_ISA_IS_BASELINE
SEGOPS_LAUNCHER(saliency_maps, SaliencyMaps)
#endif
