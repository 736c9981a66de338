// Ranges over consecutive frames: contiguous memory, and frames that the caller owns; with a cache attribute.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Vmem

/// Contiguous memory and its mapping.
public struct ContiguousRange: Equatable, Sendable {
  /// The first address.
  public var address: VirtualAddress
  /// The frames behind it.
  public var frames: FrameRun

  /// Describes `frames` mapped at `address`.
  public init(address: VirtualAddress, frames: FrameRun) {
    self.address = address
    self.frames = frames
  }
}

extension KernelAddressSpace {
  /// Allocates `count` consecutive frames that satisfy `constraints`, and maps them writable with `attribute`. Errors:
  /// no such run, table or tag; no addresses; constraints that contradict each other. Never waits, moves or launders a
  /// page.
  package func allocateContiguous(
    _ count: PageCount, where constraints: RunConstraints = RunConstraints(),
    attribute: CacheAttribute = .writeBack, contents: InitialContents = .unknown,
    priority: AllocationPriority = .normal,
    at site: CallSite = .here
  ) throws(KernelSpaceError) -> ContiguousRange {
    let request = RangeRequest(
      kind: .contiguous, count: count, priority: priority, contents: contents, site: site)
    guard count > .zero else { throw failed(.badConstraint, request) }
    if machine.failsHere(.kernelSpace) { throw failed(.noMemory, request) }
    let run: FrameRun
    do throws(PhysicalMemoryError) {
      run = try physical.allocateUnlogged(
        run: count, where: constraints, role: .contiguous, priority: priority, for: request.owner)
    } catch {
      throw failed(KernelSpaceError(error), request)
    }
    do throws(KernelSpaceError) {
      return ContiguousRange(address: try map(run, attribute, request), frames: run)
    } catch {
      physical.free(run)
      throw error
    }
  }

  /// Maps a run of the caller's with the role `contiguous`, as `allocateContiguous` does: `freeContiguous` frees the
  /// range and the frames. Errors as `mapFrames`; the frames then stay the caller's. Some ten instructions a frame, and
  /// 512 stores more for one that must be zero.
  ///
  /// A frame with another role, or an address without memory: a fault report and `badConstraint`; nothing has changed.
  package func mapContiguous(
    _ run: FrameRun, attribute: CacheAttribute = .writeBack, contents: InitialContents = .unknown,
    priority: AllocationPriority = .normal, failures: FailureRecording = .here, at site: CallSite = .here
  ) throws(KernelSpaceError) -> VirtualAddress {
    let request = RangeRequest(
      kind: .contiguous, count: run.count, priority: priority, contents: contents, failures: failures,
      site: site)
    guard run.count > .zero, isOwned(run, as: .contiguous, site), isWriteBack(run) else {
      throw failed(.badConstraint, request)
    }
    return try map(run, attribute, request)
  }

  /// Frees a range of `allocateContiguous` or `mapContiguous`, all of it. Its frames have a write-back alias again
  /// before they are free. Returns false after a fault report, as `freeWired`.
  @discardableResult
  package func freeContiguous(
    _ address: VirtualAddress, _ count: PageCount, at site: CallSite = .here
  ) -> Bool {
    let tags = RangeTagSet(RangeKind.contiguous.tag)
    guard
      unmap(
        address, count, tags, site,
        visit: { start, pages in
          restoreAlias(start, pages)
          free(start, pages)
        }) != nil
    else { return false }
    release(.contiguous, address, count, site)
    return true
  }

  /// Maps frames of the caller's, writable with `attribute`. While they are mapped here, the direct map maps them with
  /// the same attribute. Errors: no table or tag; no addresses; `badConstraint` for no frames, and for frames that are
  /// mapped already with another attribute than write-back. Some hundred instructions a frame.
  ///
  /// A frame that is free, or an address without memory: a fault report and `badConstraint`; nothing has changed.
  package func mapFrames(
    _ run: FrameRun, _ attribute: CacheAttribute = .writeBack, priority: AllocationPriority = .normal,
    at site: CallSite = .here
  ) throws(KernelSpaceError) -> VirtualAddress {
    let request = RangeRequest(kind: .callerFrames, count: run.count, priority: priority, site: site)
    guard run.count > .zero, isOwned(run, as: nil, site), isWriteBack(run) else {
      throw failed(.badConstraint, request)
    }
    return try map(run, attribute, request)
  }

  /// Unmaps a range of `mapFrames`. The frames stay the caller's. Fault reports as `freeWired`.
  package func unmapFrames(_ address: VirtualAddress, _ count: PageCount, at site: CallSite = .here) {
    let tags = RangeTagSet(RangeKind.callerFrames.tag)
    guard unmap(address, count, tags, site, visit: { restoreAlias($0, $1) }) != nil else { return }
    release(.callerFrames, address, count, site)
  }

  /// Whether each frame of the run is allocated, and has `role` if one is given; reports the first that is not.
  private func isOwned(_ run: FrameRun, as role: FrameRole?, _ site: CallSite) -> Bool {
    if let role, physical.firstFrame(of: run, without: role) == nil { return true }
    for offset in 0..<run.count.rawValue {
      let number = UInt64(run.first.rawValue) + offset
      var found = FrameRole.absent
      if number < UInt64(FrameNumber.limit) {
        found = physical.record(FrameNumber(UInt32(number)))?.role ?? .absent
      }
      let isAllocated = found != .free && found != .absent
      if isAllocated && (role == nil || role == found) { continue }
      var fault = FaultReport(
        isAllocated ? .wrongType : .notAllocated,
        isAllocated
          ? "a frame to be mapped is not contiguous memory" : "a frame to be mapped is free, or no memory",
        number, .frame)
      fault.given = run.count.rawValue
      fault.reportedAt = site
      machine.report(fault)
      return false
    }
    return true
  }

  /// Whether the alias of the run is write-back: then no caller has it mapped with another attribute. A step for each
  /// leaf.
  private func isWriteBack(_ run: FrameRun) -> Bool {
    var offset: UInt64 = 0
    while offset < run.count.rawValue {
      let frame = run.first + PageCount(offset)
      guard let place = tables.translate(alias(frame.address)), place.attribute == .writeBack else {
        return false
      }
      let span = place.level.span.rawValue
      offset += span - UInt64(frame.rawValue) % span
    }
    return true
  }

  /// Maps `run` at new addresses, after its alias has the same attribute.
  private func map(
    _ run: FrameRun, _ attribute: CacheAttribute, _ request: RangeRequest
  ) throws(KernelSpaceError) -> VirtualAddress {
    let kind = request.kind
    let address = try reserve(request, where: Self.congruent(to: run.first.address, run.count))
    if request.contents == .zero { zero(run) }
    do throws(PageTableError) {
      try setAlias(run, attribute)
      do throws(PageTableError) {
        try tables.map(
          address, to: run.first.address, count: run.count, protection: .kernelData, attribute: attribute,
          leaves: .whole, tag: kind.tag)
      } catch {
        restoreAlias(run.first.address, run.count)
        throw error
      }
    } catch {
      release(kind, address, run.count, request.site)
      throw failed(.noMemory, request)
    }
    count(kind, mapped: run.count)
    return address
  }
}
