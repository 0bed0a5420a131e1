// Runs the CPU kernel of confusion_matrix on label maps without torch and compares it with counting pixel by pixel: for
// processors that the tests only have an emulator of. Says what is wrong first.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "parallel.h"
#include "segops/confusion_matrix.h"

namespace segops {
Status confusion_matrix(const ConfusionMatrix&, const Parallel&);
}

using namespace segops;

namespace {

constexpr int64_t kClasses = 19;
const Parallel kSerial{2, [](int32_t workers, void (*body)(void*, int32_t), void* context) {
                         for (int32_t w = 0; w < workers; ++w) body(context, w);
                       }};

// Runs of `length` pixels; a label beyond the last class at `bad`, where that is a pixel.
template <class Label, class Class>
const char* run(Dtype of_label, Dtype of_class, int64_t pixels, int64_t length, int64_t bad) {
  std::vector<Label> target(static_cast<size_t>(pixels));
  std::vector<Class> prediction(target.size());
  std::vector<int64_t> expected(kClasses * kClasses), counts(expected.size());
  for (int64_t i = 0; i < pixels; ++i) {
    const size_t at = static_cast<size_t>(i);
    target[at] = static_cast<Label>(i == bad ? kClasses : i / length * 7 % kClasses);
    prediction[at] = static_cast<Class>((i + 2) / length * 5 % kClasses);
    if (i != bad) ++expected[static_cast<size_t>(target[at] * kClasses + prediction[at])];
  }
  BadData labels{}, predictions{};
  ConfusionMatrix p{};
  p.prediction = prediction.data();
  p.prediction_dtype = of_class;
  p.target = target.data();
  p.target_dtype = of_label;
  p.batch = 1;
  p.classes = kClasses;
  p.pixels = pixels;
  p.counts = counts.data();
  p.bad_labels = &labels;
  p.bad_predictions = &predictions;
  if (confusion_matrix(p, kSerial) != Status::ok) return "failed";
  const bool some = bad >= 0 && bad < pixels;
  if (labels.count != some || predictions.count != 0 || (some && labels.position != bad)) return "bad labels";
  return counts == expected ? nullptr : "counts";
}

template <class Label, class Class>
void run_all(Dtype of_label, Dtype of_class) {
  for (const int64_t pixels : {1, 63, 64, 65, 256, 1000})
    for (const int64_t length : {1, 2, 5, 40, 64, 300})
      for (const int64_t bad : {-1, 0, 700})
        if (const char* wrong = run<Label, Class>(of_label, of_class, pixels, length, bad)) {
          std::printf("%s: dtypes %d and %d, %d pixels, runs of %d, bad label at %d\n", wrong, static_cast<int>(of_label),
                      static_cast<int>(of_class), static_cast<int>(pixels), static_cast<int>(length), static_cast<int>(bad));
          std::exit(1);
        }
}

template <class Label>
void run_label(Dtype of_label) {
  run_all<Label, uint8_t>(of_label, Dtype::uint8);
  run_all<Label, int16_t>(of_label, Dtype::int16);
  run_all<Label, int32_t>(of_label, Dtype::int32);
  run_all<Label, int64_t>(of_label, Dtype::int64);
}

}  // namespace

int main() {
  run_label<uint8_t>(Dtype::uint8);
  run_label<int16_t>(Dtype::int16);
  run_label<int32_t>(Dtype::int32);
  run_label<int64_t>(Dtype::int64);
}
