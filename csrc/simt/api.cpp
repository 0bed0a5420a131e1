// What a test or a driver calls, through ctypes or C++: schedules, reports, buffers and counts.
#include "api.h"

#include <string.h>

#include "runtime.h"

using namespace segops::simt;

extern "C" {

int simt_set_schedule(const char* mode, uint64_t seed) { return set_schedule(mode, seed) ? 0 : 1; }

const char* simt_last_report() { return last_report().c_str(); }

#ifndef SEGOPS_SIMT_RACE  // else in access.cpp and counts.cpp
const char* simt_variant() { return "plain"; }
void simt_register_buffer(const void*, size_t, const char*, int) {}
void simt_unregister_buffer(const void*) {}
void simt_reset_counters() {}
size_t simt_counters(char* text, size_t capacity) {
  if (capacity > 2) memcpy(text, "[]", 3);
  return 2;
}
#endif
}
