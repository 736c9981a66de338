// The budgets: every figure of Strata that has a goal, in one list.
//
// The console's `bench`, the tool's `strata bench` and `make bench` take name, unit, goal and layer from here, and
// none keeps a goal of its own. A row belongs to the layer that can change its figure. A goal that is missed fails
// a bench only when the row is due: a row becomes due with the change that meets its goal, and can't regress from
// then on. A row that can't be measured yet is in the list too, and is shown without a figure.
//
// Figures and goals are whole numbers in parts of `scale`, as the kernel has no floating point.

/// The goal of a figure, in parts of the row's scale.
package enum BudgetGoal: Equatable, Sendable {
  case none
  case atMost(UInt64)
  case atLeast(UInt64)
}

/// Whether a missed goal fails the bench.
package enum BudgetStanding: Equatable, Sendable {
  /// A later change is to meet the goal.
  case later
  case due
}

/// Where a figure is measured.
package enum BudgetPlace: UInt8, Sendable {
  case host, kernel

  package var description: StaticString { self == .host ? "host" : "kernel" }
}

/// A row of the table of budgets.
package struct BudgetRow: Sendable {
  package var name: StaticString
  package var unit: StaticString
  package var place: BudgetPlace
  /// The module whose change meets the goal.
  package var layer: StaticString
  package var goal: BudgetGoal
  /// The figure and the goal are whole numbers of one over this.
  package var scale: UInt64
  package var standing: BudgetStanding
  /// Whether the figure is a count of the cycle counter, which counts instructions under QEMU's -icount only.
  package var isCycles: Bool

  /// Whether a figure, in parts of the scale, meets the goal.
  package func isMet(by figure: UInt64) -> Bool {
    switch goal {
    case .none: true
    case .atMost(let most): figure <= most
    case .atLeast(let least): figure >= least
    }
  }

  /// "at most" or "at least".
  package var sense: StaticString {
    if case .atLeast = goal { return "at least" }
    return "at most"
  }

  /// The same in short: "max" or "min".
  package var shortSense: StaticString {
    if case .atLeast = goal { return "min" }
    return "max"
  }

  /// The goal's number, where there is one.
  package var bound: UInt64? {
    switch goal {
    case .none: nil
    case .atMost(let bound), .atLeast(let bound): bound
    }
  }
}

/// Every row, in the order in which the table shows them.
package enum Budget: UInt8, Sendable {
  case kmemPairTime
  case kmemPair16, kmemPair64, kmemPair128, kmemPair1024, kmemPair4096
  case kmemVariable16, kmemVariable64, kmemVariable128, kmemVariable1024, kmemVariable4096
  case kmemBatches, kmemRandomOne, kmemRandomSmall, kmemRandomMixed, kmemRandomMany
  case kmemTraceTime, kmemTraceHeld
  case kmemTwoThreads, kmemPassedOn
  case kmemKernel16, kmemKernel64, kmemKernel1024, kmemKernel4096, kmemKernelVariable, kmemKernelInterruptsOff
  case pagePair, pagePairInstructions, pageTwoThreads
  case pageSingles, pageblockPair, pageblockPairSplitting
  case churn50, churn80, churn90, wiredPageblocks
  case vmemPair100, vmemPairMillion, vmemAligned, vmemWindowed, vmemQuantum
  case searchTaken, searchRandom, searchLast, searchLuck
  case longestOff, longestHeld
  case fault, faultZeroing, faultZeroed, faultBlocks
  case contigOldGranted, contigOldCost, contigOldInstructions
  case contigGranted, contigCost, contigOutside, contigInstructions
  case contigOneGranted, contigOne, contigOneMoved, contigOneWritten
  case contigLow64, contigLow256, contigLowNever, contigLowNeverCost, contigGibibyte
  case contigBusy
  case daemonScanned, shootdownsLaundry, shootdownsUnmap
  case windowPair, threadSwitch, interrupt
  case zsDensity, zsDensityHalf, zsCodecSize, zsCompressTime, zsDecompressTime, zsStore, zsLoad
  case zsParts, zsWindow, zsMap, zsVmap, zsCopy
  case zsPartsRefused, zsWindowRefused, zsMapRefused, zsVmapRefused, zsCopyRefused
  case zsPartsAddresses, zsWindowAddresses, zsMapAddresses, zsVmapAddresses, zsCopyAddresses
  case frameRecord, boundaryTag
  case bootSmall, bootLarge, bootRatio
  case ownMemorySmall, ownMemoryLarge

  /// The number of rows.
  package static var count: Int { Int(Budget.ownMemoryLarge.rawValue) + 1 }

  /// Whether it can be measured yet.
  package var canBeMeasured: Bool {
    switch self {
    case .vmemQuantum, .faultZeroed: false
    default: true
    }
  }

  /// Whether the figure depends on the trace that is replayed.
  package var dependsOnTrace: Bool {
    switch self {
    case .kmemTraceTime, .kmemTraceHeld, .wiredPageblocks, .longestOff, .longestHeld, .contigOldGranted,
      .contigOldCost, .contigOldInstructions, .contigGranted, .contigCost, .contigOutside,
      .contigInstructions:
      true
    default: false
    }
  }

  /// The row.
  package var row: BudgetRow {
    switch self {
    case .kmemPairTime: .host("kmem-pair", "ns, 64 bytes", "Kmem", .none)
    case .kmemPair16: .against4("kmem-pair-16", .atMost(450))
    case .kmemPair64: .against4("kmem-pair-64", .atMost(450))
    case .kmemPair128: .against4("kmem-pair-128", .atMost(450))
    case .kmemPair1024: .against4("kmem-pair-1024", .atMost(450))
    case .kmemPair4096: .against4("kmem-pair-4096", .atMost(450))
    case .kmemVariable16: .against4("kmem-pair-variable-16", .atMost(550))
    case .kmemVariable64: .against4("kmem-pair-variable-64", .atMost(550))
    case .kmemVariable128: .against4("kmem-pair-variable-128", .atMost(550))
    case .kmemVariable1024: .against4("kmem-pair-variable-1024", .atMost(550))
    case .kmemVariable4096: .against4("kmem-pair-variable-4096", .atMost(550))
    case .kmemBatches: .against4("kmem-batches-of-64", .atMost(900))
    case .kmemRandomOne: .against4("kmem-random-one-size", .atMost(1000))
    case .kmemRandomSmall: .against4("kmem-random-small", .atMost(1000))
    case .kmemRandomMixed: .against4("kmem-random-mixed", .atMost(1000))
    case .kmemRandomMany: .against4("kmem-random-100000-mixed", .atMost(1000))
    case .kmemTraceTime: .against4("kmem-trace-x64-time", .atMost(1200))
    case .kmemTraceHeld: .host("kmem-trace-x64-held", "bytes held for each byte live", "Kmem", .atMost(1100))
    case .kmemTwoThreads: .host("kmem-pairs-two-threads", "x one thread", "Kmem", .atLeast(1900))
    case .kmemPassedOn: .against4("kmem-producer-consumer", .atMost(400))
    case .kmemKernel16: .instructions("kmem-kernel-pair-16", "Kmem", .atMost(60), standing: .due)
    case .kmemKernel64: .instructions("kmem-kernel-pair-64", "Kmem", .atMost(60), standing: .due)
    case .kmemKernel1024: .instructions("kmem-kernel-pair-1024", "Kmem", .atMost(60), standing: .due)
    case .kmemKernel4096: .instructions("kmem-kernel-pair-4096", "Kmem", .atMost(60), standing: .due)
    case .kmemKernelVariable: .instructions("kmem-kernel-pair-variable", "Kmem", .atMost(60))
    case .kmemKernelInterruptsOff: .instructions("kmem-kernel-interrupts-off", "Kmem", .atMost(60))
    case .pagePair: .kernel("page-pair", "x kmem pair", "PhysicalMemory", .atMost(1500), scale: 1000)
    case .pagePairInstructions: .instructions("page-pair-instructions", "PhysicalMemory", .none)
    case .pageTwoThreads: .host("page-pairs-two-threads", "x one thread", "PhysicalMemory", .atLeast(1900))
    case .pageSingles: .instructions("pages-512-random-order", "PhysicalMemory", .atMost(250))
    case .pageblockPair: .instructions("pageblock-pair", "PhysicalMemory", .atMost(450))
    case .pageblockPairSplitting:
      .instructions("pageblock-pair-splitting", "PhysicalMemory", .atMost(900))
    case .churn50: .host("churn-50-percent-free", "% of possible 2 MiB", "PhysicalMemory", .atLeast(97_000))
    case .churn80: .host("churn-80-percent-free", "% of possible 2 MiB", "PhysicalMemory", .atLeast(98_000))
    case .churn90: .host("churn-90-percent-free", "% of possible 2 MiB", "PhysicalMemory", .atLeast(98_000))
    case .wiredPageblocks:
      .kernel("pageblocks-wired", "x the least", "PhysicalMemory", .atMost(1250), scale: 1000)
    case .vmemPair100: .instructions("vmem-pair-100-live", "Vmem", .atMost(500))
    case .vmemPairMillion: .instructions("vmem-pair-1000000-live", "Vmem", .atMost(500))
    case .vmemAligned: .instructions("vmem-aligned-10000-live", "Vmem", .atMost(700))
    case .vmemWindowed: .instructions("vmem-windowed-10000-live", "Vmem", .atMost(700))
    case .vmemQuantum:
      .kernel("vmem-pair-quantum-cache", "x kmem pair", "Vmem", .atMost(1500), scale: 1000)
    case .searchTaken:
      .host("run-search-every-second", "x the steps in 1 GiB", "PhysicalMemory", .atMost(1500))
    case .searchRandom:
      .host("run-search-99-percent", "x the steps in 1 GiB", "PhysicalMemory", .atMost(1500))
    case .searchLast: .host("run-search-last-block", "x the steps in 1 GiB", "PhysicalMemory", .atMost(1500))
    case .searchLuck: .host("run-search-luck", "steps a pageblock", "PhysicalMemory", .atMost(1000))
    case .longestOff: .instructions("longest-off", "Kernel", .atMost(20_000), standing: .due)
    case .longestHeld: .instructions("longest-held", "PhysicalMemory", .atMost(20_000), standing: .due)
    case .fault: .instructions("fault", "Paging", .atMost(1500), standing: .due)
    case .faultZeroing: .instructions("fault-zeroing", "Paging", .none)
    case .faultZeroed: .instructions("fault-zeroing-page-at-hand", "PhysicalMemory", .atMost(120))
    case .faultBlocks:
      .kernel("fault-64M-whole-blocks", "x 4 KiB faults", "Paging", .atMost(100), scale: 1000)
    case .contigOldGranted: .kernel("contig-old-granted", "runs", "ContiguousMemory", .none)
    case .contigOldCost:
      .kernel("contig-old-cost-per-page", "pages", "ContiguousMemory", .none, scale: 1000)
    case .contigOldInstructions: .instructions("contig-old-instructions-per-run", "ContiguousMemory", .none)
    case .contigGranted: .kernel("contig-granted", "runs", "ContiguousMemory", .atLeast(256), standing: .due)
    case .contigCost:
      .kernel("contig-cost-per-page", "pages", "ContiguousMemory", .atMost(1000), standing: .due, scale: 1000)
    case .contigOutside: .kernel("contig-outside", "pages", "ContiguousMemory", .atMost(0), standing: .due)
    case .contigInstructions: .instructions("contig-instructions-per-run", "ContiguousMemory", .none)
    case .contigOneGranted:
      .kernel("contig-one-granted", "runs", "ContiguousMemory", .atLeast(1), standing: .due)
    case .contigOne:
      .instructions("contig-one-instructions", "ContiguousMemory", .atMost(524_288), standing: .due)
    case .contigOneMoved:
      .kernel("contig-one-moved", "pages", "ContiguousMemory", .atMost(512), standing: .due)
    case .contigOneWritten:
      .kernel("contig-one-written", "pages", "ContiguousMemory", .atMost(0), standing: .due)
    case .contigLow64: .kernel("contig-low-64K", "runs", "ContiguousMemory", .atLeast(1), standing: .due)
    case .contigLow256: .kernel("contig-low-256K", "runs", "ContiguousMemory", .atLeast(1), standing: .due)
    case .contigLowNever: .kernel("contig-low-never", "runs", "ContiguousMemory", .atLeast(1), standing: .due)
    case .contigLowNeverCost: .instructions("contig-low-never-cost", "ContiguousMemory", .none)
    case .contigGibibyte: .kernel("contig-1G", "runs", "ContiguousMemory", .atLeast(1), standing: .due)
    case .contigBusy:
      .kernel("contig-busy-granted", "of 1000 runs", "ContiguousMemory", .atLeast(990), standing: .due)
    case .daemonScanned:
      .kernel("daemon-scanned", "a page freed", "Paging", .atMost(4000), scale: 1000)
    case .shootdownsLaundry: .kernel("shootdowns-laundry", "a page", "Paging", .none, scale: 1000)
    case .shootdownsUnmap: .kernel("shootdowns-unmap", "a page", "Paging", .none, scale: 1000)
    case .windowPair: .instructions("window-pair", "PageTables", .atMost(60), standing: .due)
    case .threadSwitch: .instructions("switch", "Kernel", .none)
    case .interrupt: .instructions("interrupt", "Kernel", .none)
    case .zsDensity:
      .host(
        "zs-stored-of-held", "bytes for each byte held", "Zsmalloc", .atLeast(955), standing: .due)
    case .zsDensityHalf:
      .host(
        "zs-stored-of-held-half-freed", "bytes for each byte held", "Zsmalloc", .atLeast(935), standing: .due)
    case .zsCodecSize: .againstLibrary("zs-lz4-size", .atMost(1020))
    case .zsCompressTime: .againstLibrary("zs-lz4-compress-time", .atMost(2000))
    case .zsDecompressTime: .againstLibrary("zs-lz4-decompress-time", .atMost(2000))
    case .zsStore: .instructions("zs-store-page", "Zsmalloc", .none)
    case .zsLoad: .instructions("zs-load-page", "Zsmalloc", .none)
    case .zsParts: .instructions("zs-read-parts", "Zsmalloc", .none)
    case .zsWindow: .instructions("zs-read-window", "Zsmalloc", .none)
    case .zsMap: .instructions("zs-read-map", "Zsmalloc", .none)
    case .zsVmap: .instructions("zs-read-vmap", "Zsmalloc", .none)
    case .zsCopy: .instructions("zs-read-copy", "Zsmalloc", .none)
    case .zsPartsRefused: .refusedReads("zs-refused-parts", .atMost(0), standing: .due)
    case .zsWindowRefused: .refusedReads("zs-refused-window", .atMost(0), standing: .due)
    case .zsMapRefused: .refusedReads("zs-refused-map", .atMost(0), standing: .due)
    case .zsVmapRefused: .refusedReads("zs-refused-vmap", .none)
    case .zsCopyRefused: .refusedReads("zs-refused-copy", .atMost(0), standing: .due)
    case .zsPartsAddresses: .readAddresses("zs-addresses-parts")
    case .zsWindowAddresses: .readAddresses("zs-addresses-window")
    case .zsMapAddresses: .readAddresses("zs-addresses-map")
    case .zsVmapAddresses: .readAddresses("zs-addresses-vmap")
    case .zsCopyAddresses: .readAddresses("zs-addresses-copy")
    case .frameRecord: .host("frame-record", "bytes", "PhysicalMemory", .atMost(32), standing: .due, scale: 1)
    case .boundaryTag: .host("boundary-tag", "bytes", "Vmem", .atMost(32), standing: .due, scale: 1)
    case .bootSmall: .instructions("boot-256M", "KernelMemory", .none)
    case .bootLarge: .instructions("boot-20G", "KernelMemory", .atMost(10_000_000), standing: .due)
    case .bootRatio:
      .kernel("boot-20G-to-256M", "x", "KernelMemory", .atMost(1500), standing: .due, scale: 1000)
    case .ownMemorySmall:
      .kernel("own-memory-256M", "% of memory", "KernelMemory", .atMost(2500), standing: .due, scale: 1000)
    case .ownMemoryLarge:
      .kernel("own-memory-20G", "% of memory", "KernelMemory", .atMost(1200), standing: .due, scale: 1000)
    }
  }
}

extension BudgetRow {
  /// A count of instructions in the kernel.
  fileprivate static func instructions(
    _ name: StaticString, _ layer: StaticString, _ goal: BudgetGoal, standing: BudgetStanding = .later
  ) -> BudgetRow {
    BudgetRow(
      name: name, unit: "instructions", place: .kernel, layer: layer, goal: goal, scale: 1,
      standing: standing,
      isCycles: true)
  }

  /// Another figure of the kernel.
  fileprivate static func kernel(
    _ name: StaticString, _ unit: StaticString, _ layer: StaticString, _ goal: BudgetGoal,
    standing: BudgetStanding = .later, scale: UInt64 = 1
  ) -> BudgetRow {
    BudgetRow(
      name: name, unit: unit, place: .kernel, layer: layer, goal: goal, scale: scale, standing: standing,
      isCycles: false)
  }

  /// A figure of a host process.
  fileprivate static func host(
    _ name: StaticString, _ unit: StaticString, _ layer: StaticString, _ goal: BudgetGoal,
    standing: BudgetStanding = .later, scale: UInt64 = 1000
  ) -> BudgetRow {
    BudgetRow(
      name: name, unit: unit, place: .host, layer: layer, goal: goal, scale: scale, standing: standing,
      isCycles: false)
  }

  /// A figure of the codec against that of liblz4.
  fileprivate static func againstLibrary(_ name: StaticString, _ goal: BudgetGoal) -> BudgetRow {
    host(name, "x liblz4", "Zsmalloc", goal, standing: .due)
  }

  /// Reads of straddling objects that are refused while every allocation fails.
  fileprivate static func refusedReads(
    _ name: StaticString, _ goal: BudgetGoal, standing: BudgetStanding = .later
  ) -> BudgetRow {
    host(name, "of 1000 reads", "Zsmalloc", goal, standing: standing, scale: 1)
  }

  /// How often 1000 reads of straddling objects allocate addresses.
  fileprivate static func readAddresses(_ name: StaticString) -> BudgetRow {
    host(name, "allocations of addresses for 1000 reads", "Zsmalloc", .none, scale: 1)
  }

  /// A time of kmem against that of the best of mimalloc, jemalloc, tcmalloc and glibc.
  fileprivate static func against4(
    _ name: StaticString, _ goal: BudgetGoal, standing: BudgetStanding = .later
  ) -> BudgetRow {
    host(name, "x the best of four", "Kmem", goal, standing: standing)
  }
}
