// How kmem checks words: each must name an object of one cache that is out of its slab.
//
// A processor checks all words of a magazine under the cache's lock and with interrupts off, so a word may cost only
// about 40 instructions. An `ObjectFinder` therefore keeps the values that most words share: the form of the slabs that
// the cache makes, and the records of the pageblock in which the previous word lies. It trusts no bit of a word: a word
// that is no object leads to no memory but the table of sections, records of frames, and a map of this cache.
//
// The answer holds as long as the lock is held: no object of the cache leaves its slab or returns. A slab that is being
// made or released has no object out, so a word that names it is wrong.

import MemoryPrimitives
import PhysicalMemory

/// An object that is out of its slab, by the slab's first frame and its number there.
struct ObjectOut {
  let frame: FrameNumber
  let record: FrameRecordPointer
  let index: Int
}

/// Finds the objects of one cache that words name. For use under the cache's lock, which is held as long.
struct ObjectFinder {
  private let cache: CachePointer
  private let physical: FrameAllocator
  private let directMap: DirectMap
  private let reciprocal: UInt64
  /// `owner` in the records of most slabs of the cache; the fields below follow from it.
  private let plainOwner: UInt32
  private let objects: UInt64
  private let hasTables: Bool
  private var records = PageblockRecords()

  @inline(__always) init(_ cache: CachePointer) {
    self.cache = cache
    physical = cache.physical
    directMap = cache.machine.directMap
    reciprocal = cache.descriptor.reciprocal
    plainOwner = cache.descriptor.plainOwner
    objects = UInt64(truncatingIfNeeded: Slab.objects(plainOwner))
    hasTables = Slab.hasTables(plainOwner)
  }

  /// Finds the object whose address `word` is, if that is out of its slab.
  @inline(__always) mutating func objectOut(_ word: UInt) -> ObjectOut? {
    let address = directMap.physicalAddress(of: VirtualAddress(UInt64(word))).rawValue
    let number = address &>> Page.shift
    guard var record = records.record(number) ?? recordElsewhere(number), record.isOwners(.slab) else {
      return nil
    }
    var offset = address & (Page.size - 1)
    var position: UInt32 = 0
    let owner = record.owner
    if owner != plainOwner {
      guard owner & ~Slab.positionBits == plainOwner else { return rareObjectOut(word) }
      position = Slab.position(owner)
      record = record.before(position)
      offset |= UInt64(position) &<< Page.shift
    }
    // The upper half is the quotient, exact for offsets below 2^15. For a multiple of the spacing the lower half is
    // the quotient times less than the spacing, so below 2^15; every other offset adds the reciprocal at least, 2^17.
    let product = offset &* reciprocal
    let index = product &>> 32
    guard UInt32(truncatingIfNeeded: product) < 1 << 17, index < objects, record.aux & Slab.outBits != 0
    else { return nil }
    let free = hasTables ? Slab.tables(record)[Int(truncatingIfNeeded: index &>> 6)] : record.index
    guard free &>> index & 1 == 0 else { return nil }
    return ObjectOut(
      frame: FrameNumber(UInt32(truncatingIfNeeded: number) &- position), record: record,
      index: Int(truncatingIfNeeded: index))
  }

  /// Finds the record of a frame outside the pageblock of the previous word; nil when it has none.
  @inline(__always) private mutating func recordElsewhere(_ number: UInt64) -> FrameRecordPointer? {
    guard number < UInt64(FrameNumber.limit) else { return nil }
    records = physical.validRecords(around: FrameNumber(UInt32(truncatingIfNeeded: number)))
    return records.record(number)
  }

  /// Does `objectOut` for any slab: an audited one, one of fewer frames than the cache prefers, one of another cache.
  @inline(never) private func rareObjectOut(_ word: UInt) -> ObjectOut? {
    guard let location = cache.kmem.locate(VirtualAddress(UInt64(word))),
      location.mistake(cache.cacheIndex) == nil,
      location.slab.isOut(location.index)
    else { return nil }
    return ObjectOut(frame: location.slab.frame, record: location.slab.record, index: location.index)
  }
}
