// The loader's data in one record, the same for both ways to boot (multiboot2 and PVH).
// Kernel/Boot/BootRecord.swift fills it in before any other code may write to memory; boot/entry.asm reserves
// space for it, and both compare its size.

#ifndef BOOT_INFORMATION_H
#define BOOT_INFORMATION_H

#include <stddef.h>
#include <stdint.h>

enum { CP_BOOT_VERSION = 1, CP_BOOT_RANGES = 1024, CP_BOOT_MODULES = 8, CP_BOOT_LINE = 2048 };

typedef enum __attribute__((enum_extensibility(closed))) cp_loader : uint32_t {
  cp_loader_multiboot2 = 1,
  cp_loader_pvh = 2,
} cp_loader;

/// A range of the firmware's map as it came: any order, any alignment. `type` as ACPI's E820 has it:
/// 1 is usable memory, 3 ACPI tables that may be reclaimed, every other range is not ours. The carve-out
/// for a RAM disk is a range of its own, of a type that ACPI leaves to the builder of the machine.
static const uint32_t cp_boot_type_ram_disk = 0xf0000001u;

struct cp_boot_range {
  uint64_t base;
  uint64_t length;
  uint32_t type;
  uint32_t attributes;
};

/// A file that the loader put into memory.
struct cp_boot_module {
  uint64_t base;
  uint64_t length;
};

struct cp_boot_information {
  uint32_t version;        // 0
  cp_loader loader;        // 4
  uint64_t image_base;     // 8: physical address of the image's first byte
  uint64_t image_end;      // 16: and behind its last, bss included
  uint64_t acpi_root;      // 24: physical address of the RSDP, 0 if unknown
  uint32_t range_count;    // 32
  uint32_t ranges_dropped; // 36: ranges that did not fit below
  uint32_t module_count;   // 40
  uint32_t line_length;    // 44: bytes of `line`, no zero counted; at most CP_BOOT_LINE
  uint32_t line_dropped;   // 48: bytes of the command line that did not fit
  uint32_t modules_dropped; // 52: modules that did not fit below
  struct cp_boot_module modules[CP_BOOT_MODULES];  // 56
  uint8_t line[CP_BOOT_LINE];                      // 184
  struct cp_boot_range ranges[CP_BOOT_RANGES];     // 2232
};

_Static_assert(offsetof(struct cp_boot_information, image_base) == 8, "image_base");
_Static_assert(offsetof(struct cp_boot_information, range_count) == 32, "range_count");
_Static_assert(offsetof(struct cp_boot_information, modules) == 56, "modules");
_Static_assert(offsetof(struct cp_boot_information, line) == 184, "line");
_Static_assert(offsetof(struct cp_boot_information, ranges) == 2232, "ranges");

#pragma clang assume_nonnull begin

/// Return the first range, module and byte of the command line, which Swift can reach by a pointer only.
static inline __attribute__((always_inline)) struct cp_boot_range *cp_boot_ranges(
    struct cp_boot_information *boot) {
  return boot->ranges;
}

static inline __attribute__((always_inline)) struct cp_boot_module *cp_boot_modules(
    struct cp_boot_information *boot) {
  return boot->modules;
}

static inline __attribute__((always_inline)) uint8_t *cp_boot_line(struct cp_boot_information *boot) {
  return boot->line;
}

#pragma clang assume_nonnull end

#endif
