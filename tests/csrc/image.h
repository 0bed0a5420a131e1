// Tensors [N, C, H, W] for the drivers of operators on planes, in every layout that segops/planes.h allows.
#pragma once
#include "driver.h"

namespace driver {

// Gaps between rows, and the elements of a larger tensor that this is a slice of, are never to be written: they are all
// ones.
struct Layout {
  bool planar = true;
  int64_t pad = 0;          // elements between rows, or between pixels where channels are last
  int64_t channel_gap = 0;  // whole planes between images; where channels are last, add to `pad` instead
  int64_t offset = 0;       // from an aligned address, in elements
};

// The layout that a case names by four keys; `prefix`: of which tensor.
inline Layout layout_of(const Case& of, const std::string& prefix = "") {
  return {of.planar(prefix + "layout"), of.integer(prefix + "pad", 0), of.integer(prefix + "gap", 0),
          of.integer(prefix + "offset", 0)};
}

class Image {
 public:
  Image(const char* name, Dtype dtype, int64_t n, int64_t c, int64_t h, int64_t w, Layout layout, bool writable)
      : name_(name),
        dtype_(dtype),
        planes_(strides(n, c, h, w, layout)),
        layout_(layout),
        elements_(n * c * h * w == 0 ? 0 : 1 + last(planes_)),
        buffer_(name, elements_ * bytes_of(dtype), writable, layout.offset * bytes_of(dtype)) {
    planes_.data = buffer_.data();
  }
  // Memory of the same shape and layout, for the CPU kernels' result.
  Image(const Image& of, const char* name)
      : Image(name, of.dtype_, of.planes_.batch, of.planes_.channels, of.planes_.height, of.planes_.width, of.layout_,
              true) {}

  const segops::Planes& planes() const { return planes_; }
  segops::ConstPlanes const_planes() const {
    const segops::Planes& p = planes_;
    return {p.data, p.batch, p.channels, p.height, p.width, p.stride_n, p.stride_c, p.stride_h, p.stride_w};
  }

  Dtype dtype() const { return dtype_; }
  int64_t count() const { return planes_.batch * planes_.channels * planes_.height * planes_.width; }
  double get(int64_t i) const { return element(planes_.data, dtype_, place(i)); }
  void set(int64_t i, double value) const { set_element(planes_.data, dtype_, place(i), value); }
  template <class Function>
  void fill(Function value) const {
    for (int64_t i = 0; i < count(); ++i) set(i, value(i));
  }
  template <class Number>
  void fill(const std::vector<Number>& values) const {
    fill([&](int64_t i) { return static_cast<double>(values[static_cast<size_t>(i)]); });
  }
  void fill_normal(std::mt19937_64& random) const {
    std::normal_distribution<double> normal;
    fill([&](int64_t) { return normal(random); });
  }

  // Against an image of the same shape, elements in row-major order, and that no gap was written.
  void compare(Differences& differences, const Image& expected, Tolerance tolerance) const {
    for (int64_t i = 0; i < count(); ++i) differences.compare(name_.c_str(), i, get(i), expected.get(i), tolerance);
    check_gaps(differences);
  }
  void check_gaps(Differences& differences) const {
    std::vector<bool> inside(static_cast<size_t>(elements_), false);
    for (int64_t i = 0; i < count(); ++i) inside[static_cast<size_t>(place(i))] = true;
    const size_t bytes = static_cast<size_t>(bytes_of(dtype_));
    for (size_t at = 0; at < inside.size() * bytes; ++at)
      if (!inside[at / bytes] && buffer_.as<unsigned char>()[at] != 0xff)
        return differences.fail("a gap of " + name_ + " was written, at element " + std::to_string(at / bytes));
  }

 private:
  static segops::Planes strides(int64_t n, int64_t c, int64_t h, int64_t w, const Layout& layout) {
    if (!layout.planar) {
      const int64_t pixel = c + layout.pad;
      return {nullptr, n, c, h, w, h * w * pixel, 1, w * pixel, pixel};
    }
    const int64_t row = w + layout.pad;
    return {nullptr, n, c, h, w, (c + layout.channel_gap) * h * row, h * row, row, 1};
  }
  static int64_t last(const segops::Planes& p) {
    return (p.batch - 1) * p.stride_n + (p.channels - 1) * p.stride_c + (p.height - 1) * p.stride_h +
           (p.width - 1) * p.stride_w;
  }
  int64_t place(int64_t i) const {
    const segops::Planes& p = planes_;
    const int64_t x = i % p.width, y = i / p.width % p.height, plane = i / p.width / p.height;
    return plane / p.channels * p.stride_n + plane % p.channels * p.stride_c + y * p.stride_h + x * p.stride_w;
  }

  std::string name_;
  Dtype dtype_;
  segops::Planes planes_;
  Layout layout_;
  int64_t elements_;
  Buffer buffer_;
};

}  // namespace driver
