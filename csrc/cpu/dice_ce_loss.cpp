// dice_ce_loss on the CPU: one pass over the logits forward, one read and one write backward, nothing kept in between.
//
// The softmax is recomputed in backward instead of saving a log-sum-exp: it costs a few operations an element on data that
// is read anyway, saves a float a pixel, and stays exact where logits are large (an lse of 1000 rounded to float32 would
// give every probability a relative error of 6e-5).
#include <stdlib.h>

#include "dice_ce_loss_block.h"
#include "isa.h"
#include "parallel.h"
#include "work.h"

namespace segops::SEGOPS_ISA {
namespace {

constexpr int kChains = 4;  // vectors summed side by side, to hide the latency of an addition

// Neighbouring pixels mostly share a label, and an addition to memory waits for the one before it: four copies in turn.
constexpr int kCopies = 4;
typedef double Pair __attribute__((vector_size(16)));

// Sums of one item: P of each class, the two sums of the cross-entropy, and (I, T) of each class in kCopies copies.
struct ItemSums {
  double* p;
  double* ce;
  Pair* it;
};

template <bool kSquared, class T>
void add_class_sums(const Block<T>& b, double* p) {
  constexpr int kLanes = kNativeLanes<T>;
  for (int64_t c = 0; c < b.classes; ++c) {
    const T* row = b.exp + c * b.capacity;
    Vec<T, kLanes> total[kChains] = {};
    for (int64_t i = 0; i < b.padded; i += kChains * kLanes) {
      for (int k = 0; k < kChains; ++k) {
        const Vec<T, kLanes> e = load<kLanes, T>(row + i + k * kLanes),
                             inverse = load<kLanes, T>(b.inverse + i + k * kLanes);
        if constexpr (kSquared) {
          const Vec<T, kLanes> prob = e * inverse;
          total[k] += prob * prob;
        } else {
          total[k] += e * inverse;
        }
      }
    }
    T lanes[kLanes];
    store<kLanes>(lanes, (total[0] + total[1]) + (total[2] + total[3]));
    p[c] += sum_of_lanes<T, kLanes>(lanes);
  }
}

template <class T>
void add_target_sums(const Block<T>& b, Pair* it) {
  for (int64_t g = 0; g < b.padded; g += kGroup) {
    const int32_t label = b.group[g / kGroup];
    const T* prob = b.target_prob + g;
    if (label >= 0) {
      const Vec<T, 4> total = (load<4, T>(prob) + load<4, T>(prob + 4)) + (load<4, T>(prob + 8) + load<4, T>(prob + 12));
      it[label * kCopies] += Pair{static_cast<double>((total[0] + total[1]) + (total[2] + total[3])), kGroup};
    } else if (label == kMixed) {
      for (int i = 0; i < kGroup; ++i) {
        // A pixel that is ignored adds nothing to class 0.
        const int32_t own = b.label[g + i];
        it[(own < 0 ? 0 : own) * kCopies + i % kCopies] += Pair{static_cast<double>(prob[i]), own < 0 ? 0. : 1.};
      }
    }
  }
}

// Argmax of each pixel's logits (the first of equals; NaN counts as largest), counted against its label.
template <class T, class In>
void count_confusion(Block<T>& b, Rows<In> x, int64_t* confusion) {
  constexpr int kLanes = kNativeLanes<T>;
  for (int64_t i = 0; i < b.padded; i += kLanes) {
    Vec<T, kLanes> best = load<kLanes, T>(x.base + i), winner{};
    for (int64_t c = 1; c < b.classes; ++c) {
      const Vec<T, kLanes> v = load<kLanes, T>(x.base + c * x.stride + i);
      const auto better = (v > best) | ((v != v) & (best == best));
      best = better ? v : best;
      winner = better ? broadcast<kLanes, T>(static_cast<T>(c)) : winner;
    }
    store<kLanes>(b.row_b + i, winner);
  }
  for (int64_t i = 0; i < b.size; ++i)
    if (b.label[i] >= 0) ++confusion[b.label[i] * b.classes + static_cast<int64_t>(b.row_b[i])];
}

// Row a: sum over the classes of w_c (x_c - shift), for label smoothing.
template <class T, class In>
void weighted_logits(Block<T>& b, Rows<In> x, const double* weight, bool stable) {
  constexpr int kLanes = kNativeLanes<T>;
  for (int64_t i = 0; i < b.padded; i += kLanes) {
    const auto valid = load<kLanes, T>(b.class_id + i) >= T(0);
    const Vec<T, kLanes> shift = stable ? load<kLanes, T>(b.shift + i) : Vec<T, kLanes>{};
    Vec<T, kLanes> total{};
    for (int64_t c = 0; c < b.classes; ++c)
      total += (load<kLanes, T>(x.base + c * x.stride + i) - shift) * static_cast<T>(weight ? weight[c] : 1.0);
    store<kLanes>(b.row_a + i, valid ? total : Vec<T, kLanes>{});
  }
}

double total_weight(const DiceCeLossInputs& in) {
  double total = 0;
  for (int64_t c = 0; c < in.classes; ++c) total += in.weight ? in.weight[c] : 1.0;
  return total;
}

// Cross-entropy of the block's pixels; with smoothing e the target's share is 1 - e and every class has w_c e / C.
template <class T, class In>
void add_cross_entropy(Block<T>& b, Rows<In> x, const DiceCeLossInputs& in, bool stable, double* ce, T* map) {
  constexpr int kLanes = kNativeLanes<T>;
  using V = Vec<T, kLanes>;
  const bool smooth = in.label_smoothing != 0;
  if (smooth) weighted_logits(b, x, in.weight, stable);
  const T keep = static_cast<T>(1.0 - in.label_smoothing);
  const T spread = static_cast<T>(in.label_smoothing / static_cast<double>(in.classes));
  const T weights = static_cast<T>(total_weight(in));
  // In double: where all pixels have the same loss, as at the start of a training, float additions all round the same way.
  Vec<double, kLanes> loss_sum{}, weight_sum{};
  for (int64_t i = 0; i < b.padded; i += kLanes) {
    const auto valid = load<kLanes, T>(b.class_id + i) >= T(0);
    const V weight = load<kLanes, T>(b.weight + i);
    const V log_sum = stable || smooth ? log<kLanes>(load<kLanes, T>(b.sum + i)) : V{};
    const V nll = stable ? log_sum - load<kLanes, T>(b.target_logit + i) : -log<kLanes>(load<kLanes, T>(b.target_prob + i));
    V loss = keep * weight * nll;
    if (smooth) loss += spread * load<kLanes, T>(b.pixel_weight + i) * (weights * log_sum - load<kLanes, T>(b.row_a + i));
    loss = valid ? loss : V{};
    store<kLanes>(b.row_b + i, loss);
    loss_sum += __builtin_convertvector(loss, Vec<double, kLanes>);
    weight_sum += __builtin_convertvector(weight, Vec<double, kLanes>);
  }
  double lanes[kLanes];
  store<kLanes>(lanes, loss_sum);
  ce[0] += sum_of_lanes<double, kLanes>(lanes);
  store<kLanes>(lanes, weight_sum);
  ce[1] += sum_of_lanes<double, kLanes>(lanes);
  if (map)
    for (int64_t i = 0; i < b.size; ++i) map[i] = b.row_b[i];
}

template <class T, class In>
struct Forward {
  const DiceCeLossStatistics& p;

  void block(Block<T>& b, Rows<In> planar, const In* pixels, int64_t at, const ItemSums& sums) const {
    if (planar.base) return rows(b, planar, at, sums);
    stage_in(b, pixels, p.in.stride_c, p.in.stride_s);
    rows(b, Rows<T>{b.staged, b.capacity}, at, sums);
  }

  template <class Element>
  void rows(Block<T>& b, Rows<Element> x, int64_t at, const ItemSums& sums) const {
    if (p.confusion) count_confusion(b, x, p.confusion);
    const bool stable = softmax_block(b, x);
    add_cross_entropy(b, x, p.in, stable, sums.ce, p.ce_map ? static_cast<T*>(p.ce_map) + at : nullptr);
    if (!p.overlap) return;
    if (p.in.squared)
      add_class_sums<true>(b, sums.p);
    else
      add_class_sums<false>(b, sums.p);
    add_target_sums(b, sums.it);
  }
};

// d loss / d x_c = p_c (a_c - sum_k a_k p_k) + the same of the cross-entropy, where a = d loss / d p: gP_c (2 gP_c p_c if
// squared) plus gI_t at the target. Written as p_c (g_c + u) - spread w_c, plus q at the target.
template <class T, class In>
struct Backward {
  const DiceCeLossBackward& p;
  double grad_ce;
  const T* grad_p;        // [N, C]
  const T* grad_i;        // [N, C]
  const T* class_spread;  // [C]: ce gradient * smoothing * w_c / C, or null
  bool finite;            // whether all of these and the ce gradient are
  bool stream;            // whether planar rows are stored past the caches

  template <class Element>
  void coefficients(Block<T>& b, Rows<Element> x, const T* gp, const T* gi) const {
    constexpr int kLanes = kNativeLanes<T>;
    using V = Vec<T, kLanes>;
    softmax_block(b, x);
    const DiceCeLossInputs& in = p.in;
    const T scale = static_cast<T>(grad_ce * (1.0 - in.label_smoothing));
    const T spread = static_cast<T>(grad_ce * in.label_smoothing / static_cast<double>(in.classes) * total_weight(in));
    for (int64_t g = 0; g < b.padded; g += kGroup) {
      const int32_t label = b.group[g / kGroup];
      for (int i = 0; i < kGroup; ++i) {
        const int32_t own = label == kMixed ? b.label[g + i] : label;
        b.row_b[g + i] = own < 0 || !gi ? T(0) : gi[own];
      }
    }
    for (int64_t i = 0; i < b.padded; i += kChains * kLanes) {
      V dot[kChains] = {};
      for (int64_t c = 0; gp && c < b.classes; ++c) {
        for (int k = 0; k < kChains; ++k) {
          const V e = load<kLanes, T>(b.exp + c * b.capacity + i + k * kLanes);
          dot[k] += in.squared ? 2 * gp[c] * (e * load<kLanes, T>(b.inverse + i + k * kLanes)) * e : gp[c] * e;
        }
      }
      for (int k = 0; k < kChains; ++k) {
        const int64_t at = i + k * kLanes;
        const auto valid = load<kLanes, T>(b.class_id + at) >= T(0);
        const V at_target = load<kLanes, T>(b.row_b + at) * load<kLanes, T>(b.target_prob + at);
        const V ce = scale * load<kLanes, T>(b.weight + at);
        const V mean = dot[k] * load<kLanes, T>(b.inverse + at) + at_target;
        const V u = ce - mean + spread * load<kLanes, T>(b.pixel_weight + at);
        store<kLanes>(b.row_a + at, valid ? u : V{});
        store<kLanes>(b.row_b + at, valid ? at_target - ce : V{});
      }
    }
  }

  template <int kRows, bool kSquared, bool kSpread, bool kStream, class Element>
  static inline __attribute__((always_inline)) void write_rows(const Block<T>& b, Element* dst, int64_t stride, int64_t c,
                                                               const T* gp, const T* spread) {
    constexpr int kLanes = kNativeLanes<T>;
    using V = Vec<T, kLanes>;
    for (int64_t i = 0; i < b.padded; i += kLanes) {
      const V inverse = load<kLanes, T>(b.inverse + i), u = load<kLanes, T>(b.row_a + i), q = load<kLanes, T>(b.row_b + i);
      const V id = load<kLanes, T>(b.class_id + i);
      for (int r = 0; r < kRows; ++r) {
        const V prob = load<kLanes, T>(b.exp + (c + r) * b.capacity + i) * inverse;
        const T g = gp ? gp[c + r] : T(0);
        V v = prob * (kSquared ? 2 * g * prob + u : g + u);
        v += id == static_cast<T>(c + r) ? q : V{};
        if constexpr (kSpread) v -= spread[c + r] * load<kLanes, T>(b.pixel_weight + i);
        if constexpr (kStream)
          store_streaming<kLanes, Element, T>(dst + (c + r) * stride + i, v);
        else
          store<kLanes>(dst + (c + r) * stride + i, v);
      }
    }
  }

  template <bool kSquared, bool kSpread, bool kStream, class Element>
  static void write(const Block<T>& b, Element* dst, int64_t stride, const T* gp, const T* spread) {
    int64_t c = 0;
    for (; c + 4 <= b.classes; c += 4) write_rows<4, kSquared, kSpread, kStream>(b, dst, stride, c, gp, spread);
    for (; c < b.classes; ++c) write_rows<1, kSquared, kSpread, kStream>(b, dst, stride, c, gp, spread);
  }

  template <bool kStream, class Element>
  void write_any(const Block<T>& b, Element* dst, int64_t stride, const T* gp) const {
    if (p.in.squared && class_spread)
      write<true, true, kStream>(b, dst, stride, gp, class_spread);
    else if (p.in.squared)
      write<true, false, kStream>(b, dst, stride, gp, class_spread);
    else if (class_spread)
      write<false, true, kStream>(b, dst, stride, gp, class_spread);
    else
      write<false, false, kStream>(b, dst, stride, gp, class_spread);
    // Zero times the NaN or infinity of another pixel of the image is not zero.
    for (int64_t i = 0; !finite && i < b.size; ++i)
      for (int64_t c = 0; b.label[i] < 0 && c < b.classes; ++c) store<1>(dst + c * stride + i, Vec<T, 1>{});
  }

  void block(Block<T>& b, Rows<In> planar, const In* pixels, int64_t n, int64_t first) const {
    const T* gp = grad_p ? grad_p + n * b.classes : nullptr;
    const T* gi = grad_i ? grad_i + n * b.classes : nullptr;
    In* out = static_cast<In*>(p.grad_logits) + n * p.grad_stride_n + first * p.grad_stride_s;
    if (planar.base && p.grad_stride_s == 1) {
      coefficients(b, planar, gp, gi);
      return stream ? write_any<true>(b, out, p.grad_stride_c, gp) : write_any<false>(b, out, p.grad_stride_c, gp);
    }
    stage_in(b, pixels, p.in.stride_c, p.in.stride_s);
    coefficients(b, Rows<T>{b.staged, b.capacity}, gp, gi);
    write_any<false>(b, b.staged, b.capacity, gp);
    stage_out(b, out, p.grad_stride_c, p.grad_stride_s);
  }
};

// How an image is cut: items of whole blocks, at most 64 an image, so that partial sums stay O(N C).
struct Plan {
  int64_t capacity, item_pixels, items_per_image, items;
  bool serial;

  Plan(const DiceCeLossInputs& in, int64_t bytes) {
    constexpr int64_t kItemsPerImage = 64, kItemPixels = 4096, kSerialElements = 1 << 15;
    capacity = block_pixels(in.classes, in.pixels, bytes);
    int64_t wanted = in.pixels / kItemPixels;
    wanted = wanted < 1 ? 1 : wanted > kItemsPerImage ? kItemsPerImage : wanted;
    item_pixels = ((in.pixels + wanted - 1) / wanted + capacity - 1) / capacity * capacity;
    item_pixels = item_pixels > 0 ? item_pixels : capacity;
    items_per_image = (in.pixels + item_pixels - 1) / item_pixels;
    items = in.batch * items_per_image;
    serial = in.batch * in.classes * in.pixels < kSerialElements;
  }
};

// Calls body(block, planar rows or null, first pixel of the block in memory, image, first pixel) for each block of an item.
template <class T, class In, class Body>
void for_each_block(const DiceCeLossInputs& in, const Plan& plan, int64_t item, Block<T>& b, BadData* bad_labels,
                    const Body& body) {
  const int64_t n = item / plan.items_per_image, begin = item % plan.items_per_image * plan.item_pixels;
  const int64_t end = begin + plan.item_pixels < in.pixels ? begin + plan.item_pixels : in.pixels;
  for (int64_t first = begin; first < end; first += plan.capacity) {
    b.size = first + plan.capacity < end ? plan.capacity : end - first;
    b.padded = (b.size + kPad - 1) / kPad * kPad;
    load_labels(b, in, n, first, bad_labels);
    const In* pixels = static_cast<const In*>(in.logits) + n * in.stride_n + first * in.stride_s;
    const bool direct = in.stride_s == 1 && b.size == b.padded;
    body(Rows<In>{direct ? pixels : nullptr, in.stride_c}, pixels, n, first);
  }
}

template <class T, class In>
Status run_statistics(const DiceCeLossStatistics& params, const Parallel& parallel) {
  const DiceCeLossInputs& in = params.in;
  const Plan plan(in, sizeof(T));
  const int64_t c = in.classes, sums = 3 * c + 2, counts = params.confusion ? c * c : 0;
  const int64_t block_bytes = Block<T>::bytes(c, plan.capacity);
  Memory scratch(parallel.workers * block_bytes), partial(plan.items * sums * 8);
  Memory bad(plan.items * static_cast<int64_t>(sizeof(BadData))), confusion(parallel.workers * counts * 8);
  const int64_t pairs = c * kCopies;
  Memory target_sums(parallel.workers * pairs * static_cast<int64_t>(sizeof(Pair)));
  if (!scratch.data || !partial.data || !bad.data || !confusion.data || !target_sums.data) return Status::out_of_memory;
  double* const item_sums = reinterpret_cast<double*>(partial.data);
  BadData* const item_bad = reinterpret_cast<BadData*>(bad.data);
  int64_t* const worker_counts = reinterpret_cast<int64_t*>(confusion.data);

  for_each_item(parallel, plan.items, plan.serial, [&](int64_t item, int32_t worker) {
    Block<T> b;
    b.place(scratch.data + worker * block_bytes, c, plan.capacity);
    DiceCeLossStatistics own = params;
    if (params.confusion) own.confusion = worker_counts + worker * counts;
    const Forward<T, In> forward{own};
    double* s = item_sums + item * sums;
    const ItemSums to{s + c, s + 3 * c, reinterpret_cast<Pair*>(target_sums.data) + worker * pairs};
    __builtin_memset(to.it, 0, static_cast<size_t>(pairs) * sizeof(Pair));
    for_each_block<T, In>(in, plan, item, b, item_bad + item, [&](Rows<In> planar, const In* pixels, int64_t n, int64_t at) {
      forward.block(b, planar, pixels, n * in.pixels + at, to);
    });
    for (int64_t k = 0; k < pairs; ++k) {
      s[k / kCopies] += to.it[k][0];
      s[2 * c + k / kCopies] += to.it[k][1];
    }
  });

  if (params.overlap) __builtin_memset(params.overlap, 0, static_cast<size_t>(in.batch * 3 * c) * sizeof(double));
  params.ce[0] = params.ce[1] = 0;
  *params.bad_labels = BadData{0, 0, 0};
  for (int64_t item = 0; item < plan.items; ++item) {
    const double* s = item_sums + item * sums;
    double* image = params.overlap ? params.overlap + item / plan.items_per_image * 3 * c : nullptr;
    for (int64_t k = 0; image && k < 3 * c; ++k) image[k] += s[k];
    params.ce[0] += s[3 * c];
    params.ce[1] += s[3 * c + 1];
    if (params.bad_labels->count == 0) *params.bad_labels = BadData{0, item_bad[item].position, item_bad[item].value};
    params.bad_labels->count += item_bad[item].count;
  }
  for (int64_t k = 0; k < counts; ++k)
    for (int32_t worker = 0; worker < parallel.workers; ++worker) params.confusion[k] += worker_counts[worker * counts + k];
  return Status::ok;
}

// Whether the gradient's memory is warm and larger than a last-level cache, and its rows begin at cache lines.
bool worth_streaming(const DiceCeLossBackward& p, int64_t element) {
  constexpr int64_t kLastLevelCache = 32 << 20, kLine = 64;
  return p.warm && p.in.batch * p.in.classes * p.in.pixels * element > kLastLevelCache &&
         reinterpret_cast<uintptr_t>(p.grad_logits) % kLine == 0 && p.grad_stride_n * element % kLine == 0 &&
         p.grad_stride_c * element % kLine == 0;
}

template <class T, class In>
Status run_backward(const DiceCeLossBackward& params, const Parallel& parallel) {
  const DiceCeLossInputs& in = params.in;
  const Plan plan(in, sizeof(T));
  const int64_t c = in.classes, block_bytes = Block<T>::bytes(c, plan.capacity);
  Memory scratch(parallel.workers * block_bytes), tables((2 * in.batch + 1) * c * static_cast<int64_t>(sizeof(T)));
  if (!scratch.data || !tables.data) return Status::out_of_memory;
  T* const grad_i = reinterpret_cast<T*>(tables.data);
  T* const grad_p = grad_i + in.batch * c;
  T* const spread = grad_p + in.batch * c;
  for (int64_t k = 0; params.grad_overlap && k < in.batch * c; ++k) {
    grad_i[k] = static_cast<T>(params.grad_overlap[k / c * 3 * c + k % c]);
    grad_p[k] = static_cast<T>(params.grad_overlap[k / c * 3 * c + c + k % c]);
  }
  const double grad_ce = params.grad_ce ? params.grad_ce[0] : 0.0;
  const double share = grad_ce * in.label_smoothing / static_cast<double>(c);
  for (int64_t k = 0; k < c; ++k) spread[k] = static_cast<T>(share * (in.weight ? in.weight[k] : 1.0));
  T zero = static_cast<T>(grad_ce) * 0;  // NaN if anything is not finite
  for (int64_t k = 0; k < (2 * in.batch + 1) * c; ++k) zero += grad_i[k] * 0;
  const Backward<T, In> backward{params,
                                 grad_ce,
                                 params.grad_overlap ? grad_p : nullptr,
                                 params.grad_overlap ? grad_i : nullptr,
                                 in.label_smoothing != 0 ? spread : nullptr,
                                 zero == 0,
                                 worth_streaming(params, sizeof(In))};

  for_each_item(parallel, plan.items, plan.serial, [&](int64_t item, int32_t worker) {
    Block<T> b;
    b.place(scratch.data + worker * block_bytes, c, plan.capacity);
    for_each_block<T, In>(in, plan, item, b, nullptr, [&](Rows<In> planar, const In* pixels, int64_t n, int64_t at) {
      backward.block(b, planar, pixels, n, at);
    });
    streaming_done();
  });
  return Status::ok;
}

}  // namespace

Status dice_ce_loss_statistics(const DiceCeLossStatistics& params, const Parallel& parallel) {
  switch (params.in.logits_dtype) {
    case Dtype::float32: return run_statistics<float, float>(params, parallel);
    case Dtype::float64: return run_statistics<double, double>(params, parallel);
    case Dtype::bfloat16: return run_statistics<float, BFloat16>(params, parallel);
    case Dtype::float16: return run_statistics<float, Float16>(params, parallel);
    default: return Status::unsupported;
  }
}

Status dice_ce_loss_backward(const DiceCeLossBackward& params, const Parallel& parallel) {
  switch (params.in.logits_dtype) {
    case Dtype::float32: return run_backward<float, float>(params, parallel);
    case Dtype::float64: return run_backward<double, double>(params, parallel);
    case Dtype::bfloat16: return run_backward<float, BFloat16>(params, parallel);
    case Dtype::float16: return run_backward<float, Float16>(params, parallel);
    default: return Status::unsupported;
  }
}

}  // namespace segops::SEGOPS_ISA

#ifdef SEGOPS_ISA_IS_BASELINE
SEGOPS_LAUNCHER(dice_ce_loss_statistics, DiceCeLossStatistics)
SEGOPS_LAUNCHER(dice_ce_loss_backward, DiceCeLossBackward)
#endif
