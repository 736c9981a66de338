// Random histories against a model: every live object keeps its stamp and overlaps no other, and the invariants
// hold after each step.

import HostMachine
import MemoryPrimitives
import Synchronization
import TestSupport
import Workloads
import XCTest

@testable import Kmem
@testable import PhysicalMemory

final class KmemHistoryTests: XCTestCase {
  /// One step of a history: allocates or frees in `live`.
  private func step(
    _ rig: KmemFixture, _ random: inout SeededRandom, _ live: inout [LiveObject], caches: [ObjectCache],
    types: [MemoryType], most: Int, note: String
  ) {
    if live.isEmpty || (live.count < most && random.below(100) < 55) {
      let type = types[Int(random.below(UInt64(types.count)))]
      let priority: AllocationPriority = [.normal, .system, .interrupt][Int(random.below(3))]
      let stamp = UInt8(truncatingIfNeeded: random.next())
      var object: LiveObject
      if !caches.isEmpty && random.oneIn(3) {
        let cache = caches[Int(random.below(UInt64(caches.count)))]
        guard let pointer = cache.alloc(type: type, priority: priority) else { return }
        object = LiveObject(
          pointer: pointer, size: Int(cache.objectSize.rawValue), type: type, cache: cache, stamp: stamp)
      } else {
        let size = random.oneIn(20) ? random.below(20000) : random.below(1 << (1 + random.below(12)))
        let zeroed = random.oneIn(4)
        let pointer =
          zeroed
          ? rig.kmem.zalloc(ByteCount(size), type: type, priority: priority)
          : rig.kmem.alloc(ByteCount(size), type: type, priority: priority)
        guard let pointer else { return }
        object = LiveObject(pointer: pointer, size: Int(size), type: type, cache: nil, stamp: stamp)
        if zeroed && !object.isLarge {
          for i in 0..<object.size where pointer.load(fromByteOffset: i, as: UInt8.self) != 0 {
            XCTFail("zalloc gave what is not zero: \(note)")
            break
          }
        }
      }
      for other in live where other.overlaps(object) { XCTFail("objects overlap: \(note)") }
      object.fill()
      live.append(object)
    } else {
      let index = Int(random.below(UInt64(live.count)))
      let object = live[index]
      live.swapAt(index, live.count - 1)
      live.removeLast()
      XCTAssertTrue(object.isIntact, "a stamp is gone: \(note)")
      object.free(rig.kmem)
    }
  }

  func testRandomHistoriesKeepEveryStampAndInvariant() throws {
    let seed = historySeed(1)
    for round in 0..<8 {
      var random = SeededRandom(seed: seed &+ UInt64(round))
      let rig = try KmemFixture(frames: 300, processors: 2)
      let types = [rig.type("a"), rig.type("b")]
      let caches = [
        try rig.kmem.createCache(name: ShortName("c40"), size: ByteCount(40)),
        try rig.kmem.createCache(name: ShortName("c1184"), size: ByteCount(1184), alignment: Alignment(64)!),
        try rig.kmem.createCache(name: ShortName("c5000"), size: ByteCount(5000)),
        try rig.kmem.createCache(
          name: ShortName("constructed"), size: ByteCount(72), construct: { _, _ in },
          destruct: { _, _ in }),
      ]
      var live: [LiveObject] = []
      for turn in 0..<3000 {
        let note = "STRATA_SEED=\(seed), round \(round), turn \(turn)"
        rig.host.runAs(processor: Int(random.below(2))) {
          switch random.below(200) {
          case 0: rig.kmem.drain()
          case 1: rig.kmem.setAudit(random.oneIn(2) ? .on : .off)
          case 2...3: caches[Int(random.below(4))].setAudit(random.oneIn(2) ? .on : .off)
          case 4: _ = rig.kmem.reclaim(ReclaimStep(rawValue: UInt8(random.below(4)))!)
          case 5...7: rig.kmem.trim()
          default: step(rig, &random, &live, caches: caches, types: types, most: 150, note: note)
          }
        }
        rig.check(note)
      }
      let used = live.reduce(UInt64(0)) { sum, object in
        let size =
          object.isLarge
          ? ByteCount(object.size).pagesRoundedUp.bytes.rawValue
          : UInt64(rig.kmem.locate(VirtualAddress(object.pointer))!.cache.chunk)
        return sum + size
      }
      XCTAssertEqual(
        rig.kmem.describe(types[0]).bytes.rawValue + rig.kmem.describe(types[1]).bytes.rawValue, used)
      for object in live {
        XCTAssertTrue(object.isIntact)
        object.free(rig.kmem)
      }
      rig.kmem.setAudit(.off)
      for cache in caches { rig.kmem.destroy(cache) }
      rig.expectEmpty()
    }
  }

  func testALongHistoryOnALargerMachineKeepsAllInvariants() throws {
    let seed = historySeed(77)
    var random = SeededRandom(seed: seed)
    let rig = try KmemFixture(frames: 16384)
    let types = [rig.type("a"), rig.type("b"), rig.type("c")]
    var live: [(pointer: UnsafeMutableRawPointer, size: Int, type: MemoryType)] = []
    for turn in 0..<1_500_000 {
      let wants = live.count < 4000 && (random.below(100) < (turn / 20_000 % 2 == 0 ? 60 : 40))
      if live.isEmpty || wants {
        let size = Int(random.below(1 << (3 + random.below(10))))
        let type = types[turn % 3]
        let pointer = rig.kmem.alloc(ByteCount(size), type: type)!
        if size >= 8 {
          pointer.storeBytes(of: UInt64(UInt(bitPattern: pointer)) ^ UInt64(size), as: UInt64.self)
        }
        live.append((pointer, size, type))
      } else {
        let index = Int(random.below(UInt64(live.count)))
        let object = live[index]
        live.swapAt(index, live.count - 1)
        live.removeLast()
        if object.size >= 8 {
          XCTAssertEqual(
            object.pointer.load(as: UInt64.self),
            UInt64(UInt(bitPattern: object.pointer)) ^ UInt64(object.size),
            "STRATA_SEED=\(seed), turn \(turn)")
        }
        rig.kmem.free(object.pointer, size: ByteCount(object.size), type: object.type)
      }
      if turn % 25_000 == 0 { rig.check("STRATA_SEED=\(seed), turn \(turn)") }
    }
    for object in live { rig.kmem.free(object.pointer, size: ByteCount(object.size), type: object.type) }
    rig.expectEmpty()
  }

  func testInterruptsAllocateAndFree() throws {
    let seed = historySeed(5)
    let rig = try KmemFixture(frames: 300)
    let types = [rig.type("thread"), rig.type("interrupt")]
    let cache = try rig.kmem.createCache(name: ShortName("c40"), size: ByteCount(40))
    var random = SeededRandom(seed: seed)
    var interruptRandom = SeededRandom(seed: seed &+ 1)
    var live: [LiveObject] = []
    var interruptLive: [LiveObject] = []
    rig.host.withInterrupts(
      seed: seed, oneIn: 3,
      handler: {
        self.step(
          rig, &interruptRandom, &interruptLive, caches: [cache], types: [types[1]], most: 40,
          note: "STRATA_SEED=\(seed), interrupt")
      }
    ) {
      for turn in 0..<20_000 {
        step(
          rig, &random, &live, caches: [cache], types: [types[0]], most: 60,
          note: "STRATA_SEED=\(seed), turn \(turn)")
        if turn % 100 == 50 { rig.kmem.drain() }
        if turn % 500 == 250 { rig.kmem.setAudit(turn % 1000 == 250 ? .on : .off) }
      }
    }
    rig.check()
    for object in live { for other in interruptLive { XCTAssertFalse(object.overlaps(other)) } }
    for object in live + interruptLive {
      XCTAssertTrue(object.isIntact)
      object.free(rig.kmem)
    }
    rig.kmem.setAudit(.off)
    rig.kmem.destroy(cache)
    rig.expectEmpty()
  }

  func testOneProcessorAllocatesAndAnotherFrees() throws {
    let rig = try KmemFixture(frames: 4096, processors: 2)
    let types = [rig.type("a"), rig.type("b")]
    let kmem = rig.kmem
    let both = types
    let exchange = Exchange()
    rig.host.onThreads(2) { me in
      var random = SeededRandom(seed: UInt64(me) &+ 31)
      for turn in 0..<60_000 {
        if random.oneIn(2) {
          let size = Int(random.below(1 << (3 + random.below(9))))
          if let pointer = kmem.alloc(ByteCount(size), type: both[me]) {
            if size > 0 { pointer.storeBytes(of: UInt8(truncatingIfNeeded: size), as: UInt8.self) }
            exchange.put(pointer, size, me)
          }
        } else if let object = exchange.take() {
          if object.size > 0 {
            XCTAssertEqual(object.pointer.load(as: UInt8.self), UInt8(truncatingIfNeeded: object.size))
          }
          kmem.free(object.pointer, size: ByteCount(object.size), type: both[object.owner])
        }
        if me == 1 && turn % 4000 == 2000 { kmem.drain() }
        if me == 0 && turn % 5000 == 2500 { kmem.setAudit(turn % 10_000 == 2500 ? .on : .off) }
      }
    }
    rig.check()
    while let object = exchange.take() {
      rig.kmem.free(object.pointer, size: ByteCount(object.size), type: types[object.owner])
    }
    rig.kmem.setAudit(.off)
    rig.expectEmpty()
  }

  // MARK: Failing at every point

  /// Makes each allocation point of `body` fail in turn; `body` answers whether it was refused.
  private func failEach(
    _ rig: KmemFixture, _ what: String, prepare: () -> Void = {}, _ body: () -> Bool
  ) -> (points: Int, refusals: Int) {
    var (points, refusals) = (0, 0)
    while true {
      rig.kmem.drain()
      prepare()
      let (used, out) = (rig.kmem.usedBytes, rig.kmem.describe(rig.kmem.ownType).bytes)
      rig.host.failures.pointee.hasFailed = false
      rig.host.failures.pointee.countdown = Int64(points)
      let refused = body()
      rig.host.failures.pointee.countdown = -1
      rig.check("\(what), point \(points)")
      XCTAssertNil(rig.physical.checkInvariants())
      guard rig.host.failures.pointee.hasFailed else { return (points, refusals) }
      points += 1
      if refused {
        refusals += 1
        let kept = rig.kmem.describe(rig.kmem.ownType).bytes
        XCTAssertEqual(
          rig.kmem.usedBytes.rawValue - kept.rawValue, used.rawValue - out.rawValue,
          "\(what), point \(points)")
      }
      guard points < 100 else {
        XCTFail("\(what) passes points without end")
        return (points, refusals)
      }
    }
  }

  func testEachPointThatFailsLeavesEverythingAsItWas() throws {
    let rig = try KmemFixture(frames: 1024)
    let type = rig.type()
    var total = (points: 0, refusals: 0)
    func count(_ result: (points: Int, refusals: Int)) {
      total.points += result.points
      total.refusals += result.refusals
    }
    for auditing in [Auditing.off, .on] {
      rig.kmem.setAudit(auditing)
      for priority in [AllocationPriority.normal, .interrupt] {
        for size in [1, 64, 100, 1152, 4096, 10000, 20000] {
          count(
            failEach(rig, "alloc \(size)") {
              guard let object = rig.kmem.alloc(ByteCount(size), type: type, priority: priority) else {
                return true
              }
              rig.kmem.free(object, size: ByteCount(size), type: type)
              return false
            })
          count(
            failEach(rig, "zalloc \(size)") {
              guard let object = rig.kmem.zalloc(ByteCount(size), type: type, priority: priority) else {
                return true
              }
              rig.kmem.free(object, size: ByteCount(size), type: type)
              return false
            })
        }
      }
      // A free must not fail, whatever does.
      for size in [8, 64, 1152, 4096] {
        var objects: [UnsafeMutableRawPointer] = []
        let result = failEach(
          rig, "free \(size)",
          prepare: { objects = (0..<150).map { _ in rig.kmem.alloc(ByteCount(size), type: type)! } }
        ) {
          for object in objects { rig.kmem.free(object, size: ByteCount(size), type: type) }
          XCTAssertEqual(rig.kmem.describe(type).inUse, 0)
          return false
        }
        count(result)
      }
    }
    rig.kmem.setAudit(.off)
    var made = 0
    count(
      failEach(rig, "createCache") {
        // A new page of descriptors is needed once in eight.
        guard (try? rig.kmem.createCache(name: ShortName("c"), size: ByteCount(64))) != nil else {
          return true
        }
        made += 1
        return false
      })
    var number = 0
    count(
      failEach(rig, "type") {
        number += 1
        let name = Array("t\(number)".utf8).withUnsafeBufferPointer { ShortName(bytes: $0) }
        return rig.kmem.type(named: name) == rig.kmem.otherType
      })
    print("kmem: \(total.points) allocation points failed in turn, \(total.refusals) requests refused")
    XCTAssertGreaterThan(total.points, 50)
    XCTAssertGreaterThan(total.refusals, 20)
  }
}

/// Objects on their way from one thread to another.
private final class Exchange: @unchecked Sendable {
  private let lock = NSLock()
  private var objects: [(pointer: UnsafeMutableRawPointer, size: Int, owner: Int)] = []

  func put(_ pointer: UnsafeMutableRawPointer, _ size: Int, _ owner: Int) {
    lock.withLock { objects.append((pointer, size, owner)) }
  }
  func take() -> (pointer: UnsafeMutableRawPointer, size: Int, owner: Int)? {
    lock.withLock { objects.isEmpty ? nil : objects.removeFirst() }
  }
}
