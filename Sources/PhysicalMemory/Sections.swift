// From a frame number to what is kept about it, in two loads.
//
// Memory is cut into sections of 128 MiB; a table indexed by the section's number tells where its
// records lie, biased so that the frame number itself is the index. A section is cut into pageblocks of
// 2 MiB with an entry each in a second table: the counts that a search for runs reads instead of frames,
// and how far the pageblock's 512 records are valid. Holes of the map cost a table entry of 32 bytes.
//
// A pageblock is in one of three states:
//   lazy     its records hold rubbish; all 512 frames lie in one free block, or are on their way out of
//            one (then nobody but the taker looks at them). Only the record of a block's head is valid,
//            and that a block of order 9 or more begins here is said by the pageblock's `head`.
//   uniform  its records hold rubbish; all 512 frames have the role kept in the pageblock, since boot.
//   valid    all 512 records are valid. A pageblock never goes back from here.

import MemoryPrimitives
import Synchronization

/// 2 MiB of memory, 512 frames.
enum Pageblock {
  static var shift: UInt32 { 9 }
  static var frames: UInt32 { 512 }
  static var addressShift: UInt64 { 21 }
  static var recordPages: UInt64 { 4 }

  /// The end of the pageblock of `frame`, or `end` if that comes first.
  @inline(always) static func end(_ frame: UInt32, _ end: UInt32) -> UInt32 {
    min(end &- 1, frame | 511) &+ 1
  }

  enum State: UInt8 { case lazy, uniform, valid }
}

/// The entry of one pageblock, 16 bytes, in place. Zeroes mean: lazy, all free, no block begins here.
/// Counts change under the lock (`dirty` without) and are relaxed atomics, for searches read them without.
struct PageblockPointer {
  static var size: Int { 16 }
  let raw: UnsafeMutableRawPointer

  /// Allocated frames that can't be moved: all but pageable pages, and of these the wired ones.
  @inline(always) var unmovable: UInt16 {
    get { half(0).pointee.load(ordering: .relaxed) }
    nonmutating set { half(0).pointee.store(newValue, ordering: .relaxed) }
  }
  /// Allocated frames that could be moved: pageable pages that nobody wired.
  @inline(always) var movable: UInt16 {
    get { half(2).pointee.load(ordering: .relaxed) }
    nonmutating set { half(2).pointee.store(newValue, ordering: .relaxed) }
  }
  /// Frames that are no memory of ours.
  @inline(always) var absent: UInt16 {
    get { half(4).pointee.load(ordering: .relaxed) }
    nonmutating set { half(4).pointee.store(newValue, ordering: .relaxed) }
  }
  @inline(always) var free: UInt16 { 512 &- unmovable &- movable &- absent }

  /// Bit o is set when a free block of order o < 9 may lie here. Clear bits are certain.
  @inline(always) var orders: UInt16 {
    get { half(6).pointee.load(ordering: .relaxed) }
    nonmutating set { half(6).pointee.store(newValue, ordering: .relaxed) }
  }
  /// In `orders`: a block was taken since the bits were last exact.
  static var stale: UInt16 { 1 << 15 }

  @inline(always) var state: Pageblock.State {
    get { Pageblock.State(rawValue: byte(8).pointee.load(ordering: .acquiring)).unsafelyUnwrapped }
    nonmutating set { byte(8).pointee.store(newValue.rawValue, ordering: .releasing) }
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
  @inline(always) var below: PageblockPointer { PageblockPointer(raw: raw - Self.size) }

  /// Pages with the flag `dirty`.
  @inline(always) var dirty: UnsafeMutablePointer<Atomic<UInt16>> { half(12) }

  /// The counts, as they were at one moment. No lock.
  @inline(always) var snapshot: PageblockSnapshot {
    PageblockSnapshot(
      rawValue: raw.assumingMemoryBound(to: Atomic<UInt64>.self).pointee.load(ordering: .relaxed))
  }

  @inline(always) private func byte(_ offset: Int) -> UnsafeMutablePointer<Atomic<UInt8>> {
    (raw + offset).assumingMemoryBound(to: Atomic<UInt8>.self)
  }
  @inline(always) private func half(_ offset: Int) -> UnsafeMutablePointer<Atomic<UInt16>> {
    (raw + offset).assumingMemoryBound(to: Atomic<UInt16>.self)
  }
}

/// The counts of a pageblock, as they were at one moment.
struct PageblockSnapshot {
  var rawValue: UInt64

  @inline(always) var unmovable: UInt64 { rawValue & 0xffff }
  @inline(always) var movable: UInt64 { rawValue >> 16 & 0xffff }
  /// Frames that nobody can empty, or that are none.
  @inline(always) var fixed: UInt64 { rawValue & 0xffff &+ rawValue >> 32 & 0xffff }
  @inline(always) var free: UInt64 { 512 &- fixed &- movable }
  @inline(always) static var fixedBits: UInt64 { 0xffff_0000_ffff }
  @inline(always) var hasFixed: Bool { rawValue & Self.fixedBits != 0 }
}

/// 128 MiB of memory: its entry in the table, 32 bytes, in place.
struct Section {
  static var shift: UInt64 { 27 }
  static var frameShift: UInt32 { 15 }
  static var size: Int { 32 }
  let raw: UnsafeMutableRawPointer

  /// Where the record of frame 0 would lie if all records followed each other; 0 for a hole.
  @inline(always) var records: UInt {
    get { raw.loadUnaligned(as: UInt.self) }
    nonmutating set { raw.storeBytes(of: newValue, as: UInt.self) }
  }
  /// The same for the entry of pageblock 0.
  @inline(always) var pageblocks: UInt {
    get { raw.loadUnaligned(fromByteOffset: 8, as: UInt.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 8, as: UInt.self) }
  }
  /// The frames that have records: whole pageblocks.
  @inline(always) var first: UInt32 {
    get { raw.loadUnaligned(fromByteOffset: 16, as: UInt32.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 16, as: UInt32.self) }
  }
  @inline(always) var frames: UInt32 {
    get { raw.loadUnaligned(fromByteOffset: 20, as: UInt32.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 20, as: UInt32.self) }
  }
  /// Free frames.
  @inline(always) var free: UInt32 {
    get { raw.loadUnaligned(fromByteOffset: 24, as: UInt32.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 24, as: UInt32.self) }
  }

  @inline(always) func contains(_ frame: UInt32) -> Bool { frame &- first < frames }
}

extension FrameAllocator {
  /// The table entry, a hole's too. `number` is below `sectionCount`.
  @inline(always) func sectionEntry(_ number: Int) -> Section {
    Section(raw: state.pointee.sections + number &* Section.size)
  }

  /// The section that has a record for `frame`, or nil.
  @inline(always) func section(_ frame: UInt32) -> Section? {
    let number = Int(frame >> Section.frameShift)
    guard number < state.pointee.sectionCount else { return nil }
    let entry = sectionEntry(number)
    return entry.contains(frame) ? entry : nil
  }

  /// The record of a frame that is known to have one.
  @inline(always) func recordUnchecked(_ frame: UInt32) -> FrameRecordPointer {
    let entry = sectionEntry(Int(frame >> Section.frameShift))
    return FrameRecordPointer(
      UnsafeMutableRawPointer(bitPattern: entry.records &+ UInt(frame) &* 32).unsafelyUnwrapped)
  }

  /// The pageblock of a frame that is known to have a record.
  @inline(always) func pageblockUnchecked(_ frame: UInt32) -> PageblockPointer {
    let entry = sectionEntry(Int(frame >> Section.frameShift))
    return PageblockPointer(
      raw: UnsafeMutableRawPointer(bitPattern: entry.pageblocks &+ UInt(frame >> Pageblock.shift) &* 16)
        .unsafelyUnwrapped)
  }

  @inline(always) func pageblock(_ frame: UInt32) -> PageblockPointer? {
    section(frame) == nil ? nil : pageblockUnchecked(frame)
  }

  /// Makes all records of the pageblock of `frame` valid. Lock held, or the pageblock all the caller's own.
  func materialize(_ frame: UInt32) {
    let pageblock = pageblockUnchecked(frame)
    let first = frame & ~(Pageblock.frames - 1)
    let (role, busyWord): (FrameRole, BusyWord)
    switch pageblock.state {
    case .valid: return
    case .lazy: (role, busyWord) = (.free, .none)
    case .uniform: (role, busyWord) = (pageblock.role, pageblock.role == .absent ? .none : .wiredOnce)
    }
    let record = recordUnchecked(first)
    for i in 0..<Int(Pageblock.frames) {
      FrameRecordPointer(record.raw + i &* 32).initialize(role: role, busyWord: busyWord)
    }
    pageblock.state = .valid
  }
}
