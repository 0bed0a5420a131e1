// How the kernels of dice_bce_loss share out [N, C, S].
//
// A line is a plane (planar), or an image whose channels are last. Its rows are one vector each (planar), or pixels: as many
// as make whole sectors where nothing lies between them, else one. Element e of a row is of channel e % C, and a thread,
// which has the same place in every row it takes, has the same channels and holds their sums and constants in registers.
// Vectors are 16 bytes of the widest type, where the rows are whole vectors at whole sectors of memory; else one element,
// and lines without gaps go through shared memory (dice_bce_loss_pass.cuh).
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

// Whole vectors of 16-bit logits are taken where labels are no wider, and neither weights of elements nor a map is there.
template <int V>
constexpr bool kNarrow = V == 8;

// The cut depends on shape, types, layout and alignment alone, and so do the sums.
struct Cut {
  bool planar;
  int vector;      // elements
  int64_t sector;  // elements of whole sectors, of every type
  int64_t lines;
  int64_t rows;  // of a line
  int64_t line_elements;
  int row_elements, row_pixels;
  bool shifted;     // the first row begins at a whole sector of memory, which a line may begin within
  bool staged;      // passes go through shared memory
  int slabs, slab;  // of a row, in vectors
  int depth;        // rows side by side in a block
  int passes;       // rows of a thread
  int64_t chunks;   // of a line
  static constexpr int64_t kBlocks = 1056, kFewBlocks = 264;  // eight, two for each multiprocessor of the largest devices
  static constexpr int kMostSummed = 64;                      // elements of a thread, in float
  // Of inputs in a block, for itself and for each of its channels: what it leaves is 256 bytes and 24 of a channel, and no
  // more than that are constants.
  static constexpr int64_t kBytesOfBlock = 8192, kBytesOfChannel = 1280;

  // result: what is written, of elements of so many bytes; null data for nothing.
  Cut(const DiceBceLossInputs& in, const Elements& result, int64_t result_bytes) {
    const int64_t c = in.channels, bytes = bytes_of(in.logits_dtype);
    const int64_t of_label = bytes_of(in.target_dtype), of_weight = accumulator_bytes(in.logits_dtype);
    const auto every = [&](const auto& good, bool with_weight = true) {
      return good(in.logits, bytes) && good(in.target, of_label) && good(result, result_bytes) &&
             (!with_weight || good(in.pixel_weight, of_weight));
    };
    // Of one channel, planes may have gaps between their pixels: then they are rows, too.
    planar = every([](const Elements& of, int64_t) { return !of.data || of.stride_s == 1; });
    const bool with_weight = planar || in.pixel_weight.stride_c != 0;
    // Beside anything wider, 16-bit logits come in half vectors: a lane's two accesses would share their sectors.
    const bool narrow = every([](const Elements& of, int64_t element) { return !of.data || element <= 2; }, with_weight);
    const int64_t most = bytes == 2 && !narrow ? 4 : 16 / bytes;
    sector = 32 / (of_label < bytes ? of_label : bytes);

    const auto piece = [&](int64_t element) { return most * element < 16 ? most * element : 16; };
    const auto begins_aligned = [&](const Elements& of, int64_t element) {
      const auto whole = [&](int64_t extent, int64_t stride) {
        return extent <= 1 || stride * element % piece(element) == 0;
      };
      return !of.data || (reinterpret_cast<uintptr_t>(of.data) % static_cast<uintptr_t>(piece(element)) == 0 &&
                          whole(in.batch, of.stride_n) && whole(planar ? c : 1, of.stride_c));
    };
    const auto memory_at_sectors = [](const Elements& of, int64_t) {
      return reinterpret_cast<uintptr_t>(of.data) % 32 == 0;
    };
    const auto lines_at_sectors = [&](const Elements& of, int64_t element) {
      return !of.data || (memory_at_sectors(of, element) && (in.batch <= 1 || of.stride_n * element % 32 == 0) &&
                          (!planar || c <= 1 || of.stride_c * element % 32 == 0));
    };
    const auto planes_without_gaps = [&](const Elements& of, int64_t) {
      return !of.data || (of.stride_c == in.pixels && of.stride_n == c * in.pixels);
    };
    const auto pixels_aligned = [&](const Elements& of, int64_t element) {
      return !of.data || in.pixels <= 1 || of.stride_s * element % piece(element) == 0;
    };
    const bool dense = every([&](const Elements& of, int64_t) { return !of.data || of.stride_s == c; }, with_weight);
    const auto few = [&](int64_t v) { return c <= kThreads / 2 * v; };  // so that every slab has all channels

    bool vectors = every(begins_aligned, with_weight);
    if (planar)
      vectors = vectors && in.pixels % most == 0;
    else
      vectors = vectors &&
                ((dense && few(most) && c * in.pixels % most == 0) || (c % most == 0 && every(pixels_aligned, with_weight)));
    // Planes that lie behind each other begin at the same place of a sector in every tensor.
    const bool whole = every(lines_at_sectors, with_weight);
    shifted =
        planar && vectors && !whole && every(memory_at_sectors, with_weight) && every(planes_without_gaps, with_weight);
    staged = (planar || (dense && c <= kThreads)) && !(vectors && (whole || shifted));
    vector = static_cast<int>(vectors && !staged ? most : 1);
    row_pixels = planar                 ? vector
                 : staged && c > 0      ? static_cast<int>(kThreads / c)
                 : dense && few(vector) ? static_cast<int>(sector / std::gcd(c, sector))
                                        : 1;
    row_elements = static_cast<int>(planar ? row_pixels : row_pixels * c);
    share_out(in, bytes + of_label);
  }

  int64_t blocks() const { return lines * slabs * chunks; }
  int threads() const { return (depth * slab + device::kWarp - 1) / device::kWarp * device::kWarp; }
  // Of rows of several pixels, each slab has sums of every channel; else each has channels of its own.
  SEGOPS_HOST_DEVICE bool whole_slabs() const { return !planar && row_pixels > 1; }
  SEGOPS_HOST_DEVICE int64_t sums_of_image() const { return whole_slabs() ? chunks * slabs : chunks; }

 private:
  void share_out(const DiceBceLossInputs& in, int64_t bytes) {
    const int64_t v = vector, width = row_elements / v;
    lines = planar ? in.batch * in.channels : in.batch;
    line_elements = planar ? in.pixels : in.pixels * in.channels;
    rows = (in.pixels + (shifted ? sector - vector : 0) + row_pixels - 1) / row_pixels;
    slabs = static_cast<int>((width + kThreads - 1) / kThreads);
    slab = static_cast<int>(slabs > 0 ? (width + slabs - 1) / slabs : 1);
    const int whole = static_cast<int>(sector / v);
    if (slabs > 1) slab = (slab + whole - 1) / whole * whole;
    depth = kThreads / slab;

    // Blocks enough for every device, but where sums and constants would be much beside what they are of.
    const int64_t step = v > 1 ? 2 : 4, vectors = lines * rows * width;
    const auto to_make = [&](int64_t blocks) { return vectors / (blocks * kThreads) / step * step + step; };
    const auto smaller = [](int64_t a, int64_t b) { return a < b ? a : b; };
    const int64_t of_pass = slab * depth * v, channels = planar ? 1 : smaller(in.channels, slab * v);
    const int64_t enough = (kBytesOfBlock + kBytesOfChannel * channels) / (bytes * of_pass) / step * step + step;
    const int64_t least = smaller(enough, to_make(kFewBlocks));
    const int64_t wanted = smaller(to_make(kBlocks), kMostSummed / v);
    passes = static_cast<int>(wanted > least ? wanted : least);
    const int64_t chunk = static_cast<int64_t>(passes) * depth;
    chunks = (rows + chunk - 1) / chunk;
  }
};

// Calls with the vector and whether lines are rows of pixels, as types: the template arguments of the kernels for T.
template <class T, class Call>
cudaError_t with_template(const Cut& cut, const Call& call) {
  const auto with = [&](auto vector) {
    return cut.planar ? call(vector, std::false_type()) : call(vector, std::true_type());
  };
  if (cut.vector == 1) return with(std::integral_constant<int, 1>());
  if constexpr (sizeof(T) == 2)
    if (cut.vector < kVector<T>) return with(std::integral_constant<int, kVector<T> / 2>());
  return with(std::integral_constant<int, kVector<T>>());
}

// What one thread has of the block's chunk.
template <int V, bool kRows>
struct Share {
  static constexpr int kChannels = kRows ? V : 1;                 // of a thread
  static constexpr int kMostChannels = kRows ? kThreads * V : 1;  // of a block
  const Cut& cut;
  int image, chunk;  // what follows from few numbers is computed anew: registers are scarce
  int64_t begin;     // the thread's first row
  int channel;       // planar: of the line
  int slab;          // of the rows
  int element;       // in a row
  int channels;
  bool active;

  __device__ __forceinline__ Share(const DiceBceLossInputs& in, const Cut& cut_)
      : cut(cut_), channels(static_cast<int>(in.channels)) {
    const unsigned part = blockIdx.x / static_cast<unsigned>(cut.chunks);
    const int thread = static_cast<int>(threadIdx.x), slot = thread / cut.slab;
    chunk = static_cast<int>(blockIdx.x - part * static_cast<unsigned>(cut.chunks));
    begin = static_cast<int64_t>(chunk) * cut.passes * cut.depth + slot;
    const unsigned of_image = static_cast<unsigned>(kRows ? cut.slabs : channels);
    image = static_cast<int>(part / of_image);
    channel = kRows ? 0 : static_cast<int>(part % of_image);
    slab = kRows ? static_cast<int>(part % of_image) : 0;
    if (!kRows && cut.shifted) begin -= (part * in.pixels & (cut.sector - 1)) / V;
    element = first() + (thread - slot * cut.slab) * V;
    active = slot < cut.depth && element < first() + width();
  }

  // Elements of the slab in a row.
  __device__ __forceinline__ int first() const { return slab * cut.slab * V; }
  __device__ __forceinline__ int width() const {
    const int rest = cut.row_elements - first();
    return rest < cut.slab * V ? rest : cut.slab * V;
  }
  // Channels of the block: from that of the slab's first element on.
  __device__ __forceinline__ int own() const { return !kRows ? 1 : cut.whole_slabs() ? channels : width(); }
  // The place of the block's sums.
  __device__ __forceinline__ int64_t sums() const {
    return image * cut.sums_of_image() + chunk + (cut.whole_slabs() ? slab * cut.chunks : 0);
  }

  // Channel of the thread's element v, its place among the block's, and the row's pixel that it is of.
  __device__ __forceinline__ int channel_of(int v) const { return kRows ? (element + v) % channels : channel; }
  __device__ __forceinline__ int own_of(int v) const { return kRows ? (element - first() + v) % own() : 0; }
  __device__ __forceinline__ int pixel_of(int v) const { return kRows ? (element + v) / channels : v; }
  // Of the block's channel i.
  __device__ __forceinline__ int channel_at(int i) const { return kRows ? (first() + i) % channels : channel; }

  template <class E>
  __device__ __forceinline__ E* line_of(const Elements& of) const {
    return const_cast<E*>(static_cast<const E*>(of.data)) + image * of.stride_n + (kRows ? 0 : channel * of.stride_c);
  }
  // The thread's element in row 0 of the line.
  template <class E>
  __device__ __forceinline__ E* first_of(const Elements& of) const {
    return line_of<E>(of) + (kRows ? element : 0);
  }
  __device__ __forceinline__ int64_t stride(const Elements& of) const { return cut.row_pixels * of.stride_s; }

  // Flat index in [N, C, S] of element v in a row.
  __device__ __forceinline__ int64_t position(const DiceBceLossInputs& in, int64_t row, int v) const {
    return (static_cast<int64_t>(image) * channels + channel_of(v)) * in.pixels + row * cut.row_pixels + pixel_of(v);
  }
};

// Constants of the block's channels, which all its threads read: once, to shared memory. Elements of a row that are V apart
// are in different banks.
template <class A, int V, bool kRows, int kCount>
struct Staged {
  static constexpr int kPitch = Share<V, kRows>::kMostChannels / device::kWarp + Share<V, kRows>::kMostChannels;
  static constexpr int kExtent = kCount * kPitch;
  A* shared;

  // of(channel, values): what to keep of it. Every thread of the block takes part; a barrier must follow.
  template <class Of>
  __device__ __forceinline__ Staged(const Share<V, kRows>& share, A* shared_, const Of& of) : shared(shared_) {
    for (int i = static_cast<int>(threadIdx.x); i < share.own(); i += static_cast<int>(blockDim.x)) {
      A values[kCount];
      of(share.channel_at(i), values);
#pragma unroll
      for (int k = 0; k < kCount; ++k) at(k, i) = values[k];
    }
  }

  __device__ __forceinline__ A& at(int k, int i) const { return shared[k * kPitch + i + i / device::kWarp]; }
};

}  // namespace segops::cuda::dice_bce
