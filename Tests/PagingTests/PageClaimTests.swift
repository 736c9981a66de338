import HostMachine
import MemoryPrimitives
import PageTables
import TestSupport
import XCTest

@testable import MemoryPrimitives
@testable import Paging
@testable import PhysicalMemory

/// A page becomes busy by a compare-and-swap, and only then does the thread acquire the lock of its object. These tests
/// let other processors act between the two, and while the page is under way.
final class PageClaimTests: XCTestCase {
  /// A small machine on which pages 0 to 5 of an area are in memory, clean, with a copy in swap, and shown once more
  /// by a second range. Few frames are free.
  private struct Bed {
    let system: TestSystem
    let area: Area
    let other: Area

    init() throws {
      system = try TestSystem(runs: [(256, 160)], swap: 64)
      system.setTarget(10)
      area = try system.area(6)
      try system.fill(area)
      system.launderAll()
      system.dropCached()
      other = try system.show(area.object)
      try system.verify(area)
      try system.verify(other)
      _ = system.takeAll(leaving: 50)
    }

    var run: FrameRun { FrameRun(first: FrameNumber(256), count: PageCount(UInt64(160))) }

    func move(_ clean: CleanPages) {
      _ = system.paging.move(
        outOf: run, leaving: .zero, clean: clean, atMost: PageCount(UInt64(160)))
    }
    func launder() { _ = system.paging.launder(outOf: run, .all, atMost: PageCount(UInt64(160))) }
    func runDaemon() {
      system.setTarget(64)
      system.paging.runDaemon()
      system.setTarget(10)
    }
  }

  /// Runs `act`, and `late` at the n-th moment (from 0) at which `act` has made `page` busy and not yet acquired the lock
  /// of its object. So does a thread with that lock that found the page unused. Returns whether there was such a moment.
  private func act(
    _ act: (Bed) -> Void, in bed: Bed, at n: Int, afterClaimOf page: UInt64,
    late: @escaping () -> Void
  ) -> Bool {
    let record = bed.system.physical.knownRecord(bed.system.frame(bed.area, page))
    let lock = bed.area.object.storage
    var flags: PageFlags?
    var moment = 0
    var happened = false
    func claimed(_ word: UnsafeRawPointer) {
      let isLocked = lock.pointee.core.lock.word.load(ordering: .relaxed) != 0
      guard word == record.busyAtomic, record.busyWord.isBusy, !isLocked else { return }
      flags = flags ?? record.pageFlags
    }
    func interrupt() {
      guard let before = flags, !happened else { return }
      // The changes of `act` under the lock are visible here.
      guard record.busyWord.isBusy, record.pageFlags == before,
        bed.system.mapping(bed.area, page) != nil
      else {
        flags = nil
        return
      }
      happened = moment == n
      moment += 1
      guard happened else { return }
      let busyWord = record.busyWord
      // The thread has looked before; a shared page is none that it waits for.
      if busyWord.isXbusy { record.busyWord = .none }
      late()
      if busyWord.isXbusy { record.busyWord = busyWord }
    }
    bed.system.host.withInterrupts(seed: 0, oneIn: 1, handler: interrupt) {
      bed.system.host.withClaims(.atOnce, handler: claimed) { act(bed) }
    }
    return happened
  }

  func testAPageThatBecomesDirtyBetweenItsClaimAndTheLockKeepsItsContents() throws {
    let acts: [(String, (Bed) -> Void)] = [
      ("a move", { $0.move(.move) }),
      ("a move that discards clean pages", { $0.move(.discard) }),
      ("a laundry run of frames", { $0.launder() }),
      ("a laundry run of all queues", { $0.system.launderAll() }),
      ("the page daemon", { $0.runDaemon() }),
    ]
    var windows = 0
    for (name, operation) in acts {
      for page in [0, 3] as [UInt64] {
        var n = 0
        while true {
          let bed = try Bed()
          let system = bed.system
          let note = "page \(page) dirtied in \(name) at moment \(n)"
          var happened = false
          let faults = system.host.faults {
            happened = act(
              operation, in: bed, at: n, afterClaimOf: page,
              late: { try! system.write(bed.area, page, 77) })
          }
          XCTAssertEqual(faults.count, 0, "\(faults.first.map { "\($0.what)" } ?? ""), \(note)")
          if !happened { break }
          for _ in 0..<2 {
            for other in 0..<6 as Range<UInt64> {
              let stamp = other == page ? 77 : 1000 + other
              XCTAssertTrue(try system.holds(bed.area, other, stamp), "page \(other), \(note)")
              XCTAssertTrue(try system.holds(bed.other, other, stamp), "page \(other), \(note)")
            }
            system.check(note)
            // Once more from swap.
            system.launderAll()
            system.dropCached()
          }
          n += 1
        }
        windows += n
      }
    }
    XCTAssertGreaterThan(windows, 2)
  }

  /// A range goes while pages that it showed are on their way to other frames.
  func testAMovedPageIsNotShownInARangeThatHasGone() throws {
    var moments = 0
    while true {
      let bed = try Bed()
      let system = bed.system
      let happened = system.preempting(
        at: moments, { system.hide(bed.other) }, { bed.move(.move) })
      if !happened { system.hide(bed.other) }
      for page in 0..<6 as Range<UInt64> {
        XCTAssertNil(system.mapping(bed.other, page), "page \(page), gone at moment \(moments)")
      }
      // The addresses are another's now.
      let next = try system.area(6)
      for page in 0..<6 as Range<UInt64> { XCTAssertTrue(try system.holds(next, page, 0)) }
      try system.verify(bed.area)
      system.check("moment \(moments)")
      if !happened { break }
      moments += 1
    }
    XCTAssertGreaterThan(moments, 2)
  }

  /// A range begins to go, and its pages are unmapped, while they are on their way: none is shown there again.
  func testAMovedPageIsNotShownInARangeThatHasBegunToGo() throws {
    var moments = 0
    while true {
      let bed = try Bed()
      let system = bed.system
      let entry = system.paging.withMap { $0.find(bed.other.address.rawValue)! }
      let happened = system.preempting(
        at: moments,
        {
          entry.pointee.isGoing = true
          for page in 0..<6 as Range<UInt64> { _ = system.paging.tables.remove(bed.other[page]) }
        }, { bed.move(.move) })
      if !happened { break }
      for page in 0..<6 as Range<UInt64> {
        XCTAssertNil(system.mapping(bed.other, page), "page \(page), moment \(moments)")
      }
      entry.pointee.isGoing = false
      system.buffer.invalidate(0, 1 << 52)
      try system.verify(bed.area)
      system.check("moment \(moments)")
      moments += 1
    }
    XCTAssertGreaterThan(moments, 2)
  }

  /// Each operation, with another one in its middle, as soon as a page is claimed: the other leaves it alone.
  func testAClaimKeepsAPageFromEveryOther() throws {
    let acts: [(String, (Bed) -> Void)] = [
      ("move", { $0.move(.move) }), ("discard", { $0.move(.discard) }),
      ("launder", { $0.launder() }),
      ("daemon", { $0.runDaemon() }),
    ]
    for (name, act) in acts {
      for (otherName, other) in acts {
        let bed = try Bed()
        let system = bed.system
        let record = system.physical.knownRecord(system.frame(bed.area, 2))
        var times = 0
        let faults = system.host.faults {
          system.host.withClaims(
            .unlocked,
            handler: { word in
              guard word == record.busyAtomic, record.busyWord.isBusy, times == 0 else { return }
              times += 1
              let (owner, index) = (record.owner, record.index)
              other(bed)
              XCTAssertEqual(record.owner, owner, "\(otherName) in \(name)")
              XCTAssertEqual(record.index, index, "\(otherName) in \(name)")
            }
          ) { act(bed) }
        }
        XCTAssertEqual(faults.count, 0, "\(otherName) in \(name)")
        XCTAssertEqual(times, 1, name)
        try system.verify(bed.area, "\(otherName) in \(name)")
        try system.verify(bed.other, "\(otherName) in \(name)")
        system.check("\(otherName) in \(name)")
      }
    }
  }

  /// A page is faulted on, and written to, between the moment at which its object has released it and that at which its
  /// frame is free: the old content of the frame does not pass for the page afterwards.
  func testAPageThatIsWantedWhileItsFrameBecomesFreeKeepsItsContents() throws {
    for access in [AccessKind.read, .write] {
      let bed = try Bed()
      let system = bed.system
      let record = system.physical.knownRecord(system.frame(bed.area, 2))
      var times = 0
      let faults = system.host.faults {
        system.host.withClaims(
          .unlocked,
          handler: { word in
            guard word == record.busyAtomic, record.busyWord == .captured else { return }
            times += 1
            XCTAssertTrue(try! system.holds(bed.area, 2, 1002))
            if access == .write { try! system.write(bed.area, 2, 55) }
          }
        ) { bed.move(.discard) }
      }
      XCTAssertEqual(faults.count, 0)
      XCTAssertEqual(times, 1)
      let stamp: UInt64 = access == .write ? 55 : 1002
      for _ in 0..<3 {
        XCTAssertTrue(try system.holds(bed.other, 2, stamp))
        XCTAssertTrue(try system.holds(bed.area, 2, stamp))
        system.check()
        system.launderAll()
      }
      system.dropCached()
      XCTAssertTrue(try system.holds(bed.area, 2, stamp))
    }
  }
}
