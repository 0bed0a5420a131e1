// Runs the CPU kernels of max_unpool without torch and compares them with loops over the definition: for processors that the
// tests only have an emulator of. Says what is wrong first.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "parallel.h"
#include "segops/max_unpool.h"

namespace segops {
Status max_pool2d(const MaxPool&, const Parallel&);
Status max_unpool2d(const MaxUnpool&, const Parallel&);
Status max_unpool2d_backward(const MaxUnpoolBackward&, const Parallel&);
}  // namespace segops

using namespace segops;

namespace {

const Parallel kSerial{2, [](int32_t workers, void (*body)(void*, int32_t), void* context) {
                         for (int32_t w = 0; w < workers; ++w) body(context, w);
                       }};

template <class Element>
struct Image {
  int64_t n, c, h, w;
  bool planar;
  std::vector<Element> data;
  Image(int64_t n_, int64_t c_, int64_t h_, int64_t w_, bool planar_)
      : n(n_), c(c_), h(h_), w(w_), planar(planar_), data(static_cast<size_t>(n_ * c_ * h_ * w_), Element(101)) {}
  template <class Data>
  PlanesOf<Data> planes() {
    if (planar) return {data.data(), n, c, h, w, c * h * w, h * w, w, 1};
    return {data.data(), n, c, h, w, h * w * c, 1, w * c, c};
  }
  Element& at(int64_t i) {  // row-major
    const int64_t x = i % w, y = i / w % h, k = i / w / h % c, b = i / w / h / c;
    return data[static_cast<size_t>(planar ? i : ((b * h + y) * w + x) * c + k)];
  }
};

template <class Element>
bool same(Element a, Element b) {
  return a == b || (a != a && b != b);
}

struct Case {
  int64_t n, c, h, w;
  WindowAxis axis;
  bool planar;
};

template <class Element>
const char* run(const Case& k, Dtype dtype, bool corrupt) {
  const WindowAxis& a = k.axis;
  const auto pooled = [&](int64_t size) { return (size + 2 * a.padding - a.dilation * (a.kernel - 1) - 1) / a.stride + 1; };
  const int64_t h = pooled(k.h), w = pooled(k.w), planes = k.n * k.c;
  Image<Element> image(k.n, k.c, k.h, k.w, k.planar), maxima(k.n, k.c, h, w, k.planar), picked(k.n, k.c, h, w, k.planar);
  Image<uint8_t> indices(k.n, k.c, h, w, k.planar);
  Image<Element> output(k.n, k.c, k.h, k.w, k.planar);
  uint32_t random = 1;
  for (int64_t i = 0; i < planes * k.h * k.w; ++i) {
    random = random * 1664525u + 1013904223u;
    const int32_t value = static_cast<int32_t>(random >> 28) - 8;
    image.at(i) = value == -8 ? Element(NAN) : value < -4 ? Element(-INFINITY) : Element(value);
  }

  const MaxPool pool{
      dtype, image.template planes<const void>(), maxima.template planes<void>(), indices.template planes<uint8_t>(), a, a,
      false};
  if (max_pool2d(pool, kSerial) != Status::ok) return "max_pool2d failed";
  for (int64_t i = 0; i < planes * h * w; ++i) {
    int64_t best = -1, index = 0;
    for (int64_t tap = 0; tap < a.kernel * a.kernel; ++tap) {
      const int64_t y = tap_position(a, i / w % h, tap / a.kernel), x = tap_position(a, i % w, tap % a.kernel);
      if (y < 0 || y >= k.h || x < 0 || x >= k.w) continue;
      const int64_t at = (i / w / h * k.h + y) * k.w + x;
      if (best >= 0 && !(image.at(at) > image.at(best)) && !(image.at(at) != image.at(at))) continue;
      best = at;
      index = tap;
    }
    if (!same(maxima.at(i), image.at(best))) return "a maximum differs";
    if (indices.at(i) != index) return "an index differs";
  }

  if (corrupt)
    for (int64_t i = 5; i < planes * h * w; i += 11) indices.at(i) = 254;
  for (bool accumulate : {false, true}) {
    BadData bad{};
    const MaxUnpool unpool{dtype,
                           maxima.template planes<const void>(),
                           indices.template planes<const uint8_t>(),
                           output.template planes<void>(),
                           a,
                           a,
                           accumulate,
                           &bad,
                           false};
    if (max_unpool2d(unpool, kSerial) != Status::ok) return "max_unpool2d failed";
    const MaxUnpoolBackward backward{dtype,
                                     image.template planes<const void>(),
                                     indices.template planes<const uint8_t>(),
                                     picked.template planes<void>(),
                                     a,
                                     a,
                                     accumulate,
                                     false};
    if (max_unpool2d_backward(backward, kSerial) != Status::ok) return "max_unpool2d_backward failed";

    std::vector<Element> expected(static_cast<size_t>(planes * k.h * k.w));
    std::vector<int64_t> latest(expected.size(), -1), targets(static_cast<size_t>(planes * h * w), -1);
    BadData expected_bad{};
    for (int64_t i = 0; i < planes * h * w; ++i) {
      const int64_t tap = indices.at(i);
      const int64_t y = tap_position(a, i / w % h, tap / a.kernel), x = tap_position(a, i % w, tap % a.kernel);
      if (tap >= a.kernel * a.kernel || y < 0 || y >= k.h || x < 0 || x >= k.w) {
        if (expected_bad.count++ == 0) expected_bad = BadData{1, i, tap};
        continue;
      }
      const size_t at = static_cast<size_t>((i / w / h * k.h + y) * k.w + x);
      expected[at] = accumulate ? expected[at] + maxima.at(i) : maxima.at(i);
      latest[at] = i;
      targets[static_cast<size_t>(i)] = static_cast<int64_t>(at);
    }
    for (size_t i = 0; i < expected.size(); ++i)
      if (!same(output.at(static_cast<int64_t>(i)), expected[i])) return "an unpooled element differs";
    if (bad.count != expected_bad.count || bad.position != expected_bad.position || bad.value != expected_bad.value)
      return "the record of bad indices differs";
    for (int64_t i = 0; i < planes * h * w; ++i) {
      const int64_t target = targets[static_cast<size_t>(i)];
      const bool gets = target >= 0 && (accumulate || latest[static_cast<size_t>(target)] == i);
      if (!same(picked.at(i), gets ? image.at(target) : Element(0))) return "a gradient differs";
    }
  }
  return nullptr;
}

}  // namespace

int main() {
  const WindowAxis windows[] = {{2, 2, 0, 1}, {3, 2, 1, 1}, {3, 1, 1, 2}, {3, 3, 0, 1}};
  int failures = 0;
  for (const WindowAxis& axis : windows)
    for (bool planar : {true, false})
      for (bool corrupt : {false, true})
        for (const Case& k : {Case{2, 3, 9, 71, axis, planar}, Case{1, 37, 8, 9, axis, planar}}) {
          const char* wrong[] = {run<float>(k, Dtype::float32, corrupt), run<double>(k, Dtype::float64, corrupt)};
          for (const char* message : wrong)
            if (message) {
              ++failures;
              std::printf("kernel %d, stride %d, planar %d, corrupt %d, [%d, %d, %d, %d]: %s\n", int(axis.kernel),
                          int(axis.stride), planar, corrupt, int(k.n), int(k.c), int(k.h), int(k.w), message);
            }
        }
  return failures ? 1 : 0;
}
