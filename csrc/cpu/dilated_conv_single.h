// A 3x3 convolution of stride 1 to one channel, as of a side output. It reads its image once and writes next to nothing, so
// that memory bounds it; Winograd's algorithm would compute 16 channels, of which 15 are padding.
#pragma once
#include "dilated_conv_direct.h"
#include "dilated_conv_transform.h"

namespace segops::SEGOPS_ISA {

template <class In>
class SingleConv {
 public:
  explicit SingleConv(const DilatedConv& p) : p_(p), channels_((p.input.channels + kLanes - 1) / kLanes * kLanes) {}

  Status run(const Parallel& parallel) {
    const ConstPlanes& in = p_.input;
    const Planes& o = p_.output;
    const bool channels_last = in.stride_c == 1;
    if (!channels_last && in.stride_w != 1) return ::segops::SEGOPS_ISA::convolve<float, In>(p_, parallel);
    const int64_t line = (o.width + kLine - 1) / kLine * kLine;
    const Memory constants(Finish<float>::bytes(1), false), weights(9 * channels_ * kFloat),
        lines(line * kFloat * parallel.workers);
    if (!constants.data || !weights.data || !lines.data) return Status::out_of_memory;
    const Finish<float> finish(p_.epilogue, 1, constants.data);
    weights_ = reinterpret_cast<float*>(weights.data);
    for (int64_t c = 0; c < in.channels; ++c)
      for (int64_t tap = 0; tap < 9; ++tap)
        weights_[tap * channels_ + c] = element<float>(static_cast<const In*>(p_.weight) + c * 9 + tap);
    const int64_t bands = (o.height + kRows - 1) / kRows;
    const bool serial = o.batch * o.height * o.width * in.channels < kLeast;
    for_each_item(parallel, o.batch * bands, serial, [&](int64_t item, int32_t worker) {
      float* const sums = reinterpret_cast<float*>(lines.data) + worker * line;
      const int64_t n = item / bands, first = item % bands * kRows;
      const int64_t end = first + kRows < o.height ? first + kRows : o.height;
      for (int64_t y = first; y < end; ++y) {
        if (channels_last)
          row_of_pixels(n, y, sums);
        else
          row_of_planes(n, y, sums);
        finish_row<float, In>(finish, o, n, 0, y, 0, o.width, sums);
      }
    });
    return Status::ok;
  }

 private:
  static constexpr int kLanes = kNativeLanes<float>;
  static constexpr int64_t kLine = 16, kFloat = sizeof(float);
  static constexpr int64_t kRows = 4;         // of an item
  static constexpr int64_t kLeast = 1 << 16;  // elements that are worth a second thread
  using V = Vec<float, kLanes>;

  int64_t shift(int64_t kx) const { return kx * p_.window.dilation_w - p_.window.padding_w; }

  // Row y of the image that tap row ky of output row `y` reads; null outside of it.
  const In* source(int64_t n, int64_t y, int64_t ky) const {
    const ConstPlanes& in = p_.input;
    const int64_t from = y - p_.window.padding_h + ky * p_.window.dilation_h;
    if (from < 0 || from >= in.height) return nullptr;
    return static_cast<const In*>(in.data) + n * in.stride_n + from * in.stride_h;
  }

  // Channels side by side: as many pixels as a vector has lanes, each with a vector of sums of some of the channels.
  void row_of_pixels(int64_t n, int64_t y, float* sums) const {
    const In* rows[3];
    for (int64_t ky = 0; ky < 3; ++ky) rows[ky] = source(n, y, ky);
    for (int64_t x = 0; x < p_.output.width; x += kLanes) {
      const bool inside = x + shift(0) >= 0 && x + shift(2) + kLanes <= p_.input.width;
      store<kLanes>(sums + x, inside ? pixels<true>(rows, x) : pixels<false>(rows, x));
    }
  }

  template <bool kInside>
  V pixels(const In* const (&rows)[3], int64_t x) const {
    const ConstPlanes& in = p_.input;
    V sums[kLanes] = {};
    for (int64_t tap = 0; tap < 9; ++tap) {
      if (!rows[tap / 3]) continue;
      const int64_t first = x + shift(tap % 3);
      const float* const weights = weights_ + tap * channels_;
      int64_t c = 0;
      for (; c + kLanes <= in.channels; c += kLanes) {
        const V weight = load<kLanes, float>(weights + c);
        const In* const from = rows[tap / 3] + first * in.stride_w + c;
        for (int i = 0; i < kLanes; ++i)
          if (kInside || (first + i >= 0 && first + i < in.width))
            sums[i] += load<kLanes, float>(from + i * in.stride_w) * weight;
      }
      for (; c < in.channels; ++c)
        for (int i = 0; i < kLanes; ++i)
          if (kInside || (first + i >= 0 && first + i < in.width))
            sums[i][0] += element<float>(rows[tap / 3] + (first + i) * in.stride_w + c) * weights[c];
    }
    transpose<kLanes>(sums);
    for (int step = kLanes / 2; step > 0; step /= 2)
      for (int i = 0; i < step; ++i) sums[i] += sums[i + step];
    return sums[0];
  }

  // Plane after plane: what a row of taps gives is added to the whole row.
  void row_of_planes(int64_t n, int64_t y, float* sums) const {
    const ConstPlanes& in = p_.input;
    const int64_t width = p_.output.width;
    for (int64_t x = 0; x < width; ++x) sums[x] = 0;
    int64_t begin = shift(0) < 0 ? -shift(0) : 0, end = in.width - shift(2);  // outputs with all three taps inside
    if (begin > width) begin = width;
    if (end > width) end = width;
    if (end < begin) end = begin;
    for (int64_t c = 0; c < in.channels; ++c)
      for (int64_t ky = 0; ky < 3; ++ky) {
        const In* row = source(n, y, ky);
        if (!row) continue;
        row += c * in.stride_c;
        const float factors[3] = {weights_[ky * 3 * channels_ + c], weights_[(ky * 3 + 1) * channels_ + c],
                                  weights_[(ky * 3 + 2) * channels_ + c]};
        edge(row, factors, 0, begin, sums);
        int64_t x = begin;
        for (; x + kLanes <= end; x += kLanes) add<kLanes>(row, factors, x, sums);
        for (; x < end; ++x) add<1>(row, factors, x, sums);
        edge(row, factors, end, width, sums);
      }
  }

  template <int kCount>
  SEGOPS_MEMBER void add(const In* row, const float (&factors)[3], int64_t x, float* sums) const {
    auto sum = load<kCount, float>(row + x + shift(0)) * factors[0];
    sum += load<kCount, float>(row + x + shift(1)) * factors[1];
    sum += load<kCount, float>(row + x + shift(2)) * factors[2];
    store<kCount>(sums + x, load<kCount, float>(sums + x) + sum);
  }

  void edge(const In* row, const float (&factors)[3], int64_t begin, int64_t end, float* sums) const {
    for (int64_t x = begin; x < end; ++x)
      for (int64_t kx = 0; kx < 3; ++kx)
        if (x + shift(kx) >= 0 && x + shift(kx) < p_.input.width)
          sums[x] += element<float>(row + x + shift(kx)) * factors[kx];
  }

  const DilatedConv& p_;
  const int64_t channels_;    // padded to whole vectors
  float* weights_ = nullptr;  // [tap][channel]
};

}  // namespace segops::SEGOPS_ISA
