// The matrix products of Winograd's algorithm: for each point, products[tiles][outputs] = images[tiles][inputs] *
// weights[inputs][outputs]. A sum runs over the inputs in their order, whatever the number of tiles beside it.
#pragma once
#include "vec.h"

namespace segops::SEGOPS_ISA {

// Weights lie in panels of outputs, each [inputs][width]: the widest first, as many as fit.
#if SEGOPS_VECTOR_BYTES == 64
constexpr int64_t kPanel = 64;
#else
constexpr int64_t kPanel = 16;
#endif
constexpr int64_t kDeepest = 144;  // inputs of a panel that stay in L1 beside the rows of images

constexpr int64_t panel_width(int64_t outputs_left) {
  int64_t width = kPanel;
  while (width > outputs_left) width /= 2;
  return width;
}

// Where outputs [output, output + 16) of one point lie: element (i, o) is at offset + i * width + o - output.
struct PanelPlace {
  int64_t offset, width;
};
constexpr PanelPlace panel_place(int64_t output, int64_t inputs, int64_t outputs) {
  int64_t first = output / kPanel * kPanel, width = panel_width(outputs - first);
  while (first + width <= output) {
    first += width;
    width = panel_width(outputs - first);
  }
  return {first * inputs + (output - first), width};
}

struct Product {
  const float* images;
  const float* weights;
  float* products;
  int64_t tiles, inputs, outputs;
  int64_t depth;                         // inputs that are there; those up to `inputs` are padding
  int64_t image_stride, product_stride;  // of tiles
};

// What is read next, brought into the cache a little with each step.
struct Ahead {
  const char* next;
  int64_t step;  // bytes
};

// kRows tiles by kVectors vectors of outputs, in registers.
template <int kRows, int kVectors>
SEGOPS_INLINE void multiply_tile(const float* image, int64_t image_stride, const float* weight, int64_t depth,
                                 float* product, int64_t product_stride, bool first, Ahead ahead) {
  constexpr int kLanes = kNativeLanes<float>;
  using V = Vec<float, kLanes>;
  V sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = first ? V{} : load<kLanes, float>(product + r * product_stride + v * kLanes);
  for (int64_t k = 0; k < depth; ++k) {
    __builtin_prefetch(ahead.next + k * ahead.step, 0, 3);
    V w[kVectors];
    for (int v = 0; v < kVectors; ++v) w[v] = load<kLanes, float>(weight + (k * kVectors + v) * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const V x = broadcast<kLanes, float>(image[r * image_stride + k]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] += x * w[v];
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) store<kLanes>(product + r * product_stride + v * kLanes, sum[r][v]);
}

template <int kRows, int kVectors>
void multiply_rows(const Product& p, int64_t rows, const float* image, const float* weight, int64_t depth, float* product,
                   bool first, Ahead ahead) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_rows<kRows - 1, kVectors>(p, rows, image, weight, depth, product, first, ahead);
  }
  multiply_tile<kRows, kVectors>(image, p.image_stride, weight, depth, product, p.product_stride, first, ahead);
}

template <int kWidth>
void multiply_panel(const Product& p, const float* weights, float* products) {
  constexpr int kVectors = kWidth / kNativeLanes<float>;
  // Sums, weights and one broadcast fill the registers, of which AVX-512 has 32.
  constexpr int kRows = SEGOPS_VECTOR_BYTES == 64 ? (kVectors == 4 ? 6 : 12) : kVectors == 2 ? 6 : 3;
  const int64_t blocks = (p.depth + kDeepest - 1) / kDeepest;
  const int64_t depth = ((p.depth + blocks - 1) / blocks + 15) / 16 * 16;
  for (int64_t k = 0; k < p.depth; k += depth) {
    const int64_t deep = p.depth - k < depth ? p.depth - k : depth;
    // Blocks follow each other in memory, to the end of all weights.
    const int64_t groups = (p.tiles + kRows - 1) / kRows;
    Ahead ahead{reinterpret_cast<const char*>(weights + (k + deep) * kWidth),
                kWidth * static_cast<int64_t>(sizeof(float)) / groups};
    for (int64_t t = 0; t < p.tiles; t += kRows, ahead.next += deep * ahead.step) {
      const int64_t rows = p.tiles - t < kRows ? p.tiles - t : kRows;
      multiply_rows<kRows, kVectors>(p, rows, p.images + t * p.image_stride + k, weights + k * kWidth, deep,
                                     products + t * p.product_stride, k == 0, ahead);
    }
  }
}

inline void multiply(const Product& p) {
  for (int64_t o = 0; o < p.outputs;) {
    const int64_t width = panel_width(p.outputs - o);
    const float* weights = p.weights + o * p.inputs;
    if (width == 16) multiply_panel<16>(p, weights, p.products + o);
#if SEGOPS_VECTOR_BYTES == 64
    if (width == 32) multiply_panel<32>(p, weights, p.products + o);
    if (width == 64) multiply_panel<64>(p, weights, p.products + o);
#endif
    o += width;
  }
}

}  // namespace segops::SEGOPS_ISA
