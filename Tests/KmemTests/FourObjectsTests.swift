// Every sequence of six operations on an object cache that has memory for four objects, against a list of these.

import MemoryPrimitives
import TestSupport
import XCTest

@testable import Kmem
@testable import PhysicalMemory

/// A cache whose slab is a frame with four objects, on a machine with two free frames. The other one is for kmem's own
/// memory: a magazine, or, while the cache is audited, the records of the slab's objects.
private struct FourObjects: SmallWorld {
  private enum Operation: Int, CaseIterable {
    case alloc, drain, trim
  }

  private struct Object {
    var pointer: UnsafeMutableRawPointer
    var stamp: UInt8
  }

  private static let capacity = 4
  /// Four and the words behind the last one fill a frame, so a slab has as many objects with the audit as without.
  private static let size = 1016

  private let fixture: KmemFixture
  private let cache: ObjectCache
  private let type: MemoryType
  private let auditing: Auditing
  private let wired: [FrameNumber]
  private var live: [Object] = []
  private var nextStamp: UInt8 = 0
  private(set) var granted = 0
  private(set) var refused = 0
  private(set) var reported = 0

  init(_ auditing: Auditing) throws {
    fixture = try KmemFixture()
    let kmem = fixture.kmem
    type = fixture.type()
    cache = try kmem.createCache(name: ShortName("four"), size: ByteCount(Self.size))
    self.auditing = auditing
    cache.setAudit(auditing)
    let object = try XCTUnwrap(cache.alloc(type: type))
    cache.free(object, type: type)
    kmem.drain()
    let physical = fixture.physical
    try physical.setReserve(.zero, for: .normal)
    var wired: [FrameNumber] = []
    while physical.freeCount > 2 {
      wired.append(try physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt))
    }
    self.wired = wired
  }

  /// With the audit, each live object can be freed twice, too.
  var choices: Int { Operation.allCases.count + live.count * (auditing == .on ? 2 : 1) }

  mutating func carryOut(_ choice: Int) -> String? {
    switch Operation(rawValue: choice) {
    case .alloc: return allocate()
    case .drain:
      cache.drain()
      return nil
    case .trim:
      fixture.kmem.trim()
      return nil
    case nil:
      let number = choice - Operation.allCases.count
      return number < live.count ? free(number, times: 1) : free(number - live.count, times: 2)
    }
  }

  private mutating func allocate() -> String? {
    guard let pointer = cache.alloc(type: type) else {
      refused += 1
      return live.count == Self.capacity ? nil : "refused while \(live.count) objects are live"
    }
    granted += 1
    if live.count == Self.capacity { return "a fifth object" }
    // No two overlap, and all lie in one frame.
    for other in live where abs(pointer - other.pointer) < Self.size { return "objects overlap" }
    let address = UInt(bitPattern: pointer)
    if address % 4096 + UInt(Self.size) > 4096 { return "an object across the end of a frame" }
    nextStamp = nextStamp % 255 + 1
    memset(pointer, Int32(nextStamp), Self.size)
    live.append(Object(pointer: pointer, stamp: nextStamp))
    return nil
  }

  private mutating func free(_ number: Int, times: Int) -> String? {
    let object = live.remove(at: number)
    if !isIntact(object) { return "a live object was written to" }
    cache.free(object.pointer, type: type)
    guard times > 1 else { return nil }
    // The second free is reported and changes nothing, which the check sees.
    let faults = fixture.host.faults { cache.free(object.pointer, type: type) }
    reported += faults.count
    return faults.map(\.kind) == [.doubleFree] ? nil : "a double free was reported as \(faults.map(\.kind))"
  }

  private func isIntact(_ object: Object) -> Bool {
    object.pointer.load(as: UInt8.self) == object.stamp
      && memcmp(object.pointer, object.pointer + 1, Self.size - 1) == 0
  }

  func check() -> String? {
    if let broken = fixture.kmem.checkInvariants() { return "invariant \(broken)" }
    for object in live where !isIntact(object) { return "a live object was written to" }
    let use = fixture.kmem.describe(type)
    if use.inUse != UInt64(live.count) { return "\(use.inUse) objects in use, not \(live.count)" }
    // A slab exists while an object lives.
    let slabs = fixture.physical.count(.slab).rawValue
    return slabs <= 1 && slabs >= (live.isEmpty ? 0 : 1) ? nil : "\(slabs) slabs"
  }

  mutating func reset() -> String? {
    while !live.isEmpty {
      if let wrong = free(live.count - 1, times: 1) { return wrong }
    }
    fixture.kmem.drain()
    return fixture.physical.freeCount == 2 ? nil : "a drain has not released all memory"
  }

  /// Frees the wired frames and checks that nothing is left.
  func finish() {
    for frame in wired { fixture.physical.free(frame, BlockOrder(0)) }
    fixture.kmem.destroy(cache)
    fixture.expectEmpty()
  }
}

final class FourObjectsTests: XCTestCase {
  private struct Mistake: Error { let text: String }

  private func walk(_ auditing: Auditing) throws -> SequenceWalk<FourObjects> {
    var walk = SequenceWalk(of: 6, in: try FourObjects(auditing))
    if let wrong = walk.run() { throw Mistake(text: wrong) }
    walk.world.finish()
    let (granted, refused) = (walk.world.granted, walk.world.refused)
    print("4 objects: sequences by length \(walk.visited); \(granted) granted, \(refused) refused")
    XCTAssertGreaterThan(granted, 5_000)
    XCTAssertGreaterThan(refused, 5)
    return walk
  }

  /// The number of sequences of each length: it follows from the number of live objects alone.
  private func expected(frees: Int) -> [Int] {
    var byLive = [1, 0, 0, 0, 0]
    var counts = [0]
    for _ in 0..<6 {
      var next = [0, 0, 0, 0, 0]
      for (live, count) in byLive.enumerated() {
        next[min(live + 1, 4)] += count
        next[live] += 2 * count
        if live > 0 { next[live - 1] += frees * live * count }
      }
      byLive = next
      counts.append(next.reduce(0, +))
    }
    return counts
  }

  func testEverySequenceOfSixOperationsAllocatesFourObjectsAtMost() throws {
    let walk = try walk(.off)
    XCTAssertEqual(walk.visited, expected(frees: 1))
    XCTAssertEqual(walk.world.reported, 0)
  }

  func testEverySequenceOfSixOperationsWithTheAuditReportsEachDoubleFree() throws {
    let walk = try walk(.on)
    XCTAssertEqual(walk.visited, expected(frees: 2))
    XCTAssertGreaterThan(walk.world.reported, 1_000)
  }
}
