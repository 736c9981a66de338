// Physical memory: the allocator of frames.
//
// Boot allocates whole pages of the firmware's map (`MemoryMap`) from `EarlyMemory`. Then the frame records are built
// (`open`), and every frame of the map is either in a buddy queue or allocated.
//
// STRUCTURES
//   frame table      finds a frame's record, and counts by 2 MiB (`FrameTable`)
//   frame records    32 bytes a frame (`FrameRecordPointer`), initialised a pageblock at a time when first needed
//   buddy queues     free blocks of 2^0 to 2^18 frames, aligned to their size, in doubly linked lists by range (below
//                    16 MiB, below 4 GiB, above) and order (`FrameDomain`)
//   counts           frames by role, each an atomic word that one processor writes at a time
//   pages            frames of pageable pages: wired or not, dirty or not; and cached pages, which are free and keep
//                    their identity (PageableFrames.swift)
//   waiters          threads that wait for frames, in a queue for each priority (FrameWaiters.swift)
//   isolations       runs that are being emptied: frames freed in them are captured (Isolation.swift)
//   failed requests  requests for which no run could be emptied, and where that may have changed (FailedRequests.swift)
// The search for such a run lies above (ContiguousMemory/RunSearch). It reads pageblock counts and record snapshots.
//
// INVARIANTS, which `checkInvariants` checks by number
//   PM-1  A queue's links, count and mask agree. A head is a free frame, marked, aligned, in the right list.
//   PM-2  Free blocks are disjoint, and lie in memory of the map. A frame is free exactly if it lies in one.
//   PM-3  Two buddies of one list are never both free at one order: all that can coalesce has.
//   PM-4  A pageblock's counts are those of its frames; pages marked as unmovable do not count as movable. A clear
//         order bit means that no block of that order lies in it.
//   PM-5  A section's free count is the sum of its pageblocks'.
//   PM-6  Counts by role are those of the frames, and add up to the frames of the map.
//   PM-7  A free frame has busy word zero, any other but a page at least a wire. A page of an object is marked as
//         unmovable exactly while it is wired; no other frame is. A lazy pageblock lies inside one free block.
//   PM-8  A free frame has no flags unless it is a cached page, and the count of cached pages is right.
//   PM-9  A captured frame (role contiguous, wired and xbusy) lies in an isolation. Each isolation counts its own, and the
//         isolations and failed requests are as many as a free looks for.
//
// LOCKS
//   One spin lock (rank `physicalDomain`) guards the `FrameDomain`, the counts of pageblocks and sections, and links and
//   marks of free blocks. It is held for one pageblock's worth of work at most: 8000 instructions to make records valid;
//   a dozen steps, one pageblock and one extent in a search (RunAllocation); 512 steps of 12 to account a block of 1 GiB. Longer work releases it between steps, and waiters are woken without it.
//   Frames that are being allocated or freed belong to their owner, who writes their records without the lock. A free
//   claims each frame by compare-and-swap first ("wired once" to "xbusy"), so one of two racing frees of a frame is
//   reported. A caller may hold the lock of an address map or an object in calls for single pages: nothing here
//   acquires a lock of lower rank. Searches for runs to empty take no lock: they read relaxed atomics, and isolation
//   tests what they find.
//
// COST
//   Allocation of a block: constant, up to 18 splits; the first use of a pageblock initialises its 512 records.
//   Free: constant a frame, up to 18 merges for each aligned part.
//   A run: constant when a free block holds it whatever its position. Else a walk from the top of its range: a step for
//   each pageblock that can't hold it, and at worst one for each frame of a pageblock that can.
//   Free, cache or reactivate a page: constant.
//   While there are no isolations and no failed requests, a free pays one load for both. An allocation pays one load for
//   cached pages.
//
// EXHAUSTION
//   A request that finds no memory changes nothing and throws. All choices are made under the lock before the first
//   change, so nothing is ever undone, but for two cases: the claims of a free that meets a bug, and an isolation whose
//   frames others allocate while it has released the lock. A request that may wait joins a queue (FrameWaiters.swift).
//
// SOURCES
//   K. C. Knowlton, "A fast storage allocator", CACM 8(10), 1965: the buddy system. FreeBSD's vm_phys.c: lists by range,
//   order and pool; vm_page.c: wire, hold and busy. Linux' Documentation/mm: pageblocks, movable and unmovable frames,
//   watermarks.

import MemoryPrimitives
import Synchronization

/// Why a request was refused. Nothing was changed.
public enum PhysicalMemoryError: UInt8, Error, Sendable {
  /// Not enough free frames above the reserve of the request's priority, or no block or run that fits.
  case noMemory
  /// No machine could grant it: no pages, a boundary shorter than the run, an order above 18, an empty range of
  /// addresses.
  case badConstraint
  /// The requested frame is not free.
  case notFree
  /// The requested frame is no memory of the map.
  case outsideMemory
  /// The map has too little memory, or none in one run, for frame records.
  case tooSmall
}

/// A list of free blocks by their addresses.
@frozen @usableFromInline package enum RangeList: UInt8, CaseIterable, Sendable {
  case below16MiB, below4GiB, above

  /// The number of lists.
  package static var count: Int { 3 }

  @inline(always) static func of(_ frame: UInt32) -> Int {
    frame < 4096 ? 0 : frame < 1 << 20 ? 1 : 2
  }
  /// Frames that the list may hold: from, up to.
  var bounds: (UInt32, UInt32) {
    switch self {
    case .below16MiB: (0, 4096)
    case .below4GiB: (4096, 1 << 20)
    case .above: (1 << 20, FrameNumber.limit)
    }
  }
  /// The addresses as the console prints them.
  package var description: StaticString {
    switch self {
    case .below16MiB: "below 16 MiB"
    case .below4GiB: "below 4 GiB"
    case .above: "above 4 GiB"
    }
  }
}

/// Frames from `first` up to `end`.
package struct FrameSpan {
  package var first: UInt32
  package var end: UInt32

  package init(first: UInt32, end: UInt32) { (self.first, self.end) = (first, end) }
}

/// Counters that change under the domain lock and are read without it.
struct FrameEvents: ~Copyable {
  /// Attempts that found no memory, those on behalf of layers above and of waiters included.
  let failedAttempts = Counter()
  let allocations = Counter()
  let frees = Counter()
  let failures = Counter()
  let runs = Counter()
  let runFailures = Counter()
  let runSteps = Counter()
  let waits = Counter()
  let reactivations = Counter()
  let isolations = Counter()
  let captures = Counter()
}

/// All physical memory of an instance: a handle.
public struct FrameAllocator {
  /// Set once by `open`; state that changes is atomic, under the lock, or behind a pointer.
  struct State: ~Copyable {
    let machine: Machine
    let table: FrameTable
    let domain: Locked<FrameDomain>
    let events: UnsafeMutablePointer<FrameEvents>
    let supplies: UnsafeMutablePointer<Supply>
    /// The map without the frames that are permanent: sorted runs.
    let spans: UnsafeBufferPointer<FrameSpan>
    let total: UInt64
    let recordsRun: FrameRun
    let waiting = WaitQueue("free frames", .memory)
    let lowMemory = LowMemoryNotification()
    var owners = ReclaimableOwners()
    /// The procedure that empties a block; unset before the layer of contiguous memory is up.
    var blockEmptier: BlockEmptier?
    /// The layer that reclaims pages where no page daemon has a thread.
    var pageReclaimer: PageReclaimer?
  }
  /// The context of a frame source.
  struct Supply {
    var state: UnsafeMutablePointer<State>
    var role: FrameRole
    var priority: AllocationPriority
  }

  let state: UnsafeMutablePointer<State>
  init(state: UnsafeMutablePointer<State>) { self.state = state }
  init(_ context: UnsafeMutableRawPointer?) {
    state = context.unsafelyUnwrapped.assumingMemoryBound(to: State.self)
  }

  package var machine: Machine { state.pointee.machine }
  /// The records and counts, for searches that take no lock.
  @inline(__always) package var table: FrameTable { state.pointee.table }
  var events: UnsafeMutablePointer<FrameEvents> { state.pointee.events }
  /// The counters, in place.
  @inline(always) var counted: FrameEvents { unsafeAddress { UnsafePointer(events) } }
  @inline(always) var domain: Locked<FrameDomain> { _read { yield state.pointee.domain } }
  /// The map without permanent frames: sorted runs.
  var spans: UnsafeBufferPointer<FrameSpan> { state.pointee.spans }

  /// Runs of the map without permanent frames.
  package var spanCount: Int { spans.count }
  /// Returns one of these runs; they are sorted.
  package func span(_ number: Int) -> FrameSpan { spans[number] }

  // MARK: Counts

  /// Frames of the map, whatever their role. Constant.
  public var total: PageCount { PageCount(state.pointee.total) }
  /// Free frames. Constant; exact when nothing runs.
  public var freeCount: PageCount { count(.free) }
  /// Returns the number of frames with `role`. Constant. All roles but `absent` add up to `total`.
  public func count(_ role: FrameRole) -> PageCount { PageCount(table.count(role)) }
  /// The frames that hold records and tables of this layer.
  package var recordsRun: FrameRun { state.pointee.recordsRun }

  // MARK: Records

  /// Returns the record of `frame`, for a caller that has allocated the frame. Returns nil when it lies in no pageblock that
  /// has memory, or in one that no frame was allocated of. Constant, but for the first call for a pageblock that boot
  /// occupied as a whole.
  @inline(__always) package func record(_ frame: FrameNumber) -> FrameRecordPointer? {
    guard table.section(of: frame.rawValue) != nil else { return nil }
    if table.pageblock(frame.rawValue).state == .valid { return table.record(frame.rawValue) }
    return recordSlow(frame)
  }

  /// Returns the record of a frame that is known to have a valid one, because the caller has allocated it. Two loads and
  /// no check.
  @inline(__always) package func knownRecord(_ frame: FrameNumber) -> FrameRecordPointer {
    table.record(frame.rawValue)
  }

  /// Returns the records of the pageblock of `frame`; no records where they are not valid. Takes no lock and makes no
  /// record valid: for a number that may be of no frame at all.
  @inline(never) package func validRecords(around frame: FrameNumber) -> PageblockRecords {
    guard table.section(of: frame.rawValue) != nil, table.pageblock(frame.rawValue).state == .valid else {
      return PageblockRecords()
    }
    let first = Pageblock.first(frame.rawValue)
    return PageblockRecords(first: first, records: table.record(first))
  }

  @inline(never) func recordSlow(_ frame: FrameNumber) -> FrameRecordPointer? {
    domain.withLock { _ in
      let pageblock = table.pageblock(frame.rawValue)
      switch pageblock.state {
      case .lazy: return nil
      case .uniform:
        if pageblock.role == .absent { return nil }
        table.materialize(frame.rawValue)
      case .valid: break
      }
      return table.record(frame.rawValue)
    }
  }

  /// Reads what the failure log says of memory. Takes the domain lock.
  var freeMemoryReader: FreeMemoryReader {
    FreeMemoryReader(UnsafeMutableRawPointer(state)) { context, count, priority in
      let memory = FrameAllocator(context)
      switch FreeMemoryReader.Count(rawValue: count) {
      case .reserved: return memory.domain.withLock { $0.reserves[Int(priority)] }
      case .awaited: return memory.domain.withLock { $0.waitedFor }
      default: return memory.freeCount.rawValue
      }
    }
  }

  // MARK: Frame sources

  /// Returns a source of single frames with `role`, allocated at `priority`. It logs no refusal: the requester of a
  /// mapping logs that.
  package func frameSource(role: FrameRole, priority: AllocationPriority = .normal) -> FrameSource {
    let supply = state.pointee.supplies + (Int(role.rawValue) * 3 + Int(priority.rawValue))
    return FrameSource(
      UnsafeMutableRawPointer(supply),
      allocateFrame: { context in
        let supply = context!.assumingMemoryBound(to: Supply.self).pointee
        do throws(PhysicalMemoryError) {
          return try FrameAllocator(state: supply.state)
            .allocateUnlogged(
              BlockOrder(0), role: supply.role, priority: supply.priority,
              for: FrameOwner(supply.role.description)
            ).rawValue
        } catch {
          return FrameNumber.none.rawValue
        }
      },
      freeFrame: { context, frame in
        let supply = context!.assumingMemoryBound(to: Supply.self).pointee
        FrameAllocator(state: supply.state).free(FrameRun(first: FrameNumber(frame), count: .one))
      })
  }
}

// All state behind a handle is under a lock, atomic, or belongs to one processor.
extension FrameAllocator: @unchecked Sendable {}
