// The state of one frame, in 32 bytes.
//
//   0 next 4, previous 4    frame numbers; one list at a time: buddy, slab, paging queue
//   8 owner 4, aux 4        index of the object or cache that has the frame; aux is the owner's
//  16 index 8               page in its object
//     (8 to 23: the two words of a `FrameOwner` until the requester writes its own)
//  24 busy word 4           one atomic word, see `BusyWord`
//  28 role 1
//  29 order (5 bits), unmovable (of a pageable page)
//  30 flags                 valid, dirty, referenced, cached
//  31 queue                 which list `next` and `previous` belong to
//
// The requester of a frame owns owner, aux, index and, while `queue` is its own, the links. Role and busy word change
// hands with the frame. While a frame heads a free block, links, order and queue are guarded by the domain lock. The
// bytes from 24 on are read by processors that look for a buddy and by searches for runs, so they are relaxed
// atomics: plain moves to the processor. `unmovable` is guarded by the domain lock too. A cached page keeps owner,
// index and `flags` while it is free.

import MemoryPrimitives
import Synchronization

/// The counts of wires, holds and busy users that keep a frame from being reused. One compare-and-swap tests that there
/// are none and sets xbusy.
@frozen @usableFromInline package struct BusyWord: Equatable, Sendable {
  /// Wires 12 bits, holds 10, sbusy 8, then a bit each for xbusy and waiters.
  @usableFromInline package var rawValue: UInt32
  /// A busy word of these bits.
  @inline(always) package init(rawValue: UInt32) { self.rawValue = rawValue }

  /// No user: the busy word of a free frame.
  @inline(always) package static var none: Self { Self(rawValue: 0) }
  /// Wired once and nothing else: the state of a frame when it is allocated, and the only one it may be freed in.
  @inline(always) package static var wiredOnce: Self { Self(rawValue: 1) }
  /// Exclusively busy: the owner frees or moves the frame.
  @inline(always) package static var xbusy: Self { Self(rawValue: 1 << 30) }
  /// Wired, and kept by an isolation until it ends: no free accepts the frame.
  @inline(always) package static var captured: Self { Self(rawValue: 1 << 30 | 1) }

  /// How often the frame is wired.
  @inline(always) package var wires: UInt32 { rawValue & 0xfff }
  /// How often the frame is held.
  @inline(always) package var holds: UInt32 { rawValue >> 12 & 0x3ff }
  /// How many users keep it shared busy.
  @inline(always) package var sbusyCount: UInt32 { rawValue >> 22 & 0xff }
  /// Whether one user has it exclusively.
  @inline(always) package var isXbusy: Bool { rawValue & 1 << 30 != 0 }
  /// Whether a thread waits until the frame is no longer busy.
  @inline(always) package var hasWaiters: Bool { rawValue & 1 << 31 != 0 }
  /// The bit of a waiting thread.
  @inline(always) package static var waiters: Self { Self(rawValue: 1 << 31) }
  /// Whether it is exclusively busy and nothing else; a thread may be waiting.
  @inline(always) var isXbusyOnly: Bool { rawValue & 0x7fff_ffff == Self.xbusy.rawValue }
}

/// Which list a frame's links belong to.
@frozen @usableFromInline package enum FrameQueue: UInt8, Sendable {
  case none
  /// The frame heads a free block.
  case buddy
  /// The owner's own list: slabs, zspages.
  case owner
  /// The queues of pageable pages.
  case active, inactive, laundry, unswappable
}

/// The state of a pageable page, in the byte `flags` of its record.
@frozen @usableFromInline package struct PageFlags: OptionSet, Sendable {
  @usableFromInline package let rawValue: UInt8
  /// Flags of these bits.
  @inlinable package init(rawValue: UInt8) { self.rawValue = rawValue }

  /// The page has the contents of its object's page.
  @inlinable package static var valid: Self { Self(rawValue: 1) }
  /// No device has its contents. No mapping is writable unless this is set.
  @inlinable package static var dirty: Self { Self(rawValue: 2) }
  @inlinable package static var referenced: Self { Self(rawValue: 4) }
  /// Of a free frame: it keeps owner, index and contents until it is allocated.
  @inlinable package static var cached: Self { Self(rawValue: 8) }
}

/// The record of one frame, in place. Its words are aligned, which a load would check on each path in builds with
/// assertions; `loadUnaligned` does not, and compiles to the same instruction.
@frozen @usableFromInline package struct FrameRecordPointer {
  @usableFromInline let raw: UnsafeMutableRawPointer
  @inlinable init(_ raw: UnsafeMutableRawPointer) { self.raw = raw }

  /// Bytes of a record.
  @inlinable package static var size: Int { 32 }

  /// The next frame of the list that `queue` names.
  @inline(always) package var next: FrameNumber {
    get { FrameNumber(raw.loadUnaligned(as: UInt32.self)) }
    nonmutating set { raw.storeBytes(of: newValue.rawValue, as: UInt32.self) }
  }
  /// The frame before it in that list.
  @inline(always) package var previous: FrameNumber {
    get { FrameNumber(raw.loadUnaligned(fromByteOffset: 4, as: UInt32.self)) }
    nonmutating set { raw.storeBytes(of: newValue.rawValue, toByteOffset: 4, as: UInt32.self) }
  }
  /// Index of the object or cache that has the frame.
  @inline(always) package var owner: UInt32 {
    get { raw.loadUnaligned(fromByteOffset: 8, as: UInt32.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 8, as: UInt32.self) }
  }
  /// The owner's own word.
  @inline(always) package var aux: UInt32 {
    get { raw.loadUnaligned(fromByteOffset: 12, as: UInt32.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 12, as: UInt32.self) }
  }
  /// The page's index in its object.
  @inline(always) package var index: UInt64 {
    get { raw.loadUnaligned(fromByteOffset: 16, as: UInt64.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 16, as: UInt64.self) }
  }
  /// The record so many frames before this one, in the same section.
  @inline(always) package func before(_ frames: UInt32) -> FrameRecordPointer {
    FrameRecordPointer(raw - Int(frames) &* Self.size)
  }
  /// The record so many frames behind this one, in the same section.
  @inline(always) package func after(_ frames: Int) -> FrameRecordPointer {
    FrameRecordPointer(raw + frames &* Self.size)
  }
  /// Wires, holds and busy users.
  @inline(always) package var busyWord: BusyWord {
    get { BusyWord(rawValue: busyAtomic.pointee.load(ordering: .acquiring)) }
    nonmutating set { busyAtomic.pointee.store(newValue.rawValue, ordering: .releasing) }
  }
  /// Replaces `expected` by `desired`, or changes nothing and returns false.
  @inline(always) package func exchangeBusyWord(_ expected: BusyWord, for desired: BusyWord) -> Bool {
    let isDone = busyAtomic.pointee.compareExchange(
      expected: expected.rawValue, desired: desired.rawValue, ordering: .acquiringAndReleasing
    ).exchanged
    if isDone { reportClaim(busyAtomic) }
    return isDone
  }
  /// The one use of the frame.
  @inline(always) package var role: FrameRole {
    get { FrameRole(rawValue: byte(28).pointee.load(ordering: .relaxed)) ?? .absent }
    nonmutating set { byte(28).pointee.store(newValue.rawValue, ordering: .relaxed) }
  }
  /// Whether the frame has `role`: one comparison.
  @inline(always) package func hasRole(_ role: FrameRole) -> Bool {
    byte(28).pointee.load(ordering: .relaxed) == role.rawValue
  }
  /// Whether the frame has `role`, and its links are its owner's: one comparison.
  @inline(always) package func isOwners(_ role: FrameRole) -> Bool {
    (raw + 28).assumingMemoryBound(to: Atomic<UInt32>.self).pointee.load(ordering: .relaxed) & 0xff00_00ff
      == UInt32(FrameQueue.owner.rawValue) << 24 | UInt32(role.rawValue)
  }
  /// The order of the free block that this frame heads; meaningless otherwise.
  @inline(always) package internal(set) var order: BlockOrder {
    get { BlockOrder(byte(29).pointee.load(ordering: .relaxed) & 31) }
    nonmutating set {
      let rest = byte(29).pointee.load(ordering: .relaxed) & ~31
      byte(29).pointee.store(rest | newValue.rawValue, ordering: .relaxed)
    }
  }
  /// Valid, dirty, referenced and cached: the owner's.
  @inline(always) package var flags: UInt8 {
    get { byte(30).pointee.load(ordering: .relaxed) }
    nonmutating set { byte(30).pointee.store(newValue, ordering: .relaxed) }
  }
  /// The flags of a pageable page: guarded by its object's lock.
  @inline(always) package var pageFlags: PageFlags {
    get { PageFlags(rawValue: flags) }
    nonmutating set { flags = newValue.rawValue }
  }
  /// Whether a pageable page is wired, and counts as unmovable in its pageblock. Written under the domain lock.
  @inline(always) var isUnmovable: Bool {
    byte(29).pointee.load(ordering: .relaxed) & RecordSnapshot.unmovable != 0
  }
  @inline(always) func setMobility(_ mobility: PageMobility) {
    let rest = byte(29).pointee.load(ordering: .relaxed) & ~RecordSnapshot.unmovable
    byte(29).pointee.store(
      mobility == .unmovable ? rest | RecordSnapshot.unmovable : rest, ordering: .relaxed)
  }
  /// Busy word, role, marks and flags at one moment. Takes no lock.
  @inline(always) package var snapshot: RecordSnapshot {
    RecordSnapshot(
      rawValue: (raw + 24).assumingMemoryBound(to: Atomic<UInt64>.self).pointee.load(ordering: .relaxed))
  }
  /// The list that the links belong to.
  @inline(always) package var queue: FrameQueue {
    get { FrameQueue(rawValue: byte(31).pointee.load(ordering: .relaxed)) ?? .owner }
    nonmutating set { byte(31).pointee.store(newValue.rawValue, ordering: .relaxed) }
  }

  /// Whether the frame is in one of the queues of pageable pages.
  @inline(always) package var isInPageQueue: Bool {
    let queue = byte(31).pointee.load(ordering: .relaxed)
    return queue >= FrameQueue.active.rawValue && queue <= FrameQueue.unswappable.rawValue
  }
  @inline(always) var isInNoQueue: Bool {
    byte(31).pointee.load(ordering: .relaxed) == FrameQueue.none.rawValue
  }
  /// Marks the frame as in no list and as head of no free block.
  @inline(always) func leaveQueue() {
    let rest = byte(29).pointee.load(ordering: .relaxed) & ~31
    byte(29).pointee.store(rest, ordering: .relaxed)
    byte(31).pointee.store(FrameQueue.none.rawValue, ordering: .relaxed)
  }
  /// Replaces `other` in its list: this record gets its links and queue, and `other` is in no list. The caller changes
  /// the links of the neighbours.
  @inline(always) package func replace(_ other: FrameRecordPointer) {
    raw.storeBytes(of: other.raw.loadUnaligned(as: UInt64.self), as: UInt64.self)
    byte(31).pointee.store(other.byte(31).pointee.load(ordering: .relaxed), ordering: .relaxed)
    other.raw.storeBytes(of: UInt64.max, as: UInt64.self)
    other.byte(31).pointee.store(FrameQueue.none.rawValue, ordering: .relaxed)
  }
  /// Frames of the free block that this frame of a valid pageblock heads; 0 when it heads none. The domain lock is
  /// held.
  @inline(always) var blockSize: UInt32 {
    guard byte(31).pointee.load(ordering: .relaxed) == FrameQueue.buddy.rawValue else { return 0 }
    return 1 << UInt32(byte(29).pointee.load(ordering: .relaxed) & 31)
  }

  /// The busy words of `count` frames from this one on, combined by or. They have records in the same section.
  @inline(always) package func combinedBusyWord(of count: Int) -> BusyWord {
    var busyWord: UInt32 = 0
    var record = raw
    let end = record + count &* Self.size
    while record < end {
      busyWord |= FrameRecordPointer(record).busyAtomic.pointee.load(ordering: .relaxed)
      record += Self.size
    }
    return BusyWord(rawValue: busyWord)
  }

  @inlinable var busyAtomic: UnsafeMutablePointer<Atomic<UInt32>> {
    (raw + 24).assumingMemoryBound(to: Atomic<UInt32>.self)
  }
  @inlinable func byte(_ offset: Int) -> UnsafeMutablePointer<Atomic<UInt8>> {
    (raw + offset).assumingMemoryBound(to: Atomic<UInt8>.self)
  }

  /// Names the owner of an allocated frame. The purpose comes first: it is read only where the mark is set.
  @inline(always) func setOwner(_ owner: FrameOwner) {
    raw.storeBytes(of: owner.purposeAddress, toByteOffset: 16, as: UInt64.self)
    raw.storeBytes(of: owner.word, toByteOffset: 8, as: UInt64.self)
  }
  /// The owner that was named when the frame was allocated; nil where the requester keeps its own words there.
  var statedOwner: FrameOwner? {
    switch role {
    case .free, .slab, .pageable, .zspage, .absent: return nil
    default: break
    }
    guard queue == .none else { return nil }
    return FrameOwner(
      purposeAddress: index, word: raw.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
  }

  /// Writes all of a record that was not initialised.
  @inline(always) func initialize(role: FrameRole, busyWord: BusyWord, owner: FrameOwner = .none) {
    raw.storeBytes(of: UInt64.max, as: UInt64.self)
    setOwner(owner)
    raw.storeBytes(
      of: UInt64(busyWord.rawValue) | UInt64(role.rawValue) << 32, toByteOffset: 24, as: UInt64.self)
  }

  /// Writes a valid record for a frame that was just allocated. Order and queue were reset under the domain lock, and
  /// other processors may be reading them.
  @inline(always) func handOut(_ role: FrameRole, _ busyWord: BusyWord, _ owner: FrameOwner = .none) {
    raw.storeBytes(of: UInt64.max, as: UInt64.self)
    setOwner(owner)
    self.role = role
    flags = 0
    self.busyWord = busyWord
  }
}

/// The records of one pageblock, which stay valid: for a caller that reads one after the other.
@frozen @usableFromInline package struct PageblockRecords {
  @usableFromInline let first: UInt64
  @usableFromInline let records: UnsafeMutableRawPointer

  /// No records.
  @inlinable @inline(__always) package init() {
    first = 1 << 63
    records = UnsafeMutableRawPointer(bitPattern: 8).unsafelyUnwrapped
  }
  init(first: UInt32, records: FrameRecordPointer) {
    self.first = UInt64(first)
    self.records = records.raw
  }

  /// The record of frame `number`; nil when that is no frame of the pageblock. Any number below 2^63 may be asked for.
  @inlinable @inline(__always) package func record(_ number: UInt64) -> FrameRecordPointer? {
    let position = number &- first
    guard position < Pageblock.length else { return nil }
    return FrameRecordPointer(records + Int(truncatingIfNeeded: position) &* FrameRecordPointer.size)
  }
}

/// The last eight bytes of a record.
@frozen @usableFromInline package struct RecordSnapshot {
  @usableFromInline package let rawValue: UInt64

  @inlinable init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable static var unmovable: UInt8 { 32 }

  @inline(always) package var busyWord: BusyWord { BusyWord(rawValue: UInt32(truncatingIfNeeded: rawValue)) }
  @inline(always) package var role: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 32) }
  @inline(always) package var isUnmovable: Bool { rawValue & UInt64(Self.unmovable) << 40 != 0 }
  @inline(always) package var isDirty: Bool { rawValue & UInt64(2) << 48 != 0 }
  @inline(always) package var dirty: UInt64 { rawValue >> 49 & 1 }
  @inline(always) package var isActive: Bool { rawValue >> 56 == UInt64(FrameQueue.active.rawValue) }
  @inline(always) package var isFree: Bool { role == FrameRole.free.rawValue }
  /// A pageable page without a wire, which can be moved or written out, or a page of a zspage, which can be moved.
  @inline(always) package var isMovable: Bool {
    (role == FrameRole.pageable.rawValue || role == FrameRole.zspage.rawValue) && !isUnmovable
  }
  /// A page of a zspage that no processor frees at this moment.
  @inline(always) package var isZspage: Bool {
    rawValue & 0xff_ffff_ffff == UInt64(FrameRole.zspage.rawValue) << 32 | UInt64(BusyWord.wiredOnce.rawValue)
  }
  /// Whether an allocated frame may be freed: it is neither permanent nor a page that is wired or dirty.
  @inline(always) var mayBeFreed: Bool {
    let special: UInt32 =
      1 << UInt32(FrameRole.records.rawValue) | 1 << UInt32(FrameRole.image.rawValue)
      | 1 << UInt32(FrameRole.boot.rawValue) | 1 << UInt32(FrameRole.absent.rawValue)
      | 1 << UInt32(FrameRole.pageable.rawValue)
    if special >> UInt32(role & 31) & 1 == 0 { return true }
    return role == FrameRole.pageable.rawValue && !isUnmovable && !isDirty
  }
  /// An isolation has the frame.
  @inline(always) package var isCaptured: Bool {
    role == FrameRole.contiguous.rawValue && busyWord == .captured
  }
  /// A page that is neither wired nor held nor busy at this moment; a waiter may be left.
  @inline(always) package var isIdlePage: Bool {
    rawValue & 0x20ff_7fff_ffff == UInt64(FrameRole.pageable.rawValue) << 32
  }
}
