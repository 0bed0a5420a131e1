// confusion_matrix on the CPU: logits and labels are read once.
//
// A block of pixels keeps its largest logits so far, and their classes, in the first-level cache, and goes through the class
// planes a few at a time: long stretches of memory, and few enough of them at once for the hardware's prefetchers.
#include "segops/confusion_matrix.h"

#include "confusion_matrix_cells.h"
#include "dtypes.h"
#include "isa.h"
#include "labels.h"
#include "parallel.h"
#include "staging.h"
#include "vec.h"
#include "work.h"

namespace segops::SEGOPS_ISA {
namespace {

constexpr int64_t kBlock = 1024;  // pixels
// Pixels of label maps, which are read in few cycles: a short block, so that what is fetched comes evenly, and how far
// ahead.
constexpr int64_t kMapBlock = 256, kMapsAhead = 1024;
constexpr int64_t kItem = 16 * kBlock;  // pixels of an item of work: tens of microseconds
constexpr int64_t kSerialElements = 1 << 15;

// Counters of each worker, added up at the end; the results themselves where a matrix of his own would be large.
class Counters {
 public:
  static constexpr int kRun = 64;  // pixels that are looked at at once

  Counters(const ConfusionMatrix& p, int32_t workers)
      : counts_(p.counts),
        classes_(p.classes),
        cells_(p.classes * p.classes),
        own_(cells_ <= kMostOwn),
        copies_(cells_ <= kMostCopied ? kCopies : 1),
        workers_(workers),
        pitch_((copies_ * (cells_ + 1) + kLine - 1) / kLine * kLine),
        memory_(own_ ? workers * pitch_ * 8 : 0) {}

  bool allocated() const { return memory_.data; }
  // Whether add_cells() serves.
  bool by_runs() const { return copies_ > 1; }

  // Pixels without a label or a class, which are below 0, count nowhere. `cell` is scratch of `size` elements. ahead(i)
  // is called before kRun pixels from i on.
  template <class Class, class Ahead>
  void add(int32_t worker, const int32_t* label, const Class* predicted, int64_t size, uint16_t* cell,
           const Ahead& ahead) const {
    if (!by_runs()) return add_each(worker, label, predicted, size);
    const int32_t classes = static_cast<int32_t>(classes_), nowhere = static_cast<int32_t>(cells_);
    for (int64_t i = 0; i < size; ++i) {
      const int32_t column = static_cast<int32_t>(predicted[i]);
      cell[i] = static_cast<uint16_t>((label[i] | column) < 0 ? nowhere : label[i] * classes + column);
    }
    add_cells(worker, cell, size, ahead);
  }

  // Pixels whose cells are known, where by_runs(); of what lies behind them, kRun elements are overwritten or read.
  template <class Ahead>
  void add_cells(int32_t worker, uint16_t* cell, int64_t size, const Ahead& ahead) const {
    int64_t* const counts = of(worker);
    cell[size] = static_cast<uint16_t>(~cell[size - 1]);
    const int64_t copy = cells_ + 1;
    int64_t begin = 0;  // of a run of equal cells
    for (int64_t i = 0; i < size; i += kRun) {
      ahead(i);
      uint64_t ends = ends_of_runs(cell + i);
      if (size - i < kRun) {
        ends &= (uint64_t{1} << (size - i)) - 1;
      } else if (__builtin_popcountll(ends) > kManyRuns) {
        if (begin < i) counts[cell[i - 1]] += i - begin;
        for (int k = 0; k < kRun; ++k) ++counts[k % kCopies * copy + cell[i + k]];
        begin = i + kRun;
        continue;
      }
      for (; ends; ends &= ends - 1) {
        const int64_t end = i + __builtin_ctzll(ends) + 1;
        counts[cell[end - 1]] += end - begin;
        begin = end;
      }
    }
  }

  void reduce() const {
    for (int32_t worker = 0; own_ && worker < workers_; ++worker)
      for (int32_t copy = 0; copy < copies_; ++copy)
        for (int64_t i = 0; i < cells_; ++i) counts_[i] += of(worker)[copy * (cells_ + 1) + i];
  }

 private:
  // Neighbouring pixels mostly share a cell. Where they do not, each is counted for itself: an addition to memory waits for
  // the one before it, so that there are four copies to be added to in turn, as long as they stay in the second-level cache.
  static constexpr int kCopies = 4, kManyRuns = 20;
  static constexpr int64_t kLine = 128 / 8;  // two, as they are fetched
  static constexpr int64_t kMostCopied = 1 << 13, kMostOwn = 1 << 18;

  // One cell more, for what counts nowhere.
  int64_t* of(int64_t worker) const { return reinterpret_cast<int64_t*>(memory_.data) + worker * pitch_; }

  template <class Class>
  void add_each(int32_t worker, const int32_t* label, const Class* predicted, int64_t size) const {
    for (int64_t i = 0; i < size; ++i) {
      if (label[i] < 0 || predicted[i] < 0) continue;
      const int64_t cell = label[i] * classes_ + static_cast<int64_t>(predicted[i]);
      if (own_)
        ++of(worker)[cell];
      else
        __atomic_fetch_add(counts_ + cell, 1, __ATOMIC_RELAXED);
    }
  }

  int64_t* const counts_;
  const int64_t classes_, cells_;
  const bool own_;
  const int32_t copies_, workers_;
  const int64_t pitch_;  // between the counters of workers: no line is two workers' own
  const Memory memory_;
};

// What an item found of bad data.
struct Bad {
  BadData labels, predictions;
};

void record(BadData& bad, int64_t position, int64_t value) {
  if (bad.count++ == 0) bad = BadData{1, position, value};
}

// `size` pixels from `first` on, one of which at least is bad, unless it is ignored.
void record_bad(const ConfusionMatrix& p, int64_t first, int64_t size, Bad& bad) {
  for (int64_t i = first; i < first + size; ++i) {
    const int64_t label = label_at(p.target_dtype, p.target, i);
    if (p.has_ignore_index && label == p.ignore_index) continue;
    if (label < 0 || label >= p.classes) {
      record(bad.labels, i, label);
    } else if (!p.of_logits()) {
      const int64_t predicted = label_at(p.prediction_dtype, p.prediction, i);
      if (predicted < 0 || predicted >= p.classes) record(bad.predictions, i, predicted);
    }
  }
}

// Updates the largest logits of `size` pixels (at least a vector), and their classes, with kRows classes from c on. The
// first of equals stands, and so does the first NaN. What lies kAhead classes further, or in `next`, is fetched meanwhile.
template <class T, int kRows, bool kFirst, class In>
SEGOPS_INLINE void compare_rows(const In* x, const In* next, int64_t stride, int64_t c, int64_t size, T* best,
                                BitsOf<T>* winner) {
  constexpr int kLanes = kNativeLanes<T>;
  using V = Vec<T, kLanes>;
  using Classes = Vec<BitsOf<T>, kLanes>;
  for (int64_t i = 0;; i += kLanes) {
    if (i + kLanes > size) i = size - kLanes;  // seen twice, nothing changes
    for (int r = 0; r < kRows; ++r) fetch_ahead(next + r * stride + i, 0);
    V most = kFirst ? load<kLanes, T>(x + i) : load<kLanes, T>(best + i);
    Classes of = kFirst ? Classes{} : *reinterpret_cast<const Unaligned<BitsOf<T>, kLanes>*>(winner + i);
    for (int r = kFirst; r < kRows; ++r) {
      const V v = load<kLanes, T>(x + r * stride + i);
      const Classes better = ~(v <= most) & (most == most);
      most = better ? v : most;
      of = better ? broadcast<kLanes, BitsOf<T>>(static_cast<BitsOf<T>>(c + r)) : of;
    }
    store<kLanes>(best + i, most);
    *reinterpret_cast<Unaligned<BitsOf<T>, kLanes>*>(winner + i) = of;
    if (i + kLanes >= size) return;
  }
}

// The class of each of `size` pixels, from planes of their logits.
template <class T, class In>
void winners(const In* x, int64_t stride, int64_t classes, int64_t size, T* best, BitsOf<T>* winner) {
  constexpr int kRows = 4;
  constexpr int64_t kAhead = 8;
  // Beyond the last class, the first ones of the block behind this one.
  const auto next = [&](int64_t c) {
    return c + kAhead < classes ? x + (c + kAhead) * stride : x + (c + kAhead - classes) % classes * stride + size;
  };
  if (classes < kRows) {
    compare_rows<T, 1, true>(x, next(0), stride, 0, size, best, winner);
    for (int64_t c = 1; c < classes; ++c) compare_rows<T, 1, false>(x + c * stride, next(c), stride, c, size, best, winner);
    return;
  }
  compare_rows<T, kRows, true>(x, next(0), stride, 0, size, best, winner);
  int64_t c = kRows;
  for (; c + kRows <= classes; c += kRows)
    compare_rows<T, kRows, false>(x + c * stride, next(c), stride, c, size, best, winner);
  for (; c < classes; ++c) compare_rows<T, 1, false>(x + c * stride, next(c), stride, c, size, best, winner);
}

// The scratch of one worker: rows of a block of pixels, and [C, staged] logits that are not contiguous in memory.
template <class T>
struct Scratch {
  int64_t staged;  // pixels
  int32_t *label, *predicted;
  uint16_t* cell;
  T *best, *rows;
  BitsOf<T>* winner;

  // Copies take about 20 KB of the first-level cache.
  static int64_t staged_pixels(int64_t classes) {
    constexpr int64_t kPad = 64;
    if (classes == 0) return 0;
    const int64_t fit = 20480 / (classes * static_cast<int64_t>(sizeof(T))) / kPad * kPad;
    return fit < kPad ? kPad : fit < kBlock ? fit : kBlock;
  }
  static int64_t bytes(int64_t classes) {
    const int64_t element = static_cast<int64_t>(sizeof(T));
    return (kBlock * (2 * 4 + 2 * element) + 2 * (kBlock + Counters::kRun) + classes * staged_pixels(classes) * element +
            63) /
           64 * 64;
  }

  Scratch(char* memory, int64_t classes) : staged(staged_pixels(classes)) {
    best = reinterpret_cast<T*>(memory);
    winner = reinterpret_cast<BitsOf<T>*>(best + kBlock);
    rows = reinterpret_cast<T*>(winner + kBlock);
    label = reinterpret_cast<int32_t*>(rows + classes * staged);
    predicted = label + kBlock;
    cell = reinterpret_cast<uint16_t*>(predicted + kBlock);
  }
};

// Calls body(item, worker, image, first pixel, end) for every item of every image, and leaves what was bad at the results.
template <class Body>
Status for_each_part(const ConfusionMatrix& p, const Parallel& parallel, int64_t elements, const Body& body) {
  const int64_t of_image = (p.pixels + kItem - 1) / kItem, items = p.batch * of_image;
  const Memory memory(items * static_cast<int64_t>(sizeof(Bad)));
  if (!memory.data) return Status::out_of_memory;
  Bad* const bad = reinterpret_cast<Bad*>(memory.data);
  for_each_item(parallel, items, elements < kSerialElements, [&](int64_t item, int32_t worker) {
    const int64_t begin = item % of_image * kItem;
    body(bad[item], worker, item / of_image, begin, begin + kItem < p.pixels ? begin + kItem : p.pixels);
  });
  Bad total{};
  const auto merge = [](BadData& into, const BadData& part) {
    if (into.count == 0) into = BadData{0, part.position, part.value};
    into.count += part.count;
  };
  for (int64_t item = 0; item < items; ++item) {
    merge(total.labels, bad[item].labels);
    merge(total.predictions, bad[item].predictions);
  }
  *p.bad_labels = total.labels;
  if (p.bad_predictions) *p.bad_predictions = total.predictions;
  return Status::ok;
}

template <class T, class In>
Status count_logits(const ConfusionMatrix& p, const Parallel& parallel) {
  constexpr int kLanes = kNativeLanes<T>;
  const int64_t bytes = Scratch<T>::bytes(p.classes);
  const Memory memory(parallel.workers * bytes, false);
  const Counters counters(p, parallel.workers);
  if (!memory.data || !counters.allocated()) return Status::out_of_memory;
  const int64_t elements = p.batch * p.pixels * p.classes;
  const Status status =
      for_each_part(p, parallel, elements, [&](Bad& bad, int32_t worker, int64_t n, int64_t first, int64_t end) {
        const Scratch<T> own(memory.data + worker * bytes, p.classes);
        while (first < end) {
          const int64_t left = end - first;
          const bool direct = p.stride_s == 1 && left >= kLanes;
          const int64_t most = direct ? kBlock : own.staged, size = left < most ? left : most, at = n * p.pixels + first;
          const In* x = static_cast<const In*>(p.prediction) + n * p.stride_n + first * p.stride_s;
          if (direct) {
            winners<T>(x, p.stride_c, p.classes, size, own.best, own.winner);
          } else {
            const int64_t padded = (size + kLanes - 1) / kLanes * kLanes;
            stage_rows(x, p.stride_c, p.stride_s, p.classes, size, padded, own.rows, own.staged);
            winners<T>(own.rows, own.staged, p.classes, padded, own.best, own.winner);
          }
          if (read_labels(p.target_dtype, p.target, at, size, p.classes, p.has_ignore_index, p.ignore_index, own.label))
            record_bad(p, at, size, bad);
          prefetch_labels(p.target_dtype, p.target, at + 2 * most, size);
          counters.add(worker, own.label, own.winner, size, own.cell, [](int64_t) {});
          first += size;
        }
      });
  if (status == Status::ok) counters.reduce();
  return status;
}

// Asks for what lies kMapsAhead pixels behind those of a run, in the two maps.
class MapsAhead {
 public:
  MapsAhead(const ConfusionMatrix& p, int64_t first)
      : target_(p.target, first, bytes_of(p.target_dtype)), prediction_(p.prediction, first, bytes_of(p.prediction_dtype)) {}

  SEGOPS_MEMBER void operator()(int64_t i) const {
    target_.fetch(i);
    prediction_.fetch(i);
  }

 private:
  struct Map {
    const void* from;
    int64_t bytes;  // of a pixel

    Map(const void* map, int64_t first, int64_t bytes)
        : from(static_cast<const char*>(map) + (first + kMapsAhead) * bytes), bytes(bytes) {}
    SEGOPS_MEMBER void fetch(int64_t i) const {
      for (int64_t byte = bytes * i; byte < bytes * (i + Counters::kRun); byte += 64) fetch_ahead(from, byte);
    }
  };
  const Map target_, prediction_;
};

// cells_of(), of whatever types the maps are.
bool find_cells(const ConfusionMatrix& p, int64_t first, int64_t size, uint16_t* cell) {
  return as_label(p.target_dtype, [&]<class, class Label>() {
    return as_label(p.prediction_dtype, [&]<class, class Class>() {
      return cells_of(static_cast<const Label*>(p.target) + first, static_cast<const Class*>(p.prediction) + first, size,
                      static_cast<uint16_t>(p.classes), cell);
    });
  });
}

Status count_classes(const ConfusionMatrix& p, const Parallel& parallel) {
  const int64_t bytes = Scratch<float>::bytes(0);
  const Memory memory(parallel.workers * bytes, false);
  const Counters counters(p, parallel.workers);
  if (!memory.data || !counters.allocated()) return Status::out_of_memory;
  const int64_t elements = p.batch * p.pixels;
  const bool ignores_class = p.has_ignore_index && p.ignore_index >= 0 && p.ignore_index < p.classes;
  const bool by_cells = counters.by_runs() && !ignores_class;
  const Status status =
      for_each_part(p, parallel, elements, [&](Bad& bad, int32_t worker, int64_t n, int64_t first, int64_t end) {
        const Scratch<float> own(memory.data + worker * bytes, 0);
        for (int64_t size; first < end; first += size) {
          size = end - first < kMapBlock ? end - first : kMapBlock;
          const int64_t at = n * p.pixels + first;
          const MapsAhead ahead(p, at);  // counting leaves the memory idle
          if (size == kMapBlock && by_cells && find_cells(p, at, size, own.cell)) {
            counters.add_cells(worker, own.cell, size, ahead);
            continue;
          }
          const bool bad_labels =
              read_labels(p.target_dtype, p.target, at, size, p.classes, p.has_ignore_index, p.ignore_index, own.label);
          const bool bad_predictions =
              read_labels(p.prediction_dtype, p.prediction, at, size, p.classes, false, 0, own.predicted);
          if (bad_labels || bad_predictions) record_bad(p, at, size, bad);
          counters.add(worker, own.label, own.predicted, size, own.cell, ahead);
        }
      });
  if (status == Status::ok) counters.reduce();
  return status;
}

}  // namespace

Status confusion_matrix(const ConfusionMatrix& p, const Parallel& parallel) {
  if (!p.of_logits()) return count_classes(p, parallel);
  return as_float(p.prediction_dtype, [&]<class T, class In>() { return count_logits<T, In>(p, parallel); });
}

}  // namespace segops::SEGOPS_ISA

#ifdef SEGOPS_ISA_IS_BASELINE
SEGOPS_LAUNCHER(confusion_matrix, ConfusionMatrix)
#endif
