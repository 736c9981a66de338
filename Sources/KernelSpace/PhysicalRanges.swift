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
}

extension KernelSpace {
  // MARK: Device registers

  /// Maps `length` bytes of registers from `physical` on, whatever its offset in a page, into the device
  /// window; large leaves where both fit. `badConstraint` for no bytes, for what wraps, and for memory of
  /// the map that is not to be write-back: it has a write-back alias, see `mapGiven`.
  public func mapDevice(
    _ physical: PhysicalAddress, _ length: ByteCount, _ attribute: CacheAttribute = .uncached,
    at site: CallSite = .here
  ) throws(KernelSpaceError) -> VirtualAddress {
    let limit = UInt64(1) << 52
    guard length > .zero, physical.rawValue < limit, length.rawValue <= limit - physical.rawValue,
      attribute == .writeBack || !holdsMemory(physical, length)
    else { throw failed(.badConstraint) }
    let first = PhysicalAddress(physical.rawValue - physical.offsetInPage)
    let count = Self.pages(physical.offsetInPage, length)
    var constraints = ArenaConstraints()
    if count.rawValue >= 512, let large = Alignment(2 << 20) {
      constraints.alignment = large
      constraints.phase = ArenaSize(first.rawValue & (2 << 20 - 1))
    }
    let address = try reserve(.device, count, .normal, site, constraints)
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

  /// Whether any frame of the range is memory that the map gave us.
  private func holdsMemory(_ start: PhysicalAddress, _ length: ByteCount) -> Bool {
    let first = start.rawValue >> Page.shift
    let last = (start.rawValue + (length.rawValue - 1)) >> Page.shift
    guard first < UInt64(FrameNumber.limit) else { return false }
    for frame in first...min(last, UInt64(FrameNumber.limit) - 1) {
      if physical.whatIs(FrameNumber(UInt32(frame))).role != .absent { return true }
    }
    return false
  }

  // MARK: Contiguous memory

  /// `count` frames in a row that satisfy `constraints`, mapped writable with `attribute`. Errors: no such
  /// run, table or tag; no addresses; constraints that contradict each other. Never waits, moves or
  /// launders anything.
  public func allocateContiguous(
    _ count: PageCount, where constraints: RunConstraints = RunConstraints(),
    attribute: CacheAttribute = .writeBack, contents: InitialContents = .unknown, level: Level = .normal,
    at site: CallSite = .here
  ) throws(KernelSpaceError) -> ContiguousRange {
    guard count > .zero else { throw failed(.badConstraint) }
    if machine.failsHere(.kernelSpace) { throw failed(.noMemory) }
    let run: FrameRun
    do throws(PhysicalMemoryError) {
      run = try physical.allocate(run: count, where: constraints, role: .contiguous, level: level)
    } catch {
      throw failed(KernelSpaceError(error))
    }
    if contents == .zero { zero(run) }
    do throws(KernelSpaceError) {
      return ContiguousRange(address: try mapRun(run, attribute, .contiguous, level, site), frames: run)
    } catch {
      physical.free(run)
      throw error
    }
  }

  /// Gives back what `allocateContiguous` gave, all of it: its frames have a write-back alias again
  /// before they are free. Faults as `freeWired`.
  public func freeContiguous(_ address: VirtualAddress, _ count: PageCount, at site: CallSite = .here) {
    let tags = RangeTagSet(RangeKind.contiguous.tag)
    guard
      unmap(
        address, count, tags, site,
        visit: { start, pages in
          restoreAlias(start, pages)
          free(start, pages)
        }) != nil
    else { return }
    giveBack(.contiguous, address, count, site)
  }

  /// Maps frames that the caller has, writable with `attribute`. While they are mapped here, the direct
  /// map shows them with the same attribute.
  public func mapGiven(
    _ run: FrameRun, _ attribute: CacheAttribute = .writeBack, level: Level = .normal,
    at site: CallSite = .here
  ) throws(KernelSpaceError) -> VirtualAddress {
    guard run.count > .zero else { throw failed(.badConstraint) }
    return try mapRun(run, attribute, .given, level, site)
  }

  /// Undoes `mapGiven`. The frames stay the caller's. Faults as `freeWired`.
  public func unmapGiven(_ address: VirtualAddress, _ count: PageCount, at site: CallSite = .here) {
    let tags = RangeTagSet(RangeKind.given.tag)
    guard unmap(address, count, tags, site, visit: { restoreAlias($0, $1) }) != nil else { return }
    giveBack(.given, address, count, site)
  }

  private func mapRun(
    _ run: FrameRun, _ attribute: CacheAttribute, _ kind: RangeKind, _ level: Level, _ site: CallSite
  ) throws(KernelSpaceError) -> VirtualAddress {
    var constraints = ArenaConstraints()
    if run.count.rawValue >= 512, let large = Alignment(2 << 20) {
      constraints.alignment = large
      constraints.phase = ArenaSize(run.first.address.rawValue & (2 << 20 - 1))
    }
    let address = try reserve(kind, run.count, level, site, constraints)
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
      // The range has had boundaries at both ends since its attribute was set, so no leaf is split.
      preconditionFailure("an alias could not be made write-back again")
    }
    tables.join(alias(start), count: count)
  }

  private func alias(_ start: PhysicalAddress) -> VirtualAddress {
    machine.directMap.virtualAddress(of: start)
  }
}
