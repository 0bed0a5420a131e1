// The CUDA kernels of confusion_matrix on the host execution, and the CPU kernels, against counting pixel by pixel.
#include "image.h"
#include "segops/confusion_matrix.h"

namespace segops {
Status confusion_matrix(const ConfusionMatrix&, const Parallel&);
}

namespace {

using namespace segops;
using driver::Buffer;

// What a kernel writes: the counts and two records of bad data.
struct Result {
  Buffer counts, bad_labels, bad_predictions;

  explicit Result(int64_t classes, bool of_logits)
      : counts("counts", classes * classes * 8, true),
        bad_labels("bad_labels", sizeof(BadData), true),
        bad_predictions("bad_predictions", of_logits ? 0 : sizeof(BadData), true) {
    for (int64_t i = 0; i < classes * classes; ++i) counts.as<int64_t>()[i] = 0;
  }

  void attach(ConfusionMatrix& p) const {
    p.counts = counts.as<int64_t>();
    p.bad_labels = bad_labels.as<BadData>();
    p.bad_predictions = p.of_logits() ? nullptr : bad_predictions.as<BadData>();
  }
};

// The class of a pixel: of its logits (the first of equals, the first NaN), or as the map has it.
int64_t class_of(const ConfusionMatrix& p, int64_t pixel) {
  if (!p.of_logits()) return static_cast<int64_t>(driver::element(p.prediction, p.prediction_dtype, pixel));
  const int64_t first = pixel / p.pixels * p.stride_n + pixel % p.pixels * p.stride_s;
  int64_t winner = 0;
  double best = driver::element(p.prediction, p.prediction_dtype, first);
  for (int64_t c = 1; c < p.classes; ++c) {
    const double x = driver::element(p.prediction, p.prediction_dtype, first + c * p.stride_c);
    if (!(x <= best) && best == best) best = x, winner = c;
  }
  return winner;
}

void expect(const ConfusionMatrix& p, int64_t* counts, BadData& labels, BadData& predictions) {
  const auto note = [](BadData& bad, int64_t position, int64_t value) {
    if (bad.count++ == 0) bad = BadData{1, position, value};
  };
  for (int64_t i = 0; i < p.batch * p.pixels; ++i) {
    const int64_t label = static_cast<int64_t>(driver::element(p.target, p.target_dtype, i)), of = class_of(p, i);
    if (p.has_ignore_index && label == p.ignore_index) continue;
    if (label < 0 || label >= p.classes)
      note(labels, i, label);
    else if (of < 0 || of >= p.classes)
      note(predictions, i, of);
    else
      ++counts[label * p.classes + of];
  }
}

std::string run(const driver::Case& of) {
  const Dtype dtype = of.dtype("dtype", Dtype::float32), target_dtype = of.dtype("target", Dtype::int64);
  const int64_t n = of.integer("n", 1), c = of.integer("c", 5), h = of.integer("h", 5), w = of.integer("w", 7);
  const bool of_logits = dtype <= Dtype::float16, planar = of.planar(), ties = of.flag("ties"), same = of.flag("same");
  const int64_t pad = of.integer("pad", 0), gap = of.integer("gap", 0), offset = of.integer("offset", 0);
  // Rows touch: `pad` lies between the pixels where channels are last, `gap` between the images of planes.
  const driver::Layout layout{planar, planar ? 0 : pad, gap, offset};
  const int64_t bad = of.integer("bad", 0), bad_predictions = of.integer("bad_predictions", 0);
  std::mt19937_64 random(of.seed());

  const int64_t pixels = n * h * w;
  const driver::Image logits("logits", of_logits ? dtype : Dtype::float32, of_logits ? n : 0, c, h, w, layout, false);
  const Buffer map("prediction", of_logits ? 0 : pixels * driver::bytes_of(dtype), false);
  const Buffer target("target", pixels * driver::bytes_of(target_dtype), false);
  logits.fill_normal(random);
  if (ties) logits.fill([&](int64_t) { return random() % 9 ? static_cast<double>(random() % 3) : driver::kNan; });

  ConfusionMatrix p{};
  p.prediction_dtype = dtype;
  p.target_dtype = target_dtype;
  p.classes = c;
  p.has_ignore_index = of.flag("ignore", true);
  p.ignore_index = 250;
  p.target = target.data();
  if (of_logits) {
    const ConstPlanes planes = logits.const_planes();
    p.prediction = planes.data;
    p.batch = n;
    p.pixels = h * w;
    p.stride_n = planes.stride_n;
    p.stride_c = planes.stride_c;
    p.stride_s = planes.stride_w;
  } else {
    p.prediction = map.data();
    p.batch = 1;
    p.pixels = pixels;
  }
  for (int64_t i = 0; i < pixels; ++i) {
    const bool ignored = p.has_ignore_index && random() % 8 == 0;
    driver::set_element(target.data(), target_dtype, i,
                        static_cast<double>(ignored ? p.ignore_index
                                            : same  ? c - 1
                                                    : static_cast<int64_t>(random() % c)));
    if (!of_logits)
      driver::set_element(map.data(), dtype, i, static_cast<double>(same ? 0 : static_cast<int64_t>(random() % c)));
  }
  for (int64_t i = 0; i < bad; ++i)
    driver::set_element(target.data(), target_dtype, (pixels - 1) * (i + 1) / bad, static_cast<double>(c + i));
  for (int64_t i = 0; i < bad_predictions && !of_logits; ++i)
    driver::set_element(map.data(), dtype, pixels / 2 * (i + 1) / bad_predictions, static_cast<double>(c + i));

  std::vector<int64_t> expected(static_cast<size_t>(c * c));
  BadData labels{}, predictions{};
  expect(p, expected.data(), labels, predictions);
  driver::Differences differences;
  const auto check = [&](const Result& result, const std::string& whose) {
    differences.compare((whose + " counts").c_str(), result.counts.data(), expected.data(), Dtype::int64, c * c,
                        driver::kExact);
    differences.compare(whose + " bad_labels", *result.bad_labels.as<BadData>(), labels);
    if (!of_logits) differences.compare(whose + " bad_predictions", *result.bad_predictions.as<BadData>(), predictions);
  };
  const Result device(c, of_logits), host(c, of_logits);
  device.attach(p);
  const Buffer scratch("scratch", cuda::confusion_matrix_scratch_bytes(p), true);
  differences.check(cuda::confusion_matrix(p, scratch.data(), nullptr), "confusion_matrix");
  if (!differences.none()) return differences.first;
  check(device, "device");
  host.attach(p);
  if (confusion_matrix(p, driver::kSerial) != Status::ok) return "the CPU kernel failed";
  check(host, "host");
  return differences.first;
}

}  // namespace

int main(int argc, char** argv) { return driver::answer(argc, argv, run); }
