// Zsmalloc: objects of 1 to 4096 bytes, packed into chains of single pages.
//
// It keeps many objects of odd sizes, such as compressed pages, and never asks for more than single frames, so
// fragmented memory is as good as any. An object may straddle two pages. Its owner has a handle, not an address:
// objects move when the store is compacted, and pages when a contiguous request needs their frames.
//
// STRUCTURES
//   A zspage is a chain of up to eight pages, cut into equal slots (ChainClasses). It has frames only for the pages
//   that an object touches: the first object of a class costs one frame, and a page is freed with the last object on
//   it. Its descriptor is a cache line (Zspage) in a table that grows by frames (EntryTable). A frame's record names
//   its zspage (owner) and its page there (aux).
//   A cell, 4 bytes in a second table, says where an object is: its zspage and slot. A handle is the index of a cell
//   and the object's length. The first 4 bytes of a slot hold the index of the cell, so a slot leads back to its
//   handle. So an object costs 8 bytes beside its data, and its share of a descriptor. No cell names frames: a moved
//   page changes its zspage's descriptor only.
//   Lists: zspages of a class that have a free slot, in four groups by their share of slots in use. The fullest is
//   used first.
//
// INVARIANTS (checkInvariants)
//   ZS-1  A live cell names an occupied slot of a zspage, and that slot names the cell. There are as many of both.
//   ZS-2  A zspage has a frame for each page that an occupied slot touches, and for no other; it has at least one
//         object.
//   ZS-3  The record of such a frame has role zspage, one wire, and names the zspage and the page. No other frame has
//         the role.
//   ZS-4  A zspage with a free slot is in the list of its class and group, any other in none.
//   ZS-5  Counts of objects and frames are right.
//   ZS-6  When nothing runs, no zspage is pinned or excluded.
//
// LOCKS
//   One spin lock (rank `zsmalloc`) guards all but what readers need. It is held for a search of four lists, for at
//   most four objects that are moved, or one page: under 10,000 instructions. One lock is enough: a store compresses
//   for 34,000 instructions outside of it, and holds it for some 200. No frame is allocated or freed while it is
//   held.
//   A reader takes no lock. With interrupts off it reads the cell, pins the zspage, and reads the cell again. A
//   processor that moves objects or a page out of a zspage holds the lock and passes over a zspage that is pinned. It
//   excludes the readers of the others, and admits them when it is done. A moved object's cell changes after its
//   bytes are in place. A freed descriptor stays in memory until every processor has answered, so a reader may pin
//   one; it finds the cell changed, and tries again.
//   A writer pins its new object's zspage before the lock is released, and copies without it.
//
// COST
//   Store: constant; frames are allocated for a page in which nothing lies yet. Free and read: constant. Compaction:
//   see there.
//
// EXHAUSTION
//   A store works out under the lock which frames it lacks, allocates them without it, and looks again; then it can't
//   fail. A refused one has changed nothing. Free and read never need memory. Compaction needs two spare frames at
//   most, and does without them where objects fit into pages that are there.
//
// SOURCES
//   N. Gupta and S. Jennings, zsmalloc, linux-mm 2012; Linux, Documentation/mm/zsmalloc.rst. Chains with holes, cells
//   of four bytes and compaction across classes are not in Linux.

import KernelSpace
import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// Why an object or a page was not stored. Nothing has changed.
public enum ZsmallocError: UInt8, Error, Sendable {
  /// No frame is free.
  case noMemory
  /// The store has as many frames as its limit allows.
  case limitReached
  /// An object has 1 to 4096 bytes, a page 4096.
  case badSize
}

/// Names an object: a value that its owner keeps, and gives back once. It stays the same however the object moves.
@frozen public struct ZspageHandle: Equatable, Sendable {
  /// The handle as an integer, for a table of the owner's; never 0, and never with the highest bit set.
  public let rawValue: UInt64
  /// Makes a handle of its integer.
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inline(__always) init(cell: UInt32, length: Int) { rawValue = UInt64(length) << 32 | UInt64(cell) }
  @inline(__always) var cell: UInt32 { UInt32(truncatingIfNeeded: rawValue) }
  /// Bytes of the object; any number below 2^32 if the handle is none.
  @inline(__always) var length: Int { Int(rawValue >> 32) }
  /// Bytes of the object.
  public var byteCount: ByteCount { ByteCount(rawValue >> 32) }
}

/// A store of objects: a handle.
public struct ZspageAllocator {
  /// Set once by `create`; what changes is atomic, or under the lock.
  struct State: ~Copyable {
    let machine: Machine
    let physical: FrameAllocator
    let classes: ChainClasses
    /// The cells, for readers.
    let cells: EntryDirectory
    /// The descriptors, for readers.
    let zspages: EntryDirectory
    let lists: Locked<ZspageLists>
    /// The most frames; 0 for no limit.
    let limit = Atomic<UInt64>(0)
    /// For an allocator that has kernel space.
    let places: UnsafeMutablePointer<StraddlingPlaces>?
  }

  let state: UnsafeMutablePointer<State>

  var machine: Machine { state.pointee.machine }
  var physical: FrameAllocator { state.pointee.physical }
  var lists: Locked<ZspageLists> { _read { yield state.pointee.lists } }
  var counters: ZspageCounters { unsafeAddress { UnsafePointer(lists.quiet.pointee.counters) } }
  @inline(__always) var classes: ChainClasses { state.pointee.classes }

  // MARK: Create

  private struct Layout {
    let state, classes, lookup, heads, counts, cells, zspages, counters, places: Int
    let size: ByteCount
    init() {
      var layout = StorageLayout()
      state = layout.add(State.self)
      counters = layout.add(ZspageCounters.self)
      classes = layout.add(ChainClass.self, count: ChainClasses.limit)
      lookup = layout.add(UInt8.self, count: ChainClasses.lookupSize)
      heads = layout.add(UInt32.self, count: ChainClasses.limit * FullnessGroup.listCount)
      counts = layout.add(ClassCounts.self, count: ChainClasses.limit)
      cells = layout.add(Atomic<UInt32>.self, count: EntryDirectory.wordCount)
      zspages = layout.add(Atomic<UInt32>.self, count: EntryDirectory.wordCount)
      places = layout.add(StraddlingPlaces.self)
      size = layout.size
    }
  }

  /// Bytes of storage for `create`.
  package static var stateSize: ByteCount { Layout().size }

  /// Makes an empty store of frames of `physical` in `stateSize` bytes of storage that outlive it. Costs some 50,000
  /// instructions, and no frame. Without kernel space, straddling objects are reached in two parts only.
  package static func create(
    in storage: UnsafeMutableRawPointer, machine: Machine, physical: FrameAllocator,
    space: KernelAddressSpace?
  ) -> ZspageAllocator {
    let layout = Layout()
    let classes = ChainClasses(
      storage.part(ChainClass.self, at: layout.classes, count: ChainClasses.limit),
      storage.part(UInt8.self, at: layout.lookup, count: ChainClasses.lookupSize))
    let counters = storage.part(ZspageCounters.self, at: layout.counters)
    counters.initialize(to: ZspageCounters())
    let cells = EntryTable(
      storage.part(Atomic<UInt32>.self, at: layout.cells, count: EntryDirectory.wordCount),
      stride: Cell.size, linkOffset: 0, machine.directMap)
    let zspages = EntryTable(
      storage.part(Atomic<UInt32>.self, at: layout.zspages, count: EntryDirectory.wordCount),
      stride: Zspage.size, linkOffset: Zspage.linkOffset, machine.directMap)
    let lists = ZspageLists(
      physical: physical, directMap: machine.directMap, classes: classes,
      heads: storage.part(
        UInt32.self, at: layout.heads, count: ChainClasses.limit * FullnessGroup.listCount),
      counts: storage.part(ClassCounts.self, at: layout.counts, count: ChainClasses.limit),
      cells: cells, zspages: zspages, counters: counters)
    var places: UnsafeMutablePointer<StraddlingPlaces>?
    if let space {
      places = storage.part(StraddlingPlaces.self, at: layout.places)
      places?.initialize(to: StraddlingPlaces(space))
    }
    let state = storage.part(State.self, at: layout.state)
    state.initialize(
      to: State(
        machine: machine, physical: physical, classes: classes, cells: cells.directory,
        zspages: zspages.directory, lists: Locked(.zsmalloc, lists), places: places))
    return ZspageAllocator(state: state)
  }

  // MARK: Store

  /// Stores a copy of 1 to 4096 bytes, and answers their handle. Allocates a frame or two where the object lies in
  /// pages that have none. May sleep for them if `waitPolicy` says so. Throws `noMemory`, `limitReached` or
  /// `badSize`.
  public func store(
    _ bytes: UnsafeRawBufferPointer, priority: AllocationPriority = .normal,
    waitPolicy: WaitPolicy = .forbidden
  ) throws(ZsmallocError) -> ZspageHandle {
    guard bytes.count > 0, bytes.count <= Int(Page.size) else { throw .badSize }
    if machine.failsHere(.zsmalloc) { throw .noMemory }
    var supply = ZspageSupply()
    let placed: PlacedObject?
    do throws(ZsmallocError) {
      placed = try place(bytes.count, &supply, priority, waitPolicy)
    } catch {
      release(&supply)
      throw error
    }
    release(&supply)
    guard let placed else { throw .noMemory }
    write(bytes, to: placed)
    placed.zspage.unpin()
    return ZspageHandle(cell: placed.cell, length: bytes.count)
  }

  /// Finds a slot, and allocates what it lacks.
  private func place(
    _ length: Int, _ supply: inout ZspageSupply, _ priority: AllocationPriority, _ waitPolicy: WaitPolicy
  ) throws(ZsmallocError) -> PlacedObject? {
    while true {
      let limit = state.pointee.limit.load(ordering: .relaxed)
      switch lists.withLock({ $0.place(length, &supply, limit: limit) }) {
      case .placed(let placed): return placed
      case .isFull: return nil
      case .exceedsLimit: throw .limitReached
      case .lacks(let data, let tables):
        while supply.data.count < data {
          supply.data.push(try allocateFrame(.zspage, priority, waitPolicy))
        }
        while supply.tables.count < tables {
          let frame = try allocateFrame(.wired, priority, waitPolicy)
          machine.directMap.pointer(to: frame).initializeMemory(
            as: UInt64.self, repeating: 0, count: Int(Page.size) / 8)
          supply.tables.push(frame)
        }
      }
    }
  }

  /// Allocates one frame, and logs a refusal.
  private func allocateFrame(
    _ role: FrameRole, _ priority: AllocationPriority, _ waitPolicy: WaitPolicy
  ) throws(ZsmallocError) -> FrameNumber {
    do throws(PhysicalMemoryError) {
      let owner = FrameOwner("Zsmalloc, tables")
      guard waitPolicy.mayWait else {
        return try physical.allocate(BlockOrder(0), role: role, priority: priority, for: owner)
      }
      return try physical.allocate(
        BlockOrder(0), role: role, priority: priority, waitUntil: waitPolicy.deadline, for: owner)
    } catch {
      throw .noMemory
    }
  }

  /// Frees the frames that were not used or that became free. No lock is held.
  func release(_ supply: inout ZspageSupply) {
    while supply.data.count > 0 { physical.free(FrameRun(first: supply.data.pop(), count: .one)) }
    while supply.freed.count > 0 { physical.free(FrameRun(first: supply.freed.pop(), count: .one)) }
    while supply.tables.count > 0 { physical.free(FrameRun(first: supply.tables.pop(), count: .one)) }
  }

  /// Copies the bytes into the slot, which the caller has pinned.
  private func write(_ bytes: UnsafeRawBufferPointer, to placed: PlacedObject) {
    let target = location(of: placed.slot, in: placed.zspage, length: bytes.count)
    target.first.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[..<target.first.count]))
    guard target.second.count > 0 else { return }
    target.second.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[target.first.count...]))
  }

  // MARK: Free

  /// Frees an object. Constant; frees the frames that no object touches any more. Reports a fault, changes nothing,
  /// and answers false, if the handle names no object of this store.
  @discardableResult public func free(_ handle: ZspageHandle) -> Bool {
    var supply = ZspageSupply()
    let answer = lists.withLock { $0.free(handle, &supply) }
    release(&supply)
    switch answer {
    case .freed: return true
    case .freedLast:
      releaseTables()
      return true
    case .notAllocated: report(.notAllocated, "the handle names no object of the store", handle)
    case .wrongSize: report(.wrongSize, "the handle's length is not that of its object", handle)
    }
    return false
  }

  /// Frees the tables of a store without objects, eight frames in one hold of the lock.
  private func releaseTables() {
    var supply = ZspageSupply()
    while lists.withLock({ $0.releaseCells(&supply) }) { release(&supply) }
    release(&supply)
    releaseDescriptors()
  }

  func report(_ kind: FaultKind, _ what: StaticString, _ handle: ZspageHandle) {
    var fault = FaultReport(kind, what, handle.rawValue, .identifier)
    fault.owner = "zsmalloc"
    fault.reportedAt = .here
    machine.report(fault)
  }
}

extension ZspageAllocator: @unchecked Sendable {}
