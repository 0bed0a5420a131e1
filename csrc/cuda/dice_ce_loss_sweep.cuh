// dice_ce_loss for more classes than registers hold: two sweeps over the classes of a tile, the second from cache.
//
// The warps of a block share a tile of 32 * V pixels and deal out its classes in groups of eight. The first sweep finds each
// warp's maximum and sum of exponentials, online (Milakov and Gimelshein, "Online normalizer calculation for softmax",
// 2018), a rescaling a group; the warps' results are put together in shared memory; the second sweep uses them.
#pragma once
#include "dice_ce_loss_rows.cuh"

namespace segops::cuda::dice_ce {

constexpr int kGroup = 8, kSweepWarps = kSweepThreads / device::kWarp;

// Calls body(first class, classes in the group) for this warp's groups, in order.
template <class Body>
__device__ __forceinline__ void for_each_group(int classes, const Body& body) {
  for (int c = warp_id() * kGroup; c < classes; c += kSweepWarps * kGroup)
    body(c, classes - c < kGroup ? classes - c : kGroup);
}

// Channels last: a full tile goes through shared memory, up to this size; what is larger, or the end of an image, is read
// where it is, a row a lane.
constexpr int kMostStaged = 64 * 1024;

template <class T, bool kRows>
SEGOPS_HOST_DEVICE inline int staged_bytes(const DiceCeLossInputs& in) {
  const int64_t bytes = kRows ? device::kWarp * (in.classes * static_cast<int64_t>(sizeof(T)) + 16) : 0;
  return bytes <= kMostStaged ? static_cast<int>(bytes) : 0;
}

// Whether rows, and with them groups, are whole pieces of 16 bytes.
template <class T>
__device__ __forceinline__ bool whole_pieces(int64_t classes) {
  return classes * static_cast<int64_t>(sizeof(T)) % 16 == 0;
}

// A group's logits of this lane's pixels. `tile` begins at class 0 of the tile's first pixel and has `count` pixels;
// `staged` is this lane's row in shared memory, or null.
template <class T, bool kRows>
__device__ __forceinline__ Held<T, kGroup, kOwned<T, kGroup, kRows>> load_group(const DiceCeLossInputs& in, const T* tile,
                                                                                int c, int group, int count, bool vector,
                                                                                const unsigned char* staged) {
  Held<T, kGroup, kOwned<T, kGroup, kRows>> held;
  if constexpr (!kRows) {
    held.load_planes(tile + c * in.stride_c, in.stride_c, group, count, vector);
  } else {
    const T* own = staged ? reinterpret_cast<const T*>(staged) + c : tile + lane_id() * in.stride_s + c;
    if (staged && whole_pieces<T>(in.classes))
      held.load_pieces(reinterpret_cast<const uint4*>(own), group);
    else if (staged)
      held.load_row(group, true, [&](int k) { return own[k]; });
    else
      held.load_row(group, lane_id() < count, [&](int k) { return device::load(own + k); });
  }
  return held;
}

// The softmax of a lane's pixels, from all warps' shares of the classes.
template <class T, int V>
struct Normaliser {
  using A = AccumulatorOf<T>;
  A most[V], sum[V];

  __device__ __forceinline__ Normaliser() {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      most[v] = -A(INFINITY);
      sum[v] = 0;
    }
  }

  // Takes a new maximum in; returns what sums over exponentials so far have to be multiplied by.
  __device__ __forceinline__ A raise(int v, A to) {
    to = larger(most[v], to);
    const A factor = to == most[v] ? A(1) : exponential<T>(most[v] - to);
    most[v] = to;
    sum[v] *= factor;
    return factor;
  }

  // What to subtract: as long as all logits are -infinity, nothing.
  __device__ __forceinline__ A shift(int v) const { return most[v] == -A(INFINITY) ? A(0) : most[v]; }

  // Exchanges the warps' results through shared memory, [warps, 32 V] each. `extra` is a further sum over exponentials,
  // to the power `squared ? 2 : 1`, or null.
  __device__ __forceinline__ void merge(A* all_most, A* all_sum, A* all_extra, A (*extra)[V], bool squared) {
    constexpr int kTile = device::kWarp * V;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int at = warp_id() * kTile + v * device::kWarp + lane_id();
      all_most[at] = most[v];
      all_sum[at] = sum[v];
      if (extra) all_extra[at] = (*extra)[v];
    }
    SYNC_THREADS();
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int at = v * device::kWarp + lane_id();
      A top = all_most[at];
      for (int w = 1; w < kSweepWarps; ++w) top = larger(top, all_most[w * kTile + at]);
      A total = 0, further = 0;
      for (int w = 0; w < kSweepWarps; ++w) {
        const A theirs = all_most[w * kTile + at];
        // Warps without classes, and with -infinity only, have nothing to add; NaN must stay.
        const A factor = theirs == top ? A(1) : exponential<T>(theirs - top);
        total += all_sum[w * kTile + at] * factor;
        if (extra) further += all_extra[w * kTile + at] * (squared ? factor * factor : factor);
      }
      most[v] = top;
      sum[v] = total;
      if (extra) (*extra)[v] = further;
    }
  }
};

template <class T, bool kRows>
struct ForwardSweepShared {
  using A = AccumulatorOf<T>;
  static constexpr int kTile = device::kWarp * kOwned<T, kGroup, kRows>;
  int sums, most, total, own, labels, values, best, winner, rows, bytes;

  SEGOPS_HOST_DEVICE ForwardSweepShared(const DiceCeLossInputs& in, bool with_confusion) {
    Parts parts;
    sums = parts.take(3 * in.classes * 8);
    most = parts.take(kSweepWarps * kTile * sizeof(A));
    total = parts.take(kSweepWarps * kTile * sizeof(A));
    own = parts.take(kTile * sizeof(A));
    labels = parts.take(kTile * 4);
    values = parts.take(kTile * sizeof(A));
    best = parts.take(with_confusion ? kSweepWarps * kTile * sizeof(A) : 0);
    winner = parts.take(with_confusion ? kSweepWarps * kTile * 4 : 0);
    rows = parts.take(staged_bytes<T, kRows>(in));
    bytes = parts.bytes;
  }
};

template <class A>
__device__ __forceinline__ bool beats(A x, A best) {
  return x > best || (x != x && best == best);
}

template <class T, bool kRows>
__global__ void __launch_bounds__(kSweepThreads, 1)
    dice_ce_loss_forward_sweep_kernel(DiceCeLossStatistics p, Plan plan, Access access, Partial partial) {
  using A = AccumulatorOf<T>;
  constexpr int V = kOwned<T, kGroup, kRows>, kTile = device::kWarp * V;
  const DiceCeLossInputs& in = p.in;
  const int classes = static_cast<int>(in.classes), thread = static_cast<int>(threadIdx.x), warp = warp_id();
  const Chunk chunk(in, plan, blockIdx.x);
  const ForwardSweepShared<T, kRows> at(in, p.confusion != nullptr);
  DYNAMIC_SHARED(unsigned char, shared);
  double* const sums = reinterpret_cast<double*>(shared + at.sums);  // I, P, T; an entry belongs to one lane
  A* const all_most = reinterpret_cast<A*>(shared + at.most);
  A* const all_sum = reinterpret_cast<A*>(shared + at.total);
  A* const at_label = reinterpret_cast<A*>(shared + at.own);
  int32_t* const labels = reinterpret_cast<int32_t*>(shared + at.labels);
  A* const values = reinterpret_cast<A*>(shared + at.values);
  A* const all_best = reinterpret_cast<A*>(shared + at.best);
  int32_t* const all_winner = reinterpret_cast<int32_t*>(shared + at.winner);

  const RowLayout layout(classes, sizeof(T));
  const bool stages = kRows && access.vector && staged_bytes<T, kRows>(in) > 0;

  for (int i = thread; i < 3 * classes; i += kSweepThreads) sums[i] = 0;
  A weights = 0;
  for (int c = 0; c < classes; ++c) weights += in.weight ? static_cast<A>(device::load(in.weight + c)) : A(1);
  const T* const image = static_cast<const T*>(in.logits) + chunk.image * in.stride_n;
  const A keep = static_cast<A>(1 - in.label_smoothing);
  const A spread = static_cast<A>(in.label_smoothing / static_cast<double>(classes));
  const bool smooth = in.label_smoothing != 0;
  double loss_sum = 0, share_sum = 0;
  BadData bad{0, 0, 0};

  for (int first = 0; first < chunk.count; first += kTile) {
    const int rest = chunk.count - first < kTile ? chunk.count - first : kTile;
    const T* const tile = image + (chunk.begin + first) * in.stride_s;
    SYNC_THREADS();  // the tile before has been read
    for (int v = warp; v < V; v += kSweepWarps) Pixels<A, V>::fetch(in, chunk, first, v, labels, values, bad);
    const bool through = stages && rest == kTile;
    if (through) stage(tile, shared + at.rows, layout, thread, kSweepThreads);
    const unsigned char* const row = through ? shared + at.rows + lane_id() * layout.stride : nullptr;
    SYNC_THREADS();
    Pixels<A, V> pixels;
    pixels.take(labels, values, access.vector);

    Normaliser<T, V> softmax;
    A best[V];
    int winner[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      best[v] = -A(INFINITY);
      winner[v] = warp * kGroup < classes ? warp * kGroup : classes;
    }
    for_each_group(classes, [&](int c, int group) {
      Held<T, kGroup, V> held = load_group<T, kRows>(in, tile, c, group, rest, access.vector, row);
      held.clear_ignored(pixels.label, group);
      A most[V];
      held.largest(most);
#pragma unroll
      for (int v = 0; v < V; ++v) softmax.raise(v, most[v]);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (k >= group) break;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A x = held.x[k].get(v);
          softmax.sum[v] += exponential<T>(x - softmax.shift(v));
          if (p.confusion && beats(x, best[v])) {
            best[v] = x;
            winner[v] = c + k;
          }
        }
      }
    });
    softmax.merge(all_most, all_sum, nullptr, nullptr, false);
    if (p.confusion) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        all_best[warp * kTile + v * device::kWarp + lane_id()] = best[v];
        all_winner[warp * kTile + v * device::kWarp + lane_id()] = winner[v];
      }
    }

    A inverse[V], weighted[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      inverse[v] = pixels.label[v] >= 0 ? A(1) / softmax.sum[v] : A(0);
      weighted[v] = 0;
    }
    for_each_group(classes, [&](int c, int group) {
      Held<T, kGroup, V> held = load_group<T, kRows>(in, tile, c, group, rest, access.vector, row);
      held.clear_ignored(pixels.label, group);
      A prob_sum[kGroup] = {}, target_sum[kGroup] = {}, target_count[kGroup] = {};
      bool here = false;
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (k >= group) break;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A x = held.x[k].get(v) - softmax.most[v], prob = exponential<T>(x) * inverse[v];
          prob_sum[k] += in.squared ? prob * prob : prob;
          if (smooth) weighted[v] += (in.weight ? static_cast<A>(device::load(in.weight + c + k)) : A(1)) * x;
          if (pixels.label[v] == c + k) {
            here = true;
            target_sum[k] += prob;
            target_count[k] += 1;
            at_label[v * device::kWarp + lane_id()] = x;
          }
        }
      }
      if (!p.overlap) return;
      const int owner = c + lane_id() / 4;
      const bool owns = lane_id() % 4 == 0 && lane_id() / 4 < group;
      const A probs = warp_sums(prob_sum);
      if (owns) sums[classes + owner] += static_cast<double>(probs);
      if (!device::any(here)) return;
      const A at_target = warp_sums(target_sum), count = warp_sums(target_count);
      if (owns) {
        sums[owner] += static_cast<double>(at_target);
        sums[2 * classes + owner] += static_cast<double>(count);
      }
    });
    SYNC_THREADS();  // at_label, best and winner are there, and the maxima have been read
    if (smooth) {
#pragma unroll
      for (int v = 0; v < V; ++v) all_most[warp * kTile + v * device::kWarp + lane_id()] = weighted[v];
      SYNC_THREADS();
    }
    if (warp == 0) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int i = v * device::kWarp + lane_id();
        const bool valid = pixels.label[v] >= 0;
        const A log_sum = logarithm(softmax.sum[v]);
        const A given = valid && in.weight ? static_cast<A>(device::load(in.weight + pixels.label[v])) : A(1);
        const A share = valid ? pixels.weight[v] * given : A(0);
        A loss = keep * share * (log_sum - (valid ? at_label[i] : A(0)));
        if (smooth) {
          A lw = 0;
          for (int w = 0; w < kSweepWarps; ++w) lw += all_most[w * kTile + i];
          loss += spread * pixels.weight[v] * (weights * log_sum - lw);
        }
        loss = valid ? loss : A(0);
        loss_sum += loss;
        share_sum += share;
        const int pixel = place<V>(v, access.vector);
        if (p.ce_map && pixel < rest)
          static_cast<A*>(p.ce_map)[chunk.image * in.pixels + chunk.begin + first + pixel] = loss;
        if (p.confusion && valid) {
          A top = all_best[i];
          int32_t chosen = all_winner[i];
          for (int w = 1; w < kSweepWarps; ++w) {
            const A theirs = all_best[w * kTile + i];
            const int32_t other = all_winner[w * kTile + i];
            const bool tie = theirs == top || (theirs != theirs && top != top);
            if (beats(theirs, top) || (tie && other < chosen)) {
              top = theirs;
              chosen = other;
            }
          }
          device::atomic_add(reinterpret_cast<unsigned long long*>(p.confusion) + pixels.label[v] * in.classes + chosen,
                             1ull);
        }
      }
    }
  }

  SYNC_THREADS();
  double* const out = partial.overlap + blockIdx.x * (3 * in.classes);
  for (int i = thread; p.overlap && i < 3 * classes; i += kSweepThreads) out[i] = sums[i];
  bad = warp_merge(bad);
  SHARED_ARRAY(BadData, bad_of_warp, kSweepWarps);
  if (lane_id() == 0) bad_of_warp[warp] = bad;
  if (warp == 0) {
    loss_sum = warp_sum(loss_sum);
    share_sum = warp_sum(share_sum);
  }
  SYNC_THREADS();
  if (thread == 0) {
    partial.ce[2 * blockIdx.x] = loss_sum;
    partial.ce[2 * blockIdx.x + 1] = share_sum;
    for (int w = 1; w < kSweepWarps; ++w) bad = merge(bad, bad_of_warp[w]);
    partial.bad[blockIdx.x] = bad;
  }
}

template <class T, bool kRows>
cudaError_t launch_forward_sweep(const DiceCeLossStatistics& p, const Plan& plan, const Access& access,
                                 const Partial& partial, cudaStream_t stream) {
  const ForwardSweepShared<T, kRows> shared(p.in, p.confusion != nullptr);
  const cudaError_t allowed = OPT_IN_SHARED((dice_ce_loss_forward_sweep_kernel<T, kRows>), shared.bytes);
  if (allowed != cudaSuccess) return allowed;
  return LAUNCH((dice_ce_loss_forward_sweep_kernel<T, kRows>), static_cast<unsigned>(p.in.batch * plan.chunks),
                kSweepThreads, shared.bytes, stream, p, plan, access, partial);
}

}  // namespace segops::cuda::dice_ce
