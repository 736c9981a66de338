// Replay: a real kernel's allocations, done again against the live allocators.
//
// kmalloc, kfree and kmem_cache events go to Kmem, mm_page events to PhysicalMemory. What the trace calls
// by an identity, a flat table calls by what was given here: an object's address, a page's frame. So
// ownership decides everything, as it must in a trace that began while the kernel was running:
//
//   - a free of which nothing is live frees what was allocated before the recording, or what the kernel
//     took in bulk without an event; it is counted and does nothing;
//   - an allocation of what is still live lost its free; the old one is freed first;
//   - a block of order n may be freed in parts, each page for itself;
//   - slab pages appear as pages, objects as objects; each is freed by its own table;
//   - mm_page_free_batched repeats a mm_page_free.
//
// Everything is stamped when it comes and checked when it goes (Stamp.swift), and the role of its frames is
// looked at: nothing overlaps, or it is found out. ReplayExecutor.swift does the events; ReplaySplit.swift shares them
// out among processors.
//
// Memory: state and tables are one run of frames, reached by the direct map and taken before the starting
// counts are read, as are the object caches, one for each cache of the trace. Afterwards the frames that are free or
// hold pages must be as many as then. The loop over the events takes nothing and does not recurse: about 150
// instructions an event beside what the allocators do.

import CPlatform
import KernelMemory
import Kmem
import MemoryPrimitives
import PhysicalMemory

/// Why a replay did not begin. Nothing was taken.
public enum ReplayError: Error, Equatable, Sendable {
  case trace(TraceError)
  /// Frames that the trace needs at its peak, tables included, and frames that are free above the reserve.
  case machineTooSmall(needed: PageCount, free: PageCount)
  /// No run of so many frames for the tables.
  case noRun(PageCount)
  /// It was to be split over more processors than the machine has for it.
  case tooFewProcessors(asked: Int, there: Int)
  /// No thread is to be had on a processor.
  case noThread(ProcessorIndex)

  /// One sentence that begins with `subject`: a file's name, or "The boot module".
  public func describe(_ subject: Line) -> Line {
    switch self {
    case .trace(let error): error.describe(subject)
    case .machineTooSmall(let needed, let free):
      "\(subject) needs \(needed.bytes) of free memory at its peak, and \(free.bytes) is free."
    case .noRun(let pages):
      "\(subject) needs \(pages.bytes) in one run for its tables; memory is too fragmented."
    case .tooFewProcessors(let asked, let there):
      "\(subject) can't be split over \(count: UInt64(asked), "processor"): \(count: UInt64(there)) are there."
    case .noThread(let processor):
      "\(subject) can't be split: no thread is to be had on processor \(count: UInt64(processor.rawValue))."
    }
  }
}

/// What whoever is told of the progress of a replay answers.
@frozen public enum ReplayPace: Sendable {
  case goOn, stop
}

/// A replay between its first frame and its last: a handle.
public struct Replay {
  struct State {
    let system: MemorySystem
    let trace: PackedTrace
    let run: FrameRun
    let type: MemoryType
    /// Whether and how it is shared out.
    let split: ReplaySplit?
    var startCount: UInt64 = 0
    /// Objects of the type `replay` that another replay kept.
    var startObjects: UInt64 = 0
  }

  let state: UnsafeMutablePointer<State>
  let found: UnsafeMutablePointer<ReplaySummary>
  let objects: UnsafeMutablePointer<ReplayObject>
  let pages: UnsafeMutablePointer<ReplayPage>
  let caches: UnsafeMutablePointer<ObjectCache?>
  /// What the workers share; nothing lies there when there are none.
  let pool: UnsafeMutableRawPointer

  /// Where the parts of the run begin, in bytes.
  private struct Layout {
    let found, caches, objects, pages, pool, end: UInt64

    init(_ counts: TraceCounts, _ split: ReplaySplit?) {
      func line(_ bytes: UInt64) -> UInt64 { (bytes + 63) & ~63 }
      found = line(UInt64(MemoryLayout<State>.stride))
      caches = line(found + UInt64(MemoryLayout<ReplaySummary>.stride))
      objects = line(caches + UInt64(counts.caches) * UInt64(MemoryLayout<ObjectCache?>.stride))
      pages = objects + UInt64(counts.objects) * UInt64(MemoryLayout<ReplayObject>.stride)
      pool = line(pages + UInt64(counts.pages) * UInt64(MemoryLayout<ReplayPage>.stride))
      end =
        pool + (split.map { ReplayWorkerPool.size(workers: $0.workers, pages: counts.pages).rawValue } ?? 0)
    }
  }

  /// Frames that replaying a trace takes at its peak: tables, pages, and objects in slabs that are not full.
  public static func framesNeeded(by counts: TraceCounts, split: ReplaySplit? = nil) -> PageCount {
    let tables = ByteCount(Layout(counts, split).end).pagesRoundedUp
    // A quarter for slabs that are not full, and what magazines hold back of each cache.
    let objects = ByteCount(counts.peakAllocated + counts.peakAllocated / 4).pagesRoundedUp
    let workers = UInt64(split?.workers ?? 1)
    return tables + PageCount(UInt64(counts.peakPages)) + objects
      + PageCount((UInt64(counts.caches) * 4 + 32) * workers)
  }

  /// Checks the whole trace, takes memory for tables, makes the object caches and reads the starting counts.
  /// With `split`, the events will be shared out among threads.
  public static func prepare(
    _ trace: PackedTrace, on system: MemorySystem, split: ReplaySplit? = nil
  ) throws(ReplayError) -> Replay {
    do throws(TraceError) { try trace.validate() } catch { throw .trace(error) }
    if let split { try split.check(system.machine) }
    let needed = framesNeeded(by: trace.counts, split: split)
    system.kmem.drain()
    let reserve = system.physical.reserve(for: .normal)
    let free = system.physical.freeCount
    let usable = free > reserve ? free - reserve : .zero
    guard needed <= usable else { throw .machineTooSmall(needed: needed, free: usable) }
    let layout = Layout(trace.counts, split)
    let size = ByteCount(layout.end).pagesRoundedUp
    let run: FrameRun
    do throws(PhysicalMemoryError) {
      run = try system.physical.allocate(run: size, role: .wired)
    } catch {
      throw .noRun(size)
    }
    let base = system.machine.directMap.pointer(to: run.first)
    let replay = Replay(base, layout)
    let type = system.kmem.type(named: Name("replay"))
    replay.state.initialize(to: State(system: system, trace: trace, run: run, type: type, split: split))
    replay.found.initialize(to: ReplaySummary())
    replay.fillTables()
    // What the layers keep for good once it has been asked for must not look lost in the end.
    replay.warmUp()
    if let split { try replay.assemble(split) }
    replay.state.pointee.startCount = replay.settledCount()
    replay.state.pointee.startObjects = system.kmem.describe(type).inUse
    return replay
  }

  private init(_ base: UnsafeMutableRawPointer, _ layout: Layout) {
    state = base.bindMemory(to: State.self, capacity: 1)
    found = (base + Int(layout.found)).bindMemory(to: ReplaySummary.self, capacity: 1)
    caches = (base + Int(layout.caches)).assumingMemoryBound(to: ObjectCache?.self)
    objects = (base + Int(layout.objects)).assumingMemoryBound(to: ReplayObject.self)
    pages = (base + Int(layout.pages)).assumingMemoryBound(to: ReplayPage.self)
    pool = base + Int(layout.pool)
  }

  /// A hand that counts in the summary.
  var executor: ReplayExecutor {
    ReplayExecutor(
      system: state.pointee.system, trace: state.pointee.trace, type: state.pointee.type,
      access: WalkedAccess(state.pointee.system), objects: objects, pages: pages, caches: caches,
      summary: found)
  }

  /// What has been found so far.
  public var summary: ReplaySummary { found.pointee }

  /// Where a live object is, and which frame a live page has; nil for what is not live.
  public func address(ofObject identity: UInt32) -> VirtualAddress? {
    guard identity < state.pointee.trace.counts.objects, objects[Int(identity)].address > 1 else {
      return nil
    }
    return VirtualAddress(objects[Int(identity)].address)
  }
  public func frame(ofPage identity: UInt32) -> FrameNumber? {
    guard identity < state.pointee.trace.counts.pages, pages[Int(identity)].frame < ReplayPage.skipped else {
      return nil
    }
    return FrameNumber(pages[Int(identity)].frame)
  }

  private var kmem: KmemAllocator { state.pointee.system.kmem }
  private var physical: FrameAllocator { state.pointee.system.physical }

  private func fillTables() {
    let trace = state.pointee.trace
    for i in 0..<Int(trace.counts.objects) {
      (objects + i).initialize(to: ReplayObject(address: 0, sequence: 0, operation: 0))
    }
    for i in 0..<Int(trace.counts.pages) {
      (pages + i).initialize(to: ReplayPage(frame: ReplayPage.dead, sequence: 0))
    }
    for i in 0..<trace.counts.caches {
      let cache = trace.cache(i)
      let name = Name(bytes: trace.string(cache.name))
      var made: ObjectCache?
      do throws(KmemError) {
        made = try kmem.createCache(name: name, size: ByteCount(UInt64(cache.size)))
      } catch {
        // Too many, or too large for a slab: its objects come from a size class, or as whole pages.
        made = nil
      }
      (caches + Int(i)).initialize(to: made)
    }
  }

  private func warmUp() {
    let executor = executor
    for i in 0..<executor.trace.counts.operations {
      let operation = executor.trace.operation(i)
      guard operation.kind.allocates, !operation.kind.isAboutPages else { continue }
      if let object = executor.allocate(operation, .normal) { executor.free(object, operation) }
    }
  }

  /// Frames that are free or hold pages, of which the page daemon may make free ones meanwhile, when no magazine and no
  /// empty slab keeps any.
  private func settledCount() -> UInt64 {
    kmem.drain()
    kmem.drain()
    return physical.freeCount.rawValue + physical.count(.pageable).rawValue
  }

  // MARK: The events

  /// Where a replay stands.
  public struct Progress {
    public let events: UInt64
    public let of: UInt64
    public let liveObjects: UInt64
  }

  /// Replays all events, or as many as `progress` lets it, which is told of each 4096th at least. What the trace
  /// leaves live stays so until `close`. When it throws, everything was given back and the handle is void.
  public func run(progress: (Progress) -> ReplayPace) throws(ReplayError) {
    let trace = state.pointee.trace
    let start = cp_cycles()
    do throws(ReplayError) {
      if let split = state.pointee.split {
        try run(split, progress: progress)
      } else {
        try runAlone(progress: progress)
      }
    } catch {
      _ = close()
      throw error
    }
    found.pointee.allCycles = cp_cycles() &- start
    found.pointee.leftObjects = found.pointee.liveObjects
    found.pointee.leftPages = found.pointee.livePages
    found.pointee.expectedPeakObjects = UInt64(trace.counts.peakObjects)
    found.pointee.expectedPeakPages = UInt64(trace.counts.peakPages)
  }

  private func runAlone(progress: (Progress) -> ReplayPace) throws(ReplayError) {
    let executor = executor
    var cursor = executor.trace.records
    do throws(TraceError) {
      while let event = try cursor.next() {
        executor.step(event, cursor.index)
        if cursor.index & 4095 == 0, tell(progress, cursor.index) == .stop { break }
      }
    } catch {
      throw .trace(error)
    }
    _ = tell(progress, cursor.index)
  }

  private func tell(_ progress: (Progress) -> ReplayPace, _ index: UInt32) -> ReplayPace {
    progress(
      Progress(
        events: UInt64(index), of: UInt64(state.pointee.trace.counts.events),
        liveObjects: found.pointee.liveObjects))
  }

  // MARK: The end

  /// Frees what is left, sees whether the system is back at its starting counts, and gives back caches and
  /// tables. The handle is void afterwards.
  public func close() -> ReplaySummary {
    let executor = executor
    let counts = state.pointee.trace.counts
    for identity in 0..<counts.objects where objects[Int(identity)].address > 1 {
      executor.end(identity, counts.events)
    }
    executor.endPages(0, Int(counts.pages), counts.events)
    let (count, start) = (settledCount(), state.pointee.startCount)
    found.pointee.lostPages = start > count ? start - count : 0
    found.pointee.gainedPages = count > start ? count - start : 0
    let inUse = kmem.describe(state.pointee.type).inUse
    let startObjects = state.pointee.startObjects
    found.pointee.lostObjects = inUse > startObjects ? inUse - startObjects : 0
    found.pointee.isClosed = true
    for i in 0..<Int(counts.caches) {
      if let cache = caches[i] { kmem.destroy(cache) }
    }
    let summary = found.pointee
    if state.pointee.split != nil { ReplayWorkerPool(at: pool).dismiss() }
    physical.free(state.pointee.run)
    return summary
  }
}
