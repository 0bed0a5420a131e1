// The convolution and its two gradients by their definitions, for every shape, group, stride and layout.
#pragma once
#include "dilated_conv_epilogue.h"

namespace segops::SEGOPS_ISA {

// [begin, end) of the outputs whose input, at output * stride + shift, lies in [0, size).
struct Reach {
  int64_t begin, end;
  Reach(int64_t shift, int64_t stride, int64_t size, int64_t outputs)
      : begin(shift < 0 ? (-shift + stride - 1) / stride : 0), end(shift < size ? (size - 1 - shift) / stride + 1 : 0) {
    if (end > outputs) end = outputs;
    if (begin > end) begin = end;
  }
};

// Weight (o, i, ky, kx) at o * stride_o + i * stride_i + its tap; from the last tap to the first for the gradient of the
// input.
struct WeightView {
  const void* data;
  int64_t stride_o, stride_i;
  bool flipped;
};

template <class T, class In>
SEGOPS_INLINE T element(const In* p) {
  return load<1, T>(p)[0];
}

// Outputs [begin, end) of row y of channel c of image n, as sums in `row`.
template <class T, class In>
void convolve_row(const DilatedConv& p, const WeightView& weights, int64_t n, int64_t c, int64_t y, int64_t begin,
                  int64_t end, T* row) {
  const ConstPlanes& in = p.input;
  const ConvWindow& w = p.window;
  const int64_t of_group = in.channels / p.groups, first = c / (p.output.channels / p.groups) * of_group;
  const int64_t taps = w.kernel_h * w.kernel_w;
  for (int64_t x = begin; x < end; ++x) row[x] = T(0);
  for (int64_t i = 0; i < of_group; ++i) {
    const In* plane = static_cast<const In*>(in.data) + n * in.stride_n + (first + i) * in.stride_c;
    const In* weight = static_cast<const In*>(weights.data) + c * weights.stride_o + i * weights.stride_i;
    for (int64_t ky = 0; ky < w.kernel_h; ++ky) {
      const int64_t from = y * w.stride_h - w.padding_h + ky * w.dilation_h;
      if (from < 0 || from >= in.height) continue;
      for (int64_t kx = 0; kx < w.kernel_w; ++kx) {
        const int64_t tap = ky * w.kernel_w + kx;
        const T factor = element<T>(weight + (weights.flipped ? taps - 1 - tap : tap));
        const int64_t shift = kx * w.dilation_w - w.padding_w;
        const Reach reach(shift, w.stride_w, in.width, p.output.width);
        const In* source = plane + from * in.stride_h;
        const int64_t lowest = reach.begin > begin ? reach.begin : begin, highest = reach.end < end ? reach.end : end;
        for (int64_t x = lowest; x < highest; ++x)
          row[x] += factor * element<T>(source + (x * w.stride_w + shift) * in.stride_w);
      }
    }
  }
}

template <class T, class In>
void finish_row(const Finish<T>& finish, const Planes& o, int64_t n, int64_t c, int64_t y, int64_t begin, int64_t end,
                const T* row) {
  In* to = static_cast<In*>(o.data) + n * o.stride_n + c * o.stride_c + y * o.stride_h + begin * o.stride_w;
  finish_run<true, T, T, In>(finish, c, end - begin, {row + begin, 1},
                             {finish.template residual_at<In>(n, c, y, begin), finish.residual.stride_w}, {to, o.stride_w});
}

template <class T, class In>
Status convolve(const DilatedConv& p, const Parallel& parallel) {
  const Planes& o = p.output;
  const int64_t row = (o.width * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  const Memory memory(Finish<T>::bytes(o.channels), false), rows(row * parallel.workers, false);
  if (!memory.data || !rows.data) return Status::out_of_memory;
  const Finish<T> finish(p.epilogue, o.channels, memory.data);
  const int64_t taps = p.window.kernel_h * p.window.kernel_w;
  const WeightView weights{p.weight, p.input.channels / p.groups * taps, taps, false};
  for_each_item(parallel, o.batch * o.channels, false, [&](int64_t item, int32_t worker) {
    T* const sums = reinterpret_cast<T*>(rows.data + worker * row);
    const int64_t n = item / o.channels, c = item % o.channels;
    for (int64_t y = 0; y < o.height; ++y) {
      convolve_row<T, In>(p, weights, n, c, y, 0, o.width, sums);
      finish_row<T, In>(finish, o, n, c, y, 0, o.width, sums);
    }
  });
  return Status::ok;
}

// Each element gathers what it went into.
template <class T, class In>
Status convolve_grad_input(const DilatedConvGradInput& p, const Parallel& parallel) {
  const Planes& to = p.grad_input;
  const ConstPlanes& from = p.grad_output;
  const ConvWindow& w = p.window;
  const int64_t of_group = to.channels / p.groups, out_of_group = from.channels / p.groups;
  const int64_t row = (to.width * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  const Memory rows(row * parallel.workers, false);
  if (!rows.data) return Status::out_of_memory;
  for_each_item(parallel, to.batch * to.channels, false, [&](int64_t item, int32_t worker) {
    T* const sums = reinterpret_cast<T*>(rows.data + worker * row);
    const int64_t n = item / to.channels, c = item % to.channels, group = c / of_group;
    In* plane = static_cast<In*>(to.data) + n * to.stride_n + c * to.stride_c;
    for (int64_t y = 0; y < to.height; ++y) {
      for (int64_t x = 0; x < to.width; ++x) sums[x] = T(0);
      for (int64_t o = group * out_of_group; o < (group + 1) * out_of_group; ++o)
        for (int64_t ky = 0; ky < w.kernel_h; ++ky) {
          const int64_t above = y + w.padding_h - ky * w.dilation_h;
          if (above < 0 || above % w.stride_h != 0 || above / w.stride_h >= from.height) continue;
          const In* source =
              static_cast<const In*>(from.data) + n * from.stride_n + o * from.stride_c + above / w.stride_h * from.stride_h;
          const In* weight =
              static_cast<const In*>(p.weight) + ((o * of_group + c % of_group) * w.kernel_h + ky) * w.kernel_w;
          for (int64_t kx = 0; kx < w.kernel_w; ++kx) {
            const int64_t shift = kx * w.dilation_w - w.padding_w;
            const Reach reach(shift, w.stride_w, to.width, from.width);
            const T factor = element<T>(weight + kx);
            for (int64_t x = reach.begin; x < reach.end; ++x)
              sums[x * w.stride_w + shift] += factor * element<T>(source + x * from.stride_w);
          }
        }
      for (int64_t x = 0; x < to.width; ++x) store<1>(plane + y * to.stride_h + x * to.stride_w, Vec<T, 1>{sums[x]});
    }
  });
  return Status::ok;
}

// Sums of rows in T, and of these in double.
template <class T, class In>
Status convolve_grad_weight(const DilatedConvGradWeight& p, const Parallel& parallel) {
  const ConstPlanes &in = p.input, &from = p.grad_output;
  const ConvWindow& w = p.window;
  const int64_t of_group = in.channels / p.groups, taps = w.kernel_h * w.kernel_w;
  for_each_item(parallel, from.channels * of_group, false, [&](int64_t item, int32_t) {
    const int64_t o = item / of_group, c = o / (from.channels / p.groups) * of_group + item % of_group;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t down = tap / w.kernel_w * w.dilation_h - w.padding_h;
      const int64_t right = tap % w.kernel_w * w.dilation_w - w.padding_w;
      const Reach rows(down, w.stride_h, in.height, from.height), columns(right, w.stride_w, in.width, from.width);
      double total = 0;
      for (int64_t n = 0; n < from.batch; ++n)
        for (int64_t y = rows.begin; y < rows.end; ++y) {
          const In* a = static_cast<const In*>(in.data) + n * in.stride_n + c * in.stride_c +
                        (y * w.stride_h + down) * in.stride_h + right * in.stride_w;
          const In* b = static_cast<const In*>(from.data) + n * from.stride_n + o * from.stride_c + y * from.stride_h;
          T sum = 0;
          for (int64_t x = columns.begin; x < columns.end; ++x)
            sum += element<T>(a + x * w.stride_w * in.stride_w) * element<T>(b + x * from.stride_w);
          total += static_cast<double>(sum);
        }
      store<1>(static_cast<In*>(p.grad_weight) + item * taps + tap, Vec<T, 1>{static_cast<T>(total)});
    }
  });
  return Status::ok;
}

}  // namespace segops::SEGOPS_ISA
