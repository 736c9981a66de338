// Replay: a real kernel's allocations, done again against the live allocators.
//
// kmalloc, kfree and kmem_cache events go to Kmem, mm_page events to PhysicalMemory. What the trace calls
// by an identity, a flat table calls by what was given here: an object's address, a page's frame. So
// ownership decides everything, as it must in a trace that began while the kernel was running:
//
//   - a free of which nothing is live frees what was allocated before the recording, or what the kernel
//     took in bulk without an event; it is counted and does nothing;
//   - an allocation of what is still live lost its free; the old one is freed first;
//   - a block of order n may be freed in pieces, each page for itself;
//   - slab pages appear as pages, objects as objects; each is freed by its own table;
//   - mm_page_free_batched repeats a mm_page_free.
//
// Everything is stamped when it comes and checked when it goes (Stamp.swift), and the role of its frames is
// looked at: nothing overlaps, or it is found out.
//
// Memory: state and tables are one run of frames, reached by the direct map and taken before the starting
// counts are read, as are the object caches, one for each cache of the trace. Afterwards the free frames must be
// as many as then. The loop over the events takes nothing and does not recurse: about 150 instructions an
// event beside what the allocators do.

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

  /// One sentence that begins with `subject`: a file's name, or "The boot module".
  public func describe(_ subject: Line) -> Line {
    switch self {
    case .trace(let error): error.describe(subject)
    case .machineTooSmall(let needed, let free):
      "\(subject) needs \(needed.bytes) of free memory at its peak, and \(free.bytes) is free."
    case .noRun(let pages):
      "\(subject) needs \(pages.bytes) in one piece for its tables; memory is too fragmented."
    }
  }
}

/// What whoever is told of the progress of a replay answers.
@frozen public enum ReplayPace: Sendable {
  case goOn, stop
}

/// A replay between its first frame and its last: a handle.
public struct Replay {
  /// One object identity.
  struct ObjectEntry {
    /// 0 when nothing is live, 1 when its allocation was skipped.
    var address: UInt64
    var sequence: UInt32
    var operation: UInt32
  }

  /// One frame identity.
  struct PageEntry {
    var frame: UInt32
    var sequence: UInt32

    static var dead: UInt32 { .max }
    static var skipped: UInt32 { .max - 1 }
  }

  struct State {
    let system: KernelMemory
    let trace: PackedTrace
    let run: FrameRun
    let type: MemoryType
    var summary = ReplaySummary()
    var startFree: UInt64 = 0
    /// Objects of the type `replay` that another replay kept.
    var startObjects: UInt64 = 0
  }

  let state: UnsafeMutablePointer<State>
  let objects: UnsafeMutablePointer<ObjectEntry>
  let pages: UnsafeMutablePointer<PageEntry>
  /// For each cache of the trace its cache here; nil where Kmem had no room for one, and a size class serves.
  let caches: UnsafeMutablePointer<ObjectCache?>

  /// Where the parts of the run begin, in bytes.
  private struct Layout {
    let caches, objects, pages, end: UInt64

    init(_ counts: TraceCounts) {
      caches = UInt64(MemoryLayout<State>.stride + 63) & ~63
      objects = (caches + UInt64(counts.caches) * UInt64(MemoryLayout<ObjectCache?>.stride) + 63) & ~63
      pages = objects + UInt64(counts.objects) * UInt64(MemoryLayout<ObjectEntry>.stride)
      end = pages + UInt64(counts.pages) * UInt64(MemoryLayout<PageEntry>.stride)
    }
  }

  /// Frames that replaying a trace takes at its peak: tables, pages, and objects in slabs that are not full.
  public static func framesNeeded(by counts: TraceCounts) -> PageCount {
    let tables = ByteCount(Layout(counts).end).pagesRoundedUp
    // A quarter for slabs that are not full, and what magazines hold back of each cache.
    let objects = ByteCount(counts.peakAllocated + counts.peakAllocated / 4).pagesRoundedUp
    return tables + PageCount(UInt64(counts.peakPages)) + objects + PageCount(UInt64(counts.caches) * 4 + 32)
  }

  /// Checks the whole trace, takes memory for tables, makes the object caches and reads the starting counts.
  public static func prepare(_ trace: PackedTrace, on system: KernelMemory) throws(ReplayError) -> Replay {
    do throws(TraceError) { try trace.validate() } catch { throw .trace(error) }
    let needed = framesNeeded(by: trace.counts)
    system.kmem.drain()
    let reserve = system.physical.reserve(for: .normal)
    let free = system.physical.freeCount
    let usable = free > reserve ? free - reserve : .zero
    guard needed <= usable else { throw .machineTooSmall(needed: needed, free: usable) }
    let layout = Layout(trace.counts)
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
    replay.state.initialize(to: State(system: system, trace: trace, run: run, type: type))
    replay.fillTables()
    // What the floors keep for good once it has been asked for must not look lost in the end.
    replay.warmUp()
    replay.state.pointee.startFree = replay.settledFreeCount()
    replay.state.pointee.startObjects = system.kmem.describe(type).inUse
    return replay
  }

  private init(_ base: UnsafeMutableRawPointer, _ layout: Layout) {
    state = base.bindMemory(to: State.self, capacity: 1)
    caches = (base + Int(layout.caches)).assumingMemoryBound(to: ObjectCache?.self)
    objects = (base + Int(layout.objects)).assumingMemoryBound(to: ObjectEntry.self)
    pages = (base + Int(layout.pages)).assumingMemoryBound(to: PageEntry.self)
  }

  /// What has been found so far.
  public var summary: ReplaySummary { state.pointee.summary }

  /// Where a live object is, and which frame a live page has; nil for what is not live.
  public func address(ofObject identity: UInt32) -> VirtualAddress? {
    guard identity < state.pointee.trace.counts.objects, objects[Int(identity)].address > 1 else {
      return nil
    }
    return VirtualAddress(objects[Int(identity)].address)
  }
  public func frame(ofPage identity: UInt32) -> FrameNumber? {
    guard identity < state.pointee.trace.counts.pages, pages[Int(identity)].frame < PageEntry.skipped else {
      return nil
    }
    return FrameNumber(pages[Int(identity)].frame)
  }

  private var kmem: Kmem { state.pointee.system.kmem }
  private var physical: PhysicalMemory { state.pointee.system.physical }

  private func fillTables() {
    let trace = state.pointee.trace
    for i in 0..<Int(trace.counts.objects) {
      (objects + i).initialize(to: ObjectEntry(address: 0, sequence: 0, operation: 0))
    }
    for i in 0..<Int(trace.counts.pages) {
      (pages + i).initialize(to: PageEntry(frame: PageEntry.dead, sequence: 0))
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
    let trace = state.pointee.trace
    for i in 0..<trace.counts.operations {
      let operation = trace.operation(i)
      guard operation.kind.allocates, !operation.kind.isAboutPages else { continue }
      if let object = allocate(operation, .normal) { free(object, operation) }
    }
  }

  /// Free frames when no magazine and no empty slab keeps any.
  private func settledFreeCount() -> UInt64 {
    kmem.drain()
    kmem.drain()
    return physical.freeCount.rawValue
  }

  // MARK: The events

  /// Where a replay stands.
  public struct Progress {
    public let events: UInt64
    public let of: UInt64
    public let liveObjects: UInt64
  }

  /// Replays all events, or as many as `progress` lets it, which is told of each 4096th. What the trace
  /// leaves live stays so until `close`.
  public func run<A: MemoryAccess>(_ access: A, progress: (Progress) -> ReplayPace) throws(ReplayError) {
    let trace = state.pointee.trace
    let start = cp_cycles()
    var cursor = trace.records
    do throws(TraceError) {
      while let event = try cursor.next() {
        step(event, cursor.index, access)
        if cursor.index & 4095 == 0, tell(progress, cursor.index) == .stop { break }
      }
    } catch {
      throw .trace(error)
    }
    _ = tell(progress, cursor.index)
    state.pointee.summary.allCycles = cp_cycles() &- start
    state.pointee.summary.leftObjects = state.pointee.summary.liveObjects
    state.pointee.summary.leftPages = state.pointee.summary.livePages
    state.pointee.summary.expectedPeakObjects = UInt64(trace.counts.peakObjects)
    state.pointee.summary.expectedPeakPages = UInt64(trace.counts.peakPages)
  }

  private func tell(_ progress: (Progress) -> ReplayPace, _ index: UInt32) -> ReplayPace {
    progress(
      Progress(
        events: UInt64(index), of: UInt64(state.pointee.trace.counts.events),
        liveObjects: state.pointee.summary.liveObjects))
  }

  private func step<A: MemoryAccess>(_ event: TraceEvent, _ sequence: UInt32, _ access: A) {
    state.pointee.summary.events[Int(event.kind.rawValue)] += 1
    guard event.identity != TraceEvent.nobody else { return stepWithoutIdentity(event.kind) }
    switch event.kind {
    case .kmalloc, .cacheAlloc: allocateObject(event, sequence, access)
    case .kfree, .cacheFree: freeObject(event, sequence, access)
    case .pageAlloc: allocatePages(event, sequence, access)
    case .pageFree: freePages(event, sequence, access)
    case .pageFreeBatched: count(event.kind, 0)
    }
  }

  /// A free of nil, or a request that failed in the traced kernel.
  private func stepWithoutIdentity(_ kind: TraceKind) {
    switch kind {
    case .kmalloc, .cacheAlloc, .pageAlloc: skip(.failedInTrace)
    case .kfree, .cacheFree: countUnmatched(kind)
    case .pageFree: state.pointee.summary.unmatchedPageFrees += 1
    case .pageFreeBatched: count(kind, 0)
    }
  }

  private func allocateObject<A: MemoryAccess>(_ event: TraceEvent, _ sequence: UInt32, _ access: A) {
    let entry = objects + Int(event.identity)
    if entry.pointee.address > 1 {
      state.pointee.summary.reused += 1
      _ = end(event.identity, sequence, access)
    }
    let operation = state.pointee.trace.operation(event.operation)
    let start = cp_cycles()
    let given = allocate(operation, level(event, operation))
    let cycles = cp_cycles() &- start
    guard let given else {
      entry.pointee.address = 1
      return skip(.noObject)
    }
    count(event.kind, cycles)
    let address = VirtualAddress(given)
    if isZeroed(operation) && !Stamp.isZero(address, UInt64(operation.requested), access) { damage(sequence) }
    if !Stamp(event.identity, sequence).write(address, UInt64(operation.requested), access) {
      damage(sequence)
    }
    entry.pointee = ObjectEntry(address: address.rawValue, sequence: sequence, operation: event.operation)
    state.pointee.summary.liveObjects += 1
    state.pointee.summary.liveBytes += UInt64(operation.requested)
    state.pointee.summary.peakObjects = max(
      state.pointee.summary.peakObjects, state.pointee.summary.liveObjects)
    state.pointee.summary.peakObjectBytes =
      max(state.pointee.summary.peakObjectBytes, state.pointee.summary.liveBytes)
  }

  private func freeObject<A: MemoryAccess>(_ event: TraceEvent, _ sequence: UInt32, _ access: A) {
    let entry = objects + Int(event.identity)
    switch entry.pointee.address {
    case 0: countUnmatched(event.kind)
    case 1:
      entry.pointee.address = 0
      skip(.skippedBefore)
    default: count(event.kind, end(event.identity, sequence, access))
    }
  }

  /// Checks and frees a live object. Answers what the free took.
  private func end<A: MemoryAccess>(_ identity: UInt32, _ sequence: UInt32, _ access: A) -> UInt64 {
    let entry = objects[Int(identity)]
    let operation = state.pointee.trace.operation(entry.operation)
    let address = VirtualAddress(entry.address)
    if !Stamp(identity, entry.sequence).holds(address, UInt64(operation.requested), access) {
      damage(sequence)
    }
    objects[Int(identity)].address = 0
    state.pointee.summary.liveObjects -= 1
    state.pointee.summary.liveBytes -= UInt64(operation.requested)
    let start = cp_cycles()
    free(address.pointer.unsafelyUnwrapped, operation)
    return cp_cycles() &- start
  }

  private func allocatePages<A: MemoryAccess>(_ event: TraceEvent, _ sequence: UInt32, _ access: A) {
    let operation = state.pointee.trace.operation(event.operation)
    let (first, count) = (Int(event.identity), 1 << Int(operation.order))
    let old = endPages(first, count, sequence, access)
    if old.freed > 0 { state.pointee.summary.reused += 1 }
    let start = cp_cycles()
    let given = allocatePages(operation, level(event, operation))
    let cycles = cp_cycles() &- start
    guard let given else {
      for i in first..<first + count { pages[i].frame = PageEntry.skipped }
      return skip(.noPages)
    }
    self.count(event.kind, cycles)
    for i in 0..<count {
      let frame = FrameNumber(given.rawValue + UInt32(i))
      let address = state.pointee.system.machine.directMap.virtualAddress(of: frame.address)
      _ = Stamp(event.identity + UInt32(i), sequence).write(address, Page.size, DirectAccess())
      pages[first + i] = PageEntry(frame: frame.rawValue, sequence: sequence)
    }
    state.pointee.summary.livePages += UInt64(count)
    state.pointee.summary.peakPages = max(state.pointee.summary.peakPages, state.pointee.summary.livePages)
  }

  private func freePages<A: MemoryAccess>(_ event: TraceEvent, _ sequence: UInt32, _ access: A) {
    let operation = state.pointee.trace.operation(event.operation)
    let found = endPages(Int(event.identity), 1 << Int(operation.order), sequence, access)
    if found.freed > 0 {
      count(event.kind, found.cycles)
    } else if found.skipped > 0 {
      skip(.skippedBefore)
    } else {
      state.pointee.summary.unmatchedPageFrees += 1
    }
  }

  /// Checks and frees what is live of `count` pages from `first` on, in as few runs as their frames make.
  private func endPages<A: MemoryAccess>(
    _ first: Int, _ count: Int, _ sequence: UInt32, _ access: A
  ) -> (freed: UInt64, skipped: UInt64, cycles: UInt64) {
    var (freed, skipped, cycles): (UInt64, UInt64, UInt64) = (0, 0, 0)
    var run = FrameRun(first: .none, count: .zero)
    for i in first..<first + count {
      let entry = pages[i]
      pages[i].frame = PageEntry.dead
      if entry.frame == PageEntry.dead { continue }
      if entry.frame == PageEntry.skipped {
        skipped += 1
        continue
      }
      check(entry, UInt32(i), sequence)
      freed += 1
      if run.count > .zero && entry.frame == run.end.rawValue {
        run.count = run.count + .one
      } else {
        cycles += free(run)
        run = FrameRun(first: FrameNumber(entry.frame), count: .one)
      }
    }
    cycles += free(run)
    state.pointee.summary.livePages -= freed
    return (freed, skipped, cycles)
  }

  private func free(_ run: FrameRun) -> UInt64 {
    guard run.count > .zero else { return 0 }
    let start = cp_cycles()
    physical.free(run)
    return cp_cycles() &- start
  }

  /// Whether a page still has its stamp, and is a page: a slab in its place would have taken the role.
  private func check(_ entry: PageEntry, _ identity: UInt32, _ sequence: UInt32) {
    let frame = FrameNumber(entry.frame)
    let address = state.pointee.system.machine.directMap.virtualAddress(of: frame.address)
    let isIntact = Stamp(identity, entry.sequence).holds(address, Page.size, DirectAccess())
    if !isIntact || physical.record(frame).map({ $0.role == .wired }) != true { damage(sequence) }
  }

  // MARK: The floors

  private func allocate(_ operation: TraceOperation, _ level: Level) -> UnsafeMutableRawPointer? {
    let size = ByteCount(UInt64(operation.requested))
    if operation.kind == .cacheAlloc, let cache = caches[Int(operation.cache)] {
      return cache.alloc(type: state.pointee.type, level: level)
    }
    return isZeroed(operation)
      ? kmem.zalloc(size, type: state.pointee.type, level: level)
      : kmem.alloc(size, type: state.pointee.type, level: level)
  }

  private func free(_ object: UnsafeMutableRawPointer, _ operation: TraceOperation) {
    if operation.kind == .cacheAlloc, let cache = caches[Int(operation.cache)] {
      return cache.free(object, type: state.pointee.type)
    }
    kmem.free(object, size: ByteCount(UInt64(operation.requested)), type: state.pointee.type)
  }

  /// Only a size can be asked for as zero; a user of a cache clears its own objects.
  private func isZeroed(_ operation: TraceOperation) -> Bool {
    operation.flags.contains(.zero) && operation.kind == .kmalloc
  }

  private func allocatePages(_ operation: TraceOperation, _ level: Level) -> FrameNumber? {
    let order = Order(operation.order)
    do throws(PhysicalMemoryError) {
      guard operation.limit == .dma || operation.limit == .dma32 else {
        return try physical.allocate(order, role: .wired, level: level)
      }
      let high = PhysicalAddress(operation.limit == .dma ? 16 << 20 : 4 << 30)
      let alignment = Alignment(order.frames.bytes.rawValue) ?? .page
      let constraints = RunConstraints(high: high, alignment: alignment)
      return try physical.allocate(run: order.frames, where: constraints, role: .wired, level: level).first
    } catch {
      return nil
    }
  }

  /// How far down a request may reach: what could not wait may dip into the reserve, as it did there.
  private func level(_ event: TraceEvent, _ operation: TraceOperation) -> Level {
    operation.flags.contains(.atomic) || event.context == .hardInterrupt ? .interrupt : .normal
  }

  // MARK: Counting

  private func count(_ kind: TraceKind, _ cycles: UInt64) {
    state.pointee.summary.done[Int(kind.rawValue)] += 1
    state.pointee.summary.cycles[Int(kind.rawValue)] += cycles
  }

  private func countUnmatched(_ kind: TraceKind) {
    state.pointee.summary.unmatchedObjectFrees += 1
    if kind == .kfree { state.pointee.summary.unmatchedKfrees += 1 }
  }

  private func skip(_ reason: ReplaySkip) { state.pointee.summary.skips[Int(reason.rawValue)] += 1 }

  private func damage(_ sequence: UInt32) {
    state.pointee.summary.damaged += 1
    state.pointee.summary.firstDamage = min(state.pointee.summary.firstDamage, sequence - 1)
  }

  // MARK: The end

  /// Frees what is left, sees whether the system is back at its starting counts, and gives back caches and
  /// tables. The handle is void afterwards.
  public func close<A: MemoryAccess>(_ access: A) -> ReplaySummary {
    let counts = state.pointee.trace.counts
    for identity in 0..<counts.objects where objects[Int(identity)].address > 1 {
      _ = end(identity, counts.events, access)
    }
    _ = endPages(0, Int(counts.pages), counts.events, access)
    let free = settledFreeCount()
    state.pointee.summary.lostPages = state.pointee.startFree > free ? state.pointee.startFree - free : 0
    state.pointee.summary.gainedPages = free > state.pointee.startFree ? free - state.pointee.startFree : 0
    let inUse = kmem.describe(state.pointee.type).inUse
    let startObjects = state.pointee.startObjects
    state.pointee.summary.lostObjects = inUse > startObjects ? inUse - startObjects : 0
    state.pointee.summary.isClosed = true
    for i in 0..<Int(counts.caches) {
      if let cache = caches[i] { kmem.destroy(cache) }
    }
    let summary = state.pointee.summary
    physical.free(state.pointee.run)
    return summary
  }
}
