// What the system knows of one frame, in 32 bytes.
//
//   0 next 4, previous 4    frame numbers; one list at a time: buddy, slab, paging queue
//   8 owner 4, aux 4        index of the object or cache that has the frame; aux is the owner's
//  16 index 8               page in its object, 40 bits, and the age
//  24 claims 4              one atomic word, see `BusyWord`
//  28 role 1
//  29 order (5 bits), fixed (of a pageable page)
//  30 valid, dirty, referenced, cache attribute
//  31 queue                 which list `next` and `previous` belong to
//
// Whoever was given the frame owns owner, aux, index and, while `queue` is its own, the links. Role and
// claims change hands with the frame. While a frame heads a free block, links, order and queue belong to
// the lock of the buddy queues. The bytes from 24 on are read by neighbours that look for a buddy and by
// searches for runs, so they are relaxed atomics: plain moves to the processor. `fixed` belongs to the
// same lock. A cached page keeps owner, index and `flags` while it is free.

import MemoryPrimitives
import Synchronization

/// The claims word: who keeps a frame from being taken. "Nobody has it" is tested and taken by one
/// compare-and-swap.
@frozen public struct BusyWord: Equatable, Sendable {
  public var rawValue: UInt32
  @inline(always) public init(rawValue: UInt32) { self.rawValue = rawValue }

  @inline(always) public static var none: Self { Self(rawValue: 0) }
  /// Wired once and nothing else: how a frame is handed out, and the only state it may be freed in.
  @inline(always) public static var wiredOnce: Self { Self(rawValue: 1) }
  /// Taken for itself by whoever frees or moves the frame.
  @inline(always) public static var xbusy: Self { Self(rawValue: 1 << 30) }
  /// Wired, and kept by an isolation until it ends: nobody else can free it.
  @inline(always) static var captured: Self { Self(rawValue: 1 << 30 | 1) }

  @inline(always) public var wires: UInt32 { rawValue & 0xfff }
  @inline(always) public var holds: UInt32 { rawValue >> 12 & 0x3ff }
  @inline(always) public var sbusyCount: UInt32 { rawValue >> 22 & 0xff }
  @inline(always) public var isXbusy: Bool { rawValue & 1 << 30 != 0 }
  @inline(always) public var hasWaiters: Bool { rawValue & 1 << 31 != 0 }
  /// Exclusive and nothing else, but that somebody may be waiting.
  @inline(always) var isXbusyOnly: Bool { rawValue & 0x7fff_ffff == Self.xbusy.rawValue }
}

/// Which list a frame's links belong to.
@frozen public enum FrameQueue: UInt8, Sendable {
  case none
  /// The frame heads a free block.
  case buddy
  /// The owner's own list: slabs, zspages.
  case owner
  /// The queues of pageable pages.
  case active, inactive, laundry, unswappable
}

/// What is said of a pageable page, in the byte `flags` of its record.
@frozen public struct PageFlags: OptionSet, Sendable {
  public let rawValue: UInt8
  @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }

  /// The page holds what its object means it to hold.
  @inlinable public static var valid: Self { Self(rawValue: 1) }
  /// It holds what no device has. No mapping is writable unless this is set.
  @inlinable public static var dirty: Self { Self(rawValue: 2) }
  @inlinable public static var referenced: Self { Self(rawValue: 4) }
  /// Of a free frame: it keeps owner, index and contents until somebody takes it.
  @inlinable public static var cached: Self { Self(rawValue: 8) }
}

/// The record of one frame, in place. Its words are aligned, which a load would check on each path where assertions are
/// on; `loadUnaligned` does not, and compiles to the same instruction.
@frozen public struct FrameRecordPointer {
  @usableFromInline let raw: UnsafeMutableRawPointer
  @inlinable init(_ raw: UnsafeMutableRawPointer) { self.raw = raw }

  /// Bytes of a record.
  @inlinable public static var size: Int { 32 }

  @inline(always) public var next: FrameNumber {
    get { FrameNumber(raw.loadUnaligned(as: UInt32.self)) }
    nonmutating set { raw.storeBytes(of: newValue.rawValue, as: UInt32.self) }
  }
  @inline(always) public var previous: FrameNumber {
    get { FrameNumber(raw.loadUnaligned(fromByteOffset: 4, as: UInt32.self)) }
    nonmutating set { raw.storeBytes(of: newValue.rawValue, toByteOffset: 4, as: UInt32.self) }
  }
  /// Index of the object or cache that has the frame.
  @inline(always) public var owner: UInt32 {
    get { raw.loadUnaligned(fromByteOffset: 8, as: UInt32.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 8, as: UInt32.self) }
  }
  /// The owner's own word.
  @inline(always) public var aux: UInt32 {
    get { raw.loadUnaligned(fromByteOffset: 12, as: UInt32.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 12, as: UInt32.self) }
  }
  @inline(always) public var index: UInt64 {
    get { raw.loadUnaligned(fromByteOffset: 16, as: UInt64.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 16, as: UInt64.self) }
  }
  /// The record so many frames before this one, in the same section.
  @inline(always) public func before(_ frames: UInt32) -> FrameRecordPointer {
    FrameRecordPointer(raw - Int(frames) &* Self.size)
  }
  @inline(always) public var busyWord: BusyWord {
    get { BusyWord(rawValue: busyAtomic.pointee.load(ordering: .acquiring)) }
    nonmutating set { busyAtomic.pointee.store(newValue.rawValue, ordering: .releasing) }
  }
  /// Replaces `expected` by `desired`, or changes nothing and answers false.
  @inline(always) public func exchangeBusyWord(_ expected: BusyWord, for desired: BusyWord) -> Bool {
    let isDone = busyAtomic.pointee.compareExchange(
      expected: expected.rawValue, desired: desired.rawValue, ordering: .acquiringAndReleasing
    ).exchanged
    if isDone { noteClaim(busyAtomic) }
    return isDone
  }
  @inline(always) public var role: FrameRole {
    get { FrameRole(rawValue: byte(28).pointee.load(ordering: .relaxed)) ?? .absent }
    nonmutating set { byte(28).pointee.store(newValue.rawValue, ordering: .relaxed) }
  }
  /// Whether the frame has `role`: one comparison.
  @inline(always) public func hasRole(_ role: FrameRole) -> Bool {
    byte(28).pointee.load(ordering: .relaxed) == role.rawValue
  }
  /// Whether the frame has `role`, and its links are its owner's: one comparison.
  @inline(always) public func isOwners(_ role: FrameRole) -> Bool {
    (raw + 28).assumingMemoryBound(to: Atomic<UInt32>.self).pointee.load(ordering: .relaxed) & 0xff00_00ff
      == UInt32(FrameQueue.owner.rawValue) << 24 | UInt32(role.rawValue)
  }
  /// The order of the free block that this frame heads; meaningless otherwise.
  @inline(always) public internal(set) var order: Order {
    get { Order(byte(29).pointee.load(ordering: .relaxed) & 31) }
    nonmutating set {
      let rest = byte(29).pointee.load(ordering: .relaxed) & ~31
      byte(29).pointee.store(rest | newValue.rawValue, ordering: .relaxed)
    }
  }
  /// Valid, dirty, referenced and cache attribute: the owner's.
  @inline(always) public var flags: UInt8 {
    get { byte(30).pointee.load(ordering: .relaxed) }
    nonmutating set { byte(30).pointee.store(newValue, ordering: .relaxed) }
  }
  /// The flags of a pageable page: guarded by its object's lock.
  @inline(always) public var pageFlags: PageFlags {
    get { PageFlags(rawValue: flags) }
    nonmutating set { flags = newValue.rawValue }
  }
  /// Of a pageable page: it is wired, and counts as unmovable in its pageblock. Written under the lock.
  @inline(always) var isFixed: Bool { byte(29).pointee.load(ordering: .relaxed) & FrameSnapshot.fixed != 0 }
  @inline(always) func setFixed(_ mobility: PageMobility) {
    let rest = byte(29).pointee.load(ordering: .relaxed) & ~FrameSnapshot.fixed
    byte(29).pointee.store(mobility == .fixed ? rest | FrameSnapshot.fixed : rest, ordering: .relaxed)
  }
  /// Claims, role, marks and flags in one look, as they were at one moment. No lock.
  @inline(always) var snapshot: FrameSnapshot {
    FrameSnapshot(
      rawValue: (raw + 24).assumingMemoryBound(to: Atomic<UInt64>.self).pointee.load(ordering: .relaxed))
  }
  @inline(always) public var queue: FrameQueue {
    get { FrameQueue(rawValue: byte(31).pointee.load(ordering: .relaxed)) ?? .owner }
    nonmutating set { byte(31).pointee.store(newValue.rawValue, ordering: .relaxed) }
  }

  /// Whether the frame is in one of the queues of pageable pages.
  @inline(always) public var isInPageQueue: Bool {
    let queue = byte(31).pointee.load(ordering: .relaxed)
    return queue >= FrameQueue.active.rawValue && queue <= FrameQueue.unswappable.rawValue
  }
  @inline(always) var isInNoQueue: Bool {
    byte(31).pointee.load(ordering: .relaxed) == FrameQueue.none.rawValue
  }
  /// No list has the frame any more, and it heads no free block.
  @inline(always) func leaveQueue() {
    let rest = byte(29).pointee.load(ordering: .relaxed) & ~31
    byte(29).pointee.store(rest, ordering: .relaxed)
    byte(31).pointee.store(FrameQueue.none.rawValue, ordering: .relaxed)
  }
  /// Takes the links and the queue of `other`, which is in none from now on. Their neighbours are the caller's.
  @inline(always) public func takePlace(of other: FrameRecordPointer) {
    raw.storeBytes(of: other.raw.loadUnaligned(as: UInt64.self), as: UInt64.self)
    byte(31).pointee.store(other.byte(31).pointee.load(ordering: .relaxed), ordering: .relaxed)
    other.raw.storeBytes(of: UInt64.max, as: UInt64.self)
    other.byte(31).pointee.store(FrameQueue.none.rawValue, ordering: .relaxed)
  }
  /// Frames of the free block that this frame of a valid pageblock heads, 0 when it heads none. Lock held.
  @inline(always) var blockSize: UInt32 {
    guard byte(31).pointee.load(ordering: .relaxed) == FrameQueue.buddy.rawValue else { return 0 }
    return 1 << UInt32(byte(29).pointee.load(ordering: .relaxed) & 31)
  }

  @inlinable var busyAtomic: UnsafeMutablePointer<Atomic<UInt32>> {
    (raw + 24).assumingMemoryBound(to: Atomic<UInt32>.self)
  }
  @inlinable func byte(_ offset: Int) -> UnsafeMutablePointer<Atomic<UInt8>> {
    (raw + offset).assumingMemoryBound(to: Atomic<UInt8>.self)
  }

  /// Writes all of a record that held rubbish.
  @inline(always) func initialize(role: FrameRole, busyWord: BusyWord) {
    raw.storeBytes(of: UInt64.max, as: UInt64.self)
    raw.storeBytes(of: 0, toByteOffset: 8, as: UInt64.self)
    raw.storeBytes(of: 0, toByteOffset: 16, as: UInt64.self)
    raw.storeBytes(
      of: UInt64(busyWord.rawValue) | UInt64(role.rawValue) << 32, toByteOffset: 24, as: UInt64.self)
  }

  /// Makes a valid record that of a frame just handed out. Order and queue were reset with the buddy
  /// lock held, and neighbours may be reading them.
  @inline(always) func handOut(_ role: FrameRole, _ busyWord: BusyWord) {
    raw.storeBytes(of: UInt64.max, as: UInt64.self)
    raw.storeBytes(of: 0, toByteOffset: 8, as: UInt64.self)
    raw.storeBytes(of: 0, toByteOffset: 16, as: UInt64.self)
    self.role = role
    flags = 0
    self.busyWord = busyWord
  }
}

/// The records of one pageblock, which stay valid: for a caller that looks at one after the other.
@frozen public struct PageblockRecords {
  @usableFromInline let first: UInt64
  @usableFromInline let records: UnsafeMutableRawPointer

  /// No records.
  @inlinable @inline(__always) public init() {
    first = 1 << 63
    records = UnsafeMutableRawPointer(bitPattern: 8).unsafelyUnwrapped
  }
  init(first: UInt32, records: FrameRecordPointer) {
    self.first = UInt64(first)
    self.records = records.raw
  }

  /// The record of frame `number`; nil when that is no frame of the pageblock. Any number below 2^63 may be asked for.
  @inlinable @inline(__always) public func record(_ number: UInt64) -> FrameRecordPointer? {
    let place = number &- first
    guard place < 512 else { return nil }
    return FrameRecordPointer(records + Int(truncatingIfNeeded: place) &* FrameRecordPointer.size)
  }
}

/// The last eight bytes of a record.
struct FrameSnapshot {
  var rawValue: UInt64

  static var fixed: UInt8 { 32 }

  @inline(always) var busyWord: BusyWord { BusyWord(rawValue: UInt32(truncatingIfNeeded: rawValue)) }
  @inline(always) var role: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 32) }
  @inline(always) var isFixed: Bool { rawValue & UInt64(Self.fixed) << 40 != 0 }
  @inline(always) var isDirty: Bool { rawValue & UInt64(2) << 48 != 0 }
  @inline(always) var dirty: UInt64 { rawValue >> 49 & 1 }
  @inline(always) var isActive: Bool { rawValue >> 56 == UInt64(FrameQueue.active.rawValue) }
  @inline(always) var isFree: Bool { role == FrameRole.free.rawValue }
  /// A page of paging that nobody has wired: it can be moved or written out.
  @inline(always) var isMovable: Bool { role == FrameRole.pageable.rawValue && !isFixed }
  /// Whether a frame in use may be freed like any other: it is not kept for good, and no page that is
  /// wired or dirty.
  @inline(always) var mayBeFreed: Bool {
    let special: UInt32 =
      1 << UInt32(FrameRole.records.rawValue) | 1 << UInt32(FrameRole.image.rawValue)
      | 1 << UInt32(FrameRole.boot.rawValue) | 1 << UInt32(FrameRole.absent.rawValue)
      | 1 << UInt32(FrameRole.pageable.rawValue)
    if special >> UInt32(role & 31) & 1 == 0 { return true }
    return role == FrameRole.pageable.rawValue && !isFixed && !isDirty
  }
  /// An isolation has the frame.
  @inline(always) var isCaptured: Bool {
    role == FrameRole.contiguous.rawValue && busyWord == .captured
  }
  /// A page that nobody has wired, holds or uses at this moment; a waiter may be left.
  @inline(always) var isIdlePage: Bool {
    rawValue & 0x20ff_7fff_ffff == UInt64(FrameRole.pageable.rawValue) << 32
  }
}
