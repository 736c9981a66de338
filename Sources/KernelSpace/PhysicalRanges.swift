// Ranges for physical memory that lies where it must: device registers, contiguous frames, frames that the
// caller has already; with a cache attribute.

import CPlatform
import MemoryPrimitives
import PageTables
import PhysicalMemory
import Vmem

/// Contiguous memory and where it is mapped.
public struct ContiguousRange: Equatable, Sendable {
  public var address: VirtualAddress
  public var frames: FrameRun

  public init(address: VirtualAddress, frames: FrameRun) {
    self.address = address
    self.frames = frames
  }
}

extension KernelAddressSpace {
  // MARK: Device registers

  /// Maps `length` bytes of registers from `physical` on, whatever its offset in a page, into the device
  /// window; large leaves where both fit. `badConstraint` for no bytes, for what wraps, and for memory of
  /// the map that is not to be write-back: it has a write-back alias, see `mapFrames`.
  public func mapDevice(
    _ physical: PhysicalAddress, _ length: ByteCount, _ attribute: CacheAttribute = .uncached,
    at site: CallSite = .here
  ) throws(KernelSpaceError) -> VirtualAddress {
    let limit = UInt64(1) << 52
    guard length > .zero, physical.rawValue < limit, length.rawValue <= limit - physical.rawValue,
      case let first = PhysicalAddress(physical.rawValue - physical.offsetInPage),
      case let count = Self.pages(physical.offsetInPage, length),
      attribute == .writeBack || !hasAlias(first, count)
    else { throw failed(.badConstraint) }
    let address = try reserve(.device, count, .normal, site, Self.inStep(first, count))
    do throws(PageTableError) {
      try tables.map(
        address, to: first, count: count, protection: .kernelData, attribute: attribute, leaves: .whole,
        tag: RangeKind.device.tag)
    } catch {
      giveBack(.device, address, count, site)
      throw failed(.noMemory)
    }
    note(.device, came: count)
    return address + ByteCount(physical.offsetInPage)
  }

  /// Undoes `mapDevice` with what it gave and the same length. Faults as `freeWired`.
  public func unmapDevice(_ address: VirtualAddress, _ length: ByteCount, at site: CallSite = .here) {
    let count = Self.pages(address.offsetInPage, length)
    guard
      unmap(address.page, count, RangeTagSet(RangeKind.device.tag), site, visit: { _, _ in }) != nil
    else { return }
    giveBack(.device, address.page, count, site)
  }

  private static func pages(_ offset: UInt64, _ length: ByteCount) -> PageCount {
    let room = UInt64.max - offset
    return ByteCount(min(room, length.rawValue) + offset).pagesRoundedUp
  }

  /// Whether the direct map shows any page of the range.
  private func hasAlias(_ first: PhysicalAddress, _ count: PageCount) -> Bool {
    let end = UInt64(FrameNumber.limit) << Page.shift
    guard first.rawValue < end else { return false }
    let pages = min(count.rawValue, (end - first.rawValue) >> Page.shift)
    return tables.isAnyMapped(alias(first), count: PageCount(pages))
  }

  /// Addresses that leave the same remainder as the physical ones by the largest leaf that fits in.
  private static func inStep(_ first: PhysicalAddress, _ count: PageCount) -> ArenaConstraints {
    var constraints = ArenaConstraints()
    let leaf: UInt64 = count.rawValue >= 1 << 18 ? 1 << 30 : 2 << 20
    if count.rawValue >= 512, let alignment = Alignment(leaf) {
      constraints.alignment = alignment
      constraints.phase = ArenaSize(first.rawValue & (leaf - 1))
    }
    return constraints
  }

  // MARK: Contiguous memory

  /// `count` frames in a row that satisfy `constraints`, mapped writable with `attribute`. Errors: no such
  /// run, table or tag; no addresses; constraints that contradict each other. Never waits, moves or
  /// launders anything.
  public func allocateContiguous(
    _ count: PageCount, where constraints: RunConstraints = RunConstraints(),
    attribute: CacheAttribute = .writeBack, contents: InitialContents = .unknown,
    priority: AllocationPriority = .normal,
    at site: CallSite = .here
  ) throws(KernelSpaceError) -> ContiguousRange {
    guard count > .zero else { throw failed(.badConstraint) }
    if machine.failsHere(.kernelSpace) { throw failed(.noMemory) }
    let run: FrameRun
    do throws(PhysicalMemoryError) {
      run = try physical.allocate(run: count, where: constraints, role: .contiguous, priority: priority)
    } catch {
      throw failed(KernelSpaceError(error), .contiguous, count, priority, site)
    }
    do throws(KernelSpaceError) {
      return ContiguousRange(
        address: try mapRun(run, attribute, .contiguous, contents, priority, site), frames: run)
    } catch {
      physical.free(run)
      throw error
    }
  }

  /// Maps a run that the caller has with the role `contiguous`, as `allocateContiguous` does: the range is the
  /// same from there on, so `freeContiguous` frees the frames with it. Errors as `mapFrames`; the frames then
  /// stay the caller's. Some ten instructions a frame, and 512 stores more for one that must be zero.
  ///
  /// A frame with another role, or no memory: a fault report and `badConstraint`; nothing has changed.
  public func mapContiguous(
    _ run: FrameRun, attribute: CacheAttribute = .writeBack, contents: InitialContents = .unknown,
    priority: AllocationPriority = .normal, at site: CallSite = .here
  ) throws(KernelSpaceError) -> VirtualAddress {
    guard run.count > .zero, isOwned(run, as: .contiguous, site), isWriteBack(run) else {
      throw failed(.badConstraint)
    }
    return try mapRun(run, attribute, .contiguous, contents, priority, site)
  }

  /// Gives back what `allocateContiguous` or `mapContiguous` gave, all of it: its frames have a write-back
  /// alias again before they are free. False when it was not that; faults as `freeWired`.
  @discardableResult
  public func freeContiguous(
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
    giveBack(.contiguous, address, count, site)
    return true
  }

  /// Maps frames that the caller has, writable with `attribute`. While they are mapped here, the direct
  /// map shows them with the same attribute. Errors: no table or tag; no addresses; `badConstraint` for no
  /// frames, and for frames that are mapped already with another attribute than write-back. Some hundred
  /// instructions a frame.
  ///
  /// A frame that is free, or no memory: a fault report and `badConstraint`; nothing has changed.
  public func mapFrames(
    _ run: FrameRun, _ attribute: CacheAttribute = .writeBack, priority: AllocationPriority = .normal,
    at site: CallSite = .here
  ) throws(KernelSpaceError) -> VirtualAddress {
    guard run.count > .zero, isOwned(run, as: nil, site), isWriteBack(run) else {
      throw failed(.badConstraint)
    }
    return try mapRun(run, attribute, .callerFrames, .unknown, priority, site)
  }

  /// Undoes `mapFrames`. The frames stay the caller's. Faults as `freeWired`.
  public func unmapFrames(_ address: VirtualAddress, _ count: PageCount, at site: CallSite = .here) {
    let tags = RangeTagSet(RangeKind.callerFrames.tag)
    guard unmap(address, count, tags, site, visit: { restoreAlias($0, $1) }) != nil else { return }
    giveBack(.callerFrames, address, count, site)
  }

  /// Whether each frame of the run is somebody's, and has `role` if one is given; reports the first that is
  /// not.
  private func isOwned(_ run: FrameRun, as role: FrameRole?, _ site: CallSite) -> Bool {
    if let role, physical.firstFrame(of: run, without: role) == nil { return true }
    for offset in 0..<run.count.rawValue {
      let number = UInt64(run.first.rawValue) + offset
      var found = FrameRole.absent
      if number < UInt64(FrameNumber.limit) {
        found = physical.record(FrameNumber(UInt32(number)))?.role ?? .absent
      }
      let isSomebodys = found != .free && found != .absent
      if isSomebodys && (role == nil || role == found) { continue }
      var fault = FaultReport(
        isSomebodys ? .wrongType : .notAllocated,
        isSomebodys
          ? "a frame to be mapped is not contiguous memory" : "a frame to be mapped is free, or no memory",
        number, .frame)
      fault.given = run.count.rawValue
      fault.reportedAt = site
      machine.report(fault)
      return false
    }
    return true
  }

  /// Whether the direct map shows the run write-back: nobody has it mapped otherwise. A step for each leaf.
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

  private func mapRun(
    _ run: FrameRun, _ attribute: CacheAttribute, _ kind: RangeKind, _ contents: InitialContents,
    _ priority: AllocationPriority, _ site: CallSite
  ) throws(KernelSpaceError) -> VirtualAddress {
    let address = try reserve(kind, run.count, priority, site, Self.inStep(run.first.address, run.count))
    if contents == .zero { zero(run) }
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
      giveBack(kind, address, run.count, site)
      throw failed(.noMemory)
    }
    note(kind, came: run.count)
    return address
  }

  // MARK: The alias in the direct map

  /// Gives the frames' alias the attribute that they are about to be mapped with, and empties the caches
  /// of what was written through it.
  private func setAlias(_ run: FrameRun, _ attribute: CacheAttribute) throws(PageTableError) {
    guard attribute != .writeBack else { return }
    try tables.setAttribute(alias(run.first.address), count: run.count, attribute)
    let start = UnsafeRawPointer(machine.directMap.pointer(to: run.first))
    for line in 0..<Int(run.count.bytes.rawValue / 64) { cp_flush_line(start + line * 64) }
  }

  /// Makes the frames' alias write-back again, with the large leaves that it had.
  private func restoreAlias(_ start: PhysicalAddress, _ count: PageCount) {
    guard let translation = tables.translate(alias(start)), translation.attribute != .writeBack else {
      return
    }
    do throws(PageTableError) {
      try tables.setAttribute(alias(start), count: count, .writeBack)
    } catch {
      // The alias has had boundaries at both ends of the run since its attribute was set. Ranges come here
      // in parts that end where tables of the mapping do; the alias is in step with it, so no leaf of the
      // alias reaches over such an end.
      preconditionFailure("an alias could not be made write-back again")
    }
    tables.join(alias(start), count: count)
  }

  private func alias(_ start: PhysicalAddress) -> VirtualAddress {
    machine.directMap.virtualAddress(of: start)
  }
}
