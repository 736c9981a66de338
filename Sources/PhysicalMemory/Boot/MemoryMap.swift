// The firmware's map of memory, sanitised.
//
// A firmware's map may be unsorted, overlapping, unaligned, empty, wrapping around or beyond the largest frame number. The
// sanitised map is sorted, disjoint, made of whole frames, and certainly usable. Reserved wins over usable where the
// firmware calls a byte both, and edges are trimmed inward. Each dropped range is recorded with its reason, so that the
// console can print it.
//
// Rules, in this order:
//   1. An empty range has no effect. A usable range that wraps around is dropped; a reserved one that
//      does ends at the top of the address space.
//   2. Usable ranges that touch or overlap are one; only then are their edges trimmed to whole frames,
//      so two halves of a frame in two ranges make a frame.
//   3. Frames from 16 TiB less one page on are left out.
//   4. A frame that a reserved range touches is left out.
//   5. On a PC three ranges below 1 MiB are left out whatever the map says. Frame 0 has vectors and data of the
//      firmware. Some firmware writes to the first 64 KiB after it has handed over; `MapRules` can include them.
//      0xa0000 to 0xfffff is video memory and ROM.
//   6. Memory that the MTRRs do not make write-back is left out, if they are on.
//   7. A section of 128 MiB is left out if its frame records cost more memory than it has.
//
// COST. n log n in the number of ranges, and a step for each address where the MTRRs' type changes, in storage that the
// caller supplies.

import MemoryPrimitives

/// A range as the firmware reports it.
public struct FirmwareRange {
  /// Whether the firmware calls the range usable.
  public enum Kind: UInt8, Sendable {
    /// Memory for the kernel.
    case usable
    /// Everything else.
    case reserved
  }
  /// The first byte.
  public var base: PhysicalAddress
  /// Its length.
  public var length: ByteCount
  /// Whether it is usable.
  public var kind: Kind

  /// A range of the firmware's map.
  public init(base: PhysicalAddress, length: ByteCount, kind: Kind) {
    self.base = base
    self.length = length
    self.kind = kind
  }
}

/// The rules by which a map leaves memory out although the firmware calls it usable.
public struct MapRules: Sendable {
  /// The frames below 1 MiB that count as memory.
  public enum LowMemory: UInt8, Sendable {
    /// From 64 KiB to 640 KiB.
    case from64KiB
    /// From frame 1 to 640 KiB, on an explicit setting.
    case fromFrame1
    /// All of them: the memory is loaned by another instance or simulated, not that of a PC.
    case all
  }
  /// The frames below 1 MiB that count as memory.
  public var lowMemory: LowMemory
  /// The processor's memory types; all of memory is write-back without them.
  public var cacheTypes = MemoryTypeRanges()

  /// Rules for a PC by default.
  public init(lowMemory: LowMemory = .from64KiB) { self.lowMemory = lowMemory }
}

/// Memory that the firmware called usable and that the map leaves out, and why.
package struct MapNote {
  /// Why the memory is left out.
  package enum Reason: UInt8, CaseIterable, Sendable {
    /// A usable range without a byte.
    case empty
    /// Base and length go beyond the address space.
    case wraps
    /// An edge that is no whole frame.
    case partOfFrame
    /// Another range calls it reserved.
    case reserved
    /// Frame 0 of a PC.
    case frameZero
    /// The first 64 KiB of a PC, but frame 0.
    case first64KiB
    /// 0xa0000 to 0xfffff of a PC.
    case deviceArea
    /// The MTRRs make it anything but write-back.
    case notWriteBack
    /// From 16 TiB less one page on.
    case outOfReach
    /// Less than its frame records would cost.
    case tooScattered
    /// The end of a run that a hole would split when the map holds all the runs it can.
    case tooManyRuns

    /// The number of reasons.
    package static var count: Int { 11 }

    /// Whether a rule of the map is the reason, whatever edges the firmware's ranges have.
    var isRule: Bool {
      switch self {
      case .frameZero, .first64KiB, .deviceArea, .notWriteBack, .tooManyRuns: true
      case .empty, .wraps, .partOfFrame, .reserved, .outOfReach, .tooScattered: false
      }
    }

    /// The reason as the console prints it.
    package var description: StaticString {
      switch self {
      case .empty: "empty"
      case .wraps: "wraps around"
      case .partOfFrame: "no whole frame"
      case .reserved: "also called reserved"
      case .frameZero: "frame 0 is never memory"
      case .first64KiB: "the firmware may write to it"
      case .deviceArea: "video memory and ROM lie there"
      case .notWriteBack: "the MTRRs do not make it write-back"
      case .outOfReach: "beyond 16 TiB"
      case .tooScattered: "less than its frame records cost"
      case .tooManyRuns: "more runs than the map holds"
      }
    }
  }
  /// Why it is left out.
  package var reason: Reason
  /// The first byte.
  package var base: PhysicalAddress
  /// Its length.
  package var length: ByteCount
}

/// The sanitised map: sorted, disjoint runs of whole frames. A handle on the caller's storage.
public struct MemoryMap {
  struct State {
    var count = 0
    var capacity: Int
    var frames: UInt64 = 0
    var caching = MemoryTypeRanges.State.absent
    var lowMemory: MapRules.LowMemory
    /// Bytes and ranges that were dropped, by reason.
    var dropped: InlineArray<11, UInt64> = .init(repeating: 0)
    var droppedRanges: InlineArray<11, Int> = .init(repeating: 0)
    /// All records of dropped ranges, and those of them that are kept.
    var recorded = 0
    var kept = 0
    var notes: InlineArray<32, MapNote>
  }
  struct Range {
    var first: UInt64
    var last: UInt64
  }
  let state: UnsafeMutablePointer<State>
  let ranges: UnsafeMutablePointer<Range>

  /// Runs that the rules may add to those of the firmware's ranges.
  static var spare: Int { 64 }

  /// Slots for notes that only rules may use.
  private static var notesForRules: Int { 8 }

  private static var stateSize: Int { (MemoryLayout<State>.size + 15) & ~15 }

  /// Returns the bytes of storage that a map of `count` firmware ranges needs, aligned to 16 bytes.
  package static func storage(ranges count: Int) -> ByteCount {
    ByteCount(stateSize + (2 * count + spare) * MemoryLayout<Range>.stride)
  }

  /// Builds the map of `count` ranges, which `range` returns one by one and in any order, in `storage`. Throws `tooSmall`
  /// when no frame is left.
  package init(
    _ storage: UnsafeMutableRawPointer, count: Int, rules: MapRules = MapRules(),
    range: (Int) -> FirmwareRange
  ) throws(PhysicalMemoryError) {
    let capacity = count + Self.spare
    state = storage.bindMemory(to: State.self, capacity: 1)
    state.initialize(
      to: State(
        capacity: capacity, lowMemory: rules.lowMemory,
        notes: .init(repeating: MapNote(reason: .empty, base: PhysicalAddress(0), length: .zero))))
    ranges = (storage + Self.stateSize)
      .bindMemory(to: Range.self, capacity: capacity + count)
    // Usable ranges from `capacity` up, reserved ones from the end down; the result from 0 up.
    let (usable, reservedEnd) = (ranges + capacity, ranges + capacity + count)
    var (usableCount, reservedCount) = (0, 0)
    for i in 0..<count {
      let given = range(i)
      let (base, length) = (given.base.rawValue, given.length.rawValue)
      if length == 0 {
        if given.kind == .usable { record(.empty, base, 0) }
        continue
      }
      var (last, wraps) = base.addingReportingOverflow(length - 1)
      if wraps {
        if given.kind == .usable {
          record(.wraps, base, length)
          continue
        }
        last = .max
      }
      if given.kind == .usable {
        usable[usableCount] = Range(first: base, last: last)
        usableCount += 1
      } else {
        reservedCount += 1
        reservedEnd[-reservedCount] = Range(first: base & ~(Page.size - 1), last: last | (Page.size - 1))
      }
    }
    let reserved = reservedEnd - reservedCount
    usableCount = Self.sortAndJoin(usable, usableCount)
    reservedCount = Self.sortAndJoin(reserved, reservedCount)
    usableCount = trim(usable, usableCount)
    subtract(usable, usableCount, reserved, reservedCount)
    leaveOutLowMemory(rules.lowMemory)
    leaveOutUncached(rules.cacheTypes)
    dropScattered()
    for i in 0..<state.pointee.count {
      state.pointee.frames += (ranges[i].last - ranges[i].first + 1) >> Page.shift
    }
    if state.pointee.count == 0 { throw .tooSmall }
  }

  /// The number of runs of frames in the map.
  public var count: Int { state.pointee.count }
  /// The run with this index, in address order.
  public subscript(index: Int) -> FrameRun {
    precondition(index >= 0 && index < count)
    let range = ranges[index]
    return FrameRun(
      first: PhysicalAddress(range.first).frame,
      count: PageCount((range.last - range.first + 1) >> Page.shift))
  }
  /// Frames in all runs together.
  public var frames: PageCount { PageCount(state.pointee.frames) }
  /// The frame behind the highest one.
  public var end: FrameNumber { self[count - 1].end }

  /// Returns the usable bytes that were dropped for `reason`, also those whose notes were not kept.
  package func dropped(_ reason: MapNote.Reason) -> ByteCount {
    ByteCount(state.pointee.dropped[Int(reason.rawValue)])
  }
  /// Returns the number of ranges that were dropped for `reason`, also those whose notes were not kept.
  package func places(_ reason: MapNote.Reason) -> Int { state.pointee.droppedRanges[Int(reason.rawValue)] }
  /// The number of notes of dropped ranges: 32 at most. The edges of the firmware's ranges cause 24 of them at most, so
  /// that a map with many odd edges still shows the ranges that the rules leave out.
  package var noteCount: Int { state.pointee.kept }
  /// The number of dropped ranges without a note.
  package var unkeptNoteCount: Int { state.pointee.recorded - noteCount }
  /// Returns the note with this index.
  package func note(at index: Int) -> MapNote {
    precondition(index >= 0 && index < noteCount)
    return state.pointee.notes[index]
  }
  /// Whether the MTRRs were read. While they are absent or off they leave nothing out.
  package var caching: MemoryTypeRanges.State { state.pointee.caching }

  /// Adds the rows that show which rules were in force.
  package func register(in statistics: Statistics) {
    statistics.add(
      Statistic(
        "vm.first_64k", .switchOnOff, .gauge, "whether the map has the first 64 KiB, without frame 0",
        context: state,
        read: {
          $0.unsafelyUnwrapped.assumingMemoryBound(to: State.self).pointee.lowMemory == .from64KiB ? 0 : 1
        }))
    statistics.add(
      Statistic(
        "vm.mtrrs", .choice, .gauge, "off or absent leave no memory out", choices: "absent|off|on",
        context: state,
        read: { UInt64($0.unsafelyUnwrapped.assumingMemoryBound(to: State.self).pointee.caching.rawValue) }))
  }

  // MARK: Building

  private func record(_ reason: MapNote.Reason, _ base: UInt64, _ length: UInt64) {
    let total = state.pointee.dropped[Int(reason.rawValue)]
    let sum = total.addingReportingOverflow(length)
    state.pointee.dropped[Int(reason.rawValue)] = sum.overflow ? .max : sum.partialValue
    state.pointee.droppedRanges[Int(reason.rawValue)] += 1
    state.pointee.recorded += 1
    let limit = state.pointee.notes.count - (reason.isRule ? 0 : Self.notesForRules)
    guard state.pointee.kept < limit else { return }
    state.pointee.notes[state.pointee.kept] = MapNote(
      reason: reason, base: PhysicalAddress(base), length: ByteCount(length))
    state.pointee.kept += 1
  }

  /// Sorts by first byte (heap sort: n log n whatever the order) and joins ranges that touch or overlap.
  private static func sortAndJoin(_ a: UnsafeMutablePointer<Range>, _ count: Int) -> Int {
    func sink(_ start: Int, _ end: Int) {
      var root = start
      while 2 * root + 1 < end {
        var child = 2 * root + 1
        if child + 1 < end && a[child].first < a[child + 1].first { child += 1 }
        if a[root].first >= a[child].first { return }
        (a[root], a[child]) = (a[child], a[root])
        root = child
      }
    }
    guard count > 0 else { return 0 }
    for start in stride(from: count / 2, through: 0, by: -1) { sink(start, count) }
    for end in stride(from: count - 1, to: 0, by: -1) {
      (a[0], a[end]) = (a[end], a[0])
      sink(0, end)
    }
    var kept = 0
    for i in 1..<count where count > 1 {
      if a[kept].last == .max || a[i].first <= a[kept].last + 1 {
        a[kept].last = max(a[kept].last, a[i].last)
      } else {
        kept += 1
        a[kept] = a[i]
      }
    }
    return kept + 1
  }

  /// Cuts off bytes that are out of reach or in no whole frame.
  private func trim(_ a: UnsafeMutablePointer<Range>, _ count: Int) -> Int {
    let limit = UInt64(FrameNumber.limit) << Page.shift
    var kept = 0
    for i in 0..<count {
      var range = a[i]
      if range.last >= limit {
        let from = max(range.first, limit)
        record(.outOfReach, from, (range.last - from).addingReportingOverflow(1).partialValue)
        if range.first >= limit { continue }
        range.last = limit - 1
      }
      let first = (range.first + Page.size - 1) & ~(Page.size - 1)
      let end = (range.last + 1) & ~(Page.size - 1)
      if first >= end {
        record(.partOfFrame, range.first, range.last - range.first + 1)
        continue
      }
      if first > range.first { record(.partOfFrame, range.first, first - range.first) }
      if end <= range.last { record(.partOfFrame, end, range.last - end + 1) }
      a[kept] = Range(first: first, last: end - 1)
      kept += 1
    }
    return kept
  }

  /// Writes the ranges that are usable and not reserved from `ranges[0]` on.
  private func subtract(
    _ usable: UnsafeMutablePointer<Range>, _ usableCount: Int, _ reserved: UnsafeMutablePointer<Range>,
    _ reservedCount: Int
  ) {
    var r = 0
    var made = 0
    for u in 0..<usableCount {
      var range = usable[u]
      while r < reservedCount && reserved[r].last < range.first { r += 1 }
      var i = r
      var isLeft = true
      while i < reservedCount && reserved[i].first <= range.last {
        let hole = Range(first: max(range.first, reserved[i].first), last: min(range.last, reserved[i].last))
        record(.reserved, hole.first, hole.last - hole.first + 1)
        if hole.first > range.first {
          ranges[made] = Range(first: range.first, last: hole.first - 1)
          made += 1
        }
        if hole.last == range.last {
          isLeft = false
          break
        }
        range.first = hole.last + 1
        i += 1
      }
      if isLeft {
        ranges[made] = range
        made += 1
      }
    }
    state.pointee.count = made
  }

  private func leaveOutLowMemory(_ rule: MapRules.LowMemory) {
    guard rule != .all else { return }
    leaveOut(0, Page.size - 1, .frameZero)
    if rule == .from64KiB { leaveOut(Page.size, 0xffff, .first64KiB) }
    leaveOut(0xa_0000, 0xf_ffff, .deviceArea)
  }

  private func leaveOutUncached(_ types: borrowing MemoryTypeRanges) {
    state.pointee.caching = types.state
    guard types.state == .on else { return }
    // Ranges that follow each other are left out as one.
    var pending: Range?
    var (i, at) = (0, UInt64(0))
    while i < state.pointee.count {
      let range = ranges[i]
      at = max(at, range.first)
      guard at <= range.last else {
        i += 1
        continue
      }
      let (type, typeLast) = types.type(at: PhysicalAddress(at))
      let last = min(range.last, typeLast.rawValue)
      if type != .writeBack {
        if let before = pending, before.last + 1 == at {
          pending = Range(first: before.first, last: last)
        } else {
          if let before = pending { i += leaveOut(before.first, before.last, .notWriteBack) }
          pending = Range(first: at, last: last)
        }
      }
      at = last + 1
    }
    if let pending { leaveOut(pending.first, pending.last, .notWriteBack) }
  }

  /// Removes the bytes from `first` to `last` from all runs. Returns how many runs there are more now. Where that makes one
  /// run too many, the part of the run behind `last` is left out too, for a reason of its own.
  @discardableResult
  private func leaveOut(_ first: UInt64, _ last: UInt64, _ reason: MapNote.Reason) -> Int {
    let before = state.pointee.count
    var i = 0
    while i < state.pointee.count {
      let run = ranges[i]
      guard run.first <= last, run.last >= first else {
        i += 1
        continue
      }
      let from = max(run.first, first)
      var to = min(run.last, last)
      let count = state.pointee.count
      record(reason, from, to - from + 1)
      if from > run.first && to < run.last && count == state.pointee.capacity {
        record(.tooManyRuns, to + 1, run.last - to)
        to = run.last
      }
      if from > run.first {
        ranges[i].last = from - 1
        i += 1
        guard to < run.last else { continue }
        for k in stride(from: count, to: i, by: -1) { ranges[k] = ranges[k - 1] }
        ranges[i] = Range(first: to + 1, last: run.last)
        state.pointee.count += 1
      } else if to < run.last {
        ranges[i].first = to + 1
      } else {
        for k in i..<count - 1 { ranges[k] = ranges[k + 1] }
        state.pointee.count -= 1
      }
    }
    return state.pointee.count - before
  }

  /// Leaves sections out whose records and entry in the section table cost as much memory as they have.
  private func dropScattered() {
    let count = state.pointee.count
    var (kept, next) = (0, 0)
    // The rest of the range before `next`.
    var head: Range?
    var tableEnd: UInt64 = 0
    // At most one range comes out for each that went in, so the result never overtakes `next`.
    func keep(_ range: Range) {
      if kept > 0 && ranges[kept - 1].last + 1 == range.first {
        ranges[kept - 1].last = range.last
      } else {
        ranges[kept] = range
        kept += 1
      }
    }
    while head != nil || next < count {
      let first = head?.first ?? ranges[next].first
      let section = first >> Section.shift
      let sectionLast = (section + 1) << Section.shift - 1
      var (frames, last, end) = (UInt64(0), UInt64(0), next)
      var spill: UInt64 = 0
      if let head {
        last = min(head.last, sectionLast)
        frames = (last - head.first + 1) >> Page.shift
        spill = head.last
      }
      while end < count && ranges[end].first <= sectionLast {
        last = min(ranges[end].last, sectionLast)
        frames += (last - ranges[end].first + 1) >> Page.shift
        spill = ranges[end].last
        end += 1
      }
      let pageblocks = last >> Pageblock.addressShift - first >> Pageblock.addressShift + 1
      let gap = section > tableEnd ? section - tableEnd : 0
      let isKept = frames > pageblocks * Pageblock.recordPages + gap * UInt64(Section.size) / Page.size + 1
      if isKept { tableEnd = section + 1 }
      func keepOrDrop(_ range: Range) {
        let part = Range(first: range.first, last: min(range.last, sectionLast))
        if isKept { keep(part) } else { record(.tooScattered, part.first, part.last - part.first + 1) }
      }
      if let head { keepOrDrop(head) }
      for i in next..<end { keepOrDrop(ranges[i]) }
      next = end
      head = nil
      if spill > sectionLast {
        // Whole sections always have more memory than they cost.
        let whole = ((spill + 1) >> Section.shift) << Section.shift
        if whole > sectionLast + 1 {
          keep(Range(first: sectionLast + 1, last: whole - 1))
          tableEnd = whole >> Section.shift
        }
        let rest = max(whole, sectionLast + 1)
        if spill >= rest { head = Range(first: rest, last: spill) }
      }
    }
    state.pointee.count = kept
  }
}

// The ranges behind the handle do not change once it is made.
extension MemoryMap: @unchecked Sendable {}
