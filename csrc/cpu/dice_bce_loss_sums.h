// What dice_bce_loss does with the tiles of a block, forward and backward, and how the sums of pieces of the tensor become
// those of its images and channels. Shared by the kernels for logits of the target's size and for coarse logits.
#pragma once
#include "dice_bce_loss_block.h"

namespace segops::SEGOPS_ISA {

template <class V, int kWidth>
SEGOPS_INLINE V sum_of(const V (&v)[kWidth]) {
  static_assert(kWidth == 1 || kWidth == 2 || kWidth == 4);
  if constexpr (kWidth == 1) return v[0];
  if constexpr (kWidth == 2) return v[0] + v[1];
  if constexpr (kWidth == 4) return (v[0] + v[1]) + (v[2] + v[3]);
}

template <class T>
double sum_of_vector(Vec<T, kNativeLanes<T>> v) {
  constexpr int kLanes = kNativeLanes<T>;
  T lanes[kLanes];
  store<kLanes>(lanes, v);
  return static_cast<double>(sum_of_lanes<T, kLanes>(lanes));
}

// The constants and the overlap sums of a run of one channel, in tiles of `kVectors` vectors.
template <class T, int kVectors = kTile<T>>
struct OneChannel {
  static constexpr int kLanes = kNativeLanes<T>, kWidth = kVectors;
  using V = Vec<T, kLanes>;
  T positive, grad_i, grad_p;
  V i, p, t;         // of a block
  double totals[3];  // of the blocks before

  explicit OneChannel(T weight, T gi = 0, T gp = 0) : positive(weight), grad_i(gi), grad_p(gp), i{}, p{}, t{}, totals{} {}

  SEGOPS_MEMBER void constants(V (&weight)[kWidth]) const {
    for (int k = 0; k < kWidth; ++k) weight[k] = broadcast<kLanes, T>(positive);
  }
  SEGOPS_MEMBER void derivatives(V (&of_i)[kWidth], V (&of_p)[kWidth]) const {
    for (int k = 0; k < kWidth; ++k) {
      of_i[k] = broadcast<kLanes, T>(grad_i);
      of_p[k] = broadcast<kLanes, T>(grad_p);
    }
  }
  SEGOPS_MEMBER void add(const V (&product)[kWidth], const V (&prob)[kWidth], const V (&truth)[kWidth]) {
    i += sum_of(product);
    p += sum_of(prob);
    t += sum_of(truth);
  }
  SEGOPS_MEMBER void next() {}

  // Ends a block; then a piece, whose sums are added to [3].
  void end_block() {
    totals[0] += sum_of_vector<T>(i);
    totals[1] += sum_of_vector<T>(p);
    totals[2] += sum_of_vector<T>(t);
    i = p = t = V{};
  }
  void end_piece(double* sums) {
    for (int row = 0; row < 3; ++row) sums[row] += totals[row];
    totals[0] = totals[1] = totals[2] = 0;
  }
};

// Those of a run of all channels: vectors in which channels come in an order that repeats after `period` vectors. A tile may
// begin with any of them, so tables go on for what a tile needs beyond the last.
template <class T>
struct EachChannel {
  static constexpr int kLanes = kNativeLanes<T>, kWidth = kTile<T>;
  static constexpr int kTables = 6;
  using V = Vec<T, kLanes>;
  int64_t channels, period, size;  // size: elements of a table
  T *positive, *grad_i, *grad_p;
  T *i, *p, *t;    // of a block
  double* totals;  // of the blocks before: those three one after the other
  int64_t at;      // element of the tables that the tile begins with

  // Pixels until `elements` elements end with the last channel.
  static int64_t pixels_to(int64_t channels, int64_t elements) {
    int64_t pixels = 1;
    while (pixels * channels % elements) pixels *= 2;
    return pixels;
  }
  static int64_t size_of(int64_t channels) { return pixels_to(channels, kLanes) * channels + (kWidth - 1) * kLanes; }
  static int64_t bytes(int64_t channels) {
    const int64_t each = kTables * static_cast<int64_t>(sizeof(T)) + 3 * static_cast<int64_t>(sizeof(double));
    return (size_of(channels) * each + 63) / 64 * 64;
  }

  EachChannel(char* memory, int64_t c) : channels(c), period(pixels_to(c, kLanes) * c / kLanes), size(size_of(c)), at(0) {
    T** const tables[kTables] = {&positive, &grad_i, &grad_p, &i, &p, &t};
    for (int k = 0; k < kTables; ++k) *tables[k] = reinterpret_cast<T*>(memory) + k * size;
    totals = reinterpret_cast<double*>(t + size);
    __builtin_memset(i, 0, static_cast<size_t>(3 * size) * sizeof(T));
    __builtin_memset(totals, 0, static_cast<size_t>(3 * size) * sizeof(double));
  }

  void fill(T* table, const double* of_channel, T otherwise) const {
    for (int64_t k = 0, c = 0; k < size; ++k, c = c + 1 < channels ? c + 1 : 0)
      table[k] = of_channel ? static_cast<T>(of_channel[c]) : otherwise;
  }

  SEGOPS_MEMBER void constants(V (&weight)[kWidth]) const { read(positive, weight); }
  SEGOPS_MEMBER void derivatives(V (&of_i)[kWidth], V (&of_p)[kWidth]) const {
    read(grad_i, of_i);
    read(grad_p, of_p);
  }
  SEGOPS_MEMBER void add(const V (&product)[kWidth], const V (&prob)[kWidth], const V (&truth)[kWidth]) {
    add_to(i, product);
    add_to(p, prob);
    add_to(t, truth);
  }
  SEGOPS_MEMBER void next() {
    at += kWidth * kLanes;
    while (at >= period * kLanes) at -= period * kLanes;
  }

  // Ends a block, which began with channel 0; then a piece, whose sums are added to [3, channels].
  void end_block() {
    using D = Vec<double, kLanes>;
    const V none{};
    for (int64_t k = 0; k < 3 * size; k += kLanes) {
      store<kLanes>(totals + k, load<kLanes, double>(totals + k) + __builtin_convertvector(load<kLanes, T>(i + k), D));
      store<kLanes>(i + k, none);
    }
    at = 0;
  }
  void end_piece(double* sums) {
    const double* total = totals;
    for (int row = 0; row < 3; ++row)
      for (int64_t k = 0, c = 0; k < size; ++k, c = c + 1 < channels ? c + 1 : 0) sums[row * channels + c] += *total++;
    __builtin_memset(totals, 0, static_cast<size_t>(3 * size) * sizeof(double));
  }

 private:
  SEGOPS_MEMBER void read(const T* table, V (&to)[kWidth]) const {
    for (int k = 0; k < kWidth; ++k) to[k] = load<kLanes, T>(table + at + k * kLanes);
  }
  SEGOPS_MEMBER void add_to(T* table, const V (&more)[kWidth]) const {
    for (int k = 0; k < kWidth; ++k) {
      T* const sum = table + at + k * kLanes;
      store<kLanes>(sum, load<kLanes, T>(sum) + more[k]);
    }
  }
};

template <bool kValue>
struct Flag {
  static constexpr bool value = kValue;
};

// Calls body with the flags as types.
template <class Body>
SEGOPS_INLINE void with_flag(bool flag, const Body& body) {
  flag ? body(Flag<true>{}) : body(Flag<false>{});
}

template <class Body>
SEGOPS_INLINE void with_flags(bool focal, bool masked, bool squared, const Body& body) {
  with_flag(focal, [&](auto f) { with_flag(masked, [&](auto m) { with_flag(squared, [&](auto s) { body(f, m, s); }); }); });
}

// Adds a block's elements to the overlap sums and to those of the cross-entropy; their losses go to `map`, if there is one.
template <bool kFocal, bool kMasked, bool kSquared, class T, class X, class Channels>
void add_block(const Block<T>& block, const X& x, const Terms<T>& terms, Channels& channels, double* bce, T* map) {
  constexpr int kLanes = kNativeLanes<T>, kWidth = Channels::kWidth;
  using V = Vec<T, kLanes>;
  using D = Vec<double, kLanes>;
  const Block<T> b = block;  // copies, as what is stored might be these themselves for all the compiler knows
  const Terms<T> own = terms;
  Channels sums = channels;
  // In double: where all elements have the same loss, as at the start of a training, float additions all round the same way.
  D loss_sum{}, weight_sum{};
  for (int64_t i = 0; i < b.padded; i += kWidth * kLanes) {
    V v[kWidth], label[kWidth], positive[kWidth], loss[kWidth], product[kWidth], prob[kWidth];
    for (int k = 0; k < kWidth; ++k) v[k] = x.template at<kLanes, T>(0, i + k * kLanes);
    for (int k = 0; k < kWidth; ++k) label[k] = load<kLanes, T>(b.label + i + k * kLanes);
    sums.constants(positive);
    const Sigmoid<T, kLanes, kWidth> sigmoid(v);
    loss_tile<kFocal>(own, sigmoid, v, label, positive, loss);
    for (int k = 0; k < kWidth; ++k) prob[k] = sigmoid.p[k];
    if constexpr (kMasked) {
      V weight[kWidth];
      for (int k = 0; k < kWidth; ++k) {
        const auto valid = label[k] >= T(kLeastLabel);
        weight[k] = valid ? load<kLanes, T>(b.weight + i + k * kLanes) : V{};
        loss[k] = valid ? loss[k] * weight[k] : V{};
        prob[k] = valid ? prob[k] : V{};
        label[k] = valid ? label[k] : V{};
      }
      weight_sum += __builtin_convertvector(sum_of(weight), D);
    }
    if (map)
      for (int k = 0; k < kWidth; ++k) store<kLanes>(map + i + k * kLanes, loss[k]);
    loss_sum += __builtin_convertvector(sum_of(loss), D);
    for (int k = 0; k < kWidth; ++k) {
      product[k] = prob[k] * label[k];
      if constexpr (kSquared) {
        prob[k] *= prob[k];
        label[k] *= label[k];
      }
    }
    sums.add(product, prob, label);
    sums.next();
  }
  channels = sums;
  double lanes[kLanes];
  store<kLanes>(lanes, loss_sum);
  bce[0] += sum_of_lanes<double, kLanes>(lanes);
  store<kLanes>(lanes, weight_sum);
  bce[1] += kMasked ? sum_of_lanes<double, kLanes>(lanes) : static_cast<double>(b.padded);
}

// The gradient of the logits v of a tile, whose elements are i and those beside it. grad_bce: derivative with respect to the
// sum of losses.
template <bool kFocal, bool kMasked, bool kSquared, class T, class Channels>
SEGOPS_INLINE void gradient_tile(const Block<T>& b, int64_t i, const Terms<T>& terms, T grad_bce, const Channels& channels,
                                 Vec<T, kNativeLanes<T>> (&v)[Channels::kWidth]) {
  constexpr int kLanes = kNativeLanes<T>, kWidth = Channels::kWidth;
  using V = Vec<T, kLanes>;
  V label[kWidth], positive[kWidth], grad_i[kWidth], grad_p[kWidth], slope[kWidth];
  for (int k = 0; k < kWidth; ++k) label[k] = load<kLanes, T>(b.label + i + k * kLanes);
  channels.constants(positive);
  channels.derivatives(grad_i, grad_p);
  const Sigmoid<T, kLanes, kWidth> sigmoid(v);
  slope_tile<kFocal>(terms, sigmoid, v, label, positive, slope);
  for (int k = 0; k < kWidth; ++k) {
    const V of_sum = kSquared ? 2 * grad_p[k] * sigmoid.p[k] : grad_p[k];
    const V of_p = grad_i[k] * label[k] + of_sum;
    if constexpr (kMasked) slope[k] *= load<kLanes, T>(b.weight + i + k * kLanes);
    v[k] = grad_bce * slope[k] + of_p * sigmoid.pq[k];
    if constexpr (kMasked) v[k] = label[k] >= T(kLeastLabel) ? v[k] : V{};
  }
}

// The sums of every piece of the tensor, and their reduction in the order of the pieces. A group is an image's channel, or
// all `channels` of an image; it has `parts` pieces.
class Partials {
 public:
  Partials(const DiceBceLossStatistics& params, int64_t channels, int64_t parts)
      : p_(params),
        channels_(channels),
        parts_(parts),
        pieces_(params.in.batch * params.in.channels / channels * parts),
        sums_(pieces_ * fields() * 8),
        bad_(pieces_ * static_cast<int64_t>(sizeof(BadData))) {}

  bool allocated() const { return sums_.data && bad_.data; }
  double* overlap_of(int64_t piece) const { return reinterpret_cast<double*>(sums_.data) + piece * fields(); }
  double* bce_of(int64_t piece) const { return overlap_of(piece) + 3 * channels_; }
  BadData* bad_of(int64_t piece) const { return reinterpret_cast<BadData*>(bad_.data) + piece; }

  void reduce() const {
    const int64_t all = p_.in.channels, groups = all / channels_;
    if (p_.overlap) __builtin_memset(p_.overlap, 0, static_cast<size_t>(p_.in.batch * 3 * all) * sizeof(double));
    p_.bce[0] = p_.bce[1] = 0;
    *p_.bad_labels = BadData{0, 0, 0};
    for (int64_t piece = 0; piece < pieces_; ++piece) {
      const int64_t group = piece / parts_, n = group / groups, c = group % groups * channels_;
      for (int64_t k = 0; p_.overlap && k < 3; ++k)
        for (int64_t j = 0; j < channels_; ++j)
          p_.overlap[(n * 3 + k) * all + c + j] += overlap_of(piece)[k * channels_ + j];
      p_.bce[0] += bce_of(piece)[0];
      p_.bce[1] += bce_of(piece)[1];
      note_bad(*p_.bad_labels, *bad_of(piece));
    }
  }

 private:
  int64_t fields() const { return 3 * channels_ + 2; }

  const DiceBceLossStatistics& p_;
  const int64_t channels_, parts_, pieces_;
  const Memory sums_, bad_;
};

// The constants of one channel of an image, and the derivatives that its gradient starts from.
template <class T, int kVectors = kTile<T>>
OneChannel<T, kVectors> channel_of(const DiceBceLossInputs& in, int64_t n, int64_t c, const double* grad_overlap) {
  const double* const grad = grad_overlap ? grad_overlap + n * 3 * in.channels + c : nullptr;
  return OneChannel<T, kVectors>(static_cast<T>(in.pos_weight ? in.pos_weight[c] : 1.), static_cast<T>(grad ? grad[0] : 0.),
                                 static_cast<T>(grad ? grad[in.channels] : 0.));
}

// Whether the gradient needs the focal factor: of a cross-entropy that is left out, its NaN is left out, too.
template <class T>
bool has_focus(const DiceBceLossInputs& in, T grad_bce) {
  return in.focal_gamma != 0 && grad_bce != 0;
}

inline bool is_small(const DiceBceLossInputs& in) {
  constexpr int64_t kSerialElements = 1 << 15;
  return in.batch * in.channels * in.pixels < kSerialElements;
}

}  // namespace segops::SEGOPS_ISA
