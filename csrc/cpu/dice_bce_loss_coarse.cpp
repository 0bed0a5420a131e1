// dice_bce_loss of coarse logits on the CPU, one channel at a time: a tile of target rows is interpolated where it is used,
// in the first-level cache, and its gradient goes back from there (coarse_rows.h). Interpolated logits and their gradient
// are never in memory.
#include "coarse_rows.h"
#include "dice_bce_loss_sums.h"
#include "dtypes.h"
#include "isa.h"
#include "parallel.h"
#include "segops/dice_bce_loss.h"
#include "work.h"

namespace segops::SEGOPS_ISA {
namespace {

// Columns of a strip, with room for whole vectors.
template <class T>
int64_t strip_width(int64_t columns) {
  constexpr int64_t kWidest = 512, kTile = kTileElements<T>;
  const int64_t all = (columns + kTile - 1) / kTile * kTile;
  return all < kWidest ? all : kWidest;
}

// The target rows of a tile: what they are in [N, C, S], and where their block begins.
struct TileRows {
  int64_t image, channel, first_pixel, stride, count;
  Strip strip;
  Run run(int64_t k) const { return Run{image, channel, 1, first_pixel + k * stride, strip.size}; }
};

// Labels and weights of a tile. Returns whether any of its rows is masked.
template <class T>
bool load_tile(Block<T>& b, const DiceBceLossInputs& in, const TileRows& tile, BadData* found) {
  bool masked = false;
  for (int64_t k = 0; k < tile.count; ++k) {
    Block<T> part = b.part(k * tile.strip.padded, tile.strip.padded);
    load_run(part, in, tile.run(k), tile.strip.padded, found);
    masked |= part.masked;
  }
  b.padded = tile.count * tile.strip.padded;
  return masked;
}

template <class T, class In>
Status run_statistics(const DiceBceLossCoarseStatistics& params, const Parallel& parallel) {
  const DiceBceLossInputs& in = params.loss.in;
  const LinearAxis &vertical = params.coarse.vertical, &horizontal = params.coarse.horizontal;
  const Bands bands(in.batch * in.channels, vertical);
  const int64_t width = strip_width<T>(horizontal.out), pixels = kTileRows * width;
  const Terms<T> terms(in);

  const int64_t block_bytes = Block<T>::bytes(pixels);
  const int64_t bytes = block_bytes + (Interpolation<T, In>::bytes(1, width) + 63) / 64 * 64;
  const Columns<T> columns(horizontal, width, kTileElements<T>);
  const Memory scratch(parallel.workers * bytes);
  const Partials partials(params.loss, 1, bands.per_plane);
  if (!columns.allocated() || !scratch.data || !partials.allocated()) return Status::out_of_memory;

  for_each_item(parallel, bands.items, is_small(in), [&](int64_t item, int32_t worker) {
    char* const memory = scratch.data + worker * bytes;
    Block<T> b(memory, pixels);
    Interpolation<T, In> logits(params.coarse.planes, 1, columns, width, memory + block_bytes);
    const auto [plane, first, last, begin, end] = bands.part(item);
    const int64_t n = plane / in.channels, c = plane % in.channels;
    OneChannel<T> channel = channel_of<T>(in, n, c, nullptr);
    T* const map = static_cast<T*>(params.loss.bce_map);
    for (int64_t s = 0; s < columns.strips(); ++s) {
      logits.begin(n, c, s);
      for (int64_t y = begin, count; y < end; y += count) {
        count = rows_together(vertical, y, end, kTileRows);
        const Strip strip = columns.strip(s);
        const TileRows tile{n, c, y * horizontal.out + strip.first, horizontal.out, count, strip};
        const bool masked = load_tile(b, in, tile, partials.bad_of(item));
        const Between<T> x = logits.at(vertical, y, static_cast<int>(count));
        for (int64_t k = 0; k < count; ++k) {
          const Block<T> part = b.part(k * strip.padded, strip.padded);
          with_flags(in.focal_gamma != 0, masked, in.squared, [&](auto focal, auto some, auto squared) {
            add_block<decltype(focal)::value, decltype(some)::value, decltype(squared)::value>(
                part, x.row(k), terms, channel, partials.bce_of(item), map ? part.result : nullptr);
          });
          const DiceBceLossStatistics& p = params.loss;
          const Run run = tile.run(k);
          if (map) write_row(part.result, run, Place(p.map_stride_n, p.map_stride_c, p.map_stride_s, run), map);
        }
        channel.end_block();
      }
    }
    channel.end_piece(partials.overlap_of(item));
  });
  partials.reduce();
  return Status::ok;
}

// Adds what a tile's gradient is to the sums of the two rows of logits around it.
template <bool kFocal, bool kMasked, bool kSquared, class T>
void add_gradient(const Block<T>& block, const Between<T>& x, const Terms<T>& terms, T grad_bce,
                  const OneChannel<T, 1>& channel, const ToSums<T>& to) {
  constexpr int kLanes = kNativeLanes<T>;
  using V = Vec<T, kLanes>;
  const Block<T> b = block;  // copies, as what is stored might be these themselves for all the compiler knows
  const Terms<T> own = terms;
  const OneChannel<T, 1> constants = channel;
  to.template sum<1, kLanes, V>(0, [&](int64_t k, int64_t i, V(&v)[1]) __attribute__((always_inline)) {
    v[0] = x.row(k).template at<kLanes, T>(0, i);
    gradient_tile<kFocal, kMasked, kSquared>(b, k * x.width + i, own, grad_bce, constants, v);
  });
}

template <class T, class In>
Status run_backward(const DiceBceLossCoarseBackward& params, const Parallel& parallel) {
  const DiceBceLossInputs& in = params.loss.in;
  const LinearAxis &vertical = params.coarse.vertical, &horizontal = params.coarse.horizontal;
  const Bands bands(in.batch * in.channels, vertical);
  const int64_t width = strip_width<T>(horizontal.out), pixels = kTileRows * width;
  const Terms<T> terms(in);
  const T grad_bce = static_cast<T>(params.loss.grad_bce ? params.loss.grad_bce[0] : 0.);

  const int64_t block_bytes = Block<T>::bytes(pixels);
  const int64_t interpolation_bytes = (Interpolation<T, In>::bytes(1, width) + 63) / 64 * 64;
  const int64_t band_bytes = (Band<T>::bytes(1, width, horizontal.in, bands.rows) + 63) / 64 * 64;
  const int64_t bytes = block_bytes + interpolation_bytes + band_bytes;
  const ColumnSums<T> columns(horizontal, width, kTileElements<T>);
  const Memory scratch(parallel.workers * bytes);
  const int64_t pitch = Band<T>::pitch_of(horizontal.in);
  const Seams<T> seams(bands, pitch);
  if (!columns.allocated() || !scratch.data || !seams.allocated()) return Status::out_of_memory;

  for_each_item(parallel, bands.items, is_small(in), [&](int64_t item, int32_t worker) {
    char* const memory = scratch.data + worker * bytes;
    Block<T> b(memory, pixels);
    Interpolation<T, In> logits(params.coarse.planes, 1, columns, width, memory + block_bytes);
    const auto [plane, first, last, begin, end] = bands.part(item);
    const int64_t n = plane / in.channels, c = plane % in.channels;
    Band<T> band(columns, width, 1, params.coarse.planes, first, last, memory + block_bytes + interpolation_bytes);
    const OneChannel<T, 1> channel = channel_of<T, 1>(in, n, c, params.loss.grad_overlap);
    for (int64_t s = 0; s < columns.strips(); ++s) {
      logits.begin(n, c, s);
      for (int64_t y = begin, count; y < end; y += count) {
        count = rows_together(vertical, y, end, kTileRows);
        const Strip strip = columns.strip(s);
        const int64_t low = linear_tap(vertical, y).low;
        if (y > begin && low != logits.held) band.advance(s, logits.held);
        const TileRows tile{n, c, y * horizontal.out + strip.first, horizontal.out, count, strip};
        const bool masked = load_tile(b, in, tile, nullptr);
        const Between<T> x = logits.at(vertical, y, static_cast<int>(count));
        with_flags(has_focus(in, grad_bce), masked, in.squared, [&](auto focal, auto some, auto squared) {
          add_gradient<decltype(focal)::value, decltype(some)::value, decltype(squared)::value>(b, x, terms, grad_bce,
                                                                                                channel, band.at(x));
        });
      }
      band.advance(s, logits.held);
      band.advance(s, logits.held + 1);
    }
    if (bands.meet()) seams.keep(item, band);
    for (int64_t j = first + (first > 0); j < last; ++j) write_row<In>(band.row(j), pitch, params.grad_logits, n, c, 1, j);
  });
  write_seams<In>(seams, bands, pitch, params.grad_logits, 1, parallel, is_small(in));
  return Status::ok;
}

}  // namespace

Status dice_bce_loss_coarse_statistics(const DiceBceLossCoarseStatistics& params, const Parallel& parallel) {
  return as_float(params.loss.in.logits_dtype, [&]<class T, class In>() { return run_statistics<T, In>(params, parallel); });
}

Status dice_bce_loss_coarse_backward(const DiceBceLossCoarseBackward& params, const Parallel& parallel) {
  return as_float(params.loss.in.logits_dtype, [&]<class T, class In>() { return run_backward<T, In>(params, parallel); });
}

}  // namespace segops::SEGOPS_ISA

#ifdef SEGOPS_ISA_IS_BASELINE
SEGOPS_LAUNCHER(dice_bce_loss_coarse_statistics, DiceBceLossCoarseStatistics)
SEGOPS_LAUNCHER(dice_bce_loss_coarse_backward, DiceBceLossCoarseBackward)
#endif
