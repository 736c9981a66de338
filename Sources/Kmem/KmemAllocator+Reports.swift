// Reports of kmem: refusals for the failure log, and faults of callers with all that the audit knows of the object.

import MemoryPrimitives
import PhysicalMemory

extension KmemAllocator {
  /// Counts a request as refused, and records it in the failure log, unless the caller does both.
  func recordRefusal(
    _ request: AllocationRequest, as requester: ShortName? = nil, because reason: StaticString = "no memory"
  ) {
    guard request.failures == .here else { return }
    request.type.countAllocation(CacheIndex.failed)
    func refusedRequest() -> RefusedRequest {
      var refused = RefusedRequest(
        .object, ByteCount(request.size), priority: request.priority,
        requester: requester ?? request.type.name,
        reason: reason)
      refused.site = request.site
      return refused
    }
    machine.record(refusedRequest())
  }

  /// Reports a free of an address that kmem never returned.
  func reportForeign(_ request: FreeRequest) {
    var fault = FaultReport(
      .foreignPointer, "freed an address that kmem never returned", VirtualAddress(request.object).rawValue,
      .virtualAddress)
    fault.given = request.size
    fault.type = request.type?.name
    fault.reportedAt = request.site
    machine.report(fault)
  }

  /// Reports a wrong free of an address in a slab.
  func report(
    _ kind: FaultKind, _ what: StaticString, _ location: ObjectLocation, _ request: FreeRequest
  ) {
    var fault = FaultReport(kind, what, VirtualAddress(request.object).rawValue, .virtualAddress)
    fault.given = request.size
    fault.expected = UInt64(location.cache.size)
    fault.owner = location.cache.name
    fault.type = request.type?.name
    fault.reportedAt = request.site
    if let entry = addAudit(to: &fault, location.slab, location.index), kind != .wrongType {
      fault.expected = UInt64(entry.size)
    }
    machine.report(fault)
  }

  /// Adds the audit's record of an object to a report on it.
  private func addAudit(to fault: inout FaultReport, _ slab: Slab, _ index: Int) -> AuditEntry? {
    guard slab.isAudited && index < slab.objects else { return nil }
    let entry = slab.entry(index).pointee
    guard entry.period != 0 else { return nil }
    fault.allocatedAt = entry.allocatedAt
    fault.freedAt = entry.freedAt
    fault.type = type(at: entry.type)?.name
    return entry
  }

  /// Reports a stray write, if there was one, by the object that it hit or ran over the end of.
  func report(_ damage: CachePointer.Damage?, _ cache: CachePointer, at site: CallSite = .unknown) {
    guard let damage else { return }
    guard let index = damage.index else {
      let map = damage.slab.tables.unsafelyUnwrapped
      var fault = FaultReport(
        damage.kind, "the map of a slab was written to; the slab allocates no more",
        VirtualAddress(map).rawValue, .virtualAddress)
      fault.owner = cache.name
      fault.reportedAt = site
      return machine.report(fault)
    }
    let what: StaticString =
      damage.kind == .overrun
      ? "a write ran over the end of an object"
      : "a free object was written to; its slab allocates no more"
    let object = cache.object(damage.slab, index)
    var fault = FaultReport(damage.kind, what, VirtualAddress(object).rawValue, .virtualAddress)
    fault.owner = cache.name
    fault.reportedAt = site
    _ = addAudit(to: &fault, damage.slab, index)
    machine.report(fault)
  }

  func reportDestroyed(_ cacheIndex: Int) {
    machine.report(
      FaultReport(.notAllocated, "a cache was used after it was destroyed", UInt64(cacheIndex), .identifier))
  }
}
