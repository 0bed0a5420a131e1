// Fibers: stacks of their own that one thread runs in turn. A switch saves the registers that calls preserve, in assembly on
// x86-64 and arm64 (11 ns; swapcontext takes 490, it asks the system about signals).
#pragma once
#include <stddef.h>

#if !defined(SEGOPS_SIMT_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define SEGOPS_SIMT_UCONTEXT
#endif
#ifdef SEGOPS_SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace segops::simt {

class Fiber {
 public:
  // Gives a fiber that is not running a fresh start at `entry`, which calls started() first and never returns.
  void prepare(void (*entry)());
  // The calling thread's own stack, to come back to.
  void adopt_thread();
  static void started();
  // Leaves `from`; returns when something switches to it again.
  static void switch_to(Fiber& from, Fiber& to, bool from_is_over = false);

  void set_stack(char* low, size_t bytes) { low_ = low, bytes_ = bytes; }
  const char* low() const { return low_; }
  const char* high() const { return low_ + bytes_; }

 private:
#ifdef SEGOPS_SIMT_UCONTEXT
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  char* low_ = nullptr;
  size_t bytes_ = 0;
};

// A stack for a fiber, for good: below it lies a page that cannot be touched.
char* new_stack(size_t bytes);

}  // namespace segops::simt
