// The CUDA kernel of upsample_argmax on the host execution, against the definition in double and against the CPU kernel.
#include <limits>

#include "image.h"
#include "segops/upsample_argmax.h"

namespace segops {
Status upsample_argmax(const UpsampleArgmax&, const Parallel&);
}

namespace {

using namespace segops;
using driver::Image;

double interpolated(const Image& logits, const UpsampleArgmax& p, int64_t plane, int64_t y, int64_t x) {
  const LinearTap v = linear_tap(p.vertical, y), h = linear_tap(p.horizontal, x);
  const auto at = [&](int64_t row, int64_t column) {
    return logits.get((plane * p.logits.height + row) * p.logits.width + column);
  };
  return (1 - v.weight) * ((1 - h.weight) * at(v.low, h.low) + h.weight * at(v.low, h.high)) +
         v.weight * ((1 - h.weight) * at(v.high, h.low) + h.weight * at(v.high, h.high));
}

// Labels whose logit is the largest, but for rounding, or the first NaN; and their probabilities.
void expect(driver::Differences& differences, const char* whose, const Image& logits, const UpsampleArgmax& p,
            const void* labels, const void* score, double rounding) {
  const Dtype accumulated = p.logits_dtype == Dtype::float64 ? Dtype::float64 : Dtype::float32;
  const int64_t width = p.horizontal.out, height = p.vertical.out, classes = p.logits.channels;
  for (int64_t i = 0; i < p.logits.batch * height * width && differences.none(); ++i) {
    std::vector<double> values(static_cast<size_t>(classes));
    int64_t winner = 0;
    for (int64_t c = 0; c < classes; ++c) {
      const double value = interpolated(logits, p, i / width / height * classes + c, i / width % height, i % width);
      values[static_cast<size_t>(c)] = value;
      const double best = values[static_cast<size_t>(winner)];
      if (!(value <= best) && best == best) winner = c;
    }
    const double best = values[static_cast<size_t>(winner)];
    double label = driver::element(labels, p.labels_dtype, i);
    if (label != winner && best == best && label >= 0 && label < static_cast<double>(classes) &&
        best - values[static_cast<size_t>(label)] <= rounding)
      label = static_cast<double>(winner);
    differences.compare((std::string(whose) + " labels").c_str(), i, label, static_cast<double>(winner), driver::kExact);
    if (score == nullptr) continue;
    double sum = 0;
    for (double value : values) sum += std::exp(value - best);
    differences.compare((std::string(whose) + " score").c_str(), i, driver::element(score, accumulated, i), 1 / sum,
                        {4 * rounding, 0});
  }
}

std::string run(const driver::Case& of) {
  const Dtype dtype = of.dtype("dtype", Dtype::float32), labels_dtype = of.dtype("labels", Dtype::uint8);
  const Dtype accumulated = dtype == Dtype::float64 ? Dtype::float64 : Dtype::float32;
  const int64_t n = of.integer("n", 1), c = of.integer("c", 3), h = of.integer("h", 5), w = of.integer("w", 7);
  const int64_t height = of.integer("H", 10), width = of.integer("W", 14), pixels = n * height * width;
  const bool align = of.flag("align"), with_score = of.flag("score", true), ties = of.flag("ties");
  const driver::Layout layout{of.planar(), of.integer("pad", 0), of.integer("gap", 0), of.integer("offset", 0)};
  std::mt19937_64 random(of.seed());

  const Image logits("logits", dtype, n, c, h, w, layout, false);
  logits.fill_normal(random);
  // Small integers and weights of quarters: exact, and often equal.
  if (ties) logits.fill([&](int64_t) { return static_cast<double>(random() % 3); });
  if (of.flag("nan") && logits.count() > 0) logits.set(logits.count() / 2, std::numeric_limits<double>::quiet_NaN());
  struct Result {
    driver::Buffer labels, score;
  };
  const auto result = [&] {
    return Result{driver::Buffer("labels", pixels * driver::bytes_of(labels_dtype), true),
                  driver::Buffer("score", with_score ? pixels * driver::bytes_of(accumulated) : 0, true)};
  };
  const Result device = result(), host = result();
  UpsampleArgmax p{
      dtype,        logits.const_planes(), linear_axis(h, height, align, 0),          linear_axis(w, width, align, 0),
      labels_dtype, device.labels.data(),  with_score ? device.score.data() : nullptr};
  driver::Differences differences;
  differences.check(cuda::upsample_argmax(p, nullptr), "upsample_argmax");
  if (!differences.none()) return differences.first;
  const double rounding = ties ? 0 : dtype == Dtype::float64 ? 1e-14 : 5e-6;
  expect(differences, "device", logits, p, device.labels.data(), with_score ? device.score.data() : nullptr,
         ties && with_score ? 1e-6 : rounding);
  p.labels = host.labels.data();
  p.score = with_score ? host.score.data() : nullptr;
  if (upsample_argmax(p, driver::kSerial) != Status::ok) return "the CPU kernel failed";
  expect(differences, "host", logits, p, host.labels.data(), p.score, ties && with_score ? 1e-6 : rounding);
  if (ties) differences.compare("labels", device.labels.data(), host.labels.data(), labels_dtype, pixels, driver::kExact);
  return differences.first;
}

}  // namespace

int main(int argc, char** argv) { return driver::answer(argc, argv, run); }
