// The parts that all requests share: addresses from an arena, counters, and the record of a failure.

import MemoryPrimitives
import PhysicalMemory
import Synchronization
import Vmem

/// One request for a range.
struct RangeRequest {
  var kind: RangeKind
  /// Pages to map.
  var count: PageCount
  var priority = AllocationPriority.normal
  /// Whether it may wait for frames.
  var wait = WaitPolicy.forbidden
  var contents = InitialContents.unknown
  /// Whether this layer records a failure in the failure log, or the caller does.
  var failures = FailureRecording.here
  var site: CallSite
  /// The owner of the frames behind it; nil for the kind and the call site.
  var statedOwner: FrameOwner?

  var owner: FrameOwner { statedOwner ?? FrameOwner(kind.description, at: site) }
  /// Pages of addresses: a stack has one more, its guard page.
  var addresses: PageCount { kind == .stack ? count + .one : count }
}

extension KernelAddressSpace {
  /// Reserves the addresses of a request. Records a failure.
  func reserve(
    _ request: RangeRequest, where constraints: ArenaConstraints = ArenaConstraints()
  ) throws(KernelSpaceError) -> VirtualAddress {
    let (kind, pages) = (request.kind, request.addresses)
    guard pages > .zero, pages.rawValue <= state.pointee.layout.kernelSize.rawValue >> Page.shift else {
      throw failed(pages > .zero ? .noAddressSpace : .badConstraint, request)
    }
    if machine.failsHere(.kernelSpace) { throw failed(.noMemory, request) }
    let size = ArenaSize(pages.bytes.rawValue)
    let (priority, site) = (request.priority, request.site)
    do throws(VmemError) {
      switch kind {
      case .heap, .metadata, .interrupt:
        return VirtualAddress(
          try arena(kind).xalloc(
            size, ArenaConstraints(), priority: priority, failures: .byCaller, at: site
          ).rawValue)
      default:
        return VirtualAddress(
          try arena(kind).xalloc(
            size, constraints, policy: .bestFit, priority: priority, failures: .byCaller, at: site
          ).rawValue)
      }
    } catch {
      throw failed(KernelSpaceError(error), request)
    }
  }

  /// Releases the addresses of a range, or of a request that failed.
  func release(_ kind: RangeKind, _ address: VirtualAddress, _ pages: PageCount, _ site: CallSite) {
    let (first, size) = (ArenaAddress(address.rawValue), ArenaSize(pages.bytes.rawValue))
    switch kind {
    case .heap, .metadata, .interrupt: arena(kind).free(first, size, at: site)
    default: arena(kind).xfree(first, size, at: site)
    }
  }

  func count(_ kind: RangeKind, mapped pages: PageCount) {
    state.pointee.counts[Int(kind.rawValue)].add(pages.rawValue, ordering: .relaxed)
    state.pointee.counts[16 + Int(kind.rawValue)].add(1, ordering: .relaxed)
  }
  func count(_ kind: RangeKind, unmapped pages: PageCount) {
    state.pointee.counts[Int(kind.rawValue)].subtract(pages.rawValue, ordering: .relaxed)
    state.pointee.counts[16 + Int(kind.rawValue)].subtract(1, ordering: .relaxed)
  }

  /// Counts and records a failure, unless the caller does. Returns the error.
  func failed(_ error: KernelSpaceError, _ request: RangeRequest) -> KernelSpaceError {
    guard request.failures == .here else { return error }
    state.pointee.failures.add(1, ordering: .relaxed)
    func refusedRequest() -> RefusedRequest {
      let reason: StaticString =
        switch error {
        case .noMemory: "no memory"
        case .noAddressSpace: "no addresses"
        case .badConstraint: "never"
        }
      var refused = RefusedRequest(
        .space, request.count.bytes, priority: request.priority,
        requester: request.owner.requester, reason: reason)
      refused.site = request.site
      return refused
    }
    machine.record(refusedRequest())
    return error
  }
}
