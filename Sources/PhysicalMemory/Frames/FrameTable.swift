// From a frame number to the frame's record and the counts of its pageblock, in two loads each.
//
// Memory is cut into sections of 128 MiB. A table indexed by the section's number shows where the section's records
// lie, biased so that the frame number itself is the index. A section is cut into pageblocks of 2 MiB, each with an
// entry in a second table: the counts that a search for runs reads instead of frames, and the state of the
// pageblock's 512 records. A hole of the map costs a table entry of 32 bytes.
//
// A pageblock is in one of three states:
//   lazy     its records are not initialised. All 512 frames lie in one free block, or were just removed from one;
//            then only the processor that removed them uses them. Only the record of a block's head is valid. For a
//            block of order 9 or more the pageblock's `head` says that it begins here.
//   uniform  its records are not initialised. All 512 frames have had the role kept in the pageblock since boot.
//   valid    all 512 records are valid. A pageblock never leaves this state.

import MemoryPrimitives
import Synchronization

/// 2 MiB of memory, 512 frames.
@frozen @usableFromInline package enum Pageblock {
  /// The order of a block of this size.
  @inlinable package static var order: Int { 9 }
  @inlinable package static var shift: UInt32 { 9 }
  @inlinable package static var frames: UInt32 { 512 }
  static var addressShift: UInt64 { 21 }
  /// Pages that the records of a pageblock fill.
  static var recordPages: UInt64 { 4 }

  /// The first frame of the pageblock of `frame`.
  @inline(always) package static func first(_ frame: UInt32) -> UInt32 { frame & ~(frames - 1) }

  /// The end of the pageblock of `frame`, or `end` if that comes first.
  @inline(always) package static func end(_ frame: UInt32, _ end: UInt32) -> UInt32 {
    min(end &- 1, frame | (frames - 1)) &+ 1
  }

  // Frame numbers of 64 bits can be the end of all memory, and sums of frames.

  /// Frames of a pageblock.
  @inlinable package static var length: UInt64 { UInt64(frames) }

  /// The end of the pageblock of `frame`, or `end` if that comes first.
  @inline(always) package static func end(_ frame: UInt64, _ end: UInt64) -> UInt64 {
    min(end, frame | (length - 1) + 1)
  }

  /// The number of the pageblock of `frame`.
  @inline(always) package static func number(of frame: UInt64) -> UInt64 { frame >> UInt64(shift) }

  /// The number of the first pageblock that begins at `frame` or behind it.
  @inline(always) package static func number(from frame: UInt64) -> UInt64 { number(of: frame + length - 1) }

  /// The first frame of a pageblock.
  @inline(always) package static func start(_ number: UInt64) -> UInt64 { number << UInt64(shift) }

  @frozen @usableFromInline package enum State: UInt8 { case lazy, uniform, valid }
}

/// The entry of one pageblock, 16 bytes, in place. Zeroes mean: lazy, all free, no block begins here. Counts change under
/// the domain lock (`dirty` without it) and are relaxed atomics, because searches read them without the lock.
@frozen @usableFromInline package struct PageblockPointer {
  @inlinable static var size: Int { 16 }
  @usableFromInline let raw: UnsafeMutableRawPointer
  @inlinable init(raw: UnsafeMutableRawPointer) { self.raw = raw }

  /// Allocated frames that can't be moved: all but pageable pages and those of zspages, and wired pages.
  @inline(always) var unmovable: UInt16 {
    get { count(at: 0) }
    nonmutating set { setCount(newValue, at: 0) }
  }
  /// Allocated frames that could be moved: pageable pages without a wire, and pages of zspages.
  @inline(always) var movable: UInt16 {
    get { count(at: 2) }
    nonmutating set { setCount(newValue, at: 2) }
  }
  /// Frames that are no memory of the map.
  @inline(always) var absent: UInt16 {
    get { count(at: 4) }
    nonmutating set { setCount(newValue, at: 4) }
  }
  @inline(always) var free: UInt16 { UInt16(Pageblock.frames) &- unmovable &- movable &- absent }

  /// Bit o is set when a free block of order o < 9 may lie here. Clear bits are certain.
  @inline(always) var orders: UInt16 {
    get { count(at: 6) }
    nonmutating set { setCount(newValue, at: 6) }
  }
  /// In `orders`: a block was removed since the bits were last exact.
  static var stale: UInt16 { 1 << 15 }

  @inline(always) package internal(set) var state: Pageblock.State {
    get { Pageblock.State(rawValue: byte(8).pointee.load(ordering: .acquiring)).unsafelyUnwrapped }
    nonmutating set { byte(8).pointee.store(newValue.rawValue, ordering: .releasing) }
  }
  /// The value of `head` for a free block of `order`, which is 9 or more.
  @inline(always) static func head(_ order: Int) -> UInt8 {
    UInt8(truncatingIfNeeded: order &- (Pageblock.order - 1))
  }
  /// The order less 8 of the free block that begins here, if its order is 9 or more; else 0.
  @inline(always) var head: UInt8 {
    get { raw.loadUnaligned(fromByteOffset: 9, as: UInt8.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 9, as: UInt8.self) }
  }
  /// Of a uniform pageblock.
  @inline(always) var role: FrameRole {
    get { FrameRole(rawValue: raw.loadUnaligned(fromByteOffset: 10, as: UInt8.self)) ?? .absent }
    nonmutating set { raw.storeBytes(of: newValue.rawValue, toByteOffset: 10, as: UInt8.self) }
  }

  /// The entry of the pageblock below, in the same section.
  @inline(always) package var below: PageblockPointer { PageblockPointer(raw: raw - Self.size) }

  /// Pages with the flag `dirty`.
  @inlinable var dirty: UnsafeMutablePointer<Atomic<UInt16>> { half(12) }
  /// How many they are at this moment. Takes no lock.
  @inline(always) package var dirtyCount: UInt64 { UInt64(dirty.pointee.load(ordering: .relaxed)) }

  /// Pages of zspages, which are among the movable ones.
  @inline(always) var zspages: UInt16 {
    get { count(at: 14) }
    nonmutating set { setCount(newValue, at: 14) }
  }
  /// How many they are at this moment. Takes no lock.
  @inline(always) package var zspageCount: UInt64 { UInt64(count(at: 14)) }

  /// The counts at one moment. Takes no lock.
  @inline(always) package var snapshot: PageblockSnapshot {
    PageblockSnapshot(
      rawValue: raw.assumingMemoryBound(to: Atomic<UInt64>.self).pointee.load(ordering: .relaxed))
  }

  @inlinable func byte(_ offset: Int) -> UnsafeMutablePointer<Atomic<UInt8>> {
    (raw + offset).assumingMemoryBound(to: Atomic<UInt8>.self)
  }
  @inlinable func count(at offset: Int) -> UInt16 { half(offset).pointee.load(ordering: .relaxed) }
  @inlinable func setCount(_ value: UInt16, at offset: Int) {
    half(offset).pointee.store(value, ordering: .relaxed)
  }
  @inlinable func half(_ offset: Int) -> UnsafeMutablePointer<Atomic<UInt16>> {
    (raw + offset).assumingMemoryBound(to: Atomic<UInt16>.self)
  }
}

/// The counts of a pageblock at one moment.
@frozen @usableFromInline package struct PageblockSnapshot {
  @usableFromInline package let rawValue: UInt64
  @inlinable init(rawValue: UInt64) { self.rawValue = rawValue }

  @inline(always) package var unmovable: UInt64 { rawValue & 0xffff }
  @inline(always) package var movable: UInt64 { rawValue >> 16 & 0xffff }
  /// Frames that can't be emptied: unmovable ones, and those that are no memory.
  @inline(always) package var obstacles: UInt64 { rawValue & 0xffff &+ rawValue >> 32 & 0xffff }
  @inline(always) package var free: UInt64 { Pageblock.length &- obstacles &- movable }
  @inline(always) package static var obstacleBits: UInt64 { 0xffff_0000_ffff }
  @inline(always) package var hasObstacles: Bool { rawValue & Self.obstacleBits != 0 }
}

/// 128 MiB of memory: its entry in the table, 32 bytes, in place.
@frozen @usableFromInline package struct Section {
  static var shift: UInt64 { 27 }
  @inlinable static var frameShift: UInt32 { 15 }
  @inlinable static var size: Int { 32 }
  @usableFromInline let raw: UnsafeMutableRawPointer
  @inlinable init(raw: UnsafeMutableRawPointer) { self.raw = raw }

  /// Where the record of frame 0 would lie if all records followed each other; 0 for a hole.
  @inlinable var records: UInt {
    get { raw.loadUnaligned(as: UInt.self) }
    nonmutating set { raw.storeBytes(of: newValue, as: UInt.self) }
  }
  /// The same for the entry of pageblock 0.
  @inlinable var pageblocks: UInt {
    get { raw.loadUnaligned(fromByteOffset: 8, as: UInt.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 8, as: UInt.self) }
  }
  /// The frames that have records: whole pageblocks.
  @inline(always) package internal(set) var first: UInt32 {
    get { raw.loadUnaligned(fromByteOffset: 16, as: UInt32.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 16, as: UInt32.self) }
  }
  @inline(always) package internal(set) var frames: UInt32 {
    get { raw.loadUnaligned(fromByteOffset: 20, as: UInt32.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 20, as: UInt32.self) }
  }
  /// Free frames.
  @inline(always) var free: UInt32 {
    get { raw.loadUnaligned(fromByteOffset: 24, as: UInt32.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 24, as: UInt32.self) }
  }

  @inlinable func contains(_ frame: UInt32) -> Bool { frame &- first < frames }
}

/// The records and the counts of all frames, which are reached without the domain lock. A value that is copied freely.
@frozen @usableFromInline package struct FrameTable {
  @usableFromInline let sections: UnsafeMutableRawPointer
  @usableFromInline package let sectionCount: Int
  /// Frames by role; the word behind them counts free frames that are cached pages.
  @usableFromInline let counts: UnsafeMutablePointer<Atomic<UInt64>>

  static var countWords: Int { FrameRole.count + 1 }

  // MARK: Records and pageblocks

  /// The table entry of a section, also of a hole. `number` is below `sectionCount`.
  @inline(always) package func entry(_ number: Int) -> Section {
    Section(raw: sections + number &* Section.size)
  }

  /// The section that has a record for `frame`, or nil.
  @inline(always) package func section(of frame: UInt32) -> Section? {
    let number = Int(frame >> Section.frameShift)
    guard number < sectionCount else { return nil }
    let entry = entry(number)
    return entry.contains(frame) ? entry : nil
  }

  /// The record of a frame that is known to have one.
  @inline(always) package func record(_ frame: UInt32) -> FrameRecordPointer {
    let entry = entry(Int(frame >> Section.frameShift))
    return FrameRecordPointer(
      UnsafeMutableRawPointer(bitPattern: entry.records &+ UInt(frame) &* UInt(FrameRecordPointer.size))
        .unsafelyUnwrapped)
  }

  /// The pageblock of a frame that is known to have a record.
  @inline(always) package func pageblock(_ frame: UInt32) -> PageblockPointer {
    let entry = entry(Int(frame >> Section.frameShift))
    return PageblockPointer(
      raw: UnsafeMutableRawPointer(
        bitPattern: entry.pageblocks &+ UInt(frame >> Pageblock.shift) &* UInt(PageblockPointer.size)
      ).unsafelyUnwrapped)
  }

  /// The pageblock of a frame; nil when the frame has no record.
  @inline(always) func pageblockIfAny(_ frame: UInt32) -> PageblockPointer? {
    section(of: frame) == nil ? nil : pageblock(frame)
  }

  /// The frame behind the last one that has a record.
  package var end: UInt32 {
    UInt32(min(UInt64(UInt32.max), UInt64(sectionCount) << UInt64(Section.frameShift)))
  }

  /// The frame behind the hole that `frame` lies in, as far as its section goes.
  func holeEnd(_ frame: UInt32) -> UInt32 {
    let number = Int(frame >> Section.frameShift)
    if number < sectionCount {
      let entry = entry(number)
      if entry.frames != 0 && frame < entry.first { return entry.first }
    }
    return UInt32(min(UInt64(UInt32.max), UInt64(number + 1) << UInt64(Section.frameShift)))
  }

  /// The first frame of the hole that `frame` lies in, as far as its section goes.
  package func holeStart(_ frame: UInt32) -> UInt64 {
    let number = Int(frame >> Section.frameShift)
    guard number < sectionCount else { return UInt64(end) }
    let entry = entry(number)
    return entry.frames != 0 && frame >= entry.first
      ? UInt64(entry.first) + UInt64(entry.frames) : UInt64(number) << UInt64(Section.frameShift)
  }

  /// Whether the map gave this frame.
  func isPresent(_ frame: UInt32) -> Bool {
    guard let pageblock = pageblockIfAny(frame) else { return false }
    switch pageblock.state {
    case .lazy: return true
    case .uniform: return pageblock.role != .absent
    case .valid: return record(frame).role != .absent
    }
  }

  /// Makes all records of the pageblock of `frame` valid. The caller holds the domain lock, or has removed the whole
  /// pageblock from the queues.
  func materialize(_ frame: UInt32) {
    let pageblock = pageblock(frame)
    let (role, busyWord): (FrameRole, BusyWord)
    switch pageblock.state {
    case .valid: return
    case .lazy: (role, busyWord) = (.free, .none)
    case .uniform: (role, busyWord) = (pageblock.role, pageblock.role == .absent ? .none : .wiredOnce)
    }
    let first = record(Pageblock.first(frame))
    for i in 0..<Int(Pageblock.frames) { first.after(i).initialize(role: role, busyWord: busyWord) }
    pageblock.state = .valid
  }

  // MARK: Counts

  /// Frames with `role`.
  @inline(always) func count(_ role: FrameRole) -> UInt64 {
    (counts + Int(role.rawValue)).pointee.load(ordering: .relaxed)
  }

  /// Adds to the count of a role: a plain addition, for the domain lock is held.
  @inline(always) func add(_ count: UInt64, to role: FrameRole) {
    let word = counts + Int(role.rawValue)
    word.pointee.store(word.pointee.load(ordering: .relaxed) &+ count, ordering: .relaxed)
  }
  @inline(always) func subtract(_ count: UInt64, from role: FrameRole) { add(0 &- count, to: role) }

  /// Free frames that are cached pages: an atomic that changes without the lock.
  @inline(always) var cached: UnsafeMutablePointer<Atomic<UInt64>> { counts + FrameRole.count }

  /// Counts `count` free frames from `first` on, all in one pageblock, as allocated for `role`. The caller adjusts the
  /// counts by role.
  @inline(always) func accountAllocated(_ first: UInt32, _ count: UInt32, _ role: FrameRole) {
    let pageblock = pageblock(first)
    if role.isMovable {
      pageblock.movable &+= UInt16(truncatingIfNeeded: count)
      if role == .zspage { pageblock.zspages &+= UInt16(truncatingIfNeeded: count) }
    } else {
      pageblock.unmovable &+= UInt16(truncatingIfNeeded: count)
    }
    entry(Int(first >> Section.frameShift)).free &-= count
  }

  /// The reverse of `accountAllocated`.
  @inline(always) func accountFreed(_ first: UInt32, _ count: UInt32, _ role: FrameRole) {
    let pageblock = pageblock(first)
    if role.isMovable {
      pageblock.movable &-= UInt16(truncatingIfNeeded: count)
      if role == .zspage { pageblock.zspages &-= UInt16(truncatingIfNeeded: count) }
    } else {
      pageblock.unmovable &-= UInt16(truncatingIfNeeded: count)
    }
    entry(Int(first >> Section.frameShift)).free &+= count
  }

  // MARK: Frames that were just removed from the queues

  /// Writes the records of frames that the caller has removed from the queues. Takes no lock.
  func stamp(
    _ first: UInt32, _ end: UInt32, _ role: FrameRole, _ busyWord: BusyWord = .wiredOnce,
    for owner: FrameOwner = .none
  ) {
    if cached.pointee.load(ordering: .relaxed) != 0 { discardCached(first, end) }
    var at = first
    while at < end {
      let pageblockEnd = Pageblock.end(at, end)
      let pageblock = pageblock(at)
      let record = record(at)
      let count = Int(pageblockEnd - at)
      if pageblock.state == .valid {
        for i in 0..<count { record.after(i).handOut(role, busyWord, owner) }
      } else {
        // The whole pageblock was removed from one block, so no other processor uses it.
        assert(count == Int(Pageblock.frames))
        for i in 0..<count { record.after(i).initialize(role: role, busyWord: busyWord, owner: owner) }
        pageblock.state = .valid
      }
      at = pageblockEnd
    }
  }

  /// Discards the identities of cached pages among frames that the caller has removed from the queues. Takes no lock.
  @inline(never) func discardCached(_ first: UInt32, _ end: UInt32) {
    var count: UInt64 = 0
    var at = first
    while at < end {
      let pageblockEnd = Pageblock.end(at, end)
      if pageblock(at).state == .valid {
        let record = record(at)
        for i in 0..<Int(pageblockEnd - at) where record.after(i).pageFlags.contains(.cached) { count += 1 }
      }
      at = pageblockEnd
    }
    if count > 0 { cached.pointee.subtract(count, ordering: .relaxed) }
  }
}
