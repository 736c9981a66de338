// Replay: a real kernel's allocations, repeated against the live allocators.
//
// kmalloc, kfree and kmem_cache events go to Kmem, mm_page events to PhysicalMemory. For each identity of the trace a
// flat table has the address of an object, or the frame of a page, that was allocated here. So ownership decides
// everything, as it must in a trace that began while the kernel was running:
//
//   - a free of an identity that is not live belongs to an allocation before the recording, or to one in bulk without
//     an event; it is counted and does nothing;
//   - an allocation of an identity that is live has lost its free; the old one is freed first;
//   - a block of order n may be freed in parts, each page for itself;
//   - slab pages appear as pages, objects as objects; each is freed by its own table;
//   - mm_page_free_batched repeats a mm_page_free.
//
// Each object and page is stamped when it is allocated, and checked when it is freed (Stamp.swift), with the role of
// its frames: an overlap is detected. ReplayExecutor.swift carries out the events; ReplaySplit.swift distributes them
// over processors.
//
// MEMORY. State and tables are one run of frames, reached by the direct map. They are allocated before the starting
// counts are read, and so are the object caches, one for each cache of the trace. A request waits for memory where the
// traced kernel let it wait. Afterwards the number of frames
// that are free or hold pages must be as then. The loop over the events allocates nothing for itself and does not
// recurse: about 150 instructions an event, without the allocators.

import CPlatform
import ContiguousMemory
import KernelMemory
import Kmem
import MemoryPrimitives
import Paging
import PhysicalMemory

/// Why a replay did not begin. Nothing stays allocated.
package enum ReplayError: Error, Equatable, Sendable {
  case trace(TraceError)
  /// Frames that the trace needs at its peak, tables included, and frames that are free above the reserve or can be
  /// made free.
  case machineTooSmall(needed: PageCount, free: PageCount)
  /// No run of this many frames for the tables.
  case noRun(PageCount)
  /// The split has more processors than the machine has for it.
  case tooFewProcessors(asked: Int, there: Int)
  /// A processor has no thread for it.
  case noThread(ProcessorIndex)

  /// One sentence that begins with `subject`: a file's name, or "The boot module".
  package func describe(_ subject: Line) -> Line {
    switch self {
    case .trace(let error): error.describe(subject)
    case .machineTooSmall(let needed, let free):
      "\(subject) needs \(needed.bytes) at its peak, and \(free.bytes) is free or can be reclaimed."
    case .noRun(let pages):
      "\(subject) needs \(pages.bytes) in one run for its tables; memory is too fragmented."
    case .tooFewProcessors(let asked, let there):
      "\(subject) can't be split over \(count: UInt64(asked), "processor"): \(count: UInt64(there)) are there."
    case .noThread(let processor):
      "\(subject) can't be split: there is no thread on processor \(count: UInt64(processor.rawValue))."
    }
  }
}

/// A replay between its first frame and its last: a handle.
package struct Replay {
  struct State {
    let system: MemorySystem
    let trace: PackedTrace
    let run: FrameRun
    let type: MemoryType
    /// How it is distributed over processors; nil for one processor.
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
  /// The events of each cache, counted where there are more caches than kmem takes.
  let uses: UnsafeMutablePointer<UInt32>
  /// The memory that the workers share; none when there are no workers.
  let pool: UnsafeMutableRawPointer

  /// The offsets of the parts of the run.
  private struct Layout {
    let found: Int
    let caches: Int
    let uses: Int
    let objects: Int
    let pages: Int
    let pool: Int
    let size: ByteCount

    init(_ counts: TraceCounts, _ split: ReplaySplit?) {
      var layout = StorageLayout()
      _ = layout.add(State.self)
      found = layout.add(ReplaySummary.self)
      caches = layout.add(ObjectCache?.self, count: Int(counts.caches))
      uses = layout.add(UInt32.self, count: Int(counts.caches))
      objects = layout.add(ReplayObject.self, count: Int(counts.objects))
      pages = layout.add(ReplayPage.self, count: Int(counts.pages))
      pool = layout.add(
        split.map { ReplayWorkerPool.size(workers: $0.workers, pages: counts.pages) } ?? .zero)
      size = layout.size
    }
  }

  /// Frames that the replay of a trace needs at its peak: tables, pages, and objects in slabs that are not full.
  package static func framesNeeded(by counts: TraceCounts, split: ReplaySplit? = nil) -> PageCount {
    let tables = Layout(counts, split).size.pagesRoundedUp
    // A quarter more for slabs that are not full; below, the objects that magazines keep of each cache.
    // A header may claim any figure.
    let allocated = min(counts.peakAllocated, 1 << 60)
    let objects = ByteCount(allocated + allocated / 4).pagesRoundedUp
    let workers = UInt64(split?.workers ?? 1)
    return tables + PageCount(UInt64(counts.peakPages)) + objects
      + PageCount((UInt64(counts.caches) * 4 + 32) * workers)
  }

  /// Frames that requests that may wait can get: the free ones above the reserve, and those of pages that can be
  /// reclaimed. A page of anonymous memory needs a slot of swap for that, unless it has one.
  private static func usableFrames(of system: MemorySystem) -> PageCount {
    let free = system.physical.freeCount.subtractingSaturated(system.physical.reserve(for: .normal))
    let pageable = system.physical.count(.pageable)
    return free + (system.paging.hasDeviceObjects ? pageable : min(pageable, system.paging.swap.figures.free))
  }

  /// Checks the whole trace, allocates tables, creates the object caches and reads the starting counts. With `split`,
  /// the events are distributed over threads.
  package static func prepare(
    _ trace: PackedTrace, on system: MemorySystem, split: ReplaySplit? = nil
  ) throws(ReplayError) -> Replay {
    do throws(TraceError) { try trace.validate() } catch { throw .trace(error) }
    if let split { try split.check(system.machine) }
    let needed = framesNeeded(by: trace.counts, split: split)
    system.kmem.drain()
    let usable = usableFrames(of: system)
    guard needed <= usable else { throw .machineTooSmall(needed: needed, free: usable) }
    let layout = Layout(trace.counts, split)
    let size = layout.size.pagesRoundedUp
    let run: FrameRun
    do throws(ContiguousFailure) {
      run = try system.contiguous.allocContig(
        ContiguousRequest(size, for: FrameOwner("replay, its tables")))
    } catch {
      throw .noRun(size)
    }
    let base = system.machine.directMap.pointer(to: run.first)
    let replay = Replay(base, layout)
    let type = system.kmem.type(named: ShortName("replay"))
    replay.state.initialize(to: State(system: system, trace: trace, run: run, type: type, split: split))
    replay.found.initialize(to: ReplaySummary())
    replay.fillTables()
    // Memory that a layer keeps after its first use must not count as lost in the end.
    replay.warmUp()
    if let split { try replay.assemble(split) }
    replay.state.pointee.startCount = replay.settledCount()
    replay.state.pointee.startObjects = system.kmem.describe(type).inUse
    return replay
  }

  private init(_ base: UnsafeMutableRawPointer, _ layout: Layout) {
    state = base.bindMemory(to: State.self, capacity: 1)
    found = base.part(ReplaySummary.self, at: layout.found)
    caches = (base + layout.caches).assumingMemoryBound(to: ObjectCache?.self)
    uses = (base + layout.uses).assumingMemoryBound(to: UInt32.self)
    objects = (base + layout.objects).assumingMemoryBound(to: ReplayObject.self)
    pages = (base + layout.pages).assumingMemoryBound(to: ReplayPage.self)
    pool = base + layout.pool
  }

  /// An executor that counts in the summary.
  var executor: ReplayExecutor {
    ReplayExecutor(
      system: state.pointee.system, trace: trace, type: state.pointee.type,
      access: WalkedAccess(state.pointee.system), objects: objects, pages: pages, caches: caches,
      summary: found)
  }

  /// The counts so far.
  package var summary: ReplaySummary { found.pointee }

  /// The address of a live object; nil when the identity is not live.
  package func address(ofObject identity: UInt32) -> VirtualAddress? {
    guard identity < trace.counts.objects, objects[Int(identity)].address > 1 else {
      return nil
    }
    return VirtualAddress(objects[Int(identity)].address)
  }
  /// The frame of a live page; nil when the identity is not live.
  package func frame(ofPage identity: UInt32) -> FrameNumber? {
    guard identity < trace.counts.pages, pages[Int(identity)].frame < ReplayPage.skipped else {
      return nil
    }
    return FrameNumber(pages[Int(identity)].frame)
  }

  private var trace: PackedTrace { state.pointee.trace }
  private var kmem: KmemAllocator { state.pointee.system.kmem }
  private var physical: FrameAllocator { state.pointee.system.physical }

  private func fillTables() {
    for i in 0..<Int(trace.counts.objects) {
      (objects + i).initialize(to: ReplayObject(address: 0, sequence: 0, operation: 0))
    }
    for i in 0..<Int(trace.counts.pages) {
      (pages + i).initialize(to: ReplayPage(frame: ReplayPage.dead, sequence: 0))
    }
    for i in 0..<Int(trace.counts.caches) { (caches + i).initialize(to: nil) }
    createCaches()
  }

  /// Creates the caches of the trace, in its order. Where they are more than kmem takes, the busiest are created, and
  /// the objects of the others come from the general ones, by their sizes.
  private func createCaches() {
    let count = trace.counts.caches
    var index: UInt32 = 0
    while index < count, createCache(index) != .tooManyCaches { index += 1 }
    guard index < count else { return }
    for other in 0..<Int(index) {
      if let cache = caches[other] { kmem.destroy(cache) }
      caches[other] = nil
    }
    countUses()
    var own: UInt64 = 0
    while let busiest = busiestCache(), createCache(busiest) != .tooManyCaches {
      uses[Int(busiest)] = .max
      if hasOwnCache(busiest) { own += 1 }
    }
    var (shared, events): (UInt64, UInt64) = (0, 0)
    for other in 0..<Int(count) where uses[other] != .max {
      shared += 1
      events += UInt64(uses[other])
    }
    found.pointee.cacheLimit = CacheLimit(
      asked: UInt64(count), own: own, shared: shared, sharedEvents: events)
  }

  /// Creates one cache. One too large for a slab has none: its objects come as whole pages.
  private func createCache(_ index: UInt32) -> KmemError? {
    let cache = trace.cache(index)
    let name = ShortName(bytes: trace.string(cache.name))
    do throws(KmemError) {
      caches[Int(index)] = try kmem.createCache(name: name, size: ByteCount(UInt64(cache.size)))
      return nil
    } catch {
      return error
    }
  }

  private func countUses() {
    for i in 0..<Int(trace.counts.caches) { uses[i] = 0 }
    var cursor = trace.records
    // The trace has been validated: there is no error.
    while let event = try? cursor.next() {
      let cache = trace.operation(event.operation).cache
      if cache < trace.counts.caches { uses[Int(cache)] += 1 }
    }
    // A cache that can't have slabs is passed over at once.
    for i in 0..<trace.counts.caches where trace.cache(i).size > Self.largestObject { uses[Int(i)] = .max }
  }

  /// Bytes of the largest object of a cache.
  private static var largestObject: UInt32 { 32 << 10 }

  /// The cache with the most events of those that have not been created; nil when there is none.
  private func busiestCache() -> UInt32? {
    var busiest: UInt32?
    for i in 0..<trace.counts.caches where uses[Int(i)] != .max {
      if busiest.map({ uses[Int(i)] > uses[Int($0)] }) ?? true { busiest = i }
    }
    return busiest
  }

  /// Whether the objects of the trace's cache at `index` come from a cache of their own.
  package func hasOwnCache(_ index: UInt32) -> Bool { caches[Int(index)] != nil }

  private func warmUp() {
    let executor = executor
    for i in 0..<executor.trace.counts.operations {
      let operation = executor.trace.operation(i)
      guard operation.kind.allocates, !operation.kind.isAboutPages else { continue }
      if let object = executor.allocate(operation, .normal, .allowed) { executor.free(object, operation) }
    }
  }

  /// Frames that are free or hold pages, which the page daemon may free at any time. First empties all magazines and
  /// frees all empty slabs.
  private func settledCount() -> UInt64 {
    kmem.drain()
    kmem.drain()
    return physical.freeCount.rawValue + physical.count(.pageable).rawValue
  }

  // MARK: The events

  /// The progress of a replay.
  package struct Progress {
    package let events: UInt64
    package let of: UInt64
    package let liveObjects: UInt64
  }

  /// Replays all events, or until `progress` stops it, which is called at least after each 4096th. Objects and pages
  /// that the trace leaves live stay so until `close`. When it throws, everything is freed and the handle is void.
  package func run(progress: (Progress) -> Pace) throws(ReplayError) {
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
    found.pointee.expect(trace.counts)
  }

  private func runAlone(progress: (Progress) -> Pace) throws(ReplayError) {
    let executor = executor
    var cursor = executor.trace.records
    do throws(TraceError) {
      while let event = try cursor.next() {
        executor.step(event, cursor.index)
        if cursor.index & 4095 == 0, report(progress, cursor.index) == .stop { break }
      }
    } catch {
      throw .trace(error)
    }
    _ = report(progress, cursor.index)
  }

  private func report(_ progress: (Progress) -> Pace, _ index: UInt32) -> Pace {
    progress(
      Progress(
        events: UInt64(index), of: UInt64(trace.counts.events),
        liveObjects: found.pointee.liveObjects))
  }

  // MARK: The end

  /// Frees all live objects and pages, compares the system with its starting counts, and frees caches and tables. The
  /// handle is void afterwards.
  package func close() -> ReplaySummary {
    let executor = executor
    let counts = trace.counts
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
    if state.pointee.split != nil { ReplayWorkerPool(at: pool).end() }
    physical.free(state.pointee.run)
    return summary
  }
}
