// The CUDA kernel of upsample_argmax on the host execution, against the definition in double and against the CPU kernel.
#include "bilinear.h"
#include "segops/upsample_argmax.h"

namespace segops {
Status upsample_argmax(const UpsampleArgmax&, const Parallel&);
}

namespace {

using namespace segops;
using driver::Image;

// Labels whose logit is the largest, but for rounding, or the first NaN; and their probabilities.
void expect(driver::Differences& differences, const char* whose, const Image& logits, const UpsampleArgmax& p,
            const void* labels, const void* score, double rounding) {
  const driver::Bilinear bilinear{p.vertical, p.horizontal};
  const int64_t pixels = p.horizontal.out * p.vertical.out, classes = p.logits.channels;
  for (int64_t i = 0; i < p.logits.batch * pixels && differences.none(); ++i) {
    std::vector<double> values(static_cast<size_t>(classes));
    int64_t winner = 0;
    for (int64_t c = 0; c < classes; ++c) {
      const double value = bilinear.interpolated(logits, (i / pixels * classes + c) * pixels + i % pixels);
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
    differences.compare((std::string(whose) + " score").c_str(), i,
                        driver::element(score, driver::accumulated(p.logits_dtype), i), 1 / sum, {4 * rounding, 0});
  }
}

std::string run(const driver::Case& of) {
  const Dtype dtype = of.dtype("dtype", Dtype::float32), labels_dtype = of.dtype("labels", Dtype::uint8);
  const int64_t n = of.integer("n", 1), c = of.integer("c", 3), h = of.integer("h", 5), w = of.integer("w", 7);
  const int64_t height = of.integer("H", 10), width = of.integer("W", 14), pixels = n * height * width;
  const bool align = of.flag("align"), with_score = of.flag("score", true), ties = of.flag("ties");
  std::mt19937_64 random(of.seed());

  const Image logits("logits", dtype, n, c, h, w, layout_of(of), false);
  logits.fill_normal(random);
  // Small integers and weights of quarters: exact, and often equal.
  if (ties) logits.fill([&](int64_t) { return static_cast<double>(random() % 3); });
  if (of.flag("nan") && logits.count() > 0) logits.set(logits.count() / 2, driver::kNan);
  struct Result {
    driver::Buffer labels, score;
  };
  const auto result = [&] {
    return Result{driver::Buffer("labels", pixels * driver::bytes_of(labels_dtype), true),
                  driver::Buffer("score", with_score ? pixels * driver::bytes_of(driver::accumulated(dtype)) : 0, true)};
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
