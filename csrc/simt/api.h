// The C interface of the host execution, for drivers in C++ and for ctypes.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define SIMT_EXPORT __attribute__((visibility("default")))

extern "C" {

// uniform, warp, priority or last (schedule.h). Nonzero for another name. At the start SEGOPS_SIMT_SCHEDULE and
// SEGOPS_SIMT_SEED decide, else uniform and 1. The same settings make the same orders.
SIMT_EXPORT int simt_set_schedule(const char* mode, uint64_t seed);

// What went wrong in the last launch; empty if nothing did. Good until the next launch.
SIMT_EXPORT const char* simt_last_report();

// "plain", or "race" where accesses are checked and counted. The rest does nothing in a plain build.
SIMT_EXPORT const char* simt_variant();

// Global memory that kernels may use. As soon as one buffer is registered, an access to anything else is an error.
SIMT_EXPORT void simt_register_buffer(const void* data, size_t bytes, const char* name, int writable);
SIMT_EXPORT void simt_unregister_buffer(const void* data);

// Counts of each kernel since the last reset, as JSON. Writes at most `capacity` bytes with the closing zero; returns the
// length of the whole text.
SIMT_EXPORT void simt_reset_counters();
SIMT_EXPORT size_t simt_counters(char* text, size_t capacity);
}
