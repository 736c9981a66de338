// Import: a span from the arena's source, and the same seen from the arena that is the source of another one.

import MemoryPrimitives

/// A span that a source gave, and the start of the segment in it that satisfies the request.
struct ImportedSpan {
  let start: UInt64
  let last: UInt64
  let segment: UInt64
}

extension Arena {
  /// Imports a span that satisfies the request, and cuts the segment out of it.
  func importSpan(_ source: ArenaSource, _ attempt: AllocationAttempt, _ aftermath: inout Aftermath)
    -> UInt64?
  {
    guard let span = requestSpan(source, attempt) else { return nil }
    return accept(span, source, attempt, &aftermath)
  }

  /// Adds a span that the source gave, and cuts the segment out of it. If space has become free in the arena during
  /// the upcall, the request gets that and the span goes back.
  func accept(
    _ span: ImportedSpan, _ source: ArenaSource, _ attempt: AllocationAttempt, _ aftermath: inout Aftermath
  ) -> UInt64 {
    let request = attempt.request
    let (start, isSurplus) = state.core.withLock { core -> (UInt64, Bool) in
      if let start = attempt.waiter.pointer?.pointee.start { return (start, true) }
      if attempt.policy == .instantFit, let found = core.findInstantly(request) {
        core.conclude(attempt, at: found.start)
        grant(&core, found, attempt, &aftermath)
        return (found.start, true)
      }
      core.conclude(attempt, at: span.segment)
      let segment = core.addSpan(.imported, span.start, span.last)
      core.carve(segment, span.segment, span.segment + request.extent, attempt.site)
      state.allocations.add()
      state.imports.add()
      if !core.waiters.isEmpty {
        count(core.serve(from: FreshSpace(before: core.lastSpan, last: span.last)), &aftermath)
      }
      state.segments.set(core.lists.count + core.hash.count)
      aftermath.wantsPage = core.hash.wantsPage
      return (span.segment, false)
    }
    if isSurplus { source.release(span.start, span.last) }
    return start
  }

  /// Asks the source for a span; answers it with the start of the segment in it. The size is rounded up to the unit of
  /// import. If the source refuses that, or the rounding could break a constraint, the size is the request's.
  private func requestSpan(_ source: ArenaSource, _ attempt: AllocationAttempt) -> ImportedSpan? {
    let request = attempt.request
    let isFree = request.nocross == 0 && request.minimum == 0 && request.maximum == UInt64.max
    let large = request.extent | (state.importUnit - 1)
    var extents = [request.extent, request.extent] as InlineArray<2, UInt64>
    if isFree { extents[0] = large }
    for i in 0..<2 where i == 0 || extents[0] != extents[1] {
      guard !state.machine.failsHere(.vmem), extents[i] != UInt64.max else { continue }
      let wanted = ImportRequest(request, extent: extents[i], priority: attempt.priority, site: attempt.site)
      guard let span = source.requestSpan(wanted) else { continue }
      let mask = state.quantum - 1
      if span.start & mask == 0, span.last & mask == mask,
        let segment = request.lowestStart(in: span.start, span.last)
      {
        return ImportedSpan(start: span.start, last: span.last, segment: segment)
      }
      source.release(span.start, span.last)
    }
    return nil
  }

  // MARK: An arena as the source of another

  /// Translates what another arena requests into a size and constraints here. If this arena's quantum is larger than
  /// that arena's, the phase is rounded down to this quantum and the remainder added to the size: the segment lies so
  /// far inside the span.
  func exported(_ request: ImportRequest) -> (ArenaSize, ArenaConstraints)? {
    let quantum = state.quantum
    var size = request.size
    var constraints = request.constraints
    let inset = constraints.phase.rawValue & (quantum - 1)
    if inset != 0 {
      let larger = size.rawValue.addingReportingOverflow(inset)
      guard !larger.overflow else { return nil }
      size = ArenaSize(larger.partialValue)
      constraints.phase = ArenaSize(constraints.phase.rawValue - inset)
      if constraints.minimum.rawValue != 0 {
        constraints.minimum = ArenaAddress(
          constraints.minimum.rawValue > inset ? constraints.minimum.rawValue - inset : 0)
      }
    }
    // A window ends where the segment ends; the values that rounding adds may lie beyond.
    let rounding = ((size.rawValue - 1) | (quantum - 1)) - (size.rawValue - 1)
    let (end, isBeyond) = constraints.maximum.rawValue.addingReportingOverflow(rounding)
    constraints.maximum = isBeyond ? .highest : ArenaAddress(end)
    if let nocross = constraints.nocross, nocross.rawValue < quantum { constraints.nocross = nil }
    return (size, constraints)
  }

  /// Allocates the span that another arena requests.
  func export(_ request: UnsafeMutablePointer<ImportRequest>) -> Bool {
    guard let (size, constraints) = exported(request.pointee) else { return false }
    do {
      let first = try xalloc(
        size, constraints, policy: .instantFit, priority: request.pointee.priority, at: request.pointee.site)
      request.pointee.first = first
      request.pointee.last = ArenaAddress(first.rawValue + ((size.rawValue - 1) | (state.quantum - 1)))
      return true
    } catch {
      return false
    }
  }

  /// Frees a span that `export` allocated.
  func acceptReturn(_ first: UInt64, _ last: UInt64) {
    xfree(ArenaAddress(first), ArenaSize(last - first + 1))
  }
}
