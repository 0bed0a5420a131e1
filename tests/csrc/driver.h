// What the drivers share: programs without torch, one for each operator, that run its CUDA kernels on the host execution and
// compare them with its CPU kernels through the same params structs.
//
// A driver is `std::string run(const Case&)`, which says what is wrong, or nothing, and a `main` that hands it to `answer`.
// Every tensor is an allocation of the exact size, so that a sanitizer and the race build see an access past its end; what
// was never written is NaN.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cpu/parallel.h"
#include "api.h"
#include "device.cuh"
#include "launch.h"
#include "segops/planes.h"

namespace driver {

using segops::bytes_of, segops::Dtype;

inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
inline constexpr segops::Parallel kSerial{1, nullptr};

// What sums of elements of the type are held in.
inline Dtype accumulated(Dtype dtype) { return dtype == Dtype::float64 ? Dtype::float64 : Dtype::float32; }

// One line "key=value key=value". Every operator's cases have the keys mode and seed; an operator asks for its own by name,
// with the value where the line has none. A key that nobody has asked for is an error.
class Case {
 public:
  explicit Case(const std::string& line) {
    std::istringstream words(line);
    for (std::string word; words >> word;) {
      const size_t equals = word.find('=');
      if (equals == std::string::npos) throw std::invalid_argument("not key=value: " + word);
      values_[word.substr(0, equals)] = word.substr(equals + 1);
    }
  }

  std::string text(const std::string& key, const std::string& otherwise) const {
    const auto found = values_.find(key);
    if (found == values_.end()) return otherwise;
    asked_[key] = true;
    return found->second;
  }
  int64_t integer(const std::string& key, int64_t otherwise) const {
    const std::string value = text(key, "");
    return value.empty() ? otherwise : std::stoll(value);
  }
  bool flag(const std::string& key, bool otherwise = false) const { return integer(key, otherwise) != 0; }
  double real(const std::string& key, double otherwise) const {
    const std::string value = text(key, "");
    return value.empty() ? otherwise : std::stod(value);
  }
  Dtype dtype(const std::string& key, Dtype otherwise) const {
    static const std::map<std::string, Dtype> named = {
        {"float32", Dtype::float32}, {"float64", Dtype::float64}, {"bfloat16", Dtype::bfloat16},
        {"float16", Dtype::float16}, {"uint8", Dtype::uint8},     {"int8", Dtype::int8},
        {"int16", Dtype::int16},     {"int32", Dtype::int32},     {"int64", Dtype::int64}};
    const std::string value = text(key, "");
    if (value.empty()) return otherwise;
    const auto found = named.find(value);
    if (found == named.end()) throw std::invalid_argument("unknown type: " + value);
    return found->second;
  }
  // "planar", the default, or "channels_last".
  bool planar(const std::string& key = "layout") const {
    const std::string value = text(key, "planar");
    if (value != "planar" && value != "channels_last") throw std::invalid_argument("unknown layout: " + value);
    return value == "planar";
  }
  uint64_t seed() const { return static_cast<uint64_t>(integer("seed", 1)); }

  void all_were_asked() const {
    for (const auto& [key, value] : values_)
      if (!asked_.count(key)) throw std::invalid_argument("unknown key: " + key);
  }

 private:
  std::map<std::string, std::string> values_;
  mutable std::map<std::string, bool> asked_;
};

// Memory of the exact size, known to the race build; `shift` bytes off an address that is a multiple of 128.
class Buffer {
 public:
  Buffer(const char* name, int64_t bytes, bool writable, int64_t shift = 0)
      : bytes_(static_cast<size_t>(bytes)), shift_(static_cast<size_t>(shift)) {
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

inline double element(const void* data, Dtype dtype, int64_t i) {
  namespace device = segops::device;
  switch (dtype) {
    case Dtype::float32: return static_cast<const float*>(data)[i];
    case Dtype::float64: return static_cast<const double*>(data)[i];
    case Dtype::bfloat16: return device::to_float(static_cast<const __nv_bfloat16*>(data)[i]);
    case Dtype::float16: return device::to_float(static_cast<const __half*>(data)[i]);
    case Dtype::uint8: return static_cast<const uint8_t*>(data)[i];
    case Dtype::int8: return static_cast<const int8_t*>(data)[i];
    case Dtype::int16: return static_cast<const int16_t*>(data)[i];
    case Dtype::int32: return static_cast<const int32_t*>(data)[i];
    default: return static_cast<double>(static_cast<const int64_t*>(data)[i]);
  }
}

inline void set_element(void* data, Dtype dtype, int64_t i, double value) {
  namespace device = segops::device;
  const float narrow = static_cast<float>(value);
  switch (dtype) {
    case Dtype::float32: static_cast<float*>(data)[i] = narrow; break;
    case Dtype::float64: static_cast<double*>(data)[i] = value; break;
    case Dtype::bfloat16: static_cast<__nv_bfloat16*>(data)[i] = device::from_float<__nv_bfloat16>(narrow); break;
    case Dtype::float16: static_cast<__half*>(data)[i] = device::from_float<__half>(narrow); break;
    case Dtype::uint8: static_cast<uint8_t*>(data)[i] = static_cast<uint8_t>(value); break;
    case Dtype::int8: static_cast<int8_t*>(data)[i] = static_cast<int8_t>(value); break;
    case Dtype::int16: static_cast<int16_t*>(data)[i] = static_cast<int16_t>(value); break;
    case Dtype::int32: static_cast<int32_t*>(data)[i] = static_cast<int32_t>(value); break;
    default: static_cast<int64_t*>(data)[i] = static_cast<int64_t>(value); break;
  }
}

// In row-major order, as a definition reads them.
template <class Of>
std::vector<double> numbers_of(const Of& of) {
  std::vector<double> numbers(static_cast<size_t>(of.count()));
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = of.get(static_cast<int64_t>(i));
  return numbers;
}

// How far two results of an element type may lie apart, where both are rounded from accumulated numbers: one unit in the
// last place of a 16-bit type, and `sums` of what was accumulated.
struct Tolerance {
  double relative, absolute;
};
inline Tolerance rounding(Dtype dtype, double sums = 2e-5, double double_sums = 1e-12) {
  const double unit = dtype == Dtype::bfloat16 ? 0x1p-7 : dtype == Dtype::float16 ? 0x1p-10 : 0;
  return {unit, dtype == Dtype::float64 ? double_sums : sums};
}
// How far two sums in double may lie apart, whose terms are of the precision of the element type: `single`, but of float64.
inline Tolerance of_sums(Dtype dtype, double single) {
  const double unit = dtype == Dtype::float64 ? 1e-12 : single;
  return {unit, unit};
}
inline constexpr Tolerance kExact{0, 0};

// A launch of the CPU kernels, which have no reason to fail.
inline void done(segops::Status status) {
  if (status != segops::Status::ok) std::abort();
}

// Collects the first difference.
struct Differences {
  std::string first;

  void fail(const std::string& text) {
    if (first.empty()) first = text;
  }
  // A launch of the host execution; the report has the details of what went wrong in it.
  void check(segops::cuda::Failure failure, const char* step) {
    if (failure) fail(std::string(step) + ": " + failure);
  }
  bool none() const { return first.empty(); }

  // |found - expected| <= relative |expected| + absolute; NaN equals NaN.
  void compare(const char* what, int64_t i, double found, double expected, Tolerance tolerance) {
    if (std::isnan(found) && std::isnan(expected)) return;
    if (found == expected) return;
    if (std::abs(found - expected) <= tolerance.relative * std::abs(expected) + tolerance.absolute) return;
    if (!first.empty()) return;
    std::ostringstream text;
    text.precision(9);
    text << what << "[" << i << "] is " << found << ", expected " << expected;
    first = text.str();
  }
  void compare(const char* what, const void* found, const void* expected, Dtype dtype, int64_t count, Tolerance tolerance) {
    for (int64_t i = 0; i < count; ++i) compare(what, i, element(found, dtype, i), element(expected, dtype, i), tolerance);
  }
  // Of no bad data, the number alone.
  void compare(const std::string& what, const segops::BadData& found, const segops::BadData& expected) {
    if (found.count != expected.count ||
        (found.count > 0 && (found.position != expected.position || found.value != expected.value)))
      fail(what + " is " + text_of(found) + ", expected " + text_of(expected));
  }
  static std::string text_of(const segops::BadData& bad) {
    return std::to_string(bad.count) + ", the first " + std::to_string(bad.value) + " at " + std::to_string(bad.position);
  }
};

inline std::string counters() {
  std::string text(simt_counters(nullptr, 0), ' ');
  simt_counters(text.data(), text.size() + 1);
  simt_reset_counters();
  return text;
}

// Reads lines from stdin and answers each with one line: "ok", or what is wrong. Exit status 1 if anything was. With the
// argument "first", the first thing wrong is the end. The line "counters" is answered with what the race build has counted
// since the last time, as JSON.
inline int answer(int argc, char** argv, std::string (*run)(const Case&)) {
  const bool only_first = argc > 1 && std::strcmp(argv[1], "first") == 0;
  bool good = true;
  for (std::string line; (good || !only_first) && std::getline(std::cin, line);) {
    std::string said;
    if (line == "counters") {
      said = counters();
    } else {
      try {
        const Case of(line);
        const std::string mode = of.text("mode", "uniform");
        if (simt_set_schedule(mode.c_str(), of.seed()) != 0) throw std::invalid_argument("unknown mode: " + mode);
        said = run(of);
        of.all_were_asked();
      } catch (const std::invalid_argument& error) {
        said = error.what();
      }
      good &= said.empty();
      if (said.empty()) said = "ok";
    }
    for (char& letter : said)
      if (letter == '\n') letter = ' ';
    std::cout << said << std::endl;
  }
  return good ? 0 : 1;
}

}  // namespace driver
