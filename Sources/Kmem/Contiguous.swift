// Contiguous memory, accounted under a type like everything else: who gives it is another layer, and kmem
// keeps the counters.
//
// A call that failed is never counted as an allocation, and nothing is counted before the memory is there: the
// three calls are for three ends of a request, each of which knows which it is.

import MemoryPrimitives

extension KmemAllocator {
  /// Counts `pages` of contiguous memory that `type` has got: one request, granted and in use.
  public func countContiguous(_ type: MemoryType, _ pages: PageCount) {
    type.countAllocation(CacheIndex.contiguous)
    type.countAllocation(CacheIndex.contiguousPages, pages.rawValue)
  }

  /// Counts what `countContiguous` counted as given back. False when `type` has no contiguous memory, or
  /// less: a fault report, and nothing was counted. A step for each processor.
  @discardableResult
  public func uncountContiguous(
    _ type: MemoryType, _ pages: PageCount, at site: CallSite = .here
  ) -> Bool {
    let held = contiguous(type)
    guard held.requests > 0, held.pages >= pages else {
      var fault = FaultReport(
        .wrongType, "contiguous memory was given back under a type that has none, or less",
        UInt64(type.index),
        .identifier)
      fault.given = pages.rawValue
      fault.expected = held.pages.rawValue
      fault.type = type.name
      fault.reportedAt = site
      state.pointee.machine.report(fault)
      return false
    }
    type.countFree(CacheIndex.contiguous)
    type.countFree(CacheIndex.contiguousPages, pages.rawValue)
    return true
  }

  /// Counts a request of `type` for contiguous memory that was refused.
  public func countContiguousFailure(_ type: MemoryType) { type.countAllocation(CacheIndex.failed) }

  /// Contiguous memory that `type` has: parts and pages.
  public func contiguous(_ type: MemoryType) -> (requests: UInt64, pages: PageCount) {
    let processors = state.pointee.machine.processorCount
    let requests = type.sums(CacheIndex.contiguous, processors: processors)
    let pages = type.sums(CacheIndex.contiguousPages, processors: processors)
    return (requests.allocations &- requests.frees, PageCount(pages.allocations &- pages.frees))
  }
}
