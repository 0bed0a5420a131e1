// What follows a convolution: activation(scale * (conv + bias) + shift + residual).
#pragma once
#include "segops/dilated_conv.h"
#include "vec.h"
#include "work.h"

namespace segops::SEGOPS_ISA {

constexpr int64_t kBlock = 16;  // channels that are treated together

constexpr int64_t whole_blocks(int64_t channels) { return (channels + kBlock - 1) / kBlock * kBlock; }

// The epilogue as activation(scale * conv + offset + residual); beyond the last channel, constants begin again, so that
// kRepeated of them can be read from any channel on.
template <class T>
struct Finish {
  T *scale, *offset, *slope;
  Activation activation;
  ConstPlanes residual;

  static constexpr int64_t kRepeated = 4 * kBlock;

  static int64_t length(int64_t channels) { return whole_blocks(channels) + kRepeated; }
  static int64_t bytes(int64_t channels) { return 3 * length(channels) * static_cast<int64_t>(sizeof(T)); }

  Finish(const ConvEpilogue& e, int64_t channels, char* memory)
      : scale(reinterpret_cast<T*>(memory)),
        offset(scale + length(channels)),
        slope(offset + length(channels)),
        activation(e.activation),
        residual(e.residual) {
    const auto at = [](const void* values, int64_t c, T otherwise) {
      return values ? static_cast<const T*>(values)[c] : otherwise;
    };
    for (int64_t c = 0; c < channels; ++c) {
      scale[c] = at(e.scale, c, T(1));
      offset[c] = scale[c] * at(e.bias, c, T(0)) + at(e.shift, c, T(0));
      slope[c] = at(e.slope, c, T(kLeakySlope));
    }
    for (int64_t c = channels; c < length(channels); ++c) {
      scale[c] = scale[c - channels];
      offset[c] = offset[c - channels];
      slope[c] = slope[c - channels];
    }
  }

  // The first element of the residual of (n, c, y, x).
  template <class Out>
  const Out* residual_at(int64_t n, int64_t c, int64_t y, int64_t x) const {
    const ConstPlanes& r = residual;
    if (!r.data) return nullptr;
    return static_cast<const Out*>(r.data) + n * r.stride_n + c * r.stride_c + y * r.stride_h + x * r.stride_w;
  }
};

// The constants of lanes: pixels of one channel, or channels of one pixel.
template <bool kPixels, int kLanes, class T>
SEGOPS_INLINE Vec<T, kLanes> constants(const T* of) {
  if constexpr (kPixels)
    return broadcast<kLanes, T>(*of);
  else
    return load<kLanes, T>(of);
}

// sigmoid from e^-|x|, which cannot overflow.
template <class T, int kLanes, int kCount>
SEGOPS_INLINE void sigmoids(const Vec<T, kLanes> (&x)[kCount], Vec<T, kLanes> (&result)[kCount]) {
  Vec<T, kLanes> power[kCount];
  Vec<BitsOf<T>, kLanes> unused{};
  for (int i = 0; i < kCount; ++i) power[i] = x[i] > T(0) ? -x[i] : x[i];
  exp_tile<T, kLanes, kCount, false>(power, unused);
  for (int i = 0; i < kCount; ++i) result[i] = (x[i] > T(0) ? broadcast<kLanes, T>(T(1)) : power[i]) / (T(1) + power[i]);
}

// NaN stays NaN in all of them. slope(i): that of vector i.
template <class T, int kLanes, int kCount, class Slope>
SEGOPS_INLINE void activate(Vec<T, kLanes> (&v)[kCount], Activation activation, const Slope& slope) {
  using V = Vec<T, kLanes>;
  switch (activation) {
    case Activation::none: return;
    case Activation::relu:
      for (int i = 0; i < kCount; ++i) v[i] = v[i] < T(0) ? V{} : v[i];
      return;
    case Activation::leaky_relu:
    case Activation::prelu:
      for (int i = 0; i < kCount; ++i) v[i] = v[i] > T(0) ? v[i] : v[i] * slope(i);
      return;
    default: break;
  }
  V sigmoid[kCount];
  sigmoids<T, kLanes, kCount>(v, sigmoid);
  for (int i = 0; i < kCount; ++i) v[i] = activation == Activation::silu ? v[i] * sigmoid[i] : sigmoid[i];
}

// A run of elements with their strides; T of one channel (kPixels) or of channels c, c + 1, ...
template <class Element>
struct Run {
  Element* data;
  int64_t stride;
};

template <bool kPixels, class T, int kLanes, int kCount, class In, class Out>
SEGOPS_INLINE void finish_vectors(const Finish<T>& f, int64_t c, Run<const In> from, Run<const Out> residual, Run<Out> to) {
  Vec<T, kLanes> v[kCount];
  const auto channel = [&](int i) { return kPixels ? c : c + i * kLanes; };
  for (int i = 0; i < kCount; ++i) {
    v[i] = load<kLanes, T>(from.data + i * kLanes * from.stride);
    v[i] = v[i] * constants<kPixels, kLanes, T>(f.scale + channel(i)) + constants<kPixels, kLanes, T>(f.offset + channel(i));
    if (residual.data) v[i] += load<kLanes, T>(residual.data + i * kLanes * residual.stride);
  }
  activate<T, kLanes, kCount>(v, f.activation, [&](int i) { return constants<kPixels, kLanes, T>(f.slope + channel(i)); });
  for (int i = 0; i < kCount; ++i) store<kLanes>(to.data + i * kLanes * to.stride, v[i]);
}

template <bool kPixels, class T, class In, class Out>
void finish_run(const Finish<T>& f, int64_t c, int64_t size, Run<const In> from, Run<const Out> residual, Run<Out> to) {
  constexpr int kLanes = kNativeLanes<T>, kCount = 4;
  int64_t i = 0;
  const auto advance = [&](int64_t by) {
    from.data += by * from.stride;
    to.data += by * to.stride;
    if (residual.data) residual.data += by * residual.stride;
    if (!kPixels) c += by;
    i += by;
  };
  if (from.stride == 1 && to.stride == 1 && (!residual.data || residual.stride == 1)) {
    for (; i + kCount * kLanes <= size; advance(kCount * kLanes))
      finish_vectors<kPixels, T, kLanes, kCount, In, Out>(f, c, from, residual, to);
    for (; i + kLanes <= size; advance(kLanes)) finish_vectors<kPixels, T, kLanes, 1, In, Out>(f, c, from, residual, to);
  }
  for (; i < size; advance(1)) finish_vectors<kPixels, T, 1, 1, In, Out>(f, c, from, residual, to);
}

// A line of pixels whose channels follow each other: vectors pass from one pixel into the next.
template <class T, class In, class Out>
void finish_line(const Finish<T>& f, int64_t channels, int64_t size, const In* from, const Out* residual, Out* to) {
  constexpr int kLanes = kNativeLanes<T>, kCount = 4;
  constexpr int64_t kStep = kCount * kLanes;
  static_assert(kStep <= Finish<T>::kRepeated);
  const int64_t on = kStep % channels;
  const auto finish = [&]<int kWide, int kMany>(int64_t at, int64_t c) {
    finish_vectors<false, T, kWide, kMany, In, Out>(f, c, {from + at, 1}, {residual ? residual + at : nullptr, 1},
                                                    {to + at, 1});
  };
  int64_t i = 0, c = 0;
  for (; i + kStep <= size; i += kStep) {
    finish.template operator()<kLanes, kCount>(i, c);
    c += on;
    if (c >= channels) c -= channels;
  }
  for (; i < size; ++i) {
    finish.template operator()<1, 1>(i, c);
    if (++c == channels) c = 0;
  }
}

// The epilogue of a whole convolution, row by row.
template <class T, class In>
Status finish_image(const DilatedConvFinish& p, const Parallel& parallel) {
  const Planes& o = p.output;
  const ConstPlanes &from = p.convolved, &r = p.epilogue.residual;
  if (o.batch == 0) return Status::ok;
  const Memory memory(Finish<T>::bytes(o.channels), false);
  if (!memory.data) return Status::out_of_memory;
  const Finish<T> finish(p.epilogue, o.channels, memory.data);
  const bool channels_last = o.stride_c == 1 && o.stride_w != 1;
  const auto is_line = [&](int64_t stride_c, int64_t stride_w) { return stride_c == 1 && stride_w == o.channels; };
  const bool whole = channels_last && is_line(o.stride_c, o.stride_w) && is_line(from.stride_c, from.stride_w) &&
                     (!r.data || is_line(r.stride_c, r.stride_w));
  // Rows of all planes, or of all images: items of about 16 thousand elements.
  const int64_t lines = channels_last ? o.batch * o.height : o.batch * o.channels * o.height;
  const int64_t line = channels_last ? o.width * o.channels : o.width;
  const int64_t step = line < (1 << 14) ? (1 << 14) / line : 1, items = (lines + step - 1) / step;
  for_each_item(parallel, items, lines * line < 1 << 15, [&](int64_t item, int32_t) {
    const int64_t end = (item + 1) * step < lines ? (item + 1) * step : lines;
    for (int64_t at = item * step; at < end; ++at) {
      const int64_t y = at % o.height, plane = at / o.height;
      const int64_t n = channels_last ? plane : plane / o.channels, c = channels_last ? 0 : plane % o.channels;
      for (int64_t x = 0; x < (channels_last && !whole ? o.width : 1); ++x) {
        const int64_t offset = n * from.stride_n + c * from.stride_c + y * from.stride_h + x * from.stride_w;
        const T* source = static_cast<const T*>(from.data) + offset;
        In* target = static_cast<In*>(o.data) + n * o.stride_n + c * o.stride_c + y * o.stride_h + x * o.stride_w;
        const In* residual = finish.template residual_at<In>(n, c, y, x);
        if (whole)
          finish_line<T, T, In>(finish, o.channels, o.width * o.channels, source, residual, target);
        else if (channels_last)
          finish_run<false, T, T, In>(finish, c, o.channels, {source, from.stride_c}, {residual, r.stride_c},
                                      {target, o.stride_c});
        else
          finish_run<true, T, T, In>(finish, c, o.width, {source, from.stride_w}, {residual, r.stride_w},
                                     {target, o.stride_w});
      }
    }
  });
  return Status::ok;
}

}  // namespace segops::SEGOPS_ISA
