// One block of pixels of dice_ce_loss: the row operations that forward and backward share.
//
// A block is up to `capacity` pixels of one image, held as rows of one class each, [C, capacity]. Rows are read from the
// logits themselves where a class is contiguous in memory (planar) or from a transposed copy (channels last, and the ragged
// end of an image). The exponentials stay in the worker's scratch, small enough for the first-level cache: class planes a
// power of two apart fall into the same cache sets, so the logits themselves are read once, row by row.
#pragma once
#include "labels.h"
#include "segops/dice_ce_loss.h"
#include "staging.h"
#include "vec.h"

namespace segops::SEGOPS_ISA {

constexpr int kSecondLevel = 2;      // of the caches, as __builtin_prefetch has it
constexpr int64_t kBlocksAhead = 2;  // to prefetch: a block takes less time than memory does to answer
constexpr int kGroup = 16;           // pixels whose labels are compared at once
constexpr int64_t kPad = 64;         // blocks are padded to a multiple: four vectors of the widest kind
constexpr int32_t kMixed = -2;

// Pixels next to each other mostly have one label or two, of the first and of the last of them. kMixed: others; kIgnored:
// all of them are ignored.
struct Group {
  int32_t first, last;
};

// Pixels in a block: the exponentials fill about 20 KB of a 32 KB cache.
inline int64_t block_pixels(int64_t classes, int64_t pixels, int64_t bytes) {
  int64_t capacity = 20480 / (classes * bytes) / kPad * kPad;
  const int64_t most = (pixels + kPad - 1) / kPad * kPad;
  capacity = capacity > 1024 ? 1024 : capacity < kPad ? kPad : capacity;
  return capacity > most ? (most > 0 ? most : kPad) : capacity;
}

// The scratch of one worker. Rows have `capacity` elements.
template <class T>
struct Block {
  int64_t classes, capacity;
  int64_t size;     // pixels in use
  int64_t padded;   // size rounded up to a multiple of kPad; labels beyond size are kIgnored
  T* exp;           // [C, capacity]
  T* staged;        // [C, capacity]: rows that are not contiguous in memory
  T* shift;         // row: what was subtracted before exp (stable blocks only)
  T* target_logit;  // row: logit of the target minus shift (stable blocks only)
  T* sum;           // row: sum of exponentials
  T* inverse;       // row: 1 / sum, 0 where ignored
  T* target_prob;   // row
  T* weight;        // row: class weight times pixel weight, 0 where ignored (pixel_weight or weight_row)
  T* pixel_weight;  // row: pixel weight, 0 where ignored
  T* weight_row;
  T* row_a;  // rows for forward or backward to use
  T* row_b;
  T* class_id;     // row: the label as T; a value no class has where ignored
  int32_t* label;  // row: the label, kIgnored where ignored or bad
  Group* group;    // of kGroup labels

  static constexpr int kRows = 10;
  static int64_t bytes(int64_t classes, int64_t capacity) {
    const int64_t elements = (2 * classes + kRows) * capacity * static_cast<int64_t>(sizeof(T));
    return (elements + 2 * capacity * static_cast<int64_t>(sizeof(int32_t)) + 63) / 64 * 64;
  }

  void place(char* memory, int64_t c, int64_t most) {
    classes = c;
    capacity = most;
    exp = reinterpret_cast<T*>(memory);
    staged = exp + classes * capacity;
    T* rows = staged + classes * capacity;
    T** const names[kRows] = {&shift,      &target_logit, &sum,   &inverse, &target_prob,
                              &weight_row, &pixel_weight, &row_a, &row_b,   &class_id};
    for (int i = 0; i < kRows; ++i) *names[i] = rows + i * capacity;
    weight = weight_row;
    label = reinterpret_cast<int32_t*>(rows + kRows * capacity);
    group = reinterpret_cast<Group*>(label + capacity);
  }

  // The pixels from `first` on, a multiple of kGroup.
  Block part(int64_t first, int64_t pixels) const {
    Block b = *this;
    b.size = b.padded = pixels;
    T** const each[] = {&b.exp,    &b.staged,       &b.shift,      &b.target_logit, &b.sum,   &b.inverse, &b.target_prob,
                        &b.weight, &b.pixel_weight, &b.weight_row, &b.row_a,        &b.row_b, &b.class_id};
    for (T** row : each) *row += first;
    b.label += first;
    b.group += first / kGroup;
    return b;
  }
};

// Where the logits of a block come from: at<lanes, T>(c, i) is that of class c and pixel i and those beside it. Here from
// rows of one class each, wherever they are: class c starts at base + c * stride.
template <class In>
struct Rows {
  static constexpr bool kSeveralRows = false;  // of an image, one after the other: exponentials are exp_several_rows' then
  const In* base;
  int64_t stride;

  template <int kLanes, class T>
  SEGOPS_MEMBER Vec<T, kLanes> at(int64_t c, int64_t i) const {
    return load<kLanes, T>(base + c * stride + i);
  }

  // The rows from class c on, so many pixels further on.
  Rows ahead(int64_t c, int64_t pixels) const { return Rows{base + c * stride + pixels, stride}; }

  // Whole lines of `count` rows to the second-level cache, from element `from` until `end` is reached.
  SEGOPS_MEMBER void prefetch(int count, int64_t& from, int64_t end) const {
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(In));
    for (; from < end; from += kLine)
      for (int r = 0; r < count; ++r) __builtin_prefetch(base + r * stride + from, 0, kSecondLevel);
  }
};

inline Group group_of(const int32_t* label) {
  const int32_t first = label[0], last = label[kGroup - 1];
  const uint32_t either = bits_of_equal<kGroup>(label, first) | bits_of_equal<kGroup>(label, last);
  if (either != (1u << kGroup) - 1 || (first != last && (first < 0 || last < 0))) return Group{kMixed, kMixed};
  return Group{first, last};
}

// Labels, weights and their groups for pixels [first, first + size) of image n. Bad labels are counted and then ignored.
template <class T>
static void load_labels(Block<T>& b, const DiceCeLossInputs& in, int64_t n, int64_t first, BadData* bad_labels) {
  const int64_t at = n * in.pixels + first;
  const bool bad = read_labels(in.target_dtype, in.target, at, b.size, b.classes, true, in.ignore_index, b.label);
  if (bad && bad_labels) {
    for (int64_t i = 0; i < b.size; ++i) {
      const int64_t value = label_at(in.target_dtype, in.target, at + i);
      if (value == in.ignore_index || (value >= 0 && value < b.classes)) continue;
      if (bad_labels->count++ == 0) {
        bad_labels->position = at + i;
        bad_labels->value = value;
      }
    }
  }
  for (int64_t i = b.size; i < b.padded; ++i) b.label[i] = kIgnored;
  for (int64_t i = 0; i < b.padded; ++i) {
    b.class_id[i] = static_cast<T>(b.label[i]);
    b.pixel_weight[i] = b.label[i] >= 0 ? T(1) : T(0);
  }
  if (in.pixel_weight) {
    const T* given = static_cast<const T*>(in.pixel_weight) + at;
    for (int64_t i = 0; i < b.size; ++i) b.pixel_weight[i] = b.label[i] >= 0 ? given[i] : T(0);
  }
  for (int64_t g = 0; g < b.padded; g += kGroup) b.group[g / kGroup] = group_of(b.label + g);
  b.weight = in.weight ? b.weight_row : b.pixel_weight;
  if (in.weight)
    for (int64_t i = 0; i < b.padded; ++i)
      b.weight[i] = b.label[i] < 0 ? T(0) : b.pixel_weight[i] * static_cast<T>(in.weight[b.label[i]]);
}

// Copies [size, C] (channels last) or a ragged planar block into rows, converted and padded with zeros.
template <class T, class In>
static void stage_in(Block<T>& b, const In* src, int64_t stride_c, int64_t stride_s) {
  stage_rows(src, stride_c, stride_s, b.classes, b.size, b.padded, b.staged, b.capacity);
}

// The way back.
template <class T, class In>
static void stage_out(const Block<T>& b, In* dst, int64_t stride_c, int64_t stride_s) {
  unstage_rows(b.staged, b.capacity, b.classes, b.size, dst, stride_c, stride_s);
}

// exp of kRows classes starting at class c, written to b.exp and added to b.sum; the same rows of a block further on are
// prefetched meanwhile. kStable subtracts b.shift, sees zeros at ignored pixels, and is exact for every input; otherwise
// the range of x is collected for outside_bounds.
template <class T, int kRows, bool kStable, class Logits>
SEGOPS_INLINE void exp_rows(Block<T>& b, Logits x, int64_t c, Vec<BitsOf<T>, kNativeLanes<T>>& range) {
  constexpr int kLanes = kNativeLanes<T>;
  const Logits next = x.ahead(c, kBlocksAhead * b.padded);
  int64_t fetched = 0;
  // Copies, as what is stored might be the block itself for all the compiler knows.
  const Block<T> own = b;
  T* const exp = own.exp + c * own.capacity;
  for (int64_t i = 0; i < own.padded; i += kLanes) {
    next.prefetch(kRows, fetched, i + kLanes);
    Vec<T, kLanes> v[kRows], total = c == 0 ? Vec<T, kLanes>{} : load<kLanes, T>(own.sum + i);
    for (int r = 0; r < kRows; ++r) {
      v[r] = x.template at<kLanes, T>(c + r, i);
      if constexpr (kStable) {
        const auto valid = load<kLanes, T>(own.class_id + i) >= T(0);
        v[r] = (valid ? v[r] : Vec<T, kLanes>{}) - load<kLanes, T>(own.shift + i);
      }
    }
    exp_tile<T, kLanes, kRows, !kStable>(v, range);
    for (int r = 0; r < kRows; ++r) {
      store<kLanes>(exp + r * own.capacity + i, v[r]);
      total += v[r];
    }
    store<kLanes>(own.sum + i, total);
  }
}

template <class T, bool kStable, class Logits>
static bool exp_block(Block<T>& b, Logits x) {
  if constexpr (Logits::kSeveralRows) {
    return exp_several_rows<kStable>(b, x);
  } else {
    Vec<BitsOf<T>, kNativeLanes<T>> range{};
    int64_t c = 0;
    for (; c + 4 <= b.classes; c += 4) exp_rows<T, 4, kStable>(b, x, c, range);
    for (; c < b.classes; ++c) exp_rows<T, 1, kStable>(b, x, c, range);
    return kStable || !outside_bounds<T, kNativeLanes<T>>(range);
  }
}

// One value a pixel from the row of its label: out[i] = rows[label[i]][i] (0 where ignored).
template <class T, class Logits>
static void gather_target(const Block<T>& b, Logits rows, T* out) {
  constexpr int kLanes = kNativeLanes<T>;
  for (int64_t g = 0; g < b.padded; g += kGroup) {
    const Group group = b.group[g / kGroup];
    if (group.first >= 0) {
      for (int64_t i = g; i < g + kGroup; i += kLanes) {
        const auto is_first = load<kLanes, T>(b.class_id + i) == static_cast<T>(group.first);
        store<kLanes>(out + i,
                      is_first ? rows.template at<kLanes, T>(group.first, i) : rows.template at<kLanes, T>(group.last, i));
      }
    } else {
      for (int64_t i = g; i < g + kGroup; ++i) out[i] = b.label[i] < 0 ? T(0) : rows.template at<1, T>(b.label[i], i)[0];
    }
  }
}

// Maximum over the classes into b.shift (0 where ignored), and the target's logit minus it into b.target_logit.
template <class T, class Logits>
static void shift_block(Block<T>& b, Logits x) {
  constexpr int kLanes = kNativeLanes<T>;
  for (int64_t i = 0; i < b.padded; i += kLanes) {
    const auto valid = load<kLanes, T>(b.class_id + i) >= T(0);
    Vec<T, kLanes> most = x.template at<kLanes, T>(0, i);
    for (int64_t c = 1; c < b.classes; ++c) {
      const Vec<T, kLanes> v = x.template at<kLanes, T>(c, i);
      most = v > most ? v : most;
    }
    store<kLanes>(b.shift + i, valid ? most : Vec<T, kLanes>{});
  }
  gather_target(b, x, b.target_logit);
  for (int64_t i = 0; i < b.padded; ++i) b.target_logit[i] -= b.shift[i];
}

// Softmax of a block: b.exp, b.sum, b.inverse, b.target_prob. Returns whether the block went the stable way, because a
// logit was large, NaN or infinite, or the target's probability too small to be held.
template <class T, class Logits>
static bool softmax_block(Block<T>& b, Logits x) {
  constexpr int kLanes = kNativeLanes<T>;
  using M = MathConstants<T>;
  for (int attempt = 0;; ++attempt) {
    const bool stable = attempt > 0;
    if (stable) {
      shift_block(b, x);
      exp_block<T, true>(b, x);
    } else if (!exp_block<T, false>(b, x)) {
      continue;
    }
    gather_target(b, Rows<T>{b.exp, b.capacity}, b.target_prob);
    Vec<BitsOf<T>, kLanes> small{};
    for (int64_t i = 0; i < b.padded; i += kLanes) {
      const auto valid = load<kLanes, T>(b.class_id + i) >= T(0);
      const Vec<T, kLanes> sum = load<kLanes, T>(b.sum + i);
      const Vec<T, kLanes> inverse = valid ? T(1) / sum : Vec<T, kLanes>{};
      const Vec<T, kLanes> prob = load<kLanes, T>(b.target_prob + i) * inverse;
      store<kLanes>(b.inverse + i, inverse);
      store<kLanes>(b.target_prob + i, prob);
      small |= valid & ((sum < M::kTinySum) | (prob < M::kTinyProbability));
    }
    BitsOf<T> any = 0;
    for (int i = 0; i < kLanes; ++i) any |= small[i];
    if (stable || !any) return stable;
  }
}

}  // namespace segops::SEGOPS_ISA
