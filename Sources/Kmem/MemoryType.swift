// Types: the users of memory, as malloc(9) has them. Each type has a row of counters for each processor, with one pair for
// each size class and cache.
//
// An allocation costs one increment, a free another: the objects in use, their bytes, the requests and the sizes all
// derive from the pairs. The processor that frees counts the free, so a single pair may look negative; sums over
// processors are exact when nothing runs.

import CPlatform
import MemoryPrimitives
import Synchronization

/// The token of a type, as `KmemAllocator.type(named:)` returns it. Belongs to the instance that made it.
@frozen public struct MemoryType: Equatable {
  /// Processor 0's row: a header, then the counters; the other processors' rows follow it.
  @usableFromInline let row: UnsafeMutableRawPointer
  init(row: UnsafeMutableRawPointer) { self.row = row }

  /// Bytes of one processor's row.
  @inlinable static var stride: Int { 2048 }
  @inlinable static var countersOffset: Int { 64 }

  /// Finds a pair of counters by its place: the processor's row and sixteen times the cache index.
  @inlinable @inline(__always) func counters(at place: Int) -> UnsafeMutablePointer<TypeCounters> {
    (row + (place &+ Self.countersOffset)).assumingMemoryBound(to: TypeCounters.self)
  }
  func counters(_ processor: Int, _ cacheIndex: Int) -> UnsafeMutablePointer<TypeCounters> {
    counters(at: KmemAllocator.place(processor, cacheIndex * 16))
  }

  var header: UnsafeMutablePointer<TypeHeader> { row.assumingMemoryBound(to: TypeHeader.self) }
  /// The number of the type, in the order in which they were made.
  public var index: UInt16 { header.pointee.index }
  /// The name that it was made with.
  public var name: ShortName { header.pointee.name }

  /// Counts an allocation of `amount` in `cacheIndex`.
  func countAllocation(_ cacheIndex: Int, _ amount: UInt64 = 1) {
    withInterruptsOff { counters(Int(cp_processor_index()), cacheIndex).pointee.allocations.add(amount) }
  }
  /// Counts a free of `amount` in `cacheIndex`.
  func countFree(_ cacheIndex: Int, _ amount: UInt64 = 1) {
    withInterruptsOff { counters(Int(cp_processor_index()), cacheIndex).pointee.frees.add(amount) }
  }

  /// Sums the allocations and frees of all processors at one index.
  func sums(_ cacheIndex: Int, processors: Int) -> (allocations: UInt64, frees: UInt64) {
    var (allocations, frees): (UInt64, UInt64) = (0, 0)
    // Frees first: an object freed in between was allocated before. So the difference never looks negative by more than
    // the operations under way.
    for processor in 0..<processors { frees &+= counters(processor, cacheIndex).pointee.frees.value }
    for processor in 0..<processors {
      allocations &+= counters(processor, cacheIndex).pointee.allocations.value
    }
    return (allocations, frees)
  }
}

/// A pair of counters that one processor writes.
@frozen @usableFromInline struct TypeCounters: ~Copyable {
  @usableFromInline let allocations: Counter
  @usableFromInline let frees: Counter
}

/// The header before processor 0's counters.
struct TypeHeader: ~Copyable {
  let name: ShortName
  let index: UInt16
  /// The type made next, by the address of its row; 0 for none yet.
  let next: Atomic<UInt>
  /// The limit, by its address; 0 for a type without one.
  let limit = Atomic<UInt>(0)
  /// The most bytes in use of all samples.
  let peakBytes = Atomic<UInt64>(0)

  var nextRow: UnsafeMutableRawPointer? {
    UnsafeMutableRawPointer(bitPattern: next.load(ordering: .acquiring))
  }
}

extension KmemAllocator {
  /// Types that an instance can distinguish; further names share the type `other`.
  package static var typeLimit: Int { 200 }

  /// Finds the type called `name`; the first call makes it. Never fails: without memory for another row of counters, or
  /// with too many types, the answer is the type `other`. One pass over the types.
  public func type(named name: ShortName) -> MemoryType {
    if let found = findType({ $0.name == name }) { return found }
    // A row that was carved is never freed.
    guard state.registry.withLock({ $0.types < Self.typeLimit }) else { return otherType }
    guard let row = carve(ByteCount(typeRowBytes), priority: .normal) else { return otherType }
    return add(type: name, row: row) ?? otherType
  }

  /// The type that stands for those without a row of their own.
  package var otherType: MemoryType { MemoryType(row: state.otherType) }
  /// The type of kmem's own memory.
  var ownType: MemoryType { MemoryType(row: state.ownType) }

  var typeRowBytes: Int { MemoryType.stride * state.machine.processorCount }

  /// Adds a type behind the last one; nil when there are too many. If another processor has added one of that name at
  /// the same time, answers that one, and the row is lost.
  private func add(type name: ShortName, row: UnsafeMutableRawPointer) -> MemoryType? {
    state.registry.withLock { registry -> MemoryType? in
      var last = otherType
      while true {
        if last.name == name { return last }
        guard let next = last.header.pointee.nextRow else { break }
        last = MemoryType(row: next)
      }
      guard registry.types < Self.typeLimit else { return nil }
      let type = KmemAllocator.makeType(name, index: registry.types, row: row, bytes: typeRowBytes)
      last.header.pointee.next.store(UInt(bitPattern: row), ordering: .releasing)
      registry.types += 1
      return type
    }
  }

  static func makeType(_ name: ShortName, index: Int, row: UnsafeMutableRawPointer, bytes: Int) -> MemoryType
  {
    row.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
    row.bindMemory(to: TypeHeader.self, capacity: 1)
      .initialize(to: TypeHeader(name: name, index: UInt16(index), next: Atomic(0)))
    return MemoryType(row: row)
  }

  /// Finds the type with this number, if there is one.
  package func type(at index: UInt16) -> MemoryType? { findType { $0.index == index } }

  private func findType(_ isWanted: (MemoryType) -> Bool) -> MemoryType? {
    var next: UnsafeMutableRawPointer? = state.otherType
    while let row = next {
      let type = MemoryType(row: row)
      if isWanted(type) { return type }
      next = type.header.pointee.nextRow
    }
    return nil
  }

  /// Visits the tokens of all types in the order in which they were made.
  package func forEachTypeToken(_ body: (MemoryType) -> Void) {
    _ = findType {
      body($0)
      return false
    }
  }
}

// All state behind a handle is under a lock, atomic, or belongs to one processor.
extension MemoryType: @unchecked Sendable {}
