// Contexts: a thread that goes on at another place, on another stack.
//
// The C library's longjmp refuses to leave a stack for another where it is compiled with
// _FORTIFY_SOURCE, and its swapcontext makes system calls, which takes ten times as long as all the
// rest. So the switch is our own where we know the processor: save the registers that a function
// must preserve, change the stack pointer, restore. Elsewhere it is swapcontext.
#pragma once

#if defined(__APPLE__) && !defined(_XOPEN_SOURCE)
#define _XOPEN_SOURCE 700
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

// AddressSanitizer follows swapcontext and nothing else.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RSK_SWAPCONTEXT
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || !defined(__ELF__)
#define RSK_SWAPCONTEXT
#endif

#if defined(__x86_64__) && defined(__LP64__) && !defined(RSK_SWAPCONTEXT)
#define RSK_SWITCH                                                                    \
  "endbr64\n" /* the target of an indirect call, should one be made of the call */    \
  "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"          \
  "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"                                              \
  "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n"               \
  "ret\n"
#elif defined(__aarch64__) && defined(__LP64__) && !defined(RSK_SWAPCONTEXT)
#define RSK_SWITCH                                                                    \
  "hint #34\n" /* bti c: as above */                                                  \
  "stp x19, x20, [sp, #-160]!\n stp x21, x22, [sp, #16]\n stp x23, x24, [sp, #32]\n" \
  "stp x25, x26, [sp, #48]\n stp x27, x28, [sp, #64]\n stp x29, x30, [sp, #80]\n"    \
  "stp d8, d9, [sp, #96]\n stp d10, d11, [sp, #112]\n stp d12, d13, [sp, #128]\n"    \
  "stp d14, d15, [sp, #144]\n mov x9, sp\n str x9, [x0]\n mov sp, x1\n"              \
  "ldp d14, d15, [sp, #144]\n ldp d12, d13, [sp, #128]\n ldp d10, d11, [sp, #112]\n" \
  "ldp d8, d9, [sp, #96]\n ldp x29, x30, [sp, #80]\n ldp x27, x28, [sp, #64]\n"      \
  "ldp x25, x26, [sp, #48]\n ldp x23, x24, [sp, #32]\n ldp x21, x22, [sp, #16]\n"    \
  "ldp x19, x20, [sp], #160\n"                                                        \
  "ret\n"
#endif

#if defined(RSK_SWITCH)
asm(".pushsection .text\n"
    ".weak rsk_switch_stack\n .hidden rsk_switch_stack\n .type rsk_switch_stack, %function\n"
    ".balign 16\n"
    "rsk_switch_stack:\n" RSK_SWITCH
    ".size rsk_switch_stack, . - rsk_switch_stack\n"
    ".popsection\n");
// Save the registers on this stack and its top in *from; go on with those that are saved at to.
extern "C" __attribute__((visibility("hidden"))) void rsk_switch_stack(void** from, void* to);
#endif

namespace emulator {

struct Context {
  void* top = nullptr;  // of its stack, where it waits
  ucontext_t general;   // the same for swapcontext
};

// Whether the processor keeps a second stack of return addresses, Intel's shadow stack or Arm's
// guarded control stack. A program cannot leave that one as simply; the C library knows how.
inline bool has_shadow_stack() {
  uint64_t answer = 0;  // and these instructions leave it so where they mean nothing
#if defined(RSK_SWITCH) && defined(__x86_64__)
  asm volatile("rdsspq %0" : "+r"(answer));
#elif defined(RSK_SWITCH)
  asm volatile("mov x16, #1\n hint #40\n eor %0, x16, #1" : "=r"(answer) : : "x16");  // chkfeat
#endif
  return answer != 0;
}

inline bool switches_itself() {
#if defined(RSK_SWITCH)
  static const bool can = !has_shadow_stack();
  return can;
#else
  return false;
#endif
}

// Leave this place, remembered in from, and go on where to waits.
inline void go_on(Context& from, Context& to) {
#if defined(RSK_SWITCH)
  if (switches_itself()) return rsk_switch_stack(&from.top, to.top);
#endif
  swapcontext(&from.general, &to.general);
}

// Let a context wait at the beginning of a function, which never returns, on a stack of its own.
inline void prepare(Context& context, char* stack, size_t bytes, void (*function)()) {
  if (switches_itself()) {
    // A stack as rsk_switch_stack leaves it: zeros for the registers, but for the one that it
    // returns to. On x86 a word more puts the top where a call would.
#if defined(__aarch64__)
    constexpr size_t saved = 20, address = 11;  // words, and that of x30
#else
    constexpr size_t saved = 8, address = 6;
#endif
    context.top = stack + bytes - saved * sizeof(void*);
    memset(context.top, 0, saved * sizeof(void*));
    ((void**)context.top)[address] = (void*)function;
    return;
  }
  getcontext(&context.general);
  context.general.uc_stack.ss_sp = stack;
  context.general.uc_stack.ss_size = bytes;
  context.general.uc_link = nullptr;
  makecontext(&context.general, function, 0);
}

}  // namespace emulator
