// How the kernels of dice_bce_loss share out [N, C, S], and how they read and write it.
//
// A line is a plane (planar), or an image whose channels are last. Its rows are one vector each, or one pixel, or as many
// pixels as make whole vectors: element e of a row is of channel e % C, and a thread, which has the same place in every row
// it takes, has the same channels. It holds their sums and constants in registers; vectors are 16 bytes of logits, or one
// element where anything is aligned otherwise.
#pragma once
#include <numeric>
#include <type_traits>

#include "dice_bce_loss_element.cuh"

namespace segops::cuda::dice_bce {

// Two blocks on a multiprocessor (__launch_bounds__(.., 2)), so at most 128 registers: kAhead is the largest number of
// vectors under way for which they suffice.
constexpr int kThreads = 256, kWarps = kThreads / device::kWarp;
template <class T, int V>
constexpr int kAhead = V == 1   ? (sizeof(T) == 8 ? 2 : 4)
                       : V == 4 ? 2
                                : 1;

// The cut depends on shape, layout and alignment alone, and so do the sums.
struct Cut {
  bool planar, vector;
  int64_t lines;
  int64_t rows;  // of a line
  int64_t line_elements;
  int row_elements, row_pixels;
  int slabs, slab;                          // of a row, in vectors
  int depth;                                // rows side by side in a block
  int passes;                               // rows of a thread
  int64_t chunks;                           // of a line
  static constexpr int64_t kBlocks = 1056;  // eight for each multiprocessor of the largest devices
  static constexpr int kMostSummed = 64;    // elements of a thread, in float

  // result: what is written, of elements of so many bytes; null data for nothing.
  Cut(const DiceBceLossInputs& in, const Elements& result, int64_t result_bytes) {
    const int64_t c = in.channels, bytes = in.logits_dtype == Dtype::float64 ? 8 : in.logits_dtype == Dtype::float32 ? 4 : 2;
    const int64_t most = 16 / bytes;
    bool with_weight = true;
    const auto every = [&](const auto& good) {
      return good(in.logits, bytes) && good(in.target, label_bytes(in.target_dtype)) && good(result, result_bytes) &&
             (!with_weight || good(in.pixel_weight, bytes == 8 ? 8 : 4));
    };
    // Of one channel, planes may have gaps between their pixels: then they are rows, too.
    planar = every([](const Elements& of, int64_t) { return !of.data || of.stride_s == 1; });
    with_weight = planar || in.pixel_weight.stride_c != 0;
    const auto begins_aligned = [&](const Elements& of, int64_t element) {
      const int64_t piece = most * element < 16 ? most * element : 16;
      const auto whole = [&](int64_t extent, int64_t stride) { return extent <= 1 || stride * element % piece == 0; };
      return !of.data || (reinterpret_cast<uintptr_t>(of.data) % static_cast<uintptr_t>(piece) == 0 &&
                          whole(in.batch, of.stride_n) && whole(planar ? c : 1, of.stride_c));
    };
    const auto pixels_aligned = [&](const Elements& of, int64_t element) {
      return !of.data || in.pixels <= 1 || of.stride_s * element % (most * element < 16 ? most * element : 16) == 0;
    };
    const auto dense = [&](const Elements& of, int64_t) { return !of.data || of.stride_s == c; };

    vector = every(begins_aligned);
    row_pixels = 1;
    if (planar) {
      vector = vector && in.pixels % most == 0;
      row_pixels = static_cast<int>(vector ? most : 1);
      row_elements = row_pixels;
    } else {
      if (c % most != 0 || !every(pixels_aligned)) {
        const int64_t vectors = c / std::gcd(c, most);  // that are whole pixels
        vector = vector && c > 0 && every(dense) && c * in.pixels % most == 0 && vectors <= kThreads;
        if (vector) row_pixels = static_cast<int>(vectors * most / c);
      }
      row_elements = static_cast<int>(row_pixels * c);
    }
    share_out(in, vector ? most : 1);
  }

  int64_t blocks() const { return lines * slabs * chunks; }

 private:
  void share_out(const DiceBceLossInputs& in, int64_t v) {
    lines = planar ? in.batch * in.channels : in.batch;
    line_elements = planar ? in.pixels : in.pixels * in.channels;
    rows = in.pixels / row_pixels;  // whole ones: vectors are taken only where they divide the line
    const int64_t width = row_elements / v;
    slabs = static_cast<int>((width + kThreads - 1) / kThreads);
    slab = static_cast<int>(slabs > 0 ? (width + slabs - 1) / slabs : 1);
    depth = kThreads / slab;
    const int64_t step = v > 1 ? 2 : 4, most = kMostSummed / v, wanted = lines * rows * width / (kBlocks * kThreads);
    passes = static_cast<int>(wanted < most ? wanted / step * step + step : most);
    const int64_t chunk = static_cast<int64_t>(passes) * depth;
    chunks = (rows + chunk - 1) / chunk;
  }
};

// What one thread has of the block's chunk.
template <int V, bool kRows>
struct Share {
  static constexpr int kChannels = kRows ? V : 1;  // of a thread
  const Cut& cut;
  int64_t image, chunk;
  int64_t begin;      // its first row
  int channel;        // planar: of the line
  int first_vector;   // of the slab
  int slot, element;  // in the block's rows, in a row
  int channels;
  bool active;

  __device__ __forceinline__ Share(const DiceBceLossInputs& in, const Cut& cut_)
      : cut(cut_), channels(static_cast<int>(in.channels)) {
    const unsigned part = blockIdx.x / static_cast<unsigned>(cut.chunks);
    chunk = blockIdx.x - part * static_cast<unsigned>(cut.chunks);
    if constexpr (kRows) {
      image = part / static_cast<unsigned>(cut.slabs);
      first_vector = static_cast<int>(part % static_cast<unsigned>(cut.slabs)) * cut.slab;
      channel = 0;
    } else {
      image = part / static_cast<unsigned>(channels);
      channel = static_cast<int>(part % static_cast<unsigned>(channels));
      first_vector = 0;
    }
    const int thread = static_cast<int>(threadIdx.x);
    slot = thread / cut.slab;
    element = (first_vector + thread - slot * cut.slab) * V;
    active = slot < cut.depth && element < cut.row_elements;
    begin = chunk * cut.passes * cut.depth;
  }

  // Channel of the thread's element v, and the row's pixel that it is of.
  __device__ __forceinline__ int channel_of(int v) const { return kRows ? (element + v) % channels : channel; }
  __device__ __forceinline__ int pixel_of(int v) const { return kRows ? (element + v) / channels : v; }

  // The thread's element in row 0 of the line.
  template <class E>
  __device__ __forceinline__ E* first(const Elements& of) const {
    const E* const line = static_cast<const E*>(of.data) + image * of.stride_n;
    return const_cast<E*>(line + (kRows ? element : channel * of.stride_c));
  }
  __device__ __forceinline__ int64_t stride(const Elements& of) const { return cut.row_pixels * of.stride_s; }

  // Flat index in [N, C, S] of element v in a row.
  __device__ __forceinline__ int64_t position(const DiceBceLossInputs& in, int64_t row, int v) const {
    return (image * channels + channel_of(v)) * in.pixels + row * cut.row_pixels + pixel_of(v);
  }
};

// Some rows of a thread.
template <int U>
struct Rows {
  int64_t row[U];
  bool inside[U];

  template <class Share>
  __device__ __forceinline__ Rows(const Share& share, int pass) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      row[u] = share.begin + static_cast<int64_t>(pass + u) * share.cut.depth + share.slot;
      inside[u] = share.active && row[u] * share.cut.row_elements + share.element < share.cut.line_elements;
    }
  }

  template <class E, int V>
  __device__ __forceinline__ void load(const E* first, int64_t stride, E (&v)[U][V]) const {
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (inside[u]) load_vector(first + row[u] * stride, v[u]);
  }

  template <class E, int V>
  __device__ __forceinline__ void store(E* first, int64_t stride, const E (&v)[U][V]) const {
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (inside[u]) store_vector(first + row[u] * stride, v[u]);
  }
};

// note(u, v, value) is told of bad labels. Beyond the rows nothing counts.
template <int V, bool kRows, int U, class A, class Note>
__device__ __forceinline__ void load_labels(const DiceBceLossInputs& in, const Share<V, kRows>& share, const Rows<U>& rows,
                                            A (&label)[U][V], const Note& note) {
  with_label_type(in.target_dtype, [&](const auto* type) {
    using L = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    L raw[U][V];
    rows.load(share.template first<L>(in.target), share.stride(in.target), raw);
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int v = 0; v < V; ++v)
        label[u][v] = rows.inside[u] ? read_label<A>(in, raw[u][v], [&](int64_t value) { note(u, v, value); }) : A(NAN);
  });
}

template <int V, bool kRows, int U, class A>
__device__ __forceinline__ void load_weights(const DiceBceLossInputs& in, const Share<V, kRows>& share, const Rows<U>& rows,
                                             A (&weight)[U][V]) {
  const Elements& of = in.pixel_weight;
  if (!of.data) {
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int v = 0; v < V; ++v) weight[u][v] = 1;
  } else if (!kRows || of.stride_c != 0) {
    rows.load(share.template first<A>(of), share.stride(of), weight);
  } else {
    const A* const line = static_cast<const A*>(of.data) + share.image * of.stride_n;
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (rows.inside[u]) weight[u][v] = device::load(line + rows.row[u] * share.cut.row_pixels + share.pixel_of(v));
  }
}

}  // namespace segops::cuda::dice_bce
