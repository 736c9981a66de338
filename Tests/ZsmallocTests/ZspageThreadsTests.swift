// Threads that read the same objects, while others store and free beside them, compact, and move their pages.

import HostMachine
import MemoryPrimitives
import Synchronization
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory
@testable import Zsmalloc

final class ZspageThreadsTests: XCTestCase {
  /// The byte of an object at a position.
  private static func byte(_ object: Int, _ at: Int) -> UInt8 {
    UInt8(truncatingIfNeeded: object &* 37 &+ at &* 11)
  }

  private static func bytes(_ object: Int, _ length: Int) -> [UInt8] { (0..<length).map { byte(object, $0) } }

  private static func isIntact(_ parts: ObjectParts, _ object: Int) -> Bool {
    for (at, byte) in parts.first.enumerated() where byte != Self.byte(object, at) { return false }
    for (at, byte) in parts.second.enumerated() where byte != Self.byte(object, parts.first.count + at) {
      return false
    }
    return true
  }

  func testObjectsThatAllReadStayThemselvesWhileTheyAreMoved() throws {
    let fixture = try ZspageFixture(frames: 2048, processors: 4)
    let (store, physical) = (fixture.store, fixture.physical)
    let seed = historySeed(21)
    // Every third of many, so that zspages are sparse, and objects of neighbouring classes.
    let kept = try (0..<60).map { object -> (handle: ZspageHandle, length: Int) in
      let length = 1 + (object &* 397) % 3600
      return (try store.store(Self.bytes(object, length)), length)
    }
    let ended = Atomic<Int>(0)
    let wrong = Atomic<Int>(0)
    fixture.host.onThreads(4) { number in
      var random = SeededRandom(seed: seed &+ UInt64(number))
      for turn in 0..<1500 {
        switch number {
        case 0, 1:
          let object = Int(random.below(UInt64(kept.count)))
          if store.withParts(of: kept[object].handle, { Self.isIntact($0, object) }) != true {
            wrong.add(1, ordering: .relaxed)
          }
        case 2: Self.churn(store, &random, turn)
        default:
          store.compact()
          Self.movePages(of: store, physical, &random)
        }
      }
      ended.add(1, ordering: .releasing)
      idle { ended.load(ordering: .acquiring) == 4 }
    }
    XCTAssertEqual(wrong.load(ordering: .relaxed), 0)
    fixture.check()
    for (object, one) in kept.enumerated() {
      XCTAssertEqual(store.bytes(of: one.handle), Self.bytes(object, one.length))
      store.free(one.handle)
    }
    fixture.expectEmpty()
  }

  /// Stores objects of the kept ones' classes, and frees them.
  private static func churn(_ store: ZspageAllocator, _ random: inout SeededRandom, _ turn: Int) {
    let handles = (0..<12).compactMap { _ in try? store.store(Self.bytes(turn, 1 + Int(random.below(3600)))) }
    handles.forEach { store.free($0) }
  }

  private static func movePages(
    of store: ZspageAllocator, _ physical: FrameAllocator, _ random: inout SeededRandom
  ) {
    let run = FrameRun(first: FrameNumber(UInt32(random.below(31) * 64)), count: PageCount(UInt64(64)))
    guard let isolation = try? physical.isolate(run, priority: .normal) else { return }
    _ = store.move(outOf: run, leaving: PageCount(UInt64(8)), atMost: run.count)
    physical.abandon(isolation)
  }
}
