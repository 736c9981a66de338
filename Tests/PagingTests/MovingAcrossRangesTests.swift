// Pages that are mapped by more ranges than one hold of their object's lock visits, and ranges that go and come between
// two holds.

import HostMachine
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import XCTest

@testable import Paging

/// An object of a few pages in consecutive frames, mapped by so many ranges that each page is moved in a hold of its own.
private final class ManyRanges {
  static let pages: UInt64 = 3
  static let count = 66

  let system: TestSystem
  let object: MemoryObject
  /// The frames that the pages are moved out of.
  let old: FrameRun
  /// Ranges that exist; those that were mapped last come first in the object's list.
  private(set) var areas: [Area] = []
  /// Ranges that were unmapped.
  private var gone: [Area] = []

  init() throws {
    system = try TestSystem(frames: 900, swap: 64)
    let first = try system.area(Self.pages)
    object = first.object
    areas = [first]
    try system.lineUpFrames()
    try system.fill(first)
    let frames = (0..<Self.pages).map { [system] in system.frame(first, $0) }.sorted()
    old = FrameRun(first: frames[0], count: PageCount(Self.pages))
    XCTAssertEqual(frames.last!, old.first + PageCount(Self.pages - 1), "the frames are no run")
    for _ in 1..<Self.count { areas.append(try system.show(object)) }
    for area in areas { try system.verify(area) }
  }

  /// Unmaps a range: the tables have no page of it afterwards.
  func hide(_ number: Int) {
    let area = areas.remove(at: number)
    system.hide(area)
    gone.append(area)
    for page in 0..<Self.pages { XCTAssertNil(system.mapping(area, page), "page \(page), just unmapped") }
  }

  /// Maps another range, and reads those of its pages that are not on their way.
  func show(_ protection: Protection = .kernelData) {
    do {
      let area = try system.show(object, protection)
      areas.append(area)
      gone.removeAll { $0.address == area.address }
      for page in 0..<Self.pages where !system.place(area, page).busyWord.isXbusy {
        XCTAssertTrue(try system.holds(area, page, 1000 + page), "page \(page) of a new range")
      }
    } catch { XCTFail("\(error)") }
  }

  /// Checks that no address leads to an old frame, by the tables or by the buffer, and that all ranges have the contents.
  func check(_ note: String) throws {
    system.check(note)
    for page in 0..<Self.pages {
      for area in gone {
        XCTAssertNil(system.mapping(area, page), "page \(page), \(note)")
        XCTAssertNil(system.buffer.find(area[page].rawValue >> Page.shift, .read), "page \(page), \(note)")
      }
      let frame = system.frame(areas[0], page)
      XCTAssertFalse(old.contains(frame), "page \(page) has not moved, \(note)")
      for area in areas {
        if let mapping = system.mapping(area, page) {
          XCTAssertEqual(mapping.frame, frame, "page \(page), \(note)")
        }
        if let frame = system.buffer.reach(area[page], .read, system.memory.pageTables) {
          XCTAssertFalse(old.contains(frame), "a stale translation of page \(page), \(note)")
        }
      }
    }
    for area in areas { try system.verify(area, note) }
  }
}

final class MovingAcrossRangesTests: XCTestCase {
  /// Moves the pages out of their frames once for each moment at which no lock is held; `change` happens at that moment.
  /// Returns the number of moments.
  private func moveAtEachMoment(_ name: String, _ change: (ManyRanges) -> Void) throws -> Int {
    var moments = 0
    var isThere = true
    while isThere {
      let ranges = try ManyRanges()
      let system = ranges.system
      let isolation = try system.physical.isolated(ranges.old, priority: .interrupt)
      isThere = withoutActuallyEscaping(change) { change in
        system.preempting(at: moments, { change(ranges) }) {
          let outcome = system.paging.move(
            outOf: ranges.old, leaving: .zero, clean: .move, atMost: PageCount(UInt64.max))
          XCTAssertEqual(outcome.moved, ranges.old.count, "\(name), moment \(moments)")
        }
      }
      XCTAssertNotNil(system.physical.finish(isolation))
      try ranges.check("\(name), moment \(moments)")
      system.physical.free(ranges.old)
      moments += 1
    }
    // Each page has a hold of its own for its unmapping, and one for its new frame.
    XCTAssertGreaterThan(moments, 2 * Int(ManyRanges.pages))
    return moments
  }

  func testARangeGoesBetweenTwoHolds() throws {
    // The range that is first in the object's list is entered again at once; the others by faults.
    for (name, number) in [("the first", ManyRanges.count - 1), ("one inside", 30), ("the last", 0)] {
      let moments = try moveAtEachMoment("\(name) goes") { $0.hide(number) }
      print("\(name) of \(ManyRanges.count) ranges went at each of \(moments) moments")
    }
  }

  func testARangeComesBetweenTwoHolds() throws {
    _ = try moveAtEachMoment("one comes") { $0.show() }
    _ = try moveAtEachMoment("a read-only one comes") { $0.show(.kernelReadOnly) }
  }

  /// The new range may get the addresses of the one that went.
  func testARangeTakesThePlaceOfAnotherBetweenTwoHolds() throws {
    for number in [ManyRanges.count - 1, 30] {
      _ = try moveAtEachMoment("one goes and one comes") {
        $0.hide(number)
        $0.show()
      }
    }
  }
}
