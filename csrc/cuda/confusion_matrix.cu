// confusion_matrix: a block counts the pixels of its chunk in shared memory and adds its counts to the results, which are
// integers: the order of atomics changes nothing. Matrices too large for that are counted where they are.
//
// Logits are read in the tiles of dice_ce_loss, a few classes at a time: a lane keeps the largest logits of its pixels so
// far, and their classes, in registers.
#include "dice_ce_loss_rows.cuh"
#include "run.cuh"
#include "segops/confusion_matrix.h"

namespace segops::cuda {
namespace {

using dice_ce::Held;
using dice_ce::lane_id;
using dice_ce::RowLayout;
using dice_ce::warp_id;

constexpr int kThreads = 256, kWarps = kThreads / device::kWarp;
constexpr int kGroup = 8;              // classes of a lane's pixels that are loaded at once
constexpr int kLoads = 4;              // pixels of a label map that a thread loads at once
constexpr int64_t kMostShared = 8192;  // cells counted in shared memory: 32 KB
constexpr int kMostStaged = 48 * 1024;

template <class T, bool kRows>
constexpr int kOwned = kRows ? 1 : 16 / static_cast<int>(sizeof(T));

// Chunks of the pixels of one image, by shape alone: about eight to each multiprocessor of the largest devices.
struct Cut {
  int64_t chunk, of_image, blocks;

  explicit Cut(const ConfusionMatrix& p) {
    constexpr int64_t kStep = 2048, kMost = 1 << 20, kBlocks = 1056;
    chunk = (p.batch * p.pixels / kBlocks + kStep - 1) / kStep * kStep;
    chunk = chunk < kStep ? kStep : chunk > kMost ? kMost : chunk;
    of_image = (p.pixels + chunk - 1) / chunk;
    blocks = p.batch * of_image;
  }
};

struct Chunk {
  int64_t image, begin;  // first pixel within the image
  int count;

  __device__ Chunk(const ConfusionMatrix& p, const Cut& cut) {
    image = blockIdx.x / cut.of_image;
    begin = blockIdx.x % cut.of_image * cut.chunk;
    const int64_t rest = p.pixels - begin;
    count = static_cast<int>(rest < cut.chunk ? rest : cut.chunk);
  }
};

// What the blocks found of bad data, one record each.
struct Found {
  BadData *labels, *predictions;
};

// Labels as int64 from `at`, `at + step` and so on, as far as `end`; 0 beyond.
template <int kCount>
__device__ __forceinline__ void load_labels(Dtype dtype, const void* labels, int64_t at, int step, int64_t end,
                                            int64_t (&value)[kCount]) {
  const auto load = [&](auto* typed) {
#pragma unroll
    for (int v = 0; v < kCount; ++v) value[v] = at + v * step < end ? device::load(typed + at + v * step) : 0;
  };
  switch (dtype) {
    case Dtype::uint8: return load(static_cast<const uint8_t*>(labels));
    case Dtype::int16: return load(static_cast<const int16_t*>(labels));
    case Dtype::int32: return load(static_cast<const int32_t*>(labels));
    default: return load(static_cast<const int64_t*>(labels));
  }
}

__device__ __forceinline__ void record(BadData& bad, int64_t position, int64_t value) {
  if (bad.count++ == 0) bad = BadData{1, position, value};
}

// The label as an index, or -1 if it is ignored or bad, which is recorded.
__device__ __forceinline__ int known_label(const ConfusionMatrix& p, int64_t position, int64_t label, BadData& bad) {
  if (p.has_ignore_index && label == p.ignore_index) return -1;
  if (label >= 0 && label < p.classes) return static_cast<int>(label);
  record(bad, position, label);
  return -1;
}

// The counts of a block: in shared memory, or the results. All lanes of a warp add at once; no label is -1.
struct Counts {
  unsigned* shared;
  unsigned long long* results;
  int64_t classes;

  __device__ __forceinline__ void clear() const {
    for (int i = static_cast<int>(threadIdx.x); shared && i < classes * classes; i += static_cast<int>(blockDim.x))
      shared[i] = 0;
    SYNC_THREADS();
  }

  __device__ __forceinline__ void add(int label, int predicted) const {
    if (shared) {
      if (label >= 0) device::atomic_add(shared + label * static_cast<int>(classes) + predicted, 1u);
      return;
    }
    const int64_t cell = label >= 0 ? label * classes + predicted : -1;
    // Within a region, all lanes have the same cell.
    const bool same = device::all(cell == device::shuffle(cell, 0));
    if (cell >= 0 && (!same || lane_id() == 0)) device::atomic_add(results + cell, same ? 32ull : 1ull);
  }

  __device__ __forceinline__ void flush() const {
    SYNC_THREADS();
    for (int i = static_cast<int>(threadIdx.x); shared && i < classes * classes; i += static_cast<int>(blockDim.x))
      if (shared[i] > 0) device::atomic_add(results + i, static_cast<unsigned long long>(shared[i]));
  }
};

// One record of all threads' records.
__device__ __forceinline__ void leave(BadData bad, BadData* of_warp, BadData* to) {
  bad = warp_merge(bad);
  SYNC_THREADS();
  if (lane_id() == 0) of_warp[warp_id()] = bad;
  SYNC_THREADS();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < static_cast<int>(blockDim.x) / device::kWarp; ++w) bad = merge(bad, of_warp[w]);
  *to = bad;
}

// How logits are read, decided once a launch.
struct Reading {
  bool vector;  // 16 bytes at a time, of a class or, channels last, of a whole tile
  bool staged;  // channels last: tiles, which are one run of memory, go through shared memory
  int warps;
  bool shared_counts;
};

// Of a warp's tile: rows that begin at 16 bytes, or anywhere.
SEGOPS_HOST_DEVICE inline int staged_bytes(const ConfusionMatrix& p, int element) {
  return RowLayout(p.classes, element).tile() + 16;
}

// Offsets into dynamic shared memory.
template <class T, bool kRows>
struct Shared {
  int counts, labels, rows, bytes;

  SEGOPS_HOST_DEVICE Shared(const ConfusionMatrix& p, const Reading& reading) {
    Parts parts;
    counts = parts.take(reading.shared_counts ? p.classes * p.classes * 4 : 0);
    labels = parts.take(kRows ? 0 : reading.warps * device::kWarp * kOwned<T, kRows> * 4);
    rows = parts.take(reading.staged ? reading.warps * staged_bytes(p, sizeof(T)) : 0);
    bytes = parts.bytes;
  }
};

template <class T, bool kRows>
__global__ void __launch_bounds__(kThreads, 2)
    confusion_matrix_logits_kernel(ConfusionMatrix p, Cut cut, Reading reading, Found found) {
  using A = AccumulatorOf<T>;
  constexpr int V = kOwned<T, kRows>, kTile = device::kWarp * V;
  const Chunk chunk(p, cut);
  const Shared<T, kRows> at(p, reading);
  const int classes = static_cast<int>(p.classes);
  DYNAMIC_SHARED(unsigned char, shared);
  SHARED_ARRAY(BadData, bad_of_warp, kWarps);
  const Counts counts{reading.shared_counts ? reinterpret_cast<unsigned*>(shared + at.counts) : nullptr,
                      reinterpret_cast<unsigned long long*>(p.counts), p.classes};
  int32_t* const labels = reinterpret_cast<int32_t*>(shared + at.labels) + warp_id() * kTile;
  const RowLayout layout(classes, sizeof(T));
  unsigned char* const rows = shared + at.rows + warp_id() * staged_bytes(p, sizeof(T));
  const T* const image = static_cast<const T*>(p.prediction) + chunk.image * p.stride_n;
  BadData bad{0, 0, 0};
  counts.clear();

  for (int first = warp_id() * kTile; first < chunk.count; first += reading.warps * kTile) {
    const int rest = chunk.count - first < kTile ? chunk.count - first : kTile;
    const int64_t position = chunk.image * p.pixels + chunk.begin + first;
    const T* const tile = image + (chunk.begin + first) * p.stride_s;
    const bool whole = kRows && reading.vector && rest == kTile;
    const Run<T> run(const_cast<T*>(tile), rest * classes, reinterpret_cast<uint4*>(rows));
    // Labels are loaded side by side; where a lane owns several pixels, they are handed over in shared memory.
    int64_t raw[V];
    load_labels(p.target_dtype, p.target, position + lane_id(), device::kWarp, position + rest, raw);
    if (kRows && reading.staged) {
      SYNC_WARP();  // the tile before has been read
      if (whole) {
        dice_ce::stage(tile, rows, layout, lane_id(), device::kWarp);
      } else {
        run.fetch(lane_id(), device::kWarp);
        device::cp_async_commit();
        device::cp_async_wait<0>();
      }
    }
    int32_t label[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int from = lane_id() + v * device::kWarp;
      label[v] = from < rest ? known_label(p, position + from, raw[v], bad) : -1;
    }
    if constexpr (V > 1) {
      SYNC_WARP();
#pragma unroll
      for (int v = 0; v < V; ++v) labels[lane_id() + v * device::kWarp] = label[v];
      SYNC_WARP();
      dice_ce::read_owned<V>(labels, reading.vector, label);
    }
    if (kRows && reading.staged) SYNC_WARP();

    A best[V];
    int winner[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      best[v] = -A(INFINITY);
      winner[v] = 0;
    }
    for (int c = 0; c < classes; c += kGroup) {
      const int group = classes - c < kGroup ? classes - c : kGroup;
      Held<T, kGroup, V> held;
      if constexpr (!kRows) {
        held.load_planes(tile + c * p.stride_c, p.stride_c, group, rest, reading.vector);
      } else {
        const T* const own = whole            ? reinterpret_cast<const T*>(rows + lane_id() * layout.stride) + c
                             : reading.staged ? run.shared + lane_id() * classes + c
                                              : tile + lane_id() * p.stride_s + c;
        if (whole && layout.bytes % 16 == 0)
          held.load_pieces(reinterpret_cast<const uint4*>(own), group);
        else if (reading.staged)
          held.load_row(group, lane_id() < rest, [&](int k) { return own[k]; });
        else
          held.load_row(group, lane_id() < rest, [&](int k) { return device::load(own + k); });
      }
      // Classes beyond the last are minus infinity.
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A x = held.x[k].get(v);
          const bool better = !(x <= best[v]) && best[v] == best[v];  // the first NaN stands as well
          best[v] = better ? x : best[v];
          winner[v] = better ? c + k : winner[v];
        }
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) counts.add(label[v], winner[v]);
  }
  counts.flush();
  leave(bad, bad_of_warp, found.labels + blockIdx.x);
}

__global__ void __launch_bounds__(kThreads, 1)
    confusion_matrix_classes_kernel(ConfusionMatrix p, Cut cut, bool shared_counts, Found found) {
  const Chunk chunk(p, cut);
  DYNAMIC_SHARED(unsigned, shared);
  SHARED_ARRAY(BadData, bad_of_warp, kWarps);
  const Counts counts{shared_counts ? shared : nullptr, reinterpret_cast<unsigned long long*>(p.counts), p.classes};
  BadData bad_labels{0, 0, 0}, bad_predictions{0, 0, 0};
  counts.clear();
  const int64_t begin = chunk.image * p.pixels + chunk.begin, end = begin + chunk.count;
  for (int64_t first = begin; first < end; first += kLoads * kThreads) {
    const int64_t at = first + threadIdx.x;
    int64_t label[kLoads], predicted[kLoads];
    load_labels(p.target_dtype, p.target, at, kThreads, end, label);
    load_labels(p.prediction_dtype, p.prediction, at, kThreads, end, predicted);
#pragma unroll
    for (int v = 0; v < kLoads; ++v) {
      const int64_t position = at + v * kThreads;
      int known = position < end ? known_label(p, position, label[v], bad_labels) : -1;
      if (known >= 0 && !(predicted[v] >= 0 && predicted[v] < p.classes)) {
        record(bad_predictions, position, predicted[v]);
        known = -1;
      }
      counts.add(known, static_cast<int>(predicted[v]));
    }
  }
  counts.flush();
  leave(bad_labels, bad_of_warp, found.labels + blockIdx.x);
  leave(bad_predictions, bad_of_warp, found.predictions + blockIdx.x);
}

// The records of all blocks as one of each kind.
__global__ void __launch_bounds__(kThreads, 1)
    confusion_matrix_combine_kernel(ConfusionMatrix p, int64_t blocks, Found found) {
  SHARED_ARRAY(BadData, bad_of_warp, kWarps);
  BadData labels{0, 0, 0}, predictions{0, 0, 0};
  for (int64_t i = threadIdx.x; i < blocks; i += kThreads) {
    labels = merge(labels, found.labels[i]);
    if (p.bad_predictions) predictions = merge(predictions, found.predictions[i]);
  }
  leave(labels, bad_of_warp, p.bad_labels);
  if (p.bad_predictions) leave(predictions, bad_of_warp, p.bad_predictions);
}

// Planar: every class begins at 16 bytes and is a whole number of them. Channels last: every image begins at 16 bytes.
bool vectors_fit(const ConfusionMatrix& p, int64_t element) {
  const auto whole = [&](int64_t elements) { return elements * element % 16 == 0; };
  if (reinterpret_cast<uintptr_t>(p.prediction) % 16 != 0 || (p.batch > 1 && !whole(p.stride_n))) return false;
  if (p.stride_s == 1) return (p.classes == 1 || whole(p.stride_c)) && whole(p.pixels);
  return p.stride_s == p.classes;
}

template <class T, bool kRows>
cudaError_t launch_logits(const ConfusionMatrix& p, const Cut& cut, const Found& found, cudaStream_t stream) {
  const bool staged =
      kRows && p.stride_s == p.classes && p.classes <= kMostStaged && staged_bytes(p, sizeof(T)) <= kMostStaged;
  Reading reading{vectors_fit(p, sizeof(T)) && (!kRows || staged), staged, kWarps, p.classes * p.classes <= kMostShared};
  if (staged) {
    const int fit = kMostStaged / staged_bytes(p, sizeof(T));
    reading.warps = fit < kWarps ? fit : kWarps;
  }
  const int bytes = Shared<T, kRows>(p, reading).bytes;
  const cudaError_t allowed = OPT_IN_SHARED((confusion_matrix_logits_kernel<T, kRows>), bytes);
  if (allowed != cudaSuccess) return allowed;
  return LAUNCH((confusion_matrix_logits_kernel<T, kRows>), static_cast<unsigned>(cut.blocks), reading.warps * device::kWarp,
                bytes, stream, p, cut, reading, found);
}

template <class T>
cudaError_t launch_logits(const ConfusionMatrix& p, const Cut& cut, const Found& found, cudaStream_t stream) {
  return p.stride_s == 1 ? launch_logits<T, false>(p, cut, found, stream) : launch_logits<T, true>(p, cut, found, stream);
}

cudaError_t launch_count(const ConfusionMatrix& p, const Cut& cut, const Found& found, cudaStream_t stream) {
  if (p.of_logits())
    return as_float(p.prediction_dtype, [&]<class T>(T) { return launch_logits<T>(p, cut, found, stream); });
  const bool shared = p.classes * p.classes <= kMostShared;
  return LAUNCH(confusion_matrix_classes_kernel, static_cast<unsigned>(cut.blocks), kThreads,
                shared ? static_cast<size_t>(p.classes * p.classes * 4) : 0, stream, p, cut, shared, found);
}

}  // namespace

int64_t confusion_matrix_scratch_bytes(const ConfusionMatrix& p) {
  return 2 * Cut(p).blocks * static_cast<int64_t>(sizeof(BadData));
}

Failure confusion_matrix(const ConfusionMatrix& p, void* scratch, void* stream) {
  const Cut cut(p);
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  if (cut.blocks > INT32_MAX || p.classes > INT32_MAX) return failure(cudaErrorInvalidValue);
  const Found found{static_cast<BadData*>(scratch), static_cast<BadData*>(scratch) + cut.blocks};
  if (cut.blocks > 0) {
    const cudaError_t error = launch_count(p, cut, found, queue);
    if (error != cudaSuccess) return failure(error);
  }
  return failure(LAUNCH(confusion_matrix_combine_kernel, 1, kThreads, 0, queue, p, cut.blocks, found));
}

}  // namespace segops::cuda
