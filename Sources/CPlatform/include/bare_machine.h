// The parts of bare x86-64 that a host process lacks: ports, control registers, descriptor tables, and the records in which the
// stub in boot/ hands over the image and each interrupt. The Kernel module alone uses it; a host build
// sees nothing of it.

#ifndef BARE_MACHINE_H
#define BARE_MACHINE_H

#if !__STDC_HOSTED__

#pragma clang assume_nonnull begin

// ---------------------------------------------------------------------------------------------
// Records shared with boot/*.asm

/// The interrupted state, as boot/interrupts.asm pushes it: lowest address first.
struct cp_trap_frame {
  uint64_t r15, r14, r13, r12, r11, r10, r9, r8;
  uint64_t rbp, rdi, rsi, rdx, rcx, rbx, rax;
  uint64_t vector;
  uint64_t error;  // as the processor pushed it, 0 for vectors without one
  uint64_t rip, cs, rflags, rsp, ss;
};
_Static_assert(sizeof(struct cp_trap_frame) == 22 * 8, "boot/interrupts.asm pushes 22 words");

/// Addresses `first` up to `end`, both at page boundaries.
struct cp_span {
  uint64_t first;
  uint64_t end;
};

/// One kernel stack of the image. The page right below `memory` is its guard.
enum { CP_STACK_BOOT = 0, CP_STACK_DOUBLE_FAULT = 1, CP_STACK_NMI = 2, CP_STACKS = 3 };

/// The parts of the image, as boot/entry.asm lists them. Addresses are virtual unless said otherwise.
struct cp_image {
  uint64_t virtual_offset;          // 0: virtual less physical address, for all but `boot`
  struct cp_span physical;          // 8: the whole image, physical
  struct cp_span boot;              // 24: the stub and its page tables, physical; not needed after boot
  struct cp_span stacks;            // 40: stacks and guard pages
  struct cp_span text;              // 56: execute and read
  struct cp_span rodata;            // 72: read
  struct cp_span data;              // 88: read and write: .data and .bss
  struct cp_span symbols;           // 104: read: names of functions and of traps
  struct cp_span stack[CP_STACKS];  // 120: without their guards, which are the pages below
  uint64_t vectors;                 // 168: 256 interrupt entries, 16 bytes apart
  uint64_t interrupt_return;        // 176: where a handler returns to, `struct cp_trap_frame` above
  uint64_t interrupt_table;         // 184: space for 256 gates
  uint64_t processor;               // 192: struct cp_processor_block of processor 0
  uint64_t boot_information;        // 200: space for struct cp_boot_information
  uint64_t storage;                 // 208: struct cp_kernel_storage
  struct cp_span trampoline;        // 216: where a processor begins, physical, to be copied
  uint64_t processor_start;         // 232: struct cp_processor_start, physical
  uint64_t thread_entry;            // 240: where a new thread begins
};
_Static_assert(sizeof(struct cp_image) == 248, "boot/entry.asm lists 31 words");
_Static_assert(sizeof(struct cp_boot_information) == 2232 + 1024 * 24, "boot/entry.asm reserves this much space");

/// Bytes that are kept of the message of a Swift trap.
enum { CP_TRAP_MESSAGE = 256 };

/// The state of one processor: the words behind gs, its descriptor tables, its statistics.
struct cp_processor_block {
  struct cp_processor processor;
  uint64_t segments[6];      // null, code, data, null, task state (two words)
  uint8_t task_state[104];   // SDM vol. 3A, 64-bit TSS
  uint32_t identity;         // of its local APIC
  uint32_t reserved;
  void *_Nullable idle;      // its idle thread
  uint64_t switched;         // cycles at the last switch of threads
  uint64_t switches;
  uint64_t idle_cycles;
  uint64_t beats;            // ticks of its own timer
  uint64_t interrupts;       // all that it has handled
  uint64_t neighbours_beats; // those of the next processor, as last seen
  uint64_t neighbours_since; // own ticks since they changed
  void *_Nullable work;      // work for its next interrupt of InterruptWork
  struct cp_stopped {        // where it was when another reported a fault
    uint64_t rip;
    uint64_t rbp;
    uint32_t state;          // OtherProcessors.State
  } stopped;
  uint32_t trap_length;      // bytes of trap_message
  uint8_t trap_message[CP_TRAP_MESSAGE];  // the message of a Swift trap: TrapMessage
  struct cp_lock_waits waits;
};
_Static_assert(sizeof(struct cp_processor_block) <= 8192, "boot/entry.asm reserves this much space");

/// Notes that the idle thread of a processor runs from now on.
CP_INLINE void cp_begin_idle(struct cp_processor_block *block, uint64_t now) { block->switched = now; }

/// The cycles that a processor has been idle, those since its last switch included while it is idle.
CP_INLINE uint64_t cp_idle_cycles_of(const volatile struct cp_processor_block *block) {
  while (1) {
    uint64_t switches = block->switches, sum = block->idle_cycles, since = block->switched;
    int is_idle = block->processor.thread == block->idle;
    // The processor has switched during that, so the words do not belong together.
    if (block->switches != switches) continue;
    uint64_t now = cp_cycles();
    return is_idle && now > since ? sum + (now - since) : sum;
  }
}

CP_INLINE uint32_t *cp_stopped_state(struct cp_processor_block *block) { return &block->stopped.state; }
CP_INLINE uint8_t *cp_trap_message(struct cp_processor_block *block) { return block->trap_message; }
CP_INLINE struct cp_lock_waits *cp_lock_waits_of(struct cp_processor_block *block) { return &block->waits; }

enum { CP_PROCESSORS = 64, CP_SLEEPERS = 64 };

/// A request of one processor to others, in memory of its own: read by those whose bit is set in `pending`.
struct cp_message {
  uint64_t pending;
  const struct cp_page_run *_Nullable runs;  // pages to invalidate, or none
  uint64_t count;
  void (*_Nullable body)(void *);            // the function to run
  void *_Nullable argument;
  uint64_t padding[3];                       // a cache line each
};
_Static_assert(sizeof(struct cp_message) == 64, "a cache line");

/// The record that a processor that is started reads (boot/processors.asm).
struct cp_processor_start {
  uint64_t ticket;      // StartTicket
  uint64_t root;        // CR3
  uint64_t control;     // CR4
  uint64_t attributes;  // the page attribute table
  uint64_t stack;
  uint64_t block;
};
_Static_assert(sizeof(struct cp_processor_start) == 48, "boot/processors.asm lays it out");

/// Switches from the running thread to another: stores the stack pointer in `saved` and loads `stack`.
void cp_switch(uint64_t *saved, uint64_t stack);

/// Bytes for the memory subsystem's copy of the firmware's map.
enum { CP_WORKSPACE = 49152 };

/// Buffers of the kernel that are too large to be fields of anything. Zeroes at boot.
struct cp_kernel_storage {
  uint8_t workspace[CP_WORKSPACE];  // Assembly
  uint8_t serial_input[8192];  // a ring: SerialPort
  uint64_t processors[CP_PROCESSORS];  // struct cp_processor_block of each
  struct cp_message messages[CP_PROCESSORS];
  uint64_t sleepers[CP_SLEEPERS];  // Scheduler: threads
  uint8_t acpi_root[40];       // a copy of the ACPI root pointer: BootRecord
};
_Static_assert(sizeof(struct cp_kernel_storage) <= 65536, "boot/entry.asm reserves this much space");

CP_INLINE uint8_t *cp_workspace(struct cp_kernel_storage *storage) { return storage->workspace; }
CP_INLINE uint8_t *cp_serial_input(struct cp_kernel_storage *storage) { return storage->serial_input; }
CP_INLINE uint64_t *cp_processors(struct cp_kernel_storage *storage) { return storage->processors; }
CP_INLINE struct cp_message *cp_messages(struct cp_kernel_storage *storage) { return storage->messages; }
CP_INLINE uint64_t *cp_sleepers(struct cp_kernel_storage *storage) { return storage->sleepers; }
CP_INLINE uint8_t *cp_acpi_root(struct cp_kernel_storage *storage) { return storage->acpi_root; }

CP_INLINE uint64_t *cp_segments(struct cp_processor_block *block) { return block->segments; }
CP_INLINE uint8_t *cp_task_state(struct cp_processor_block *block) { return block->task_state; }

/// The operand of `lgdt` and `lidt`.
struct __attribute__((packed)) cp_table_register {
  uint16_t limit;
  uint64_t base;
};

/// Loads both tables, the task register, and every segment register (boot/interrupts.asm). The base
/// of gs survives.
void cp_load_tables(const struct cp_table_register *segments, const struct cp_table_register *interrupts);

// ---------------------------------------------------------------------------------------------
// Page faults

typedef enum __attribute__((enum_extensibility(closed))) cp_access : uint8_t {
  cp_access_read,
  cp_access_write,
} cp_access;

typedef enum __attribute__((enum_extensibility(closed))) cp_fault_outcome : uint8_t {
  cp_fault_outcome_resolved,  // the access can be made now
  cp_fault_outcome_failed,    // it can't, and `text` says why
  cp_fault_outcome_not_mine,  // the address is not pageable
} cp_fault_outcome;

/// The outcome of a page fault.
struct cp_fault_answer {
  cp_fault_outcome outcome;
  uint32_t count;  // bytes of `text`
  const uint8_t *_Nullable text;
};

/// Reads or writes 8 bytes at an address that may fault; answers whether it succeeded (boot/memory.asm).
bool cp_try_load(uint64_t address, uint64_t *value);
bool cp_try_store(uint64_t address, uint64_t value);
/// Reads the 512 words of a page likewise, in one instruction that continues where it faulted.
bool cp_try_load_page(uint64_t address, uint64_t *words);

/// An instruction that may fault, and the address at which to continue if it fails.
struct cp_recovery {
  uint64_t access;
  uint64_t landing;
};

extern const struct cp_recovery cp_recoveries[];
extern const struct cp_recovery cp_recoveries_end[];

/// Returns the address at which to continue when the instruction at `rip` has failed, or 0 if no code expects that.
CP_INLINE uint64_t cp_recovery(uint64_t rip) {
  for (const struct cp_recovery *r = cp_recoveries; r != cp_recoveries_end; r++) {
    if (r->access == rip) return r->landing;
  }
  return 0;
}

// ---------------------------------------------------------------------------------------------
// Instructions

/// A register of a device in memory.
CP_INLINE uint32_t cp_read32(uint64_t address) { return *(volatile uint32_t *)(uintptr_t)address; }
CP_INLINE void cp_write32(uint64_t address, uint32_t value) { *(volatile uint32_t *)(uintptr_t)address = value; }

CP_INLINE void cp_out8(uint16_t port, uint8_t value) {
  __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

CP_INLINE uint8_t cp_in8(uint16_t port) {
  uint8_t value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}

CP_INLINE void cp_interrupts_enable(void) { __asm__ volatile("sti" : : : "memory"); }

/// Switches interrupts on and stops until one has been handled: none can slip in between.
CP_INLINE void cp_enable_and_wait(void) { __asm__ volatile("sti\n\thlt" : : : "memory"); }

/// Stops. Only an NMI brings it back.
CP_INLINE void cp_halt(void) { __asm__ volatile("cli\n\thlt" : : : "memory"); }

CP_INLINE uint64_t cp_read_cr0(void) { uint64_t v; __asm__ volatile("movq %%cr0, %0" : "=r"(v)); return v; }
CP_INLINE uint64_t cp_read_cr2(void) { uint64_t v; __asm__ volatile("movq %%cr2, %0" : "=r"(v)); return v; }
CP_INLINE uint64_t cp_read_cr3(void) { uint64_t v; __asm__ volatile("movq %%cr3, %0" : "=r"(v)); return v; }
CP_INLINE uint64_t cp_read_cr4(void) { uint64_t v; __asm__ volatile("movq %%cr4, %0" : "=r"(v)); return v; }

CP_INLINE void cp_write_cr0(uint64_t v) { __asm__ volatile("movq %0, %%cr0" : : "r"(v) : "memory"); }
CP_INLINE void cp_write_cr3(uint64_t v) { __asm__ volatile("movq %0, %%cr3" : : "r"(v) : "memory"); }
CP_INLINE void cp_write_cr4(uint64_t v) { __asm__ volatile("movq %0, %%cr4" : : "r"(v) : "memory"); }

CP_INLINE uint64_t cp_read_msr(uint32_t number) {
  uint32_t low, high;
  __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
  return ((uint64_t)high << 32) | low;
}

CP_INLINE void cp_write_msr(uint32_t number, uint64_t value) {
  __asm__ volatile("wrmsr" : : "c"(number), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

/// Makes all earlier stores visible before a later write to a model-specific register that sends a message (Intel SDM
/// vol. 3A, 11.12.3).
CP_INLINE void cp_fence_messages(void) { __asm__ volatile("mfence\n\tlfence" : : : "memory"); }

struct cp_cpuid {
  uint32_t eax, ebx, ecx, edx;
};

CP_INLINE struct cp_cpuid cp_cpuid(uint32_t leaf, uint32_t subleaf) {
  struct cp_cpuid r;
  __asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(subleaf));
  return r;
}

/// Invalidates all translations of this processor, global ones too (Intel SDM vol. 3A, 4.10.4.1): a change of
/// CR4.PGE does; where there are no global pages, loading CR3.
CP_INLINE void cp_invalidate_all(void) {
  uint64_t control = cp_read_cr4();
  if (control & 0x80u) {
    __asm__ volatile("movq %0, %%cr4" : : "r"(control & ~0x80ull) : "memory");
    __asm__ volatile("movq %0, %%cr4" : : "r"(control) : "memory");
  } else {
    __asm__ volatile("movq %0, %%cr3" : : "r"(cp_read_cr3()) : "memory");
  }
}

/// Makes the compiler assume that `value` is read.
CP_INLINE void cp_keep(void *value) { __asm__ volatile("" : : "r"(value) : "memory"); }

/// Writes a byte's own value to it: harmless unless the write faults.
CP_INLINE void cp_touch(uint64_t address) { __asm__ volatile("orb $0, (%0)" : : "r"(address) : "memory", "cc"); }

/// Calls an address that may hold no code, to cause the fault that follows.
CP_INLINE void cp_call(uint64_t address) { __asm__ volatile("call *%0" : : "r"(address) : "memory"); }

/// Divides by zero, which the compiler would not generate.
CP_INLINE void cp_divide_by_zero(void) {
  __asm__ volatile("divl %0" : : "r"(0), "a"(1), "d"(0) : "cc");
}

/// Returns the frame pointer of the function into which this is inlined.
CP_INLINE uint64_t cp_frame_pointer(void) { return (uint64_t)(uintptr_t)__builtin_frame_address(0); }

#pragma clang assume_nonnull end

#endif
#endif
