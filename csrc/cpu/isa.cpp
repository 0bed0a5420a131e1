#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace segops {

const char* isa_name(Isa level) {
  switch (level) {
    case Isa::x86_64_v4: return "v4";
    case Isa::x86_64_v3: return "v3";
    default: return "baseline";
  }
}

bool isa_supported(Isa level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (level) {
    case Isa::x86_64_v4: return __builtin_cpu_supports("x86-64-v4");
    case Isa::x86_64_v3: return __builtin_cpu_supports("x86-64-v3");
    default: return true;
  }
#else
  return level == Isa::baseline;
#endif
}

static Isa choose() {
  constexpr Isa kBestFirst[] = {Isa::x86_64_v4, Isa::x86_64_v3, Isa::baseline};
  if (const char* wanted = std::getenv("SEGOPS_CPU_ISA"))
    for (Isa level : kBestFirst)
      if (std::strcmp(wanted, isa_name(level)) == 0 && isa_supported(level)) return level;
  for (Isa level : kBestFirst)
    if (isa_supported(level)) return level;
  return Isa::baseline;
}

Isa isa() {
  static const Isa level = choose();
  return level;
}

}  // namespace segops
