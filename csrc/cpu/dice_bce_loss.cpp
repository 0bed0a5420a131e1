// dice_bce_loss on the CPU: one pass over the logits forward, one read and one write backward, nothing kept in between.
#include "segops/dice_bce_loss.h"

#include "dice_bce_loss_sums.h"
#include "dtypes.h"
#include "isa.h"
#include "parallel.h"
#include "work.h"

namespace segops::SEGOPS_ISA {
namespace {

// Logits whose channels are last and whose pixels touch are read across channels; others one channel at a time.
bool across_channels(const DiceBceLossInputs& in) {
  return in.channels > 1 && in.logits.stride_c == 1 && in.logits.stride_s == in.channels;
}

// How images are cut. A group is an image's channel, or, across channels, an image; it has `parts` pieces of whole blocks,
// at most 64. An item is a piece, or several groups where these are small.
template <class T>
struct Plan {
  int64_t channels, tile, block_pixels, piece_pixels, parts, pieces, pieces_per_item, items;
  bool serial;

  explicit Plan(const DiceBceLossInputs& in) {
    constexpr int64_t kBlock = 1024, kPiece = 4096, kMostParts = 64;
    channels = across_channels(in) ? in.channels : 1;
    tile = kTileElements<T>;
    block_pixels = kBlock;
    if (channels > 1) {  // whole tiles that begin with channel 0
      const int64_t least = EachChannel<T>::pixels_to(channels, tile), most = kBlock / (least * channels);
      block_pixels = least * (most > 0 ? most : 1);
    }
    parts = in.pixels * channels / kPiece;
    parts = parts < 1 ? 1 : parts > kMostParts ? kMostParts : parts;
    piece_pixels = ((in.pixels + parts - 1) / parts + block_pixels - 1) / block_pixels * block_pixels;
    piece_pixels = piece_pixels > 0 ? piece_pixels : block_pixels;
    parts = in.pixels > 0 ? (in.pixels + piece_pixels - 1) / piece_pixels : 1;
    pieces = in.batch * in.channels / channels * parts;
    const int64_t elements = in.pixels * channels > 0 ? in.pixels * channels : 1;
    pieces_per_item = parts > 1 || elements >= kPiece ? 1 : kPiece / elements;
    items = (pieces + pieces_per_item - 1) / pieces_per_item;
    serial = is_small(in);
  }

  int64_t capacity() const { return (block_pixels * channels + tile - 1) / tile * tile; }
  int64_t last_piece(int64_t item) const {
    const int64_t end = (item + 1) * pieces_per_item;
    return end < pieces ? end : pieces;
  }
  int64_t image_of(const DiceBceLossInputs& in, int64_t piece) const { return piece / parts / (in.channels / channels); }
  int64_t channel_of(const DiceBceLossInputs& in, int64_t piece) const {
    return piece / parts % (in.channels / channels) * channels;
  }

  // Calls body(run) for each block of a piece. What is left of whole tiles has a block of its own: it must be copied.
  template <class Body>
  void for_each_run(const DiceBceLossInputs& in, int64_t piece, const Body& body) const {
    const int64_t n = image_of(in, piece), c = channel_of(in, piece), begin = piece % parts * piece_pixels;
    const int64_t end = begin + piece_pixels < in.pixels ? begin + piece_pixels : in.pixels;
    for (int64_t first = begin, count; first < end; first += count) {
      count = end - first < block_pixels ? end - first : block_pixels;
      if (channels == 1 && count > tile) count -= count % tile;
      body(Run{n, c, channels, first, count * channels});
    }
  }
};

// Logits where they are in memory.
template <class In>
struct Direct {
  const In* base;
  template <int kLanes, class T>
  SEGOPS_MEMBER Vec<T, kLanes> at(int64_t, int64_t i) const {
    fetch_ahead(base + i);
    return load<kLanes, T>(base + i);
  }
};

// Calls body(x) with the logits of a run: as they are, or copied to whole tiles.
template <class In, class T, class Body>
SEGOPS_INLINE void with_logits(const Block<T>& b, const DiceBceLossInputs& in, const Run& r, const Body& body) {
  const In* const data = static_cast<const In*>(in.logits.data);
  const Place at(in.logits, r);
  if (at.contiguous && r.size == b.padded) return body(Direct<In>{data + at.first});
  read_row(data, r, at, b.staged);
  for (int64_t i = r.size; i < b.padded; ++i) b.staged[i] = T(0);
  body(Direct<T>{b.staged});
}

template <class T, class In, class Channels>
void add_piece(const DiceBceLossStatistics& params, const Plan<T>& plan, int64_t piece, Block<T>& b, Channels& channels,
               const Partials& partials) {
  const DiceBceLossInputs& in = params.in;
  const Terms<T> terms(in);
  double* const bce = partials.bce_of(piece);
  plan.for_each_run(in, piece, [&](const Run& r) {
    load_run(b, in, r, plan.tile, partials.bad_of(piece));
    const Place to(params.map_stride_n, params.map_stride_c, params.map_stride_s, r);
    T* const map = static_cast<T*>(params.bce_map);
    const bool in_place = map && to.contiguous && r.size == b.padded;
    T* const losses = in_place ? map + to.first : map ? b.result : nullptr;
    with_logits<In>(b, in, r, [&](const auto& x) {
      with_flags(in.focal_gamma != 0, b.masked, in.squared, [&](auto focal, auto masked, auto squared) {
        add_block<decltype(focal)::value, decltype(masked)::value, decltype(squared)::value>(b, x, terms, channels, bce,
                                                                                             losses);
      });
    });
    channels.end_block();
    if (map && !in_place) write_row(b.result, r, to, map);
  });
  channels.end_piece(partials.overlap_of(piece));
}

template <class T, class In>
Status run_statistics(const DiceBceLossStatistics& params, const Parallel& parallel) {
  const DiceBceLossInputs& in = params.in;
  const Plan<T> plan(in);
  const int64_t block_bytes = Block<T>::bytes(plan.capacity());
  const int64_t bytes = block_bytes + (plan.channels > 1 ? EachChannel<T>::bytes(in.channels) : 0);
  const Memory scratch(parallel.workers * bytes, false);
  const Partials partials(params, plan.channels, plan.parts);
  if (!scratch.data || !partials.allocated()) return Status::out_of_memory;

  for_each_item(parallel, plan.items, plan.serial, [&](int64_t item, int32_t worker) {
    char* const memory = scratch.data + worker * bytes;
    Block<T> b(memory, plan.capacity());
    for (int64_t piece = item * plan.pieces_per_item; piece < plan.last_piece(item); ++piece) {
      if (plan.channels > 1) {
        EachChannel<T> channels(memory + block_bytes, in.channels);
        channels.fill(channels.positive, in.pos_weight, T(1));
        add_piece<T, In>(params, plan, piece, b, channels, partials);
      } else {
        OneChannel<T> channel = channel_of<T>(in, plan.image_of(in, piece), plan.channel_of(in, piece), nullptr);
        add_piece<T, In>(params, plan, piece, b, channel, partials);
      }
    }
  });
  partials.reduce();
  return Status::ok;
}

// Whether the gradient's memory is warm and larger than a last-level cache, and vectors of it are aligned.
template <class T>
bool worth_streaming(const DiceBceLossBackward& p, const Plan<T>& plan, int64_t element) {
  constexpr int64_t kLastLevelCache = 32 << 20, kLine = 64;
  return p.warm && p.in.batch * p.in.channels * p.in.pixels * element > kLastLevelCache &&
         reinterpret_cast<uintptr_t>(p.grad_logits) % kLine == 0 && p.grad_stride_n * element % kLine == 0 &&
         (plan.channels > 1 || p.grad_stride_c * element % kLine == 0);
}

template <bool kFocal, bool kMasked, bool kSquared, bool kStream, class T, class X, class Channels, class To>
void write_gradient(const Block<T>& block, const X& x, const Terms<T>& terms, T grad_bce, Channels& channels, To* to) {
  constexpr int kLanes = kNativeLanes<T>, kWidth = Channels::kWidth;
  const Block<T> b = block;  // copies, as what is stored might be these themselves for all the compiler knows
  const Terms<T> own = terms;
  Channels constants = channels;
  for (int64_t i = 0; i < b.padded; i += kWidth * kLanes) {
    Vec<T, kLanes> v[kWidth];
    for (int k = 0; k < kWidth; ++k) v[k] = x.template at<kLanes, T>(0, i + k * kLanes);
    gradient_tile<kFocal, kMasked, kSquared>(b, i, own, grad_bce, constants, v);
    for (int k = 0; k < kWidth; ++k) {
      if constexpr (kStream)
        store_streaming<kLanes, To, T>(to + i + k * kLanes, v[k]);
      else
        store<kLanes>(to + i + k * kLanes, v[k]);
    }
    constants.next();
  }
}

template <class T, class In, class Channels>
void write_piece(const DiceBceLossBackward& params, const Plan<T>& plan, int64_t piece, bool stream, Block<T>& b,
                 Channels& channels) {
  const DiceBceLossInputs& in = params.in;
  const Terms<T> terms(in);
  const T grad_bce = static_cast<T>(params.grad_bce ? params.grad_bce[0] : 0.);
  In* const grad = static_cast<In*>(params.grad_logits);
  plan.for_each_run(in, piece, [&](const Run& r) {
    load_run(b, in, r, plan.tile, nullptr);
    const Place to(params.grad_stride_n, params.grad_stride_c, params.grad_stride_s, r);
    const bool in_place = to.contiguous && r.size == b.padded;
    with_logits<In>(b, in, r, [&](const auto& x) {
      with_flags(has_focus(in, grad_bce), b.masked, in.squared, [&](auto focal, auto masked, auto squared) {
        constexpr bool kFocal = decltype(focal)::value, kMasked = decltype(masked)::value;
        constexpr bool kSquared = decltype(squared)::value;
        if (!in_place)
          write_gradient<kFocal, kMasked, kSquared, false>(b, x, terms, grad_bce, channels, b.result);
        else if (stream)
          write_gradient<kFocal, kMasked, kSquared, true>(b, x, terms, grad_bce, channels, grad + to.first);
        else
          write_gradient<kFocal, kMasked, kSquared, false>(b, x, terms, grad_bce, channels, grad + to.first);
      });
    });
    if (!in_place) write_row(b.result, r, to, grad);
  });
}

template <class T, class In>
Status run_backward(const DiceBceLossBackward& params, const Parallel& parallel) {
  const DiceBceLossInputs& in = params.in;
  const Plan<T> plan(in);
  const int64_t block_bytes = Block<T>::bytes(plan.capacity());
  const int64_t bytes = block_bytes + (plan.channels > 1 ? EachChannel<T>::bytes(in.channels) : 0);
  const Memory scratch(parallel.workers * bytes, false);
  if (!scratch.data) return Status::out_of_memory;
  const bool stream = worth_streaming(params, plan, sizeof(In));

  for_each_item(parallel, plan.items, plan.serial, [&](int64_t item, int32_t worker) {
    char* const memory = scratch.data + worker * bytes;
    Block<T> b(memory, plan.capacity());
    for (int64_t piece = item * plan.pieces_per_item; piece < plan.last_piece(item); ++piece) {
      const int64_t n = plan.image_of(in, piece);
      if (plan.channels > 1) {
        EachChannel<T> channels(memory + block_bytes, in.channels);
        const double* const grad = params.grad_overlap ? params.grad_overlap + n * 3 * in.channels : nullptr;
        channels.fill(channels.positive, in.pos_weight, T(1));
        channels.fill(channels.grad_i, grad, T(0));
        channels.fill(channels.grad_p, grad ? grad + in.channels : nullptr, T(0));
        write_piece<T, In>(params, plan, piece, stream, b, channels);
      } else {
        OneChannel<T> channel = channel_of<T>(in, n, plan.channel_of(in, piece), params.grad_overlap);
        write_piece<T, In>(params, plan, piece, stream, b, channel);
      }
    }
    streaming_done();
  });
  return Status::ok;
}

}  // namespace

Status dice_bce_loss_statistics(const DiceBceLossStatistics& params, const Parallel& parallel) {
  return as_float(params.in.logits_dtype, [&]<class T, class In>() { return run_statistics<T, In>(params, parallel); });
}

Status dice_bce_loss_backward(const DiceBceLossBackward& params, const Parallel& parallel) {
  return as_float(params.in.logits_dtype, [&]<class T, class In>() { return run_backward<T, In>(params, parallel); });
}

}  // namespace segops::SEGOPS_ISA

#ifdef SEGOPS_ISA_IS_BASELINE
SEGOPS_LAUNCHER(dice_bce_loss_statistics, DiceBceLossStatistics)
SEGOPS_LAUNCHER(dice_bce_loss_backward, DiceBceLossBackward)
#endif
