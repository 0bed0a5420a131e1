// How the kernels of dice_bce_loss read and write the rows that a block takes at once.
//
// Of lines that are staged these rows are one run of each tensor, and go through shared memory: wherever the line begins, a
// pass asks for no sector twice.
#pragma once
#include "dice_bce_loss_lines.cuh"
#include "run.cuh"

namespace segops::cuda::dice_bce {

// Inputs and share are arguments throughout: as members they would cost registers.
template <class T, int V, bool kRows>
struct Pass {
  using A = AccumulatorOf<T>;
  using Share = dice_bce::Share<V, kRows>;
  static constexpr int U = kAhead<T, V>, kMost = U * kThreads;  // rows of a thread; elements that are staged
  static constexpr bool kMayStage = V == 1;
  // Rooms for logits, labels of any type, weights and results.
  static constexpr int kLabels = room_of(kMost, sizeof(T)), kWeights = kLabels + room_of(kMost, 8),
                       kResults = kWeights + room_of(kMost, sizeof(A)),
                       kRooms = kMayStage ? kResults + room_of(kMost, sizeof(A)) : 1;
  uint4* rooms;
  int64_t row[U];
  bool inside[U];

  // All threads of the block take part.
  __device__ __forceinline__ Pass(const DiceBceLossInputs& in, const Share& share, int pass, uint4* rooms_) : rooms(rooms_) {
    const Cut& cut = share.cut;
#pragma unroll
    for (int u = 0; u < U; ++u) {
      row[u] = share.begin + static_cast<int64_t>(pass + u) * cut.depth;
      inside[u] = share.active && (kRows || row[u] >= 0) && row[u] * cut.row_elements + share.element < cut.line_elements;
    }
    if constexpr (kMayStage) {
      if (!cut.staged) return;
      begin = (static_cast<int64_t>(share.chunk) * cut.passes + pass) * cut.depth * cut.row_elements;
      const int64_t rest = cut.line_elements - begin, whole = static_cast<int64_t>(U) * cut.depth * cut.row_elements;
      count = static_cast<int>(rest < 0 ? 0 : rest < whole ? rest : whole);
      const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
      SYNC_THREADS();  // the pass before has been read
      run_of<T>(share, in.logits, 0).fetch(thread, threads);
      if (has_weights(in)) run_of<A>(share, in.pixel_weight, kWeights).fetch(thread, threads);
      as_label(in.target_dtype, [&]<class L>(L) { run_of<L>(share, in.target, kLabels).fetch(thread, threads); });
      device::cp_async_commit();
      device::cp_async_wait<0>();
      SYNC_THREADS();
    }
  }

  __device__ __forceinline__ void load_logits(const DiceBceLossInputs& in, const Share& share, T (&v)[U][V]) const {
    load(share, in.logits, 0, v);
  }

  // note(u, v, value) is told of bad labels. Beyond the rows nothing counts.
  template <class Note>
  __device__ __forceinline__ void load_labels(const DiceBceLossInputs& in, const Share& share, A (&label)[U][V],
                                              const Note& note) const {
    as_label<kNarrow<V>>(in.target_dtype, [&]<class L>(L) {
      L raw[U][V];
      load(share, in.target, kLabels, raw);
#pragma unroll
      for (int u = 0; u < U; ++u)
#pragma unroll
        for (int v = 0; v < V; ++v)
          label[u][v] = inside[u] ? read_label<A>(in, raw[u][v], [&](int64_t value) { note(u, v, value); }) : A(NAN);
    });
  }

  __device__ __forceinline__ void load_weights(const DiceBceLossInputs& in, const Share& share, A (&weight)[U][V]) const {
    const Elements& of = in.pixel_weight;
    if (!of.data) {
#pragma unroll
      for (int u = 0; u < U; ++u)
#pragma unroll
        for (int v = 0; v < V; ++v) weight[u][v] = 1;
    } else if (has_weights(in)) {
      load(share, of, kWeights, weight);
    } else {
      const A* const line = static_cast<const A*>(of.data) + share.image * of.stride_n;
#pragma unroll
      for (int u = 0; u < U; ++u)
#pragma unroll
        for (int v = 0; v < V; ++v)
          if (inside[u]) weight[u][v] = device::load(line + row[u] * share.cut.row_pixels + share.pixel_of(v));
    }
  }

  // All threads of the block take part.
  template <class E>
  __device__ __forceinline__ void store(const Share& share, const Elements& to, const E (&v)[U][V]) const {
    if constexpr (kMayStage) {
      if (share.cut.staged) {
        const Run<E> run = run_of<E>(share, to, kResults);
#pragma unroll
        for (int u = 0; u < U; ++u)
          if (inside[u]) run.shared[place(share, u)] = v[u][0];
        SYNC_THREADS();
        run.leave(static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x));
        return;
      }
    }
    E* const first = share.template first_of<E>(to);
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (inside[u]) store_vector(first + row[u] * share.stride(to), v[u]);
  }

 private:
  int64_t begin = 0;  // of the elements of the line that are staged
  int count = 0;

  // Weights of elements, laid out like them.
  __device__ __forceinline__ bool has_weights(const DiceBceLossInputs& in) const {
    return !kNarrow<V> && in.pixel_weight.data && (!kRows || in.pixel_weight.stride_c != 0);
  }

  template <class E>
  __device__ __forceinline__ Run<E> run_of(const Share& share, const Elements& of, int room) const {
    return {share.template line_of<E>(of) + begin, count, rooms + room};
  }
  __device__ __forceinline__ int place(const Share& share, int u) const {
    return static_cast<int>(row[u] * share.cut.row_elements - begin) + share.element;
  }

  template <class E>
  __device__ __forceinline__ void load(const Share& share, const Elements& from, int room, E (&v)[U][V]) const {
    if constexpr (kMayStage) {
      if (share.cut.staged) {
        const Run<E> run = run_of<E>(share, from, room);
#pragma unroll
        for (int u = 0; u < U; ++u)
          if (inside[u]) v[u][0] = run.shared[place(share, u)];
        return;
      }
    }
    const E* const first = share.template first_of<E>(from);
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (inside[u]) load_vector(first + row[u] * share.stride(from), v[u]);
  }
};

}  // namespace segops::cuda::dice_bce
