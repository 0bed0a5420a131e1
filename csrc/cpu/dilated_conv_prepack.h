// What tells whether a prepacked weight may still stand for the weight: a checksum of every bit of it, and how it is laid
// out.
//
// Reading the weight costs a small part of packing it. A word that changes alone always changes the checksum: every step is
// a bijection of the word and of what was there before.
#pragma once
#include "dilated_conv_method.h"
#include "vec.h"

namespace segops::SEGOPS_ISA {

struct Checksum {
  const void* data;
  int64_t bytes;
  uint32_t sums[kChecksumWords] = {};

  static constexpr int64_t kPart = int64_t{64} << 10;  // bytes
  static constexpr uint32_t kFactor = 0x01000193;      // odd

  int64_t parts() const { return (bytes + kPart - 1) / kPart; }

  // Of one part; several threads may add at once, in any order.
  void add(int64_t part) {
    constexpr int64_t kLine = kChecksumWords * 4, kChains = 4;
    using Words = Vec<uint32_t, kChecksumWords>;
    const char* from = static_cast<const char*>(data) + part * kPart;
    const int64_t size = bytes - part * kPart < kPart ? bytes - part * kPart : kPart;
    Words chains[kChains] = {};
    int64_t at = 0;
    for (; at + kChains * kLine <= size; at += kChains * kLine)
      for (int64_t i = 0; i < kChains; ++i) step(chains[i], from + at + i * kLine, kLine);
    for (; at < size; at += kLine) step(chains[0], from + at, size - at < kLine ? size - at : kLine);
    Words sum = chains[0];
    for (int64_t i = 1; i < kChains; ++i) sum = (sum ^ chains[i]) * kFactor;
    for (int64_t lane = 0; lane < kChecksumWords; ++lane)
      __atomic_fetch_add(sums + lane, sum[lane] * (2 * static_cast<uint32_t>(part) + 1), __ATOMIC_RELAXED);
  }

  void write(float* to) const { __builtin_memcpy(to, sums, sizeof(sums)); }
  bool is(const float* written) const { return __builtin_memcmp(written, sums, sizeof(sums)) == 0; }

 private:
  template <class Words>
  static SEGOPS_MEMBER void step(Words& chain, const char* from, int64_t size) {
    Words words{};
    __builtin_memcpy(&words, from, static_cast<size_t>(size));
    chain = (chain ^ words) * kFactor;
  }
};

inline void write_layout(float* to, int out) {
  to[0] = static_cast<float>(out);
  to[1] = static_cast<float>(kPanel);
  for (int64_t i = 2; i < kPackedLine; ++i) to[i] = 0.f;
}
inline bool is_layout(const float* written, int out) {
  return written[0] == static_cast<float>(out) && written[1] == static_cast<float>(kPanel);
}

}  // namespace segops::SEGOPS_ISA
