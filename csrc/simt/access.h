// Every access of a kernel to memory, where it is compiled with SEGOPS_SIMT_RACE; nothing otherwise.
//
// The compiler tells ordinary accesses (-fsanitize=thread calls a function before each of them; access.cpp defines those
// functions, in place of the sanitizer's library); the functions behind the wrappers of device.cuh tell the others.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace segops::simt {

enum class Access : uint8_t {
  read,
  read_only,  // through the read-only path: wrong for memory that this launch writes
  write,
  atomic,
};

#ifdef SEGOPS_SIMT_RACE
// An access that the instruction with this return address makes; repeated where it was counted before.
void touch(const void* instruction, const void* address, size_t bytes, Access access, bool repeated = false);
// Whole accesses, of which the compiler does not tell as well.
void load_bytes(void* value, const void* address, size_t bytes);
void store_bytes(void* address, const void* value, size_t bytes);
void copy_bytes(void* to, const void* from, size_t bytes);
void fill_bytes(void* to, int value, size_t bytes);
#else
inline void touch(const void*, const void*, size_t, Access, bool = false) {}
inline void load_bytes(void* value, const void* address, size_t bytes) { memcpy(value, address, bytes); }
inline void store_bytes(void* address, const void* value, size_t bytes) { memcpy(address, value, bytes); }
#endif

}  // namespace segops::simt

// The compiler does not tell of calls to these either.
#if defined(SEGOPS_SIMT_RACE) && defined(__SANITIZE_THREAD__)
extern "C" inline
    __attribute__((__always_inline__, __gnu_inline__)) void* memcpy(void* __restrict to, const void* __restrict from,
                                                                    size_t bytes) noexcept {
  segops::simt::copy_bytes(to, from, bytes);
  return to;
}
extern "C" inline __attribute__((__always_inline__, __gnu_inline__)) void* memset(void* to, int value,
                                                                                  size_t bytes) noexcept {
  segops::simt::fill_bytes(to, value, bytes);
  return to;
}
#endif
