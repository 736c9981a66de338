// The platform interface between the core and the machine that it runs on: static inline primitives, one set for
// bare x86-64 and one for an ordinary process, and the C types that cross an upcall.
//
// Nothing here holds state of an instance: a processor's own words are the only state, reached by gs
// on bare metal and by thread-local storage on the host, in the same struct.

#ifndef CPLATFORM_H
#define CPLATFORM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if __STDC_HOSTED__
#include <sched.h>
#endif

#include "boot_information.h"

#pragma clang assume_nonnull begin

#define CP_INLINE static inline __attribute__((always_inline))

// ---------------------------------------------------------------------------------------------
// The words of one processor

enum { CP_LOCK_RANKS = 128 };

/// How often a processor had to wait for locks of each rank, and the most cycles that it waited.
struct cp_lock_waits {
  uint64_t count[CP_LOCK_RANKS];
  uint64_t longest[CP_LOCK_RANKS];
  uint64_t longest_hold[CP_LOCK_RANKS];  // while `measuring`
  uint64_t hold_site[CP_LOCK_RANKS];     // where that ended
};

CP_INLINE uint64_t *cp_wait_counts(struct cp_lock_waits *waits) { return waits->count; }
CP_INLINE uint64_t *cp_longest_waits(struct cp_lock_waits *waits) { return waits->longest; }
CP_INLINE uint64_t *cp_longest_holds(struct cp_lock_waits *waits) { return waits->longest_hold; }
CP_INLINE uint64_t *cp_hold_sites(struct cp_lock_waits *waits) { return waits->hold_site; }

/// The words that code may access without a lock, because only one processor can reach them.
struct cp_processor {
  struct cp_processor *self;       // 0: gs:0 gives the address of the block
  uint32_t index;                  // 8
  uint32_t held_rank;              // 12: rank of the innermost spin lock held, 0 for none
  uint32_t interrupts_off;         // 16: host only: the simulated interrupt flag, 1 is off
  uint32_t handling;               // 20: 1 while an interrupt handler runs here, whose depth is one more than a thread's
  void *_Nullable thread;          // 24: kernel only: the thread that runs here
  struct cp_lock_waits *_Nullable waits;  // 32: where waits for locks are counted, if anywhere
  uint32_t held_sleeping;          // 40: rank of the innermost sleeping lock that the thread here holds
  uint32_t measuring;              // 44: whether intervals with a spin lock held are measured
  uint64_t held_since;             // 48: cycles when the outermost spin lock was taken, 0 when not measured
  uint64_t longest_off;            // 56: the most cycles that interrupts were off, as far as that is measured
  uint32_t refused_rank;           // 64: rank of the lock that the order of locks forbids here, for the report
  uint32_t pins;                   // 68: page windows open here: while there are any, no other thread runs here
  uint64_t window_sites[2];        // 72: the code that last opened a page window, by depth
  /// Host only: called when interrupts are switched on again; null when nothing is pending.
  void (*_Nullable run_pending)(void *_Nullable context);
  void *_Nullable pending_context;
  /// Host only: called at each invalidation on this processor; null when no test models a TLB.
  void (*_Nullable invalidate)(void *_Nullable context, uint64_t address);
  void *_Nullable invalidate_context;
  /// Host only: answers the number of the frame that an access reaches by the translations that this processor caches of
  /// the tables at `root`, all ones when it faults. Null when no test models a TLB. Its context is that of `invalidate`.
  uint32_t (*_Nullable find_frame)(void *_Nullable context, uint64_t address, bool is_write);
  const void *_Nullable root;
  /// Host only: called, with `pending_context`, after this processor has claimed a word; null without such a test.
  void (*_Nullable report_claim)(void *_Nullable context, const void *word);
};

_Static_assert(offsetof(struct cp_processor, index) == 8, "gs:8");
_Static_assert(offsetof(struct cp_processor, held_rank) == 12, "gs:12");
_Static_assert(offsetof(struct cp_processor, handling) == 20, "gs:20");
_Static_assert(offsetof(struct cp_processor, thread) == 24, "gs:24");
_Static_assert(offsetof(struct cp_processor, pins) == 68, "gs:68");
_Static_assert(offsetof(struct cp_processor, window_sites) == 72, "gs:72");

#if __STDC_HOSTED__

extern _Thread_local struct cp_processor cp_this_processor __attribute__((tls_model("initial-exec")));

CP_INLINE struct cp_processor *cp_processor(void) { return &cp_this_processor; }
CP_INLINE uint32_t cp_processor_index(void) { return cp_this_processor.index; }

/// A number that no other running thread has; 0 before threads run.
CP_INLINE uintptr_t cp_thread_identity(void) { return (uintptr_t)&cp_this_processor; }

/// Rank of the innermost spin lock that this thread holds, 0 for none.
CP_INLINE uint32_t cp_held_rank(void) { return cp_this_processor.held_rank; }

/// Describes a code address of this program, of which only the low 30 bits are known: the function and the offset in it,
/// or the file and the offset in that. The text is valid until this thread calls again; null for an unknown address.
const char *_Nullable cp_code_name(uint32_t low_bits);

/// Switches interrupts off on this processor and returns what `cp_interrupts_restore` needs.
CP_INLINE uint64_t cp_interrupts_disable(void) {
  uint32_t before = cp_this_processor.interrupts_off;
  cp_this_processor.interrupts_off = 1;
  __asm__ volatile("" ::: "memory");
  return before;
}

CP_INLINE void cp_interrupts_restore(uint64_t before) {
  __asm__ volatile("" ::: "memory");
  cp_this_processor.interrupts_off = (uint32_t)before;
  if (__builtin_expect(cp_this_processor.run_pending != NULL, 0) && before == 0) {
    cp_this_processor.run_pending(cp_this_processor.pending_context);
  }
}

CP_INLINE bool cp_interrupts_enabled(void) { return cp_this_processor.interrupts_off == 0; }

/// Pauses inside a spin loop. `spins` counts the turns: on the host, where the holder of a lock may have been
/// preempted, a long wait yields the core.
CP_INLINE void cp_pause(uint32_t spins) {
  if (spins % 64 == 63) {
    sched_yield();
  } else {
    __builtin_ia32_pause();
  }
}

/// Invalidates the translation of one page on this processor.
CP_INLINE void cp_invalidate_page(uint64_t address) {
  if (cp_this_processor.invalidate != NULL) {
    cp_this_processor.invalidate(cp_this_processor.invalidate_context, address);
  }
}

/// Calls a test after this processor has changed `word`, by which it keeps other processors off, without a lock.
CP_INLINE void cp_claimed(const void *word) {
  if (__builtin_expect(cp_this_processor.report_claim != NULL, 0)) {
    cp_this_processor.report_claim(cp_this_processor.pending_context, word);
  }
}

/// Answers the physical address of the page tables by which this program's loads and stores are translated; all ones in
/// a host process, whose tables are none of the core's.
CP_INLINE uint64_t cp_loaded_root(void) { return UINT64_MAX; }

/// Keeps the running thread on this processor, and others from it, until as many calls of `cp_unpin`. From the next
/// instruction on, the processor's index is the thread's own.
CP_INLINE void cp_pin(void) {
  cp_this_processor.pins++;
  __asm__ volatile("" ::: "memory");
}

CP_INLINE void cp_unpin(void) {
  __asm__ volatile("" ::: "memory");
  cp_this_processor.pins--;
}

/// Whether this processor caches translations of the tables at `root`.
CP_INLINE bool cp_caches(const void *root) {
  return cp_this_processor.find_frame != NULL && cp_this_processor.root == root;
}

/// Answers the frame that an access reaches by them, all ones when it faults.
CP_INLINE uint32_t cp_reach(uint64_t address, bool is_write) {
  return cp_this_processor.find_frame(cp_this_processor.invalidate_context, address, is_write);
}

/// How often the running thread is pinned.
CP_INLINE uint32_t cp_pins(void) { return cp_this_processor.pins; }

/// 1 in an interrupt handler, 0 in a thread.
CP_INLINE uint32_t cp_handling(void) { return cp_this_processor.handling; }

/// Says whether an interrupt handler runs here from now on. Returns what was so before.
CP_INLINE uint32_t cp_set_handling(uint32_t handling) {
  uint32_t before = cp_this_processor.handling;
  cp_this_processor.handling = handling;
  return before;
}

/// Records the code that opens a page window at `depth`, for a report. The thread is pinned.
CP_INLINE void cp_note_window(uint32_t depth, uint64_t site) { cp_this_processor.window_sites[depth] = site; }
CP_INLINE uint64_t cp_window_site(uint32_t depth) { return cp_this_processor.window_sites[depth]; }

#else

CP_INLINE struct cp_processor *cp_processor(void) {
  struct cp_processor *self;
  __asm__ volatile("movq %%gs:0, %0" : "=r"(self));
  return self;
}

CP_INLINE uint32_t cp_processor_index(void) {
  uint32_t index;
  __asm__ volatile("movl %%gs:8, %0" : "=r"(index));
  return index;
}

// One instruction, as a thread that holds no lock may be moved to another processor behind any.
CP_INLINE uint32_t cp_held_rank(void) {
  uint32_t rank;
  __asm__ volatile("movl %%gs:12, %0" : "=r"(rank));
  return rank;
}

/// Returns the running thread: the caller, on any processor.
CP_INLINE void *_Nullable cp_current_thread(void) {
  void *thread;
  __asm__ volatile("movq %%gs:24, %0" : "=r"(thread));
  return thread;
}

CP_INLINE uintptr_t cp_thread_identity(void) { return (uintptr_t)cp_current_thread(); }

CP_INLINE uint64_t cp_interrupts_disable(void) {
  uint64_t flags;
  __asm__ volatile("pushfq\n\tpopq %0\n\tcli" : "=r"(flags) : : "memory");
  return flags;
}

CP_INLINE void cp_interrupts_restore(uint64_t flags) {
  if (flags & 0x200u) {
    __asm__ volatile("sti" : : : "memory");
  } else {
    __asm__ volatile("" : : : "memory");
  }
}

CP_INLINE bool cp_interrupts_enabled(void) {
  uint64_t flags;
  __asm__ volatile("pushfq\n\tpopq %0" : "=r"(flags) : : "memory");
  return (flags & 0x200u) != 0;
}

CP_INLINE void cp_pause(uint32_t spins) {
  (void)spins;
  __builtin_ia32_pause();
}

CP_INLINE void cp_invalidate_page(uint64_t address) {
  __asm__ volatile("invlpg (%0)" : : "r"(address) : "memory");
}

CP_INLINE void cp_claimed(const void *word) { (void)word; }

CP_INLINE uint64_t cp_loaded_root(void) {
  uint64_t root;
  __asm__ volatile("movq %%cr3, %0" : "=r"(root));
  return root & 0x000ffffffffff000ull;
}

CP_INLINE bool cp_caches(const void *root) {
  (void)root;
  return false;
}

CP_INLINE uint32_t cp_reach(uint64_t address, bool is_write) {
  (void)address;
  (void)is_write;
  return UINT32_MAX;
}

CP_INLINE void cp_pin(void) { __asm__ volatile("incl %%gs:68" : : : "memory", "cc"); }

CP_INLINE void cp_unpin(void) { __asm__ volatile("decl %%gs:68" : : : "memory", "cc"); }

CP_INLINE uint32_t cp_pins(void) {
  uint32_t pins;
  __asm__ volatile("movl %%gs:68, %0" : "=r"(pins));
  return pins;
}

CP_INLINE uint32_t cp_handling(void) {
  uint32_t handling;
  __asm__ volatile("movl %%gs:20, %0" : "=r"(handling));
  return handling;
}

CP_INLINE uint32_t cp_set_handling(uint32_t handling) {
  __asm__ volatile("xchgl %0, %%gs:20" : "+r"(handling) : : "memory");
  return handling;
}

CP_INLINE void cp_note_window(uint32_t depth, uint64_t site) {
  __asm__ volatile("movq %0, %%gs:72(, %1, 8)" : : "r"(site), "r"((uint64_t)depth) : "memory");
}

CP_INLINE uint64_t cp_window_site(uint32_t depth) {
  uint64_t site;
  __asm__ volatile("movq %%gs:72(, %1, 8), %0" : "=r"(site) : "r"((uint64_t)depth));
  return site;
}

#endif

/// A counter that only rises: cycles, or instructions under QEMU's `-icount shift=0`.
CP_INLINE uint64_t cp_cycles(void) {
  uint32_t low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
  return ((uint64_t)high << 32) | low;
}

/// Returns the address of the code into which this is inlined: a call site that costs one instruction.
CP_INLINE uint64_t cp_here(void) {
  uint64_t here;
  __asm__ volatile("leaq 0(%%rip), %0" : "=r"(here));
  return here;
}

/// Stops by an invalid instruction, with no text: for a token that is dropped. The compiler emits the end of a Swift value
/// late, where a text would allocate.
CP_INLINE void cp_trap(void) { __builtin_trap(); }

/// Returns the return address of the enclosing function.
CP_INLINE uint64_t cp_return_address(void) { return (uint64_t)(uintptr_t)__builtin_return_address(0); }

/// Returns the same pointer, and hides it and its memory from the compiler: the allocations of a benchmark are not
/// optimised away.
CP_INLINE void *cp_opaque(void *pointer) {
  __asm__ volatile("" : "+r"(pointer) : : "memory");
  return pointer;
}

/// Returns the same number, and hides it from the compiler.
CP_INLINE uint64_t cp_opaque_number(uint64_t number) {
  __asm__ volatile("" : "+r"(number));
  return number;
}

/// Whether the compiler knows `number` where this call is inlined. A test of it costs nothing at run time.
CP_INLINE bool cp_is_constant(uint64_t number) { return __builtin_constant_p(number); }

/// Writes back and drops one cache line (SDM vol. 2A, CLFLUSH).
/// In assembly, because the compiler's own function requires SSE2, which the kernel does not enable.
CP_INLINE void cp_flush_line(const void *address) {
  __asm__ volatile("clflush (%0)" : : "r"(address) : "memory");
}

// ---------------------------------------------------------------------------------------------
// Answers that cross an upcall

/// How a sleep ended.
typedef enum __attribute__((enum_extensibility(closed))) cp_wake : uint8_t {
  cp_wake_woken,     // the queue was woken, or had been before the sleep began
  cp_wake_deadline,  // the deadline passed
  cp_wake_never,     // nothing on this machine could ever wake the sleeper
} cp_wake;

/// The kind of event that a sleeper waits for. It decides whether the sleep may be refused when no processor can wake it.
typedef enum __attribute__((enum_extensibility(closed))) cp_wait_kind : uint8_t {
  cp_wait_kind_memory,     // memory or address space: the sleeper can be refused
  cp_wait_kind_thread,     // an act of a thread of this machine: a released lock, a page no longer busy, new work
  cp_wait_kind_interrupt,  // an event that an interrupt may cause at any time: the machine may still go on
} cp_wait_kind;

/// The outcome of a new value for a tunable.
typedef enum __attribute__((enum_extensibility(closed))) cp_setting : uint8_t {
  cp_setting_accepted,
  cp_setting_out_of_range,
  cp_setting_read_only,
} cp_setting;

/// Every page that there is.
static const uint64_t CP_ALL_PAGES = 1ull << 52;

/// Pages whose translations are to be invalidated: `count` from `address` on, or CP_ALL_PAGES.
struct cp_page_run {
  uint64_t address;
  uint64_t count;
};

/// A thread to be started.
struct cp_thread_request {
  const uint8_t *name;  // static
  uint32_t name_length;
  /// It works for others and waits for work until it is asked to end: no thread has to wake it.
  bool is_service;
  /// Processors that it may run on, a bit each.
  uint64_t processors;
  void (*body)(void *_Nullable argument);
  void *_Nullable argument;
};

// ---------------------------------------------------------------------------------------------
// Block devices

enum { CP_BLOCK_PAGES = 32 };

typedef enum __attribute__((enum_extensibility(closed))) cp_block_operation : uint8_t {
  cp_block_operation_read,
  cp_block_operation_write,
} cp_block_operation;

/// A request to a block device, in memory of the caller; the device owns it from `submit` to `report_done`.
struct cp_block_request {
  struct cp_block_request *_Nullable next;  // the device's, while it has the request
  uint64_t device_word;                     // the device's, while it has the request
  uint64_t first;                           // page of the device
  uint32_t count;                           // pages, 1 to CP_BLOCK_PAGES
  cp_block_operation operation;
  bool failed;                              // set by the device before it calls `report_done`
  uint32_t frames[CP_BLOCK_PAGES];          // where each page is read to or written from
  /// Called once, later than `submit` returns, with no lock held, perhaps by an interrupt handler: it
  /// may take spin locks and wake, not sleep.
  void (*_Nullable report_done)(void *_Nullable context, struct cp_block_request *request);
  void *_Nullable context;
};

CP_INLINE uint32_t *cp_block_frames(struct cp_block_request *request) { return request->frames; }

// ---------------------------------------------------------------------------------------------
// The state of an executive, as it describes itself

typedef enum __attribute__((enum_extensibility(closed))) cp_thread_state : uint8_t {
  cp_thread_state_ready,
  cp_thread_state_running,
  cp_thread_state_sleeping,
  cp_thread_state_ended,
} cp_thread_state;

struct cp_thread_row {
  uint32_t number;
  uint32_t processor;    // where it runs, or ran last
  cp_thread_state state;
  bool is_service;
  bool is_idle;
  uint8_t name_length;
  uint8_t name[32];
  uint64_t stack_used;   // bytes that were ever in use
  uint64_t stack_size;
  uint64_t runs;         // how often it was scheduled
  uint64_t cycles;       // in all turns that have ended
  uint64_t deadline;     // tick until which it sleeps, all ones for none
  const uint8_t *_Nullable waits_for;  // static and ended by a zero, while it sleeps
};

/// Processors of the firmware's list that do not run, by the reason.
struct cp_left_out {
  uint32_t mute;            // did not answer
  uint32_t unreachable;     // by the local APIC that there is
  uint32_t surplus;         // beyond as many as may run
  uint32_t without_memory;
};

/// Rank of the innermost sleeping lock that the thread here holds, 0 for none. Interrupts are off.
CP_INLINE uint32_t cp_held_sleeping(void) { return cp_processor()->held_sleeping; }

/// Rank of the lock that the order of locks forbids on this processor, for the report; 0 for none.
CP_INLINE uint32_t cp_refused_rank(void) { return cp_processor()->refused_rank; }
CP_INLINE void cp_refuse_rank(uint32_t rank) { cp_processor()->refused_rank = rank; }

struct cp_processor_row {
  uint32_t identity;     // of its local APIC
  uint32_t held_rank;    // of the innermost spin lock that it holds at this moment, or 0
  uint8_t name_length;   // of the thread that runs there
  uint8_t name[32];
  uint64_t switches;
  uint64_t interrupts;
  uint64_t idle_cycles;
  uint64_t longest_off;  // most cycles with interrupts off that were seen, while that is measured
  struct cp_left_out left_out;  // the same on each row
};

/// Waits for locks of one rank, on all processors.
struct cp_lock_row {
  uint64_t waits;
  uint64_t longest_wait;
  uint64_t longest_hold;  // while that is measured
  uint64_t hold_site;     // the code that ended it
};

CP_INLINE uint8_t *cp_thread_name(struct cp_thread_row *row) { return row->name; }
CP_INLINE uint8_t *cp_processor_name(struct cp_processor_row *row) { return row->name; }

/// The functions of the executive, or of a host process in its place, for the core. `context` comes first in
/// every call. No call is made with a spin lock held, except `report_fault` on the way to a stop.
struct cp_upcalls {
  void *_Nullable context;
  /// Reports a `FaultReport` (layer 1). Returns only in a test that examines the state afterwards.
  void (*report_fault)(void *_Nullable context, const void *report);
  /// Answers the tick count, which only rises.
  uint64_t (*read_tick)(void *_Nullable context);
  /// Makes every processor invalidate `count` runs of pages; returns when all have.
  void (*shoot_down)(void *_Nullable context, const struct cp_page_run *runs, uint32_t count);
  /// Runs `body` on another processor, or on this one, with interrupts off; returns when it has run.
  void (*run_on)(void *_Nullable context, uint32_t processor, void (*body)(void *), void *argument);
  /// Sleeps until `*sequence` differs from `seen` or the tick reaches `deadline`. `what`, static and ended by a
  /// zero, names the event. When no processor can wake any sleeper, sleeps of kind `memory` are refused, one at a time,
  /// because the next steps of that thread may wake the others.
  cp_wake (*sleep)(
      void *_Nullable context, const uint64_t *sequence, uint64_t seen, uint64_t deadline, cp_wait_kind kind,
      const uint8_t *what);
  /// Wakes the threads that sleep on `sequence`, which has changed. Interrupt handlers may call it.
  void (*wake)(void *_Nullable context, const uint64_t *sequence);
  /// Starts a thread and answers its handle, or 0 when no thread is left.
  uint64_t (*_Nullable start)(void *_Nullable context, const struct cp_thread_request *request);
  /// Waits until the body of a thread has returned. Once for each thread.
  void (*_Nullable join)(void *_Nullable context, uint64_t thread);
  /// Lets this thread run only on some processors, a bit each, and answers those before. It runs on one of them when
  /// the call returns. Null on a machine whose threads stay on their processors.
  uint64_t (*_Nullable confine)(void *_Nullable context, uint64_t processors);
};

#pragma clang assume_nonnull end

#include "bare_machine.h"

#endif
