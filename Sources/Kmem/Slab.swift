// A slab: 1 to 64 contiguous frames of the direct map, cut into objects of one cache. It has 1, 2, 4 or 8 frames, unless
// its cache has contiguous slabs (ContiguousSlabs.swift).
//
// A caller can write to any byte of a slab, by a pointer that it has freed or beyond the end of its object. So kmem
// keeps nothing there that it relies on. A map says which objects are free, a bit for each. The map and the counts lie
// in the records of the frames, or in memory of kmem's own:
//
//   owner    cache 7 bits | frames - 1 6 | audited 1 | position of the frame in the slab 6 | objects 10
//   aux      objects out of the slab 16 | damaged 1
//   index    the map of up to 64 objects; of a slab with tables, their address
//   links    the cache's list that the slab is on
//
// All of it is in the record of the first frame. The records of the other frames hold `owner` too, so any address leads
// to its slab in two loads. Tables are a part of kmem's own memory: the map of up to 512 objects and, in an audited
// slab, an entry for each object.
//
// A free object holds a word that follows from its address. kmem compares it before it allocates the object, and uses
// it for nothing else: another word means that a caller wrote to the free object. In a cache with a constructor the
// word stands behind the object, which stays constructed. Behind the last object of an audited slab stand two such
// words, the guard: they show a write beyond its end.

import MemoryPrimitives
import PhysicalMemory

/// A slab by the record of its first frame.
struct Slab {
  /// The order of the largest slab of a cache whose slabs are blocks: 8 frames.
  static var largestOrder: BlockOrder { BlockOrder(3) }
  /// Frames of the largest slab of a cache whose slabs are runs.
  static var mostFrames: Int { 64 }
  /// The most objects of a slab: as many as the map has bits.
  static var mostObjects: Int { mapBytes * 8 }

  let frame: FrameNumber
  let record: FrameRecordPointer
  let base: UnsafeMutableRawPointer

  init(_ frame: FrameNumber, _ record: FrameRecordPointer, _ directMap: DirectMap) {
    self.frame = frame
    self.record = record
    base = directMap.pointer(to: frame)
  }

  /// Writes the records of a slab whose objects are all free. `tables` has `tableBytes` bytes, if that is not 0.
  static func create(
    _ run: FrameRun, cache: Int, objects: Int, isAudited: Bool, tables: UnsafeMutableRawPointer?,
    physical: FrameAllocator, directMap: DirectMap
  ) -> Slab {
    let frame = run.first
    let frames = Int(run.count.rawValue)
    let owner = owner(frames: frames, cache: cache, objects: objects, isAudited: isAudited)
    for i in 0..<UInt32(frames) {
      let record = physical.record(FrameNumber(frame.rawValue + i)).unsafelyUnwrapped
      record.owner = owner | i << 14
      record.aux = 0
      record.queue = .owner
    }
    let slab = Slab(frame, physical.record(frame).unsafelyUnwrapped, directMap)
    guard let tables else {
      slab.record.index = slab.mapBits(0)
      return slab
    }
    slab.record.index = UInt64(UInt(bitPattern: tables))
    for number in 0..<slab.mapWords { slab.setFree(number, slab.mapBits(number)) }
    if isAudited { slab.entry(0).initialize(repeating: AuditEntry(), count: objects) }
    return slab
  }

  /// `owner` in the record of the first frame.
  static func owner(frames: Int, cache: Int, objects: Int, isAudited: Bool) -> UInt32 {
    UInt32(cache) | UInt32(frames - 1) << 7 | (isAudited ? 1 << 13 : 0) | UInt32(objects) << 20
  }
  /// A value that `owner` of no slab has.
  static var noOwner: UInt32 { .max }
  /// The bits of `owner` in which the frames of a slab differ.
  static var positionBits: UInt32 { 63 << 14 }

  /// Computes the bytes of the tables of a slab of so many objects; 0 for none.
  static func tableBytes(objects: Int, isAudited: Bool) -> Int {
    if isAudited { return mapBytes + objects * MemoryLayout<AuditEntry>.stride }
    return objects > 64 ? mapBytes : 0
  }
  /// Bytes of the map in tables: of 512 objects, as many as a page has.
  private static var mapBytes: Int { 64 }
  /// The most objects of an audited slab: the entries of so many fit into a chunk of kmem's own memory.
  static var mostAudited: Int { (OwnMemory.largest - mapBytes) / MemoryLayout<AuditEntry>.stride }

  /// Reads the cache that the record of a frame of a slab names.
  static func cache(_ record: FrameRecordPointer) -> Int { cache(record.owner) }
  static func cache(_ owner: UInt32) -> Int { Int(owner & 0x7f) }
  /// Finds the first frame of the slab that `frame` belongs to.
  static func first(_ frame: FrameNumber, _ record: FrameRecordPointer) -> FrameNumber {
    FrameNumber(frame.rawValue &- position(record.owner))
  }
  /// Counts the frames of the slab that come before the one whose record has `owner`.
  static func position(_ owner: UInt32) -> UInt32 { owner >> 14 & 63 }
  static func objects(_ owner: UInt32) -> Int { Int(owner >> 20) }
  /// Whether a slab keeps its map in tables.
  static func hasTables(_ owner: UInt32) -> Bool { owner & 1 << 13 != 0 || objects(owner) > 64 }

  var cache: Int { Self.cache(record) }
  /// How many frames it has.
  var frames: Int { Int(record.owner >> 7 & 63) + 1 }
  var run: FrameRun { FrameRun(first: frame, count: PageCount(frames)) }
  var isAudited: Bool { record.owner & 1 << 13 != 0 }
  var objects: Int { Self.objects(record.owner) }
  /// Objects that are not free in the slab: with a caller, or in a magazine.
  var out: Int {
    get { Int(record.aux & Self.outBits) }
    nonmutating set { record.aux = record.aux & ~Self.outBits | UInt32(newValue) }
  }
  static var outBits: UInt32 { 0xffff }
  /// A stray write hit a free object or the map: the slab allocates no more.
  var isDamaged: Bool { record.aux & 1 << 16 != 0 }
  func markDamaged() { record.aux |= 1 << 16 }

  // MARK: The map

  /// The tables; nil when the map lies in the record.
  var tables: UnsafeMutableRawPointer? {
    Self.hasTables(record.owner) ? UnsafeMutableRawPointer(bitPattern: UInt(record.index)) : nil
  }
  /// Finds the map in the tables of a slab that has some, by the record of its first frame.
  static func tables(_ first: FrameRecordPointer) -> UnsafePointer<UInt64> {
    UnsafePointer(bitPattern: UInt(first.index)).unsafelyUnwrapped
  }
  /// Words of the map.
  var mapWords: Int { (objects + 63) >> 6 }

  /// Reads the map for objects 64 × `number` and the 63 after it: a bit for each free one.
  func free(_ number: Int) -> UInt64 {
    guard let tables else { return record.index }
    return tables.load(fromByteOffset: number * 8, as: UInt64.self) & mapBits(number)
  }
  /// Computes the bits of a word of the map that stand for objects.
  private func mapBits(_ number: Int) -> UInt64 {
    let left = objects - number << 6
    return left >= 64 ? .max : 1 << UInt64(left) - 1
  }
  /// Whether the map has as many free objects as the counts say, and no others. No stray write reaches a map in a record.
  var isMapSound: Bool {
    guard let tables else { return true }
    var count = 0
    for number in 0..<mapWords {
      let bits = tables.load(fromByteOffset: number * 8, as: UInt64.self)
      guard bits & ~mapBits(number) == 0 else { return false }
      count += bits.nonzeroBitCount
    }
    return count == objects - out
  }
  func setFree(_ number: Int, _ bits: UInt64) {
    guard let tables else { return record.index = bits }
    tables.storeBytes(of: bits, toByteOffset: number * 8, as: UInt64.self)
  }

  func isFree(_ index: Int) -> Bool { free(index >> 6) &>> UInt64(truncatingIfNeeded: index) & 1 != 0 }
  /// Whether an object is with a caller or in a magazine. Reads the counts too: they are right even if the map is not.
  func isOut(_ index: Int) -> Bool { out > 0 && !isFree(index) }
  func markFree(_ index: Int) {
    let bit: UInt64 = 1 &<< UInt64(truncatingIfNeeded: index)
    if let tables {
      tables.assumingMemoryBound(to: UInt64.self)[index >> 6] |= bit
    } else {
      record.index |= bit
    }
  }

  /// Finds the audit's entry of an object; only in an audited slab.
  func entry(_ index: Int) -> UnsafeMutablePointer<AuditEntry> {
    (tables.unsafelyUnwrapped + Self.mapBytes).assumingMemoryBound(to: AuditEntry.self) + index
  }
}

/// The record that an audited slab keeps of one object.
struct AuditEntry {
  /// The period of auditing in which the object was allocated, 0 for never. An object of an older period was perhaps
  /// freed and allocated again past the audit, so sizes and types are compared within a period only.
  var period: UInt16 = 0
  var size: UInt16 = 0
  var type: UInt16 = 0
  var allocatedAt: CallSite = .unknown
  var freedAt: CallSite = .unknown
}

/// The word in a free object.
enum FreeWord {
  /// Hashes the address (Fibonacci hashing): a word that no neighbour has.
  static func of(_ object: UnsafeMutableRawPointer) -> UInt64 {
    UInt64(UInt(bitPattern: object)) &* 0x9e37_79b9_7f4a_7c15
  }
}

/// Slabs, or other frames of one owner, that are linked through their records.
struct SlabList {
  private(set) var first = FrameNumber.none
  private(set) var count = 0

  mutating func prepend(_ slab: Slab, _ physical: FrameAllocator) {
    prepend(slab.frame, slab.record, physical)
  }

  mutating func prepend(_ frame: FrameNumber, _ record: FrameRecordPointer, _ physical: FrameAllocator) {
    record.previous = .none
    record.next = first
    if first != .none { physical.record(first).unsafelyUnwrapped.previous = frame }
    first = frame
    count += 1
  }

  mutating func remove(_ slab: Slab, _ physical: FrameAllocator) { remove(slab.record, physical) }

  mutating func remove(_ record: FrameRecordPointer, _ physical: FrameAllocator) {
    let (previous, next) = (record.previous, record.next)
    if previous == .none {
      first = next
    } else {
      physical.record(previous).unsafelyUnwrapped.next = next
    }
    if next != .none { physical.record(next).unsafelyUnwrapped.previous = previous }
    count -= 1
  }
}
