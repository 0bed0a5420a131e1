// A 3x3 convolution of stride 1 by Winograd's algorithm. Outputs of one phase of a dilation d, those d apart, read pixels d
// apart: d * d interleaved images of ordinary convolutions, whose tiles are cut here side by side.
//
// Weights are transformed once. An item of work is a band of rows of tiles of one phase: 16 channels at a time, pixels go
// from their layout into rows of channels and from there into points; the products follow point by point; outputs come back
// the same way, through the epilogue. An item's scratch is bounded by kScratch, that of the weights is 16/9 or 4 times
// theirs. Every output is computed in the same way wherever its tile lies in an item.
//
// A value that is not finite would reach the neighbours in its tile: then the item is convolved by the definition.
#pragma once
#include "dilated_conv_direct.h"
#include "dilated_conv_gemm.h"
#include "dilated_conv_prepack.h"
#include "dilated_conv_transform.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace segops::SEGOPS_ISA {

// Scratch of many megabytes, written all over: huge pages spare faults and misses of the address cache.
struct Scratch {
  Memory memory;
  float* data = nullptr;
  explicit Scratch(int64_t floats) : memory(floats * static_cast<int64_t>(sizeof(float)) + kHugePage, false) {
    if (!memory.data) return;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(memory.data),
                    aligned = (begin + kHugePage - 1) / kHugePage * kHugePage;
    data = reinterpret_cast<float*>(aligned);
#ifdef MADV_HUGEPAGE
    const int64_t bytes = floats * static_cast<int64_t>(sizeof(float)) / kHugePage * kHugePage;
    if (bytes > 0) madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  }
  static constexpr int64_t kHugePage = int64_t{2} << 20;
};

template <class F, class In>
class Winograd {
 public:
  static constexpr int kLanes = kNativeLanes<float>, kOut = F::kOut, kIn = F::kIn, kPoints = kIn * kIn;
  static constexpr int64_t kTiles = 96, kMostTiles = 4 * kTiles;  // of an item
  static constexpr int64_t kScratch = int64_t{12} << 20;          // bytes
  static constexpr int64_t kLine = 9 * kBlock + kBlock;           // floats of a line of weights, with room to read past
  using V = Vec<float, kLanes>;

  // Weights are read as `weight` says.
  Winograd(const DilatedConv& p, const WeightView& weight, int32_t workers) : p_(p), weight_(weight) {
    inputs_ = whole_blocks(p.input.channels);
    outputs_ = whole_blocks(p.output.channels);
    const int64_t height = p.output.height, width = p.output.width, d = p.window.dilation_w;
    // A column of tiles: those of all phases that begin within d pixels.
    const int64_t phases = d < width ? d : width, across = (width + kOut * d - 1) / (kOut * d);
    const int64_t down = (height + kOut * p.window.dilation_h - 1) / (kOut * p.window.dilation_h);
    vertical_phases_ = p.window.dilation_h < height ? p.window.dilation_h : height;
    const int64_t per_tile = kPoints * (inputs_ + outputs_) * static_cast<int64_t>(sizeof(float));
    int64_t tiles = kScratch / per_tile;
    if (tiles > kMostTiles) tiles = kMostTiles;
    if (tiles < 1) tiles = 1;
    if (per_tile * kTiles < kScratch) tiles = kTiles;
    // Items enough for all workers.
    const int64_t total = p.output.batch * vertical_phases_ * down * across * phases;
    if (tiles > total / workers) tiles = total / workers > 0 ? total / workers : 1;
    columns_ = tiles / phases;
    if (columns_ < 1) columns_ = 1;
    if (columns_ > across) columns_ = across;
    segments_ = (across + columns_ - 1) / columns_;
    columns_ = (across + segments_ - 1) / segments_;
    rows_ = tiles / (columns_ * phases);
    if (rows_ < 1) rows_ = 1;
    if (rows_ > down) rows_ = down;
    bands_ = (down + rows_ - 1) / rows_;
    rows_ = (down + bands_ - 1) / bands_;
    most_tiles_ = rows_ * columns_ * phases;
    band_width_ = columns_ * kOut * d + 2 * d + kLanes;
    // Tiles and points that are no power of two apart do not share the sets of a cache.
    image_stride_ = apart(inputs_);
    product_stride_ = apart(outputs_);
    image_step_ = most_tiles_ * image_stride_ + kBlock;
    product_step_ = most_tiles_ * product_stride_ + kBlock;
    weight_step_ = winograd_weight_step(p.input.channels, p.output.channels);
  }

  static int64_t apart(int64_t floats) { return floats % 256 == 0 ? floats + kBlock : floats; }
  static int64_t lines(int64_t floats) { return (floats + 15) / 16 * 16; }
  int64_t weight_floats() const { return kPoints * weight_step_; }
  int64_t weight_bytes() const { return p_.output.channels * p_.input.channels * 9 * static_cast<int64_t>(sizeof(In)); }
  int64_t band_floats() const { return (rows_ * kOut + 2) * band_width_ * kBlock; }
  int64_t scratch_floats() const {
    return lines(kPoints * image_step_) + lines(kPoints * product_step_) + band_floats() + lines(p_.output.width);
  }

  Status run(const Parallel& parallel) {
    const Scratch weights(weight_floats());
    if (!weights.data) return Status::out_of_memory;
    pack(parallel, weights.data);
    return convolve(parallel, weights.data, nullptr);
  }

  // By what prepack() left; results are worth nothing if it belongs to another weight.
  Status run_prepacked(const Parallel& parallel, const float* prepacked) {
    const float* const end = prepacked + weight_floats();
    if (!is_layout(end + kChecksumWords, kOut)) return Status::unsupported;
    Checksum checksum{weight_.data, weight_bytes()};
    const Status status = convolve(parallel, prepacked, &checksum);
    return status == Status::ok && !checksum.is(end) ? Status::unsupported : status;
  }

  void prepack(const Parallel& parallel, float* to) {
    pack(parallel, to);
    Checksum checksum{weight_.data, weight_bytes()};
    for_each_item(parallel, checksum.parts(), false, [&](int64_t item, int32_t) { checksum.add(item); });
    checksum.write(to + weight_floats());
    write_layout(to + weight_floats() + kChecksumWords, kOut);
  }

 private:
  void pack(const Parallel& parallel, float* to) const {
    for_each_item(parallel, outputs_ / kBlock * (inputs_ / kBlock), false, [&](int64_t item, int32_t) {
      pack_block(item / (inputs_ / kBlock) * kBlock, item % (inputs_ / kBlock) * kBlock, to);
    });
  }

  // The checksum of the weight, if it is asked for, is taken by the way.
  Status convolve(const Parallel& parallel, const float* weights, Checksum* checksum) {
    const int64_t scratch = scratch_floats(), parts = checksum ? checksum->parts() : 0;
    const Memory constants(Finish<float>::bytes(p_.output.channels), false);
    const Scratch memory(scratch * parallel.workers);
    if (!constants.data || !memory.data) return Status::out_of_memory;
    const Finish<float> finish(p_.epilogue, p_.output.channels, constants.data);
    transformed_ = weights;
    for_each_item(parallel, parts + p_.output.batch * segments_ * vertical_phases_ * bands_, false,
                  [&](int64_t item, int32_t worker) {
                    if (item < parts)
                      checksum->add(item);
                    else
                      convolve(item - parts, finish, memory.data + worker * scratch);
                  });
    return Status::ok;
  }

  // The tiles of an item: `rows` from row of tiles `row` of vertical phase `phase`, columns [column, end) of all phases.
  struct Item {
    int64_t n, phase, row, rows, column, end, x_begin, x_end;
  };

  // Transforms the weights of 16 outputs and 16 inputs.
  void pack_block(int64_t output, int64_t input, float* weights) const {
    const PanelPlace place = panel_place(output, inputs_, outputs_);
    float* const to = weights + place.offset + input * place.width;
    const int64_t have_o = least(p_.output.channels - output, kBlock), have_i = least(p_.input.channels - input, kBlock);
    // Taps in [input][tap][output], through [one channel][of 16 others][tap], which is dense in memory.
    alignas(64) float taps[kBlock * 9 * kBlock];
    alignas(64) float line[kBlock * kLine] = {};
    const bool by_output = weight_.stride_i == 9;
    const In* from = static_cast<const In*>(weight_.data) + output * weight_.stride_o + input * weight_.stride_i;
    const int64_t lines_here = by_output ? have_o : have_i, length = 9 * (by_output ? have_i : have_o);
    for (int64_t i = 0; i < lines_here; ++i) {
      const In* source = from + i * (by_output ? weight_.stride_o : weight_.stride_i);
      int64_t at = 0;
      for (; at + kLanes <= length; at += kLanes) store<kLanes>(line + i * kLine + at, load<kLanes, float>(source + at));
      for (; at < length; ++at) line[i * kLine + at] = element<float>(source + at);
    }
    // Vectors of outputs: from whole lines, or from those of the taps within each.
    for (int64_t i = 0; i < (by_output ? 9 : kBlock); ++i)
      for (int part = 0; part < kBlock; part += kLanes)
        for (int row = 0; row < (by_output ? kBlock : 9); row += kLanes) {
          V rows[kLanes];
          for (int o = 0; o < kLanes; ++o)
            rows[o] =
                load<kLanes, float>(line + (by_output ? (part + o) * kLine + i * kBlock : i * kLine + (part + o) * 9) + row);
          transpose<kLanes>(rows);
          const int last = by_output ? kLanes : static_cast<int>(least(9 - row, kLanes));
          for (int k = 0; k < last; ++k)
            store<kLanes>(taps + (i * (by_output ? kBlock : 9) + row + k) * kBlock + part, rows[k]);
        }
    for (int64_t i = 0; i < kBlock; ++i) {
      expect_points(to + (i + 1) * place.width, weight_step_);
      for (int part = 0; part < kBlock; part += kLanes) {
        V g[9];
        for (int tap = 0; tap < 9; ++tap)
          g[tap] = load<kLanes, float>(taps + (i * 9 + (weight_.flipped ? 8 - tap : tap)) * kBlock + part);
        transform_weight<F, kLanes>(g, to + i * place.width + part, weight_step_);
      }
    }
  }

  // The lines that points are stored to next: stores alone would wait for one after the other.
  static SEGOPS_MEMBER void expect_points(const float* to, int64_t step) {
    for (int64_t point = 0; point < kPoints; ++point) __builtin_prefetch(to + point * step, 1, 3);
  }

  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  void convolve(int64_t index, const Finish<float>& finish, float* memory) const {
    const int64_t d = p_.window.dilation_w, dh = p_.window.dilation_h, width = p_.output.width;
    Item t{};
    t.n = index / (segments_ * vertical_phases_ * bands_);
    t.phase = index / bands_ % vertical_phases_;
    t.row = index % bands_ * rows_;
    const int64_t in_phase = (p_.output.height - t.phase + dh - 1) / dh;
    t.rows = least(rows_, (in_phase + kOut - 1) / kOut - t.row);
    if (t.rows <= 0) return;
    t.column = index / (vertical_phases_ * bands_) % segments_ * columns_;
    t.x_begin = t.column * kOut * d;
    t.x_end = least(t.x_begin + columns_ * kOut * d, width);
    if (t.x_begin >= t.x_end) return;
    t.end = (t.x_end + kOut * d - 1) / (kOut * d);
    float* const images = memory;
    float* const products = images + lines(kPoints * image_step_);
    float* const band = products + lines(kPoints * product_step_);
    float* const exact = band + band_floats();

    int64_t tiles = 0;
    for (int64_t c = 0; c < inputs_; c += kBlock) {
      fill_band(t, c, band);
      tiles = for_each_tile(t, [&](int64_t tile, int64_t y, int64_t x) {
        const float* from = band + (y * kOut * band_width_ + x - t.x_begin) * kBlock;
        float* to = images + tile * image_stride_ + c;
        expect_points(to + image_stride_, image_step_);
        for (int part = 0; part < kBlock; part += kLanes)
          transform_image<F, kLanes>(from + part, band_width_ * kBlock, d * kBlock, to + part, image_step_);
      });
    }
    for (int64_t point = 0; point < kPoints; ++point)
      multiply({images + point * image_step_, transformed_ + point * weight_step_, products + point * product_step_, tiles,
                inputs_, outputs_, p_.input.channels, image_stride_, product_stride_});
    for (int64_t c = 0; c < p_.output.channels; c += kBlock) {
      V zero{};
      for_each_tile(t, [&](int64_t tile, int64_t y, int64_t x) {
        const float* from = products + tile * product_stride_ + c;
        float* to = band + (y * kOut * band_width_ + x - t.x_begin) * kBlock;
        for (int part = 0; part < kBlock; part += kLanes)
          transform_output<F, kLanes>(from + part, product_step_, to + part, band_width_ * kBlock, d * kBlock, zero);
      });
      bool finite = true;
      for (int i = 0; i < kLanes; ++i) finite &= zero[i] == 0.f;
      if (finite)
        store_band(t, c, finish, band);
      else
        store_exact(t, c, finish, exact);
    }
  }

  // visit(index of the tile, its row in the item, its first output in a row of pixels); returns their number.
  template <class Visit>
  int64_t for_each_tile(const Item& t, const Visit& visit) const {
    const int64_t d = p_.window.dilation_w;
    int64_t tile = 0;
    for (int64_t y = 0; y < t.rows; ++y)
      for (int64_t column = t.column; column < t.end; ++column) {
        const int64_t begin = column * kOut * d, end = least(begin + d, t.x_end);
        for (int64_t x = begin; x < end; ++x) visit(tile++, y, x);
      }
    return tile;
  }

  // The pixels that the item's tiles read, as rows of 16 channels: zero beyond the image and the channels.
  void fill_band(const Item& t, int64_t c, float* band) const {
    const ConstPlanes& in = p_.input;
    const int64_t dh = p_.window.dilation_h, d = p_.window.dilation_w;
    const int64_t pixels = (t.end - t.column) * kOut * d + 2 * d, x0 = t.x_begin - p_.window.padding_w;
    const int64_t begin = x0 < 0 ? least(-x0, pixels) : 0,
                  end = in.width - x0 < begin ? begin : least(in.width - x0, pixels);
    const int64_t channels = least(in.channels - c, kBlock);
    for (int64_t row = 0; row < t.rows * kOut + 2; ++row) {
      float* const to = band + row * band_width_ * kBlock;
      const int64_t y = (t.row * kOut + row) * dh + t.phase - p_.window.padding_h;
      const bool inside = y >= 0 && y < in.height && begin < end;
      __builtin_memset(to, 0, sizeof(float) * static_cast<size_t>((inside ? begin : pixels) * kBlock));
      if (!inside) continue;
      __builtin_memset(to + end * kBlock, 0, sizeof(float) * static_cast<size_t>((pixels - end) * kBlock));
      const In* from = static_cast<const In*>(in.data) + t.n * in.stride_n + c * in.stride_c + y * in.stride_h +
                       (x0 + begin) * in.stride_w;
      if (in.stride_c == 1)
        copy_pixels(from, in.stride_w, end - begin, channels, to + begin * kBlock);
      else
        transpose_pixels(from, in.stride_c, end - begin, channels, to + begin * kBlock);
    }
  }

  static void copy_pixels(const In* from, int64_t stride, int64_t size, int64_t channels, float* to) {
    for (int64_t i = 0; i < size; ++i, from += stride, to += kBlock) {
      if (channels == kBlock) {
        for (int part = 0; part < kBlock; part += kLanes) store<kLanes>(to + part, load<kLanes, float>(from + part));
        continue;
      }
      for (int64_t c = 0; c < kBlock; ++c) to[c] = c < channels ? element<float>(from + c) : 0.f;
    }
  }

  static void transpose_pixels(const In* from, int64_t stride, int64_t size, int64_t channels, float* to) {
    for (int64_t i = 0; i < size; i += kLanes) {
      if (i + kLanes > size) {
        if (size < kLanes) {
          for (int64_t x = 0; x < size; ++x)
            for (int64_t c = 0; c < kBlock; ++c)
              to[x * kBlock + c] = c < channels ? element<float>(from + c * stride + x) : 0.f;
          return;
        }
        i = size - kLanes;  // the last ones overlap their neighbours
      }
      for (int part = 0; part < kBlock; part += kLanes) {
        V rows[kLanes];
        for (int c = 0; c < kLanes; ++c)
          rows[c] = part + c < channels ? load<kLanes, float>(from + (part + c) * stride + i) : V{};
        transpose<kLanes>(rows);
        for (int x = 0; x < kLanes; ++x) store<kLanes>(to + (i + x) * kBlock + part, rows[x]);
      }
    }
  }

  void store_band(const Item& t, int64_t c, const Finish<float>& finish, const float* band) const {
    const Planes& o = p_.output;
    for (int64_t row = 0; row < t.rows * kOut; ++row) {
      const int64_t y = (t.row * kOut + row) * p_.window.dilation_h + t.phase;
      if (y >= o.height) return;
      const float* from = band + row * band_width_ * kBlock;
      In* to = static_cast<In*>(o.data) + t.n * o.stride_n + c * o.stride_c + y * o.stride_h + t.x_begin * o.stride_w;
      const In* residual = finish.template residual_at<In>(t.n, c, y, t.x_begin);
      const int64_t size = t.x_end - t.x_begin;
      if (o.stride_c == 1)
        store_pixels(finish, c, from, residual, to, size);
      else
        store_planes(finish, c, from, residual, to, size);
    }
  }

  void store_pixels(const Finish<float>& finish, int64_t c, const float* from, const In* residual, In* to,
                    int64_t size) const {
    const int64_t channels = least(p_.output.channels - c, kBlock);
    const ConstPlanes& r = finish.residual;
    int64_t x = 0;
    if (channels == kBlock && (!residual || r.stride_c == 1)) {
      constexpr int kCount = 4;  // pixels at once
      for (; x + kCount <= size; x += kCount, from += kCount * kBlock, to += kCount * p_.output.stride_w) {
        for (int part = 0; part < kBlock; part += kLanes) {
          const V scale = load<kLanes, float>(finish.scale + c + part),
                  offset = load<kLanes, float>(finish.offset + c + part);
          const V slope = load<kLanes, float>(finish.slope + c + part);
          V v[kCount];
          for (int i = 0; i < kCount; ++i) v[i] = load<kLanes, float>(from + i * kBlock + part) * scale + offset;
          for (int i = 0; residual && i < kCount; ++i) v[i] += load<kLanes, float>(residual + i * r.stride_w + part);
          activate<float, kLanes, kCount>(v, finish.activation, [&](int) { return slope; });
          for (int i = 0; i < kCount; ++i) store<kLanes>(to + i * p_.output.stride_w + part, v[i]);
        }
        if (residual) residual += kCount * r.stride_w;
      }
    }
    for (; x < size; ++x, from += kBlock, to += p_.output.stride_w) {
      finish_run<false, float, float, In>(finish, c, channels, {from, 1}, {residual, r.stride_c}, {to, 1});
      if (residual) residual += r.stride_w;
    }
  }

  void store_planes(const Finish<float>& finish, int64_t c, const float* from, const In* residual, In* to,
                    int64_t size) const {
    const int64_t channels = least(p_.output.channels - c, kBlock);
    const ConstPlanes& r = finish.residual;
    for (int64_t i = 0; i < size; i += kLanes) {
      const int64_t have = least(size - i, kLanes);
      for (int part = 0; part < channels; part += kLanes) {
        V rows[kLanes];
        for (int x = 0; x < kLanes; ++x) rows[x] = load<kLanes, float>(from + (i + x) * kBlock + part);
        transpose<kLanes>(rows);
        for (int k = 0; k < kLanes; ++k) {
          const int64_t channel = part + k;
          rows[k] = rows[k] * finish.scale[c + channel] + finish.offset[c + channel];
          if (!residual || channel >= channels) continue;
          const In* beside = residual + channel * r.stride_c + i * r.stride_w;
          if (have == kLanes && r.stride_w == 1)
            rows[k] += load<kLanes, float>(beside);
          else
            for (int x = 0; x < have; ++x) rows[k][x] += element<float>(beside + x * r.stride_w);
        }
        activate<float, kLanes, kLanes>(rows, finish.activation,
                                        [&](int k) { return broadcast<kLanes, float>(finish.slope[c + part + k]); });
        for (int k = 0; k < kLanes && part + k < channels; ++k) {
          In* target = to + (part + k) * p_.output.stride_c + i;
          if (have == kLanes)
            store<kLanes>(target, rows[k]);
          else
            for (int x = 0; x < have; ++x) store<1>(target + x, Vec<float, 1>{rows[k][x]});
        }
      }
    }
  }

  void store_exact(const Item& t, int64_t c, const Finish<float>& finish, float* sums) const {
    const int64_t channels = least(p_.output.channels - c, kBlock);
    for (int64_t row = 0; row < t.rows * kOut; ++row) {
      const int64_t y = (t.row * kOut + row) * p_.window.dilation_h + t.phase;
      if (y >= p_.output.height) return;
      for (int64_t k = c; k < c + channels; ++k) {
        convolve_row<float, In>(p_, weight_, t.n, k, y, t.x_begin, t.x_end, sums);
        finish_row<float, In>(finish, p_.output, t.n, k, y, t.x_begin, t.x_end, sums);
      }
    }
  }

  const DilatedConv& p_;
  const WeightView weight_;
  const float* transformed_ = nullptr;
  int64_t inputs_, outputs_;  // channels, padded
  int64_t vertical_phases_, segments_, bands_, columns_, rows_, most_tiles_, band_width_;
  int64_t image_stride_, product_stride_, image_step_, product_step_, weight_step_;
};

}  // namespace segops::SEGOPS_ISA
