// Physical memory: who has which frame.
//
// From the firmware's map (`MemoryMap`) boot takes whole pages (`EarlyMemory`); then the frame records
// come up (`Opening`), and every frame of the map is either in a buddy queue or somebody's.
//
// Structures
//   sections, pageblocks   tables that find a frame's record, and counts by 2 MiB (`Sections`)
//   frame records      32 bytes a frame (`FrameRecord`), initialised a pageblock at a time when first needed
//   buddy queues       free blocks of 2^0 to 2^18 frames, aligned to their size, in doubly linked lists
//                      by range (below 16 MiB, below 4 GiB, above) and order (Knowlton, "A fast storage
//                      allocator", CACM 1965; FreeBSD's vm_phys)
//   counts             frames by role, each an atomic word that one processor writes at a time
//   pages              frames of paging: wired or not, dirty or not, and cached ones, which are free and
//                      keep their identity (`Pages`)
//   isolations         runs that are being emptied: what gets free in them is captured (`Isolation`)
//   candidates         the cheapest run to empty, by the counts of pageblocks (`Candidates`); requests for which
//                      there was none are kept for a while (`Hopeless`)
//
// Invariants, which `checkInvariants` proves by number
//   1  a queue's links, count and mask agree; a head is a free frame, marked, aligned, in the right list
//   2  free blocks are disjoint, and lie in memory of the map
//   3  two buddies of one list are never both free at one order: what can coalesce has
//   4  a pageblock's counts are those of its frames, movable being the pages that are not noted as fixed; a clear
//      order bit means no block of that order
//   5  a section's free count is the sum of its pageblocks'
//   6  counts by role are those of the frames, and add up to the frames that the map gave
//   7  a free frame has no claims, any other but a page at least a wire; a page of an object is noted as
//      fixed exactly while it is wired; a lazy pageblock lies inside one free block
//   8  a free frame has no flags unless it is a cached page, and the count of these is right
//   9  a captured frame (role contiguous, wired and exclusive) lies in an isolation, and each isolation counts
//      its own
//
// Locks. One spin lock (rank `physicalDomain`) covers queues, pageblock and section counts, links and marks
// of free blocks. Frames on their way in or out belong to their owner: their records are written
// without it. A free claims each frame by compare-and-swap first ("wired once" to "exclusive"), so of
// two racing frees of one frame one is told apart as a bug. The lock is held for at most one pageblock's
// worth of work (about 5000 instructions; a block of 1 GiB is accounted in 512 steps of 12); longer work
// lets go between. `WaitQueue` is woken after it. A mapping's or an object's lock may be held by whoever calls
// here for single pages: nothing here asks for a lock below. Searches for candidates take no lock: counts of
// pageblocks and the last eight bytes of records are relaxed atomics, and what was found is put to the test by
// isolation.
//
// Cost. Allocation of an order: constant, up to 18 splits; the first use of a pageblock initialises its 512
// records. Free: constant a frame, up to 18 merges for each aligned part. A run: constant when a free
// block holds it whichever way; else a walk from the top of its range, a step for each pageblock
// without hope and for each frame at worst for one with. A page freed, cached or taken back: constant. A
// candidate: a step for each pageblock in its range, and a look at the frames of a few pageblocks. A request noted as
// hopeless: constant. While nothing is isolated or noted, a free pays one load for both, and taking frames one
// for cached pages.
//
// When memory is gone: a request changes nothing and throws. All choices are made under the lock before
// the first change, so nothing is ever undone, except the claims of a free that meets a bug, and an isolation
// whose frames others took from under it while it let the lock go.

import MemoryPrimitives
import Synchronization

/// Why a request was refused. Nothing was changed.
public enum PhysicalMemoryError: UInt8, Error, Sendable {
  /// Not enough free frames above the reserve of the request's priority, or no block or run that fits.
  case noMemory
  /// No machine could grant it: no pages, a boundary shorter than the run, an order above 18, an empty
  /// range of addresses.
  case badConstraint
  /// The frame asked for is not free.
  case notFree
  /// The frame asked for is no memory of the map.
  case outsideMemory
  /// The map has too little memory, or none in one run, for frame records.
  case tooSmall
}

/// A list of free blocks by where they lie.
@frozen public enum RangeList: UInt8, CaseIterable, Sendable {
  case below16MiB, below4GiB, above

  public static var count: Int { 3 }

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
  public var description: StaticString {
    switch self {
    case .below16MiB: "below 16 MiB"
    case .below4GiB: "below 4 GiB"
    case .above: "above 4 GiB"
    }
  }
}

/// All physical memory of an instance: a handle.
public struct FrameAllocator {
  /// Set once by `open`; what changes lies behind pointers of its own.
  struct State: ~Copyable {
    let machine: Machine
    let sections: UnsafeMutableRawPointer
    let sectionCount: Int
    let core: UnsafeMutablePointer<Core>
    let queues: UnsafeMutablePointer<FreeQueue>
    /// Frames by role.
    let counts: UnsafeMutablePointer<Atomic<UInt64>>
    let events: UnsafeMutablePointer<Events>
    let supplies: UnsafeMutablePointer<Supply>
    /// The map less what is never given back: sorted runs.
    let spans: UnsafeMutablePointer<Span>
    let spanCount: Int
    let total: UInt64
    let recordsRun: FrameRun
    let lock = SpinLock(.physicalDomain)
    let waiting = WaitQueue("free frames", .memory)
    let lowMemory = LowMemoryNotification()
    /// Free frames that are cached pages.
    let cached = Atomic<UInt64>(0)
  }
  /// Under the lock.
  struct Core {
    /// For each list a bit for each order that has a block.
    var masks: InlineArray<3, UInt32> = .init(repeating: 0)
    /// Frames that requests of each priority leave alone.
    var reserves: InlineArray<3, UInt64> = .init(repeating: 0)
    /// Who waits, by priority, first come first.
    var firstWaiter: InlineArray<3, UnsafeMutablePointer<Waiter>?> = .init(repeating: nil)
    var lastWaiter: InlineArray<3, UnsafeMutablePointer<Waiter>?> = .init(repeating: nil)
    /// Isolations and notes that a free has to look at. Zero: nothing.
    var watchers: UInt32 = 0
    /// The last number that an isolation or a note was given.
    var lastNumber: UInt32 = 0
    var isolations: InlineArray<4, IsolatedRun> = .init(repeating: IsolatedRun())
    var failedRequests: InlineArray<8, FailedRequest> = .init(repeating: FailedRequest())
  }
  /// One list of blocks of one order, 16 bytes.
  struct FreeQueue {
    var first: UInt32 = .max
    var last: UInt32 = .max
    var count: UInt64 = 0
  }
  struct Span {
    var first: UInt32
    var end: UInt32
  }
  /// Counters that are bumped under the lock and read without.
  struct Events: ~Copyable {
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
    /// Bumped without the lock.
    let searches = Atomic<UInt64>(0)
    let searchSteps = Atomic<UInt64>(0)
    let failedCacheHits = Atomic<UInt64>(0)
    let failedCacheSteps = Atomic<UInt64>(0)
  }
  /// What a frame source hands to its functions.
  struct Supply {
    var state: UnsafeMutablePointer<State>
    var role: FrameRole
    var priority: AllocationPriority
  }

  let state: UnsafeMutablePointer<State>
  init(state: UnsafeMutablePointer<State>) { self.state = state }

  var machine: Machine { state.pointee.machine }
  @inline(always) var core: UnsafeMutablePointer<Core> { state.pointee.core }
  @inline(always) func queue(_ list: Int, _ order: Int) -> UnsafeMutablePointer<FreeQueue> {
    state.pointee.queues + (list &* 19 &+ order)
  }
  @inline(always) func lock() -> UInt64 { state.pointee.lock.lock() }
  @inline(always) func unlock(_ interrupts: UInt64) { state.pointee.lock.unlock(interrupts) }

  // MARK: Counts

  /// Frames of the map, whatever their role. Constant.
  public var total: PageCount { PageCount(state.pointee.total) }
  /// Free frames. Constant; exact when nothing runs.
  public var freeCount: PageCount { count(.free) }
  /// Frames with `role`. Constant. All roles but `absent` add up to `total`.
  public func count(_ role: FrameRole) -> PageCount {
    PageCount((state.pointee.counts + Int(role.rawValue)).pointee.load(ordering: .relaxed))
  }
  /// The frames that hold records and tables of this layer.
  public var recordsRun: FrameRun { state.pointee.recordsRun }

  @inline(always) func add(_ count: UInt64, to role: FrameRole) {
    let word = state.pointee.counts + Int(role.rawValue)
    word.pointee.store(word.pointee.load(ordering: .relaxed) &+ count, ordering: .relaxed)
  }
  @inline(always) func subtract(_ count: UInt64, from role: FrameRole) { add(0 &- count, to: role) }

  /// The record of `frame`, for whoever was given the frame; nil when it lies in no pageblock that has
  /// memory, or in one that nobody was given a frame of.
  /// Constant, but for the first question about a pageblock that boot occupied as a whole.
  @inline(__always) public func record(_ frame: FrameNumber) -> FrameRecordPointer? {
    guard section(frame.rawValue) != nil else { return nil }
    if pageblockUnchecked(frame.rawValue).state == .valid { return recordUnchecked(frame.rawValue) }
    return recordSlow(frame)
  }

  /// The record of a frame that is known to have a valid one, as whoever was given the frame knows. Two loads and no
  /// question.
  @inline(__always) public func knownRecord(_ frame: FrameNumber) -> FrameRecordPointer {
    recordUnchecked(frame.rawValue)
  }

  /// The records of the pageblock of `frame`, none where they are not valid. Takes no lock and makes no record valid:
  /// for a number that may be of no frame at all.
  @inline(never) public func validRecords(around frame: FrameNumber) -> PageblockRecords {
    guard section(frame.rawValue) != nil, pageblockUnchecked(frame.rawValue).state == .valid else {
      return PageblockRecords()
    }
    let first = frame.rawValue & ~(Pageblock.frames - 1)
    return PageblockRecords(first: first, records: recordUnchecked(first))
  }

  @inline(never) func recordSlow(_ frame: FrameNumber) -> FrameRecordPointer? {
    let interrupts = lock()
    defer { unlock(interrupts) }
    let pageblock = pageblockUnchecked(frame.rawValue)
    switch pageblock.state {
    case .lazy: return nil
    case .uniform:
      if pageblock.role == .absent { return nil }
      materialize(frame.rawValue)
    case .valid: break
    }
    return recordUnchecked(frame.rawValue)
  }

  // MARK: Frame sources

  /// Single frames with the role `pageTable`.
  public var frameSource: FrameSource { frameSource(role: .pageTable) }

  /// Single frames with `role`, asked for at `priority`.
  public func frameSource(role: FrameRole, priority: AllocationPriority = .normal) -> FrameSource {
    let supply = state.pointee.supplies + (Int(role.rawValue) * 3 + Int(priority.rawValue))
    return FrameSource(
      UnsafeMutableRawPointer(supply),
      take: { context in
        let supply = context!.assumingMemoryBound(to: Supply.self).pointee
        do throws(PhysicalMemoryError) {
          return try FrameAllocator(state: supply.state)
            .allocate(Order(0), role: supply.role, priority: supply.priority).rawValue
        } catch {
          return FrameNumber.none.rawValue
        }
      },
      give: { context, frame in
        let supply = context!.assumingMemoryBound(to: Supply.self).pointee
        FrameAllocator(state: supply.state).free(FrameRun(first: FrameNumber(frame), count: .one))
      })
  }
}
