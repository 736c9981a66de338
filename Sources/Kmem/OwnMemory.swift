// Memory that kmem itself writes and reads: magazines, and the tables of slabs.
//
// It lies in frames where no caller has an object. The first 64 bytes of each frame stay unused, so a write that runs
// over the end of an object by up to 64 bytes reaches none of it. A write that runs further does. So does a write to an
// object that its caller freed before the frame became kmem's own. kmem therefore checks maps and magazines before it
// relies on them. KmemAllocator.swift names the changes that it does not see: above all the words in a processor's own two magazines.
//
// A frame is cut into chunks of one size; its record keeps the map of its free chunks:
//
//   owner    number of the size
//   index    the map, a bit for each free chunk
//   links    the list of frames that have a free chunk
//
// A frame without a chunk in use is freed at once. The pages are counted under the type `kmem`, as large requests.

import MemoryPrimitives
import PhysicalMemory

/// The frames with free chunks, by size. Plain data under a lock.
struct OwnMemory {
  /// How many sizes there are.
  static var sizes: Int { 7 }
  /// Bytes at the start of each frame that stay unused.
  static var unused: Int { 64 }
  /// The largest chunk.
  static var largest: Int { size(sizes - 1) }

  private(set) var lists: InlineArray<7, SlabList> = .init { _ in SlabList() }
  /// Chunks in use, of all sizes.
  private(set) var inUse = 0
  /// Frames.
  private(set) var frames = 0

  /// Computes the bytes of a chunk: powers of two for magazines, and the sizes that cut a frame into 3, 2 and 1.
  static func size(_ number: Int) -> Int {
    switch number {
    case 0...3: 64 << number
    case 4: 1344
    case 5: 2016
    default: 4032
    }
  }

  /// Finds the smallest size of at least `bytes`, which is no more than the largest.
  static func number(holding bytes: Int) -> Int {
    precondition(bytes <= largest)
    var number = 0
    while size(number) < bytes { number += 1 }
    return number
  }

  /// Computes the map of a frame whose chunks are all free.
  static func allFree(_ number: Int) -> UInt64 {
    1 << UInt64((Int(Page.size) - unused) / size(number)) - 1
  }

  /// Allocates a chunk; answers its frame and the byte where it starts there. Nil when no frame has one.
  mutating func allocate(_ number: Int, _ physical: FrameAllocator) -> (FrameNumber, Int)? {
    let frame = lists[number].first
    guard frame != .none else { return nil }
    let record = physical.record(frame).unsafelyUnwrapped
    let chunk = record.index.trailingZeroBitCount
    record.index &= record.index - 1
    if record.index == 0 { lists[number].remove(record, physical) }
    inUse += 1
    return (frame, Self.unused + chunk * Self.size(number))
  }

  /// Frees a chunk. Answers true when the frame has none in use any more; the caller then frees the frame.
  mutating func free(_ frame: FrameNumber, at offset: Int, _ physical: FrameAllocator) -> Bool {
    let record = physical.record(frame).unsafelyUnwrapped
    let number = Int(record.owner)
    let bit: UInt64 = 1 << UInt64((offset - Self.unused) / Self.size(number))
    precondition(record.index & bit == 0, "a chunk of kmem's own memory was freed twice")
    if record.index == 0 { lists[number].prepend(frame, record, physical) }
    record.index |= bit
    inUse -= 1
    guard record.index == Self.allFree(number) else { return false }
    lists[number].remove(record, physical)
    frames -= 1
    return true
  }

  /// Adds a frame whose chunks are all free.
  mutating func add(_ frame: FrameNumber, _ number: Int, _ physical: FrameAllocator) {
    let record = physical.record(frame).unsafelyUnwrapped
    // The queue comes first: the words behind it name no owner from then on.
    record.queue = .owner
    record.owner = UInt32(number)
    record.aux = 0
    record.index = Self.allFree(number)
    lists[number].prepend(frame, record, physical)
    frames += 1
  }

  /// Checks KM-8 for the frames with free chunks: nil when it holds.
  func checkInvariants(_ physical: FrameAllocator) -> StaticString? {
    for number in 0..<Self.sizes {
      var (next, previous, count) = (lists[number].first, FrameNumber.none, 0)
      while next != .none {
        guard count < lists[number].count, let record = physical.record(next), record.previous == previous
        else {
          return "KM-8: a list of kmem's own frames is damaged"
        }
        if record.role != .kmem || record.owner != UInt32(number) || record.index & ~Self.allFree(number) != 0
          || record.index == 0 || record.index == Self.allFree(number)
        {
          return "KM-8: a frame of kmem's own is on the wrong list"
        }
        count += 1
        previous = next
        next = record.next
      }
      if count != lists[number].count { return "KM-8: a list of kmem's own frames is shorter than counted" }
    }
    return nil
  }
}

extension KmemAllocator {
  /// Allocates a chunk of at least `bytes`, aligned to 8 bytes (to 64 when its size is a power of two). Nil without memory.
  /// No lock of rank `kmemSlabs` may be held.
  func allocateOwn(_ bytes: Int, priority: AllocationPriority) -> UnsafeMutableRawPointer? {
    let number = OwnMemory.number(holding: bytes)
    let physical = state.physical
    while true {
      if let (frame, offset) = state.own.withLock({ $0.allocate(number, physical) }) {
        return state.machine.directMap.pointer(to: frame) + offset
      }
      guard !state.machine.failsHere(.kmem),
        let frame = try? physical.allocateUnlogged(BlockOrder(0), role: .kmem, priority: priority, for: owner)
      else { return nil }
      ownType.countAllocation(CacheIndex.large)
      ownType.countAllocation(CacheIndex.largePages)
      state.own.withLock { $0.add(frame, number, physical) }
    }
  }

  /// Frees a chunk that `allocateOwn` returned.
  func freeOwn(_ chunk: UnsafeMutableRawPointer) {
    let physical = state.physical
    let address = state.machine.directMap.physicalAddress(of: VirtualAddress(chunk))
    let frame = address.frame
    guard state.own.withLock({ $0.free(frame, at: Int(address.offsetInPage), physical) }) else {
      return
    }
    physical.record(frame).unsafelyUnwrapped.queue = .none
    physical.free(frame, BlockOrder(0))
    ownType.countFree(CacheIndex.large)
    ownType.countFree(CacheIndex.largePages)
  }
}
