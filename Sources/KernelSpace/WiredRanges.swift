// Wired memory: frames taken singly, in whatever order, behind addresses in a row; and stacks, which have
// an unmapped page below them.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Vmem

/// A stack of whole pages with an unmapped one below.
public struct Stack: Equatable, Sendable {
  /// The lowest address that is mapped: what lies in the page below faults.
  public var bottom: VirtualAddress
  public var count: PageCount
  /// Where the stack pointer begins: behind the highest byte.
  public var top: VirtualAddress { bottom + count }
  /// The page that is not mapped.
  public var guardPage: VirtualAddress { VirtualAddress(bottom.rawValue - Page.size) }

  public init(bottom: VirtualAddress, count: PageCount) {
    self.bottom = bottom
    self.count = count
  }
}

/// Frames between two calls, few enough for the stack.
struct FrameBatch {
  static var capacity: UInt64 { 32 }
  private var frames: InlineArray<32, FrameNumber> = .init(repeating: .none)

  mutating func withFrames<R, E>(
    _ count: Int, _ body: (UnsafeMutableBufferPointer<FrameNumber>) throws(E) -> R
  ) throws(E) -> R {
    try withUnsafeMutablePointer(to: &frames) { array throws(E) in
      let first = UnsafeMutableRawPointer(array).assumingMemoryBound(to: FrameNumber.self)
      return try body(UnsafeMutableBufferPointer(start: first, count: count))
    }
  }
}

extension KernelAddressSpace {
  /// `count` pages of writable memory that can't be executed, wired, at addresses in a row. The frames
  /// behind them get `role`, and lie wherever there are some. Never waits.
  ///
  /// Errors: no frames, tables or tags; no addresses; a count of zero. Costs some hundred instructions a
  /// page, and 512 stores more for a page that must be zero.
  public func allocateWired(
    _ count: PageCount, from arena: WiredArena = .heap, role: FrameRole = .wired,
    priority: AllocationPriority = .normal,
    contents: InitialContents = .unknown, at site: CallSite = .here
  ) throws(KernelSpaceError) -> VirtualAddress {
    let kind = RangeKind(arena)
    let address = try reserve(kind, count, priority, site)
    do throws(KernelSpaceError) {
      try back(address, count, kind, role, priority, contents)
    } catch {
      giveBack(kind, address, count, site)
      throw failed(error, kind, count, priority, site)
    }
    note(kind, came: count)
    return address
  }

  /// Gives back what `allocateWired` gave, all of it. False when it was not that.
  ///
  /// Another size, an address that is free, inside a range or none of ours: a fault report, and
  /// nothing has changed.
  @discardableResult
  public func freeWired(_ address: VirtualAddress, _ count: PageCount, at site: CallSite = .here) -> Bool {
    let kinds = RangeTagSet(RangeKind.heap.tag).union(RangeTagSet(RangeKind.metadata.tag))
      .union(RangeTagSet(RangeKind.interrupt.tag)).union(RangeTagSet(RangeKind.kernel.tag))
    guard let kind = unmap(address, count, kinds, site, visit: free) else { return false }
    giveBack(kind, address, count, site)
    return true
  }

  /// A stack of `count` pages, its guard page not counted. Errors as `allocateWired`.
  public func allocateStack(
    _ count: PageCount, priority: AllocationPriority = .normal, contents: InitialContents = .unknown,
    at site: CallSite = .here
  ) throws(KernelSpaceError) -> Stack {
    guard count > .zero else { throw failed(.badConstraint) }
    guard count.rawValue < .max else { throw failed(.noAddressSpace) }
    let guardPage = try reserve(.stack, count + .one, priority, site)
    let stack = Stack(bottom: guardPage + PageCount.one, count: count)
    do throws(KernelSpaceError) {
      try back(stack.bottom, count, .stack, .stack, priority, contents)
    } catch {
      giveBack(.stack, guardPage, count + .one, site)
      throw failed(error, .stack, count, priority, site)
    }
    note(.stack, came: count)
    return stack
  }

  /// Gives a stack back. Faults as `freeWired`. Nobody runs on it any more.
  public func freeStack(_ stack: Stack, at site: CallSite = .here) {
    guard unmap(stack.bottom, stack.count, RangeTagSet(RangeKind.stack.tag), site, visit: free) != nil
    else { return }
    giveBack(.stack, stack.guardPage, stack.count + .one, site)
  }

  /// Maps single frames behind the range, 32 at a time; takes all back when that fails.
  private func back(
    _ address: VirtualAddress, _ count: PageCount, _ kind: RangeKind, _ role: FrameRole,
    _ priority: AllocationPriority,
    _ contents: InitialContents
  ) throws(KernelSpaceError) {
    var batch = FrameBatch()
    var done: UInt64 = 0
    while done < count.rawValue {
      let some = Int(min(FrameBatch.capacity, count.rawValue - done))
      do throws(KernelSpaceError) {
        try batch.withFrames(some) { frames throws(KernelSpaceError) in
          try fill(frames, role, priority, contents)
          do throws(PageTableError) {
            try tables.map(
              address + PageCount(done), frames: UnsafeBufferPointer(frames), protection: .kernelData,
              tag: done == 0 ? kind.tag : .none)
          } catch {
            for frame in frames { physical.free(FrameRun(first: frame, count: .one)) }
            throw .noMemory
          }
        }
      } catch {
        if done > 0 { tables.unmap(address, count: PageCount(done), visit: free) }
        throw error
      }
      done += UInt64(some)
    }
  }

  private func fill(
    _ frames: UnsafeMutableBufferPointer<FrameNumber>, _ role: FrameRole, _ priority: AllocationPriority,
    _ contents: InitialContents
  ) throws(KernelSpaceError) {
    do throws(PhysicalMemoryError) {
      try physical.allocate(into: frames, role: role, priority: priority)
    } catch {
      throw KernelSpaceError(error)
    }
    if contents == .zero {
      for frame in frames { zero(FrameRun(first: frame, count: .one)) }
    }
  }

  /// Zeroes frames through the direct map.
  func zero(_ run: FrameRun) {
    machine.directMap.pointer(to: run.first).initializeMemory(
      as: UInt64.self, repeating: 0, count: Int(run.count.bytes.rawValue / 8))
  }

  // MARK: Unmapping

  /// Unmaps a range that is one of `kinds` and has `count` pages; reports anything else. Answers the kind
  /// that it was.
  func unmap(
    _ address: VirtualAddress, _ count: PageCount, _ kinds: RangeTagSet, _ site: CallSite,
    visit: (PhysicalAddress, PageCount) -> Void
  ) -> RangeKind? {
    let check = tables.unmapRange(address, count: count, accepting: kinds, visit: visit)
    if case .unmapped(let tag) = check, let kind = RangeKind(rawValue: tag.rawValue) {
      note(kind, went: count)
      return kind
    }
    refuse(address, count, check, site)
    return nil
  }

  @inline(never) func refuse(
    _ address: VirtualAddress, _ count: PageCount, _ check: RangeCheck, _ site: CallSite
  ) {
    let what = whatIs(address)
    var fault: FaultReport
    switch check {
    case .otherCount(let pages):
      fault = FaultReport(
        .wrongSize, "a range was freed with another number of pages", address.rawValue, .virtualAddress)
      fault.expected = pages.rawValue
    case .otherTag(let tag):
      fault = FaultReport(
        .wrongType, "a range was freed as another kind than it is", address.rawValue, .virtualAddress)
      fault.expected = UInt64(tag.rawValue)
    case .notTheStart:
      fault = FaultReport(
        .foreignPointer, "what was freed is not the start of a range", address.rawValue, .virtualAddress)
      fault.expected = what.range?.address.rawValue ?? 0
    case .notMapped, .unmapped:
      let isOurs = what.segment?.kind == .free
      fault = FaultReport(
        isOurs ? .doubleFree : .foreignPointer,
        isOurs ? "a range was freed while free" : "what was freed is no range of kernel space",
        address.rawValue, .virtualAddress)
    }
    fault.given = count.rawValue
    fault.owner = what.arena
    fault.allocatedAt = what.segment?.allocatedAt ?? .unknown
    fault.reportedAt = site
    machine.report(fault)
  }
}
