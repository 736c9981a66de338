// A slab: 1, 2, 4 or 8 contiguous frames of the direct map, cut into objects of one cache.
//
// Nothing of a plain slab lies outside its objects but what the record of its first frame holds, so a
// page full of objects is full of objects:
//
//   owner    cache 16 bits | order 2 | audited 1 | damaged 1
//   aux      first free object 16 | objects out of the slab 16
//   index    first frame of the slab 32 | number of objects 16
//   links    the cache's list that the slab is on
//
// The records of the other frames hold owner and index too, so any address leads to its slab in two
// loads. A free object holds a word: 48 bits that its address decides and the number of the next free
// one. Who frees an object that looks so is asked to prove that it is not in the list; who writes to a
// free object destroys the 48 bits, and is found when the object is about to be given out. In a cache
// with a constructor the word stands behind the object, which stays constructed.
//
// An audited slab has 16 bytes for each object at its end instead: who has it, since when, of what size.

import MemoryPrimitives
import PhysicalMemory

/// A slab by the record of its first frame.
struct Slab {
  let frame: FrameNumber
  let record: FrameRecordPointer
  let base: UnsafeMutableRawPointer

  static var none: UInt16 { 0xffff }

  init(_ frame: FrameNumber, _ record: FrameRecordPointer, _ directMap: DirectMap) {
    self.frame = frame
    self.record = record
    base = directMap.pointer(to: frame)
  }

  /// Writes the records of a slab whose objects are all free and not yet linked.
  static func create(
    _ frame: FrameNumber, _ order: Order, cache: Int, objects: Int, isAudited: Bool,
    physical: PhysicalMemory, directMap: DirectMap
  ) -> Slab {
    let owner = UInt32(cache) | UInt32(order.rawValue) << 16 | (isAudited ? 1 << 18 : 0)
    let index = UInt64(frame.rawValue) | UInt64(objects) << 32
    for i in 0..<order.frames.rawValue {
      let record = physical.record(frame + PageCount(i)).unsafelyUnwrapped
      record.owner = owner
      record.aux = UInt32(none)
      record.index = index
      record.queue = .owner
    }
    return Slab(frame, physical.record(frame).unsafelyUnwrapped, directMap)
  }

  /// The cache that the record of a frame of a slab names.
  static func cache(_ record: FrameRecordPointer) -> Int { Int(record.owner & 0xffff) }
  /// The first frame of the slab that the record of one of its frames names.
  static func first(_ record: FrameRecordPointer) -> FrameNumber {
    FrameNumber(UInt32(truncatingIfNeeded: record.index))
  }

  var cache: Int { Self.cache(record) }
  var order: Order { Order(UInt8(record.owner >> 16 & 3)) }
  var bytes: Int { 4096 << Int(order.rawValue) }
  var isAudited: Bool { record.owner & 1 << 18 != 0 }
  /// A free object was written to: the free ones of this slab are not given out any more.
  var isDamaged: Bool {
    get { record.owner & 1 << 19 != 0 }
    nonmutating set { record.owner = record.owner & ~(1 << 19) | (newValue ? 1 << 19 : 0) }
  }
  var objects: Int { Int(record.index >> 32 & 0xffff) }
  var firstFree: UInt16 {
    get { UInt16(truncatingIfNeeded: record.aux) }
    nonmutating set { record.aux = record.aux & ~0xffff | UInt32(newValue) }
  }
  /// Objects that are not free in the slab: given out, or in a magazine.
  var out: Int {
    get { Int(record.aux >> 16) }
    nonmutating set { record.aux = record.aux & 0xffff | UInt32(newValue) << 16 }
  }

  /// The audit's entry of an object; only in an audited slab.
  func entry(_ index: Int) -> UnsafeMutablePointer<AuditEntry> {
    (base + bytes - (objects - index) * MemoryLayout<AuditEntry>.stride)
      .assumingMemoryBound(to: AuditEntry.self)
  }
}

/// What an audited slab knows of one object.
struct AuditEntry {
  /// `allocated`, or the next free object of the slab, or `Slab.none` behind the last.
  var link: UInt16
  /// The period of auditing in which the object was given out. What is older was perhaps freed and given
  /// out again past the audit, so sizes and types are compared within a period only.
  var period: UInt16
  var size: UInt16
  var type: UInt16
  var allocatedAt: CallSite
  var freedAt: CallSite

  static var allocated: UInt16 { 0xfffe }
}

/// The word in a free object.
struct FreeWord {
  var rawValue: UInt64

  init(at object: UnsafeMutableRawPointer, next: UInt16) {
    rawValue = Self.mark(object) | UInt64(next)
  }
  init(rawValue: UInt64) { self.rawValue = rawValue }

  var next: UInt16 { UInt16(truncatingIfNeeded: rawValue) }
  func isMark(of object: UnsafeMutableRawPointer) -> Bool { rawValue & ~0xffff == Self.mark(object) }

  /// Fibonacci hashing of the address: 48 bits that no neighbour has.
  private static func mark(_ object: UnsafeMutableRawPointer) -> UInt64 {
    (UInt64(UInt(bitPattern: object)) &* 0x9e37_79b9_7f4a_7c15) & ~0xffff
  }
}

/// Slabs that are linked through their records.
struct SlabList {
  private(set) var first = FrameNumber.none
  private(set) var count = 0

  mutating func put(_ slab: Slab, _ physical: PhysicalMemory) {
    slab.record.previous = .none
    slab.record.next = first
    if first != .none { physical.record(first).unsafelyUnwrapped.previous = slab.frame }
    first = slab.frame
    count += 1
  }

  mutating func remove(_ slab: Slab, _ physical: PhysicalMemory) {
    let (previous, next) = (slab.record.previous, slab.record.next)
    if previous == .none {
      first = next
    } else {
      physical.record(previous).unsafelyUnwrapped.next = next
    }
    if next != .none { physical.record(next).unsafelyUnwrapped.previous = previous }
    count -= 1
  }
}
