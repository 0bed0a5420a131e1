// Runs one case of broken.cu with buffers of the exact size, for a sanitizer to judge.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "api.h"

extern "C" {
int broken_place(const float* x, float* out, int i, int j, int k);
int broken_overflow(int* x);
int broken_sum(int bug, const float* x, float* out, int threads, int rounds);
int broken_pipeline(const float* x, float* out, int tiles, int bug);
int broken_divergent(int* out, int threads, int kind);
int pattern_column(int bytes, void* out, int columns);
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const char* name = argv[1];
  constexpr int kCount = 1024;
  float* x = static_cast<float*>(malloc(kCount * sizeof(float)));
  float* out = static_cast<float*>(malloc(32 * sizeof(float)));
  float* column = static_cast<float*>(aligned_alloc(16, kCount * sizeof(float)));
  for (int i = 0; i < kCount; ++i) x[i] = 1;
  int error = 2;
  if (strcmp(name, "right") == 0) {
    error = 0;
    for (const char* mode : {"uniform", "warp", "priority", "last"}) {
      simt_set_schedule(mode, 1);
      error |= broken_place(x, out, kCount - 1, 31, 31);
      error |= broken_sum(0, x, out, 256, 3);
      if (out[0] != 256 * (1 + 2 + 3)) error = 1;
      error |= broken_pipeline(column, column, 4, 0);
      error |= pattern_column(16, column, 32);
      // Threads that are left in the middle do not disturb the next launch.
      if (broken_divergent(reinterpret_cast<int*>(column), 64, 1) == 0) error = 1;
    }
  }
  if (strcmp(name, "shared") == 0) error = broken_place(x, out, 0, 0, 32);
  if (strcmp(name, "dynamic-shared") == 0) error = pattern_column(4, column, 31);  // the last row is one short
  if (strcmp(name, "global-read") == 0) error = broken_place(x, out, kCount, 0, 0);
  if (strcmp(name, "global-write") == 0) error = broken_place(x, out, 0, 32, 0);
  if (strcmp(name, "overflow") == 0) {
    int most = 0x7fffffff;
    error = broken_overflow(&most);
  }
  printf("returned %d %s\n", error, simt_last_report());
  free(x), free(out), free(column);
  return error;
}
