// The firmware's map of memory, made sane.
//
// A firmware's map may come unsorted, overlapping, unaligned, empty, wrapping around or beyond what a
// frame number can say. What comes out is sorted, disjoint, made of whole frames, and usable for certain:
// reserved wins over usable wherever both are said of a byte, edges are trimmed inward, and what was
// dropped is noted with the reason, so that the console can tell.
//
// Rules, in this order:
//   1. An empty range says nothing. A usable range that wraps around is dropped; a reserved one that
//      does is taken to the top of the address space.
//   2. Usable ranges that touch or overlap are one; only then are their edges trimmed to whole frames,
//      so two halves of a frame in two ranges make a frame.
//   3. Frames from 16 TiB less one page on are left.
//   4. A frame that a reserved range touches is not ours.
//   5. On a PC, memory below 1 MiB is in use whatever the map says: frame 0 (vectors and data of the firmware); the
//      first 64 KiB, where firmware is known to write after it has handed over, unless `MapRules` asks for them;
//      0xa0000 to 0xfffff (video memory and ROM).
//   6. Memory that the MTRRs do not make write-back is left, if they are on.
//   7. A section of 128 MiB in which less memory would be gained than its frame records cost is left.
//
// Cost: n log n in the number of ranges, and a step for each place where the MTRRs' type changes, in storage that the
// caller gives.

import MemoryPrimitives

/// A range as the firmware tells it.
public struct FirmwareRange {
  public enum Kind: UInt8, Sendable { case usable, reserved }
  public var base: PhysicalAddress
  public var length: ByteCount
  public var kind: Kind

  public init(base: PhysicalAddress, length: ByteCount, kind: Kind) {
    self.base = base
    self.length = length
    self.kind = kind
  }
}

/// What a map leaves out although the firmware calls it usable.
public struct MapRules: Sendable {
  /// What counts as memory below 1 MiB.
  public enum LowMemory: UInt8, Sendable {
    /// From 64 KiB to 640 KiB.
    case from64KiB
    /// From frame 1 to 640 KiB: a person asked for it.
    case fromFrame1
    /// All of it: the memory is no PC's, but loaned by another instance or simulated.
    case all
  }
  public var lowMemory: LowMemory
  public var cacheTypes = MemoryTypeRanges()

  public init(lowMemory: LowMemory = .from64KiB) { self.lowMemory = lowMemory }
}

/// Memory that the firmware called usable and that was not taken, and why.
public struct MapNote {
  public enum Reason: UInt8, CaseIterable, Sendable {
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

    public static var count: Int { 11 }

    /// Whether a rule of the map decides it, whatever edges the firmware's ranges have.
    var isRule: Bool {
      switch self {
      case .frameZero, .first64KiB, .deviceArea, .notWriteBack, .tooManyRuns: true
      case .empty, .wraps, .partOfFrame, .reserved, .outOfReach, .tooScattered: false
      }
    }

    public var description: StaticString {
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
      case .tooManyRuns: "more pageblocks than the map holds"
      }
    }
  }
  public var reason: Reason
  public var base: PhysicalAddress
  public var length: ByteCount
}

/// The sanitised map: sorted, disjoint runs of whole frames. A handle on the caller's storage.
public struct MemoryMap {
  struct State {
    var count = 0
    var capacity: Int
    var frames: UInt64 = 0
    var caching = MemoryTypeRanges.State.absent
    var lowMemory: MapRules.LowMemory
    /// Bytes and places that were dropped, by reason.
    var dropped: InlineArray<11, UInt64> = .init(repeating: 0)
    var places: InlineArray<11, Int> = .init(repeating: 0)
    /// All that were noted, and those of them that are kept.
    var noted = 0
    var kept = 0
    var notes: InlineArray<32, MapNote>
  }
  struct Range {
    var first: UInt64
    var last: UInt64
  }
  let state: UnsafeMutablePointer<State>
  let ranges: UnsafeMutablePointer<Range>

  /// Runs that the rules may make besides those that the firmware's ranges make.
  static var spare: Int { 64 }

  /// Notes that only what the rules leave out is kept in.
  private static var notesForRules: Int { 8 }

  /// Bytes of storage that a map of `count` firmware ranges needs, aligned to 16.
  public static func storage(ranges count: Int) -> ByteCount {
    ByteCount((MemoryLayout<State>.size + 15) & ~15 + (2 * count + spare) * MemoryLayout<Range>.stride)
  }

  /// Makes the map of `count` ranges, which `range` tells one by one and in any order, in `storage`.
  /// Throws `tooSmall` when no frame is left.
  public init(
    _ storage: UnsafeMutableRawPointer, count: Int, rules: MapRules = MapRules(),
    range: (Int) -> FirmwareRange
  ) throws(PhysicalMemoryError) {
    let capacity = count + Self.spare
    state = storage.bindMemory(to: State.self, capacity: 1)
    state.initialize(
      to: State(
        capacity: capacity, lowMemory: rules.lowMemory,
        notes: .init(repeating: MapNote(reason: .empty, base: PhysicalAddress(0), length: .zero))))
    ranges = (storage + (MemoryLayout<State>.size + 15) & ~15)
      .bindMemory(to: Range.self, capacity: capacity + count)
    // Usable ranges from `capacity` up, reserved ones from the end down; the result from 0 up.
    let (usable, reservedEnd) = (ranges + capacity, ranges + capacity + count)
    var (usableCount, reservedCount) = (0, 0)
    for i in 0..<count {
      let told = range(i)
      let (base, length) = (told.base.rawValue, told.length.rawValue)
      if length == 0 {
        if told.kind == .usable { note(.empty, base, 0) }
        continue
      }
      var (last, wraps) = base.addingReportingOverflow(length - 1)
      if wraps {
        if told.kind == .usable {
          note(.wraps, base, length)
          continue
        }
        last = .max
      }
      if told.kind == .usable {
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

  /// Runs of frames in the map.
  public var count: Int { state.pointee.count }
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

  /// Usable bytes that were dropped for `reason`, also those whose notes were not kept.
  public func dropped(_ reason: MapNote.Reason) -> ByteCount {
    ByteCount(state.pointee.dropped[Int(reason.rawValue)])
  }
  /// Places that were dropped for `reason`, also those whose notes were not kept.
  public func places(_ reason: MapNote.Reason) -> Int { state.pointee.places[Int(reason.rawValue)] }
  /// What was dropped, one by one: the first 32. What the firmware's edges cause has 24 of them at most, so that
  /// a map with many odd edges still shows what the rules leave out.
  public var noteCount: Int { state.pointee.kept }
  /// How many more were dropped.
  public var unkeptNoteCount: Int { state.pointee.noted - noteCount }
  public func note(at index: Int) -> MapNote {
    precondition(index >= 0 && index < noteCount)
    return state.pointee.notes[index]
  }
  /// Whether the MTRRs were heard. While they are absent or off nothing is left out for their sake.
  public var caching: MemoryTypeRanges.State { state.pointee.caching }

  /// Adds the rows that tell which rules were in force.
  public func register(in statistics: Statistics) {
    statistics.add(
      Statistic(
        "vm.first_64k", .switchOnOff, .gauge, "whether boot took the first 64 KiB, but for frame 0",
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

  // MARK: Making it

  private func note(_ reason: MapNote.Reason, _ base: UInt64, _ length: UInt64) {
    let total = state.pointee.dropped[Int(reason.rawValue)]
    let sum = total.addingReportingOverflow(length)
    state.pointee.dropped[Int(reason.rawValue)] = sum.overflow ? .max : sum.partialValue
    state.pointee.places[Int(reason.rawValue)] += 1
    state.pointee.noted += 1
    let limit = state.pointee.notes.count - (reason.isRule ? 0 : Self.notesForRules)
    guard state.pointee.kept < limit else { return }
    state.pointee.notes[state.pointee.kept] = MapNote(
      reason: reason, base: PhysicalAddress(base), length: ByteCount(length))
    state.pointee.kept += 1
  }

  /// Sorts by first byte (heap sort: n log n whatever the order) and joins what touches or overlaps.
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

  /// Cuts off what is out of reach or no whole frame.
  private func trim(_ a: UnsafeMutablePointer<Range>, _ count: Int) -> Int {
    let limit = UInt64(FrameNumber.limit) << Page.shift
    var kept = 0
    for i in 0..<count {
      var range = a[i]
      if range.last >= limit {
        let from = max(range.first, limit)
        note(.outOfReach, from, (range.last - from).addingReportingOverflow(1).partialValue)
        if range.first >= limit { continue }
        range.last = limit - 1
      }
      let first = (range.first + Page.size - 1) & ~(Page.size - 1)
      let end = (range.last + 1) & ~(Page.size - 1)
      if first >= end {
        note(.partOfFrame, range.first, range.last - range.first + 1)
        continue
      }
      if first > range.first { note(.partOfFrame, range.first, first - range.first) }
      if end <= range.last { note(.partOfFrame, end, range.last - end + 1) }
      a[kept] = Range(first: first, last: end - 1)
      kept += 1
    }
    return kept
  }

  /// What is usable and not reserved, from `ranges[0]` on.
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
        note(.reserved, hole.first, hole.last - hole.first + 1)
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
    // What follows each other is left out as one.
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

  /// Takes the bytes from `first` to `last` out of all runs. Answers how many runs there are more now. Where that makes
  /// one run too many, the part of the run behind `last` is left out too, for a reason of its own.
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
      note(reason, from, to - from + 1)
      if from > run.first && to < run.last && count == state.pointee.capacity {
        note(.tooManyRuns, to + 1, run.last - to)
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

  /// Leaves sections out whose records and place in the section table cost as much as they would give.
  private func dropScattered() {
    let count = state.pointee.count
    var (kept, next) = (0, 0)
    var head: Range?  // what is left of the range before `next`
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
      func settle(_ range: Range) {
        let part = Range(first: range.first, last: min(range.last, sectionLast))
        if isKept { keep(part) } else { note(.tooScattered, part.first, part.last - part.first + 1) }
      }
      if let head { settle(head) }
      for i in next..<end { settle(ranges[i]) }
      next = end
      head = nil
      if spill > sectionLast {
        // Whole sections are always worth it.
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
