// The page tables of x86-64: map, unmap, protect, cache attributes, leaves of 4 KiB, 2 MiB and 1 GiB.
//
// Source: Intel SDM vol. 3, chapter 4 (paging) and 12.12 (page attribute table); the invalidation rules
// of 4.10.4. Four levels, or five where the machine has them. The processor reads the same memory that
// is written here, so an entry is always stored whole, and a table is filled before it is linked.
//
// STRUCTURES. A tree of tables of 512 entries, reached through the direct map, under one spin lock; what
// has to be remembered of a table or leaf stands in bits that the processor ignores (PageTableEntry), so
// no table needs a record. A stack of spare tables.
//
// LAWS (checkInvariants)
//   1. An entry that points to a table holds the number of that table's entries that are not zero.
//   2. No table but the root is empty: what empties a table takes it out. An unlinked table is empty.
//   3. A leaf's address is a multiple of its size; reserved bits are zero; it is dirty if it is writable, and
//      only then.
//   4. No leaf is writable and executable. (proveWriteXorExecute: no frame is, over all its aliases.)
//   5. There are as many spare tables as splittable leaves, so unmapping a part of one needs no memory.
//   6. The counts of tables, unlinked ones included, and of leaves are right.
//
// MEMORY. Tables come from a `FrameSource`, one by one, before the lock is taken: a step under the lock
// answers how many it needs, the lock is dropped, they are fetched, the step looks again. When the
// source runs dry, what was mapped so far is taken out and the operation fails with all as before.
// `prepare` puts marks where a later map shall need nothing. Unmapping needs nothing ever: a range is
// *made not present* (entries lose "present", keep the address), shot down with no lock held, then *reclaimed*:
// the frames are handed over, entries cleared, empty tables unlinked. So the tables themselves are the list
// of frames while a range is shot down, however long it is. A large leaf that may be unmapped in part is *splittable* and has a spare table put by; any other is
// unmapped whole. A change of protection or attribute may split a leaf at either end of its range; it
// fetches the tables first. `join` makes large leaves again, but never while a change is under way, which
// relies on the boundaries that it made; it is put off until the last one ends.
//
// UNLINKED TABLES. A processor may remember an entry that led to a table after that entry was cleared, and then
// walks the table (SDM vol. 3, 4.10.3, 4.10.4.4). So the entry of an unlinked table is not free: it keeps the
// table's address, without "present", until one more invalidation is complete on every processor. That empties
// the caches of inner entries, whatever its address is (4.10.4.1). Only then the entry is cleared and the table
// given back. A map that meets such an entry before puts the same table back into the tree, which is right for
// every processor; where a large leaf is to stand it carries out the invalidation itself. Nothing waits for
// another thread here, so interrupts may be off. Invalidations have numbers, and an unlinked table holds the one
// it waits for in its first word: a table that was put back and unlinked again is not freed too early.
//
// PREPARED PLACES hold the pages of paging, mapped and unmapped one by one with a lock of lower rank held
// (PageablePages.swift). They keep their mark while they are mapped, and are in no range.
//
// RANGES. The first page of a range may carry a tag: from there to the next tag, or to the next page that
// is not mapped, is one range. So the tables are also the record of what was mapped together and what
// for, and `unmapRange` tells a wrong size or a foreign address before anything was changed.
//
// LOCKS. Rank `pageTables`. A step is bounded by half a table: at most 256 entries checked and written,
// some 8 000 instructions; long ranges are many steps. A range belongs to its caller: two callers that
// work on the same range are a bug, which is reported where it is seen, and the tables stay whole.
// Every operation but those on prepared places must be called with no spin lock held, as it fetches frames
// and shoots down.
//
// COST. A step walks three or four entries and then goes along the table: 4 to 10 instructions a page.

import CPlatform
import MemoryPrimitives

/// What keeps an operation from being done, in good faith.
@frozen public enum PageTableError: UInt8, Error, Sendable {
  /// No frame for a table. Nothing has changed.
  case noMemory
}

/// Levels of the tree.
@frozen public enum PagingLevels: UInt8, Sendable {
  case four = 4
  case five = 5
}

/// The largest leaf that the processor offers.
@frozen public enum LargestLeaf: UInt8, Sendable {
  case mebibytes2 = 2
  case gibibyte = 3
}

/// Which leaves a map may use.
@frozen public enum LeafSizes: UInt8, Sendable {
  /// 4 KiB only.
  case pages
  /// As large as alignment allows; a large leaf is unmapped as a whole or not at all.
  case whole
  /// Up to 2 MiB, a spare table put by for each, so that any part can be unmapped.
  case splittable

  var largest: Int {
    switch self {
    case .pages: 1
    case .whole: 3
    case .splittable: 2
    }
  }
}

/// Where an address leads.
public struct Translation: Equatable, Sendable {
  public var physical: PhysicalAddress
  public var level: TableLevel
  public var protection: Protection
  public var attribute: CacheAttribute
}

/// One tree of tables: a handle. Operations may run on several processors at once.
public struct PageMap {
  struct State: ~Copyable {
    let machine: Machine
    let levels: Int
    let root: FrameNumber
    let tree: Locked<TableTree>
  }
  let state: UnsafeMutablePointer<State>

  /// Bytes that the state of a tree needs, aligned to 64.
  public static var stateSize: ByteCount { ByteCount(MemoryLayout<State>.size) }

  /// An empty tree in `memory`, which outlives it; the root comes from `frames`.
  ///
  /// `machine` must reach all frames of `frames` by its direct map. Fails when there is no frame.
  public init(
    in memory: UnsafeMutableRawPointer, machine: Machine, levels: PagingLevels, largestLeaf: LargestLeaf,
    frames: FrameSource
  ) throws(PageTableError) {
    guard let root = Self.takeTable(machine, frames) else { throw .noMemory }
    state = memory.bindMemory(to: State.self, capacity: 1)
    let tree = TableTree(
      directMap: machine.directMap, levels: Int(levels.rawValue), largestLeaf: Int(largestLeaf.rawValue),
      root: root, source: frames, spares: FrameStack(machine.directMap))
    state.initialize(
      to: State(
        machine: machine, levels: Int(levels.rawValue), root: root, tree: Locked(.pageTables, tree)))
  }

  @inline(__always) func withTree<R>(_ body: (inout TableTree) -> R) -> R {
    state.pointee.tree.withLock { tree in body(&tree) }
  }

  var machine: Machine { state.pointee.machine }

  /// Where CR3 is to point.
  public var root: PhysicalAddress { state.pointee.root.address }
  public var levels: PagingLevels { state.pointee.levels == 5 ? .five : .four }

  /// Takes tables from `frames` from now on, and gives them back there: early memory first, the buddy
  /// queues later.
  public func setSource(_ frames: FrameSource) { withTree { $0.source = frames } }

  // MARK: Mapping

  /// Maps `count` pages from `address` on to consecutive frames from `physical` on: all or nothing.
  ///
  /// A range that is mapped in part already, writable and executable at once, an address that is no
  /// start of a page or not canonical: a fault report, and nothing has changed.
  public func map(
    _ address: VirtualAddress, to physical: PhysicalAddress, count: PageCount, protection: Protection,
    attribute: CacheAttribute = .writeBack, leaves: LeafSizes = .pages, tag: RangeTag = .none
  ) throws(PageTableError) {
    guard isSound(address, count), isSound(protection, address), isSound(physical, count, address) else {
      return
    }
    try fill(address, count, with: .run(physical.rawValue, protection, attribute, leaves, tag))
  }

  /// Maps each of `frames`, in their order, from `address` on, by leaves of 4 KiB: all or nothing.
  public func map(
    _ address: VirtualAddress, frames: UnsafeBufferPointer<FrameNumber>, protection: Protection,
    attribute: CacheAttribute = .writeBack, tag: RangeTag = .none
  ) throws(PageTableError) {
    let count = PageCount(frames.count)
    guard isSound(address, count), isSound(protection, address), let list = frames.baseAddress else {
      return
    }
    try fill(address, count, with: .frames(list, protection, attribute, tag))
  }

  /// Keeps the places of `count` unmapped pages, so that mapping and unmapping them by leaves of 4 KiB
  /// can't fail until `unprepare`.
  public func prepare(_ address: VirtualAddress, count: PageCount) throws(PageTableError) {
    guard isSound(address, count) else { return }
    try fill(address, count, with: .marks)
  }

  /// Undoes `prepare` for pages that are not mapped. False when it reported: a page was not prepared, or is
  /// mapped; nothing has changed then.
  @discardableResult
  public func unprepare(_ address: VirtualAddress, count: PageCount) -> Bool {
    guard isSound(address, count) else { return false }
    if let at = firstConflict(count, { $0.checkMarked(address.rawValue + $1, $2) }) {
      report(.notMapped, "a page to be given up was not prepared", address, at)
      return false
    }
    reclaim(address, count, marks: true) { _, _ in }
    return true
  }

  private func fill(
    _ address: VirtualAddress, _ count: PageCount, with filling: Filling
  ) throws(PageTableError) {
    let first = address.rawValue
    if !liesInOneTable(address, count) {
      if let at = firstConflict(count, { $0.checkVacant(first + $1, $2, for: filling) }) {
        return report(.doubleMap, "a page to be mapped was in use", address, at)
      }
    }
    var preallocated = FrameStack(machine.directMap)
    var done: UInt64 = 0
    while done < count.rawValue {
      let left = count.rawValue - done
      switch withTree({
        $0.fill(first + done << Page.shift, left, with: filling, done: done, preallocated: &preallocated)
      }) {
      case .done(let pages):
        done += pages
      case .needs(let tables):
        guard fetch(tables, into: &preallocated) else {
          empty(address, PageCount(done), of: filling)
          throw .noMemory
        }
      case .needsFreeEntry:
        // The entry lies in this range alone, so nothing is unlinked there again.
        freeUnlinked(VirtualAddress(first + done << Page.shift), .one)
      case .conflict(let pages):
        giveBack(&preallocated)
        empty(address, PageCount(done), of: filling)
        return report(.doubleMap, "a page to be mapped was in use", address, done + pages)
      }
    }
    giveBack(&preallocated)
  }

  /// Takes back what `fill` has done so far.
  private func empty(_ address: VirtualAddress, _ count: PageCount, of filling: Filling) {
    guard count > .zero else { return }
    if case .marks = filling {
      reclaim(address, count, marks: true) { _, _ in }
    } else {
      unmap(address, count: count)
    }
  }

  // MARK: Unmapping

  /// Unmaps `count` pages from `address` on, on every processor: needs no memory, can't fail.
  ///
  /// A page that is not mapped, or a part of a large leaf that was not mapped splittable: a fault report,
  /// and nothing has changed.
  public func unmap(_ address: VirtualAddress, count: PageCount) {
    unmap(address, count: count) { _, _ in }
  }

  /// As above, and hands the physical memory over, in runs, after every processor has forgotten it.
  /// `visit` is called with no lock held. The addresses may be used again when this returns.
  public func unmap(
    _ address: VirtualAddress, count: PageCount, visit: (PhysicalAddress, PageCount) -> Void
  ) {
    guard makeNotPresent(address, count: count) else { return }
    machine.shootDown(address, count)
    reclaim(address, count, marks: false, visit)
  }

  /// The first half: takes "present" from the range. False when it reported.
  private func makeNotPresent(_ address: VirtualAddress, count: PageCount) -> Bool {
    guard isSound(address, count) else { return false }
    let what: StaticString = "a page to be unmapped was not mapped, or is part of an indivisible leaf"
    // Checked as a whole even inside one table: a splittable leaf at one end must not be split in vain.
    if let at = firstConflict(count, { $0.visitLeaves(address.rawValue + $1, $2, .check) }) {
      report(.notMapped, what, address, at)
      return false
    }
    if let at = makeAllNotPresent(address, count) {
      report(.notMapped, what, address, at)
      return false
    }
    return true
  }

  /// Retires a range that was checked. Answers the page that somebody unmapped meanwhile, if any; then
  /// the others are present as before.
  func makeAllNotPresent(_ address: VirtualAddress, _ count: PageCount) -> UInt64? {
    let first = address.rawValue
    let conflict = firstConflict(count, { $0.visitLeaves(first + $1, $2, .makeNotPresent) })
    if let conflict {
      _ = firstConflict(PageCount(conflict), { $0.visitLeaves(first + $1, $2, .restore) })
    }
    return conflict
  }

  /// The second half: takes non-present leaves (or marks) out, and gives back the tables that got empty.
  func reclaim(
    _ address: VirtualAddress, _ count: PageCount, marks: Bool,
    _ visit: (PhysicalAddress, PageCount) -> Void
  ) {
    var freed = FrameStack(machine.directMap)
    var unlinked = Unlinked.none
    var done: UInt64 = 0
    while done < count.rawValue {
      var reclaimed = Reclaimed()
      let (at, left) = (address.rawValue + done << Page.shift, count.rawValue - done)
      let step = withTree {
        $0.reclaim(at, left, marks: marks, into: &reclaimed, freed: &freed, &unlinked)
      }
      guard case .done(let pages) = step else { break }
      done += pages
      for i in 0..<reclaimed.count {
        visit(PhysicalAddress(reclaimed.starts[i]), PageCount(reclaimed.lengths[i]))
      }
    }
    // Spare tables of leaves that were reclaimed: no processor ever saw them.
    giveBack(&freed)
    if unlinked == .some { freeUnlinked(address, count) }
  }

  /// Gives back the tables that were unlinked among `count` pages from `address` on, once no processor remembers
  /// the way through them; a level at a time, as one that is freed may leave the next empty.
  private func freeUnlinked(_ address: VirtualAddress, _ count: PageCount) {
    var freed = FrameStack(machine.directMap)
    var unlinked = Unlinked.some
    while unlinked == .some {
      unlinked = .none
      let number = withTree { $0.beginInvalidation() }
      machine.shootDown(address.page, .one)
      var done: UInt64 = 0
      while done < count.rawValue {
        let (at, left) = (address.rawValue + done << Page.shift, count.rawValue - done)
        done += withTree { $0.freeUnlinked(at, left, invalidation: number, into: &freed, &unlinked) }
      }
      giveBack(&freed)
    }
  }

  // MARK: Changing

  /// Changes what may be done with `count` mapped pages, on every processor. May have to split large
  /// leaves at either end.
  public func protect(
    _ address: VirtualAddress, count: PageCount, _ protection: Protection
  ) throws(PageTableError) {
    guard isSound(protection, address) else { return }
    try change(address, count, to: .protection(protection))
  }

  /// Changes how `count` mapped pages are cached, on every processor. May have to split large leaves at
  /// either end. Cache lines are not written back: whoever leaves write-back flushes them afterwards
  /// (SDM vol. 3, 12.12.4).
  public func setAttribute(
    _ address: VirtualAddress, count: PageCount, _ attribute: CacheAttribute
  ) throws(PageTableError) {
    try change(address, count, to: .attribute(attribute))
  }

  private func change(
    _ address: VirtualAddress, _ count: PageCount, to change: Change
  ) throws(PageTableError) {
    guard isSound(address, count) else { return }
    let first = address.rawValue
    if let at = firstConflict(count, { $0.checkMapped(first + $1, $2) }) {
      return report(.notMapped, "a page to be changed was not mapped", address, at)
    }
    var preallocated = FrameStack(machine.directMap)
    while case .needs(let tables) = withTree({
      $0.splitEdges(first, count.rawValue, preallocated: &preallocated)
    }) {
      guard fetch(tables, into: &preallocated) else { throw .noMemory }
    }
    giveBack(&preallocated)
    let conflict = firstConflict(count, { $0.change(first + $1, $2, to: change) })
    let later = withTree { $0.endChange() }
    machine.shootDown(address, count)
    if let later { joinBlocks(later.0, later.1) }
    if let at = conflict {
      report(.notMapped, "a page was unmapped while it was being changed", address, at)
    }
  }

  /// Makes large leaves of small write-back ones that say the same for consecutive addresses, in each 2 MiB
  /// and 1 GiB that the range touches. Only for ranges that are never unmapped in part, as the direct map.
  /// Memory with another attribute stays in the parts in which it was changed, and can be changed back in
  /// them without a table.
  /// While protections or attributes are being changed it is put off until they are.
  public func join(_ address: VirtualAddress, count: PageCount) {
    guard isSound(address, count) else { return }
    joinBlocks(address.rawValue, address.rawValue + (count.rawValue - 1) << Page.shift)
  }

  private func joinBlocks(_ first: UInt64, _ last: UInt64) {
    for level in 2...3 {
      let shift = TableTree.shift(level)
      for block in (first >> shift)...(last >> shift) {
        guard let table = withTree({ $0.join(block << shift, at: level) }) else { continue }
        // Its leaves still serve processors that remember the way through it, so it is not touched before.
        machine.shootDown(VirtualAddress(block << shift), .one)
        withTree { $0.source }.give(table)
      }
    }
  }

  // MARK: Help

  /// Runs `step` along the range. Answers the page that it stopped at, if it did.
  @inline(__always) private func firstConflict(
    _ count: PageCount, _ step: (inout TableTree, _ offset: UInt64, _ left: UInt64) -> Step
  ) -> UInt64? {
    var done: UInt64 = 0
    while done < count.rawValue {
      switch withTree({ step(&$0, done << Page.shift, count.rawValue - done) }) {
      case .done(let pages): done += pages
      case .conflict(let pages): return done + pages
      case .needs, .needsFreeEntry: preconditionFailure("a step without preallocated tables asked for tables")
      }
    }
    return nil
  }

  private static func takeTable(_ machine: Machine, _ source: FrameSource) -> FrameNumber? {
    if machine.failsHere(.pageTables) { return nil }
    guard let frame = source.take() else { return nil }
    machine.directMap.pointer(to: frame).initializeMemory(as: UInt64.self, repeating: 0, count: 512)
    return frame
  }

  /// Brings `hand` to `count` tables; gives all back when that fails.
  private func fetch(_ count: Int, into preallocated: inout FrameStack) -> Bool {
    let source = withTree { $0.source }
    while preallocated.count < count {
      guard let table = Self.takeTable(machine, source) else {
        giveBack(&preallocated)
        return false
      }
      preallocated.push(table)
    }
    return true
  }

  private func giveBack(_ stack: inout FrameStack) {
    guard stack.count > 0 else { return }
    let source = withTree { $0.source }
    while let table = stack.popIfAny() { source.give(table) }
  }

  /// Whether one step sees all of the range: the check then comes with the change.
  private func liesInOneTable(_ address: VirtualAddress, _ count: PageCount) -> Bool {
    let last = address.rawValue + (count.rawValue - 1) << Page.shift
    return address.rawValue >> TableTree.shift(2) == last >> TableTree.shift(2)
  }

  func report(_ kind: FaultKind, _ what: StaticString, _ address: VirtualAddress, _ page: UInt64 = 0) {
    machine.report(
      FaultReport(kind, what, address.rawValue &+ page << Page.shift, .virtualAddress))
  }

  private func isSound(_ address: VirtualAddress, _ count: PageCount) -> Bool {
    if isRange(address, count) { return true }
    report(.badConstraint, "no range of whole pages at canonical addresses", address)
    return false
  }

  func isRange(_ address: VirtualAddress, _ count: PageCount) -> Bool {
    let last = address.rawValue.addingReportingOverflow((count.rawValue &- 1) << Page.shift)
    let top = TableTree.shift(state.pointee.levels) + 8
    let oneHalf = address.rawValue >> top == last.partialValue >> top
    return address.offsetInPage == 0 && isCanonical(address) && count > .zero
      && count.rawValue <= 1 << 52 && !last.overflow && oneHalf
  }

  private func isSound(_ protection: Protection, _ address: VirtualAddress) -> Bool {
    if !protection.isSuperset(of: [.writable, .executable]) { return true }
    report(.badConstraint, "a mapping is writable or executable, never both", address)
    return false
  }

  private func isSound(
    _ physical: PhysicalAddress, _ count: PageCount, _ address: VirtualAddress
  ) -> Bool {
    let limit = UInt64(1) << 52
    if physical.offsetInPage == 0, physical.rawValue < limit,
      count.rawValue <= (limit - physical.rawValue) >> Page.shift
    {
      return true
    }
    report(.badConstraint, "no range of whole frames below 2 to the 52nd", address)
    return false
  }
}
