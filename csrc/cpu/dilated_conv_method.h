// Which convolutions go through Winograd's algorithm on a CPU: the rule that the binding asks; and weights that are kept as
// the algorithm multiplies by them. Free of torch and the STL.
#pragma once
#include "segops/dilated_conv.h"

namespace segops {

enum class ConvMethod : int32_t { aten, winograd2, winograd4 };

inline bool winograd_applies(const ConvWindow& w, int64_t groups) {
  return w.kernel_h == 3 && w.kernel_w == 3 && w.stride_h == 1 && w.stride_w == 1 && groups == 1;
}

// The sizes that a convolution costs by.
struct ConvSize {
  int64_t batch, inputs, outputs;  // channels
  int64_t height, width;           // of the output
};

// Tiles of m outputs along an axis: those of every phase of its dilation.
inline int64_t winograd_tiles(int64_t size, int64_t dilation, int64_t m) {
  const int64_t whole = size / dilation, longer = size % dilation;  // outputs of a phase, and phases with one more
  return (dilation - longer) * ((whole + m - 1) / m) + longer * ((whole + m) / m);
}

// Costs in multiply-adds of a matrix product at full speed, from profiles of large and small images: what a pixel of a
// channel, a tile of a channel and a weight cost besides.
constexpr double kProductCost = 1.15, kDirectCost = 1.05, kPixelCost = 30, kFixedCost = 16e6, kWorthIt = 0.9,
                 kChecksumCost = 100;

inline double direct_cost(const ConvSize& s) {
  const double pixels = static_cast<double>(s.batch * s.height * s.width);
  return pixels * (9. * static_cast<double>(s.inputs * s.outputs) * kDirectCost +
                   static_cast<double>(s.inputs + s.outputs) * kPixelCost);
}

inline double winograd_cost(const ConvSize& s, const ConvWindow& w, int64_t m, bool prepacked) {
  const int64_t inputs = (s.inputs + 15) / 16 * 16, outputs = (s.outputs + 15) / 16 * 16;
  const double tiles =
      static_cast<double>(s.batch * winograd_tiles(s.height, w.dilation_h, m) * winograd_tiles(s.width, w.dilation_w, m));
  const double points = static_cast<double>((m + 2) * (m + 2)), weights = static_cast<double>(inputs * outputs);
  const double per_tile = m == 2 ? 280 : 1100, per_weight = prepacked ? kChecksumCost : m == 2 ? 1500 : 4000;
  return tiles * (points * weights * kProductCost + static_cast<double>(inputs + outputs) * per_tile) +
         weights * per_weight + kFixedCost;
}

// What is there of a weight that was prepacked.
enum class Prepacked : int32_t { none, winograd2, winograd4 };

// `fast` permits F(4x4).
inline ConvMethod conv_method(Dtype dtype, const ConvWindow& w, int64_t groups, const ConvSize& s, bool fast,
                              Prepacked kept = Prepacked::none) {
  if (dtype == Dtype::float64 || !winograd_applies(w, groups)) return ConvMethod::aten;
  const double two = winograd_cost(s, w, 2, kept == Prepacked::winograd2),
               four = fast ? winograd_cost(s, w, 4, kept == Prepacked::winograd4) : two;
  if ((two < four ? two : four) > kWorthIt * direct_cost(s)) return ConvMethod::aten;
  return four < two ? ConvMethod::winograd4 : ConvMethod::winograd2;
}

// A weight transformed and packed for F(4x4) (fast) or F(2x2), kept beside it; a checksum of all of it at the end tells
// whether it is still the same.
struct DilatedConvPrepack {
  Dtype dtype;
  const void* weight;  // [outputs, inputs, 3, 3], contiguous
  int64_t inputs, outputs;
  bool fast;
  float* prepacked;
};

// A convolution by such a weight, which `fast` is for; Status::unsupported if it belongs to another weight, or to another
// instruction set.
struct DilatedConvPrepacked {
  DilatedConv conv;
  const float* prepacked;
};

constexpr int64_t kChecksumWords = 16, kPackedLine = 16;

// Channels are padded to 16; a line between points keeps them from sharing the sets of a cache.
inline int64_t winograd_weight_step(int64_t inputs, int64_t outputs) {
  return (inputs + 15) / 16 * 16 * ((outputs + 15) / 16 * 16) + kPackedLine;
}
inline int64_t winograd_packed_floats(int64_t inputs, int64_t outputs, bool fast) {
  return (fast ? 36 : 16) * winograd_weight_step(inputs, outputs);
}
// With the checksum, and a line that tells how it is laid out.
inline int64_t prepacked_floats(int64_t inputs, int64_t outputs, bool fast) {
  return winograd_packed_floats(inputs, outputs, fast) + kChecksumWords + kPackedLine;
}

}  // namespace segops
