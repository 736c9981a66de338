// The flags of a Linux kernel's requests (gfp): by the names of all versions, and as numbers.
//
// Names with and without the two underscores mean the same: kernels before 4.5 print `GFP_ZERO`, later ones
// `__GFP_ZERO`. A table that lacks a flag prints it as a number behind the names, of which only the four bits of the
// zones are the same in all versions. A number alone says itself which of three layouts it has:
//
//                 waits    wakes kswapd         zero    reclaimable   atomic
//   before 4.4    10       -                    8000    80000         high, and does not wait
//   before 5.1    400000   1000000 or 2000000   8000    10            80000
//   later         400      800                  100     10            200 until 6.2
//
// Source: include/linux/gfp.h and include/trace/events/mmflags.h of Linux 3.2, 4.3, 4.9, 4.19, 5.10 and 6.1.

import Workloads

/// The flags of a request that matter for a replay.
struct AllocationFlags {
  var flags = TraceFlags()
  var limit = TraceAddressLimit.none

  /// The flags in `text`: names and numbers between bars, or one number.
  init(_ text: Text) {
    if let number = text.number {
      insert(number)
      return
    }
    for name in text.split(separator: UInt8(ascii: "|")) {
      if let number = name.number { insertZones(number) } else { insert(named: name) }
    }
  }

  private mutating func insert(named text: Text) {
    let name = text.starts(with: "__") ? text.dropFirst(2) : text
    if name == "GFP_ZERO" {
      flags.insert(.zero)
    } else if name == "GFP_ATOMIC" || name == "GFP_HIGH" {
      flags.insert(.atomic)
    } else if name == "GFP_NOWAIT" {
      flags.insert(.noWait)
    } else if name == "GFP_MOVABLE" {
      flags.insert(.movable)
    } else if name == "GFP_RECLAIMABLE" || name == "GFP_TEMPORARY" {
      flags.insert(.reclaimable)
    } else if name == "GFP_DMA" {
      limit = .dma
    } else if name == "GFP_DMA32" {
      limit = .dma32
    } else if name == "GFP_HIGHUSER" || name == "GFP_HIGHMEM" {
      limit = .highmem
    } else if name == "GFP_HIGHUSER_MOVABLE" || name.starts(with: "GFP_TRANSHUGE") {
      flags.insert(.movable)
      limit = .highmem
    }
  }

  private mutating func insertZones(_ number: UInt64) {
    if number & 8 != 0 { flags.insert(.movable) }
    if number & 1 != 0 {
      limit = .dma
    } else if number & 4 != 0 {
      limit = .dma32
    } else if number & 2 != 0 {
      limit = .highmem
    }
  }

  private mutating func insert(_ number: UInt64) {
    insertZones(number)
    let layout = Layout(of: number)
    if number & layout.zero != 0 { flags.insert(.zero) }
    if number & layout.reclaimable != 0 { flags.insert(.reclaimable) }
    guard number & layout.waits == 0 else { return }
    // GFP_ATOMIC has the flag of a high priority, in all versions.
    flags.insert(number & 0x20 != 0 ? .atomic : .noWait)
  }

  /// Where the flags lie in a number.
  private struct Layout {
    let zero: UInt64
    let reclaimable: UInt64
    let waits: UInt64

    init(of number: UInt64) {
      // The oldest layout has rare flags in the bits of the newest, and 10 and 40 with them.
      let isSmall = number < 0x100_0000
      let isNew =
        number & 0xc00 == 0xc00 || (isSmall && number & 0x800 != 0 && number & 0x50 != 0x50)
        || (isSmall && number & 0x400 != 0 && number & 0x10 == 0)
      let isMiddle =
        (number & 0x300_0000 != 0 && number & 0x40_0000 != 0)
        || (number & 0x340_0000 != 0 && number & 0x10 == 0)
      if isNew {
        (zero, reclaimable, waits) = (0x100, 0x10, 0x400)
      } else if isMiddle {
        (zero, reclaimable, waits) = (0x8000, 0x10, 0x40_0000)
      } else {
        (zero, reclaimable, waits) = (0x8000, 0x8_0000, 0x10)
      }
    }
  }
}
