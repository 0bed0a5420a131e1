// What the forward and the backward kernels of dice_ce_loss share: how the work is cut, labels, and logits in registers.
//
// A block has one chunk of the pixels of one image. A warp takes tiles of 32 * V pixels from it; a lane owns V of them, with
// V such that V elements of one class are 16 or 8 bytes (planar), or 1 (channels last). Aligned planes are always read and
// written 16 bytes at a time: lanes that own 8 bytes of a class trade halves of two classes with their neighbours.
#pragma once
#include "dice_ce_loss_combine.cuh"

namespace segops::cuda::dice_ce {

constexpr int32_t kIgnored = -1;
constexpr int kMostHeld = 32;  // up to this many classes all logits of a pixel are held in registers

// Threads of a block: the private columns of double need twice the shared memory. Kernels say that one block on a
// multiprocessor is enough (__launch_bounds__(.., 1)): else ptxas spills a register or two to have room for another.
template <class T>
constexpr int kThreads = sizeof(T) == 8 ? 64 : 128;
constexpr int kSweepThreads = 256;

// Pixels of a lane in a kernel that holds K classes: 16 bytes of a class, and 8 where the registers would not suffice, with
// many classes of 16-bit logits, which widen to twice their size, and with double.
template <class T, int K, bool kRows>
constexpr int kOwned = kRows ? 1 : (sizeof(T) == 8 || (sizeof(T) == 2 && K > 8) ? 8 : 16) / static_cast<int>(sizeof(T));

// The cut depends on the shape alone, and so do the sums. Large inputs give about 528 chunks, four to each multiprocessor
// of the largest devices, but no lane sums up more than 64 pixels in float.
struct Plan {
  int64_t chunk;   // pixels in a chunk, a multiple of kStep
  int64_t chunks;  // of an image
  static constexpr int64_t kStep = 1024, kMost = 8192, kBlocks = 528;

  explicit Plan(const DiceCeLossInputs& in) {
    chunk = (in.batch * in.pixels / kBlocks + kStep - 1) / kStep * kStep;
    chunk = chunk < kStep ? kStep : chunk > kMost ? kMost : chunk;
    chunks = (in.pixels + chunk - 1) / chunk;
  }
};

inline Totals totals(const DiceCeLossStatistics& p) { return {p.in.batch, p.in.classes, p.overlap, p.ce, p.bad_labels}; }

// How the logits may be read and their gradient written, decided once a launch.
struct Access {
  uint32_t zero;  // 0, see Held::forget
  // Planar: every class begins at 16 bytes and is a whole number of them. Channels last: pixels are dense and every image
  // begins at 16 bytes.
  bool vector;

  static bool aligned(const void* data, int64_t element, int64_t stride_n, int64_t stride_c, int64_t stride_s,
                      const DiceCeLossInputs& in) {
    auto whole = [&](int64_t elements) { return elements * element % 16 == 0; };
    if (reinterpret_cast<uintptr_t>(data) % 16 != 0 || !whole(stride_n)) return false;
    return stride_s == 1 ? whole(stride_c) && whole(in.pixels) : stride_s == in.classes;
  }
};

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % device::kWarp; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / device::kWarp; }

// The pixels of one block.
struct Chunk {
  int64_t image, begin;  // first pixel within the image
  int count;

  __device__ Chunk(const DiceCeLossInputs& in, const Plan& plan, int64_t index) {
    image = index / plan.chunks;
    begin = index % plan.chunks * plan.chunk;
    const int64_t rest = in.pixels - begin;
    count = static_cast<int>(rest < plan.chunk ? rest : plan.chunk);
  }
};

// Where a lane's pixel v lies in its tile: side by side where they are loaded 16 bytes at a time, else a warp apart, so that
// a warp's accesses are contiguous either way.
template <int V>
__device__ __forceinline__ int place(int v, bool vector) {
  return vector ? lane_id() * V + v : lane_id() + v * device::kWarp;
}

__device__ __forceinline__ int64_t label_at(const DiceCeLossInputs& in, int64_t position) {
  switch (in.target_dtype) {
    case Dtype::uint8: return device::load(static_cast<const uint8_t*>(in.target) + position);
    case Dtype::int16: return device::load(static_cast<const int16_t*>(in.target) + position);
    case Dtype::int32: return device::load(static_cast<const int32_t*>(in.target) + position);
    default: return device::load(static_cast<const int64_t*>(in.target) + position);
  }
}

// What each lane's pixels have in shared memory.
template <int V, class E>
__device__ __forceinline__ void read_owned(const E* tile, bool vector, E (&own)[V]) {
  constexpr int kBytes = V * static_cast<int>(sizeof(E));
  if constexpr (kBytes % 16 == 0) {
    if (vector) {
#pragma unroll
      for (int i = 0; i < kBytes / 16; ++i) {
        const uint4 piece = reinterpret_cast<const uint4*>(tile)[lane_id() * (kBytes / 16) + i];
        copy_bits(reinterpret_cast<char*>(own) + i * 16, &piece, 16);
      }
      return;
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v) own[v] = tile[place<V>(v, vector)];
}

// Labels of a tile and the weights of its pixels. Lanes load them side by side and hand them, through shared memory, to the
// lanes that own the pixels: contiguous accesses whatever the types and alignments are.
template <class A, int V>
struct Pixels {
  int32_t label[V];  // kIgnored where ignored, bad, or beyond the chunk
  A weight[V];       // the pixel weight, 1 without one; 0 where ignored

  // Loads a warp's share v of the tile that begins at pixel `first` of the chunk.
  static __device__ __forceinline__ void fetch(const DiceCeLossInputs& in, const Chunk& chunk, int first, int v,
                                               int32_t* labels, A* values, BadData& bad) {
    const int at = lane_id() + v * device::kWarp;
    int32_t known = kIgnored;
    A given = 0;
    if (first + at < chunk.count) {
      const int64_t position = chunk.image * in.pixels + chunk.begin + first + at;
      const int64_t value = label_at(in, position);
      const bool inside = value >= 0 && value < in.classes, ignored = value == in.ignore_index;
      if (inside && !ignored) {
        known = static_cast<int32_t>(value);
        given = in.pixel_weight ? device::load(static_cast<const A*>(in.pixel_weight) + position) : A(1);
      } else if (!ignored && bad.count++ == 0) {
        bad = BadData{1, position, value};
      }
    }
    labels[at] = known;
    values[at] = given;
  }

  __device__ __forceinline__ void take(const int32_t* labels, const A* values, bool vector) {
    read_owned<V>(labels, vector, label);
    read_owned<V>(values, vector, weight);
  }

  // A warp's own tile, with shared memory of its own.
  __device__ __forceinline__ void load(const DiceCeLossInputs& in, const Chunk& chunk, int first, bool vector,
                                       int32_t* labels, A* values, BadData& bad) {
    SYNC_WARP();  // the tile before has been read
#pragma unroll
    for (int v = 0; v < V; ++v) fetch(in, chunk, first, v, labels, values, bad);
    SYNC_WARP();
    take(labels, values, vector);
  }
};

template <int kWords>
struct WordBits {
  using type = uint32_t;
};
template <>
struct WordBits<2> {
  using type = uint64_t;  // uint2 is stored by halves
};
template <>
struct WordBits<4> {
  using type = uint4;
};
template <int kWords>
using BitsOf = typename WordBits<kWords>::type;

// V elements of one class as they are in memory. Their words are what a lane loads and stores at once.
template <class T, int V>
struct Packed {
  static constexpr int kWords = V * static_cast<int>(sizeof(T)) > 4 ? V * static_cast<int>(sizeof(T)) / 4 : 1;
  using A = AccumulatorOf<T>;
  using Bits = BitsOf<kWords>;
  uint32_t words[kWords] = {};

  __device__ __forceinline__ A get(int v) const {
    T value;
    if constexpr (sizeof(T) == 2) {
      const uint16_t bits = static_cast<uint16_t>(words[v / 2] >> (v % 2 * 16));
      copy_bits(&value, &bits, 2);
    } else {
      copy_bits(&value, words + v * (sizeof(T) / 4), sizeof(T));
    }
    return widen<A>(value);
  }

  __device__ __forceinline__ void set(int v, A number) {
    const T value = narrow<T>(number);
    if constexpr (sizeof(T) == 2) {
      uint16_t bits;
      copy_bits(&bits, &value, 2);
      const uint32_t shift = v % 2 * 16;
      words[v / 2] = (words[v / 2] & ~(0xffffu << shift)) | static_cast<uint32_t>(bits) << shift;
    } else {
      copy_bits(words + v * (sizeof(T) / 4), &value, sizeof(T));
    }
  }

  // All V at once, aligned to their bytes; zeros if not `inside`.
  __device__ __forceinline__ void load(const T* from, bool inside) {
    Bits v{};
    if constexpr (kWords == 4) {
      if (inside) v = device::load_16(from);
    } else {
      if (inside) v = device::load(reinterpret_cast<const Bits*>(from));
    }
    copy_bits(words, &v, sizeof words);
  }

  __device__ __forceinline__ void store(T* to) const {
    Bits v;
    copy_bits(&v, words, sizeof words);
    if constexpr (kWords == 4)
      device::store_16(to, v);
    else
      *reinterpret_cast<Bits*>(to) = v;
  }

  __device__ __forceinline__ void fill(A number) {
#pragma unroll
    for (int v = 0; v < V; ++v) set(v, number);
  }
};

// All logits of a lane's pixels, up to K classes of each; classes beyond the last are -infinity, and ignored pixels are 0.
template <class T, int K, int V>
struct Held {
  using A = AccumulatorOf<T>;
  // Whether what is derived from a logit can take its place without being rounded.
  static constexpr bool kWide = sizeof(A) == sizeof(T);
  static constexpr int kPiece = 16 / static_cast<int>(sizeof(T));
  static constexpr bool kPaired = V * sizeof(T) == 8;  // two lanes own 16 bytes of a class
  Packed<T, V> x[K];

  __device__ __forceinline__ void fill_rest(int classes) {
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (k >= classes) x[k].fill(-A(INFINITY));
  }

  // Between the two lanes of a pair, the even one with 16 bytes of class k in x[k] and x[k + 1] and the odd one with the
  // same pixels of class k + 1: leaves each with its own half of both classes, in x[k] and in x[k + 1]. Its own inverse.
  __device__ __forceinline__ void trade_halves(int k) {
    const bool odd = lane_id() % 2 != 0;
#pragma unroll
    for (int w = 0; w < Packed<T, V>::kWords; ++w) {
      uint32_t &first = x[k].words[w], &second = x[k + 1].words[w];
      const uint32_t theirs = device::shuffle_xor(odd ? first : second, 1);
      first = odd ? theirs : first;
      second = odd ? second : theirs;
    }
  }

  // What this lane of a pair reads and writes of classes k and k + 1; null beyond the last class or pixel.
  template <class E>
  static __device__ __forceinline__ E* piece_of_pair(E* tile, int64_t stride_c, int k, int classes, int count) {
    const int c = k + lane_id() % 2, pixel = lane_id() / 2 * kPiece;
    return c < classes && pixel < count ? tile + c * stride_c + pixel : nullptr;
  }

  // From planes: class k of the tile at tile + k * stride_c; the tile has `count` pixels.
  __device__ __forceinline__ void load_planes(const T* tile, int64_t stride_c, int classes, int count, bool vector) {
    if (!vector) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        if (k >= classes) break;
        x[k].fill(0);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const int at = place<V>(v, false);
          if (at < count) x[k].set(v, widen<A>(device::load(tile + k * stride_c + at)));
        }
      }
    } else if constexpr (kPaired) {
#pragma unroll
      for (int k = 0; k < K; k += 2) {
        if (k >= classes) break;
        const T* const from = piece_of_pair(tile, stride_c, k, classes, count);
        uint4 piece{};
        if (from) piece = device::load_16(from);
        copy_bits(x[k].words, &piece.x, 8);
        copy_bits(x[k + 1].words, &piece.z, 8);
      }
      // Not in the loop above: all loads are under way before the first is waited for.
#pragma unroll
      for (int k = 0; k < K; k += 2) {
        if (k >= classes) break;
        trade_halves(k);
      }
    } else {
      const bool inside = lane_id() * V < count;
#pragma unroll
      for (int k = 0; k < K; ++k) {
        if (k >= classes) break;
        x[k].load(tile + k * stride_c + lane_id() * V, inside);
      }
    }
    fill_rest(classes);
  }

  // Back to planes, as soon as class k is what is to be stored; one class of a pair waits for the other. What was held is
  // lost.
  __device__ __forceinline__ void store_plane(int k, T* tile, int64_t stride_c, int classes, int count, bool vector) {
    if (!vector) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int at = place<V>(v, false);
        if (at < count) tile[k * stride_c + at] = narrow<T>(x[k].get(v));
      }
    } else if constexpr (kPaired) {
      const int even = k / 2 * 2;
      if (k == even && k + 1 < classes) return;
      trade_halves(even);
      uint4 piece;
      copy_bits(&piece.x, x[even].words, 8);
      copy_bits(&piece.z, x[even + 1].words, 8);
      if (T* const to = piece_of_pair(tile, stride_c, even, classes, count)) device::store_16(to, piece);
    } else {
      if (lane_id() * V < count) x[k].store(tile + k * stride_c + lane_id() * V);
    }
  }

  // From one pixel's classes side by side, in shared or global memory.
  template <class Load>
  __device__ __forceinline__ void load_row(int classes, bool inside, const Load& load) {
    static_assert(V == 1);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (k >= classes) break;
      x[k].set(0, inside ? widen<A>(load(k)) : A(0));
    }
    fill_rest(classes);
  }

  // The same, 16 bytes at a time: `classes` fill whole pieces.
  __device__ __forceinline__ void load_pieces(const uint4* own, int classes) {
    static_assert(V == 1);
#pragma unroll
    for (int k = 0; k < K; k += kPiece) {
      if (k >= classes) break;
      T piece[kPiece];
      copy_bits(piece, own + k / kPiece, 16);
#pragma unroll
      for (int j = 0; j < kPiece; ++j) x[k + j].set(0, widen<A>(piece[j]));
    }
    fill_rest(classes);
  }

  __device__ __forceinline__ void store_pieces(uint4* own, int classes) const {
    static_assert(V == 1);
#pragma unroll
    for (int k = 0; k < K; k += kPiece) {
      if (k >= classes) break;
      T piece[kPiece];
#pragma unroll
      for (int j = 0; j < kPiece; ++j) piece[j] = narrow<T>(x[k + j].get(0));
      copy_bits(own + k / kPiece, piece, 16);
    }
  }

  __device__ __forceinline__ void clear_ignored(const int32_t (&label)[V], int classes) {
    bool ignored = false;
#pragma unroll
    for (int v = 0; v < V; ++v) ignored |= label[v] < 0;
    if (!ignored) return;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (k >= classes) break;
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (label[v] < 0) x[k].set(v, 0);
    }
  }

  // Between two passes over 16-bit logits: with a zero that the compiler does not know for one, it unpacks the words anew in
  // each pass. Kept unpacked, they would take twice the registers, and memory for what does not fit.
  __device__ __forceinline__ void forget(uint32_t zero) {
    if constexpr (!kWide && V > 1) {
#pragma unroll
      for (int k = 0; k < K; ++k)
#pragma unroll
        for (int w = 0; w < Packed<T, V>::kWords; ++w) x[k].words[w] ^= zero;
    }
  }

  __device__ __forceinline__ void largest(A (&most)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) most[v] = x[0].get(v);
#pragma unroll
    for (int k = 1; k < K; ++k)
#pragma unroll
      for (int v = 0; v < V; ++v) most[v] = larger(most[v], x[k].get(v));
  }
};

}  // namespace segops::cuda::dice_ce
