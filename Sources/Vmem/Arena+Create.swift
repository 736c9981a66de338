// An arena's life: creation, the spans that its owner adds, destruction.

import MemoryPrimitives

/// The properties that an arena has for its whole life.
public struct ArenaOptions {
  /// The name that reports and tables print.
  public var name: ShortName
  /// The unit of all sizes and starts: a size is rounded up to it, and a segment starts at a multiple of it.
  public var quantum: Alignment
  /// The meaning of the values.
  public var contents: ArenaContents
  /// The source of spans for an arena that lacks space. Nil for an arena that has only the spans that are added.
  public var source: ArenaSource?
  /// The size of an import is rounded up to this where the source has so much. Nil for the quantum.
  public var importUnit: Alignment?

  /// Describes an arena; by default one of addresses that imports nothing.
  public init(
    name: ShortName, quantum: Alignment, contents: ArenaContents = .addresses, source: ArenaSource? = nil,
    importUnit: Alignment? = nil
  ) {
    self.name = name
    self.quantum = quantum
    self.contents = contents
    self.source = source
    self.importUnit = importUnit
  }
}

extension Arena {
  /// Bytes that `create` needs, aligned to 64. Less than a page.
  public static var stateSize: ByteCount { Layout().size }

  /// The parts of an arena's memory.
  private struct Layout {
    let state: Int
    let heads: Int
    let table: Int
    let size: ByteCount

    init() {
      var layout = StorageLayout()
      state = layout.add(ArenaState.self)
      heads = layout.add(Link.self, count: FreeLists.heads)
      table = layout.add(Link.self, count: BusyHash.words)
      size = layout.size
    }
  }

  /// Makes an arena without spans in `memory`, which it keeps until it is destroyed. It runs on the machine of `tags`.
  public static func create(_ options: ArenaOptions, in memory: UnsafeMutableRawPointer, tags: Tags) -> Arena
  {
    let layout = Layout()
    let heads = memory.part(Link.self, at: layout.heads, count: FreeLists.heads)
    let table = memory.part(Link.self, at: layout.table, count: BusyHash.words)
    let links = tags.state.links
    let quantum = options.quantum.rawValue
    let shift = UInt64(quantum.trailingZeroBitCount)
    let arena = Arena(memory.part(ArenaState.self, at: layout.state))
    arena.storage.initialize(
      to: ArenaState(
        name: options.name, quantum: quantum, contents: options.contents, tags: tags,
        machine: tags.state.machine, source: options.source,
        importUnit: max(options.importUnit?.rawValue ?? 1, quantum),
        core: Locked(
          .vmemArena,
          ArenaCore(
            links: links, shift: shift, tags: tags,
            lists: FreeLists(links, shift: shift, heads: heads),
            hash: BusyHash(links, shift: shift, table: table))),
        nextArena: Cell(nil)))
    tags.state.pool.withLock { pool in
      if let last = pool.lastArena {
        last.next = arena
      } else {
        pool.firstArena = arena
      }
      pool.lastArena = arena
    }
    return arena
  }

  /// Adds the span `first ... last` for the arena's whole life. Costs a pass over the spans.
  ///
  /// Errors: `.badConstraint` unless both ends are on the quantum; `.overlaps` when the arena has any of the values
  /// already; `.noTags`.
  public func add(_ first: ArenaAddress, through last: ArenaAddress, priority: AllocationPriority = .normal)
    throws(VmemError)
  {
    let mask = state.quantum - 1
    guard first <= last, first.rawValue & mask == 0, last.rawValue & mask == mask else {
      throw .badConstraint
    }
    if state.machine.failsHere(.vmem) { throw .noTags }
    try secure(2, priority)
    var walker = ArenaCore.Walker()
    var aftermath = Aftermath()
    let overlaps = withUnsafeMutablePointer(to: &walker) { walker in
      state.core.withLock { core in
        walker.span = core.firstSpan
        core.register(walker)
      }
      while true {
        // The turn that reaches the end of the list adds the span under the same hold of the lock.
        let answer = state.core.withLock { core -> Bool? in
          let span = core.overlap(walker, first.rawValue, last.rawValue)
          if span == nil { return nil }
          core.unregister(walker)
          core.spares.hidden -= 2
          if span == false {
            let segment = core.addSpan(.added, first.rawValue, last.rawValue)
            core.lists.insert(segment)
            if !core.waiters.isEmpty {
              count(core.serve(from: FreshSpace(before: core.lastSpan, last: last.rawValue)), &aftermath)
            }
            state.segments.set(core.lists.count + core.hash.count)
          }
          return span
        }
        if let answer { return answer }
      }
    }
    returnSurplusTags()
    if overlaps { throw .overlaps }
    finish(aftermath, priority)
  }

  /// Adds `size` values from `first` on: see `add(_:through:)`.
  public func add(_ first: ArenaAddress, _ size: ArenaSize, priority: AllocationPriority = .normal)
    throws(VmemError)
  {
    let last = first.rawValue.addingReportingOverflow(size.rawValue &- 1)
    guard size.rawValue != 0, !last.overflow else { throw .badConstraint }
    try add(first, through: ArenaAddress(last.partialValue), priority: priority)
  }

  /// Ends the arena: its tags return to the supply, its memory to the caller of `create`.
  ///
  /// With segments still allocated this is a fault report, a leak, on the first of them, and the arena stays as it is.
  /// No other call may use the arena, or visit the arenas of the supply, at the same time.
  public func destroy(at site: CallSite = .here) {
    let busy = state.core.withLock { $0.hash.count }
    guard busy == 0 else { return reportLeak(busy, site) }
    let tags = state.tags
    tags.state.pool.withLock { pool in
      var previous: Arena?
      var other = pool.firstArena
      while let arena = other, !(arena == self) {
        previous = arena
        other = arena.next
      }
      if let previous { previous.next = next } else { pool.firstArena = next }
      if let last = pool.lastArena, last == self { pool.lastArena = previous }
    }
    while true {
      let (work, isDone) = state.core.withLock { $0.dismantle() }
      perform(work)
      if isDone { break }
    }
    storage.deinitialize(count: 1)
  }
}

extension ArenaCore {
  /// Continues to compare `first ... last` with the spans. Nil while there are more to compare with.
  func overlap(_ walker: UnsafeMutablePointer<Walker>, _ first: UInt64, _ last: UInt64) -> Bool? {
    var left = Self.searchBudget
    while walker.span != .none {
      guard left > 0 else { return nil }
      left -= 1
      let span = links[walker.span]
      if span.start <= last, first <= span.last { return true }
      walker.span = span.next
    }
    return false
  }

  /// Takes apart some of an arena that has nothing allocated. Answers whether nothing is left.
  mutating func dismantle() -> (DeferredWork, Bool) {
    var work = DeferredWork()
    for _ in 0..<Self.dismantledAtOnce where firstSpan != .none {
      let segment = links[firstSpan].nextSegment
      lists.remove(segment)
      removeSpan(firstSpan, segment)
    }
    for _ in 0..<Self.dismantledAtOnce where work.pages == .none { work.pages = hash.shrink() }
    if hash.buckets == BusyHash.embeddedBuckets, work.pages == .none {
      work.pages = hash.releaseDirectory()
    }
    work.returnedTags = returnSpares(keeping: 0)
    return (work, firstSpan == .none && hash.pages == 0)
  }
}
