// Runs the CPU kernels of dice_ce_loss without torch, on files: for processors that the tests only have an emulator of.
//
//   run_dice_ce_loss FOLDER DTYPE N C S LAYOUT    DTYPE 0..3 as segops::Dtype, LAYOUT planar or channels_last
//
// reads logits, target (int64) and grad_overlap (double [N, 3, C]); writes overlap, ce and grad.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "parallel.h"
#include "segops/dice_ce_loss.h"

namespace segops {
Status dice_ce_loss_statistics(const DiceCeLossStatistics&, const Parallel&);
Status dice_ce_loss_backward(const DiceCeLossBackward&, const Parallel&);
}  // namespace segops

static std::string folder;

static std::vector<char> read(const char* name, size_t bytes) {
  std::vector<char> data(bytes);
  FILE* file = std::fopen((folder + "/" + name).c_str(), "rb");
  if (!file || std::fread(data.data(), 1, bytes, file) != bytes) std::exit(2);
  std::fclose(file);
  return data;
}

static void write(const char* name, const void* data, size_t bytes) {
  FILE* file = std::fopen((folder + "/" + name).c_str(), "wb");
  if (!file || std::fwrite(data, 1, bytes, file) != bytes) std::exit(3);
  std::fclose(file);
}

int main(int argc, char** argv) {
  using namespace segops;
  if (argc != 7) return 1;
  folder = argv[1];
  const Dtype dtype = static_cast<Dtype>(std::atoi(argv[2]));
  const int64_t n = std::atoll(argv[3]), c = std::atoll(argv[4]), s = std::atoll(argv[5]);
  const bool planar = std::string(argv[6]) == "planar";
  const size_t element = dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
  const size_t logits_bytes = static_cast<size_t>(n * c * s) * element;
  const std::vector<char> logits = read("logits", logits_bytes), target = read("target", static_cast<size_t>(n * s) * 8);
  const std::vector<char> grad_overlap = read("grad_overlap", static_cast<size_t>(n * 3 * c) * 8);
  std::vector<double> overlap(static_cast<size_t>(n * 3 * c)), ce(2);
  std::vector<char> grad(logits_bytes);
  BadData bad{};

  DiceCeLossInputs in{};
  in.logits = logits.data();
  in.logits_dtype = dtype;
  in.batch = n;
  in.classes = c;
  in.pixels = s;
  in.stride_n = c * s;
  in.stride_c = planar ? s : 1;
  in.stride_s = planar ? 1 : c;
  in.target = target.data();
  in.target_dtype = Dtype::int64;
  in.ignore_index = -100;
  const Parallel serial{2, [](int32_t workers, void (*body)(void*, int32_t), void* context) {
                          for (int32_t w = 0; w < workers; ++w) body(context, w);
                        }};
  DiceCeLossStatistics forward{};
  forward.in = in;
  forward.overlap = overlap.data();
  forward.ce = ce.data();
  forward.bad_labels = &bad;
  if (dice_ce_loss_statistics(forward, serial) != Status::ok || bad.count) return 4;
  const double grad_ce[2] = {1.0 / ce[1], 0};
  DiceCeLossBackward backward{};
  backward.in = in;
  backward.grad_overlap = reinterpret_cast<const double*>(grad_overlap.data());
  backward.grad_ce = grad_ce;
  backward.grad_logits = grad.data();
  backward.grad_stride_n = in.stride_n;
  backward.grad_stride_c = in.stride_c;
  backward.grad_stride_s = in.stride_s;
  if (dice_ce_loss_backward(backward, serial) != Status::ok) return 5;
  write("overlap", overlap.data(), overlap.size() * 8);
  write("ce", ce.data(), 16);
  write("grad", grad.data(), grad.size());
  return 0;
}
