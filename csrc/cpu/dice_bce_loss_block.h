// One block of elements of dice_bce_loss: a run of elements that are next to each other in the logits, their labels and
// weights in the worker's scratch, in the first-level cache. Channels are independent, so a run is of one channel, or, where
// the channels are last, of all channels of neighbouring pixels.
#pragma once
#include "dice_bce_loss_terms.h"
#include "work.h"

namespace segops::SEGOPS_ISA {

template <class T>
constexpr int kTile = SEGOPS_VECTOR_BYTES == 64 ? 4 : 2;  // vectors side by side: what fits into the registers
template <class T>
constexpr int64_t kTileElements = kTile<T> * kNativeLanes<T>;

// Elements of an image: element i is of pixel first_pixel + i / channels and channel first_channel + i % channels.
struct Run {
  int64_t image, first_channel, channels, first_pixel, size;
};

// Where a run's elements lie.
struct Place {
  int64_t first;    // offset of element 0
  bool contiguous;  // whether they follow each other
  int64_t stride_c, stride_s;

  Place(const Elements& e, const Run& r) : Place(e.stride_n, e.stride_c, e.stride_s, r) {}
  Place(int64_t n, int64_t c, int64_t s, const Run& r)
      : first(r.image * n + r.first_channel * c + r.first_pixel * s),
        contiguous(r.channels == 1 ? s == 1 : c == 1 && s == r.channels),
        stride_c(c),
        stride_s(s) {}
};

// Calls body(i, offset of element i) for each element.
template <class Body>
SEGOPS_INLINE void for_each_element(const Run& r, const Place& at, const Body& body) {
  int64_t pixel = at.first;
  for (int64_t i = 0; i < r.size; pixel += at.stride_s)
    for (int64_t c = 0; c < r.channels; ++c, ++i) body(i, pixel + c * at.stride_c);
}

// What is in memory, in the accumulation type.
template <int kLanes, class T, class From>
SEGOPS_INLINE Vec<T, kLanes> load_as(const From* from) {
  if constexpr (sizeof(From) == 1) {  // by way of 16 and 32 bits: GCC would take it apart
    const auto bytes = load<kLanes, From>(from);
    const auto words = __builtin_convertvector(bytes, Vec<uint16_t, kLanes>);
    return __builtin_convertvector(__builtin_convertvector(words, Vec<int32_t, kLanes>), Vec<T, kLanes>);
  } else if constexpr (sizeof(From) == 8) {
    return __builtin_convertvector(load<kLanes, double>(from), Vec<T, kLanes>);
  } else {
    return __builtin_convertvector(load<kLanes, float>(from), Vec<T, kLanes>);
  }
}

// A run's elements to a row, from planes of one channel each: labels beside logits whose channels are last.
template <class T, class From>
void read_planes(const From* data, const Run& r, const Place& at, T* row) {
  constexpr int kLanes = kNativeLanes<T>;
  const int64_t pixels = r.size / r.channels;
  for (int64_t c = 0; c < r.channels; ++c) {
    const From* const plane = data + at.first + c * at.stride_c;
    int64_t s = 0;
    for (; s + kLanes <= pixels; s += kLanes) {
      const Vec<T, kLanes> v = load_as<kLanes, T>(plane + s);
      for (int l = 0; l < kLanes; ++l) row[(s + l) * r.channels + c] = v[l];
    }
    for (; s < pixels; ++s) row[s * r.channels + c] = load_as<1, T>(plane + s)[0];
  }
}

// A run's elements to a row.
template <class T, class From>
void read_row(const From* data, const Run& r, const Place& at, T* row) {
  constexpr int kLanes = kNativeLanes<T>;
  int64_t i = 0;
  if (!at.contiguous && at.stride_s == 1) return read_planes(data, r, at, row);
  if (!at.contiguous)
    return for_each_element(r, at, [&](int64_t k, int64_t offset) { row[k] = load_as<1, T>(data + offset)[0]; });
  for (; i + kLanes <= r.size; i += kLanes) store<kLanes>(row + i, load_as<kLanes, T>(data + at.first + i));
  for (; i < r.size; ++i) row[i] = load_as<1, T>(data + at.first + i)[0];
}

// The way back.
template <class T, class To>
void write_row(const T* row, const Run& r, const Place& at, To* data) {
  constexpr int kLanes = kNativeLanes<T>;
  int64_t i = 0;
  if (!at.contiguous)
    return for_each_element(r, at, [&](int64_t k, int64_t offset) { store<1>(data + offset, Vec<T, 1>{row[k]}); });
  for (; i + kLanes <= r.size; i += kLanes) store<kLanes>(data + at.first + i, load<kLanes, T>(row + i));
  for (; i < r.size; ++i) store<1>(data + at.first + i, Vec<T, 1>{row[i]});
}

// Labels below this are not labels but kNoLabel.
constexpr double kLeastLabel = -1, kNoLabel = -2;

template <class T>
struct LabelRule {
  T ignore;
  bool ignores;

  explicit LabelRule(const DiceBceLossInputs& in) : ignore(static_cast<T>(in.ignore_index)), ignores(in.ignores) {}

  template <int kLanes>
  SEGOPS_MEMBER auto good(Vec<T, kLanes> v) const {
    return (v >= T(-kSoftLabelSlack)) & (v <= T(1 + kSoftLabelSlack));
  }
  template <int kLanes>
  SEGOPS_MEMBER auto ignored(Vec<T, kLanes> v) const {
    using Mask = decltype(v == v);
    return (v == ignore) & (ignores ? ~Mask{} : Mask{});
  }
};

// The scratch of one worker.
template <class T>
struct Block {
  int64_t padded;  // elements, rounded up to whole tiles
  T* label;        // kNoLabel where ignored, bad, or beyond the run
  T* weight;       // pixel weights; ones without them
  T* staged;       // logits that cannot be read where they are
  T* result;       // a map or gradient that cannot be written where it belongs
  bool masked;     // whether there are weights, or elements without a label

  static constexpr int kRows = 4;
  static int64_t bytes(int64_t capacity) { return (kRows * capacity * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64; }

  Block(char* memory, int64_t capacity) {
    T** const rows[kRows] = {&label, &weight, &staged, &result};
    for (int i = 0; i < kRows; ++i) *rows[i] = reinterpret_cast<T*>(memory) + i * capacity;
    for (int64_t i = 0; i < capacity; ++i) weight[i] = T(1);
  }

  // The elements from `first` on.
  Block part(int64_t first, int64_t elements) const {
    Block b = *this;
    b.padded = elements;
    T** const rows[kRows] = {&b.label, &b.weight, &b.staged, &b.result};
    for (T** row : rows) *row += first;
    return b;
  }
};

// The position of a bad label is that of the first in [N, C, S], in whatever order they are found.
SEGOPS_INLINE void note_bad(BadData& found, const BadData& more) {
  if (more.count == 0) return;
  const bool earlier = found.count == 0 || more.position < found.position;
  found = BadData{found.count + more.count, earlier ? more.position : found.position, earlier ? more.value : found.value};
}

template <class T, class Label>
void find_bad(const DiceBceLossInputs& in, const Label* data, const Run& r, const Place& at, BadData& found) {
  const LabelRule<T> rule(in);
  for_each_element(r, at, [&](int64_t i, int64_t offset) {
    const Vec<T, 1> own = load_as<1, T>(data + offset);
    if ((rule.template good<1>(own) | rule.template ignored<1>(own))[0]) return;
    const double exact = load_as<1, double>(data + offset)[0];
    int64_t value = static_cast<int64_t>(sizeof(Label) == 1 ? exact : 0.);
    if (sizeof(Label) > 1) __builtin_memcpy(&value, &exact, sizeof(value));
    const int64_t channel = r.first_channel + i % r.channels, pixel = r.first_pixel + i / r.channels;
    note_bad(found, BadData{1, (r.image * in.channels + channel) * in.pixels + pixel, value});
  });
}

// Whether all labels are 0 or 1, as those of masks are.
inline bool all_bits(const uint8_t* label, int64_t n) {
  constexpr int kLanes = SEGOPS_VECTOR_BYTES;
  Vec<uint8_t, kLanes> some{};
  uint8_t any = 0;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) some |= load<kLanes, uint8_t>(label + i);
  for (; i < n; ++i) any |= label[i];
  for (int k = 0; k < kLanes; ++k) any |= some[k];
  return any <= 1;
}

template <class T, class Label>
void load_labels(Block<T>& b, const DiceBceLossInputs& in, const Label* data, const Run& r, BadData* bad_labels) {
  constexpr int kLanes = kNativeLanes<T>;
  using V = Vec<T, kLanes>;
  const LabelRule<T> rule(in);
  const Place at(in.target, r);
  if constexpr (sizeof(Label) == 1) {
    const bool counted = !rule.ignores || (rule.ignore != 0 && rule.ignore != 1);
    if (counted && at.contiguous && r.size == b.padded && all_bits(data + at.first, r.size)) {
      for (int64_t i = 0; i < r.size; i += kLanes) store<kLanes>(b.label + i, load_as<kLanes, T>(data + at.first + i));
      b.masked = in.pixel_weight.data;
      return;
    }
  }
  using Mask = decltype(V{} == V{});
  Mask absent{}, bad{};
  const auto step = [&](V v) __attribute__((always_inline)) {
    const Mask good = rule.template good<kLanes>(v), ignored = rule.template ignored<kLanes>(v);
    bad |= ~(good | ignored);
    absent |= ~good | ignored;
    return good & ~ignored ? v : broadcast<kLanes, T>(T(kNoLabel));
  };
  int64_t i = 0;
  if (at.contiguous) {
    for (; i + kLanes <= r.size; i += kLanes) {
      fetch_ahead(data + at.first + i);
      store<kLanes>(b.label + i, step(load_as<kLanes, T>(data + at.first + i)));
    }
    for (int64_t k = i; k < r.size; ++k) b.label[k] = load_as<1, T>(data + at.first + k)[0];
  } else {
    read_row(data, r, at, b.label);
  }
  for (int64_t k = r.size; k < b.padded; ++k) b.label[k] = T(0);
  for (; i < b.padded; i += kLanes) store<kLanes>(b.label + i, step(load<kLanes, T>(b.label + i)));
  for (int64_t k = r.size; k < b.padded; ++k) b.label[k] = T(kNoLabel);
  bool any_bad = false, any_absent = r.size < b.padded;
  for (int k = 0; k < kLanes; ++k) {
    any_bad |= bad[k] != 0;
    any_absent |= absent[k] != 0;
  }
  b.masked = any_absent || in.pixel_weight.data;
  if (any_bad && bad_labels) find_bad<T>(in, data, r, at, *bad_labels);
}

// Labels and weights of a run, padded to whole tiles of `tile` elements.
template <class T>
void load_run(Block<T>& b, const DiceBceLossInputs& in, const Run& r, int64_t tile, BadData* bad_labels) {
  b.padded = (r.size + tile - 1) / tile * tile;
  switch (in.target_dtype) {
    case Dtype::float32: load_labels(b, in, static_cast<const float*>(in.target.data), r, bad_labels); break;
    case Dtype::float64: load_labels(b, in, static_cast<const double*>(in.target.data), r, bad_labels); break;
    case Dtype::bfloat16: load_labels(b, in, static_cast<const BFloat16*>(in.target.data), r, bad_labels); break;
    case Dtype::float16: load_labels(b, in, static_cast<const Float16*>(in.target.data), r, bad_labels); break;
    default: load_labels(b, in, static_cast<const uint8_t*>(in.target.data), r, bad_labels); break;
  }
  if (in.pixel_weight.data) read_row(static_cast<const T*>(in.pixel_weight.data), r, Place(in.pixel_weight, r), b.weight);
}

}  // namespace segops::SEGOPS_ISA
