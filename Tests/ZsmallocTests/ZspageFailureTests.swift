// Every refusal and every bug of a caller: nothing is lost, and nothing has changed.

import HostMachine
import MemoryPrimitives
import TestSupport
import XCTest

@testable import PhysicalMemory
@testable import Zsmalloc

final class ZspageFailureTests: XCTestCase {
  func testEachAllocationPointMadeToFailLeavesTheStoreAsItWas() throws {
    let fixture = try ZspageFixture()
    var model = StoreModel(seed: 5)
    var failed = 0
    for length in [1, 60, 700, 1500, 2900, 4000, 4096, 1500, 1500, 1500] {
      let bytes = model.bytes(length)
      var countdown: Int64 = 0
      while true {
        let before = FrameSnapshot(fixture.physical)
        fixture.host.failures.pointee.hasFailed = false
        fixture.host.failures.pointee.countdown = countdown
        let handle = try? fixture.store.store(bytes)
        fixture.host.failures.pointee.countdown = -1
        guard fixture.host.failures.pointee.hasFailed else {
          model.add(try XCTUnwrap(handle), bytes)
          break
        }
        XCTAssertNil(handle)
        XCTAssertEqual(FrameSnapshot(fixture.physical), before)
        fixture.check("length \(length), point \(countdown)")
        XCTAssertNil(model.difference(from: fixture.store))
        failed += 1
        countdown += 1
      }
    }
    XCTAssertGreaterThanOrEqual(failed, 20)
    print("Zsmalloc: \(failed) allocation points made to fail")
    while !model.contents.isEmpty { fixture.store.free(model.remove(0)) }
    fixture.expectEmpty()
  }

  func testAFullMachineKeepsWhatItHasAndCompactsWithoutFrames() throws {
    let fixture = try ZspageFixture(frames: 300)
    var model = StoreModel(seed: 6)
    while true {
      let bytes = model.bytes(1 + model.below(3000))
      guard let handle = try? fixture.store.store(bytes) else { break }
      model.add(handle, bytes)
    }
    XCTAssertLessThan(fixture.physical.freeCount.rawValue, 40)
    fixture.check()
    XCTAssertNil(model.difference(from: fixture.store))
    for _ in 0..<model.contents.count / 2 {
      fixture.store.free(model.remove(model.below(model.contents.count)))
    }
    // No frame for a page that lacks one: objects move only to pages that are there.
    let frames = fixture.physical.count(.zspage)
    fixture.host.failures.pointee.failsAll = true
    fixture.store.compact()
    fixture.host.failures.pointee.failsAll = false
    fixture.check()
    XCTAssertNil(model.difference(from: fixture.store))
    XCTAssertLessThanOrEqual(fixture.physical.count(.zspage), frames)
    let outcome = fixture.store.compact()
    XCTAssertEqual(outcome.leftAlone, 0)
    fixture.check()
    XCTAssertNil(model.difference(from: fixture.store))
    while !model.contents.isEmpty { fixture.store.free(model.remove(0)) }
    fixture.expectEmpty()
  }

  func testTheLimitRefusesAndNothingElse() throws {
    let fixture = try ZspageFixture()
    var model = StoreModel(seed: 7)
    fixture.store.limit = PageCount(20)
    var refused = false
    for _ in 0..<100 {
      let bytes = model.bytes(2000)
      do throws(ZsmallocError) {
        model.add(try fixture.store.store(bytes), bytes)
      } catch {
        XCTAssertEqual(error, .limitReached)
        refused = true
        break
      }
    }
    XCTAssertTrue(refused)
    XCTAssertLessThanOrEqual(fixture.store.lists.quiet.pointee.counters.pointee.frames, 20)
    XCTAssertGreaterThan(model.contents.count, 30)
    fixture.store.limit = .zero
    model.add(try fixture.store.store(model.bytes(9)), [])
    _ = model.remove(model.contents.count - 1)
    fixture.check()
  }

  func testSizesThatNoObjectHasAreRefused() throws {
    let fixture = try ZspageFixture()
    XCTAssertFails(ZsmallocError.badSize) { _ = try fixture.store.store([]) }
    XCTAssertFails(ZsmallocError.badSize) {
      _ = try fixture.store.store([UInt8](repeating: 1, count: 4097))
    }
    fixture.expectEmpty()
  }

  // MARK: A caller's bugs

  private func expectFault(
    _ kind: FaultKind, _ fixture: ZspageFixture, line: UInt = #line, _ body: () -> Void
  ) {
    let before = FrameSnapshot(fixture.physical)
    let faults = fixture.host.faults(in: body)
    XCTAssertEqual(faults.map(\.kind), [kind], line: line)
    XCTAssertEqual(FrameSnapshot(fixture.physical), before, line: line)
    fixture.check("", #filePath, line)
  }

  func testWrongHandlesAreReportedAndChangeNothing() throws {
    let fixture = try ZspageFixture()
    let store = fixture.store
    let kept = try store.store([UInt8](repeating: 3, count: 500))
    let freed = try store.store([UInt8](repeating: 4, count: 500))
    store.free(freed)
    expectFault(.notAllocated, fixture) { XCTAssertFalse(store.free(freed)) }
    expectFault(.notAllocated, fixture) { XCTAssertNil(store.bytes(of: freed)) }
    for raw in [
      0, 1, 500 << 32, kept.rawValue + 1, kept.rawValue | 0xffff_ffff, 7 << 32 | 0x00f0_0000,
    ] as [UInt64] {
      expectFault(.notAllocated, fixture) { XCTAssertFalse(store.free(ZspageHandle(rawValue: raw))) }
    }
    // Longer than its slot, of no length, and longer than any object.
    for length in [3000, 0, 5000, 0x7fff_ffff] as [UInt64] {
      let wrong = ZspageHandle(rawValue: length << 32 | kept.rawValue & 0xffff_ffff)
      expectFault(.wrongSize, fixture) { XCTAssertFalse(store.free(wrong)) }
      expectFault(.wrongSize, fixture) { XCTAssertNil(store.withParts(of: wrong) { _ in 1 }) }
    }
    XCTAssertEqual(store.bytes(of: kept), [UInt8](repeating: 3, count: 500))
    store.free(kept)
    expectFault(.notAllocated, fixture) { XCTAssertFalse(store.free(kept)) }
    fixture.expectEmpty()
  }

  func testAPinnedZspageIsPassedOverAndMovedLater() throws {
    let fixture = try ZspageFixture(frames: 1024)
    let store = fixture.store
    var model = StoreModel(seed: 8)
    for _ in 0..<60 {
      let bytes = model.bytes(1500)
      model.add(try store.store(bytes), bytes)
    }
    for _ in 0..<30 { store.free(model.remove(model.below(model.contents.count))) }
    let handle = model.contents[0].handle
    let all = FrameRun(first: FrameNumber(0), count: PageCount(64))
    store.withParts(of: handle) { parts in
      let before = parts.first.map { $0 }
      for start in stride(from: UInt32(0), to: 1024, by: 64) {
        let run = FrameRun(first: FrameNumber(start), count: all.count)
        guard let isolation = try? fixture.physical.isolate(run, priority: .normal) else { continue }
        _ = store.move(outOf: run, leaving: PageCount(8), atMost: PageCount(64))
        fixture.physical.abandon(isolation)
      }
      XCTAssertEqual(parts.first.map { $0 }, before)
    }
    fixture.check()
    XCTAssertNil(model.difference(from: store))
    // A compaction tries a zspage with a reader for a while, and leaves its class alone.
    let outcome = store.withParts(of: handle) { _ in store.compact() }
    XCTAssertNil(model.difference(from: store))
    XCTAssertLessThanOrEqual(try XCTUnwrap(outcome).leftAlone, 1)
    XCTAssertEqual(store.compact().leftAlone, 0)
    fixture.check()
  }
}
