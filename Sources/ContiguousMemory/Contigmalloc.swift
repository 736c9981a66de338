// contigmalloc(9) and its relatives: contiguous memory with addresses, and with a type.
//
// The frames are allocated first, then the addresses; when there are none, the frames are freed. The type counts
// an allocation when the mapping stands, and a failure otherwise: a failed call is never an allocation.

import Kmem
import KernelSpace
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Synchronization

/// How a run is mapped, and the call site that asks for it.
struct MappingOptions {
  let attribute: CacheAttribute
  let contents: InitialContents
  let site: CallSite
}

extension ContiguousAllocator {
  /// Allocates contiguous memory behind kernel addresses, mapped writable with `attribute`; the direct map then maps its
  /// frames the same way. Not counted under a type. `noAddressSpace`: the frames were freed.
  public func kmemAllocContig(
    _ request: ContiguousRequest, attribute: CacheAttribute = .writeBack,
    contents: InitialContents = .unknown, at site: CallSite = .here,
    observe: (ContiguousEvent) -> Void = { _ in }
  ) throws(ContiguousFailure) -> ContiguousRange {
    try counted(request) { (attempt) throws(ContiguousFailure) in
      let run = try attempt.reclaimRun(observe)
      return try attempt.map(
        run, MappingOptions(attribute: attribute, contents: contents, site: site), observe)
    }
  }

  /// Frees memory that `kmemAllocContig` returned. Fault reports as `KernelAddressSpace.freeContiguous`.
  public func kmemFreeContig(_ range: ContiguousRange, at site: CallSite = .here) {
    space.freeContiguous(range.address, range.frames.count, at: site)
  }

  /// Allocates `size` bytes of contiguous memory, rounded up to pages, and counts them under `type`. The tunables
  /// `vm.contig.strategy` and `vm.contig.passes` say how.
  public func contigmalloc(
    _ size: ByteCount, type: MemoryType, where constraints: RunConstraints = RunConstraints(),
    attribute: CacheAttribute = .writeBack, contents: InitialContents = .unknown,
    waitPolicy: WaitPolicy = .allowed, at site: CallSite = .here,
    observe: (ContiguousEvent) -> Void = { _ in }
  ) throws(ContiguousFailure) -> ContiguousRange {
    var request = ContiguousRequest(
      size.pagesRoundedUp, where: constraints, for: FrameOwner("contigmalloc", type: type.index, at: site))
    request.waitPolicy = waitPolicy
    request.passes = passes
    request.requester = type.name
    do throws(ContiguousFailure) {
      let range = try counted(request) { (attempt) throws(ContiguousFailure) in
        let run =
          strategy == .new ? try attempt.reclaimRun(observe) : try attempt.launderQueues(observe)
        return try attempt.map(
          run, MappingOptions(attribute: attribute, contents: contents, site: site), observe)
      }
      kmem.countContiguous(type, range.frames.count)
      return range
    } catch {
      kmem.countContiguousFailure(type)
      throw error
    }
  }

  /// Frees memory that `contigmalloc` returned, by the same size and type. A wrong size, a type that has less, or
  /// a wrong address is a fault report, and nothing has changed.
  public func contigfree(
    _ address: VirtualAddress, size: ByteCount, type: MemoryType, at site: CallSite = .here
  ) {
    let count = size.pagesRoundedUp
    let held = kmem.contiguous(type)
    guard held.requests > 0, held.pages >= count else {
      // Reports, and counts nothing.
      kmem.uncountContiguous(type, count, at: site)
      return
    }
    guard space.freeContiguous(address, count, at: site) else { return }
    kmem.uncountContiguous(type, count, at: site)
  }
}

extension ReclaimAttempt {
  /// Maps the run at kernel addresses, or frees it and throws `noAddressSpace`.
  mutating func map(
    _ run: FrameRun, _ options: MappingOptions, _ observe: Observer
  ) throws(ContiguousFailure) -> ContiguousRange {
    // If the run has left no frames for tables, the page daemon frees some first, where it may.
    let tables = PageCount(8 + Pageblock.number(of: run.count.rawValue))
    let needed = physical.reserve(for: request.priority) + tables
    if request.waitPolicy.mayWait && request.passes > .relocate && physical.freeCount < needed {
      _ = fetch(until: needed, atMost: needed, observe)
    }
    do throws(KernelSpaceError) {
      let address = try allocator.space.mapContiguous(
        run, attribute: options.attribute, contents: options.contents, priority: request.priority,
        failures: .byCaller, at: options.site)
      return ContiguousRange(address: address, frames: run)
    } catch {
      physical.free(run)
      throw ContiguousFailure(.noAddressSpace)
    }
  }
}
