// Which instruction set the CPU kernels use. Kernel files are compiled once per level; one is picked at first use.
#pragma once
#include "segops/types.h"

namespace segops {

enum class Isa : int32_t { baseline, x86_64_v3, x86_64_v4 };

// The level in use: the best one this processor has, or what SEGOPS_CPU_ISA (baseline, v3, v4) asks for if it has that.
SEGOPS_EXPORT Isa isa();
SEGOPS_EXPORT const char* isa_name(Isa level);
SEGOPS_EXPORT bool isa_supported(Isa level);

}  // namespace segops

// A kernel file defines segops::SEGOPS_ISA::name(const Params&, const Parallel&). Its baseline compilation adds, with this
// macro, the launcher segops::name that picks a level. SEGOPS_ONE_LEVEL is a build of the baseline alone.
#if defined(__x86_64__) && !defined(SEGOPS_ONE_LEVEL)
#define SEGOPS_LAUNCHER(name, Params)                           \
  namespace segops::v3 {                                        \
  Status name(const Params&, const Parallel&);                  \
  }                                                             \
  namespace segops::v4 {                                        \
  Status name(const Params&, const Parallel&);                  \
  }                                                             \
  namespace segops {                                            \
  Status name(const Params& params, const Parallel& parallel) { \
    switch (isa()) {                                            \
      case Isa::x86_64_v4: return v4::name(params, parallel);   \
      case Isa::x86_64_v3: return v3::name(params, parallel);   \
      default: return baseline::name(params, parallel);         \
    }                                                           \
  }                                                             \
  }
#else
#define SEGOPS_LAUNCHER(name, Params)                                                                      \
  namespace segops {                                                                                       \
  Status name(const Params& params, const Parallel& parallel) { return baseline::name(params, parallel); } \
  }
#endif
