// The check of the invariants KS-1 to KS-3, which the head of KernelAddressSpace.swift states.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Vmem

extension KernelAddressSpace {
  /// The first invariant that is broken, by its number, or nil. Exact when nothing runs.
  public func checkInvariants() -> StaticString? {
    if let broken = tables.checkInvariants() ?? tags.checkInvariants() { return broken }

    var found: InlineArray<16, UInt64> = .init(repeating: 0)
    var ranges: InlineArray<16, UInt64> = .init(repeating: 0)
    // Pages that are mapped in the ranges: in a pageable one, those that are mapped now.
    var all: UInt64 = 0
    var isPrepared = true
    forEachRange { range, kind in
      found[Int(kind.rawValue)] += range.count.rawValue
      ranges[Int(kind.rawValue)] += 1
      if kind == .pageable {
        all += tables.mappedCount(range.address, count: range.count).rawValue
        if tables.preparedCount(range.address, count: range.count) != range.count { isPrepared = false }
      } else {
        all += range.count.rawValue
      }
    }
    if !isPrepared { return "KS-1: a page of a pageable range is not prepared" }
    func pages(_ kind: RangeKind) -> UInt64 { found[Int(kind.rawValue)] }
    var broken: StaticString?
    RangeKind.forEach { kind in
      if pages(kind) != self.pages(kind).rawValue {
        broken = "KS-2: the pages of a kind are not those of its segments"
      }
      if ranges[Int(kind.rawValue)] != rangeCount(kind) {
        broken = "KS-1: a segment has no range, or a range no segment"
      }
    }
    if let broken { return broken }
    var mapped: UInt64 = 0
    tables.forEachRun { run in
      let region = region(of: run.address)
      if region == .kernel || region == .device { mapped += run.count.rawValue }
    }
    if mapped != all { return "KS-2: pages are mapped that belong to no range" }

    // The allocated addresses of an arena are those that are mapped in it, and those that others imported.
    func allocated(_ arena: Arena) -> UInt64 { arena.size(.allocated).rawValue >> Page.shift }
    func total(_ arena: Arena) -> UInt64 { arena.size(.total).rawValue >> Page.shift }
    var kernel = total(state.pointee.heap) + total(state.pointee.metadata)
    kernel += total(state.pointee.interrupt) + rangeCount(.stack)
    kernel += pages(.kernel) + pages(.stack) + pages(.contiguous) + pages(.callerFrames) + pages(.pageable)
    if kernel != allocated(state.pointee.kernel) || pages(.device) != allocated(state.pointee.device)
      || pages(.heap) != allocated(state.pointee.heap)
      || pages(.metadata) != allocated(state.pointee.metadata)
      || pages(.interrupt) != allocated(state.pointee.interrupt)
    {
      return "KS-1: addresses are allocated that nothing is mapped at"
    }
    return nil
  }
}
