// The CUDA kernels of max_pool2d and max_unpool2d on the host execution, against their CPU kernels: the same bits, the same
// indices and the same record of bad ones. Both records, and what is written where, are held against the definition too.
#include <functional>

#include "image.h"
#include "segops/max_unpool.h"

namespace segops {
Status max_pool2d(const MaxPool&, const Parallel&);
Status max_unpool2d(const MaxUnpool&, const Parallel&);
Status max_unpool2d_backward(const MaxUnpoolBackward&, const Parallel&);
Status max_unpool2d_flat(const MaxUnpoolFlat&, const Parallel&);
Status max_unpool2d_flat_backward(const MaxUnpoolFlatBackward&, const Parallel&);
}  // namespace segops

namespace {

using namespace segops;
using driver::Buffer;
using driver::Image;

template <class Data>
PlanesOf<Data> typed(const Planes& p) {
  return {
      static_cast<Data*>(p.data), p.batch, p.channels, p.height, p.width, p.stride_n, p.stride_c, p.stride_h, p.stride_w};
}

WindowAxis axis_of(const driver::Case& of, const std::string& suffix) {
  return {of.integer("k" + suffix, 2), of.integer("s" + suffix, 2), of.integer("p" + suffix, 0),
          of.integer("d" + suffix, 1)};
}

// Few different numbers, so that windows have ties, and neighbours that a float cannot tell apart.
void fill_values(const Image& image, Dtype dtype, bool special, std::mt19937_64& random) {
  image.fill([&](int64_t) -> double {
    const double k = static_cast<double>(random() % 16);
    switch (dtype) {
      case Dtype::uint8: return 16 * k + 7;
      case Dtype::int8: return 16 * k - 121;
      case Dtype::int16: return 4000 * k - 30000;
      case Dtype::int32: return 0x1p30 - k;
      case Dtype::int64: return (k < 8 ? 0x1p40 : -0x1p40) + k;
      default: break;
    }
    if (special && k < 3) return k == 0 ? driver::kNan : (k - 1.5) * HUGE_VAL;
    return (k - 7.5) * 0.375;
  });
}

// Sums of these tell in what order they were added.
void fill_gradients(const Image& image, Dtype dtype, bool sums, std::mt19937_64& random) {
  if (sums)
    image.fill_normal(random);
  else
    fill_values(image, dtype, false, random);
}

// Taps inside the image; with `bad`, one in so many is any byte, or with `near` any tap or one past the last.
void fill_local(const Image& indices, const WindowAxis& v, const WindowAxis& h, int64_t height, int64_t width, int64_t bad,
                bool near, std::mt19937_64& random) {
  const Planes& p = indices.planes();
  const int64_t most = v.kernel * h.kernel;
  const auto draw = [&](const Taps& taps) {
    return taps.begin < taps.end ? taps.begin + static_cast<int64_t>(random() % static_cast<uint64_t>(taps.end - taps.begin))
                                 : 0;
  };
  indices.fill([&](int64_t i) -> double {
    const int64_t y = draw(taps_inside(v, i / p.width % p.height, height)), x = draw(taps_inside(h, i % p.width, width));
    if (bad > 0 && random() % static_cast<uint64_t>(bad) == 0)
      return static_cast<double>(random() % static_cast<uint64_t>(near ? std::min<int64_t>(most + 1, 256) : 256));
    return static_cast<double>(y * h.kernel + x);
  });
}

// Into the first `among` elements of a plane; with `bad`, one in so many is outside it.
void fill_flat(const Image& indices, int64_t elements, int64_t among, int64_t bad, std::mt19937_64& random) {
  const double outside[] = {-1, static_cast<double>(elements), 0x1p40, -0x1p62, -0x1p63, 0x1p63 - 0x1p10};
  indices.fill([&](int64_t) -> double {
    if (bad > 0 && random() % static_cast<uint64_t>(bad) == 0) return outside[random() % 6];
    return static_cast<double>(random() % static_cast<uint64_t>(among));
  });
}

// What indices mean, by the definition: the element of the plane under each window, row-major, or -1 where it points
// nowhere.
struct Targets {
  Targets(const Image& indices, const std::function<int64_t(int64_t, int64_t)>& target_of) : record{0, 0, 0} {
    for (int64_t i = 0; i < indices.count(); ++i) {
      const int64_t index = static_cast<int64_t>(indices.get(i));
      of.push_back(target_of(i, index));
      if (of.back() < 0 && record.count++ == 0) record = BadData{1, i, index};
    }
  }
  std::vector<int64_t> of;
  BadData record;
};

Targets local_targets(const Image& indices, const WindowAxis& v, const WindowAxis& h, int64_t height, int64_t width) {
  const Planes& p = indices.planes();
  return {indices, [&](int64_t i, int64_t index) -> int64_t {
            const int64_t y = tap_position(v, i / p.width % p.height, index / h.kernel);
            const int64_t x = tap_position(h, i % p.width, index % h.kernel);
            const bool inside = index < v.kernel * h.kernel && y >= 0 && y < height && x >= 0 && x < width;
            return inside ? y * width + x : -1;
          }};
}

Targets flat_targets(const Image& indices, int64_t elements) {
  return {indices, [&](int64_t, int64_t index) -> int64_t { return index >= 0 && index < elements ? index : -1; }};
}

// Window by window: the latest stands, or their sum.
void unpool_by_definition(const Targets& targets, const Image& coarse, const Image& fine, Dtype dtype, bool accumulate) {
  const int64_t windows = coarse.planes().height * coarse.planes().width;
  const int64_t elements = fine.planes().height * fine.planes().width;
  std::vector<double> planes(static_cast<size_t>(fine.count()));
  for (int64_t i = 0; i < coarse.count(); ++i) {
    const int64_t target = targets.of[static_cast<size_t>(i)];
    if (target < 0) continue;
    double& element = planes[static_cast<size_t>(i / windows * elements + target)];
    element = accumulate ? element + coarse.get(i) : coarse.get(i);
    if (accumulate && dtype != Dtype::float64) element = static_cast<float>(element);
  }
  fine.fill([&](int64_t i) { return planes[static_cast<size_t>(i)]; });
}

// Backwards, so that the first to take an element is the latest window.
void pick_by_definition(const Targets& targets, const Image& fine, const Image& coarse, bool shared) {
  const int64_t windows = coarse.planes().height * coarse.planes().width;
  const int64_t elements = fine.planes().height * fine.planes().width;
  std::vector<bool> taken(static_cast<size_t>(fine.count()));
  for (int64_t i = coarse.count() - 1; i >= 0; --i) {
    const int64_t target = targets.of[static_cast<size_t>(i)], at = i / windows * elements + target;
    const bool gets = target >= 0 && (shared || !taken[static_cast<size_t>(at)]);
    if (gets) taken[static_cast<size_t>(at)] = true;
    coarse.set(i, gets ? fine.get(at) : 0.0);
  }
}

struct Record {
  explicit Record(bool wanted) : buffer("record", sizeof(BadData), true), expected{-1, -1, -1}, wanted(wanted) {}
  BadData* device() const { return wanted ? buffer.as<BadData>() : nullptr; }
  BadData* host() { return wanted ? &expected : nullptr; }
  void compare(driver::Differences& differences, const BadData& defined) const {
    if (!wanted) return;
    differences.compare("record", buffer.data(), &defined, Dtype::int64, kBadDataFields, driver::kExact);
    differences.compare("the CPU's record", &expected, &defined, Dtype::int64, kBadDataFields, driver::kExact);
  }

  Buffer buffer;
  BadData expected;
  bool wanted;
};

// A kernel's result and the CPU's, and both beside the definition.
template <class Device, class Host, class Definition>
driver::Differences same_bits(const Image& result, const Device& device, const Host& host, const Definition& define) {
  const Image expected(result, "the CPU's"), defined(result, "defined");
  driver::Differences differences;
  differences.check(device(result.planes()), "launch");
  if (!differences.none()) return differences;
  driver::done(host(expected.planes()));
  define(defined);
  result.compare(differences, expected, driver::kExact);
  expected.compare(differences, defined, driver::kExact);
  return differences;
}

struct Sizes {
  int64_t n, c, h, w, height, width;
};

std::string pool(const driver::Case& of, Dtype dtype, const Sizes& s, const driver::Layout& coarse,
                 const driver::Layout& fine) {
  std::mt19937_64 random(of.seed());
  const Image input("input", dtype, s.n, s.c, s.height, s.width, fine, false);
  const Image output("output", dtype, s.n, s.c, s.h, s.w, coarse, true), output2(output, "expected");
  const Image indices("indices", Dtype::uint8, s.n, s.c, s.h, s.w, layout_of(of, "index_"), true),
      indices2(indices, "expected indices");
  fill_values(input, dtype, of.flag("special"), random);
  MaxPool p{
      dtype, input.const_planes(), output.planes(), typed<uint8_t>(indices.planes()), axis_of(of, "h"), axis_of(of, "w"),
      false};
  driver::Differences differences;
  differences.check(cuda::max_pool2d(p, nullptr), "launch");
  if (!differences.none()) return differences.first;
  p.output = output2.planes();
  p.indices = typed<uint8_t>(indices2.planes());
  driver::done(max_pool2d(p, driver::kSerial));
  output.compare(differences, output2, driver::kExact);
  indices.compare(differences, indices2, driver::kExact);
  return differences.first;
}

std::string local(const driver::Case& of, Dtype dtype, const Sizes& s, const Image& coarse, const Image& fine,
                  bool goes_up) {
  std::mt19937_64 random(of.seed());
  const Image indices("indices", Dtype::uint8, s.n, s.c, s.h, s.w, layout_of(of, "index_"), false);
  const WindowAxis v = axis_of(of, "h"), h = axis_of(of, "w");
  fill_local(indices, v, h, s.height, s.width, of.integer("bad", 0), of.flag("near"), random);
  fill_gradients(goes_up ? coarse : fine, dtype, of.flag("accumulate"), random);
  const auto at = typed<const uint8_t>(indices.planes());
  const bool accumulate = of.flag("accumulate");
  const Targets targets = local_targets(indices, v, h, s.height, s.width);
  if (!goes_up) {
    const auto params = [&](const Planes& to) {
      return MaxUnpoolBackward{dtype, fine.const_planes(), at, to, v, h, accumulate, false};
    };
    return same_bits(
               coarse, [&](const Planes& to) { return cuda::max_unpool2d_backward(params(to), nullptr); },
               [&](const Planes& to) { return max_unpool2d_backward(params(to), driver::kSerial); },
               [&](const Image& to) { pick_by_definition(targets, fine, to, accumulate); })
        .first;
  }
  Record record(of.flag("record", true));
  const auto params = [&](const Planes& to, BadData* bad) {
    return MaxUnpool{dtype, coarse.const_planes(), at, to, v, h, accumulate, bad, false};
  };
  driver::Differences differences = same_bits(
      fine, [&](const Planes& to) { return cuda::max_unpool2d(params(to, record.device()), nullptr); },
      [&](const Planes& to) { return max_unpool2d(params(to, record.host()), driver::kSerial); },
      [&](const Image& to) { unpool_by_definition(targets, coarse, to, dtype, accumulate); });
  record.compare(differences, targets.record);
  return differences.first;
}

std::string flat(const driver::Case& of, Dtype dtype, const Sizes& s, const Image& coarse, const Image& fine, bool goes_up) {
  std::mt19937_64 random(of.seed());
  const Image indices("indices", Dtype::int64, s.n, s.c, s.h, s.w, layout_of(of, "index_"), false);
  const int64_t elements = s.height * s.width;
  fill_flat(indices, elements, of.integer("among", elements), of.integer("bad", 0), random);
  fill_gradients(goes_up ? coarse : fine, dtype, of.flag("accumulate"), random);
  const auto at = typed<const int64_t>(indices.planes());
  const Targets targets = flat_targets(indices, elements);
  if (!goes_up) {
    const auto params = [&](const Planes& to) { return MaxUnpoolFlatBackward{dtype, fine.const_planes(), at, to}; };
    return same_bits(
               coarse, [&](const Planes& to) { return cuda::max_unpool2d_flat_backward(params(to), nullptr); },
               [&](const Planes& to) { return max_unpool2d_flat_backward(params(to), driver::kSerial); },
               [&](const Image& to) { pick_by_definition(targets, fine, to, true); })
        .first;
  }
  Record record(of.flag("record", true));
  const bool accumulate = of.flag("accumulate");
  const auto params = [&](const Planes& to, BadData* bad) {
    return MaxUnpoolFlat{dtype, coarse.const_planes(), at, to, accumulate, bad, false};
  };
  const Buffer scratch("scratch", cuda::max_unpool2d_flat_scratch_bytes(params(fine.planes(), nullptr)), true);
  driver::Differences differences = same_bits(
      fine, [&](const Planes& to) { return cuda::max_unpool2d_flat(params(to, record.device()), scratch.data(), nullptr); },
      [&](const Planes& to) { return max_unpool2d_flat(params(to, record.host()), driver::kSerial); },
      [&](const Image& to) { unpool_by_definition(targets, coarse, to, dtype, accumulate); });
  record.compare(differences, targets.record);
  return differences.first;
}

// op: pool, unpool, unpool_backward, flat or flat_backward. The image of windows is n, c, h, w in coarse_layout, with
// indices in index_layout; the one under them has H rows and W columns. kh, sh, ph, dh: the windows, down; kw...: across.
std::string run(const driver::Case& of) {
  const Dtype dtype = of.dtype("dtype", Dtype::float32);
  const std::string op = of.text("op", "unpool");
  const Sizes s{of.integer("n", 1), of.integer("c", 3),  of.integer("h", 5),
                of.integer("w", 8), of.integer("H", 10), of.integer("W", 16)};
  const driver::Layout coarse_layout = layout_of(of, "coarse_"), fine_layout = layout_of(of, "fine_");
  if (op == "pool") return pool(of, dtype, s, coarse_layout, fine_layout);
  const bool goes_up = op == "unpool" || op == "flat";
  const Image coarse("coarse", dtype, s.n, s.c, s.h, s.w, coarse_layout, !goes_up);
  const Image fine("fine", dtype, s.n, s.c, s.height, s.width, fine_layout, goes_up);
  if (op == "unpool" || op == "unpool_backward") return local(of, dtype, s, coarse, fine, goes_up);
  if (op == "flat" || op == "flat_backward") return flat(of, dtype, s, coarse, fine, goes_up);
  throw std::invalid_argument("unknown op: " + op);
}

}  // namespace

int main(int argc, char** argv) { return driver::answer(argc, argv, run); }
