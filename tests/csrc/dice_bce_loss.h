// What both drivers of dice_bce_loss share: the definition in long double, and labels of every type with all that is bad.
#pragma once
#include "image.h"
#include "segops/dice_bce_loss.h"

namespace driver {

using Exact = long double;

// One element, by the formulas of segops/dice_bce_loss.h.
struct Definition {
  Exact x, t, q, w, gamma;

  Exact p() const { return 1 / (1 + std::exp(-x)); }
  Exact rest() const { return 1 / (1 + std::exp(x)); }
  static Exact softplus(Exact x) { return std::log1p(std::exp(-std::abs(x))) + std::max(x, Exact(0)); }
  Exact cross_entropy() const { return q * t * softplus(-x) + (1 - t) * softplus(x); }
  Exact missed() const { return std::max(p() * (1 - t) + rest() * t, Exact(0)); }
  Exact loss() const { return w * (gamma == 0 ? 1 : std::pow(missed(), gamma)) * cross_entropy(); }
  Exact slope() const {
    const Exact plain = (1 - t) * p() - q * t * rest();
    if (gamma == 0) return w * plain;
    if (missed() == 0) return 0;
    const Exact of_missed = (1 - 2 * t) * p() * rest();
    return w * (std::pow(missed(), gamma) * plain + gamma * std::pow(missed(), gamma - 1) * of_missed * cross_entropy());
  }
  // bce: the derivative with respect to the sum of losses, or 0 for none; overlap: those with respect to I and, `apart`
  // further, to P of the element's channel, or null.
  Exact gradient(double bce, const double* overlap, int64_t apart, bool squared) const {
    Exact result = bce != 0 ? bce * slope() : 0;
    if (overlap) result += (overlap[0] * t + overlap[apart] * (squared ? 2 * p() : 1)) * p() * rest();
    return result;
  }
};

// Where the sums [N, 3, C] have I of element i's channel, i of [N, C, S].
inline int64_t place_in_sums(int64_t i, int64_t channels, int64_t pixels) {
  return i / pixels / channels * 3 * channels + i / pixels % channels;
}

// What the statistics of [N, C, S] should be.
struct Sums {
  int64_t channels, pixels;
  bool squared;
  std::vector<Exact> overlap;
  Exact bce[2] = {0, 0};

  Sums(int64_t n, int64_t c, int64_t s, bool squared_)
      : channels(c), pixels(s), squared(squared_), overlap(static_cast<size_t>(n * 3 * c), 0) {}

  void add(int64_t i, const Definition& of) {
    Exact* const own = overlap.data() + place_in_sums(i, channels, pixels);
    own[0] += of.p() * of.t;
    own[channels] += squared ? of.p() * of.p() : of.p();
    own[2 * channels] += squared ? of.t * of.t : of.t;
    bce[0] += of.loss();
    bce[1] += of.w;
  }

  // found_overlap: null where there is none.
  void compare(Differences& differences, const double* found_overlap, const double* found_bce, Tolerance tolerance) const {
    for (size_t i = 0; found_overlap && i < overlap.size(); ++i)
      differences.compare("overlap", static_cast<int64_t>(i), found_overlap[i], static_cast<double>(overlap[i]), tolerance);
    for (int i = 0; i < 2; ++i) differences.compare("bce", i, found_bce[i], static_cast<double>(bce[i]), tolerance);
  }
};

// "hard", all 0 or 1, but for one in so many that is bad, and what is ignored.
struct Labels {
  Dtype dtype;
  double ignore_share;
  int64_t bad;  // one in so many; 0: none
  static constexpr int64_t kIgnored = 255;

  double draw(std::mt19937_64& random, int64_t i) const {
    const auto uniform = [&] { return std::uniform_real_distribution<double>(0, 1)(random); };
    if (uniform() < ignore_share) return kIgnored;
    const bool soft = dtype != Dtype::uint8;
    if (bad && i % bad == bad / 2) return !soft ? 2 : i % 3 == 0 ? kNan : i % 3 == 1 ? 1.0625 : -3;
    if (!soft || i % 3 == 0) return uniform() < 0.4;
    return i % 7 == 1 ? 1 + 1.0 / 128 : i % 7 == 3 ? -1.0 / 128 : uniform();
  }
  static bool ignored(double label, bool ignores) { return ignores && label == kIgnored; }
  static bool valid(double label) { return label >= -segops::kSoftLabelSlack && label <= 1 + segops::kSoftLabelSlack; }
  int64_t recorded(double label) const {
    if (dtype == Dtype::uint8) return static_cast<int64_t>(label);
    int64_t bits;
    std::memcpy(&bits, &label, 8);
    return bits;
  }
};

inline segops::Elements elements_of(const Image& image) {
  const segops::Planes& p = image.planes();
  return {p.data, p.stride_n, p.stride_c, p.stride_w};
}

inline void compare_bad(Differences& differences, const segops::BadData& found, const segops::BadData& expected) {
  const auto same = [&](const char* what, int64_t is, int64_t should) {
    if (is != should)
      differences.fail("bad_labels: " + std::string(what) + " " + std::to_string(is) + ", expected " +
                       std::to_string(should));
  };
  same("count", found.count, expected.count);
  if (expected.count == 0) return;
  same("position", found.position, expected.position);
  same("value", found.value, expected.value);
}

}  // namespace driver
