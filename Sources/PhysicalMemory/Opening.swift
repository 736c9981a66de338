// How this layer comes up, in two steps, because the tables that let all of memory be reached are built
// between them: reserve one run for records and tables at the top of memory; then open.
//
// Nothing here touches each frame. Records are not written at all, but for the pageblocks that are
// partly taken or partly no memory, and the heads of free blocks; a pageblock that boot occupied as a whole
// is one entry. What is written: 16 bytes for 2 MiB, 32 bytes for 128 MiB.

import MemoryPrimitives
import Synchronization

extension FrameAllocator {
  /// How the reserved run is laid out, in bytes from its start.
  struct Layout {
    var sectionCount = 0
    var pageblockCount: UInt64 = 0
    var spanCapacity = 0
    var counts = 0, events = 0, core = 0, queues = 0, supplies = 0, sections = 0, spans = 0
    var pageblocks = 0
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
      var at = 0
      func place(_ size: Int) -> Int {
        defer { at = (at + size + 63) & ~63 }
        return at
      }
      _ = place(MemoryLayout<State>.size)
      counts = place(FrameRole.count * 8)
      events = place(MemoryLayout<Events>.size)
      core = place(MemoryLayout<Core>.size)
      queues = place(3 * 19 * MemoryLayout<FreeQueue>.stride)
      supplies = place(FrameRole.count * 3 * MemoryLayout<Supply>.stride)
      sections = place(sectionCount * Section.size)
      spans = place(spanCapacity * MemoryLayout<Span>.stride)
      pageblocks = place(Int(pageblockCount) * PageblockPointer.size)
      records = (UInt64(at) + Page.size - 1) & ~(Page.size - 1)
      end = records + pageblockCount * Pageblock.recordPages * Page.size
    }

    var pages: PageCount { ByteCount(end).pagesRoundedUp }

    /// Calls `body` for each section that has memory: its number, the first frame that gets a record,
    /// and how many do.
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

  /// Reserves the run for the records of all frames of `map`, as high as it fits. It is not touched, so
  /// it may lie where the direct map does not reach yet. Throws `tooSmall` when no run is long enough.
  public static func reserveRecords(
    of map: MemoryMap, from early: EarlyMemory
  ) throws(PhysicalMemoryError) -> FrameRun {
    guard let run = early.reserve(Layout(map).pages, role: .records) else { throw .tooSmall }
    return run
  }

  /// Reserves and opens in one: for a machine whose memory can all be reached already.
  public static func create(
    machine: Machine, map: MemoryMap, early: EarlyMemory
  ) throws(PhysicalMemoryError) -> FrameAllocator {
    open(machine: machine, map: map, early: early, records: try reserveRecords(of: map, from: early))
  }

  /// Brings the layer up in `records`, which `reserveRecords` reserved from the same `map`; all of
  /// the map must be reachable by the direct map. `early` is closed: what was taken or occupied keeps its
  /// role, everything else becomes free.
  public static func open(
    machine: Machine, map: MemoryMap, early: EarlyMemory, records: FrameRun
  ) -> FrameAllocator {
    let layout = Layout(map)
    precondition(records.count == layout.pages, "the run was reserved for another map")
    early.close()
    let base = machine.directMap.pointer(to: records.first)
    base.initializeMemory(as: UInt64.self, repeating: 0, count: Int(layout.records) / 8)
    let state = base.bindMemory(to: State.self, capacity: 1)
    let core = (base + layout.core).bindMemory(to: Core.self, capacity: 1)
    let queues = (base + layout.queues).bindMemory(to: FreeQueue.self, capacity: 3 * 19)
    let counts = (base + layout.counts).bindMemory(to: Atomic<UInt64>.self, capacity: FrameRole.count)
    let events = (base + layout.events).bindMemory(to: Events.self, capacity: 1)
    let supplies = (base + layout.supplies).bindMemory(to: Supply.self, capacity: FrameRole.count * 3)
    let spans = (base + layout.spans).bindMemory(to: Span.self, capacity: layout.spanCapacity)
    core.initialize(to: Core())
    events.initialize(to: Events())
    for i in 0..<3 * 19 { (queues + i).initialize(to: FreeQueue()) }
    for i in 0..<FrameRole.count { (counts + i).initialize(to: Atomic(0)) }
    for role in 0..<FrameRole.count {
      for priority in 0..<3 {
        (supplies + (role * 3 + priority)).initialize(
          to: Supply(
            state: state, role: FrameRole(rawValue: UInt8(role))!,
            priority: AllocationPriority(rawValue: UInt8(priority))!))
      }
    }

    let spanCount = Self.findSpans(map, early, spans)
    state.initialize(
      to: State(
        machine: machine, sections: base + layout.sections, sectionCount: layout.sectionCount, core: core,
        queues: queues, counts: counts, events: events, supplies: supplies, spans: spans,
        spanCount: spanCount, total: map.frames.rawValue, recordsRun: records))
    let memory = FrameAllocator(state: state)

    // Sections, with each pageblock lazy and free; then what is not free is taken out of that.
    var record = UInt(bitPattern: base) + UInt(layout.records)
    var pageblock = UInt(bitPattern: base) + UInt(layout.pageblocks)
    Layout.forEachSection(of: map) { number, first, frames in
      let entry = memory.sectionEntry(Int(number))
      entry.records = record &- UInt(first) &* 32
      entry.pageblocks = pageblock &- UInt(first >> Pageblock.shift) &* 16
      entry.first = first
      entry.frames = frames
      entry.free = frames
      record += UInt(frames) * 32
      pageblock += UInt(frames >> Pageblock.shift) * 16
    }
    memory.populate(map, early)

    // The reserve: as many KiB as four times the root of all KiB (Linux's min_free_kbytes), at most 1/32.
    let root = squareRoot(map.frames.rawValue * 4)
    let reserve = min(root, map.frames.rawValue / 32)
    core.pointee.reserves[0] = reserve
    core.pointee.reserves[1] = reserve / 4
    return memory
  }

  /// Gives every frame its role, runs in address order.
  private func populate(_ map: MemoryMap, _ early: EarlyMemory) {
    var at: UInt32 = 0  // frames below have their role
    for i in 0..<map.count {
      let run = map[i]
      assign(.absent, at, run.first.rawValue)
      at = run.first.rawValue
      let end = run.end.rawValue
      var t = early.position(at)
      while at < end {
        let isTaken = t < early.state.pointee.count && early.taken[t].first < end
        let freeEnd = isTaken ? max(at, early.taken[t].first) : end
        if at < freeEnd {
          assign(.free, at, freeEnd)
          at = freeEnd
        }
        if isTaken {
          let takenEnd = min(end, early.taken[t].end)
          assign(early.taken[t].role, at, takenEnd)
          at = takenEnd
          t += 1
        }
      }
    }
    assign(.absent, at, .max)
    // The number that means none has a record if its pageblock has memory.
    if let section = section(.max) {
      materialize(.max)
      recordUnchecked(.max).role = .absent
      pageblockUnchecked(.max).absent += 1
      section.free -= 1
    }
  }

  private func assign(_ role: FrameRole, _ first: UInt32, _ end: UInt32) {
    guard first < end else { return }
    if role == .free {
      add(UInt64(end - first), to: .free)
      putBack(first, end)
      return
    }
    var at = first
    while at < end {
      // To the next frame that has a record.
      guard let section = section(at) else {
        let number = Int(at >> Section.frameShift)
        guard number < state.pointee.sectionCount else { return }
        let entry = sectionEntry(number)
        if entry.frames != 0 && at < entry.first {
          at = entry.first
        } else {
          guard number + 1 < state.pointee.sectionCount else { return }
          at = UInt32(number + 1) << Section.frameShift
        }
        continue
      }
      let pageblockFirst = at & ~(Pageblock.frames - 1)
      let last = min(end - 1, pageblockFirst | (Pageblock.frames - 1))
      let count = last - at + 1
      let pageblock = pageblockUnchecked(at)
      if count == Pageblock.frames {
        pageblock.state = .uniform
        pageblock.role = role
      } else {
        materialize(at)
        for frame in at...last {
          let record = recordUnchecked(frame)
          record.role = role
          if role != .absent { record.busyWord = .wiredOnce }
        }
      }
      if role == .absent {
        pageblock.absent += UInt16(count)
      } else {
        pageblock.unmovable += UInt16(count)
        add(UInt64(count), to: role)
      }
      section.free -= count
      if last == end - 1 { return }
      at = last + 1
    }
  }

  private static func findSpans(
    _ map: MemoryMap, _ early: EarlyMemory, _ spans: UnsafeMutablePointer<Span>
  ) -> Int {
    var made = 0
    for i in 0..<map.count {
      let run = map[i]
      var at = run.first.rawValue
      let end = run.end.rawValue
      var t = early.position(at)
      while at < end {
        while t < early.state.pointee.count && !early.taken[t].role.isPermanent { t += 1 }
        let isTaken = t < early.state.pointee.count && early.taken[t].first < end
        let freeEnd = isTaken ? max(at, early.taken[t].first) : end
        if at < freeEnd {
          spans[made] = Span(first: at, end: freeEnd)
          made += 1
        }
        guard isTaken else { break }
        at = min(end, early.taken[t].end)
        t += 1
      }
    }
    return made
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
