// The store of objects against a dictionary: random sizes, frees, compactions, moves of pages.

import MemoryPrimitives
import TestSupport
import XCTest

@testable import PhysicalMemory
@testable import Zsmalloc

final class ZspageModelTests: XCTestCase {
  func testHistoriesAgreeWithADictionary() throws {
    for seed in historySeeds(1, count: 12) {
      let fixture = try ZspageFixture(frames: 1024)
      try history(seed, fixture, operations: 1500, isLarge: seed % 2 == 0)
      if testRun?.failureCount ?? 0 > 0 { return print("seed \(seed)") }
    }
  }

  private func history(_ seed: UInt64, _ fixture: ZspageFixture, operations: Int, isLarge: Bool) throws {
    let store = fixture.store
    var model = StoreModel(seed: seed)
    for operation in 0..<operations {
      switch model.below(100) {
      case 0..<55:
        let length = isLarge ? 1 + model.below(4096) : 1 + model.below(1 + model.below(700))
        let bytes = model.bytes(length)
        do { model.add(try store.store(bytes), bytes) } catch { XCTAssertEqual(error, .noMemory) }
      case 55..<90:
        if !model.contents.isEmpty { store.free(model.remove(model.below(model.contents.count))) }
      case 90..<93:
        store.compact()
        expectOnePartialZspageAClass(store)
      case 93..<97: try movePages(fixture, &model)
      default:
        for _ in 0..<model.contents.count / 2 { store.free(model.remove(model.below(model.contents.count))) }
      }
      fixture.check("operation \(operation)")
      if operation % 16 == 0 { XCTAssertNil(model.difference(from: store)) }
    }
    XCTAssertNil(model.difference(from: store), "at the end")
    XCTAssertNil(fixture.physical.checkInvariants())
    while !model.contents.isEmpty { store.free(model.remove(0)) }
    fixture.expectEmpty()
  }

  /// Empties 64 frames of zspages.
  private func movePages(_ fixture: ZspageFixture, _ model: inout StoreModel) throws {
    let first = UInt32(model.below(15) * 64)
    let run = FrameRun(first: FrameNumber(first), count: PageCount(64))
    guard let isolation = try? fixture.physical.isolate(run, priority: .normal) else { return }
    let outcome = fixture.store.move(outOf: run, leaving: PageCount(8), atMost: PageCount(64))
    XCTAssertEqual(outcome.claimed, .zero)
    if outcome.lackingFrames == .zero {
      for frame in first..<(first + 64) {
        XCTAssertNotEqual(fixture.physical.whatIs(FrameNumber(frame)).role, .zspage)
      }
    }
    fixture.physical.abandon(isolation)
  }

  private func expectOnePartialZspageAClass(_ store: ZspageAllocator) {
    var partial: [Int: Int] = [:]
    let lists = store.lists.quiet
    for place in 0..<lists.pointee.zspages.indexEnd {
      guard let zspage = lists.pointee.existingZspage(place), zspage.group != .full else { continue }
      partial[zspage.sizeClass!, default: 0] += 1
    }
    XCTAssertTrue(partial.values.allSatisfy { $0 == 1 }, "\(partial)")
  }

  func testEachSizeReadsBackAtEachSlotOfItsZspage() throws {
    let fixture = try ZspageFixture(frames: 512)
    var model = StoreModel(seed: 3)
    for length in 1...4096 {
      let shape = fixture.store.classes[fixture.store.classes.number(for: length)]
      for _ in 0..<Int(shape.slots) {
        let bytes = model.bytes(length)
        model.add(try fixture.store.store(bytes), bytes)
      }
      XCTAssertNil(model.difference(from: fixture.store), "\(length)")
      if length % 64 == 0 { fixture.check("\(length)") }
      while !model.contents.isEmpty { fixture.store.free(model.remove(0)) }
    }
    fixture.expectEmpty()
  }
}
