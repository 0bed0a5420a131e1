// Which convolutions go through Winograd's algorithm on a CPU: the rule that the binding asks; and weights that are kept as
// the algorithm multiplies by them. Free of torch and the STL.
#pragma once
#include "segops/dilated_conv.h"

namespace segops {

// aten_last: ATen's convolution of a copy that is channels last. single: dilated_conv_single.h.
enum class ConvMethod : int32_t { aten, aten_last, winograd2, winograd4, single };

inline bool winograd_applies(const ConvWindow& w, int64_t groups) {
  return w.kernel_h == 3 && w.kernel_w == 3 && w.stride_h == 1 && w.stride_w == 1 && groups == 1;
}

inline bool is_single(const ConvWindow& w, int64_t groups, int64_t outputs) {
  return outputs == 1 && winograd_applies(w, groups);
}

// The sizes that a convolution costs by.
struct ConvSize {
  int64_t batch, inputs, outputs;  // channels
  int64_t height, width;           // of the output
  bool channels_last;
};

// Tiles of m outputs along an axis: those of every phase of its dilation.
inline int64_t winograd_tiles(int64_t size, int64_t dilation, int64_t m) {
  const int64_t whole = size / dilation, longer = size % dilation;  // outputs of a phase, and phases with one more
  return (dilation - longer) * ((whole + m - 1) / m) + longer * ((whole + m) / m);
}

// Outputs of an axis times the three taps, less those taps that lie beyond the image, which oneDNN leaves out.
inline double taps_inside(int64_t size, int64_t dilation, int64_t padding) {
  const int64_t input = size + 2 * (dilation - padding);
  int64_t inside = 0;
  for (int64_t tap = 0; tap < 3; ++tap) {
    const int64_t shift = tap * dilation - padding;
    const int64_t begin = shift < 0 ? -shift : 0, end = input - shift < size ? input - shift : size;
    if (begin < end) inside += end - begin;
  }
  return static_cast<double>(inside);
}

// Whether a convolution to one channel, and not the gradient of one, costs less by dilated_conv_single.h than by any other
// method: where its vectors, of pixels or of channels, are full.
inline bool single_is_best(const ConvWindow& w, int64_t groups, const ConvSize& s) {
  return is_single(w, groups, s.outputs) && (s.channels_last ? s.inputs : s.width) >= 16;
}

// Costs, of a call, of a multiply-add, of a pixel or tile of a channel, and of a weight; a unit is about 9 picoseconds.
struct ConvCost {
  double call, product, element, weight;
};

// ATen's convolution of planar images, of images that are channels last, and of planar ones copied to that and back.
struct AtenCosts {
  ConvCost planar, last, copied;
};

struct ConvCosts {
  ConvCost winograd2, winograd4;
  double kept2, kept4;    // of a weight that is kept, which is read and checked: estimates from a few times
  AtenCosts aten, small;  // of images that ATen keeps from oneDNN
  bool copies_by_cost;    // or by faster_as_copy
};

// Fitted to the times that 200 shapes of benchmarks/sweep_dilated_conv.py took by each method on one machine (Zen 4, two
// threads), before products left out padded channels: there, the method chosen took at most 1.16 times as long as the best
// of these methods. Of other shapes and machines that says less.
constexpr AtenCosts kAten512{{12e6, 0.695, 91.1, 380}, {13.2e6, 1.07, 60, 516}, {18.6e6, 0.882, 129, 1420}};
constexpr ConvCosts kAvx512{{4.17e6, 0.85, 170, 2400}, {5.18e6, 0.819, 493, 3240}, 300, 1100, kAten512, kAten512, false};

// Fitted to 3220 images (17 pairs of channels from 3 to 1024, sizes 5 to 257, dilations 1 to 16, batches of 1 and 2, both
// layouts) on another machine (Zen 1, two threads): there, the method chosen takes 1.025 times as long as the best on
// average and more than 1.6 times in one of a hundred cases; by the costs above these are 1.094 and 1.97. At the times of
// one thread, which were not fitted, 1.032 against 1.133 on average.
constexpr AtenCosts kAten256{{27.9e6, 3.45, 107, 2080}, {25.8e6, 3.18, 60.9, 1670}, {27.8e6, 3.25, 183, 1570}};
constexpr AtenCosts kSmall256{{13.2e6, 4.55, 183, 1360}, {14.8e6, 3.05, 212, 2410}, {15.9e6, 2.93, 335, 2150}};
constexpr ConvCosts kAvx2{{9.79e6, 3.31, 558, 1540}, {7.91e6, 3.45, 1760, 2740}, 190, 930, kAten256, kSmall256, true};

inline double cost_of(const ConvCost& c, const ConvSize& s, double products, double places) {
  return c.call + c.product * products + c.element * places * static_cast<double>(s.inputs + s.outputs) +
         c.weight * static_cast<double>(s.inputs * s.outputs);
}

inline double direct_cost(const ConvSize& s, const ConvWindow& w, const ConvCost& cost) {
  const double products = static_cast<double>(s.batch * s.inputs * s.outputs) *
                          taps_inside(s.height, w.dilation_h, w.padding_h) * taps_inside(s.width, w.dilation_w, w.padding_w);
  return cost_of(cost, s, products, static_cast<double>(s.batch * s.height * s.width));
}

inline double winograd_cost(ConvSize s, const ConvWindow& w, int64_t m, ConvCost cost) {
  const int64_t depth = s.inputs;  // of the products, which leave out what the inputs are padded by
  s.inputs = (s.inputs + 15) / 16 * 16;
  s.outputs = (s.outputs + 15) / 16 * 16;
  const double tiles =
      static_cast<double>(s.batch * winograd_tiles(s.height, w.dilation_h, m) * winograd_tiles(s.width, w.dilation_w, m));
  return cost_of(cost, s, tiles * static_cast<double>((m + 2) * (m + 2) * depth * s.outputs), tiles);
}

// Images that ATen keeps from oneDNN.
inline bool is_small(const ConvSize& s) { return s.batch == 1 && s.inputs * s.height * s.width <= 20480; }

// With AVX-512, planar images that ATen convolves faster as copies that are channels last: small ones, and those of a large
// dilation, for which oneDNN has no good planar kernel.
inline bool faster_as_copy(const ConvSize& s, const ConvWindow& w) {
  const int64_t pixels = s.height * s.width, d = w.dilation_w;
  if (is_small(s)) return pixels >= 1024 || (s.inputs >= 16 && s.inputs < 128);
  return s.inputs >= 128 && ((d >= 8 && s.width >= 32) || (d >= 14 && s.width >= 14));
}

// What is there of a weight that was prepacked.
enum class Prepacked : int32_t { none, winograd2, winograd4 };

// `fast` permits F(4x4); `direct_speed` is that of ATen's convolution in this dtype, where 1 is float32.
inline ConvMethod conv_method(const ConvCosts& costs, const ConvWindow& w, int64_t groups, const ConvSize& s, bool fast,
                              double direct_speed = 1, Prepacked kept = Prepacked::none) {
  if (!winograd_applies(w, groups)) return ConvMethod::aten;
  const AtenCosts& aten = is_small(s) ? costs.small : costs.aten;
  double least = direct_cost(s, w, s.channels_last ? aten.last : aten.planar);
  ConvMethod method = ConvMethod::aten;
  if (!s.channels_last) {
    const double as_copy = direct_cost(s, w, aten.copied);
    if (costs.copies_by_cost ? as_copy < least : faster_as_copy(s, w)) {
      least = as_copy;
      method = ConvMethod::aten_last;
    }
  }
  if (s.outputs == 1) return method;  // Winograd's products are of 16 channels
  least /= direct_speed;
  ConvCost cost2 = costs.winograd2, cost4 = costs.winograd4;
  if (kept == Prepacked::winograd2) cost2.weight = costs.kept2;
  if (kept == Prepacked::winograd4) cost4.weight = costs.kept4;
  const double two = winograd_cost(s, w, 2, cost2), four = fast ? winograd_cost(s, w, 4, cost4) : two;
  if ((two < four ? two : four) > least) return method;
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
