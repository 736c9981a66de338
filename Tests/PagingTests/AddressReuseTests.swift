// Addresses of a range that was unmapped while its pages were on their way, and that are used again at once.

import HostMachine
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import XCTest

@testable import Paging

final class AddressReuseTests: XCTestCase {
  private static let pages: UInt64 = 6

  /// An object in consecutive frames, and two ranges of it.
  private struct Setting {
    let system: TestSystem
    let area: Area
    let other: Area
    let run: FrameRun

    init() throws {
      system = try TestSystem(frames: 900, swap: 64)
      area = try system.area(AddressReuseTests.pages)
      try system.lineUpFrames()
      try system.fill(area)
      other = try system.show(area.object)
      for page in 0..<AddressReuseTests.pages { try system.write(other, page, 1000 + page) }
      let frames = (0..<AddressReuseTests.pages).map { [system, area] in system.frame(area, $0) }.sorted()
      run = FrameRun(first: frames[0], count: PageCount(AddressReuseTests.pages))
    }
  }

  /// Runs `act` once for each moment at which no lock is held; `other` comes in between at that moment.
  private func atEachMoment(
    prepare: (Setting) -> Void = { _ in }, _ act: (Setting) -> Void, _ other: (Setting, Int) -> Void,
    check: (Setting, Int) throws -> Void
  ) throws {
    var moment = 0
    var isThere = true
    while isThere {
      let setting = try Setting()
      prepare(setting)
      isThere = withoutActuallyEscaping(other) { other in
        setting.system.preempting(at: moment, { other(setting, moment) }) { act(setting) }
      }
      setting.system.check("moment \(moment)")
      try check(setting, moment)
      moment += 1
    }
    XCTAssertGreaterThan(moment, 4)
  }

  private func move(_ setting: Setting) {
    let physical = setting.system.physical
    guard let isolation = try? physical.isolate(setting.run, priority: .interrupt) else {
      return XCTFail("not isolated")
    }
    let outcome = setting.system.paging.move(
      outOf: setting.run, leaving: .zero, clean: .move, atMost: PageCount(UInt64.max))
    XCTAssertEqual(outcome.moved, setting.run.count)
    physical.abandon(isolation)
  }

  /// Unmaps the second range, and lets kernel memory have its address.
  private func reuse(_ setting: Setting, _ moment: Int) {
    let (system, other) = (setting.system, setting.other)
    system.hide(other)
    do {
      let address = try system.space.allocateWired(PageCount(Self.pages), from: .kernel)
      XCTAssertEqual(address, other.address, "another address: the test tests nothing")
      for page in 0..<Self.pages {
        let frame = system.buffer.reach(address + PageCount(page), .write, system.memory.pageTables)
        XCTAssertEqual(
          frame, system.tables.translate(address + PageCount(page))?.physical.frame,
          "page \(page) of new kernel memory leads to a page of paging, moment \(moment)")
      }
    } catch { XCTFail("\(error)") }
  }

  func testKernelMemoryAtAnAddressWhosePagesMoveHasItsOwnFrames() throws {
    try atEachMoment(move, reuse) { setting, _ in try setting.system.verify(setting.area) }
  }

  /// Clean pages, which were read a moment ago, are reclaimed: by laundering, and out of a run.
  func testKernelMemoryAtAnAddressWhosePagesAreReclaimedHasItsOwnFrames() throws {
    func makeClean(_ setting: Setting) {
      setting.system.launderAll()
      for page in 0..<Self.pages {
        XCTAssertEqual(try? setting.system.holds(setting.area, page, 1000 + page), true)
        XCTAssertEqual(try? setting.system.holds(setting.other, page, 1000 + page), true)
      }
    }
    try atEachMoment(prepare: makeClean, { $0.system.launderAll() }, reuse) { setting, _ in
      try setting.system.verify(setting.area)
    }
    try atEachMoment(
      prepare: makeClean,
      {
        _ = $0.system.paging.move(
          outOf: $0.run, leaving: .zero, clean: .discard, atMost: PageCount(UInt64.max))
      }, reuse
    ) { setting, _ in try setting.system.verify(setting.area) }
  }

  func testAReadOnlyRangeInPlaceOfAWritableOneIsNotWritable() throws {
    try atEachMoment(
      move,
      { setting, _ in
        setting.system.hide(setting.other)
        let next = try? setting.system.show(setting.area.object, .kernelReadOnly)
        XCTAssertEqual(next?.address, setting.other.address, "another address: the test tests nothing")
      },
      check: { setting, moment in
        for page in 0..<Self.pages
        where setting.system.paging.range(endingFrom: setting.other.address)?.protection == .kernelReadOnly {
          let mapping = setting.system.mapping(setting.other, page)
          XCTAssertFalse(
            mapping?.isWritable == true, "page \(page) of a read-only range is writable, moment \(moment)")
        }
        try setting.system.verify(setting.area)
      })
  }
}
