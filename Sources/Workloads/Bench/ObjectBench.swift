// Benches of objects: pairs, batches, and replacement in random order over many live objects.

import CPlatform
import MemoryPrimitives

/// Which sizes a pattern of replacements has.
@frozen @usableFromInline package enum ObjectSizes: UInt8, Sendable {
  /// 64 bytes.
  case one
  /// 8 to 256 bytes.
  case small
  /// 16 to 4096 bytes.
  case mixed

  /// A size by chance. Each doubling is as likely as the next, and within it each size.
  func choose(_ random: inout SeededRandom) -> UInt32 {
    func among(_ lowest: UInt64, _ doublings: UInt64) -> UInt32 {
      let start = lowest << random.below(doublings)
      return UInt32(start + 1 + random.below(start))
    }
    switch self {
    case .one: return 64
    case .small: return among(8, 5)
    case .mixed: return among(16, 8)
    }
  }
}

/// A place for a live object.
@frozen @usableFromInline package struct ObjectSlot {
  @usableFromInline var object: UnsafeMutableRawPointer?
  @usableFromInline var size: UInt32

  @inlinable init(object: UnsafeMutableRawPointer?, size: UInt32) {
    self.object = object
    self.size = size
  }
}

/// A replacement: which slot gets an object of which size.
@frozen @usableFromInline package struct ObjectReplacement {
  @usableFromInline var slot: UInt32
  @usableFromInline var size: UInt32
}

/// The bodies. Each is inlined into its caller, with the size that the caller writes there.
@usableFromInline package enum ObjectBench {
  /// `count` times an allocation of `size` bytes and a free.
  @inline(always)
  package static func pairs<A: BenchAllocator>(_ allocator: A, _ size: UInt64, _ count: Int) {
    var left = count
    while left > 0 {
      let object = cp_opaque(allocator.allocate(size))
      allocator.free(object, size)
      left &-= 1
    }
  }

  /// The same with a size that the compiler does not know.
  @inline(always)
  package static func variablePairs<A: BenchAllocator>(_ allocator: A, _ size: UInt64, _ count: Int) {
    var left = count
    while left > 0 {
      let size = cp_opaque_number(size)
      let object = cp_opaque(allocator.allocate(size))
      allocator.free(object, size)
      left &-= 1
    }
  }

  /// `count` times 64 allocations of 64 bytes, then 64 frees in the order of the allocations.
  @inline(always)
  package static func batches<A: BenchAllocator>(
    _ allocator: A, _ objects: UnsafeMutablePointer<UnsafeMutableRawPointer?>, _ count: Int
  ) {
    for _ in 0..<count {
      for i in 0..<64 { objects[i] = cp_opaque(allocator.allocate(64)) }
      for i in 0..<64 { allocator.free(objects[i].unsafelyUnwrapped, 64) }
    }
  }

  /// Fills `slots` with objects of the pattern's sizes, and `steps` with replacements that go on from there: both
  /// depend on the seed only.
  @inlinable package static func fill<A: BenchAllocator>(
    _ allocator: A, _ slots: UnsafeMutableBufferPointer<ObjectSlot>,
    _ steps: UnsafeMutableBufferPointer<ObjectReplacement>, _ sizes: ObjectSizes, seed: UInt64
  ) {
    plan(slots, steps, sizes, seed: seed)
    for i in 0..<slots.count { slots[i].object = allocator.allocate(UInt64(slots[i].size)) }
  }

  @usableFromInline static func plan(
    _ slots: UnsafeMutableBufferPointer<ObjectSlot>, _ steps: UnsafeMutableBufferPointer<ObjectReplacement>,
    _ sizes: ObjectSizes, seed: UInt64
  ) {
    var random = SeededRandom(seed: seed)
    for i in 0..<slots.count { slots[i] = ObjectSlot(object: nil, size: sizes.choose(&random)) }
    for i in 0..<steps.count {
      let slot = UInt32(random.below(UInt64(slots.count)))
      steps[i] = ObjectReplacement(slot: slot, size: sizes.choose(&random))
    }
  }

  /// Carries out all replacements `rounds` times: each frees the object of a slot and allocates another for it.
  @inline(always)
  package static func replace<A: BenchAllocator>(
    _ allocator: A, _ slots: UnsafeMutableBufferPointer<ObjectSlot>,
    _ steps: UnsafeMutableBufferPointer<ObjectReplacement>, rounds: Int
  ) {
    let (slots, first) = (slots.baseAddress.unsafelyUnwrapped, steps.baseAddress.unsafelyUnwrapped)
    for _ in 0..<rounds {
      for i in 0..<steps.count {
        let step = first[i]
        let slot = slots + Int(step.slot)
        allocator.free(slot.pointee.object.unsafelyUnwrapped, UInt64(slot.pointee.size))
        slot.pointee = ObjectSlot(
          object: cp_opaque(allocator.allocate(UInt64(step.size))), size: step.size)
      }
    }
  }

  /// Frees all of `slots`.
  @inlinable package static func empty<A: BenchAllocator>(
    _ allocator: A, _ slots: UnsafeMutableBufferPointer<ObjectSlot>
  ) {
    for i in 0..<slots.count { allocator.free(slots[i].object.unsafelyUnwrapped, UInt64(slots[i].size)) }
  }
}
