// The page tables of x86-64: map, unmap, protect, cache attributes, leaves of 4 KiB, 2 MiB and 1 GiB.
//
// Four levels, or five where the machine has them. The processor reads the same memory that is written here.
// So an entry is always stored whole, and a table is filled before it is linked.
//
// STRUCTURES
//   The tree: tables of 512 entries, reached through the direct map, under one spin lock (TableTree). Bits that the
//   processor ignores hold what this layer records of a table or a leaf (PageTableEntry), so no table needs a record.
//   The reserved tables: one for each splittable leaf, on a stack that is linked through the tables themselves.
//   A prepared place: an entry of 4 KiB whose table stays and that keeps a mark. Paging maps and unmaps single pages
//   there with a lock of lower rank held (PageablePages.swift). It keeps its mark while mapped, and is in no range.
//   A page window: two places for each processor and depth, which that processor maps and unmaps without the lock
//   (PageWindows.swift). Their entries are marked, and are in no count of leaves.
//   A range: the first page of it may carry a tag. It reaches to the next tag, or to the next page that is not
//   mapped. So the tables record what was mapped together, and for which purpose. `unmapRange` detects a wrong size
//   or a foreign address before it changes anything.
//
// INVARIANTS (checkInvariants, PageMap+Invariants.swift)
//   PT-1  An entry that points to a table holds the number of that table's entries that are not zero.
//   PT-2  No table but the root is empty: the step that empties a table unlinks it. An unlinked table is empty.
//   PT-3  A leaf's address is a multiple of its size, and its reserved bits are zero. A leaf is dirty if, and only
//         if, it is writable, and accessed unless it is pageable.
//   PT-4  No leaf is writable and executable. (proveWriteXorExecute: no frame is, over all its aliases.)
//   PT-5  There are as many reserved tables as splittable leaves, so unmapping a part of one needs no memory.
//   PT-6  The counts of tables, unlinked ones included, and of leaves outside of page windows are right.
//   PT-7  A place of a page window is closed, or maps a frame that can't be executed.
//
// MEMORY. Tables come from a `FrameSource`, one by one, before the lock is taken. A step under the lock returns how
// many it needs; the operation drops the lock, allocates them, and repeats the step. `prepare` leaves marks where a
// later map must need no memory.
//
// Unmapping never needs memory. A range is *made not present*: its entries lose "present" and keep the address. Then
// it is shot down with no lock held. Then it is *reclaimed*: the frames go to the caller, the entries are cleared,
// and empty tables are unlinked. So the tables themselves are the list of frames during the shootdown, however long
// the range is. A large leaf that may be unmapped in part is *splittable* and has a reserved table. Any other large
// leaf is unmapped whole.
//
// A change of protection or attribute may split a leaf at either end of its range; it allocates the tables first.
// `join` makes large leaves again, but never while a change runs, which relies on the boundaries that it made.
// It is deferred until the last change ends.
//
// UNLINKED TABLES. A processor may cache an entry that led to a table after that entry was cleared, and then it
// walks the table (SDM vol. 3, 4.10.3, 4.10.4.4). So the entry of an unlinked table is not free. It keeps the
// table's address, without "present", until one more invalidation is complete on every processor. That empties
// the caches of inner entries, whatever its address is (4.10.4.1). Only then the entry is cleared and the table
// freed. A map that meets such an entry before puts the same table back into the tree, which is right for
// every processor. Where a large leaf is to stand, the map carries out the invalidation itself. Nothing waits for
// another thread here, so interrupts may be off. Invalidations have numbers, and an unlinked table holds the one
// it waits for in its first word. So a table that was put back and unlinked again is not freed too early.
//
// LOCKS
//   One spin lock, of rank `pageTables`. A step under it is bounded by half a table: at most 256 entries checked and
//   written, some 8 000 instructions; long ranges are many steps. A range belongs to its caller: two callers that
//   work on the same range are a bug, which is reported where it is detected, and the tables stay whole. Call every
//   operation but those on prepared places with no spin lock held, as it allocates frames and shoots down.
//
// COST
//   A step walks three or four entries and then goes along the table: 4 to 10 instructions a page.
//
// EXHAUSTION
//   When the source has no frame, the operation unmaps what it has mapped so far and throws `noMemory`, with all as
//   before. Unmapping, `unprepare`, `join` and all operations on prepared places need no memory and can't fail.
//
// SOURCES
//   Intel SDM vol. 3, chapter 4 (paging), 12.12 (page attribute table), and 4.10.4 (invalidation).

import CPlatform
import MemoryPrimitives

/// Why an operation failed. Nothing has changed.
@frozen @usableFromInline package enum PageTableError: UInt8, Error, Sendable {
  /// No frame is free for a table.
  case noMemory
}

/// The number of levels of the tree.
@frozen public enum PagingLevels: UInt8, Sendable {
  /// Addresses of 48 bits.
  case four = 4
  /// Addresses of 57 bits.
  case five = 5
}

/// The largest leaf that the processor offers.
@frozen public enum LargestLeaf: UInt8, Sendable {
  /// 2 MiB: every processor with long mode.
  case mebibytes2 = 2
  /// 1 GiB.
  case gibibyte = 3
}

/// Which leaves a map may use.
@frozen @usableFromInline package enum LeafSizes: UInt8, Sendable {
  /// 4 KiB only.
  case pages
  /// As large as alignment allows; a large leaf is unmapped as a whole or not at all.
  case whole
  /// Up to 2 MiB, with a reserved table for each, so that any part can be unmapped.
  case splittable

  var largest: Int {
    switch self {
    case .pages: 1
    case .whole: 3
    case .splittable: 2
    }
  }
}

/// The memory that an address translates to.
public struct PageTranslation: Equatable, Sendable {
  /// The physical address of the byte.
  public var physical: PhysicalAddress
  /// The level of the leaf.
  public var level: TableLevel
  /// The leaf's rights.
  public var protection: Protection
  /// The leaf's cache attribute.
  public var attribute: CacheAttribute
}

/// One tree of tables: a handle. Operations may run on several processors at once.
public struct PageMap {
  struct State: ~Copyable {
    let machine: Machine
    let levels: Int
    let root: FrameNumber
    let tree: Locked<TableTree>
    let windows: UnsafeMutablePointer<PageWindows.State>
  }
  let state: UnsafeMutablePointer<State>

  private struct Parts {
    let state: Int
    let windows: Int
    let size: ByteCount

    init(processors: Int) {
      var layout = StorageLayout()
      state = layout.add(State.self)
      windows = layout.add(PageWindows.size(processors: processors))
      size = layout.size
    }
  }

  /// Bytes that the state of a tree needs, aligned to a cache line.
  package static func stateSize(processors: Int) -> ByteCount { Parts(processors: processors).size }

  /// Creates an empty tree in `memory`, which outlives it; the root comes from `frames`.
  ///
  /// `machine` must reach all frames of `frames` by its direct map. Throws `noMemory` when there is no frame.
  package init(
    in memory: UnsafeMutableRawPointer, machine: Machine, levels: PagingLevels, largestLeaf: LargestLeaf,
    frames: FrameSource
  ) throws(PageTableError) {
    guard let root = Self.allocateTable(machine, frames) else { throw .noMemory }
    let parts = Parts(processors: machine.processorCount)
    state = memory.part(State.self, at: parts.state)
    let tree = TableTree(
      directMap: machine.directMap, levels: Int(levels.rawValue), largestLeaf: Int(largestLeaf.rawValue),
      root: root, source: frames, reserved: FrameStack(machine.directMap))
    state.initialize(
      to: State(
        machine: machine, levels: Int(levels.rawValue), root: root, tree: Locked(.pageTables, tree),
        windows: memory.part(PageWindows.State.self, at: parts.windows)))
    windows.initialize(for: self)
  }

  @inline(__always) func withTree<R>(_ body: (inout TableTree) -> R) -> R {
    state.pointee.tree.withLock { tree in body(&tree) }
  }

  var machine: Machine { state.pointee.machine }

  /// The address of the root, for CR3.
  public var root: PhysicalAddress { state.pointee.root.address }
  /// The number of levels.
  public var levels: PagingLevels { state.pointee.levels == 5 ? .five : .four }

  /// Allocates tables from `frames` from now on, and frees them there: early memory first, the frame allocator
  /// later.
  package func setSource(_ frames: FrameSource) { withTree { $0.source = frames } }

  // MARK: Steps and tables

  /// Runs `step` along the range. Returns the page of the first conflict, if any.
  @inline(__always) func firstConflict(
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

  /// Allocates a zeroed table.
  static func allocateTable(_ machine: Machine, _ source: FrameSource) -> FrameNumber? {
    if machine.failsHere(.pageTables) { return nil }
    guard let frame = source.allocate() else { return nil }
    machine.directMap.pointer(to: frame).initializeMemory(as: UInt64.self, repeating: 0, count: 512)
    return frame
  }

  /// Brings `preallocated` to `count` tables. Returns false, and frees all of them, when no frame is left.
  func allocateTables(_ count: Int, into preallocated: inout FrameStack) -> Bool {
    let source = withTree { $0.source }
    while preallocated.count < count {
      guard let table = Self.allocateTable(machine, source) else {
        freeTables(&preallocated)
        return false
      }
      preallocated.push(table)
    }
    return true
  }

  /// Frees all tables of a stack.
  func freeTables(_ stack: inout FrameStack) {
    guard stack.count > 0 else { return }
    let source = withTree { $0.source }
    while let table = stack.popIfAny() { source.free(table) }
  }

  /// Whether one step sees all of the range: then the step that changes it also checks it.
  func liesInOneTable(_ address: VirtualAddress, _ count: PageCount) -> Bool {
    let last = address.rawValue + (count.rawValue - 1) << Page.shift
    return address.rawValue >> TableTree.shift(2) == last >> TableTree.shift(2)
  }

  func report(_ kind: FaultKind, _ what: StaticString, _ address: VirtualAddress, _ page: UInt64 = 0) {
    machine.report(
      FaultReport(kind, what, address.rawValue &+ page << Page.shift, .virtualAddress))
  }

  /// Whether the range is canonical and consists of whole pages; reports it if not.
  func isSound(_ address: VirtualAddress, _ count: PageCount) -> Bool {
    guard isRange(address, count) else {
      report(.badConstraint, "a range is not of whole pages at canonical addresses", address)
      return false
    }
    guard !windows.overlap(address, count) else {
      report(.badConstraint, "a range lies in the page windows", address)
      return false
    }
    return true
  }

  func isRange(_ address: VirtualAddress, _ count: PageCount) -> Bool {
    let last = address.rawValue.addingReportingOverflow((count.rawValue &- 1) << Page.shift)
    let top = TableTree.shift(state.pointee.levels) + 8
    let oneHalf = address.rawValue >> top == last.partialValue >> top
    return address.offsetInPage == 0 && isCanonical(address) && count > .zero
      && count.rawValue <= 1 << 52 && !last.overflow && oneHalf
  }

  func isSound(_ protection: Protection, _ address: VirtualAddress) -> Bool {
    if !protection.isSuperset(of: [.writable, .executable]) { return true }
    report(.badConstraint, "a mapping would be writable and executable", address)
    return false
  }

  func isSound(
    _ physical: PhysicalAddress, _ count: PageCount, _ address: VirtualAddress
  ) -> Bool {
    let limit = UInt64(1) << 52
    if physical.offsetInPage == 0, physical.rawValue < limit,
      count.rawValue <= (limit - physical.rawValue) >> Page.shift
    {
      return true
    }
    report(.badConstraint, "a range is not of whole frames below 2 to the 52nd", address)
    return false
  }
}

// All state behind a handle is under a lock, atomic, or belongs to one processor.
extension PageMap: @unchecked Sendable {}
