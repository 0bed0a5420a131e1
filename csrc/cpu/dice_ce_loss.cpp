// dice_ce_loss on the CPU: one pass over the logits forward, one read and one write backward, nothing kept in between.
//
// The softmax is recomputed in backward instead of saving a log-sum-exp: it costs a few operations an element on data that
// is read anyway, saves a float a pixel, and stays exact where logits are large (an lse of 1000 rounded to float32 would
// give every probability a relative error of 6e-5).
#include "dice_ce_loss_sums.h"
#include "dtypes.h"
#include "isa.h"
#include "parallel.h"
#include "work.h"

namespace segops::SEGOPS_ISA {
namespace {

// How an image is cut: items of whole blocks, at most 64 an image, so that partial sums stay O(N C).
struct Plan {
  int64_t capacity, item_pixels, items_per_image, items;
  bool serial;

  Plan(const DiceCeLossInputs& in, int64_t bytes) {
    constexpr int64_t kItemsPerImage = 64, kItemPixels = 4096, kSerialElements = 1 << 15;
    capacity = block_pixels(in.classes, in.pixels, bytes);
    int64_t wanted = in.pixels / kItemPixels;
    wanted = wanted < 1 ? 1 : wanted > kItemsPerImage ? kItemsPerImage : wanted;
    item_pixels = ((in.pixels + wanted - 1) / wanted + capacity - 1) / capacity * capacity;
    item_pixels = item_pixels > 0 ? item_pixels : capacity;
    items_per_image = (in.pixels + item_pixels - 1) / item_pixels;
    items = in.batch * items_per_image;
    serial = in.batch * in.classes * in.pixels < kSerialElements;
  }
};

// Calls body(block, planar rows or null, first pixel of the block in memory, image, first pixel) for each block of an item.
template <class T, class In, class Body>
void for_each_block(const DiceCeLossInputs& in, const Plan& plan, int64_t item, Block<T>& b, BadData* bad_labels,
                    const Body& body) {
  const int64_t n = item / plan.items_per_image, begin = item % plan.items_per_image * plan.item_pixels;
  const int64_t end = begin + plan.item_pixels < in.pixels ? begin + plan.item_pixels : in.pixels;
  for (int64_t first = begin; first < end; first += plan.capacity) {
    b.size = first + plan.capacity < end ? plan.capacity : end - first;
    b.padded = (b.size + kPad - 1) / kPad * kPad;
    load_labels(b, in, n, first, bad_labels);
    prefetch_labels(in.target_dtype, in.target, n * in.pixels + first + kBlocksAhead * plan.capacity, plan.capacity);
    const In* pixels = static_cast<const In*>(in.logits) + n * in.stride_n + first * in.stride_s;
    const bool direct = in.stride_s == 1 && b.size == b.padded;
    body(Rows<In>{direct ? pixels : nullptr, in.stride_c}, pixels, n, first);
  }
}

template <class T, class In>
Status run_statistics(const DiceCeLossStatistics& params, const Parallel& parallel) {
  const DiceCeLossInputs& in = params.in;
  const Plan plan(in, sizeof(T));
  const int64_t block_bytes = Block<T>::bytes(in.classes, plan.capacity);
  const Memory scratch(parallel.workers * block_bytes);
  const Partials partials(params, plan.items, parallel.workers);
  if (!scratch.data || !partials.allocated()) return Status::out_of_memory;

  for_each_item(parallel, plan.items, plan.serial, [&](int64_t item, int32_t worker) {
    Block<T> b;
    b.place(scratch.data + worker * block_bytes, in.classes, plan.capacity);
    const DiceCeLossStatistics own = partials.params_of(worker);
    const Forward<T, In> forward{own};
    const ItemSums sums = partials.open(item, worker);
    for_each_block<T, In>(in, plan, item, b, partials.bad_of(item),
                          [&](Rows<In> planar, const In* pixels, int64_t n, int64_t at) {
                            forward.block(b, planar, pixels, n * in.pixels + at, sums);
                          });
    partials.close(item, sums);
  });
  partials.reduce(plan.items_per_image);
  return Status::ok;
}

// Whether the gradient's memory is warm and larger than a last-level cache, and its rows begin at cache lines.
bool worth_streaming(const DiceCeLossBackward& p, int64_t element) {
  constexpr int64_t kLastLevelCache = 32 << 20, kLine = 64;
  return p.warm && p.in.batch * p.in.classes * p.in.pixels * element > kLastLevelCache &&
         reinterpret_cast<uintptr_t>(p.grad_logits) % kLine == 0 && p.grad_stride_n * element % kLine == 0 &&
         p.grad_stride_c * element % kLine == 0;
}

template <class T, class In>
Status run_backward(const DiceCeLossBackward& params, const Parallel& parallel) {
  const DiceCeLossInputs& in = params.in;
  const Plan plan(in, sizeof(T));
  const int64_t block_bytes = Block<T>::bytes(in.classes, plan.capacity);
  const Memory scratch(parallel.workers * block_bytes);
  const Derivatives<T> derivatives(params);
  if (!scratch.data || !derivatives.allocated()) return Status::out_of_memory;
  const Backward<T, In> backward = derivatives.template backward<In>(worth_streaming(params, sizeof(In)));

  for_each_item(parallel, plan.items, plan.serial, [&](int64_t item, int32_t worker) {
    Block<T> b;
    b.place(scratch.data + worker * block_bytes, in.classes, plan.capacity);
    for_each_block<T, In>(in, plan, item, b, nullptr, [&](Rows<In> planar, const In* pixels, int64_t n, int64_t at) {
      backward.block(b, planar, pixels, n, at);
    });
    streaming_done();
  });
  return Status::ok;
}

}  // namespace

Status dice_ce_loss_statistics(const DiceCeLossStatistics& params, const Parallel& parallel) {
  return as_float(params.in.logits_dtype, [&]<class T, class In>() { return run_statistics<T, In>(params, parallel); });
}

Status dice_ce_loss_backward(const DiceCeLossBackward& params, const Parallel& parallel) {
  return as_float(params.in.logits_dtype, [&]<class T, class In>() { return run_backward<T, In>(params, parallel); });
}

}  // namespace segops::SEGOPS_ISA

#ifdef SEGOPS_ISA_IS_BASELINE
SEGOPS_LAUNCHER(dice_ce_loss_statistics, DiceCeLossStatistics)
SEGOPS_LAUNCHER(dice_ce_loss_backward, DiceCeLossBackward)
#endif
