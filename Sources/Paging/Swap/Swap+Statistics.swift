// The figures of swap, and its rows in the registry.

import MemoryPrimitives

extension Swap {
  /// The slots and counts at one moment. Constant.
  package var figures: SwapFigures {
    state.core.withLock {
      var figures = SwapFigures()
      if let slots = $0.slots {
        figures.total = PageCount(slots.total)
        figures.used = PageCount(slots.used)
        figures.free = PageCount(slots.free)
        figures.bad = PageCount(slots.bad)
      }
      figures.writes = $0.writes
      figures.reads = $0.reads
      figures.clusters = $0.clusters
      figures.failures = $0.failures
      figures.corrupt = $0.corrupt
      return figures
    }
  }

  /// Adds the rows `vm.swap.…` to the registry.
  package func register(in statistics: Statistics) {
    let context = UnsafeMutableRawPointer(storage)
    func row(
      _ name: StaticString, _ unit: StatisticUnit, _ kind: StatisticKind, _ about: StaticString,
      read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64
    ) {
      statistics.add(Statistic(name, unit, kind, about, context: context, read: read))
    }
    row("vm.swap.total", .pages, .gauge, "slots of the swap device") { Self($0).figures.total.rawValue }
    row("vm.swap.used", .pages, .gauge, "slots that are reserved or written") {
      Self($0).figures.used.rawValue
    }
    row("vm.swap.free", .pages, .gauge, "slots that can be reserved") { Self($0).figures.free.rawValue }
    row("vm.swap.bad", .pages, .gauge, "slots that failed a write, retired") {
      Self($0).figures.bad.rawValue
    }
    row("vm.swap.writes", .pages, .counter, "pages written to swap") { Self($0).figures.writes }
    row("vm.swap.reads", .pages, .counter, "pages read from swap") { Self($0).figures.reads }
    row("vm.swap.clusters", .requests, .counter, "writes of two pages or more") {
      Self($0).figures.clusters
    }
    row("vm.swap.failures", .requests, .counter, "requests that the device failed") {
      Self($0).figures.failures
    }
    row("vm.swap.corrupt", .pages, .counter, "pages that came back with another checksum") {
      Self($0).figures.corrupt
    }
  }
}
