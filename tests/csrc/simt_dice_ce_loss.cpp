// Runs the CUDA kernels of dice_ce_loss on the host execution and compares them with the CPU kernels, without torch.
//
// Reads lines from stdin and answers each with one line: "ok", or what is wrong. Exit status 1 if anything was. With the
// argument "first", the first thing wrong is the end.
//   key=value ...   a case; the keys are the fields of Case
//   counters        answers with what the race build has counted since the last time, as JSON
//
// Every tensor is an allocation of the exact size, so that a sanitizer and the race build see an access past its end.
// Gaps between rows are NaN, and so are the logits of ignored pixels.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <limits>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "../../csrc/cpu/parallel.h"
#include "api.h"
#include "device.cuh"
#include "launch.h"

namespace segops {
Status dice_ce_loss_statistics(const DiceCeLossStatistics&, const Parallel&);
Status dice_ce_loss_backward(const DiceCeLossBackward&, const Parallel&);
}  // namespace segops

namespace {

using namespace segops;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Case {
  Dtype dtype = Dtype::float32, label = Dtype::int64;
  int64_t n = 1, c = 3, s = 64;
  bool planar = true;
  int64_t pad = 0;     // elements between planes, or between pixels where channels are last
  int64_t offset = 0;  // of the logits and the gradient from an aligned address, in elements
  bool squared = false, weight = false, pixel_weight = false, map = false, confusion = false, overlap = true;
  bool backward = true;
  bool poison = false;  // a NaN among the derivatives: ignored pixels still have no gradient
  double smoothing = 0, ignore = 0;
  int64_t bad = 0;  // one label in so many is bad; 0: none
  uint64_t seed = 1;
};

int64_t bytes_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float64:
    case Dtype::int64: return 8;
    case Dtype::float32:
    case Dtype::int32: return 4;
    case Dtype::uint8: return 1;
    default: return 2;
  }
}

// What is wrong with the line, or nothing.
std::string parse(const std::string& line, Case& to) {
  static const std::map<std::string, Dtype> dtypes = {
      {"float32", Dtype::float32}, {"float64", Dtype::float64}, {"bfloat16", Dtype::bfloat16}, {"float16", Dtype::float16},
      {"uint8", Dtype::uint8},     {"int16", Dtype::int16},     {"int32", Dtype::int32},       {"int64", Dtype::int64}};
  std::istringstream words(line);
  std::string mode = "uniform";
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    if (equals == std::string::npos) return "not key=value: " + word;
    const std::string key = word.substr(0, equals), value = word.substr(equals + 1);
    const auto integer = [&] { return std::stoll(value); };
    if (key == "dtype" || key == "label") {
      const auto found = dtypes.find(value);
      if (found == dtypes.end()) return "unknown type: " + value;
      (key == "dtype" ? to.dtype : to.label) = found->second;
    } else if (key == "n") {
      to.n = integer();
    } else if (key == "c") {
      to.c = integer();
    } else if (key == "s") {
      to.s = integer();
    } else if (key == "layout") {
      to.planar = value == "planar";
    } else if (key == "pad") {
      to.pad = integer();
    } else if (key == "offset") {
      to.offset = integer();
    } else if (key == "squared") {
      to.squared = integer();
    } else if (key == "weight") {
      to.weight = integer();
    } else if (key == "pixel_weight") {
      to.pixel_weight = integer();
    } else if (key == "map") {
      to.map = integer();
    } else if (key == "confusion") {
      to.confusion = integer();
    } else if (key == "overlap") {
      to.overlap = integer();
    } else if (key == "backward") {
      to.backward = integer();
    } else if (key == "poison") {
      to.poison = integer();
    } else if (key == "smoothing") {
      to.smoothing = std::stod(value);
    } else if (key == "ignore") {
      to.ignore = std::stod(value);
    } else if (key == "bad") {
      to.bad = integer();
    } else if (key == "seed") {
      to.seed = static_cast<uint64_t>(integer());
    } else if (key == "mode") {
      mode = value;
    } else {
      return "unknown key: " + key;
    }
  }
  return simt_set_schedule(mode.c_str(), to.seed) == 0 ? "" : "unknown mode: " + mode;
}

// Memory of the exact size, known to the race build; `shift` bytes off an address that is a multiple of 128.
class Buffer {
 public:
  Buffer(const char* name, int64_t bytes, bool writable, int64_t shift = 0) : shift_(static_cast<size_t>(shift)) {
    bytes_ = static_cast<size_t>(bytes);
    if (posix_memalign(&memory_, 128, shift_ + (bytes_ ? bytes_ : 1)) != 0) std::abort();
    std::memset(memory_, 0xff, shift_ + bytes_);
    simt_register_buffer(data(), bytes_, name, writable);
  }
  ~Buffer() {
    simt_unregister_buffer(data());
    std::free(memory_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return static_cast<char*>(memory_) + shift_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data());
  }
  size_t bytes() const { return bytes_; }

 private:
  void* memory_ = nullptr;
  size_t bytes_, shift_;
};

double element(const void* data, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::float32: return static_cast<const float*>(data)[i];
    case Dtype::float64: return static_cast<const double*>(data)[i];
    case Dtype::bfloat16: return device::to_float(static_cast<const __nv_bfloat16*>(data)[i]);
    default: return device::to_float(static_cast<const __half*>(data)[i]);
  }
}

void set_element(void* data, Dtype dtype, int64_t i, double value) {
  const float narrow = static_cast<float>(value);
  switch (dtype) {
    case Dtype::float32: static_cast<float*>(data)[i] = narrow; break;
    case Dtype::float64: static_cast<double*>(data)[i] = value; break;
    case Dtype::bfloat16: static_cast<__nv_bfloat16*>(data)[i] = device::from_float<__nv_bfloat16>(narrow); break;
    default: static_cast<__half*>(data)[i] = device::from_float<__half>(narrow); break;
  }
}

void set_label(void* data, Dtype dtype, int64_t i, int64_t value) {
  switch (dtype) {
    case Dtype::uint8: static_cast<uint8_t*>(data)[i] = static_cast<uint8_t>(value); break;
    case Dtype::int16: static_cast<int16_t*>(data)[i] = static_cast<int16_t>(value); break;
    case Dtype::int32: static_cast<int32_t*>(data)[i] = static_cast<int32_t>(value); break;
    default: static_cast<int64_t*>(data)[i] = value; break;
  }
}

// Collects the first difference.
struct Differences {
  std::string first;

  void fail(const std::string& text) {
    if (first.empty()) first = text;
  }

  // |found - expected| <= relative |expected| + absolute; NaN equals NaN.
  void compare(const char* what, int64_t i, double found, double expected, double relative, double absolute) {
    if (std::isnan(found) && std::isnan(expected)) return;
    if (std::abs(found - expected) <= relative * std::abs(expected) + absolute || found == expected) return;
    if (!first.empty()) return;
    std::ostringstream text;
    text.precision(9);
    text << what << "[" << i << "] is " << found << ", expected " << expected;
    first = text.str();
  }
};

class Run {
 public:
  explicit Run(const Case& of)
      : c_(of),
        accumulated_(of.dtype == Dtype::float64 ? Dtype::float64 : Dtype::float32),
        element_(bytes_of(of.dtype)),
        stride_c_(of.planar ? of.s + of.pad : 1),
        stride_s_(of.planar ? 1 : of.c + of.pad),
        stride_n_(of.planar ? of.c * stride_c_ : of.s * stride_s_),
        // The last row has no gap after it.
        elements_(of.n * stride_n_ - (of.n * of.s > 0 ? of.pad : 0)),
        random_(of.seed),
        valid_(static_cast<size_t>(of.n * of.s)),
        logits_("logits", elements_ * element_, false, of.offset * element_),
        target_("target", of.n * of.s * bytes_of(of.label), false),
        weight_("weight", of.c * 8, false),
        pixel_weight_("pixel_weight", of.n * of.s * bytes_of(accumulated_), false) {
    fill();
  }

  std::string operator()() {
    statistics();
    value();
    if (c_.backward) backward();
    return differences_.first;
  }

 private:
  double draw(double low, double high) { return std::uniform_real_distribution<double>(low, high)(random_); }
  int64_t at(int64_t n, int64_t c, int64_t s) const { return n * stride_n_ + c * stride_c_ + s * stride_s_; }

  void fill() {
    in_.logits = logits_.data();
    in_.logits_dtype = c_.dtype;
    in_.batch = c_.n, in_.classes = c_.c, in_.pixels = c_.s;
    in_.stride_n = stride_n_, in_.stride_c = stride_c_, in_.stride_s = stride_s_;
    in_.target = target_.data();
    in_.target_dtype = c_.label;
    in_.weight = c_.weight ? weight_.as<double>() : nullptr;
    in_.pixel_weight = c_.pixel_weight ? pixel_weight_.data() : nullptr;
    in_.ignore_index = c_.label == Dtype::uint8 ? 255 : -100;
    in_.label_smoothing = c_.smoothing;
    in_.squared = c_.squared;
    for (int64_t k = 0; k < c_.c; ++k) weight_.as<double>()[k] = draw(0.5, 2);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < c_.n * c_.s; ++i) {
      int64_t label = static_cast<int64_t>(random_() % static_cast<uint64_t>(c_.c));
      if (draw(0, 1) < c_.ignore) label = in_.ignore_index;
      // uint8 has no other bad values where there are 255 classes or more.
      if (c_.bad && i % c_.bad == c_.bad / 2 && (c_.label != Dtype::uint8 || c_.c < 250)) label = c_.c + i % 3;
      valid_[static_cast<size_t>(i)] = label != in_.ignore_index && label < c_.c;
      set_label(target_.data(), c_.label, i, label);
      set_element(pixel_weight_.data(), accumulated_, i, draw(0, 2));
      const double outlier = i % 37 == 5 ? 40 : 1;
      for (int64_t k = 0; k < c_.c; ++k) {
        double x = normal(random_) * outlier;
        if (i % 8 == 3) x = std::round(x / 2);  // equal logits, for the argmax
        set_element(logits_.data(), c_.dtype, at(i / c_.s, k, i % c_.s), valid_[static_cast<size_t>(i)] ? x : kNan);
      }
    }
  }

  void check(cuda::Failure failure, const char* step) {
    if (failure) differences_.fail(std::string(step) + ": " + failure);
  }

  void statistics() {
    const int64_t sums = c_.n * 3 * c_.c, cells = c_.c * c_.c;
    const Buffer overlap("overlap", sums * 8, true), ce("ce", 16, true), bad("bad_labels", sizeof(BadData), true);
    const Buffer map("ce_map", c_.n * c_.s * bytes_of(accumulated_), true), confusion("confusion", cells * 8, true);
    const Buffer scratch("scratch", cuda::dice_ce_loss_scratch_bytes(in_), true);
    std::memset(confusion.data(), 0, confusion.bytes());
    DiceCeLossStatistics p{in_,
                           c_.overlap ? overlap.as<double>() : nullptr,
                           ce.as<double>(),
                           c_.map ? map.data() : nullptr,
                           c_.confusion ? confusion.as<int64_t>() : nullptr,
                           bad.as<BadData>()};
    check(cuda::dice_ce_loss_statistics(p, scratch.data(), nullptr), "statistics");
    if (!differences_.first.empty()) return;

    overlap_.assign(static_cast<size_t>(sums), 0);
    std::vector<double> expected_ce(2);
    std::vector<char> expected_map(map.bytes());
    std::vector<int64_t> expected_confusion(static_cast<size_t>(cells), 0);
    BadData expected_bad{};
    p.overlap = c_.overlap ? overlap_.data() : nullptr;
    p.ce = expected_ce.data();
    p.ce_map = c_.map ? expected_map.data() : nullptr;
    p.confusion = c_.confusion ? expected_confusion.data() : nullptr;
    p.bad_labels = &expected_bad;
    if (dice_ce_loss_statistics(p, kSerial) != Status::ok) std::abort();
    const double unit = c_.dtype == Dtype::float64 ? 1e-12 : 1e-5;
    for (int64_t i = 0; c_.overlap && i < sums; ++i) {
      const double tolerance = i / c_.c % 3 == 2 ? 0 : unit;  // T counts pixels
      differences_.compare("overlap", i, overlap.as<double>()[i], overlap_[static_cast<size_t>(i)], tolerance, tolerance);
    }
    for (int i = 0; i < 2; ++i) {
      differences_.compare("ce", i, ce.as<double>()[i], expected_ce[static_cast<size_t>(i)], unit, unit);
      ce_[i] = expected_ce[static_cast<size_t>(i)];
    }
    for (int64_t i = 0; c_.map && i < c_.n * c_.s; ++i)
      differences_.compare("ce_map", i, element(map.data(), accumulated_, i), element(expected_map.data(), accumulated_, i),
                           valid_[static_cast<size_t>(i)] ? unit : 0, valid_[static_cast<size_t>(i)] ? unit : 0);
    for (int64_t i = 0; c_.confusion && i < cells; ++i)
      differences_.compare("confusion", i, static_cast<double>(confusion.as<int64_t>()[i]),
                           static_cast<double>(expected_confusion[static_cast<size_t>(i)]), 0, 0);
    const BadData& found = *bad.as<BadData>();
    differences_.compare("bad_labels", 0, static_cast<double>(found.count), static_cast<double>(expected_bad.count), 0, 0);
    if (expected_bad.count == 0) return;
    differences_.compare("bad_labels", 1, static_cast<double>(found.position), static_cast<double>(expected_bad.position), 0,
                         0);
    differences_.compare("bad_labels", 2, static_cast<double>(found.value), static_cast<double>(expected_bad.value), 0, 0);
  }

  void value() {
    if (!differences_.first.empty()) return;
    const int64_t cells = c_.n * c_.c;
    const Buffer overlap("overlap", cells * 3 * 8, false), ce("ce", 16, false), loss("loss", 8, true);
    const Buffer parts("parts", 16, true), scores("scores", cells * 8, true), grad("grad_overlap", cells * 3 * 8, true);
    const Buffer grad_ce("grad_ce", 16, true);
    std::memcpy(overlap.data(), overlap_.data(), overlap.bytes());
    std::memcpy(ce.data(), ce_, 16);
    DiceCeLossValue p{};
    p.with_overlap = c_.overlap;
    p.batch = c_.n, p.classes = c_.c;
    p.overlap = overlap.as<double>();
    p.ce = ce.as<double>();
    p.dice_class_weight = c_.weight ? weight_.as<double>() : nullptr;
    p.num_i = 2, p.den_p = 1, p.den_t = 1, p.smooth = 1e-5, p.ce_weight = 1, p.dice_weight = 1;
    p.batch_dice = c_.squared;
    p.skip_absent = c_.ignore > 0;
    p.ce_mean = !c_.pixel_weight;
    p.loss = loss.as<double>();
    p.parts = parts.as<double>();
    p.scores = scores.as<double>();
    p.grad_overlap = grad.as<double>();
    p.grad_ce = grad_ce.as<double>();
    check(cuda::dice_ce_loss_value(p, nullptr), "value");
    DiceCeLossValue q = p;
    std::vector<double> out(static_cast<size_t>(1 + 2 + cells + cells * 3 + 2));
    q.loss = out.data(), q.parts = q.loss + 1, q.scores = q.parts + 2, q.grad_overlap = q.scores + cells;
    q.grad_ce = q.grad_overlap + 3 * cells;
    dice_ce_loss_value(q);
    const auto same = [&](const char* what, const double* found, const double* expected, int64_t count) {
      for (int64_t i = 0; i < count; ++i) differences_.compare(what, i, found[i], expected[i], 1e-12, 1e-15);
    };
    same("loss", p.loss, q.loss, 1);
    same("parts", p.parts, q.parts, 2);
    same("value grad_ce", p.grad_ce, q.grad_ce, 2);
    if (!c_.overlap) return;
    same("scores", p.scores, q.scores, dice_ce_loss::rows(p) * c_.c);
    same("value grad_overlap", p.grad_overlap, q.grad_overlap, 3 * cells);
  }

  void backward() {
    if (!differences_.first.empty()) return;
    const Buffer grad("grad_logits", elements_ * element_, true, c_.offset * element_);
    const Buffer grad_overlap("grad_overlap", c_.n * 3 * c_.c * 8, false), grad_ce("grad_ce", 16, false);
    for (int64_t i = 0; i < c_.n * 3 * c_.c; ++i) grad_overlap.as<double>()[i] = draw(-1, 1);
    if (c_.poison) grad_overlap.as<double>()[c_.c] = kNan;  // of P, class 0, image 0
    grad_ce.as<double>()[0] = 0.7;
    DiceCeLossBackward p{};
    p.in = in_;
    p.grad_overlap = c_.overlap ? grad_overlap.as<double>() : nullptr;
    p.grad_ce = grad_ce.as<double>();
    p.grad_logits = grad.data();
    p.grad_stride_n = stride_n_, p.grad_stride_c = stride_c_, p.grad_stride_s = stride_s_;
    check(cuda::dice_ce_loss_backward(p, nullptr), "backward");
    if (!differences_.first.empty()) return;

    std::vector<char> expected(grad.bytes(), static_cast<char>(0xff));
    p.grad_logits = expected.data();
    if (dice_ce_loss_backward(p, kSerial) != Status::ok) std::abort();
    // One unit in the last place of the element type, as both round a float; and what differs between the sums of float.
    const double relative = c_.dtype == Dtype::bfloat16 ? 0x1p-7 : c_.dtype == Dtype::float16 ? 0x1p-10 : 0;
    const double absolute = c_.dtype == Dtype::float64 ? 1e-12 : 2e-5;
    std::vector<bool> written(static_cast<size_t>(elements_), false);
    for (int64_t i = 0; i < c_.n * c_.s; ++i) {
      const bool valid = valid_[static_cast<size_t>(i)];
      for (int64_t k = 0; k < c_.c; ++k) {
        const int64_t e = at(i / c_.s, k, i % c_.s);
        written[static_cast<size_t>(e)] = true;
        const double found = element(grad.data(), c_.dtype, e);
        differences_.compare("grad", e, found, valid ? element(expected.data(), c_.dtype, e) : 0.0, valid ? relative : 0,
                             valid ? absolute : 0);
      }
    }
    for (int64_t e = 0; e < elements_; ++e)
      if (!written[static_cast<size_t>(e)] && !std::isnan(element(grad.data(), c_.dtype, e)))
        differences_.fail("a gap of the gradient was written, at element " + std::to_string(e));
  }

  static constexpr Parallel kSerial{1, nullptr};

  const Case c_;
  const Dtype accumulated_;
  const int64_t element_, stride_c_, stride_s_, stride_n_, elements_;
  std::mt19937_64 random_;
  std::vector<bool> valid_;
  Buffer logits_, target_, weight_, pixel_weight_;
  DiceCeLossInputs in_{};
  std::vector<double> overlap_;
  double ce_[2] = {};
  Differences differences_;
};

std::string counters() {
  std::string text(simt_counters(nullptr, 0), ' ');
  simt_counters(text.data(), text.size() + 1);
  simt_reset_counters();
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  const bool only_first = argc > 1 && std::strcmp(argv[1], "first") == 0;
  bool good = true;
  for (std::string line; (good || !only_first) && std::getline(std::cin, line);) {
    std::string answer;
    if (line == "counters") {
      answer = counters();
    } else {
      Case of;
      answer = parse(line, of);
      if (answer.empty()) answer = Run(of)();
      good &= answer.empty();
      if (answer.empty()) answer = "ok";
    }
    for (char& letter : answer)
      if (letter == '\n') letter = ' ';
    std::cout << answer << std::endl;
  }
  return good ? 0 : 1;
}
