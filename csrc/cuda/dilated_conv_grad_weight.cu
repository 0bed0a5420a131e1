// dilated_conv2d_grad_weight: a product of matrices that sums over the pixels of all images. Rows are channels of the
// gradient, columns are taps, each with all channels of the input. The pixels are cut by shape alone, and the parts' sums
// are added in their order.
#include <type_traits>

#include "dilated_conv.cuh"
#include "dilated_conv_turned.cuh"

namespace segops::cuda {
namespace {

constexpr int kSumThreads = 256;
constexpr int kManyBlocks = 528;  // four for each multiprocessor of the largest devices
constexpr int kLeastSteps = 16;   // of a part

// What the kernels have to know besides the params.
struct Cut {
  float* sums;                            // [parts, groups, out_padded, columns_padded]
  int groups, out_channels, in_channels;  // channels of a group
  int tap_chunks, row_tiles, column_tiles, parts;
  int64_t pixels, pixels_of_part;
  int next_image, next_row, next_column;  // from a pixel to the one that the same thread has in the next step

  SEGOPS_HOST_DEVICE int64_t row_length() const { return static_cast<int64_t>(column_tiles) * kTurnedColumns; }
  SEGOPS_HOST_DEVICE int64_t part_length() const {
    return static_cast<int64_t>(groups) * row_tiles * kTurnedRows * row_length();
  }
};

// kGather: numbers are loaded one by one, lanes side by side in a row of the image; else 16 bytes of a pixel's channels are
// copied.
template <class Product, bool kGather>
__global__ void __launch_bounds__(kGemmThreads, 2) dilated_conv_grad_weight_kernel(DilatedConvGradWeight p, Cut cut) {
  using T = typename Product::T;
  using At = Turned<T>;
  constexpr int V = kVector<T>, kRowChunks = kTurnedRows / V / At::kLanes, kColumnChunks = kTurnedColumns / V / At::kLanes;
  DYNAMIC_SHARED(unsigned char, shared);
  unsigned block = blockIdx.x;
  const auto take = [&](int of) {
    const unsigned rest = block % static_cast<unsigned>(of);
    block /= static_cast<unsigned>(of);
    return static_cast<int>(rest);
  };
  const int column_tile = take(cut.column_tiles), row_tile = take(cut.row_tiles), group = take(cut.groups);
  const int64_t begin = block * cut.pixels_of_part;
  const int64_t count = cut.pixels - begin < cut.pixels_of_part ? cut.pixels - begin : cut.pixels_of_part;

  // A thread has one pixel of each step, and of that pixel every kLanes-th chunk of channels.
  const int thread = static_cast<int>(threadIdx.x);
  const int own = kGather ? thread % At::kPixels : thread / At::kLanes;
  const int lane = kGather ? thread / At::kPixels : thread % At::kLanes;
  const auto chunk_of = [&](int i) { return lane + At::kLanes * (i ^ (kGather ? 0 : own & At::kAlternate)); };
  const int64_t plane = p.grad_output.height * p.grad_output.width, at = begin + own;
  const int64_t image = at / plane;
  const int rest = static_cast<int>(at - image * plane), width = static_cast<int>(p.grad_output.width);
  int64_t n = image, left = count - own;
  int row = static_cast<int>(static_cast<unsigned>(rest) / static_cast<unsigned>(width)), column = rest - row * width;

  const T* const input =
      static_cast<const T*>(p.input.data) + static_cast<int64_t>(group) * cut.in_channels * p.input.stride_c;
  const T* const gradient =
      static_cast<const T*>(p.grad_output.data) + static_cast<int64_t>(group) * cut.out_channels * p.grad_output.stride_c;
  int from_y[kColumnChunks], from_x[kColumnChunks], channel[kColumnChunks];
#pragma unroll
  for (int i = 0; i < kColumnChunks; ++i) {
    const unsigned chunk = static_cast<unsigned>(column_tile * (kTurnedColumns / V) + chunk_of(i));
    const unsigned tap = chunk / static_cast<unsigned>(cut.tap_chunks), kernel_w = static_cast<unsigned>(p.window.kernel_w);
    channel[i] = static_cast<int>(chunk - tap * static_cast<unsigned>(cut.tap_chunks)) * V;
    if (tap >= static_cast<unsigned>(p.window.kernel_h) * kernel_w) channel[i] = cut.in_channels;
    from_y[i] = static_cast<int>(tap / kernel_w * p.window.dilation_h - p.window.padding_h);
    from_x[i] = static_cast<int>(tap % kernel_w * p.window.dilation_w - p.window.padding_w);
  }

  // Calls rows(i, whether there, offset, channel) and columns(...) for the chunks of the thread's pixel, and goes on.
  const auto visit = [&](const auto& rows, const auto& columns) {
    const bool there = left > 0;
    const int64_t pixel = n * p.grad_output.stride_n + row * p.grad_output.stride_h + column * p.grad_output.stride_w;
#pragma unroll
    for (int i = 0; i < kRowChunks; ++i) {
      const int c = row_tile * kTurnedRows + chunk_of(i) * V;
      rows(i, there && c < cut.out_channels, pixel + c * p.grad_output.stride_c, c);
    }
    const int top = row * static_cast<int>(p.window.stride_h), start = column * static_cast<int>(p.window.stride_w);
#pragma unroll
    for (int i = 0; i < kColumnChunks; ++i) {
      const int y = top + from_y[i], x = start + from_x[i];
      const bool inside = static_cast<unsigned>(y) < static_cast<unsigned>(p.input.height) &&
                          static_cast<unsigned>(x) < static_cast<unsigned>(p.input.width);
      columns(i, there && inside && channel[i] < cut.in_channels,
              n * p.input.stride_n + y * p.input.stride_h + x * p.input.stride_w + channel[i] * p.input.stride_c,
              channel[i]);
    }
    left -= At::kPixels;
    n += cut.next_image;
    row += cut.next_row;
    column += cut.next_column;
    if (column >= width) column -= width, ++row;
    if (row >= static_cast<int>(p.grad_output.height)) row -= static_cast<int>(p.grad_output.height), ++n;
  };

  T fetched[kRowChunks + kColumnChunks][V];
  const auto load_into = [&](int stage) {
    unsigned char *const rows = shared + stage * kStageBytes, *const columns = rows + At::kRowsBytes;
    if constexpr (kGather) {
      const auto gather = [&](T(&to)[V], bool there, const T* from, int64_t step, int of) {
#pragma unroll
        for (int v = 0; v < V; ++v) to[v] = there && v < of ? device::load(from + v * step) : device::from_float<T>(0);
      };
      visit([&](int i, bool there, int64_t from,
                int c) { gather(fetched[i], there, gradient + from, p.grad_output.stride_c, cut.out_channels - c); },
            [&](int i, bool there, int64_t from, int c) {
              gather(fetched[kRowChunks + i], there, input + from, p.input.stride_c, cut.in_channels - c);
            });
    } else {
      const auto copy = [&](unsigned char* to, bool there, const T* from) {
        if (there)
          device::cp_async_16(to, from);
        else
          put_zeros(to);
      };
      visit([&](int i, bool there, int64_t from,
                int) { copy(rows + At::row_chunk(own, chunk_of(i)), there, gradient + from); },
            [&](int i, bool there, int64_t from, int) {
              copy(columns + At::column_chunk(own, chunk_of(i)), there, input + from);
            });
    }
  };
  const auto put = [&](int stage) {
    unsigned char *const rows = shared + stage * kStageBytes, *const columns = rows + At::kRowsBytes;
#pragma unroll
    for (int i = 0; i < kRowChunks + kColumnChunks; ++i) {
      uint4 piece;
      copy_bits(&piece, fetched[i], 16);
      unsigned char* const to = i < kRowChunks ? rows + At::row_chunk(own, chunk_of(i))
                                               : columns + At::column_chunk(own, chunk_of(i - kRowChunks));
      *reinterpret_cast<uint4*>(to) = piece;
    }
  };

  Sums sums = {};
  const int steps = static_cast<int>((count + At::kPixels - 1) / At::kPixels);
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < steps) {
      load_into(stage);
      if constexpr (kGather) put(stage);
    }
    device::cp_async_commit();
  }
  int from = 0, to = kStages - 1;
  for (int step = 0; step < steps; ++step) {
    device::cp_async_wait<kStages - 2>();
    SYNC_THREADS();
    const bool more = step + kStages - 1 < steps;
    if (more) load_into(to);
    device::cp_async_commit();
    const unsigned char* const rows = shared + from * kStageBytes;
    Product::add(sums, rows, rows + At::kRowsBytes);
    if constexpr (kGather)
      if (more) put(to);
    from = from == kStages - 1 ? 0 : from + 1;
    to = to == kStages - 1 ? 0 : to + 1;
  }
  Product::store(sums,
                 cut.sums + block * cut.part_length() +
                     (static_cast<int64_t>(group) * cut.row_tiles + row_tile) * kTurnedRows * cut.row_length() +
                     static_cast<int64_t>(column_tile) * kTurnedColumns,
                 cut.row_length());
}

// Adds up the parts. Lanes are side by side in the sums.
template <class T>
__global__ void __launch_bounds__(kSumThreads, 1) dilated_conv_grad_weight_combine_kernel(DilatedConvGradWeight p, Cut cut) {
  const unsigned index = blockIdx.x * kSumThreads + threadIdx.x,
                 per_tap = static_cast<unsigned>(cut.tap_chunks) * kVector<T>;
  const unsigned taps = static_cast<unsigned>(p.window.kernel_h * p.window.kernel_w);
  const unsigned c = index % per_tap, pair = index / per_tap, tap = pair % taps, out = pair / taps;
  if (out >= static_cast<unsigned>(cut.groups * cut.out_channels) || c >= static_cast<unsigned>(cut.in_channels)) return;
  const unsigned group = out / static_cast<unsigned>(cut.out_channels), row = out % static_cast<unsigned>(cut.out_channels);
  const float* from = cut.sums + (static_cast<int64_t>(group) * cut.row_tiles * kTurnedRows + row) * cut.row_length() +
                      static_cast<int64_t>(tap) * per_tap + c;
  float sum = 0;
  for (int part = 0; part < cut.parts; ++part, from += cut.part_length()) sum += *from;
  static_cast<T*>(p.grad_weight)[(static_cast<int64_t>(out) * cut.in_channels + c) * taps + tap] = narrow<T>(sum);
}

// For float64, and groups of few channels: a block sums one weight, or, lanes across the channels of a pixel, one weight of
// 32 channels of the gradient.
template <class T, bool kAcross>
__global__ void __launch_bounds__(kSumThreads, 1)
    dilated_conv_grad_weight_direct_kernel(DilatedConvGradWeight p, unsigned in_channels, unsigned out_channels) {
  using A = AccumulatorOf<T>;
  constexpr unsigned kSide = kAcross ? device::kWarp : 1, kStrands = kSumThreads / kSide;
  SHARED_ARRAY(A, sums, kSumThreads);
  const unsigned kernel_w = static_cast<unsigned>(p.window.kernel_w);
  const unsigned taps = static_cast<unsigned>(p.window.kernel_h) * kernel_w;
  const unsigned tap = blockIdx.x % taps, pair = blockIdx.x / taps, c = pair % in_channels;
  const unsigned out = pair / in_channels * kSide + threadIdx.x % kSide, strand = threadIdx.x / kSide;
  const unsigned group = out / out_channels;
  const int64_t from_y = (tap / kernel_w) * p.window.dilation_h - p.window.padding_h;
  const int64_t from_x = (tap % kernel_w) * p.window.dilation_w - p.window.padding_w;
  const T* const plane = static_cast<const T*>(p.input.data) + (group * in_channels + c) * p.input.stride_c;
  const T* const gradient = static_cast<const T*>(p.grad_output.data) + out * p.grad_output.stride_c;

  const unsigned width = static_cast<unsigned>(p.grad_output.width);
  const unsigned pixels = width * static_cast<unsigned>(p.grad_output.height);
  const bool there = out < p.grad_output.channels;
  A sum = 0;
  for (int64_t n = 0; n < p.grad_output.batch; ++n) {
    for (unsigned i = strand; there && i < pixels; i += kStrands) {
      const int64_t oy = i / width, ox = i % width;
      const int64_t y = oy * p.window.stride_h + from_y, x = ox * p.window.stride_w + from_x;
      if (y < 0 || y >= p.input.height || x < 0 || x >= p.input.width) continue;
      sum += widen<A>(device::load(plane + n * p.input.stride_n + y * p.input.stride_h + x * p.input.stride_w)) *
             widen<A>(device::load(gradient + n * p.grad_output.stride_n + oy * p.grad_output.stride_h +
                                   ox * p.grad_output.stride_w));
    }
  }
  sums[threadIdx.x] = sum;
#pragma unroll
  for (unsigned half = kSumThreads / 2; half >= kSide; half /= 2) {
    SYNC_THREADS();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x < kSide && there)
    static_cast<T*>(p.grad_weight)[(static_cast<int64_t>(out) * in_channels + c) * taps + tap] =
        narrow<T>(sums[threadIdx.x]);
}

bool has_many_channels(const DilatedConvGradWeight& p) {
  return fills_tiles(p.dtype, p.input.channels / p.groups, p.grad_output.channels / p.groups);
}

template <class T>
cudaError_t direct(const DilatedConvGradWeight& p, cudaStream_t stream) {
  const bool across = !is_planar(p.grad_output) && !is_planar(p.input);
  const int64_t taps = p.window.kernel_h * p.window.kernel_w, in_channels = p.input.channels / p.groups;
  const int64_t outs = across ? (p.grad_output.channels + device::kWarp - 1) / device::kWarp : p.grad_output.channels;
  const int64_t blocks = outs * in_channels * taps;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX || p.grad_output.height * p.grad_output.width > INT32_MAX) return cudaErrorInvalidValue;
  const unsigned grid = static_cast<unsigned>(blocks), of_group = static_cast<unsigned>(p.grad_output.channels / p.groups);
  return across ? LAUNCH((dilated_conv_grad_weight_direct_kernel<T, true>), grid, kSumThreads, 0, stream, p, in_channels,
                         of_group)
                : LAUNCH((dilated_conv_grad_weight_direct_kernel<T, false>), grid, kSumThreads, 0, stream, p, in_channels,
                         of_group);
}

Cut cut_of(const DilatedConvGradWeight& p, void* scratch) {
  const int element = static_cast<int>(bytes_of(p.dtype)), vector = 16 / element, step = 64 / element;
  const auto over = [](int64_t x, int64_t by) { return static_cast<int>((x + by - 1) / by); };
  const int64_t width = p.grad_output.width, height = p.grad_output.height;
  Cut cut{};
  cut.sums = static_cast<float*>(scratch);
  cut.groups = static_cast<int>(p.groups);
  cut.out_channels = static_cast<int>(p.grad_output.channels / p.groups);
  cut.in_channels = static_cast<int>(p.input.channels / p.groups);
  cut.tap_chunks = over(cut.in_channels, vector);
  cut.row_tiles = over(cut.out_channels, kTurnedRows);
  cut.column_tiles = over(p.window.kernel_h * p.window.kernel_w * cut.tap_chunks, kTurnedColumns / vector);
  cut.pixels = p.grad_output.batch * height * width;
  const int64_t tiles = static_cast<int64_t>(cut.groups) * cut.row_tiles * cut.column_tiles;
  const int64_t steps = (cut.pixels + step - 1) / step, most = (steps + kLeastSteps - 1) / kLeastSteps;
  int64_t parts = tiles < kManyBlocks ? (kManyBlocks + tiles - 1) / tiles : 1;
  parts = parts < most ? parts : most > 0 ? most : 1;
  const int64_t steps_of_part = steps > 0 ? (steps + parts - 1) / parts : 1;
  cut.pixels_of_part = steps_of_part * step;
  cut.parts = steps > 0 ? over(steps, steps_of_part) : 1;
  cut.next_image = static_cast<int>(step / (width * height));
  cut.next_row = static_cast<int>(step / width % height);
  cut.next_column = static_cast<int>(step % width);
  return cut;
}

template <class Product>
cudaError_t launch(const DilatedConvGradWeight& p, void* scratch, cudaStream_t stream) {
  using T = typename Product::T;
  const Cut cut = cut_of(p, scratch);
  const auto fits = [](const ConstPlanes& planes, int channels) {
    return channels % kVector<T> == 0 && vectors_fit(planes, sizeof(T), false);
  };
  const bool gather = !fits(p.input, cut.in_channels) || !fits(p.grad_output, cut.out_channels);
  const int64_t taps = p.window.kernel_h * p.window.kernel_w;
  const int64_t blocks = static_cast<int64_t>(cut.parts) * cut.groups * cut.row_tiles * cut.column_tiles;
  const int64_t sums = p.grad_output.channels * taps * cut.tap_chunks * kVector<T>;
  if (blocks > INT32_MAX || sums > INT32_MAX - kSumThreads || p.grad_output.height * p.grad_output.width > INT32_MAX)
    return cudaErrorInvalidValue;
  const unsigned grid = static_cast<unsigned>(blocks);
  const cudaError_t error =
      gather ? LAUNCH((dilated_conv_grad_weight_kernel<Product, true>), grid, kGemmThreads, kRingBytes, stream, p, cut)
             : LAUNCH((dilated_conv_grad_weight_kernel<Product, false>), grid, kGemmThreads, kRingBytes, stream, p, cut);
  if (error != cudaSuccess) return error;
  return LAUNCH(dilated_conv_grad_weight_combine_kernel<T>, static_cast<unsigned>((sums + kSumThreads - 1) / kSumThreads),
                kSumThreads, 0, stream, p, cut);
}

}  // namespace

int64_t dilated_conv2d_grad_weight_scratch_bytes(const DilatedConvGradWeight& p) {
  if (!has_many_channels(p) || is_empty(p.grad_output)) return 0;
  const Cut cut = cut_of(p, nullptr);
  return cut.parts * cut.part_length() * static_cast<int64_t>(sizeof(float));
}

Failure dilated_conv2d_grad_weight(const DilatedConvGradWeight& p, void* scratch, void* stream) {
  if (!conv_axes_fit(p.window, p.input.height, p.input.width)) return failure(cudaErrorInvalidValue);
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  const bool direct_sum = !has_many_channels(p) || is_empty(p.grad_output);  // of nothing: zeros
  switch (p.dtype) {
    case Dtype::float32:
      if (direct_sum) return failure(direct<float>(p, queue));
      return failure(p.fast ? launch<TurnedTf32>(p, scratch, queue) : launch<TurnedScalar>(p, scratch, queue));
    case Dtype::float64: return failure(direct<double>(p, queue));
    case Dtype::bfloat16:
      return failure(direct_sum ? direct<__nv_bfloat16>(p, queue) : launch<TurnedMatrix<__nv_bfloat16>>(p, scratch, queue));
    default: return failure(direct_sum ? direct<__half>(p, queue) : launch<TurnedMatrix<__half>>(p, scratch, queue));
  }
}

}  // namespace segops::cuda
