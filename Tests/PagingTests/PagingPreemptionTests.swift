import HostMachine
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import XCTest

@testable import Paging
@testable import Workloads

/// Every operation, and every other one in its middle: at each moment at which the first one holds no lock, the other
/// is carried out as another processor would. In every order no stamp is lost, no wire or hold
/// is broken, and all invariants hold.
final class PagingPreemptionTests: XCTestCase {
  /// Six pages: dirty, clean with a copy, cached, in swap, read as zero, untouched; shown by two ranges.
  private final class Bed {
    let system: TestSystem
    let a: Area
    let b: Area
    let stamps: [UInt64] = [1, 2, 3, 4, 0, 0]
    /// The value of one word of each page, beside its stamp.
    var marks: [UInt64] = [0, 0, 0, 0, 0, 0]
    private var lastMark: UInt64 = 0
    var wiredPages: [UInt64] = []
    var heldFrames: [(UInt64, FrameNumber)] = []

    init(_ system: TestSystem) throws {
      self.system = system
      a = try system.area(6)
      b = try system.show(a.object)
      for page in 1..<4 as Range<UInt64> { try system.write(a, page, page + 1) }
      system.launderAll()
      system.dropCached()
      XCTAssertTrue(try system.holds(a, 1, 2))
      try system.write(a, 0, 1)
      XCTAssertTrue(try system.holds(b, 0, 1))
      XCTAssertTrue(try system.holds(a, 4, 0))
      XCTAssertTrue(try system.holds(a, 2, 3))
      let run = FrameRun(first: system.frame(a, 2), count: .one)
      XCTAssertEqual(system.paging.launder(outOf: run, .all, atMost: .one).freed, .one)
      XCTAssertEqual(system.place(a, 2).place, .cached)
      XCTAssertEqual(system.place(a, 3).place, .swapped)
    }

    /// Whether someone would have to wait for the page, which who is interrupted has.
    func isBusy(_ page: UInt64) -> Bool { system.place(a, page).busyWord.isXbusy }

    private static let mark = ByteCount(UInt64(512))

    /// Runs `body`, which may fail for lack of a frame.
    private func unlessShort(_ body: () throws(PagingError) -> Void) {
      do throws(PagingError) {
        try body()
      } catch {
        XCTAssertEqual(error, .noMemory)
      }
    }

    func write(_ page: UInt64, by area: Area? = nil) {
      lastMark += 1
      let mark = lastMark
      if isBusy(page) {
        // A processor may use its TLB entries until a shootdown.
        guard let frame = system.buffer.find((area ?? a)[page].rawValue >> Page.shift, .write) else { return }
        system.words(frame)[64] = mark
        marks[Int(page)] = mark
        return
      }
      unlessShort { () throws(PagingError) in
        try system.processor.store((area ?? a)[page] + Self.mark, mark)
        marks[Int(page)] = mark
      }
    }
    func read(_ page: UInt64) {
      guard !isBusy(page) else { return }
      unlessShort { () throws(PagingError) in
        let mark = try system.processor.load(b[page] + Self.mark)
        XCTAssertEqual(mark, marks[Int(page)])
      }
    }
    func wire(_ page: UInt64) {
      guard !isBusy(page) else { return }
      unlessShort { () throws(PagingError) in
        try system.paging.wire(a[page], .one, holes: .forbidden)
        wiredPages.append(page)
      }
    }
    func hold(_ page: UInt64) {
      guard !isBusy(page) else { return }
      unlessShort { () throws(PagingError) in
        heldFrames.append((page, try system.paging.hold(a[page], .write)))
      }
    }
    private func isRight(_ page: UInt64, _ area: Area) throws -> Bool {
      let isStampRight = try system.holds(area, page, stamps[Int(page)])
      return try isStampRight && system.processor.load(area[page] + Self.mark) == marks[Int(page)]
    }
    func unwireAll() {
      let pages = wiredPages
      wiredPages = []
      for page in pages { system.paging.unwire(a[page], .one) }
    }
    func unholdAll() {
      let frames = heldFrames
      heldFrames = []
      for (_, frame) in frames { system.paging.unhold(frame) }
    }
    func move(_ clean: CleanPages) {
      _ = system.paging.move(
        outOf: FrameRun(first: FrameNumber(256), count: PageCount(160)), leaving: .zero, clean: clean,
        atMost: PageCount(160))
    }

    /// Wired pages are mapped writable where they were, and held pages are where they were, so that their users go on.
    func close(_ note: String) throws {
      for page in wiredPages {
        let what = system.place(a, page)
        XCTAssertEqual(what.place, .resident, note)
        XCTAssertGreaterThan(what.busyWord.wires, 0, note)
        XCTAssertTrue(what.flags.contains(.dirty), "a wired page is not dirty, \(note)")
        XCTAssertEqual(system.mapping(a, page)?.isWritable, true, "a wired page would fault, \(note)")
        XCTAssertEqual(system.mapping(a, page)?.frame, what.frame, note)
      }
      for (page, frame) in heldFrames {
        let what = system.place(a, page)
        XCTAssertEqual(what.frame, frame, "a held page was moved, \(note)")
        XCTAssertTrue(what.flags.contains(.dirty), "a page held for writing is not dirty, \(note)")
        lastMark += 1
        marks[Int(page)] = lastMark
        system.words(frame)[64] = lastMark
      }
      system.check(note)
      unwireAll()
      unholdAll()
      for page in 0..<6 as Range<UInt64> {
        XCTAssertTrue(try isRight(page, a), "page \(page), \(note)")
        XCTAssertTrue(try isRight(page, b), "page \(page), \(note)")
      }
      system.launderAll()
      system.dropCached()
      for page in 0..<6 as Range<UInt64> {
        XCTAssertTrue(try isRight(page, a), "page \(page) from swap, \(note)")
      }
      system.check(note)
      system.hide(b)
      system.release(a)
    }
  }

  private typealias Act = (String, (Bed) -> Void)

  /// The operations on page `page`, or on all.
  private static func acts(_ page: UInt64) -> [Act] {
    [
      ("read \(page)", { $0.read(page) }),
      ("write \(page)", { $0.write(page) }),
      ("write \(page) by the other range", { $0.write(page, by: $0.b) }),
      ("wire \(page)", { $0.wire(page) }),
      ("hold \(page)", { $0.hold(page) }),
    ]
  }
  private static var wide: [Act] {
    [
      ("launder", { $0.system.launderAll() }),
      (
        "launder a run",
        {
          _ = $0.system.paging.launder(
            outOf: FrameRun(first: FrameNumber(256), count: PageCount(160)), .all, atMost: PageCount(160))
        }
      ),
      ("move", { $0.move(.move) }),
      ("move, drop", { $0.move(.discard) }),
      ("take all frames", { $0.system.dropCached() }),
      (
        "daemon",
        {
          $0.system.setTarget(64)
          $0.system.paging.runDaemon()
          $0.system.setTarget(10)
        }
      ),
    ]
  }

  private func cross(_ firsts: [Act], _ seconds: [Act], _ line: UInt = #line) throws {
    let system = try TestSystem(runs: [(256, 160)], swap: 64)
    system.setTarget(10)
    let aside = system.takeAll(leaving: 50)
    defer { system.giveBack(aside) }
    var moments = 0
    for (firstName, first) in firsts {
      for (secondName, second) in seconds {
        var n = 0
        while true {
          let bed = try Bed(system)
          let note = "\(secondName) in \(firstName) at moment \(n)"
          var happened = false
          let faults = system.host.faults {
            happened = system.preempting(at: n, { second(bed) }, { first(bed) })
          }
          if let fault = faults.first { return XCTFail("\(fault.what): \(note)", line: line) }
          try bed.close(note)
          if !happened { break }
          n += 1
          moments += 1
          guard n < 2000 else { return XCTFail("moments without end, \(note)") }
        }
      }
    }
    XCTAssertGreaterThan(moments, 5, line: line)
  }

  func testPagesAreUsedInTheMiddleOfLaunderingAndMoving() throws {
    try cross(Self.wide, (0..<5).flatMap { Self.acts($0) })
  }

  func testPagesAreReclaimedAndMovedInTheMiddleOfFaults() throws {
    try cross((0..<6).flatMap { Self.acts($0) }, Self.wide)
  }

  func testPagesAreUsedInTheMiddleOfFaults() throws {
    for page in 0..<6 as Range<UInt64> { try cross(Self.acts(page), Self.acts(page)) }
  }

  func testPagesAreReclaimedAndMovedInTheMiddleOfLaunderingAndMoving() throws {
    try cross(Self.wide, Self.wide)
  }

  func testPagesAreUnwiredAndReleasedInTheMiddleOfLaunderingAndMoving() throws {
    let letGo: [Act] = [
      ("unwire", { $0.unwireAll() }), ("unhold", { $0.unholdAll() }),
    ]
    // As a first step the page is wired or held, then everybody tries to have it while it is let go.
    for (name, claim) in [("wired", { $0.wire(0) }), ("held", { $0.hold(0) })] as [Act] {
      for first in Self.wide {
        try cross(
          [
            (
              "\(first.0) of a page that is \(name)",
              {
                claim($0); first.1($0)
              }
            )
          ], letGo)
      }
      for second in Self.wide + Self.acts(0) {
        try cross(
          letGo.map { act in
            (
              "\(act.0) of a page that is \(name)",
              {
                claim($0); act.1($0)
              }
            )
          }, [second])
      }
    }
  }

  /// Between the removal of a range from the tables and the end of its TLB shootdown its pages
  /// are reclaimed: no processor may still reach their frames.
  func testPagesOfARangeThatIsBeingUnmappedAreInvalidatedBeforeTheyAreReclaimed() throws {
    var moments = 0
    while true {
      let system = try TestSystem(runs: [(256, 160)], swap: 128)
      let area = try system.area(8)
      try system.fill(area)
      let happened = system.preempting(
        at: moments,
        {
          system.launderAll()
          system.dropCached()
          for page in 0..<area.count {
            guard let frame = system.buffer.find(area[page].rawValue >> Page.shift, .read) else { continue }
            XCTAssertEqual(system.place(area, page).frame, frame, "page \(page) at moment \(moments)")
          }
        }, { system.hide(area) })
      system.paging.destroy(area.object)
      system.check("moment \(moments)")
      if !happened { break }
      moments += 1
    }
    XCTAssertGreaterThan(moments, 10)
  }
}
