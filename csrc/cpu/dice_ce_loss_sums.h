// What dice_ce_loss does with the rows of one block, forward and backward, and how the sums of items become those of the
// batch. Shared by the kernels for logits of the target's size and for coarse logits.
#pragma once
#include "dice_ce_loss_block.h"
#include "work.h"

namespace segops::SEGOPS_ISA {

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
  constexpr int kLanes = kNativeLanes<T>;
  for (int64_t g = 0; g < b.padded; g += kGroup) {
    const Group group = b.group[g / kGroup];
    const T* prob = b.target_prob + g;
    if (group.first >= 0) {
      using V = Vec<T, kLanes>;
      V of_first{}, of_last{}, count{};
      for (int i = 0; i < kGroup; i += kLanes) {
        const auto is_first = load<kLanes, T>(b.class_id + g + i) == static_cast<T>(group.first);
        const V own = load<kLanes, T>(prob + i);
        of_first += is_first ? own : V{};
        of_last += is_first ? V{} : own;
        count += is_first ? broadcast<kLanes, T>(1) : V{};
      }
      const double firsts = sum_in_pairs<T, kLanes>(count);
      it[group.first * kCopies] += Pair{static_cast<double>(sum_in_pairs<T, kLanes>(of_first)), firsts};
      it[group.last * kCopies + 1] += Pair{static_cast<double>(sum_in_pairs<T, kLanes>(of_last)), kGroup - firsts};
    } else if (group.first == kMixed) {
      for (int i = 0; i < kGroup; ++i) {
        // A pixel that is ignored adds nothing to class 0.
        const int32_t own = b.label[g + i];
        it[(own < 0 ? 0 : own) * kCopies + i % kCopies] += Pair{static_cast<double>(prob[i]), own < 0 ? 0. : 1.};
      }
    }
  }
}

// Argmax of each pixel's logits (the first of equals; NaN counts as largest), counted against its label.
template <class T, class Logits>
void count_confusion(Block<T>& b, Logits x, int64_t* confusion) {
  constexpr int kLanes = kNativeLanes<T>;
  for (int64_t i = 0; i < b.padded; i += kLanes) {
    Vec<T, kLanes> best = x.template at<kLanes, T>(0, i), winner{};
    for (int64_t c = 1; c < b.classes; ++c) {
      const Vec<T, kLanes> v = x.template at<kLanes, T>(c, i);
      const auto better = (v > best) | ((v != v) & (best == best));
      best = better ? v : best;
      winner = better ? broadcast<kLanes, T>(static_cast<T>(c)) : winner;
    }
    store<kLanes>(b.row_b + i, winner);
  }
  for (int64_t i = 0; i < b.padded; ++i)
    if (b.label[i] >= 0) ++confusion[b.label[i] * b.classes + static_cast<int64_t>(b.row_b[i])];
}

// Row a: sum over the classes of w_c (x_c - shift), for label smoothing.
template <class T, class Logits>
void weighted_logits(Block<T>& b, Logits x, const double* weight, bool stable) {
  constexpr int kLanes = kNativeLanes<T>;
  for (int64_t i = 0; i < b.padded; i += kLanes) {
    const auto valid = load<kLanes, T>(b.class_id + i) >= T(0);
    const Vec<T, kLanes> shift = stable ? load<kLanes, T>(b.shift + i) : Vec<T, kLanes>{};
    Vec<T, kLanes> total{};
    for (int64_t c = 0; c < b.classes; ++c)
      total += (x.template at<kLanes, T>(c, i) - shift) * static_cast<T>(weight ? weight[c] : 1.0);
    store<kLanes>(b.row_a + i, valid ? total : Vec<T, kLanes>{});
  }
}

static double total_weight(const DiceCeLossInputs& in) {
  double total = 0;
  for (int64_t c = 0; c < in.classes; ++c) total += in.weight ? in.weight[c] : 1.0;
  return total;
}

// Cross-entropy of the block's pixels, in row b; with smoothing e the target's share is 1 - e and every class has w_c e / C.
template <class T, class Logits>
void add_cross_entropy(Block<T>& b, Logits x, const DiceCeLossInputs& in, bool stable, double* ce) {
  constexpr int kLanes = kNativeLanes<T>;
  using V = Vec<T, kLanes>;
  const bool smooth = in.label_smoothing != 0;
  if (smooth) weighted_logits(b, x, in.weight, stable);
  const T keep = static_cast<T>(1.0 - in.label_smoothing);
  const T spread = static_cast<T>(in.label_smoothing / static_cast<double>(in.classes));
  const T weights = static_cast<T>(total_weight(in));
  // In double, or in pairs: where all pixels have the same loss, as at the start of a training, float additions one after
  // the other all round the same way.
  Vec<double, kLanes> loss_sum{}, weight_sum{};
  for (int64_t i = 0; i < b.padded; i += kChains * kLanes) {
    V loss[kChains], weight[kChains];
    for (int k = 0; k < kChains; ++k) {
      const int64_t at = i + k * kLanes;
      const auto valid = load<kLanes, T>(b.class_id + at) >= T(0);
      weight[k] = load<kLanes, T>(b.weight + at);
      const V log_sum = stable || smooth ? log<kLanes>(load<kLanes, T>(b.sum + at)) : V{};
      const V nll =
          stable ? log_sum - load<kLanes, T>(b.target_logit + at) : -log<kLanes>(load<kLanes, T>(b.target_prob + at));
      V own = keep * weight[k] * nll;
      if (smooth) own += spread * load<kLanes, T>(b.pixel_weight + at) * (weights * log_sum - load<kLanes, T>(b.row_a + at));
      loss[k] = valid ? own : V{};
      store<kLanes>(b.row_b + at, loss[k]);
    }
    loss_sum += __builtin_convertvector((loss[0] + loss[1]) + (loss[2] + loss[3]), Vec<double, kLanes>);
    weight_sum += __builtin_convertvector((weight[0] + weight[1]) + (weight[2] + weight[3]), Vec<double, kLanes>);
  }
  double lanes[kLanes];
  store<kLanes>(lanes, loss_sum);
  ce[0] += sum_of_lanes<double, kLanes>(lanes);
  store<kLanes>(lanes, weight_sum);
  ce[1] += sum_of_lanes<double, kLanes>(lanes);
}

template <class T, class In>
struct Forward {
  const DiceCeLossStatistics& p;

  void block(Block<T>& b, Rows<In> planar, const In* pixels, int64_t at, const ItemSums& sums) const {
    if (planar.base) {
      rows(b, planar, sums);
    } else {
      stage_in(b, pixels, p.in.stride_c, p.in.stride_s);
      rows(b, Rows<T>{b.staged, b.capacity}, sums);
    }
    write_map(b, at);
  }

  // The cross-entropy of the block's pixels, if it is asked for.
  void write_map(const Block<T>& b, int64_t at) const {
    T* const map = static_cast<T*>(p.ce_map);
    for (int64_t i = 0; map && i < b.size; ++i) map[at + i] = b.row_b[i];
  }

  template <class Logits>
  void rows(Block<T>& b, Logits x, const ItemSums& sums) const {
    if (p.confusion) count_confusion(b, x, p.confusion);
    const bool stable = softmax_block(b, x);
    add_cross_entropy(b, x, p.in, stable, sums.ce);
    if (!p.overlap) return;
    if (p.in.squared)
      add_class_sums<true>(b, sums.p);
    else
      add_class_sums<false>(b, sums.p);
    add_target_sums(b, sums.it);
  }
};

// Where backward's results go: put<lanes>(c, i, v) takes the gradient of class c at pixel i and those beside it. Here to
// rows in memory, or past the caches.
template <class Element>
struct ToRows {
  static constexpr bool kSeveralRows = false;
  Element* base;
  int64_t stride;

  template <int kLanes, class V>
  SEGOPS_MEMBER void put(int64_t c, int64_t i, V v) const {
    store<kLanes>(base + c * stride + i, v);
  }
};
template <class T, class Element>
struct ToStream {
  static constexpr bool kSeveralRows = false;
  Element* base;
  int64_t stride;

  template <int kLanes, class V>
  SEGOPS_MEMBER void put(int64_t c, int64_t i, V v) const {
    if constexpr (kLanes == 1)
      store<1>(base + c * stride + i, v);
    else
      store_streaming<kLanes, Element, T>(base + c * stride + i, v);
  }
};

// d loss / d x_c = p_c (a_c - sum_k a_k p_k) + the same of the cross-entropy, where a = d loss / d p: gP_c (2 gP_c p_c if
// squared) plus gI_t at the target. Written as p_c (g_c + u) - spread w_c, plus q at the target; row a has u, or u / sum
// (unless squared): e_c (g_c / sum + u / sum) takes an operation less.
template <class T, class In>
struct Backward {
  const DiceCeLossBackward& p;
  double grad_ce;
  const T* grad_p;        // [N, C]
  const T* grad_i;        // [N, C]
  const T* class_spread;  // [C]: ce gradient * smoothing * w_c / C, or null
  bool finite;            // whether all of these and the ce gradient are
  bool stream;            // whether planar rows are stored past the caches

  template <class Logits>
  void coefficients(Block<T>& b, Logits x, const T* gp, const T* gi) const {
    constexpr int kLanes = kNativeLanes<T>;
    using V = Vec<T, kLanes>;
    softmax_block(b, x);
    const DiceCeLossInputs& in = p.in;
    const T scale = static_cast<T>(grad_ce * (1.0 - in.label_smoothing));
    const T spread = static_cast<T>(grad_ce * in.label_smoothing / static_cast<double>(in.classes) * total_weight(in));
    if (!gi) __builtin_memset(b.row_b, 0, static_cast<size_t>(b.padded) * sizeof(T));
    for (int64_t g = 0; gi && g < b.padded; g += kGroup) {
      const Group group = b.group[g / kGroup];
      if (group.first >= 0) {
        const V of_first = broadcast<kLanes, T>(gi[group.first]), of_last = broadcast<kLanes, T>(gi[group.last]);
        for (int64_t i = g; i < g + kGroup; i += kLanes)
          store<kLanes>(b.row_b + i, load<kLanes, T>(b.class_id + i) == static_cast<T>(group.first) ? of_first : of_last);
      } else {
        for (int64_t i = g; i < g + kGroup; ++i) b.row_b[i] = b.label[i] < 0 ? T(0) : gi[b.label[i]];
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
        store<kLanes>(b.row_a + at, valid ? (in.squared ? u : u * load<kLanes, T>(b.inverse + at)) : V{});
        store<kLanes>(b.row_b + at, valid ? at_target - ce : V{});
      }
    }
  }

  template <int kRows, bool kSquared, bool kSpread, class To>
  static SEGOPS_MEMBER void write_rows(const Block<T>& b, To to, int64_t c, const T* gp, const T* spread) {
    constexpr int kLanes = kNativeLanes<T>;
    using V = Vec<T, kLanes>;
    // Copies, as what is stored might be the block itself for all the compiler knows.
    const Block<T> own = b;
    T g[kRows], share[kRows];
    for (int r = 0; r < kRows; ++r) {
      g[r] = gp ? gp[c + r] : T(0);
      share[r] = kSpread ? spread[c + r] : T(0);
    }
    // The gradient of these classes at pixel i and those beside it.
    const auto at = [&](int64_t i, V(&v)[kRows]) __attribute__((always_inline)) {
      const V inverse = load<kLanes, T>(own.inverse + i), id = load<kLanes, T>(own.class_id + i);
      const V u = load<kLanes, T>(own.row_a + i), q = load<kLanes, T>(own.row_b + i);
      for (int r = 0; r < kRows; ++r) {
        const V exp = load<kLanes, T>(own.exp + (c + r) * own.capacity + i);
        if constexpr (kSquared)
          v[r] = exp * inverse * (2 * g[r] * (exp * inverse) + u);
        else
          v[r] = exp * (g[r] * inverse + u);
        v[r] += id == static_cast<T>(c + r) ? q : V{};
        if constexpr (kSpread) v[r] -= share[r] * load<kLanes, T>(own.pixel_weight + i);
      }
    };
    if constexpr (To::kSeveralRows) {
      to.template sum<kRows, kLanes, V>(
          c, [&](int64_t k, int64_t i, V(&v)[kRows]) __attribute__((always_inline)) { at(k * to.x.width + i, v); });
    } else {
      for (int64_t i = 0; i < own.padded; i += kLanes) {
        V v[kRows];
        at(i, v);
        for (int r = 0; r < kRows; ++r) to.template put<kLanes>(c + r, i, v[r]);
      }
    }
  }

  template <bool kSquared, bool kSpread, class To>
  static void write(const Block<T>& b, To to, const T* gp, const T* spread) {
    int64_t c = 0;
    for (; c + 4 <= b.classes; c += 4) write_rows<4, kSquared, kSpread>(b, to, c, gp, spread);
    for (; c < b.classes; ++c) write_rows<1, kSquared, kSpread>(b, to, c, gp, spread);
  }

  // The gradient of a block. Where something is not finite, so may be that of ignored pixels.
  template <class Logits, class To>
  void gradient(Block<T>& b, int64_t n, Logits x, To to) const {
    const T* gp = grad_p ? grad_p + n * b.classes : nullptr;
    const T* gi = grad_i ? grad_i + n * b.classes : nullptr;
    coefficients(b, x, gp, gi);
    if (p.in.squared && class_spread)
      write<true, true>(b, to, gp, class_spread);
    else if (p.in.squared)
      write<true, false>(b, to, gp, class_spread);
    else if (class_spread)
      write<false, true>(b, to, gp, class_spread);
    else
      write<false, false>(b, to, gp, class_spread);
  }

  // Zeros at ignored pixels: zero times the NaN or infinity of another pixel of the image is not zero.
  template <class To>
  void clear_ignored(const Block<T>& b, To to) const {
    for (int64_t i = 0; !finite && i < b.size; ++i)
      for (int64_t c = 0; b.label[i] < 0 && c < b.classes; ++c) to.template put<1>(c, i, Vec<T, 1>{});
  }

  template <class Logits, class To>
  void rows(Block<T>& b, int64_t n, Logits x, To to) const {
    gradient(b, n, x, to);
    clear_ignored(b, to);
  }

  void block(Block<T>& b, Rows<In> planar, const In* pixels, int64_t n, int64_t first) const {
    In* out = static_cast<In*>(p.grad_logits) + n * p.grad_stride_n + first * p.grad_stride_s;
    if (planar.base && p.grad_stride_s == 1)
      return stream ? rows(b, n, planar, ToStream<T, In>{out, p.grad_stride_c})
                    : rows(b, n, planar, ToRows<In>{out, p.grad_stride_c});
    stage_in(b, pixels, p.in.stride_c, p.in.stride_s);
    rows(b, n, Rows<T>{b.staged, b.capacity}, ToRows<T>{b.staged, b.capacity});
    stage_out(b, out, p.grad_stride_c, p.grad_stride_s);
  }
};

// The sums of every item, and their reduction in the order of the items.
class Partials {
 public:
  Partials(const DiceCeLossStatistics& params, int64_t items, int32_t workers)
      : p_(params),
        items_(items),
        workers_(workers),
        c_(params.in.classes),
        counts_(params.confusion ? c_ * c_ : 0),
        sums_(items * (3 * c_ + 2) * 8),
        bad_(items * static_cast<int64_t>(sizeof(BadData))),
        confusion_(workers * counts_ * 8),
        pairs_(workers * c_ * kCopies * static_cast<int64_t>(sizeof(Pair))) {}

  bool allocated() const { return sums_.data && bad_.data && confusion_.data && pairs_.data; }

  // The params with a confusion matrix of the worker's own.
  DiceCeLossStatistics params_of(int32_t worker) const {
    DiceCeLossStatistics own = p_;
    if (p_.confusion) own.confusion = reinterpret_cast<int64_t*>(confusion_.data) + worker * counts_;
    return own;
  }

  ItemSums open(int64_t item, int32_t worker) const {
    double* s = sums_of(item);
    const ItemSums to{s + c_, s + 3 * c_, reinterpret_cast<Pair*>(pairs_.data) + worker * c_ * kCopies};
    __builtin_memset(to.it, 0, static_cast<size_t>(c_ * kCopies) * sizeof(Pair));
    return to;
  }

  void close(int64_t item, const ItemSums& sums) const {
    double* s = sums_of(item);
    for (int64_t k = 0; k < c_ * kCopies; ++k) {
      s[k / kCopies] += sums.it[k][0];
      s[2 * c_ + k / kCopies] += sums.it[k][1];
    }
  }

  BadData* bad_of(int64_t item) const { return reinterpret_cast<BadData*>(bad_.data) + item; }

  void reduce(int64_t items_per_image) const {
    if (p_.overlap) __builtin_memset(p_.overlap, 0, static_cast<size_t>(p_.in.batch * 3 * c_) * sizeof(double));
    p_.ce[0] = p_.ce[1] = 0;
    *p_.bad_labels = BadData{0, 0, 0};
    for (int64_t item = 0; item < items_; ++item) {
      const double* s = sums_of(item);
      double* image = p_.overlap ? p_.overlap + item / items_per_image * 3 * c_ : nullptr;
      for (int64_t k = 0; image && k < 3 * c_; ++k) image[k] += s[k];
      p_.ce[0] += s[3 * c_];
      p_.ce[1] += s[3 * c_ + 1];
      const BadData& bad = *bad_of(item);
      if (p_.bad_labels->count == 0) *p_.bad_labels = BadData{0, bad.position, bad.value};
      p_.bad_labels->count += bad.count;
    }
    for (int64_t k = 0; k < counts_; ++k)
      for (int32_t worker = 0; worker < workers_; ++worker)
        p_.confusion[k] += reinterpret_cast<const int64_t*>(confusion_.data)[worker * counts_ + k];
  }

 private:
  double* sums_of(int64_t item) const { return reinterpret_cast<double*>(sums_.data) + item * (3 * c_ + 2); }

  const DiceCeLossStatistics& p_;
  const int64_t items_;
  const int32_t workers_;
  const int64_t c_, counts_;
  const Memory sums_, bad_, confusion_, pairs_;
};

// The derivatives that backward starts from, in the type it computes in.
template <class T>
class Derivatives {
 public:
  explicit Derivatives(const DiceCeLossBackward& params)
      : params_(params), tables_((2 * params.in.batch + 1) * params.in.classes * static_cast<int64_t>(sizeof(T))) {
    if (!tables_.data) return;
    const DiceCeLossInputs& in = params.in;
    const int64_t c = in.classes;
    T* const grad_i = reinterpret_cast<T*>(tables_.data);
    T* const grad_p = grad_i + in.batch * c;
    T* const spread = grad_p + in.batch * c;
    for (int64_t k = 0; params.grad_overlap && k < in.batch * c; ++k) {
      grad_i[k] = static_cast<T>(params.grad_overlap[k / c * 3 * c + k % c]);
      grad_p[k] = static_cast<T>(params.grad_overlap[k / c * 3 * c + c + k % c]);
    }
    const double share = grad_ce() * in.label_smoothing / static_cast<double>(c);
    for (int64_t k = 0; k < c; ++k) spread[k] = static_cast<T>(share * (in.weight ? in.weight[k] : 1.0));
    T zero = static_cast<T>(grad_ce()) * 0;  // NaN if anything is not finite
    for (int64_t k = 0; k < (2 * in.batch + 1) * c; ++k) zero += grad_i[k] * 0;
    finite_ = zero == 0;
  }

  bool allocated() const { return tables_.data; }

  template <class In>
  Backward<T, In> backward(bool stream) const {
    const DiceCeLossInputs& in = params_.in;
    const T* const grad_i = reinterpret_cast<const T*>(tables_.data);
    const T* const grad_p = grad_i + in.batch * in.classes;
    return Backward<T, In>{params_,
                           grad_ce(),
                           params_.grad_overlap ? grad_p : nullptr,
                           params_.grad_overlap ? grad_i : nullptr,
                           in.label_smoothing != 0 ? grad_p + in.batch * in.classes : nullptr,
                           finite_,
                           stream};
  }

 private:
  double grad_ce() const { return params_.grad_ce ? params_.grad_ce[0] : 0.0; }

  const DiceCeLossBackward& params_;
  const Memory tables_;
  bool finite_ = true;
};

}  // namespace segops::SEGOPS_ISA
