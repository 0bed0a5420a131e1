// Pixels of label maps as cells of the matrix, label * classes + class, in 16 bits each: a vector holds many of them, and a
// comparison tells which are the same.
#pragma once
#include "labels.h"
#include "vec.h"

namespace segops::SEGOPS_ISA {

// At most 256 bits: AVX-512 gets the code that every AVX2 machine runs and tests.
constexpr int kCellBytes = SEGOPS_VECTOR_BYTES < 32 ? SEGOPS_VECTOR_BYTES : 32;
constexpr int kCellLanes = kCellBytes / 2;
using Cells = Vec<uint16_t, kCellLanes>;
using Words = Vec<uint32_t, kCellBytes / 4>;

// What the largest label is found as: 64 bits by their halves. Of these functions there are the types alone.
uint16_t word_of(uint16_t);
uint32_t word_of(uint32_t);
uint32_t word_of(uint64_t);
template <class Label>
using MostOf = Most<UnsignedOf<Label>, decltype(word_of(UnsignedOf<Label>{})), kCellBytes>;

// Two vectors of words to 16 bits each, a part of 128 bits of the one after that of the other; right for those below 2^15.
template <int kLanes>
SEGOPS_INLINE Vec<uint32_t, kLanes> pack_parts(Vec<uint32_t, kLanes> a, Vec<uint32_t, kLanes> b) {
  using V = Vec<uint32_t, kLanes>;
#if defined(__AVX2__)
  if constexpr (kLanes == 8)
    return reinterpret_cast<V>(_mm256_packs_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#endif
#if defined(__x86_64__)
  if constexpr (kLanes == 4)
    return reinterpret_cast<V>(_mm_packs_epi32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#endif
  Vec<uint16_t, 2 * kLanes> packed;
  for (int k = 0; k < 2 * kLanes; ++k) {
    const int at = k / 8 * 4 + k % 4;
    packed[k] = static_cast<uint16_t>(k % 8 < 4 ? a[at] : b[at]);
  }
  return reinterpret_cast<V>(packed);
}

// As many labels as Cells has, in order, where they are below 2^15; most() sees all of them.
template <class Label>
SEGOPS_INLINE Cells narrow_to_cells(const Label* from, MostOf<Label>& most) {
  constexpr int kLanes = kCellBytes / 4, kParts = kLanes / 4;  // parts of 128 bits
  if constexpr (sizeof(Label) == 1) {
    return most(__builtin_convertvector(load<kCellLanes, Label>(from), Cells));
  } else if constexpr (sizeof(Label) == 2) {
    return most(reinterpret_cast<Cells>(load<kCellLanes, Label>(from)));
  } else if constexpr (sizeof(Label) == 4) {
    const auto words = [&](int i) { return most(reinterpret_cast<Words>(load<kLanes, int32_t>(from + i * kLanes))); };
    using Pairs = Vec<int64_t, kLanes / 2>;
    Pairs order;
    for (int k = 0; k < kLanes / 2; ++k) order[k] = k % kParts * 2 + k / kParts;
    return reinterpret_cast<Cells>(
        __builtin_shuffle(reinterpret_cast<Pairs>(pack_parts<kLanes>(words(0), words(1))), order));
  } else {
    const auto words = [&](int i) {
      return most(reinterpret_cast<Words>(load<kLanes / 2, int64_t>(from + i * (kLanes / 2))));
    };
    const Words packed = pack_parts<kLanes>(pack_parts<kLanes>(words(0), words(1)), pack_parts<kLanes>(words(2), words(3)));
    Vec<int32_t, kLanes> order;
    for (int k = 0; k < kLanes; ++k) order[k] = k % kParts * 4 + k / kParts;
    return reinterpret_cast<Cells>(__builtin_shuffle(packed, order));
  }
}

// `size` pixels, whole vectors of Cells. Returns whether every label and class is one: the cells mean nothing otherwise.
template <class Label, class Class>
bool cells_of(const Label* label, const Class* predicted, int64_t size, uint16_t classes, uint16_t* cell) {
  MostOf<Label> labels;
  MostOf<Class> predictions;
  for (int64_t i = 0; i < size; i += kCellLanes) {
    const Cells row = narrow_to_cells(label + i, labels), column = narrow_to_cells(predicted + i, predictions);
    *reinterpret_cast<Unaligned<uint16_t, kCellLanes>*>(cell + i) = row * classes + column;
  }
  return labels.below(classes) && predictions.below(classes);
}

// Of 64 cells a bit each, the lowest for the first: whether the one behind it is another.
SEGOPS_INLINE uint64_t ends_of_runs(const uint16_t* cell) {
#if defined(__AVX2__)
  const auto same = [&](int i) {
    const auto at = reinterpret_cast<const __m256i*>(cell + i), behind = reinterpret_cast<const __m256i*>(cell + i + 1);
    return _mm256_cmpeq_epi16(_mm256_loadu_si256(at), _mm256_loadu_si256(behind));
  };
  const auto bits = [&](int i) {
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(same(i), same(i + 16)), 0xd8);
    return static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(bytes)));
  };
  return ~(bits(0) | bits(32) << 32);
#elif defined(__x86_64__)
  const auto same = [&](int i) {
    const auto at = reinterpret_cast<const __m128i*>(cell + i), behind = reinterpret_cast<const __m128i*>(cell + i + 1);
    return _mm_cmpeq_epi16(_mm_loadu_si128(at), _mm_loadu_si128(behind));
  };
  uint64_t bits = 0;
  for (int i = 0; i < 64; i += 16)
    bits |= static_cast<uint64_t>(_mm_movemask_epi8(_mm_packs_epi16(same(i), same(i + 8)))) << i;
  return ~bits;
#else
  uint64_t bits = 0;
  for (int k = 0; k < 64; ++k) bits |= static_cast<uint64_t>(cell[k] != cell[k + 1]) << k;
  return bits;
#endif
}

}  // namespace segops::SEGOPS_ISA
