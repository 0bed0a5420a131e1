// dice_ce_loss of coarse logits on the CPU: a tile of a target row is interpolated where it is used, in the first-level
// cache, and its gradient goes back from there. Interpolated logits and their gradient are never in memory.
//
// Rows of logits are interpolated along themselves once each and then blended row by row; backward, target rows are blended
// first and summed along themselves once for each row of logits.
#include "segops/dice_ce_loss_coarse.h"

#include "dice_ce_loss_coarse_columns.h"
#include "dice_ce_loss_coarse_tile.h"
#include "dice_ce_loss_sums.h"
#include "isa.h"
#include "parallel.h"
#include "work.h"

namespace segops::SEGOPS_ISA {
namespace {

// Rows in memory [C, elements] from or to an image's row of logits, in any layout that a Block can stage.
template <class T>
Block<T> row_of(T* rows, int64_t classes, int64_t pitch, int64_t size) {
  Block<T> b{};
  b.classes = classes;
  b.capacity = pitch;
  b.size = b.padded = size;
  b.staged = rows;
  return b;
}

// Two neighbouring rows of logits, interpolated to a strip's columns.
template <class T, class In>
struct Interpolation {
  const CoarseLogits& coarse;
  const Columns<T>& columns;
  int64_t capacity;
  T* source;   // [C, source_pitch]
  T* wide[2];  // [C, capacity]: the lower and the upper row
  int64_t image, strip, held;

  static int64_t bytes(int64_t classes, int64_t capacity) {
    return classes * (Columns<T>::source_pitch(capacity) + 2 * capacity) * static_cast<int64_t>(sizeof(T));
  }

  Interpolation(const CoarseLogits& c, const Columns<T>& cs, int64_t most, char* memory)
      : coarse(c), columns(cs), capacity(most), image(0), strip(0), held(-1) {
    source = reinterpret_cast<T*>(memory);
    wide[0] = source + c.planes.channels * Columns<T>::source_pitch(capacity);
    wide[1] = wide[0] + c.planes.channels * capacity;
  }

  void begin(int64_t n, int64_t s) {
    image = n;
    strip = s;
    held = -1;
  }

  void widen(int64_t row, T* to) const {
    const ConstPlanes& p = coarse.planes;
    const Strip own = columns.strip(strip);
    const int64_t pitch = Columns<T>::source_pitch(capacity);
    const In* from = static_cast<const In*>(p.data) + image * p.stride_n + row * p.stride_h + own.low * p.stride_w;
    Block<T> staging = row_of(source, p.channels, pitch, own.span);
    stage_in(staging, from, p.stride_c, p.stride_w);
    for (int64_t c = 0; c < p.channels; ++c) source[c * pitch + own.span] = source[c * pitch + own.span - 1];
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(In));
    const In* const next = from + p.stride_h;
    for (int64_t c = 0; p.stride_w == 1 && row + 1 < p.height && c < p.channels; ++c)
      for (int64_t x = 0; x < own.span; x += kLine) __builtin_prefetch(next + c * p.stride_c + x);
    columns.widen(strip, source, pitch, to, p.channels);
  }

  // The logits of target rows that are all between the rows of the first one's tap.
  Between<T> at(const LinearAxis& vertical, int64_t y, int rows) {
    const LinearTap tap = linear_tap(vertical, y);
    if (held >= 0 && tap.low == held + 1) {
      T* const lower = wide[0];
      wide[0] = wide[1];
      wide[1] = lower;
    } else if (tap.low != held) {
      widen(tap.low, wide[0]);
    }
    if (tap.low != held && tap.high != tap.low) widen(tap.high, wide[1]);
    held = tap.low;
    const T* const upper = tap.high != tap.low ? wide[1] : wide[0];
    return Between<T>(wide[0], upper, capacity, columns.strip(strip).padded, vertical, y, rows);
  }
};

int64_t label_bytes(Dtype dtype) {
  switch (dtype) {
    case Dtype::uint8: return 1;
    case Dtype::int16: return 2;
    case Dtype::int32: return 4;
    default: return 8;
  }
}

// The labels of a tile; what is wrong with them, in `found`, is the first in the order of the target.
template <class T>
void load_tile(Block<T>& b, const DiceCeLossInputs& in, int64_t n, const Strip& strip, int64_t at, int64_t row, int rows,
               BadData* found) {
  b.size = b.padded = rows * strip.padded;
  b.weight = in.weight ? b.weight_row : b.pixel_weight;
  const int64_t bytes = label_bytes(in.target_dtype);
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

// Rows of logits in one item: at most about 64 items, but rows enough to be worth the one or two that neighbours share.
int64_t band_rows(const DiceCeLossInputs& in, int64_t height) {
  constexpr int64_t kItems = 64, kFew = 8, kLeast = 4, kMost = 16;
  const int64_t rows = in.batch * height / kItems, few = in.batch * height / kFew;
  const int64_t least = few < 1 ? 1 : few < kLeast ? few : kLeast;
  return rows < least ? least : rows > kMost ? kMost : rows;
}

template <class T, class In>
Status run_statistics(const DiceCeLossCoarseStatistics& params, const Parallel& parallel) {
  const DiceCeLossInputs& in = params.loss.in;
  const LinearAxis &vertical = params.coarse.vertical, &horizontal = params.coarse.horizontal;
  const TileSize tile(in.classes, horizontal.out, sizeof(T));
  const int64_t capacity = tile.width;
  const int64_t rows = band_rows(in, vertical.in);
  const int64_t per_image = (vertical.in + rows - 1) / rows, items = in.batch * per_image;

  const int64_t block_bytes = Block<T>::bytes(in.classes, tile.pixels());
  const int64_t bytes = block_bytes + (Interpolation<T, In>::bytes(in.classes, capacity) + 63) / 64 * 64;
  const Columns<T> columns(horizontal, capacity, kPad);
  const Memory scratch(parallel.workers * bytes);
  const Partials partials(params.loss, items, parallel.workers);
  if (!columns.allocated() || !scratch.data || !partials.allocated()) return Status::out_of_memory;

  for_each_item(parallel, items, is_small(in), [&](int64_t item, int32_t worker) {
    char* const memory = scratch.data + worker * bytes;
    Block<T> b;
    b.place(memory, in.classes, tile.pixels());
    Interpolation<T, In> logits(params.coarse, columns, capacity, memory + block_bytes);
    const DiceCeLossStatistics own = partials.params_of(worker);
    const Forward<T, T> forward{own};
    const ItemSums sums = partials.open(item, worker);
    const int64_t n = item / per_image, first = item % per_image * rows;
    const int64_t begin = first_output(vertical, first), end = first_output(vertical, first + rows);
    for (int64_t s = 0; s < columns.strips(); ++s) {
      const Strip strip = columns.strip(s);
      logits.begin(n, s);
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
  partials.reduce(per_image);
  return Status::ok;
}

// What the target rows from row `begin` of the logits to row `end` give: sums of target rows that are not finished, and the
// gradients of the rows of logits. Row `begin` misses what the band before it has in its row `end`.
template <class T>
struct Band {
  const ColumnSums<T>& columns;
  int64_t capacity, classes, width, height, pitch;
  int64_t begin, end;
  T* rows;     // [end - begin + 1, C, pitch]
  T* sums[2];  // [C, capacity]: what target rows give to the lower and the upper row

  static int64_t pitch_of(int64_t width) { return width + kNativeLanes<T>; }
  static int64_t bytes(int64_t classes, int64_t capacity, int64_t width, int64_t rows) {
    return classes * (2 * capacity + (rows + 1) * pitch_of(width)) * static_cast<int64_t>(sizeof(T));
  }

  Band(const ColumnSums<T>& cs, int64_t most, const ConstPlanes& p, int64_t first, int64_t last, char* memory)
      : columns(cs),
        capacity(most),
        classes(p.channels),
        width(p.width),
        height(p.height),
        pitch(pitch_of(width)),
        begin(first),
        end(last) {
    sums[0] = reinterpret_cast<T*>(memory);
    sums[1] = sums[0] + classes * capacity;
    rows = sums[1] + classes * capacity;
    __builtin_memset(memory, 0, static_cast<size_t>(bytes(classes, capacity, width, end - begin)));
  }

  ToSums<T> at(const Between<T>& x) const { return ToSums<T>{sums[0], sums[1], capacity, x}; }

  // Adds the gradient of staged rows.
  void add(const Block<T>& b, const Between<T>& x) const {
    constexpr int kLanes = kNativeLanes<T>;
    using V = Vec<T, kLanes>;
    for (int64_t c = 0; c < classes; ++c)
      at(x).template sum<1, kLanes, V>(c,
                                       [&](int64_t i, V(&v)[1]) { v[0] = load<kLanes, T>(b.staged + c * b.capacity + i); });
  }

  T* row(int64_t number) const { return rows + (number - begin) * classes * pitch; }

  // No further target row reads row `number`: its sums are finished, those of the row above become the lower ones.
  void advance(int64_t strip, int64_t number) {
    if (number >= begin && number < height) columns.add_narrowed(strip, sums[0], row(number), pitch, classes);
    T* const finished = sums[0];
    sums[0] = sums[1];
    sums[1] = finished;
    __builtin_memset(finished, 0, static_cast<size_t>(classes * capacity) * sizeof(T));
  }
};

// The rows at which bands meet: row `begin` and row `end` of each item, added when both are there. In the type of the sums,
// so that 16-bit gradients are rounded once.
template <class T>
class Seams {
 public:
  Seams(int64_t items, int64_t elements)
      : elements_(elements), rows_(items * 2 * elements * static_cast<int64_t>(sizeof(T)), false) {}
  bool allocated() const { return rows_.data; }

  void keep(int64_t item, const Band<T>& band) const {
    __builtin_memcpy(row(item, 0), band.row(band.begin), static_cast<size_t>(elements_) * sizeof(T));
    __builtin_memcpy(row(item, 1), band.row(band.end), static_cast<size_t>(elements_) * sizeof(T));
  }

  T* join(int64_t item) const {
    T* const sum = row(item, 0);
    const T* const before = row(item - 1, 1);
    for (int64_t i = 0; i < elements_; ++i) sum[i] += before[i];
    return sum;
  }

 private:
  T* row(int64_t item, int which) const { return reinterpret_cast<T*>(rows_.data) + (2 * item + which) * elements_; }
  const int64_t elements_;
  const Memory rows_;
};

// Fetches the strip's part of a row of the gradient that is written later: stores to lines that are far away are slow.
template <class In>
void prefetch_row(const Planes& p, int64_t n, int64_t number, const Strip& strip) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(In));
  const In* const row = static_cast<const In*>(p.data) + n * p.stride_n + number * p.stride_h + strip.low;
  for (int64_t c = 0; p.stride_w == 1 && c < p.channels; ++c)
    for (int64_t x = 0; x < strip.span; x += kLine) __builtin_prefetch(row + c * p.stride_c + x, 1);
}

template <class In, class T>
void write_row(T* row, int64_t pitch, const Planes& p, int64_t n, int64_t number) {
  In* const to = static_cast<In*>(p.data) + n * p.stride_n + number * p.stride_h;
  stage_out(row_of(row, p.channels, pitch, p.width), to, p.stride_c, p.stride_w);
}

template <class T, class In>
Status run_backward(const DiceCeLossCoarseBackward& params, const Parallel& parallel) {
  const DiceCeLossInputs& in = params.loss.in;
  const LinearAxis &vertical = params.coarse.vertical, &horizontal = params.coarse.horizontal;
  const TileSize tile(in.classes, horizontal.out, sizeof(T));
  const int64_t capacity = tile.width;
  const int64_t rows = band_rows(in, vertical.in);
  const int64_t per_image = (vertical.in + rows - 1) / rows, items = in.batch * per_image;

  const int64_t block_bytes = Block<T>::bytes(in.classes, tile.pixels());
  const int64_t interpolation_bytes = (Interpolation<T, In>::bytes(in.classes, capacity) + 63) / 64 * 64;
  const int64_t band_bytes = (Band<T>::bytes(in.classes, capacity, horizontal.in, rows) + 63) / 64 * 64;
  const int64_t bytes = block_bytes + interpolation_bytes + band_bytes;
  const ColumnSums<T> columns(horizontal, capacity, kPad);
  const Memory scratch(parallel.workers * bytes);
  const Derivatives<T> derivatives(params.loss);
  const int64_t pitch = Band<T>::pitch_of(horizontal.in);
  const Seams<T> seams(per_image > 1 ? items : 0, in.classes * pitch);
  if (!columns.allocated() || !scratch.data || !derivatives.allocated() || !seams.allocated()) return Status::out_of_memory;
  const Backward<T, T> backward = derivatives.template backward<T>(false);

  for_each_item(parallel, items, is_small(in), [&](int64_t item, int32_t worker) {
    char* const memory = scratch.data + worker * bytes;
    Block<T> b;
    b.place(memory, in.classes, tile.pixels());
    Interpolation<T, In> logits(params.coarse, columns, capacity, memory + block_bytes);
    const int64_t n = item / per_image, first = item % per_image * rows;
    const int64_t last = first + rows < vertical.in ? first + rows : vertical.in;
    Band<T> band(columns, capacity, params.coarse.planes, first, last, memory + block_bytes + interpolation_bytes);
    const int64_t begin = first_output(vertical, first), end = first_output(vertical, last);
    for (int64_t s = 0; s < columns.strips(); ++s) {
      const Strip strip = columns.strip(s);
      logits.begin(n, s);
      for (int64_t y = begin, count; y < end; y += count) {
        count = rows_together(vertical, y, end, tile.rows);
        const int64_t low = linear_tap(vertical, y).low;
        if (y > begin && low != logits.held) {
          band.advance(s, logits.held);
          prefetch_row<In>(params.grad_logits, n, low, strip);
        }
        load_tile(b, in, n, strip, y * horizontal.out + strip.first, horizontal.out, count, nullptr);
        const Between<T> x = logits.at(vertical, y, count);
        if (backward.finite) {
          backward.gradient(b, n, x, band.at(x));
        } else {
          backward.rows(b, n, x, ToRows<T>{b.staged, b.capacity});
          band.add(b, x);
        }
      }
      band.advance(s, logits.held);
      band.advance(s, logits.held + 1);
    }
    if (per_image > 1) seams.keep(item, band);
    for (int64_t j = first + (first > 0); j < last; ++j) write_row<In>(band.row(j), pitch, params.grad_logits, n, j);
  });
  for_each_item(parallel, per_image > 1 ? items : 0, is_small(in), [&](int64_t item, int32_t) {
    const int64_t first = item % per_image * rows;
    if (first > 0) write_row<In>(seams.join(item), pitch, params.grad_logits, item / per_image, first);
  });
  return Status::ok;
}

}  // namespace

Status dice_ce_loss_coarse_statistics(const DiceCeLossCoarseStatistics& params, const Parallel& parallel) {
  switch (params.loss.in.logits_dtype) {
    case Dtype::float32: return run_statistics<float, float>(params, parallel);
    case Dtype::float64: return run_statistics<double, double>(params, parallel);
    case Dtype::bfloat16: return run_statistics<float, BFloat16>(params, parallel);
    case Dtype::float16: return run_statistics<float, Float16>(params, parallel);
    default: return Status::unsupported;
  }
}

Status dice_ce_loss_coarse_backward(const DiceCeLossCoarseBackward& params, const Parallel& parallel) {
  switch (params.loss.in.logits_dtype) {
    case Dtype::float32: return run_backward<float, float>(params, parallel);
    case Dtype::float64: return run_backward<double, double>(params, parallel);
    case Dtype::bfloat16: return run_backward<float, BFloat16>(params, parallel);
    case Dtype::float16: return run_backward<float, Float16>(params, parallel);
    default: return Status::unsupported;
  }
}

}  // namespace segops::SEGOPS_ISA

#ifdef SEGOPS_ISA_IS_BASELINE
SEGOPS_LAUNCHER(dice_ce_loss_coarse_statistics, DiceCeLossCoarseStatistics)
SEGOPS_LAUNCHER(dice_ce_loss_coarse_backward, DiceCeLossCoarseBackward)
#endif
