// Convolution as a product of matrices that are never laid out: rows are destination pixels, columns are destination
// channels, and what is summed are taps, each with all source channels. A block gathers a tile of both into shared memory,
// some steps ahead of what it multiplies; results leave through shared memory too, where vectors of the destination are
// put together for the epilogue.
//
// Transposed, destinations whose position leaves the same rest when divided by the stride have the same taps: a phase.
// The blocks of each do without the others' taps.
#include <type_traits>

#include "dilated_conv.cuh"
#include "dilated_conv_tile.cuh"

namespace segops::cuda {
namespace {

constexpr int kPackThreads = 256;

int64_t rounded_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// What the kernel has to know besides the convolution.
struct Gemm {
  const void* packed;               // weights [groups, out_padded, taps, channels_padded]
  int channels_padded, out_padded;  // to whole chunks, and to whole tiles
  int column_tiles, phases_y, phases_x, tap_step_y, tap_step_x;
  bool planar, wide;  // the destination; whether 16 bytes at a time can be stored, and loaded of the residual
};

// Weights with the summed channels side by side.
template <class T, bool kRounded>
__global__ void __launch_bounds__(kPackThreads, 1)
    dilated_conv_pack_kernel(Convolution p, Gemm g, void* packed, unsigned chunks) {
  constexpr int V = kVector<T>;
  const unsigned index = blockIdx.x * kPackThreads + threadIdx.x;
  if (index >= chunks) return;
  const unsigned across = static_cast<unsigned>(g.channels_padded / V), taps = static_cast<unsigned>(p.taps());
  const unsigned row = index / across, first = index % across * V, tap = row % taps, column = row / taps;
  const unsigned out = column % static_cast<unsigned>(g.out_padded), group = column / static_cast<unsigned>(g.out_padded);
  T value[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int c = static_cast<int>(first) + v;
    value[v] = device::from_float<T>(0);
    if (c < p.source_channels && static_cast<int>(out) < p.destination_channels)
      value[v] = device::load(static_cast<const T*>(p.weight) +
                              p.weight_at(static_cast<int>(group), static_cast<int>(out), c) + tap);
    if constexpr (kRounded) {
      // To nearest; the matrix unit would cut off.
      uint32_t bits;
      copy_bits(&bits, &value[v], 4);
      if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & 0xffffe000u;
      copy_bits(&value[v], &bits, 4);
    }
  }
  store_vector(static_cast<T*>(packed) + static_cast<int64_t>(index) * V, value);
}

// What a phase has of an axis.
struct AxisPhase {
  int first, step, count;                // destinations
  int source, per_destination, per_tap;  // the source of the first at the first tap, and how far the next are
  int tap, tap_step, taps;

  __device__ __forceinline__ AxisPhase(const ConvAxis& axis, bool transposed, int phase, int tap_step_)
      : first(phase), tap(0), tap_step(tap_step_) {
    if (!transposed) {
      step = 1, count = axis.out, taps = axis.kernel;
      source = -axis.padding, per_destination = axis.stride, per_tap = axis.dilation;
      return;
    }
    step = axis.stride;
    count = static_cast<int>(static_cast<unsigned>(axis.out - phase + axis.stride - 1) / static_cast<unsigned>(axis.stride));
    const int most = tap_step < axis.kernel ? tap_step : axis.kernel;
    int at = phase + axis.padding;
    while (tap < most && at % axis.stride != 0) {
      ++tap;
      at -= axis.dilation;
    }
    taps = tap < most ? (axis.kernel - 1 - tap) / tap_step + 1 : 0;
    source = at / axis.stride, per_destination = 1, per_tap = -(axis.dilation * tap_step / axis.stride);
  }
};

// Where in the sum a chunk begins: a tap of both axes, and a channel.
struct Cursor {
  int y, x, channel;

  __device__ __forceinline__ void advance(int by, int taps_x, int channels) {
    channel += by;
    while (channel >= channels) {
      channel -= channels;
      if (++x >= taps_x) {
        x = 0;
        ++y;
      }
    }
  }
};

struct SourceRow {
  int64_t at;  // the source pixel at the first tap
  int y, x;
};

// What a block has of the convolution.
struct Part {
  int group, column;  // the first destination channel in the group
  AxisPhase vertical, horizontal;
  int row, rows;  // the first destination pixel, and how many

  static __device__ __forceinline__ unsigned take(unsigned& index, int of) {
    const unsigned rest = index % static_cast<unsigned>(of);
    index /= static_cast<unsigned>(of);
    return rest;
  }
  __device__ __forceinline__ Part(const Convolution& p, const Gemm& g, unsigned index)
      : group(0),
        column(static_cast<int>(take(index, g.column_tiles)) * kColumns),
        vertical(p.vertical, p.transposed, static_cast<int>(take(index, g.phases_y)), g.tap_step_y),
        horizontal(p.horizontal, p.transposed, static_cast<int>(take(index, g.phases_x)), g.tap_step_x) {
    group = static_cast<int>(take(index, p.groups));
    row = static_cast<int>(index) * kRows;
    rows = static_cast<int>(p.destination.batch) * vertical.count * horizontal.count - row;
    if (rows > kRows) rows = kRows;
  }

  // Calls to(image, y, x) with the place of a row.
  template <class To>
  __device__ __forceinline__ void locate(int i, const To& to) const {
    const unsigned at = static_cast<unsigned>(row + i), wide = static_cast<unsigned>(horizontal.count);
    const unsigned line = at / wide, high = static_cast<unsigned>(vertical.count);
    to(static_cast<int>(line / high), static_cast<int>(line % high), static_cast<int>(at % wide));
  }
  __device__ __forceinline__ SourceRow source(int i, const ConstPlanes& planes) const {
    SourceRow found{0, INT32_MIN / 2, 0};  // outside at every tap
    if (i < rows)
      locate(i, [&](int n, int y, int x) {
        found.y = y * vertical.per_destination + vertical.source;
        found.x = x * horizontal.per_destination + horizontal.source;
        found.at = n * planes.stride_n + found.y * planes.stride_h + found.x * planes.stride_w;
      });
    return found;
  }
};

// Multiplies and leaves the results in shared memory, in `stage`. kGather: sources are loaded one by one, lanes side by
// side in a row of the image; else 16 bytes of a pixel's channels are copied.
template <class Product, bool kGather>
__device__ __forceinline__ void multiply_tiles(const Convolution& p, const Gemm& g, const Part& part,
                                               unsigned char* shared) {
  using T = typename Product::T;
  constexpr int V = kVector<T>, kSourceRows = kGather ? 1 : kRows / 32;
  const int thread = static_cast<int>(threadIdx.x), chunk = thread % kChunks;
  const T* const source =
      static_cast<const T*>(p.source.data) + static_cast<int64_t>(part.group) * p.source_channels * p.source.stride_c;
  const T* const packed = static_cast<const T*>(g.packed) +
                          (static_cast<int64_t>(part.group) * g.out_padded + part.column) * p.taps() * g.channels_padded;
  const int64_t packed_row = static_cast<int64_t>(p.taps()) * g.channels_padded;
  const AxisPhase &vertical = part.vertical, &horizontal = part.horizontal;

  SourceRow row[kSourceRows];
#pragma unroll
  for (int i = 0; i < kSourceRows; ++i) row[i] = part.source(kGather ? thread : thread / kChunks + 32 * i, p.source);
  const auto inside = [&](const SourceRow& of, const Cursor& at) {
    return at.y < vertical.taps &&
           static_cast<unsigned>(of.y + at.y * vertical.per_tap) < static_cast<unsigned>(p.vertical.source) &&
           static_cast<unsigned>(of.x + at.x * horizontal.per_tap) < static_cast<unsigned>(p.horizontal.source);
  };
  const auto tap_offset = [&](const Cursor& at) {
    return at.y * vertical.per_tap * p.source.stride_h + at.x * horizontal.per_tap * p.source.stride_w;
  };

  Cursor cursor{0, 0, 0}, gathered{0, 0, 0};
  cursor.advance(chunk * V, horizontal.taps, g.channels_padded);
  const auto copy = [&](int stage) {
    unsigned char *const rows = shared + stage * kStageBytes, *const columns = rows + kRows * kRowBytes;
    const bool there = cursor.y < vertical.taps;
    const int tap = (vertical.tap + cursor.y * vertical.tap_step) * p.horizontal.kernel + horizontal.tap +
                    cursor.x * horizontal.tap_step;
    const T* const weights = packed + static_cast<int64_t>(tap) * g.channels_padded + cursor.channel;
#pragma unroll
    for (int i = 0; i < kColumns / 32; ++i) {
      const int column = thread / kChunks + 32 * i;
      unsigned char* const to = columns + chunk_at(column, chunk);
      if (there)
        device::cp_async_16(to, weights + column * packed_row);
      else
        put_zeros(to);
    }
    if constexpr (!kGather) {
      const int64_t offset = tap_offset(cursor) + cursor.channel;
#pragma unroll
      for (int i = 0; i < kSourceRows; ++i) {
        unsigned char* const to = rows + chunk_at(thread / kChunks + 32 * i, chunk);
        if (inside(row[i], cursor))
          device::cp_async_16(to, source + (row[i].at + offset));
        else
          put_zeros(to);
      }
    }
    cursor.advance(kChunks * V, horizontal.taps, g.channels_padded);
  };

  T fetched[kChunks][V];
  const auto fetch = [&] {
#pragma unroll
    for (int q = 0; q < kChunks; ++q) {
      const bool there = inside(row[0], gathered);
      const int64_t at = row[0].at + tap_offset(gathered) + gathered.channel * p.source.stride_c;
#pragma unroll
      for (int v = 0; v < V; ++v)
        fetched[q][v] = there && gathered.channel + v < p.source_channels
                            ? device::load(source + (at + v * p.source.stride_c))
                            : device::from_float<T>(0);
      gathered.advance(V, horizontal.taps, g.channels_padded);
    }
  };
  const auto put = [&](int stage) {
#pragma unroll
    for (int q = 0; q < kChunks; ++q) {
      uint4 piece;
      copy_bits(&piece, fetched[q], 16);
      *reinterpret_cast<uint4*>(shared + stage * kStageBytes + chunk_at(thread, q)) = piece;
    }
  };

  Sums sums = {};
  const int steps = (vertical.taps * horizontal.taps * (g.channels_padded / V) + kChunks - 1) / kChunks;
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < steps) {
      copy(stage);
      if constexpr (kGather) {
        fetch();
        put(stage);
      }
    }
    device::cp_async_commit();
  }
  int from = 0, to = kStages - 1;
  for (int step = 0; step < steps; ++step) {
    device::cp_async_wait<kStages - 2>();
    SYNC_THREADS();
    const bool more = step + kStages - 1 < steps;
    if (more) {
      copy(to);
      if constexpr (kGather) fetch();
    }
    device::cp_async_commit();
    const unsigned char* const rows = shared + from * kStageBytes;
    Product::add(sums, rows, rows + kRows * kRowBytes);
    if constexpr (kGather)
      if (more) put(to);
    from = from == kStages - 1 ? 0 : from + 1;
    to = to == kStages - 1 ? 0 : to + 1;
  }
  SYNC_THREADS();  // the last stage has been read
  float* const stage = reinterpret_cast<float*>(shared);
  if (g.planar)
    Product::template put<true>(sums, stage);
  else
    Product::template put<false>(sums, stage);
  SYNC_THREADS();
}

// Where a pixel of the tile lies in the destination and in the residual.
struct Pixel {
  int64_t destination, residual;
};

__device__ __forceinline__ Pixel pixel_of(const Convolution& p, const Part& part, int row) {
  const ConstPlanes& residual = p.epilogue.residual;
  Pixel pixel;
  part.locate(row, [&](int n, int y, int x) {
    y = part.vertical.first + y * part.vertical.step;
    x = part.horizontal.first + x * part.horizontal.step;
    pixel.destination = n * p.destination.stride_n + y * p.destination.stride_h + x * p.destination.stride_w;
    pixel.residual = n * residual.stride_n + y * residual.stride_h + x * residual.stride_w;
  });
  return pixel;
}

template <class Product, bool kGather>
__global__ void __launch_bounds__(kGemmThreads, kGather ? 2 : Product::kBlocks)
    dilated_conv_gemm_kernel(Convolution p, Gemm g) {
  using T = typename Product::T;
  constexpr int V = kVector<T>;
  DYNAMIC_SHARED(unsigned char, shared);
  SHARED_ARRAY(int64_t, destinations, kRows);
  SHARED_ARRAY(int64_t, residuals, kRows);
  const Part part(p, g, blockIdx.x);
  if (part.rows <= 0) return;
  const int thread = static_cast<int>(threadIdx.x);
  if (!g.planar && thread < part.rows) {
    const Pixel pixel = pixel_of(p, part, thread);
    destinations[thread] = pixel.destination;
    residuals[thread] = pixel.residual;
  }

  multiply_tiles<Product, kGather>(p, g, part, shared);

  const float* const stage = reinterpret_cast<const float*>(shared);
  const ConstPlanes& residual = p.epilogue.residual;
  const int columns = p.destination_channels - part.column < kColumns ? p.destination_channels - part.column : kColumns;
  const int first_channel = part.group * p.destination_channels + part.column;
  T* const destination = static_cast<T*>(p.destination.data) + first_channel * p.destination.stride_c;
  const T* const added = residual.data ? static_cast<const T*>(residual.data) + first_channel * residual.stride_c : nullptr;
  // V results that lie side by side in the destination, the first of them of channel c of the tile.
  const auto store = [&](const Pixel& at, int c, const float* from, const ChannelEpilogue<float>(&channel)[V]) {
    float sum[V];
    read_staged(from, sum);
    T beside[V], out[V];
#pragma unroll
    for (int v = 0; v < V; ++v) beside[v] = device::from_float<T>(0);
    if (added) load_vector(added + (at.residual + c * residual.stride_c), beside);
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] = narrow<T>(finished<T>(p.epilogue, channel[v], sum[v], widen<float>(beside[v])));
    store_vector(destination + (at.destination + c * p.destination.stride_c), out);
  };
  const auto store_one = [&](const Pixel& at, int c, float sum) {
    const float beside = added ? widen<float>(device::load(added + (at.residual + c * residual.stride_c))) : 0.f;
    const ChannelEpilogue<float> channel(p.epilogue, first_channel + c);
    destination[at.destination + c * p.destination.stride_c] = narrow<T>(finished<T>(p.epilogue, channel, sum, beside));
  };

  if (g.planar) {
    constexpr int kLanes = kRows / V;
    const int r = g.wide ? thread % kLanes * V : thread;
    if (r >= part.rows) return;
    const Pixel pixel = pixel_of(p, part, r);
    if (g.wide) {
      for (int c = thread / kLanes; c < columns; c += kGemmThreads / kLanes) {
        ChannelEpilogue<float> channel[V];
        channel[0] = ChannelEpilogue<float>(p.epilogue, first_channel + c);
#pragma unroll
        for (int v = 1; v < V; ++v) channel[v] = channel[0];
        store(pixel, c, stage + c * Product::kChannelPitch + r, channel);
      }
    } else {
      for (int c = 0; c < columns; ++c) store_one(pixel, c, stage[c * Product::kChannelPitch + r]);
    }
  } else {
    const int lanes = g.wide ? kColumns / V : kColumns;
    const int c = g.wide ? thread % lanes * V : thread % lanes;
    if (c >= columns) return;
    ChannelEpilogue<float> channel[V];
    if (g.wide) {
#pragma unroll
      for (int v = 0; v < V; ++v) channel[v] = ChannelEpilogue<float>(p.epilogue, first_channel + c + v);
    }
    for (int r = thread / lanes; r < part.rows; r += kGemmThreads / lanes) {
      const Pixel pixel{destinations[r], residuals[r]};
      const float* const from = stage + r * Product::kPixelPitch + c;
      if (g.wide)
        store(pixel, c, from, channel);
      else
        store_one(pixel, c, *from);
    }
  }
}

// Whether pixels lie side by side over all rows, so that vectors of them are whole and aligned.
template <class Data>
bool pixels_fit(const PlanesOf<Data>& planes, int64_t element) {
  const auto whole = [&](int64_t extent, int64_t stride) { return extent <= 1 || stride * element % 16 == 0; };
  return planes.stride_w == 1 && (planes.height <= 1 || planes.stride_h == planes.width) &&
         planes.height * planes.width * element % 16 == 0 && whole(planes.channels, planes.stride_c) &&
         whole(planes.batch, planes.stride_n) && reinterpret_cast<uintptr_t>(planes.data) % 16 == 0;
}

int greatest_common_divisor(int a, int b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

Gemm gemm_of(const Convolution& p, const void* packed, int element) {
  const int V = 16 / element;
  const bool pixels_apart = p.transposed && (p.vertical.stride > 1 || p.horizontal.stride > 1);
  Gemm g{};
  g.packed = packed;
  g.channels_padded = static_cast<int>(rounded_up(p.source_channels, V));
  g.out_padded = static_cast<int>(rounded_up(p.destination_channels, kColumns));
  g.column_tiles = g.out_padded / kColumns;
  const auto phases = [&](const ConvAxis& axis) {
    return p.transposed ? (axis.stride < axis.out ? axis.stride : axis.out) : 1;
  };
  const auto tap_step = [&](const ConvAxis& axis) {
    return p.transposed ? axis.stride / greatest_common_divisor(axis.stride, axis.dilation) : 1;
  };
  g.phases_y = phases(p.vertical), g.phases_x = phases(p.horizontal);
  g.tap_step_y = tap_step(p.vertical), g.tap_step_x = tap_step(p.horizontal);
  g.planar = is_planar(p.destination);
  const auto wide = [&](const auto& planes) {
    if (g.planar) return pixels_fit(planes, element) && !pixels_apart;
    return vectors_fit(planes, element, false) && (p.groups == 1 || p.destination_channels % V == 0);
  };
  g.wide = wide(p.destination) && (!p.epilogue.residual.data || wide(p.epilogue.residual));
  return g;
}

template <class Product>
cudaError_t launch(Convolution p, void* scratch, cudaStream_t stream) {
  using T = typename Product::T;
  constexpr int V = kVector<T>;
  const Gemm g = gemm_of(p, scratch, sizeof(T));
  const int64_t chunks = gemm_scratch_bytes(p) / kChunkBytes;
  if (chunks > INT32_MAX) return cudaErrorInvalidValue;
  const unsigned pack_blocks = static_cast<unsigned>((chunks + kPackThreads - 1) / kPackThreads);
  constexpr bool kRounded = sizeof(T) == 4 && !std::is_same_v<Product, Scalar>;
  cudaError_t error = LAUNCH((dilated_conv_pack_kernel<T, kRounded>), pack_blocks, kPackThreads, 0, stream, p, g, scratch,
                             static_cast<unsigned>(chunks));
  if (error != cudaSuccess) return error;

  const bool gather = p.source_channels % V != 0 || !vectors_fit(p.source, sizeof(T), false);
  // Rows are counted in 32 bits: as many images at once as that allows.
  const int64_t pixels = p.destination.height * p.destination.width;
  const int64_t phases = static_cast<int64_t>(g.phases_y) * g.phases_x;
  const int64_t lines = (p.destination.height + g.phases_y - 1) / g.phases_y;
  const int64_t most_rows = lines * ((p.destination.width + g.phases_x - 1) / g.phases_x);  // of an image, in a phase
  if (pixels > INT32_MAX - kRows) return cudaErrorInvalidValue;
  const int64_t images = p.destination.batch, most_images = (INT32_MAX - kRows) / most_rows;
  for (int64_t first = 0; first < images; first += most_images) {
    const int64_t count = images - first < most_images ? images - first : most_images;
    Convolution slice = p;
    slice.source.data = static_cast<const T*>(p.source.data) + first * p.source.stride_n;
    slice.destination.data = static_cast<T*>(p.destination.data) + first * p.destination.stride_n;
    slice.destination.batch = count;
    if (ConstPlanes& residual = slice.epilogue.residual; residual.data)
      residual.data = static_cast<const T*>(residual.data) + first * residual.stride_n;
    const int64_t blocks = (count * most_rows + kRows - 1) / kRows * phases * g.column_tiles * p.groups;
    if (blocks > INT32_MAX) return cudaErrorInvalidValue;
    const unsigned grid = static_cast<unsigned>(blocks);
    error = gather ? LAUNCH((dilated_conv_gemm_kernel<Product, true>), grid, kGemmThreads, kRingBytes, stream, slice, g)
                   : LAUNCH((dilated_conv_gemm_kernel<Product, false>), grid, kGemmThreads, kRingBytes, stream, slice, g);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

int64_t gemm_scratch_bytes(const Convolution& p) {
  const int element = static_cast<int>(bytes_of(p.dtype));
  const Gemm g = gemm_of(p, nullptr, element);
  return static_cast<int64_t>(p.groups) * g.out_padded * p.taps() * g.channels_padded * element;
}

cudaError_t gemm(const Convolution& p, void* scratch, cudaStream_t stream) {
  switch (p.dtype) {
    case Dtype::float32: return p.fast ? launch<Matrix<float>>(p, scratch, stream) : launch<Scalar>(p, scratch, stream);
    case Dtype::bfloat16: return launch<Matrix<__nv_bfloat16>>(p, scratch, stream);
    default: return launch<Matrix<__half>>(p, scratch, stream);
  }
}

}  // namespace segops::cuda
