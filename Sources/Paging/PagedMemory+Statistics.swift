// The counts of paging, and its rows in the registry.

import CPlatform
import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// The counts of paging: events since the start, and what exists now.
package struct PagingFigures: Sendable {
  /// Page faults.
  package var faults: UInt64 = 0
  /// Faults that a page of zeroes answered.
  package var zeroFills: UInt64 = 0
  /// Faults that read a page.
  package var pageIns: UInt64 = 0
  /// Faults that reactivated a cached page.
  package var reactivations: UInt64 = 0
  /// Faults that threw.
  package var failedFaults: UInt64 = 0
  /// Sleeps on a busy page.
  package var waits: UInt64 = 0
  /// Pages written out.
  package var written: UInt64 = 0
  /// Pages of those that were written for runs of the daemon.
  package var writtenForDaemon: UInt64 = 0
  /// Pages that a device failed to write.
  package var failedWrites: UInt64 = 0
  /// Pages that were written to while they were written out.
  package var redirtied: UInt64 = 0
  /// Pages moved to another frame.
  package var moved: UInt64 = 0
  /// Pages that became cached ones.
  package var cached: UInt64 = 0
  /// Pages freed without a copy.
  package var dropped: UInt64 = 0
  /// Runs of the page daemon.
  package var daemonRuns: UInt64 = 0
  /// Pages that the daemon and the laundry inspected.
  package var scanned: UInt64 = 0
  /// Pages wired now, each once.
  package var wired: UInt64 = 0
  /// Memory objects now.
  package var objects: UInt64 = 0
  /// Pageable ranges now.
  package var ranges: UInt64 = 0
}

extension PagedMemory {
  /// The counts at this moment. Constant.
  package var figures: PagingFigures {
    return PagingFigures(
      faults: counters.faults.value, zeroFills: counters.zeroFills.value, pageIns: counters.pageIns.value,
      reactivations: counters.reactivations.value, failedFaults: counters.failedFaults.value,
      waits: counters.waits.value, written: counters.written.value,
      writtenForDaemon: counters.writtenForDaemon.value,
      failedWrites: counters.failedWrites.value, redirtied: counters.redirtied.value,
      moved: counters.moved.value, cached: counters.cached.value, dropped: counters.dropped.value,
      daemonRuns: counters.daemonRuns.value, scanned: counters.scanned.value, wired: counters.wired.value,
      objects: counters.objects.value, ranges: counters.ranges.value)
  }

  init(_ context: UnsafeMutableRawPointer?) {
    storage = context.unsafelyUnwrapped.assumingMemoryBound(to: State.self)
  }

  /// Adds the rows of this layer, and those of swap.
  package func register(in statistics: Statistics) {
    swap.register(in: statistics)
    func add(
      _ name: StaticString, _ unit: StatisticUnit, _ kind: StatisticKind, _ about: StaticString,
      range: ClosedRange<UInt64> = 0...UInt64.max,
      read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64,
      write: (@convention(c) (UnsafeMutableRawPointer?, UInt64) -> Void)? = nil
    ) {
      statistics.add(
        Statistic(
          name, unit, kind, about, range: range, context: UnsafeMutableRawPointer(storage), read: read,
          write: write))
    }
    add("vm.pages.active", .pages, .gauge, "pages used recently") { PagedMemory($0).count(.active).rawValue }
    add("vm.pages.inactive", .pages, .gauge, "pages not used for a while") {
      PagedMemory($0).count(.inactive).rawValue
    }
    add("vm.pages.laundry", .pages, .gauge, "pages to be written out") {
      PagedMemory($0).count(.laundry).rawValue
    }
    add("vm.pages.unswappable", .pages, .gauge, "dirty pages for which swap has no slot") {
      PagedMemory($0).count(.unswappable).rawValue
    }
    add("vm.pages.wired", .pages, .gauge, "pageable pages that are wired, each once") {
      PagedMemory($0).wiredCount.rawValue
    }
    add("vm.objects", .objects, .gauge, "memory objects") { PagedMemory($0).figures.objects }
    add("vm.faults", .events, .counter, "page faults") { PagedMemory($0).figures.faults }
    add("vm.faults.zero", .events, .counter, "faults answered with a page of zeroes") {
      PagedMemory($0).figures.zeroFills
    }
    add("vm.faults.page_in", .events, .counter, "faults that read a page") { PagedMemory($0).figures.pageIns }
    add("vm.faults.reactivated", .events, .counter, "faults that reactivated a cached page") {
      PagedMemory($0).figures.reactivations
    }
    add("vm.faults.failed", .events, .counter, "faults that failed") {
      PagedMemory($0).figures.failedFaults
    }
    add("vm.paging.refused", .requests, .counter, "objects, ranges and pages refused; see failures") {
      PagedMemory($0).counters.refusals.value
    }
    add("vm.laundry.written", .pages, .counter, "pages written out") { PagedMemory($0).figures.written }
    add("vm.laundry.failed", .pages, .counter, "pages that a device failed to write") {
      PagedMemory($0).figures.failedWrites
    }
    add("vm.laundry.redirtied", .pages, .counter, "pages written to while they were written out") {
      PagedMemory($0).figures.redirtied
    }
    add("vm.pages.moved", .pages, .counter, "pages moved to another frame") { PagedMemory($0).figures.moved }
    add("vm.pages.reclaimed", .pages, .counter, "pages that became cached ones") {
      PagedMemory($0).figures.cached
    }
    add("vm.daemon.runs", .events, .counter, "runs of the page daemon") { PagedMemory($0).figures.daemonRuns }
    add("vm.daemon.written", .pages, .counter, "pages written out for runs of the page daemon") {
      PagedMemory($0).figures.writtenForDaemon
    }
    add("vm.daemon.scanned", .pages, .counter, "pages that the daemon and the laundry inspected") {
      PagedMemory($0).figures.scanned
    }
    add(
      "vm.free_target", .pages, .tunable, "frames that a run of the page daemon leaves free",
      range: 0...physical.total.rawValue / 2,
      read: { PagedMemory($0).freeTarget.rawValue },
      write: { PagedMemory($0).setTarget($1) })
    add("vm.free_wake", .pages, .gauge, "frames below which the page daemon runs") {
      PagedMemory($0).wakeMark.rawValue
    }
  }

  private func setTarget(_ pages: UInt64) {
    marks.target.store(pages, ordering: .relaxed)
    marks.wake.store(pages - pages / 10, ordering: .relaxed)
    if isServed { physical.setLowMemoryMark(below: wakeMark) }
  }
}
