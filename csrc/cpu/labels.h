// Labels as int32, whatever their type.
#pragma once
#include "segops/types.h"
#include "vec.h"

namespace segops::SEGOPS_ISA {

constexpr int32_t kIgnored = -1;

// What labels are compared as; bytes are widened first. Of these functions there are the types alone.
uint16_t unsigned_of(uint8_t);
uint16_t unsigned_of(int16_t);
uint32_t unsigned_of(int32_t);
uint64_t unsigned_of(int64_t);
template <class Label>
using UnsignedOf = decltype(unsigned_of(Label{}));

template <int kLanes, class Wide, class Label>
SEGOPS_INLINE Vec<Wide, kLanes> widen_labels(const Label* from) {
  const auto labels = load<kLanes, Label>(from);
  if constexpr (sizeof(Label) == sizeof(Wide))
    return labels;
  else if constexpr (sizeof(Label) == 1)  // by way of 16 bits: GCC would take it apart
    return __builtin_convertvector(__builtin_convertvector(labels, Vec<uint16_t, kLanes>), Vec<Wide, kLanes>);
  else
    return __builtin_convertvector(labels, Vec<Wide, kLanes>);
}

// As many labels as a vector of int32 has, as convert(vector of Wide) has them.
template <class Wide, class Label, class Convert>
SEGOPS_INLINE Vec<int32_t, kNativeLanes<int32_t>> narrow_vector(const Label* from, Convert&& convert) {
  constexpr int kLanes = kNativeLanes<Wide>, kStep = kNativeLanes<int32_t>;
  using Out = Vec<int32_t, kStep>;
  if constexpr (sizeof(Wide) == sizeof(int32_t)) {
    return convert(widen_labels<kLanes, Wide>(from));
  } else {  // the low halves of two vectors
    Out low_halves;
    for (int k = 0; k < kStep; ++k) low_halves[k] = 2 * k;
    const Out first = reinterpret_cast<Out>(convert(widen_labels<kLanes, Wide>(from)));
    const Out second = reinterpret_cast<Out>(convert(widen_labels<kLanes, Wide>(from + kLanes)));
    return __builtin_shuffle(first, second, low_halves);
  }
}

// Labels to int32; zeros stand for what is missing of the last vector.
template <class Wide, class Label, class Convert>
SEGOPS_INLINE void narrow_labels(const Label* target, int64_t n, int32_t* label, const Convert& convert) {
  constexpr int kStep = kNativeLanes<int32_t>;
  auto step = [&](const Label* from, int32_t* to) {
    *reinterpret_cast<Unaligned<int32_t, kStep>*>(to) = narrow_vector<Wide>(from, convert);
  };
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) step(target + i, label + i);
  if (i < n) {
    Label rest[kStep] = {};
    int32_t converted[kStep];
    for (int64_t k = i; k < n; ++k) rest[k - i] = target[k];
    step(rest, converted);
    for (int64_t k = i; k < n; ++k) label[k] = converted[k - i];
  }
}

// The largest of the labels it is called with, compared without a sign: negative ones are large. In words of 32 bits those
// of 64 are compared by halves, which is as good: one of them has to be 0.
template <class Element, class Word = Element, int kBytes = SEGOPS_VECTOR_BYTES>
struct Most {
  using Words = Vec<Word, kBytes / sizeof(Word)>;
  Words most{};

  template <class V>
  SEGOPS_MEMBER V operator()(V labels) {
    const auto given = reinterpret_cast<Words>(labels);
    most = given > most ? given : most;
    return labels;
  }
  bool below(int64_t classes) const {
    constexpr int kLanes = kBytes / sizeof(Element);
    const auto elements = reinterpret_cast<Vec<Element, kLanes>>(most);
    bool inside = true;
    for (int k = 0; k < kLanes; ++k) inside &= elements[k] < static_cast<Element>(classes);
    return inside;
  }
};

// Labels to int32, kIgnored where they are ignored or out of range; compared in Wide, which holds every Label and the class
// count. Returns whether any was out of range.
template <class Wide, class Label>
bool read_labels(const Label* target, int64_t n, int64_t classes, bool ignores, int64_t ignore_index, int32_t* label) {
  constexpr int kLanes = kNativeLanes<Wide>;
  using V = Vec<Wide, kLanes>;
  using Element = UnsignedOf<Wide>;
  using Unsigned = Vec<Element, kLanes>;
  const Wide ignore = static_cast<Wide>(ignore_index);
  const bool ignorable = ignores && ignore == ignore_index;
  // Mostly all are in range, and a maximum tells.
  if (!ignorable || static_cast<Element>(ignore) >= static_cast<Element>(classes)) {
    Most<Element> most;
    narrow_labels<Wide>(target, n, label, [&](V value) { return most(value); });
    if (most.below(classes)) return false;
  }
  const Unsigned count = broadcast<kLanes>(static_cast<Element>(classes));
  const V matches = ignorable ? ~V{} : V{};
  V bad{};
  narrow_labels<Wide>(target, n, label, [&](V value) {
    const V inside = reinterpret_cast<Unsigned>(value) < count, ignored = (value == ignore) & matches;
    bad |= ~inside & ~ignored;
    return inside & ~ignored ? value : broadcast<kLanes, Wide>(kIgnored);
  });
  for (int k = 0; k < kLanes; ++k)
    if (bad[k]) return true;
  return false;
}

// Calls run<Wide, Label>() for labels of a type.
template <class Run>
auto as_label(Dtype dtype, const Run& run) {
  switch (dtype) {
    case Dtype::uint8: return run.template operator()<int32_t, uint8_t>();
    case Dtype::int16: return run.template operator()<int32_t, int16_t>();
    case Dtype::int32: return run.template operator()<int32_t, int32_t>();
    default: return run.template operator()<int64_t, int64_t>();
  }
}

// Those of `n` pixels from `first` on.
inline bool read_labels(Dtype dtype, const void* labels, int64_t first, int64_t n, int64_t classes, bool ignores,
                        int64_t ignore_index, int32_t* label) {
  return as_label(dtype, [&]<class Wide, class Label>() {
    const Label* const target = static_cast<const Label*>(labels) + first;
    return read_labels<Wide>(target, n, classes, ignores, ignore_index, label);
  });
}

// Asks for `n` labels from `first` on, which need not exist, before they are read.
inline void prefetch_labels(Dtype dtype, const void* labels, int64_t first, int64_t n) {
  constexpr int64_t kLine = 64;
  const int64_t bytes = bytes_of(dtype);
  const char* const from = static_cast<const char*>(labels) + first * bytes;
  for (int64_t k = 0; k < n * bytes; k += kLine) __builtin_prefetch(from + k, 0, 2);
}

inline int64_t label_at(Dtype dtype, const void* labels, int64_t position) {
  switch (dtype) {
    case Dtype::uint8: return static_cast<const uint8_t*>(labels)[position];
    case Dtype::int16: return static_cast<const int16_t*>(labels)[position];
    case Dtype::int32: return static_cast<const int32_t*>(labels)[position];
    default: return static_cast<const int64_t*>(labels)[position];
  }
}

}  // namespace segops::SEGOPS_ISA
