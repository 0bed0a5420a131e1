// The gradient of a pixel's logits from their exponentials.
//
// With a = d loss / d p, the gradient of the overlap is p_c (a_c - sum_k a_k p_k). a_c is g_c = d loss / d P_c (2 g_c p_c
// where P sums squares), plus d loss / d I_c at the target; the cross-entropy adds its own. Together, for a pixel:
// p_c (g_c + u) - spread_c, and q more at its target.
#pragma once
#include "common.cuh"

namespace segops::cuda::dice_ce {

// What is constant over an image, in shared memory: [4, C].
template <class A>
struct Tables {
  A *grad_p, *grad_i, *spread, *weight;
  A scale;       // of the target's cross-entropy
  A spread_sum;  // of the classes' spread
  bool overlap, smooth;

  // Fills `memory`; a barrier must follow.
  __device__ Tables(const DiceCeLossBackward& p, int64_t image, A* memory, int threads) {
    const int classes = static_cast<int>(p.in.classes);
    grad_p = memory;
    grad_i = memory + classes;
    spread = memory + 2 * classes;
    weight = memory + 3 * classes;
    overlap = p.grad_overlap != nullptr;
    smooth = p.in.label_smoothing != 0;
    const double grad_ce = p.grad_ce ? device::load(p.grad_ce) : 0.0;
    const double share = grad_ce * p.in.label_smoothing / static_cast<double>(classes);
    const double* grad = p.grad_overlap + image * 3 * classes;
    double weights = 0;
    for (int c = 0; c < classes; ++c) weights += p.in.weight ? device::load(p.in.weight + c) : 1.0;
    for (int c = static_cast<int>(threadIdx.x); c < classes; c += threads) {
      const double own = p.in.weight ? device::load(p.in.weight + c) : 1.0;
      grad_i[c] = overlap ? static_cast<A>(device::load(grad + c)) : A(0);
      grad_p[c] = overlap ? static_cast<A>(device::load(grad + classes + c)) : A(0);
      spread[c] = static_cast<A>(share * own);
      weight[c] = static_cast<A>(own);
    }
    scale = static_cast<A>(grad_ce * (1 - p.in.label_smoothing));
    spread_sum = static_cast<A>(share * weights);
  }
};

// What turns a pixel's probabilities into its gradient.
template <class A>
struct Coefficients {
  A inverse, u, q;

  __device__ __forceinline__ Coefficients(A inverse_, A u_, A q_) : inverse(inverse_), u(u_), q(q_) {}

  // sum: of exponentials; dot: of g_k e_k (2 g_k e_k^2); target: the exponential at the label.
  __device__ __forceinline__ Coefficients(const Tables<A>& tables, bool squared, int32_t label, A pixel_weight, A sum, A dot,
                                          A target) {
    inverse = A(1) / sum;
    const int32_t known = label < 0 ? 0 : label;
    const A at_target = tables.grad_i[known] * (target * inverse);
    const A mean = dot * (squared ? inverse * inverse : inverse) + at_target;
    const A ce = tables.scale * tables.weight[known] * pixel_weight;
    u = ce - mean + tables.spread_sum * pixel_weight;
    q = at_target - ce;
  }
};

// The gradient of one logit from its exponential. An ignored pixel has none, whatever the others are.
template <class A>
__device__ __forceinline__ A gradient(const Tables<A>& tables, const Coefficients<A>& of, bool squared, int32_t label,
                                      A pixel_weight, int c, A e) {
  const A prob = e * of.inverse, g = tables.grad_p[c];
  A result = prob * ((squared ? 2 * g * prob : g) + of.u);
  if (label == c) result += of.q;
  if (tables.smooth) result -= tables.spread[c] * pixel_weight;
  return label < 0 ? A(0) : result;
}

}  // namespace segops::cuda::dice_ce
