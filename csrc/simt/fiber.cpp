#include "fiber.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef SEGOPS_SIMT_UCONTEXT
extern "C" void segops_simt_switch(void** save_stack_pointer, void* stack_pointer);
#ifdef __x86_64__
asm(R"(
  .text
  .hidden segops_simt_switch
  .globl segops_simt_switch
  .type segops_simt_switch, @function
segops_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size segops_simt_switch, .-segops_simt_switch
)");
#else
asm(R"(
  .text
  .hidden segops_simt_switch
  .globl segops_simt_switch
  .type segops_simt_switch, %function
segops_simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size segops_simt_switch, .-segops_simt_switch
)");
#endif
#endif

namespace segops::simt {

void Fiber::prepare(void (*entry)()) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(low_, bytes_);  // whoever ran here may have been left in the middle of a function
#endif
#ifdef SEGOPS_SIMT_UCONTEXT
  getcontext(&context_);
  context_.uc_stack.ss_sp = low_;
  context_.uc_stack.ss_size = bytes_;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#elif defined(__x86_64__)
  // As if `entry` had been called: the stack pointer is 8 below a multiple of 16.
  auto* top = reinterpret_cast<void**>(low_ + bytes_) - 2;
  top[1] = nullptr;
  top[0] = reinterpret_cast<void*>(entry);
  for (int i = 1; i <= 6; ++i) top[-i] = nullptr;
  stack_pointer_ = top - 6;
#else
  auto* frame = reinterpret_cast<void**>(low_ + bytes_) - 20;
  for (int i = 0; i < 20; ++i) frame[i] = nullptr;
  frame[11] = reinterpret_cast<void*>(entry);  // x30, the return address
  stack_pointer_ = frame;
#endif
}

void Fiber::adopt_thread() {
#ifdef __SANITIZE_ADDRESS__
  pthread_attr_t attributes;
  void* low = nullptr;
  size_t bytes = 0;
  if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
    pthread_attr_getstack(&attributes, &low, &bytes);
    pthread_attr_destroy(&attributes);
  }
  set_stack(static_cast<char*>(low), bytes);
#endif
}

void Fiber::started() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void Fiber::switch_to(Fiber& from, Fiber& to, [[maybe_unused]] bool from_is_over) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(from_is_over ? nullptr : &from.fake_stack_, to.low_, to.bytes_);
#endif
#ifdef SEGOPS_SIMT_UCONTEXT
  swapcontext(&from.context_, &to.context_);
#else
  segops_simt_switch(&from.stack_pointer_, to.stack_pointer_);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

char* new_stack(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) abort();
  return static_cast<char*>(memory) + page;
}

}  // namespace segops::simt
