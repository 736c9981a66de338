// The arena as others use it: a handle with alloc, xalloc, free, xfree, add, sizes and destroy.
//
// What happens with the lock dropped is here: growing the supply of tags, import and release, long
// searches, sleeping and reports. The theory stands in Vmem.swift.

import MemoryPrimitives
import Synchronization

/// What an arena has of a kind, for `size`.
@frozen public enum ArenaSizeKind: UInt8, Sendable {
  case allocated
  case free
  case total
  case largestFree
}

/// Counts of an arena at one moment.
public struct ArenaFigures: Equatable, Sendable {
  /// Requests that were granted.
  public var allocations: UInt64
  public var frees: UInt64
  /// Requests that were refused, for want of space or of tags.
  public var failed: UInt64
  /// Requests that slept.
  public var waits: UInt64
  /// Spans that came from the source, and that went back.
  public var imports: UInt64
  public var releases: UInt64
  /// Lists and tags that were looked at: what an operation costs, free of the machine's speed.
  public var visited: UInt64
  public var spans: UInt64
  public var busySegments: UInt64
  public var freeSegments: UInt64
  /// Tags kept for operations to come.
  public var spareTags: UInt64
  /// Pages of the hash of busy segments.
  public var hashPages: UInt64
}

/// Fields are constants, atomics or locked: nothing here is ever written through `pointee`.
struct ArenaState: ~Copyable {
  let name: Name
  let quantum: UInt64
  let contents: ArenaContents
  let tags: Tags
  let machine: Machine
  let source: ArenaSource?
  /// What an import is rounded up to.
  let importUnit: UInt64
  let core: Locked<ArenaCore>
  // Written with the lock held, read by anybody.
  let allocations = Counter()
  let frees = Counter()
  let failed = Counter()
  let waits = Counter()
  let imports = Counter()
  let releases = Counter()
  let segments = Counter()
  /// Written under the lock of the supply.
  let nextArena: Cell<UnsafeMutablePointer<ArenaState>?>
}

/// An arena: hands out integers from the spans that it was given. A handle.
public struct Arena {
  let state: UnsafeMutablePointer<ArenaState>

  init(state: UnsafeMutablePointer<ArenaState>) { self.state = state }

  /// Bytes that `create` needs, aligned to 64. Less than a page.
  public static var stateSize: ByteCount {
    ByteCount(stateStride + FreeLists.heads * 4 + BusyHash.words * 4)
  }
  private static var stateStride: Int { (MemoryLayout<ArenaState>.stride + 63) & ~63 }

  /// An arena without spans in `memory`, which it keeps until it is destroyed.
  ///
  /// Sizes are rounded up to the quantum, and every segment starts at a multiple of it. With a `source`,
  /// what is missing is imported, in sizes rounded up to `importUnit` where that can be had.
  public static func create(
    in memory: UnsafeMutableRawPointer, name: Name, quantum: Alignment, contents: ArenaContents = .addresses,
    tags: Tags, source: ArenaSource? = nil, importUnit: Alignment? = nil, machine: Machine
  ) -> Arena {
    let heads = (memory + stateStride).bindMemory(to: Link.self, capacity: FreeLists.heads)
    let table = (memory + stateStride + FreeLists.heads * 4).bindMemory(
      to: Link.self, capacity: BusyHash.words)
    let links = tags.state.pointee.links
    let shift = UInt64(quantum.rawValue.trailingZeroBitCount)
    let state = memory.bindMemory(to: ArenaState.self, capacity: 1)
    state.initialize(
      to: ArenaState(
        name: name, quantum: quantum.rawValue, contents: contents, tags: tags, machine: machine,
        source: source,
        importUnit: max(importUnit?.rawValue ?? 1, quantum.rawValue),
        core: Locked(
          .vmemArena,
          ArenaCore(
            links: links, shift: shift, tags: tags,
            lists: FreeLists(links, shift: shift, heads: heads),
            hash: BusyHash(links, shift: shift, table: table))),
        nextArena: Cell(nil)))
    tags.state.pointee.pool.withLock { pool in
      if let last = pool.lastArena {
        last.pointee.nextArena.address.pointee = state
      } else {
        pool.firstArena = state
      }
      pool.lastArena = state
    }
    return Arena(state: state)
  }

  public var name: Name { state.pointee.name }
  public var quantum: ArenaSize { ArenaSize(state.pointee.quantum) }
  public var contents: ArenaContents { state.pointee.contents }
  /// Whether the arena imports.
  public var hasSource: Bool { state.pointee.source != nil }
  /// Whether both handles are of one arena.
  public static func == (a: Arena, b: Arena) -> Bool { a.state == b.state }

  // MARK: Spans

  /// Gives the arena the span `first ... last`, for good. Both ends on the quantum, else `.badConstraint`;
  /// `.overlaps` when any of it is the arena's already; `.noTags`. Costs a pass over the spans.
  public func add(_ first: ArenaAddress, through last: ArenaAddress, priority: AllocationPriority = .normal)
    throws(VmemError)
  {
    let mask = state.pointee.quantum - 1
    guard first <= last, first.rawValue & mask == 0, last.rawValue & mask == mask else {
      throw .badConstraint
    }
    if state.pointee.machine.failsHere(.vmem) { throw .noTags }
    try secure(2, priority)
    var walker = ArenaCore.Walker()
    let overlaps = withUnsafeMutablePointer(to: &walker) { walker in
      state.pointee.core.withLock { core in
        walker.pointee.span = core.firstSpan
        core.register(walker)
      }
      while true {
        // The pass reaches the end of the list and adds the span in one go under the lock.
        let answer = state.pointee.core.withLock { core -> Bool? in
          let span = core.overlap(walker, first.rawValue, last.rawValue)
          if span == nil { return nil }
          core.unregister(walker)
          core.spares.hidden -= 2
          if span == false {
            let segment = core.addSpan(.added, first.rawValue, last.rawValue)
            core.lists.insert(segment)
            state.pointee.segments.set(core.lists.count + core.hash.count)
          }
          return span
        }
        if let answer { return answer }
      }
    }
    finish()
    if overlaps { throw .overlaps }
    state.pointee.tags.wakeWaiters()
  }

  /// Gives the arena `size` values from `first` on: see `add(_:through:)`.
  public func add(_ first: ArenaAddress, _ size: ArenaSize, priority: AllocationPriority = .normal)
    throws(VmemError)
  {
    let last = first.rawValue.addingReportingOverflow(size.rawValue &- 1)
    guard size.rawValue != 0, !last.overflow else { throw .badConstraint }
    try add(first, through: ArenaAddress(last.partialValue), priority: priority)
  }

  // MARK: Allocation

  /// A segment of `size` values. Constant time with `.instantFit`.
  ///
  /// With a deadline and a priority other than `.interrupt` the call sleeps until there is space and tags,
  /// at most until then; without one it fails at once. Errors: `.noSpace`, `.noTags`, `.badConstraint` (a
  /// size of zero).
  public func alloc(
    _ size: ArenaSize, policy: FitPolicy = .instantFit, priority: AllocationPriority = .normal,
    until deadline: Tick? = nil,
    at site: CallSite = .here
  ) throws(VmemError) -> ArenaAddress {
    try xalloc(size, ArenaConstraints(), policy: policy, priority: priority, until: deadline, at: site)
  }

  /// A segment of `size` values that satisfies `constraints`; granted whenever a free segment can. Errors and
  /// waiting as for `alloc`. `.badConstraint` where no arena whatsoever could satisfy the request. Goes back
  /// with `xfree`.
  public func xalloc(
    _ size: ArenaSize, _ constraints: ArenaConstraints, policy: FitPolicy = .instantFit,
    priority: AllocationPriority = .normal, until deadline: Tick? = nil, at site: CallSite = .here
  ) throws(VmemError) -> ArenaAddress {
    let request = try ready(size, constraints)
    do {
      return try attempt(request, policy, priority, site)
    } catch {
      guard let deadline, priority != .interrupt else {
        fail()
        throw error
      }
      return try wait(request, policy, priority, until: deadline, site)
    }
  }

  /// Gives back what `alloc` gave. Never fails and needs nothing. A foreign address, one that is free
  /// already and a wrong size are reported, and change nothing.
  public func free(_ address: ArenaAddress, _ size: ArenaSize, at site: CallSite = .here) {
    xfree(address, size, at: site)
  }

  /// Gives back what `xalloc` gave: see `free`.
  public func xfree(_ address: ArenaAddress, _ size: ArenaSize, at site: CallSite = .here) {
    let mask = state.pointee.quantum - 1
    let rounded = (size.rawValue &- 1) | mask
    let outcome = state.pointee.core.withLock { core -> FreeOutcome in
      guard let busy = core.hash.findForRemoval(address.rawValue) else { return .missing }
      let extent = core.links[busy.link].pointee.extent
      guard size.rawValue != 0, extent == rounded else {
        return .wrongSize(extent &+ 1, core.links[busy.link].pointee.callSite)
      }
      let after = core.release(busy)
      state.pointee.frees.add()
      if after.released != nil { state.pointee.releases.add() }
      state.pointee.segments.set(core.lists.count + core.hash.count)
      return .done(after)
    }
    switch outcome {
    case .done(let after):
      if let released = after.released, let source = state.pointee.source {
        source.release(released.start, released.last)
      }
      settle(after)
      state.pointee.tags.wakeWaiters()
    case .wrongSize(let expected, let allocatedAt):
      var fault = fault(.wrongSize, "a segment of an arena was freed with another size than it has", address)
      fault.given = size.rawValue
      fault.expected = expected
      fault.allocatedAt = allocatedAt
      fault.reportedAt = site
      state.pointee.machine.report(fault)
    case .missing:
      reportMissing(address, size, site)
    }
  }

  enum FreeOutcome {
    case done(ArenaCore.Aftermath)
    case wrongSize(UInt64, CallSite)
    case missing
  }

  // MARK: Figures

  /// Values of a kind: exact, constant time except `.largestFree`, which costs a pass over one list when the
  /// largest was taken since the last question. 2^64 reads as `ArenaSize.everything`.
  public func size(_ kind: ArenaSizeKind) -> ArenaSize {
    if kind == .largestFree { return largestFree() }
    return state.pointee.core.withLock { core in
      switch kind {
      case .allocated: Self.saturated(core.allocated, isNothing: core.hash.count == 0)
      case .free: Self.saturated(core.total &- core.allocated, isNothing: core.lists.count == 0)
      default: Self.saturated(core.total, isNothing: core.spans == 0)
      }
    }
  }

  /// Counters are modulo 2^64, so a zero that isn't nothing is everything.
  private static func saturated(_ size: UInt64, isNothing: Bool) -> ArenaSize {
    size == 0 && !isNothing ? .everything : ArenaSize(size)
  }

  private func largestFree() -> ArenaSize {
    var cursor = FreeLists.Cursor(list: 0)
    cursor.wantsLargest = true
    return withUnsafeMutablePointer(to: &cursor) { cursor in
      var isRegistered = false
      while true {
        let answer = state.pointee.core.withLock { core -> ArenaSize? in
          let extent = core.stepLargest(cursor)
          let isDone = extent != nil || core.lists.count == 0
          if isDone, isRegistered { core.lists.unregister(cursor) }
          if !isDone, !isRegistered { core.lists.register(cursor) }
          isRegistered = !isDone
          guard isDone else { return nil }
          guard let extent, core.lists.count != 0 else { return .zero }
          return Self.saturated(extent &+ 1, isNothing: false)
        }
        if let answer { return answer }
      }
    }
  }

  /// Counts at this moment.
  public var figures: ArenaFigures {
    state.pointee.core.withLock { core in
      ArenaFigures(
        allocations: state.pointee.allocations.value, frees: state.pointee.frees.value,
        failed: state.pointee.failed.value, waits: state.pointee.waits.value,
        imports: state.pointee.imports.value, releases: state.pointee.releases.value,
        visited: core.visited &+ core.hash.visited, spans: core.spans, busySegments: core.hash.count,
        freeSegments: core.lists.count, spareTags: UInt64(core.spares.count), hashPages: core.hash.pages)
    }
  }

  // MARK: Destruction

  /// Ends the arena: its tags go back to the supply, its memory to whoever gave it. With segments still
  /// allocated it is reported as a leak, first one first, and the arena stays as it is. Nobody else uses
  /// the arena meanwhile, nor visits the arenas of the supply.
  public func destroy(at site: CallSite = .here) {
    let busy = state.pointee.core.withLock { $0.hash.count }
    guard busy == 0 else { return reportLeak(busy, site) }
    let tags = state.pointee.tags
    tags.state.pointee.pool.withLock { pool in
      var previous: UnsafeMutablePointer<ArenaState>?
      var next = pool.firstArena
      while let arena = next, arena != state {
        previous = arena
        next = arena.pointee.nextArena.address.pointee
      }
      let after = state.pointee.nextArena.address.pointee
      if let previous { previous.pointee.nextArena.address.pointee = after } else { pool.firstArena = after }
      if pool.lastArena == state { pool.lastArena = previous }
    }
    while true {
      let (after, isDone) = state.pointee.core.withLock { $0.dismantle() }
      settle(after)
      if isDone { break }
    }
    state.deinitialize(count: 1)
  }

  // MARK: Inside: requests

  /// Checks a request and makes it ready, or tells that nobody could satisfy it.
  private func ready(_ size: ArenaSize, _ constraints: ArenaConstraints) throws(VmemError) -> Request {
    let quantum = state.pointee.quantum
    let alignment = max(constraints.alignment.rawValue, quantum)
    let phase = constraints.phase.rawValue
    let nocross = constraints.nocross?.rawValue ?? 0
    guard size.rawValue != 0, phase < alignment, phase & (quantum - 1) == 0,
      constraints.minimum <= constraints.maximum
    else { throw .badConstraint }
    let extent = (size.rawValue - 1) | (quantum - 1)
    if nocross != 0 {
      // The offset in its window of the only place that can be free of a crossing, see `Request.place`.
      let offset = phase & (nocross - 1)
      guard nocross >= quantum, extent < nocross - offset else { throw .badConstraint }
    }
    let shift = UInt64(quantum.trailingZeroBitCount)
    let quanta = (extent >> shift) &+ 1
    guard quanta != 0 else { throw .noSpace }
    var request = Request(
      extent: extent, quanta: quanta, alignment: alignment, phase: phase,
      nocross: nocross < alignment ? 0 : nocross, minimum: constraints.minimum.rawValue,
      maximum: constraints.maximum.rawValue, sufficientClass: nil)
    if constraints.minimum == .lowest, constraints.maximum == .highest {
      // In a segment of so many quanta the lowest place lies within reach wherever the segment starts.
      var slack = (alignment >> shift) - 1
      if request.nocross != 0 { slack += (nocross >> shift) + (phase >> shift) }
      let enough = quanta.addingReportingOverflow(slack)
      if !enough.overflow { request.sufficientClass = FreeLists.sufficient(quanta: enough.partialValue) }
    }
    return request
  }

  private func fail() { state.pointee.core.withLock { _ in state.pointee.failed.add() } }

  /// Makes `count` tags the caller's own: hidden among the spares.
  private func secure(_ count: UInt32, _ priority: AllocationPriority) throws(VmemError) {
    while true {
      let isDone = state.pointee.core.withLock { core in
        guard core.secure(count) else { return false }
        core.spares.hidden += count
        return true
      }
      if isDone { return }
      guard state.pointee.tags.grow(priority) else { throw .noTags }
    }
  }

  private enum Outcome {
    case granted(UInt64)
    /// The supply must grow first.
    case needsTags
    /// Nothing at first sight. The tags are hidden.
    case unclear
  }

  /// One try, without sleeping.
  private func attempt(
    _ request: Request, _ policy: FitPolicy, _ priority: AllocationPriority, _ site: CallSite
  ) throws(VmemError) -> ArenaAddress {
    if state.pointee.machine.failsHere(.vmem) { throw .noTags }
    let need: UInt32 = state.pointee.source == nil ? 2 : 4
    var wantsPage = false
    while true {
      let outcome = state.pointee.core.withLock { core -> Outcome in
        guard core.secure(need) else { return .needsTags }
        if policy == .instantFit, let found = core.quick(request) {
          grant(&core, found, request, site, &wantsPage)
          return .granted(found.place)
        }
        core.spares.hidden += need
        return .unclear
      }
      switch outcome {
      case .granted(let place):
        if wantsPage { growHash(priority) }
        return ArenaAddress(place)
      case .needsTags:
        guard state.pointee.tags.grow(priority) else { throw .noTags }
        continue
      case .unclear:
        break
      }
      var place: UInt64?
      if policy == .bestFit || state.pointee.source == nil {
        place = search(request, policy, site, need, &wantsPage)
      }
      if place == nil, let source = state.pointee.source {
        place = importSpan(source, request, policy, priority, site, need, &wantsPage)
        if place == nil { place = search(request, policy, site, need, &wantsPage) }
      }
      if place == nil { state.pointee.core.withLock { $0.spares.hidden -= need } }
      finish()
      guard let place else { throw .noSpace }
      if wantsPage { growHash(priority) }
      return ArenaAddress(place)
    }
  }

  /// Cuts out what was found and counts it. The lock is held.
  private func grant(
    _ core: inout ArenaCore, _ found: ArenaCore.Found, _ request: Request, _ site: CallSite,
    _ wantsPage: inout Bool
  ) {
    core.take(found, request, site)
    state.pointee.allocations.add()
    state.pointee.segments.set(core.lists.count + core.hash.count)
    wantsPage = core.hash.wantsPage
  }

  /// The pass over all lists that could hold the request. The caller's `need` tags are hidden; when something
  /// was found they are no longer.
  private func search(
    _ request: Request, _ policy: FitPolicy, _ site: CallSite, _ need: UInt32, _ wantsPage: inout Bool
  ) -> UInt64? {
    var page = false
    defer { wantsPage = wantsPage || page }
    var cursor = FreeLists.Cursor(list: FreeLists.index(quanta: request.quanta) - 1)
    return withUnsafeMutablePointer(to: &cursor) { cursor in
      let start = cursor.pointee.list
      var seen: UInt64?
      var rounds: UInt32 = 0
      var isRegistered = false
      while true {
        enum Turn {
          case found(UInt64)
          case nothing
          case more
        }
        let turn = state.pointee.core.withLock { core -> Turn in
          if seen == nil { seen = core.lists.insertions }
          var step = core.step(cursor, request, policy)
          if case .exhausted = step, rounds < ArenaCore.searchRounds,
            seen != core.lists.insertions || cursor.pointee.isDisturbed
          {
            rounds += 1
            seen = core.lists.insertions
            cursor.pointee.list = start
            cursor.pointee.next = .none
            cursor.pointee.isDisturbed = false
            step = .more
          }
          if case .more = step {
            if !isRegistered { core.lists.register(cursor) }
            isRegistered = true
            return .more
          }
          if isRegistered { core.lists.unregister(cursor) }
          guard case .found(let found) = step else { return .nothing }
          core.spares.hidden -= need
          grant(&core, found, request, site, &page)
          return .found(found.place)
        }
        switch turn {
        case .found(let place): return place
        case .nothing: return nil
        case .more: continue
        }
      }
    }
  }

  /// Asks the source for a span that satisfies the request, and cuts it out of that. If space has come up
  /// meanwhile, that is used and the import goes back.
  private func importSpan(
    _ source: ArenaSource, _ request: Request, _ policy: FitPolicy, _ priority: AllocationPriority,
    _ site: CallSite,
    _ need: UInt32, _ wantsPage: inout Bool
  ) -> UInt64? {
    guard let span = fetch(source, request, priority, site) else { return nil }
    var page = false
    let (place, isSurplus) = state.pointee.core.withLock { core -> (UInt64, Bool) in
      core.spares.hidden -= need
      if policy == .instantFit, let found = core.quick(request) {
        grant(&core, found, request, site, &page)
        return (found.place, true)
      }
      let segment = core.addSpan(.imported, span.start, span.last)
      core.carve(segment, span.place, span.place + request.extent, site)
      state.pointee.allocations.add()
      state.pointee.imports.add()
      state.pointee.segments.set(core.lists.count + core.hash.count)
      page = core.hash.wantsPage
      return (span.place, false)
    }
    wantsPage = page
    if isSurplus { source.release(span.start, span.last) }
    return place
  }

  /// A span from the source and the place for the request in it: the size rounded up to the unit of
  /// import, or, when that is not to be had or could not satisfy a constraint, just the size.
  private func fetch(
    _ source: ArenaSource, _ request: Request, _ priority: AllocationPriority, _ site: CallSite
  ) -> (start: UInt64, last: UInt64, place: UInt64)? {
    let isFree = request.nocross == 0 && request.minimum == 0 && request.maximum == UInt64.max
    let large = request.extent | (state.pointee.importUnit - 1)
    var extents = [request.extent, request.extent] as InlineArray<2, UInt64>
    if isFree { extents[0] = large }
    for i in 0..<2 where i == 0 || extents[0] != extents[1] {
      guard !state.pointee.machine.failsHere(.vmem), extents[i] != UInt64.max else { continue }
      let ask = ImportRequest(request, extent: extents[i], priority: priority, site: site)
      guard let span = source.take(ask) else { continue }
      let mask = state.pointee.quantum - 1
      if span.start & mask == 0, span.last & mask == mask,
        let place = request.place(in: span.start, span.last)
      {
        return (span.start, span.last, place)
      }
      source.release(span.start, span.last)
    }
    return nil
  }

  /// Sleeps and tries again until the request is granted or the deadline has passed.
  private func wait(
    _ request: Request, _ policy: FitPolicy, _ priority: AllocationPriority, until deadline: Tick,
    _ site: CallSite
  ) throws(VmemError) -> ArenaAddress {
    let shared = state.pointee.tags.state
    shared.pointee.waiters.add(1, ordering: .sequentiallyConsistent)
    defer { shared.pointee.waiters.subtract(1, ordering: .releasing) }
    state.pointee.core.withLock { _ in state.pointee.waits.add() }
    while true {
      let ticket = shared.pointee.queue.ticket()
      do {
        return try attempt(request, policy, priority, site)
      } catch {
        guard shared.pointee.queue.sleep(ticket, until: deadline, on: state.pointee.machine) else {
          fail()
          throw error
        }
      }
    }
  }

  // MARK: Inside: what is done with the lock dropped

  /// Gives the hash the page that it would like. Failure is harmless.
  @inline(never) private func growHash(_ priority: AllocationPriority) {
    guard priority != .interrupt else { return }
    let tags = state.pointee.tags
    while state.pointee.core.withLock({ $0.hash.wantsPage }) {
      guard let page = tags.takePage(priority) else {
        state.pointee.core.withLock { $0.hash.goWithout() }
        return
      }
      page.initializeMemory(as: UInt64.self, repeating: 0, count: Int(Page.size / 8))
      let link = tags.state.pointee.links.link(page)
      tags.state.pointee.pool.withLock { $0.hashPages += 1 }
      if !state.pointee.core.withLock({ $0.hash.install(link) }) {
        tags.state.pointee.pool.withLock { $0.hashPages -= 1 }
        tags.givePage(page)
      }
    }
  }

  /// After tags were hidden and are no longer: gives back spares beyond the usual, and wakes who missed them.
  private func finish() {
    let (gaveTags, wereMissed) = state.pointee.core.withLock { core in
      defer { core.spares.wereMissed = false }
      return (core.returnSpares(), core.spares.wereMissed)
    }
    if gaveTags { state.pointee.tags.trim() }
    if gaveTags || wereMissed { state.pointee.tags.wakeWaiters() }
  }

  /// Gives back what a free set free.
  private func settle(_ after: ArenaCore.Aftermath) {
    let tags = state.pointee.tags
    var page = after.pages
    while page != .none {
      let pointer = tags.state.pointee.links.pointer(page)
      page = pointer.load(as: Link.self)
      tags.state.pointee.pool.withLock { $0.hashPages -= 1 }
      tags.givePage(pointer)
    }
    if after.gaveTags { tags.trim() }
  }

  // MARK: Inside: reports

  private func fault(_ kind: FaultKind, _ what: StaticString, _ address: ArenaAddress) -> FaultReport {
    var fault = FaultReport(
      kind, what, address.rawValue,
      state.pointee.contents == .addresses ? .virtualAddress : .identifier)
    fault.owner = state.pointee.name
    return fault
  }

  @inline(never) private func reportMissing(_ address: ArenaAddress, _ size: ArenaSize, _ site: CallSite) {
    var fault: FaultReport
    if let segment = find(address) {
      switch segment.kind {
      case .free:
        fault = self.fault(.doubleFree, "a segment of an arena was freed that is free", address)
      default:
        fault = self.fault(.notAllocated, "the inside of a segment of an arena was freed", address)
        fault.expected = segment.first.rawValue
        fault.allocatedAt = segment.allocatedAt
      }
    } else {
      fault = self.fault(.foreignPointer, "what was freed belongs to no span of the arena", address)
    }
    fault.given = size.rawValue
    fault.reportedAt = site
    state.pointee.machine.report(fault)
  }

  @inline(never) private func reportLeak(_ busy: UInt64, _ site: CallSite) {
    var first: Segment?
    walk { if first == nil, $0.kind == .busy { first = $0 } }
    var fault = self.fault(.leak, "an arena was destroyed with segments allocated", first?.first ?? .lowest)
    fault.given = busy
    fault.allocatedAt = first?.allocatedAt ?? .unknown
    fault.reportedAt = site
    state.pointee.machine.report(fault)
  }
}

extension ArenaCore {
  /// Goes on comparing `first ... last` with the spans. Nil while there are more to compare with.
  func overlap(_ walker: UnsafeMutablePointer<Walker>, _ first: UInt64, _ last: UInt64) -> Bool? {
    var left = Self.searchBudget
    while walker.pointee.span != .none {
      guard left > 0 else { return nil }
      left -= 1
      let span = links[walker.pointee.span]
      if span.pointee.start <= last, first <= span.pointee.last { return true }
      walker.pointee.span = span.pointee.next
    }
    return false
  }

  /// Takes apart some of an arena that has nothing allocated; whether all of it is gone.
  mutating func dismantle() -> (Aftermath, Bool) {
    var after = Aftermath()
    for _ in 0..<16 where firstSpan != .none {
      let segment = links[firstSpan].pointee.nextSegment
      lists.remove(segment)
      removeSpan(firstSpan, segment)
    }
    for _ in 0..<16 where after.pages == .none { after.pages = hash.shrink() }
    if hash.buckets == BusyHash.embeddedBuckets, after.pages == .none {
      after.pages = hash.releaseDirectory()
    }
    after.gaveTags = returnSpares(keeping: 0)
    return (after, firstSpan == .none && hash.pages == 0)
  }
}
