// Contiguous memory, counted under a type like all other memory: another layer allocates it, and kmem keeps the counters.
//
// A failed call is never counted as an allocation, and nothing is counted before the memory is allocated. The three calls
// are for the three ends of a request: granted, freed, refused.

import MemoryPrimitives
import Synchronization

extension KmemAllocator {
  /// Counts `pages` of contiguous memory as allocated under `type`: one request, granted and in use.
  package func countContiguous(_ type: MemoryType, _ pages: PageCount) {
    type.countAllocation(CacheIndex.contiguous)
    type.countAllocation(CacheIndex.contiguousPages, pages.rawValue)
  }

  /// Counts contiguous memory that `countContiguous` counted as freed. A step for each processor.
  ///
  /// Answers false when `type` has no contiguous memory, or less: a fault report, and nothing was counted.
  @discardableResult
  package func uncountContiguous(
    _ type: MemoryType, _ pages: PageCount, at site: CallSite = .here
  ) -> Bool {
    let held = contiguous(type)
    guard held.requests > 0, held.pages >= pages else {
      var fault = FaultReport(
        .wrongType, "contiguous memory was freed under a type that has none, or less",
        UInt64(type.index),
        .identifier)
      fault.given = pages.rawValue
      fault.expected = held.pages.rawValue
      fault.type = type.name
      fault.reportedAt = site
      machine.report(fault)
      return false
    }
    type.countFree(CacheIndex.contiguous)
    type.countFree(CacheIndex.contiguousPages, pages.rawValue)
    return true
  }

  /// Counts a request of `type` for contiguous memory that was refused.
  package func countContiguousFailure(_ type: MemoryType) {
    type.countAllocation(CacheIndex.failed)
    state.contiguousFailures.add(1, ordering: .relaxed)
  }

  /// Counts the contiguous memory that `type` has: requests and pages.
  package func contiguous(_ type: MemoryType) -> (requests: UInt64, pages: PageCount) {
    let processors = machine.processorCount
    let requests = type.sums(CacheIndex.contiguous, processors: processors)
    let pages = type.sums(CacheIndex.contiguousPages, processors: processors)
    return (requests.allocations &- requests.frees, PageCount(pages.allocations &- pages.frees))
  }
}
