// The start of this layer, in two steps, because the page tables that reach all of memory are built between them: reserve
// one run for records and tables at the top of memory; then open.
//
// Nothing here writes to each frame's record. Records are written only for the pageblocks that are partly allocated or
// partly no memory, and for the heads of free blocks. A pageblock that boot occupied as a whole is one entry. So 16 bytes
// are written for 2 MiB, and 32 bytes for 128 MiB.

import MemoryPrimitives
import Synchronization

extension FrameAllocator {
  /// The layout of the reserved run, in bytes from its start.
  struct Layout {
    var sectionCount = 0
    var pageblockCount: UInt64 = 0
    var spanCapacity = 0
    var counts = 0, events = 0, queues = 0, supplies = 0, sections = 0, spans = 0, pageblocks = 0
    var records: UInt64 = 0
    var end: UInt64 = 0

    init(_ map: MemoryMap) {
      sectionCount = Int((map.end.rawValue - 1) >> Section.frameShift) + 1
      var pageblockCount: UInt64 = 0
      Layout.forEachSection(of: map) { _, first, frames in pageblockCount += UInt64(frames >> Pageblock.shift)
      }
      self.pageblockCount = pageblockCount
      // An occupied run inside a run of the map makes two of it.
      spanCapacity = map.count + EarlyMemory.capacity
      var layout = StorageLayout()
      _ = layout.add(State.self)
      counts = layout.add(Atomic<UInt64>.self, count: FrameTable.countWords)
      events = layout.add(FrameEvents.self)
      queues = layout.add(FreeQueue.self, count: FrameDomain.queueCount)
      supplies = layout.add(Supply.self, count: FrameRole.count * Self.priorities)
      sections = layout.add(sectionCount * Section.size)
      spans = layout.add(FrameSpan.self, count: spanCapacity)
      pageblocks = layout.add(Int(pageblockCount) * PageblockPointer.size)
      records = layout.size.pagesRoundedUp.bytes.rawValue
      end = records + pageblockCount * Pageblock.recordPages * Page.size
    }

    static var priorities: Int { 3 }

    var pages: PageCount { ByteCount(end).pagesRoundedUp }

    /// Calls `body` for each section that has memory, with its number, the first frame that gets a record, and the
    /// number of frames that do.
    static func forEachSection(of map: MemoryMap, _ body: (UInt32, UInt32, UInt32) -> Void) {
      var number: UInt32 = 0
      var (first, last): (UInt32, UInt32) = (0, 0)
      var isOpen = false
      func close() {
        guard isOpen else { return }
        let start = first & ~(Pageblock.frames - 1)
        body(number, start, (last | (Pageblock.frames - 1)) - start + 1)
      }
      for i in 0..<map.count {
        let run = map[i]
        var at = run.first.rawValue
        let runLast = run.end.rawValue - 1
        while true {
          let here = at >> Section.frameShift
          if !isOpen || here != number {
            close()
            (isOpen, number, first) = (true, here, at)
          }
          last = min(runLast, here << Section.frameShift | (1 << Section.frameShift - 1))
          if last == runLast { break }
          at = last + 1
        }
      }
      close()
    }
  }

  /// Reserves the run for the records of all frames of `map`, at the highest address that fits. Does not access it, so it
  /// may lie where the direct map does not reach yet. Throws `tooSmall` when no run is long enough.
  package static func reserveRecords(
    of map: MemoryMap, from early: EarlyMemory
  ) throws(PhysicalMemoryError) -> FrameRun {
    guard let run = early.reserve(Layout(map).pages, role: .records) else { throw .tooSmall }
    return run
  }

  /// Reserves and opens in one: for a machine whose direct map reaches all memory already. Throws `tooSmall`.
  package static func create(
    machine: Machine, map: MemoryMap, early: EarlyMemory
  ) throws(PhysicalMemoryError) -> FrameAllocator {
    open(machine: machine, map: map, early: early, records: try reserveRecords(of: map, from: early))
  }

  /// Starts the layer in `records`, which `reserveRecords` reserved from the same `map`; the direct map must reach all of
  /// it. Closes `early`: its allocated or occupied pages keep their role, all other frames become free.
  package static func open(
    machine: Machine, map: MemoryMap, early: EarlyMemory, records: FrameRun
  ) -> FrameAllocator {
    let layout = Layout(map)
    precondition(records.count == layout.pages, "the run was reserved for another map")
    early.close()
    let base = machine.directMap.pointer(to: records.first)
    base.initializeMemory(as: UInt64.self, repeating: 0, count: Int(layout.records) / 8)
    let state = base.part(State.self, at: 0)
    let table = FrameTable(
      sections: base + layout.sections, sectionCount: layout.sectionCount,
      counts: base.part(Atomic<UInt64>.self, at: layout.counts, count: FrameTable.countWords))
    let queues = base.part(FreeQueue.self, at: layout.queues, count: FrameDomain.queueCount)
    let events = base.part(FrameEvents.self, at: layout.events)
    let supplies = base.part(Supply.self, at: layout.supplies, count: FrameRole.count * Layout.priorities)
    let spans = base.part(FrameSpan.self, at: layout.spans, count: layout.spanCapacity)
    events.initialize(to: FrameEvents())
    for i in 0..<FrameDomain.queueCount { (queues + i).initialize(to: FreeQueue()) }
    for i in 0..<FrameTable.countWords { (table.counts + i).initialize(to: Atomic(0)) }
    for role in 0..<FrameRole.count {
      for priority in 0..<Layout.priorities {
        (supplies + (role * Layout.priorities + priority)).initialize(
          to: Supply(
            state: state, role: FrameRole(rawValue: UInt8(role))!,
            priority: AllocationPriority(rawValue: UInt8(priority))!))
      }
    }
    let spanCount = Self.findSpans(map, early, spans)
    state.initialize(
      to: State(
        machine: machine, table: table,
        domain: Locked(.physicalDomain, FrameDomain(table: table, queues: queues, events: events)),
        events: events, supplies: supplies, spans: UnsafeBufferPointer(start: spans, count: spanCount),
        total: map.frames.rawValue, recordsRun: records))
    let memory = FrameAllocator(state: state)

    // Sections, with each pageblock lazy and free; then the frames that are not free are removed.
    var record = UInt(bitPattern: base) + UInt(layout.records)
    var pageblock = UInt(bitPattern: base) + UInt(layout.pageblocks)
    Layout.forEachSection(of: map) { number, first, frames in
      let entry = table.entry(Int(number))
      entry.records = record &- UInt(first) &* UInt(FrameRecordPointer.size)
      entry.pageblocks = pageblock &- UInt(first >> Pageblock.shift) &* UInt(PageblockPointer.size)
      entry.first = first
      entry.frames = frames
      entry.free = frames
      record += UInt(frames) * UInt(FrameRecordPointer.size)
      pageblock += UInt(frames >> Pageblock.shift) * UInt(PageblockPointer.size)
    }
    // The reserve: as many KiB as four times the root of all KiB (Linux's min_free_kbytes), at most 1/32.
    let root = squareRoot(map.frames.rawValue * 4)
    let reserve = min(root, map.frames.rawValue / 32)
    // No other processor uses the layer yet, so the walk over the map need not hold the lock step by step.
    let domain = memory.domain.quiet
    domain.pointee.populate(map, early)
    domain.pointee.reserves[0] = reserve
    domain.pointee.reserves[1] = reserve / 4
    machine.readFreeMemory(by: memory.freeMemoryReader)
    return memory
  }

  /// Writes the runs of the map without permanent frames to `spans`, and returns how many they are.
  private static func findSpans(
    _ map: MemoryMap, _ early: EarlyMemory, _ spans: UnsafeMutablePointer<FrameSpan>
  ) -> Int {
    var made = 0
    for i in 0..<map.count {
      let run = map[i]
      var at = run.first.rawValue
      let end = run.end.rawValue
      var t = early.position(at)
      while at < end {
        while t < early.state.pointee.count && !early.list[t].role.isPermanent { t += 1 }
        let isListed = t < early.state.pointee.count && early.list[t].first < end
        let freeEnd = isListed ? max(at, early.list[t].first) : end
        if at < freeEnd {
          spans[made] = FrameSpan(first: at, end: freeEnd)
          made += 1
        }
        guard isListed else { break }
        at = min(end, early.list[t].end)
        t += 1
      }
    }
    return made
  }
}

extension FrameDomain {
  /// Gives every frame its role, runs in address order.
  fileprivate mutating func populate(_ map: MemoryMap, _ early: EarlyMemory) {
    // Frames below have their role.
    var at: UInt32 = 0
    for i in 0..<map.count {
      let run = map[i]
      assign(.absent, at, run.first.rawValue)
      at = run.first.rawValue
      let end = run.end.rawValue
      var t = early.position(at)
      while at < end {
        let isListed = t < early.state.pointee.count && early.list[t].first < end
        let freeEnd = isListed ? max(at, early.list[t].first) : end
        if at < freeEnd {
          assign(.free, at, freeEnd)
          at = freeEnd
        }
        if isListed {
          let listedEnd = min(end, early.list[t].end)
          assign(early.list[t].role, at, listedEnd, for: early.list[t].owner)
          at = listedEnd
          t += 1
        }
      }
    }
    assign(.absent, at, .max)
    // The number that means none has a record if its pageblock has memory.
    if let section = table.section(of: .max) {
      table.materialize(.max)
      table.record(.max).role = .absent
      table.pageblock(.max).absent += 1
      section.free -= 1
    }
  }

  private mutating func assign(
    _ role: FrameRole, _ first: UInt32, _ end: UInt32, for owner: FrameOwner = .none
  ) {
    guard first < end else { return }
    if role == .free {
      table.add(UInt64(end - first), to: .free)
      putBack(first, end)
      return
    }
    var at = first
    while at < end {
      // To the next frame that has a record.
      guard let section = table.section(of: at) else {
        let number = Int(at >> Section.frameShift)
        guard number < table.sectionCount else { return }
        let entry = table.entry(number)
        if entry.frames != 0 && at < entry.first {
          at = entry.first
        } else {
          guard number + 1 < table.sectionCount else { return }
          at = UInt32(number + 1) << Section.frameShift
        }
        continue
      }
      let pageblockFirst = Pageblock.first(at)
      let last = min(end - 1, pageblockFirst | (Pageblock.frames - 1))
      let count = last - at + 1
      let pageblock = table.pageblock(at)
      if count == Pageblock.frames {
        pageblock.state = .uniform
        pageblock.role = role
      } else {
        table.materialize(at)
        for frame in at...last {
          let record = table.record(frame)
          record.role = role
          record.setOwner(owner)
          if role != .absent { record.busyWord = .wiredOnce }
        }
      }
      if role == .absent {
        pageblock.absent += UInt16(count)
      } else {
        pageblock.unmovable += UInt16(count)
        table.add(UInt64(count), to: role)
      }
      section.free -= count
      if last == end - 1 { return }
      at = last + 1
    }
  }
}

/// The whole part of the square root.
func squareRoot(_ value: UInt64) -> UInt64 {
  var root: UInt64 = 0
  var bit: UInt64 = 1 << 62
  var rest = value
  while bit > rest { bit >>= 2 }
  while bit != 0 {
    if rest >= root + bit {
      rest -= root + bit
      root = root >> 1 + bit
    } else {
      root >>= 1
    }
    bit >>= 2
  }
  return root
}
