// The executor of a replay: carries out one event after the other on the live allocators, and counts.
//
// A replay on one processor has one executor. A split replay has one for each worker. All share the tables of
// identities, and each uses only its own entries, so nothing here takes a lock.

import CPlatform
import ContiguousMemory
import KernelMemory
import Kmem
import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// One object identity.
struct ReplayObject {
  /// 0 when nothing is live, 1 when its allocation was skipped.
  var address: UInt64
  var sequence: UInt32
  var operation: UInt32
}

/// One frame identity.
struct ReplayPage {
  var frame: UInt32
  var sequence: UInt32

  static var dead: UInt32 { .max }
  static var skipped: UInt32 { .max - 1 }
}

/// The objects, bytes and pages that are live in all executors together, and the peaks: words that each adds to.
struct LiveTotals: ~Copyable {
  struct Total: ~Copyable {
    private let now = Atomic<UInt64>(0)
    private let most = Atomic<UInt64>(0)

    var live: UInt64 { now.load(ordering: .relaxed) }
    var peak: UInt64 { most.load(ordering: .relaxed) }

    borrowing func rise(by amount: UInt64) {
      let sum = now.add(amount, ordering: .relaxed).newValue
      if sum > most.load(ordering: .relaxed) { most.max(sum, ordering: .relaxed) }
    }
    borrowing func fall(by amount: UInt64) { now.subtract(amount, ordering: .relaxed) }
  }

  let objects = Total()
  let bytes = Total()
  let pages = Total()
}

/// Carries out events and counts them.
struct ReplayExecutor {
  let system: MemorySystem
  let trace: PackedTrace
  let type: MemoryType
  let access: WalkedAccess
  let objects: UnsafeMutablePointer<ReplayObject>
  let pages: UnsafeMutablePointer<ReplayPage>
  /// For each cache of the trace its cache here; nil where Kmem had no memory for one, and a size class serves.
  let caches: UnsafeMutablePointer<ObjectCache?>
  /// Its counts.
  var summary: UnsafeMutablePointer<ReplaySummary>
  /// The live totals of all executors; nil when there is one.
  var totals: UnsafeMutablePointer<LiveTotals>?
  /// The priority of all allocations; nil where the event decides it.
  var priority: AllocationPriority?

  private var kmem: KmemAllocator { system.kmem }
  private var physical: FrameAllocator { system.physical }

  /// Carries out one event and counts it. `sequence` is its number, from 1.
  func step(_ event: TraceEvent, _ sequence: UInt32) {
    summary.pointee.events[Int(event.kind.rawValue)] += 1
    guard event.identity != TraceEvent.noIdentity else { return stepWithoutIdentity(event.kind) }
    switch event.kind {
    case .kmalloc, .cacheAlloc: allocateObject(event, sequence)
    case .kfree, .cacheFree: freeObject(event, sequence)
    case .pageAlloc: allocatePages(event, sequence)
    case .pageFree: freePages(event, sequence)
    case .pageFreeBatched: count(event.kind, 0)
    }
  }

  /// A free of nil, or a request that failed in the traced kernel.
  private func stepWithoutIdentity(_ kind: TraceKind) {
    switch kind {
    case .kmalloc, .cacheAlloc, .pageAlloc: skip(.failedInTrace)
    case .kfree, .cacheFree: countUnmatched(kind)
    case .pageFree: summary.pointee.unmatchedPageFrees += 1
    case .pageFreeBatched: count(kind, 0)
    }
  }

  private func allocateObject(_ event: TraceEvent, _ sequence: UInt32) {
    let entry = objects + Int(event.identity)
    if entry.pointee.address > 1 {
      summary.pointee.reused += 1
      end(event.identity, sequence)
    }
    let operation = trace.operation(event.operation)
    let start = cp_cycles()
    let wait = wait(event, operation)
    let given = allocate(operation, priority(event, operation), wait)
    let cycles = cp_cycles() &- start
    guard let given else {
      entry.pointee.address = 1
      if wait.mayWait { summary.pointee.refusedWaiting += 1 }
      return skip(.noObject)
    }
    count(event.kind, cycles)
    let address = VirtualAddress(given)
    if isZeroed(operation) && !Stamp.isZero(address, UInt64(operation.requested), access) { damage(sequence) }
    if !Stamp(event.identity, sequence).write(address, UInt64(operation.requested), access) {
      damage(sequence)
    }
    entry.pointee = ReplayObject(address: address.rawValue, sequence: sequence, operation: event.operation)
    countLive(objects: 1, bytes: UInt64(operation.requested), pages: 0)
  }

  private func freeObject(_ event: TraceEvent, _ sequence: UInt32) {
    let entry = objects + Int(event.identity)
    switch entry.pointee.address {
    case 0: countUnmatched(event.kind)
    case 1:
      entry.pointee.address = 0
      skip(.skippedBefore)
    default: count(event.kind, end(event.identity, sequence))
    }
  }

  /// Checks and frees a live object. Returns the cycles of the free.
  @discardableResult func end(_ identity: UInt32, _ sequence: UInt32) -> UInt64 {
    let entry = objects[Int(identity)]
    let operation = trace.operation(entry.operation)
    let address = VirtualAddress(entry.address)
    if !Stamp(identity, entry.sequence).holds(address, UInt64(operation.requested), access) {
      damage(sequence)
    }
    objects[Int(identity)].address = 0
    countDead(objects: 1, bytes: UInt64(operation.requested), pages: 0)
    let start = cp_cycles()
    free(address.pointer.unsafelyUnwrapped, operation)
    return cp_cycles() &- start
  }

  private func allocatePages(_ event: TraceEvent, _ sequence: UInt32) {
    let operation = trace.operation(event.operation)
    let (first, count) = (Int(event.identity), 1 << Int(operation.order))
    let old = endPages(first, count, sequence)
    if old.freed > 0 { summary.pointee.reused += 1 }
    let start = cp_cycles()
    let wait = wait(event, operation)
    let given = allocatePages(operation, priority(event, operation), wait)
    let cycles = cp_cycles() &- start
    guard let given else {
      for i in first..<first + count { pages[i].frame = ReplayPage.skipped }
      if wait.mayWait && count == 1 { summary.pointee.refusedWaiting += 1 }
      if wait.mayWait && count > 1 { summary.pointee.refusedWaitingBlocks += 1 }
      return skip(.noPages)
    }
    self.count(event.kind, cycles)
    for i in 0..<count {
      let frame = FrameNumber(given.rawValue + UInt32(i))
      let address = system.machine.directMap.virtualAddress(of: frame.address)
      _ = Stamp(event.identity + UInt32(i), sequence).write(address, Page.size, DirectAccess())
      pages[first + i] = ReplayPage(frame: frame.rawValue, sequence: sequence)
    }
    countLive(objects: 0, bytes: 0, pages: UInt64(count))
  }

  private func freePages(_ event: TraceEvent, _ sequence: UInt32) {
    let operation = trace.operation(event.operation)
    let found = endPages(Int(event.identity), 1 << Int(operation.order), sequence)
    if found.freed > 0 {
      count(event.kind, found.cycles)
    } else if found.skipped > 0 {
      skip(.skippedBefore)
    } else {
      summary.pointee.unmatchedPageFrees += 1
    }
  }

  /// Checks and frees the live ones of `count` pages from `first` on, in as few runs as their frames permit.
  @discardableResult func endPages(
    _ first: Int, _ count: Int, _ sequence: UInt32
  ) -> (freed: UInt64, skipped: UInt64, cycles: UInt64) {
    var (freed, skipped, cycles): (UInt64, UInt64, UInt64) = (0, 0, 0)
    var run = FrameRun(first: .none, count: .zero)
    for i in first..<first + count {
      let entry = pages[i]
      pages[i].frame = ReplayPage.dead
      if entry.frame == ReplayPage.dead { continue }
      if entry.frame == ReplayPage.skipped {
        skipped += 1
        continue
      }
      check(entry, UInt32(i), sequence)
      freed += 1
      if run.count > .zero && entry.frame == run.end.rawValue {
        run.count += .one
      } else {
        cycles += free(run)
        run = FrameRun(first: FrameNumber(entry.frame), count: .one)
      }
    }
    cycles += free(run)
    countDead(objects: 0, bytes: 0, pages: freed)
    return (freed, skipped, cycles)
  }

  private func free(_ run: FrameRun) -> UInt64 {
    guard run.count > .zero else { return 0 }
    let start = cp_cycles()
    physical.free(run)
    return cp_cycles() &- start
  }

  /// Whether a page still has its stamp, and is a page: a slab in its place would have another role.
  private func check(_ entry: ReplayPage, _ identity: UInt32, _ sequence: UInt32) {
    let frame = FrameNumber(entry.frame)
    let address = system.machine.directMap.virtualAddress(of: frame.address)
    let isIntact = Stamp(identity, entry.sequence).holds(address, Page.size, DirectAccess())
    let isPage = physical.record(frame).map { $0.role == .wired || $0.role == .contiguous } ?? false
    if !isIntact || !isPage { damage(sequence) }
  }

  // MARK: The layers

  func allocate(
    _ operation: TraceOperation, _ priority: AllocationPriority, _ wait: WaitPolicy = .forbidden
  ) -> UnsafeMutableRawPointer? {
    let size = ByteCount(UInt64(operation.requested))
    if operation.kind == .cacheAlloc, let cache = caches[Int(operation.cache)] {
      return cache.alloc(type: type, priority: priority, wait: wait)
    }
    return isZeroed(operation)
      ? kmem.zalloc(size, type: type, priority: priority, wait: wait)
      : kmem.alloc(size, type: type, priority: priority, wait: wait)
  }

  func free(_ object: UnsafeMutableRawPointer, _ operation: TraceOperation) {
    if operation.kind == .cacheAlloc, let cache = caches[Int(operation.cache)] {
      return cache.free(object, type: type)
    }
    kmem.free(object, size: ByteCount(UInt64(operation.requested)), type: type)
  }

  /// Whether the object must be zero: only a request by size can demand it; a user of a cache clears its own objects.
  private func isZeroed(_ operation: TraceOperation) -> Bool {
    operation.flags.contains(.zero) && operation.kind == .kmalloc
  }

  private func allocatePages(
    _ operation: TraceOperation, _ priority: AllocationPriority, _ wait: WaitPolicy
  ) -> FrameNumber? {
    let order = BlockOrder(operation.order)
    let owner = FrameOwner("replay, pages of the trace")
    guard operation.limit == .dma || operation.limit == .dma32 else {
      return wait.mayWait
        ? try? physical.allocate(
          order, role: .wired, priority: priority, waitUntil: wait.deadline, for: owner)
        : try? physical.allocate(order, role: .wired, priority: priority, for: owner)
    }
    let high = PhysicalAddress(operation.limit == .dma ? 16 << 20 : 4 << 30)
    let alignment = Alignment(order.frames.bytes.rawValue) ?? .page
    let constraints = RunConstraints(high: high, alignment: alignment)
    if wait.mayWait {
      var request = ContiguousRequest(order.frames, where: constraints, for: owner)
      request.priority = priority
      return try? system.contiguous.allocContig(request).first
    }
    return try? physical.allocate(
      run: order.frames, where: constraints, role: .wired, priority: priority, for: owner
    ).first
  }

  /// The priority of a request: one that could not wait may use the reserve, as it did in the traced kernel.
  private func priority(_ event: TraceEvent, _ operation: TraceOperation) -> AllocationPriority {
    if let priority { return priority }
    return operation.flags.contains(.atomic) || event.context == .hardInterrupt ? .interrupt : .normal
  }

  /// Whether a request waits for memory: as it might in the traced kernel, where a thread made it.
  private func wait(_ event: TraceEvent, _ operation: TraceOperation) -> WaitPolicy {
    let mayWait =
      priority == nil && event.context == .thread && operation.flags.isDisjoint(with: [.atomic, .noWait])
    return mayWait ? .allowed : .forbidden
  }

  // MARK: Counting

  private func countLive(objects: UInt64, bytes: UInt64, pages: UInt64) {
    summary.pointee.liveObjects += objects
    summary.pointee.liveBytes += bytes
    summary.pointee.livePages += pages
    guard let totals else {
      summary.pointee.peakObjects = max(summary.pointee.peakObjects, summary.pointee.liveObjects)
      summary.pointee.peakObjectBytes = max(summary.pointee.peakObjectBytes, summary.pointee.liveBytes)
      summary.pointee.peakPages = max(summary.pointee.peakPages, summary.pointee.livePages)
      return
    }
    if objects > 0 {
      totals.pointee.objects.rise(by: objects)
      totals.pointee.bytes.rise(by: bytes)
    }
    if pages > 0 { totals.pointee.pages.rise(by: pages) }
  }

  private func countDead(objects: UInt64, bytes: UInt64, pages: UInt64) {
    summary.pointee.liveObjects -= objects
    summary.pointee.liveBytes -= bytes
    summary.pointee.livePages -= pages
    guard let totals else { return }
    if objects > 0 {
      totals.pointee.objects.fall(by: objects)
      totals.pointee.bytes.fall(by: bytes)
    }
    if pages > 0 { totals.pointee.pages.fall(by: pages) }
  }

  private func count(_ kind: TraceKind, _ cycles: UInt64) {
    summary.pointee.done[Int(kind.rawValue)] += 1
    summary.pointee.cycles[Int(kind.rawValue)] += cycles
  }

  private func countUnmatched(_ kind: TraceKind) {
    summary.pointee.unmatchedObjectFrees += 1
    if kind == .kfree { summary.pointee.unmatchedKfrees += 1 }
  }

  private func skip(_ reason: ReplaySkip) { summary.pointee.skips[Int(reason.rawValue)] += 1 }

  private func damage(_ sequence: UInt32) {
    summary.pointee.damaged += 1
    summary.pointee.firstDamage = min(summary.pointee.firstDamage, sequence - 1)
  }
}
