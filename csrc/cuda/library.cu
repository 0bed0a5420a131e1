// The CUDA library's own facts. Kernels have files of their own beside this one.
#include "segops/types.h"

// The architectures this library was built for, as given to the build.
extern "C" SEGOPS_EXPORT const char* segops_cuda_archs() { return SEGOPS_CUDA_ARCHS; }
