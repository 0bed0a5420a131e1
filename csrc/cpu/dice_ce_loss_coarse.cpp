// dice_ce_loss of coarse logits on the CPU: a tile of a target row is interpolated where it is used, in the first-level
// cache, and its gradient goes back from there. Interpolated logits and their gradient are never in memory.
//
// Rows of logits are interpolated along themselves once each and then blended row by row; backward, target rows are blended
// first and summed along themselves once for each row of logits.
#include "segops/dice_ce_loss_coarse.h"

#include "coarse_rows.h"
#include "dice_ce_loss_coarse_tile.h"
#include "dice_ce_loss_sums.h"
#include "dtypes.h"
#include "isa.h"
#include "parallel.h"
#include "work.h"

namespace segops::SEGOPS_ISA {
namespace {

// The labels of a tile; what is wrong with them, in `found`, is the first in the order of the target.
template <class T>
void load_tile(Block<T>& b, const DiceCeLossInputs& in, int64_t n, const Strip& strip, int64_t at, int64_t row, int rows,
               BadData* found) {
  b.size = b.padded = rows * strip.padded;
  b.weight = in.weight ? b.weight_row : b.pixel_weight;
  const int64_t bytes = bytes_of(in.target_dtype);
  for (int k = 0; k < rows; ++k) {
    const int64_t own_at = at + k * row, next = own_at + rows * row;
    // Rows of labels are apart, which no hardware foresees.
    const char* const labels = static_cast<const char*>(in.target) + (n * in.pixels + next) * bytes;
    for (int64_t i = 0; next < in.pixels && i < strip.size * bytes; i += 64) __builtin_prefetch(labels + i);
    Block<T> part = b.part(k * strip.padded, strip.padded);
    part.size = strip.size;
    BadData own{0, 0, 0};
    load_labels(part, in, n, own_at, found ? &own : nullptr);
    if (own.count == 0) continue;
    const bool earlier = found->count == 0 || own.position < found->position;
    *found = BadData{found->count + own.count, earlier ? own.position : found->position, earlier ? own.value : found->value};
  }
}

bool is_small(const DiceCeLossInputs& in) {
  constexpr int64_t kSerialElements = 1 << 15;
  return in.batch * in.classes * in.pixels < kSerialElements;
}

template <class T, class In>
Status run_statistics(const DiceCeLossCoarseStatistics& params, const Parallel& parallel) {
  const DiceCeLossInputs& in = params.loss.in;
  const LinearAxis &vertical = params.coarse.vertical, &horizontal = params.coarse.horizontal;
  const TileSize tile(in.classes, horizontal.out, sizeof(T));
  const int64_t capacity = tile.width;
  const Bands bands(in.batch, vertical);

  const int64_t block_bytes = Block<T>::bytes(in.classes, tile.pixels());
  const int64_t bytes = block_bytes + (Interpolation<T, In>::bytes(in.classes, capacity) + 63) / 64 * 64;
  const Columns<T> columns(horizontal, capacity, kPad);
  const Memory scratch(parallel.workers * bytes);
  const Partials partials(params.loss, bands.items, parallel.workers);
  if (!columns.allocated() || !scratch.data || !partials.allocated()) return Status::out_of_memory;

  for_each_item(parallel, bands.items, is_small(in), [&](int64_t item, int32_t worker) {
    char* const memory = scratch.data + worker * bytes;
    Block<T> b;
    b.place(memory, in.classes, tile.pixels());
    Interpolation<T, In> logits(params.coarse.planes, in.classes, columns, capacity, memory + block_bytes);
    const DiceCeLossStatistics own = partials.params_of(worker);
    const Forward<T, T> forward{own};
    const ItemSums sums = partials.open(item, worker);
    const auto [n, first, last, begin, end] = bands.part(item);
    for (int64_t s = 0; s < columns.strips(); ++s) {
      const Strip strip = columns.strip(s);
      logits.begin(n, 0, s);
      for (int64_t y = begin, count; y < end; y += count) {
        count = rows_together(vertical, y, end, tile.rows);
        const int64_t at = y * horizontal.out + strip.first;
        load_tile(b, in, n, strip, at, horizontal.out, count, partials.bad_of(item));
        forward.rows(b, logits.at(vertical, y, count), sums);
        for (int64_t k = 0; k < count; ++k) {
          Block<T> part = b.part(k * strip.padded, strip.padded);
          part.size = strip.size;
          forward.write_map(part, n * in.pixels + at + k * horizontal.out);
        }
      }
    }
    partials.close(item, sums);
  });
  partials.reduce(bands.per_plane);
  return Status::ok;
}

template <class T, class In>
Status run_backward(const DiceCeLossCoarseBackward& params, const Parallel& parallel) {
  const DiceCeLossInputs& in = params.loss.in;
  const LinearAxis &vertical = params.coarse.vertical, &horizontal = params.coarse.horizontal;
  const TileSize tile(in.classes, horizontal.out, sizeof(T));
  const int64_t capacity = tile.width;
  const Bands bands(in.batch, vertical);

  const int64_t block_bytes = Block<T>::bytes(in.classes, tile.pixels());
  const int64_t interpolation_bytes = (Interpolation<T, In>::bytes(in.classes, capacity) + 63) / 64 * 64;
  const int64_t band_bytes = (Band<T>::bytes(in.classes, capacity, horizontal.in, bands.rows) + 63) / 64 * 64;
  const int64_t bytes = block_bytes + interpolation_bytes + band_bytes;
  const ColumnSums<T> columns(horizontal, capacity, kPad);
  const Memory scratch(parallel.workers * bytes);
  const Derivatives<T> derivatives(params.loss);
  const int64_t pitch = Band<T>::pitch_of(horizontal.in);
  const Seams<T> seams(bands, in.classes * pitch);
  if (!columns.allocated() || !scratch.data || !derivatives.allocated() || !seams.allocated()) return Status::out_of_memory;
  const Backward<T, T> backward = derivatives.template backward<T>(false);

  for_each_item(parallel, bands.items, is_small(in), [&](int64_t item, int32_t worker) {
    char* const memory = scratch.data + worker * bytes;
    Block<T> b;
    b.place(memory, in.classes, tile.pixels());
    Interpolation<T, In> logits(params.coarse.planes, in.classes, columns, capacity, memory + block_bytes);
    const auto [n, first, last, begin, end] = bands.part(item);
    Band<T> band(columns, capacity, in.classes, params.coarse.planes, first, last,
                 memory + block_bytes + interpolation_bytes);
    for (int64_t s = 0; s < columns.strips(); ++s) {
      const Strip strip = columns.strip(s);
      logits.begin(n, 0, s);
      for (int64_t y = begin, count; y < end; y += count) {
        count = rows_together(vertical, y, end, tile.rows);
        const int64_t low = linear_tap(vertical, y).low;
        if (y > begin && low != logits.held) {
          band.advance(s, logits.held);
          prefetch_row<In>(params.grad_logits, n, 0, in.classes, low, strip);
        }
        load_tile(b, in, n, strip, y * horizontal.out + strip.first, horizontal.out, count, nullptr);
        const Between<T> x = logits.at(vertical, y, count);
        if (backward.finite) {
          backward.gradient(b, n, x, band.at(x));
        } else {
          backward.rows(b, n, x, ToRows<T>{b.staged, b.capacity});
          band.add(b.staged, b.capacity, x);
        }
      }
      band.advance(s, logits.held);
      band.advance(s, logits.held + 1);
    }
    if (bands.meet()) seams.keep(item, band);
    for (int64_t j = first + (first > 0); j < last; ++j)
      write_row<In>(band.row(j), pitch, params.grad_logits, n, 0, in.classes, j);
  });
  write_seams<In>(seams, bands, pitch, params.grad_logits, in.classes, parallel, is_small(in));
  return Status::ok;
}

}  // namespace

Status dice_ce_loss_coarse_statistics(const DiceCeLossCoarseStatistics& params, const Parallel& parallel) {
  return as_float(params.loss.in.logits_dtype, [&]<class T, class In>() { return run_statistics<T, In>(params, parallel); });
}

Status dice_ce_loss_coarse_backward(const DiceCeLossCoarseBackward& params, const Parallel& parallel) {
  return as_float(params.loss.in.logits_dtype, [&]<class T, class In>() { return run_backward<T, In>(params, parallel); });
}

}  // namespace segops::SEGOPS_ISA

#ifdef SEGOPS_ISA_IS_BASELINE
SEGOPS_LAUNCHER(dice_ce_loss_coarse_statistics, DiceCeLossCoarseStatistics)
SEGOPS_LAUNCHER(dice_ce_loss_coarse_backward, DiceCeLossCoarseBackward)
#endif
