// Vectors of a fixed number of lanes, and the few functions the kernels need on them, on the compiler's vector extension:
// one source for AVX-512, AVX2, SSE2 and NEON. No STL, and no intrinsics but for streaming stores, for bytes made wider
// and for a mask's test (the extension takes an instruction a lane): this header is compiled once per instruction set, and
// all of it lives in a namespace of that set, so that the linker never lends one level's code to another.
#pragma once
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef SEGOPS_ISA
#error "compile kernel files with -DSEGOPS_ISA=baseline, v3 or v4"
#endif

#if defined(SEGOPS_VECTOR_BYTES)
// Given by a test that runs the widest vectors on a processor without them.
#elif defined(__AVX512F__)
#define SEGOPS_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define SEGOPS_VECTOR_BYTES 32
#else
#define SEGOPS_VECTOR_BYTES 16
#endif

#define SEGOPS_INLINE static inline __attribute__((always_inline))
#define SEGOPS_MEMBER inline __attribute__((always_inline))

namespace segops::SEGOPS_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <int kBytes>
struct IntOfSize;
template <>
struct IntOfSize<2> {
  using type = uint16_t;
};
template <>
struct IntOfSize<4> {
  using type = int32_t;
};
template <>
struct IntOfSize<8> {
  using type = int64_t;
};

// Vec<float, 8>: eight floats. Unaligned<...>: the same in memory, at any address an element may have.
template <class T, int kLanes>
struct VecTypes {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T))));
  typedef T unaligned __attribute__((vector_size(kLanes * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <class T, int kLanes>
using Vec = typename VecTypes<T, kLanes>::type;
template <class T, int kLanes>
using Unaligned = typename VecTypes<T, kLanes>::unaligned;
template <class T>
using BitsOf = typename IntOfSize<sizeof(T)>::type;

template <class T>
constexpr int kNativeLanes = SEGOPS_VECTOR_BYTES / sizeof(T);

template <int kLanes, class T>
SEGOPS_INLINE Vec<T, kLanes> broadcast(T value) {
  return value - Vec<T, kLanes>{};
}

// load<lanes, T>(pointer) converts what is in memory to the accumulation type T.
template <int kLanes, class T>
SEGOPS_INLINE Vec<T, kLanes> load(const T* p) {
  return *reinterpret_cast<const Unaligned<T, kLanes>*>(p);
}

template <int kLanes, class T>
SEGOPS_INLINE Vec<float, kLanes> load(const BFloat16* p) {
  const auto half = *reinterpret_cast<const Unaligned<uint16_t, kLanes>*>(&p->bits);
  return reinterpret_cast<Vec<float, kLanes>>(__builtin_convertvector(half, Vec<uint32_t, kLanes>) << 16);
}

template <int kLanes, class T>
SEGOPS_INLINE Vec<float, kLanes> load(const Float16* p) {
  using Words = Vec<uint32_t, kLanes>;
  using Floats = Vec<float, kLanes>;
  const auto half = *reinterpret_cast<const Unaligned<uint16_t, kLanes>*>(&p->bits);
  const Words word = __builtin_convertvector(half, Words);
  const Words sign = (word & 0x8000u) << 16;
  // Exponent and mantissa moved to their place in a float are the value times 2^-112, subnormals included.
  const Words magnitude = (word & 0x7fffu) << 13;
  const Words scaled = reinterpret_cast<Words>(reinterpret_cast<Floats>(magnitude) * 0x1p112f);
  const Words special = magnitude | 0x7f800000u;
  return reinterpret_cast<Floats>((magnitude >= 0x0f800000u ? special : scaled) | sign);
}

// Bytes as lanes of an integer type.
template <int kLanes, class T>
SEGOPS_INLINE Vec<T, kLanes> load_bytes(const uint8_t* p) {
  [[maybe_unused]] const void* const from = p;
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 4 && kLanes == 8)
    return reinterpret_cast<Vec<T, kLanes>>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from))));
  if constexpr (sizeof(T) == 8 && kLanes == 4)
    return reinterpret_cast<Vec<T, kLanes>>(_mm256_cvtepu8_epi64(_mm_loadu_si32(from)));
#endif
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4 && kLanes == 16)
    return reinterpret_cast<Vec<T, kLanes>>(
        _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(static_cast<const __m128i*>(from))));
  if constexpr (sizeof(T) == 8 && kLanes == 8)
    return reinterpret_cast<Vec<T, kLanes>>(
        _mm512_maskz_cvtepu8_epi64(0xff, _mm_loadl_epi64(static_cast<const __m128i*>(from))));
#endif
  return __builtin_convertvector(*reinterpret_cast<const Unaligned<uint8_t, kLanes>*>(p), Vec<T, kLanes>);
}

template <int kLanes>
SEGOPS_INLINE void store(float* p, Vec<float, kLanes> v) {
  *reinterpret_cast<Unaligned<float, kLanes>*>(p) = v;
}

template <int kLanes>
SEGOPS_INLINE void store(double* p, Vec<double, kLanes> v) {
  *reinterpret_cast<Unaligned<double, kLanes>*>(p) = v;
}

// Round to nearest even; NaN stays NaN.
template <int kLanes>
SEGOPS_INLINE void store(BFloat16* p, Vec<float, kLanes> v) {
  using Words = Vec<uint32_t, kLanes>;
  const Words word = reinterpret_cast<Words>(v);
  const Words rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  const Words quiet = (word >> 16) | 0x0040u;
  const Words result = (word & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
  *reinterpret_cast<Unaligned<uint16_t, kLanes>*>(&p->bits) = __builtin_convertvector(result, Vec<uint16_t, kLanes>);
}

template <int kLanes>
SEGOPS_INLINE void store(Float16* p, Vec<float, kLanes> v) {
  using Words = Vec<uint32_t, kLanes>;
  using Floats = Vec<float, kLanes>;
  const Words word = reinterpret_cast<Words>(v);
  const Words magnitude = word & 0x7fffffffu;
  const Words sign = (word >> 16) & 0x8000u;
  const Words normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  // Added to 0.5, a magnitude below 2^-14 is rounded to multiples of 2^-24: float16's subnormals.
  const Words subnormal = reinterpret_cast<Words>(reinterpret_cast<Floats>(magnitude) + 0.5f) - 0x3f000000u;
  const Words infinite = Words{} + 0x7c00u;
  const Words nan = Words{} + 0x7e00u;
  Words result = magnitude < 0x38800000u ? subnormal : normal;
  result = result > infinite || magnitude >= 0x47800000u ? infinite : result;
  result = magnitude > 0x7f800000u ? nan : result;
  *reinterpret_cast<Unaligned<uint16_t, kLanes>*>(&p->bits) = __builtin_convertvector(result | sign, Vec<uint16_t, kLanes>);
}

// Store past the caches, for outputs larger than them: it spares the read that an ordinary store of a line begins with.
// p has the alignment of the vector in memory. Followed by streaming_done() before anybody else reads.
template <int kLanes, class Element, class T>
SEGOPS_INLINE void store_streaming(Element* p, Vec<T, kLanes> v) {
#if defined(__x86_64__)
  constexpr int kBytes = kLanes * sizeof(Element);
  alignas(kBytes) Element memory[kLanes];
  store<kLanes>(memory, v);
#if defined(__AVX512F__)
  if constexpr (kBytes == 64)
    return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), *reinterpret_cast<const __m512i*>(memory));
#endif
#if defined(__AVX__)
  if constexpr (kBytes == 32)
    return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), *reinterpret_cast<const __m256i*>(memory));
#endif
  if constexpr (kBytes == 16)
    return _mm_stream_si128(reinterpret_cast<__m128i*>(p), *reinterpret_cast<const __m128i*>(memory));
#endif
  store<kLanes>(p, v);
}

// Asks for the cache line `bytes` behind p; what is not ours does no harm, as nothing is read. Into the second-level cache:
// a processor has few lines on their way to the first level at once, and waits with other loads when they are used up.
SEGOPS_INLINE void fetch_ahead(const void* p, int64_t bytes = 8192) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes)), 0, 2);
}

SEGOPS_INLINE void streaming_done() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// A bit for each of `count` elements, whole vectors of them, the lowest for the first: whether it is `value`.
template <int count>
SEGOPS_INLINE uint32_t bits_of_equal(const int32_t* x, int32_t value) {
  constexpr int kLanes = kNativeLanes<int32_t>;
  static_assert(count % kLanes == 0 && count <= 32);
  uint32_t bits = 0;
  for (int i = 0; i < count; i += kLanes) {
    const auto own = load<kLanes, int32_t>(x + i), other = broadcast<kLanes, int32_t>(value);
#if defined(__AVX512F__)
    if constexpr (kLanes == 16) {
      const auto a = reinterpret_cast<__m512i>(own), b = reinterpret_cast<__m512i>(other);
      bits |= static_cast<uint32_t>(_mm512_cmpeq_epi32_mask(a, b)) << i;
      continue;
    }
#endif
#if defined(__AVX2__)
    if constexpr (kLanes == 8) {
      bits |= static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(own == other))) << i;
      continue;
    }
#endif
#if defined(__x86_64__)
    if constexpr (kLanes == 4) {
      bits |= static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(own == other))) << i;
      continue;
    }
#endif
    for (int k = 0; k < kLanes; ++k) bits |= static_cast<uint32_t>(own[k] == other[k]) << (i + k);
  }
  return bits;
}

// The sum of a vector's lanes, in pairs.
template <class T, int kLanes>
SEGOPS_INLINE T sum_in_pairs(Vec<T, kLanes> v) {
  if constexpr (kLanes == 1) {
    return v[0];
  } else {
    Vec<T, kLanes / 2> half[2];
    __builtin_memcpy(half, &v, sizeof(v));
    return sum_in_pairs<T, kLanes / 2>(half[0] + half[1]);
  }
}

template <class T, int kLanes>
SEGOPS_INLINE T sum_of_lanes(const T* lanes) {
  T total = 0;
  for (int i = 0; i < kLanes; ++i) total += lanes[i];
  return total;
}

// Constants of exp and log. exp: polynomial of e^r on |r| <= ln 2 / 2, highest power first.
template <class T>
struct MathConstants;

template <>
struct MathConstants<float> {
  static constexpr int kMantissaBits = 23, kExponentBias = 127;
  static constexpr int kBoundedBias = 64;  // bounded_exp: powers 2^-63 .. 2^63
  static constexpr float kRound = 0x1.8p23f, kLog2e = 1.44269504089f, kLn2High = 0.693147180560f, kLn2Low = 0.f;
  static constexpr float kBoundedScale = 0x1p63f;  // 2^(kExponentBias - kBoundedBias)
  static constexpr float kLowest = -88.f;          // e^x rounds to 2^-127 or less: zero
  static constexpr float kTinySum = 1e-18f, kTinyProbability = 1e-30f;
  static constexpr int kTerms = 7;  // relative error 3e-9
  static constexpr float kExp[kTerms] = {1.381459824480704e-3f,
                                         8.368716912702485e-3f,
                                         4.1668388053775055e-2f,
                                         1.666652063135462e-1f,
                                         4.999999344775388e-1f,
                                         1.f,
                                         1.f};
};

template <>
struct MathConstants<double> {
  static constexpr int kMantissaBits = 52, kExponentBias = 1023;
  static constexpr int kBoundedBias = 512;
  static constexpr double kRound = 0x1.8p52, kLog2e = 0x1.71547652b82fep0;
  static constexpr double kLn2High = 0x1.62e42fee00000p-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kBoundedScale = 0x1p511;
  static constexpr double kLowest = -709.;
  static constexpr double kTinySum = 1e-150, kTinyProbability = 1e-280;
  static constexpr int kTerms = 14;  // Taylor: the remainder r^14 / 14! is below 5e-18
  static constexpr double kExp[kTerms] = {
      1. / 6227020800., 1. / 479001600., 1. / 39916800., 1. / 3628800., 1. / 362880., 1. / 40320., 1. / 5040.,
      1. / 720.,        1. / 120.,       1. / 24.,       1. / 6.,       1. / 2.,      1.,          1.};
};

// Bits of a power of two that are looked up by a permutation of lanes, which spares three terms of the polynomial: where
// a vector holds the table.
template <class T, int kLanes>
constexpr int kTableBits = sizeof(T) != 4 || SEGOPS_VECTOR_BYTES < 32 ? 0
                           : kLanes == 16                             ? 4
                           : kLanes == 8                              ? 3
                                                                      : 0;

// Entry j: the bits of 2^(j / entries), less j in the place where it comes to lie when the exponent is moved to its own.
template <int kLanes>
struct PowersOfTwo {};
template <>
struct PowersOfTwo<8> {
  static constexpr int32_t kBits[] = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                                      0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
  // (e^r - 1) / r on |r| <= ln 2 / 16, highest power first: relative error of e^r 2.5e-8
  static constexpr float kTerms[] = {0.16664296f, 0.50006484f, 1.0000000487f};
};
template <>
struct PowersOfTwo<16> {
  static constexpr int32_t kBits[] = {0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532,
                                      0x3f75fed7, 0x3f75583f, 0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c,
                                      0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};
  static constexpr float kTerms[] = {0.16666074f, 0.50001621f, 1.0000000030f};  // on |r| <= ln 2 / 32: 1.6e-9
};

// What a bounded exp_tile rounds x * kScale + kShift to, and the bits of the result that are the same for every x in bounds.
template <class T, int kLanes>
struct BoundedExponent {
  using M = MathConstants<T>;
  static constexpr int kSteps = 1 << kTableBits<T, kLanes>;
  static constexpr T kScale = kSteps * M::kLog2e, kShift = M::kRound + kSteps * M::kBoundedBias;
  static constexpr BitsOf<T> kFixed = ~BitsOf<T>(2 * kSteps * M::kBoundedBias - 1);
};

template <int kLanes, int kTile, bool kBounded>
SEGOPS_INLINE void exp_tile_by_table(Vec<float, kLanes> (&x)[kTile], Vec<int32_t, kLanes>& range) {
  using M = MathConstants<float>;
  using E = BoundedExponent<float, kLanes>;
  using Table = PowersOfTwo<kLanes>;
  using V = Vec<float, kLanes>;
  using B = Vec<int32_t, kLanes>;
  using U = Vec<uint32_t, kLanes>;  // adds up what is out of bounds, too
  constexpr float kShift = kBounded ? E::kShift : M::kRound;
  constexpr float kStep = M::kLn2High / E::kSteps;
  // Below kLeast results were subnormal: zero, which is what kZero comes to.
  constexpr float kLeast = -87.33f, kZero = -88.03f;
  const B table = load<kLanes, int32_t>(Table::kBits) - (kBounded ? M::kBoundedBias << M::kMantissaBits : 0);
  V n[kTile], q[kTile], power[kTile];
  if constexpr (!kBounded)
    for (int k = 0; k < kTile; ++k) x[k] = x[k] < kLeast ? broadcast<kLanes, float>(kZero) : x[k];
  for (int k = 0; k < kTile; ++k) n[k] = x[k] * E::kScale + kShift;
  for (int k = 0; k < kTile; ++k) {
    const B bits = reinterpret_cast<B>(n[k]);
    if constexpr (kBounded) range |= bits;
    const U entry = reinterpret_cast<U>(__builtin_shuffle(table, bits));
    power[k] = reinterpret_cast<V>(entry + (reinterpret_cast<U>(bits) << (M::kMantissaBits - kTableBits<float, kLanes>)));
  }
  for (int k = 0; k < kTile; ++k) n[k] -= kShift;
  for (int k = 0; k < kTile; ++k) x[k] -= n[k] * kStep;
  for (int k = 0; k < kTile; ++k) q[k] = x[k] * Table::kTerms[0] + Table::kTerms[1];
  for (int k = 0; k < kTile; ++k) q[k] = q[k] * x[k] + Table::kTerms[2];
  for (int k = 0; k < kTile; ++k) q[k] *= x[k];
  for (int k = 0; k < kTile; ++k) x[k] = q[k] * power[k] + power[k];
}

// e^x for kTile vectors at once, step by step, so that their dependency chains overlap.
//
// kBounded = true: for |x| below about 44 (float) or 354 (double), in the fewest operations: the bits of the rounded
// exponents are collected in `range`, and outside_bounds(range) tells afterwards whether any x, NaN included, was outside.
// kBounded = false: for every x <= 0 and NaN; results that are not normal numbers are exactly zero.
template <class T, int kLanes, int kTile, bool kBounded>
SEGOPS_INLINE void exp_tile(Vec<T, kLanes> (&x)[kTile], Vec<BitsOf<T>, kLanes>& range) {
  if constexpr (kTableBits<T, kLanes> > 0) return exp_tile_by_table<kLanes, kTile, kBounded>(x, range);
  using M = MathConstants<T>;
  using V = Vec<T, kLanes>;
  using B = Vec<BitsOf<T>, kLanes>;
  constexpr T kScale = kBounded ? M::kBoundedScale : T(1);
  constexpr T kShift = M::kRound + (kBounded ? M::kBoundedBias : M::kExponentBias);
  V n[kTile], q[kTile], power[kTile];
  if constexpr (!kBounded)
    for (int k = 0; k < kTile; ++k) x[k] = x[k] < M::kLowest ? broadcast<kLanes, T>(M::kLowest) : x[k];
  // The sum's low bits are the rounded multiple of ln 2, already biased; its high bits are those of kRound.
  for (int k = 0; k < kTile; ++k) n[k] = x[k] * M::kLog2e + kShift;
  for (int k = 0; k < kTile; ++k) {
    const B bits = reinterpret_cast<B>(n[k]);
    if constexpr (kBounded) range |= bits;
    power[k] = reinterpret_cast<V>(bits << M::kMantissaBits);
  }
  for (int k = 0; k < kTile; ++k) n[k] -= kShift;
  for (int k = 0; k < kTile; ++k) x[k] -= n[k] * M::kLn2High;
  if constexpr (M::kLn2Low != 0)
    for (int k = 0; k < kTile; ++k) x[k] -= n[k] * M::kLn2Low;
  for (int k = 0; k < kTile; ++k) q[k] = x[k] * (kScale * M::kExp[0]) + kScale * M::kExp[1];
  for (int term = 2; term < M::kTerms; ++term)
    for (int k = 0; k < kTile; ++k) q[k] = q[k] * x[k] + kScale * M::kExp[term];
  for (int k = 0; k < kTile; ++k) x[k] = q[k] * power[k];
}

// Only the part of a bounded exp_tile that collects `range`.
template <class T, int kLanes, int kTile>
SEGOPS_INLINE void bound_exponents(const Vec<T, kLanes> (&x)[kTile], Vec<BitsOf<T>, kLanes>& range) {
  using E = BoundedExponent<T, kLanes>;
  for (int k = 0; k < kTile; ++k) range |= reinterpret_cast<Vec<BitsOf<T>, kLanes>>(x[k] * E::kScale + E::kShift);
}

template <class T, int kLanes>
SEGOPS_INLINE bool outside_bounds(Vec<BitsOf<T>, kLanes> range) {
  const T round = MathConstants<T>::kRound;
  BitsOf<T> expected, all = 0;
  __builtin_memcpy(&expected, &round, sizeof(T));
  for (int i = 0; i < kLanes; ++i) all |= range[i];
  return ((all ^ expected) & BoundedExponent<T, kLanes>::kFixed) != 0;
}

// ln x for x > 0 (subnormals flushed towards -88), -inf for 0, NaN for NaN and negative x.
template <int kLanes>
SEGOPS_INLINE Vec<float, kLanes> log(Vec<float, kLanes> x) {
  using V = Vec<float, kLanes>;
  using B = Vec<int32_t, kLanes>;
  // x = 2^n m with m in [sqrt(1/2), sqrt(2))
  const B bits = reinterpret_cast<B>(x);
  const B n = (bits - 0x3f3504f3) >> 23;
  const V f = reinterpret_cast<V>(bits - (n << 23)) - 1.f;
  V q = f * -0.07634488493204117f + 0.12761573493480682f;
  q = q * f - 0.13160184025764465f;
  q = q * f + 0.14201758801937103f;
  q = q * f - 0.16623356938362122f;
  q = q * f + 0.20001226663589478f;
  q = q * f - 0.2500081956386566f;
  q = q * f + 0.3333333134651184f;
  const V square = f * f;
  const V power = __builtin_convertvector(n, V);
  // ln 2 in two parts, the first with few enough bits that power * high is exact.
  V result = (q * f * square + power * -2.12194440e-4f) - 0.5f * square + f + power * 0.693359375f;
  const V inf = broadcast<kLanes, float>(__builtin_inff());
  const V nan = broadcast<kLanes, float>(__builtin_nanf(""));
  result = x == inf ? inf : result;
  result = x == 0.f ? -inf : result;
  return x >= 0.f ? result : nan;
}

template <int kLanes>
SEGOPS_INLINE Vec<double, kLanes> log(Vec<double, kLanes> x) {
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_log(x[i]);
  return x;
}

}  // namespace segops::SEGOPS_ISA
