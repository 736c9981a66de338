import ContiguousMemory
import HostMachine
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import XCTest

@testable import Paging
@testable import Workloads

/// A request for a run, and everything else in its middle: at each moment at which it holds no lock, another
/// processor uses a page of the run, takes frames, gives frames back, launders, or asks for a run itself.
final class ContiguousPreemptionTests: XCTestCase {
  private final class Bed {
    let system: TestSystem
    let area: Area
    var other: Area?
    let run: FrameRun
    /// A page in the middle of the run.
    let page: UInt64
    var mark: UInt64 = 0
    var isWired = false
    var held: FrameNumber?
    var taken: [FrameNumber] = []
    var given: FrameRun?
    var loaned: [FrameNumber]

    init(_ system: TestSystem, leaving free: UInt64) throws {
      self.system = system
      let area = try system.area(24)
      self.area = area
      other = try system.show(area.object, from: 4, 12)
      try system.fill(area)
      // Of every four pages one is clean and has a copy.
      for page in 0..<area.count where page % 4 == 1 {
        let one = FrameRun(first: system.frame(area, page), count: .one)
        _ = system.paging.launder(outOf: one, .all, atMost: .one)
        XCTAssertTrue(try system.holds(area, page, 1000 + page))
      }
      let frames = (0..<area.count).map { system.frame(area, $0).rawValue }.sorted()
      // Eight frames in a row with the most pages in them.
      let starts = frames.map { start in (start, frames.filter { $0 >= start && $0 < start + 8 }.count) }
      let best = starts.max { $0.1 < $1.1 }!
      XCTAssertGreaterThan(best.1, 4)
      let first = min(best.0, 256 + 160 - 8)
      run = FrameRun(first: FrameNumber(first), count: PageCount(UInt64(8)))
      page = (0..<area.count).first {
        let frame = system.frame(area, $0).rawValue
        return frame >= first && frame < first + 8 && $0 % 4 != 1
      }!
      let run = run
      loaned = system.takeAll(leaving: free)
      system.giveBack(loaned.filter { run.contains($0) })
      loaned = loaned.filter { !run.contains($0) }
    }

    var isBusy: Bool { system.place(area, page).busyWord.isXbusy }

    func write() {
      let address = area[page] + ByteCount(UInt64(512))
      if isBusy {
        // A fault would wait for whom it interrupts; what the processor still remembers, it may use.
        guard let frame = system.buffer.find(address.rawValue >> Page.shift, .write) else { return }
        mark += 1
        system.words(frame)[64] = mark
        return
      }
      mark += 1
      do throws(PagingError) {
        try system.processor.store(address, mark)
      } catch {
        mark -= 1
        XCTAssertEqual(error, .noMemory)
      }
    }
    func wire() {
      guard !isBusy else { return }
      do throws(PagingError) {
        try system.paging.wire(area[page], .one, holes: .forbidden)
        isWired = true
      } catch {
        XCTAssertEqual(error, .noMemory)
      }
    }
    func hold() {
      guard !isBusy else { return }
      do throws(PagingError) {
        held = try system.paging.hold(area[page], .write)
      } catch {
        XCTAssertEqual(error, .noMemory)
      }
    }
    func ask() {
      guard case .success(let run) = system.ask(request(4)) else { return }
      XCTAssertNil(given)
      given = run
    }

    func close(_ result: Result<FrameRun, ContiguousFailure>, _ note: String) throws {
      system.check(note)
      let what = system.place(area, page)
      if isWired {
        XCTAssertEqual(what.place, .resident, note)
        XCTAssertEqual(system.mapping(area, page)?.isWritable, true, "a wired page would fault, \(note)")
      }
      if let held {
        XCTAssertEqual(what.frame, held, "a held page was moved, \(note)")
        mark += 1
        system.words(held)[64] = mark
      }
      if case .success(let run) = result {
        XCTAssertEqual(run, self.run, note)
        system.checkGranted(run, request(8), note)
        for i in 0..<8 as Range<UInt64> {
          system.words(run.first + PageCount(i)).update(repeating: 0xbad, count: 512)
        }
        if let given { XCTAssertFalse(run.contains(given.first) || given.contains(run.first), note) }
        if let held { XCTAssertFalse(run.contains(held), note) }
      }
      if let given {
        for i in 0..<4 as Range<UInt64> {
          system.words(given.first + PageCount(i)).update(repeating: 0xbad, count: 512)
        }
        system.give(given)
      }
      if case .success(let run) = result { system.give(run) }
      if let held { system.paging.unhold(held) }
      if isWired { system.paging.unwire(area[page], .one) }
      system.giveBack(taken)
      system.giveBack(loaned)
      XCTAssertEqual(system.physical.count(.contiguous), .zero, note)
      XCTAssertEqual(system.physical.count(.loaned), .zero, note)
      for page in 0..<area.count {
        XCTAssertTrue(try system.holds(area, page, 1000 + page), "page \(page), \(note)")
        if let other, page >= 4, page < 16 {
          XCTAssertTrue(try system.holds(other, page - 4, 1000 + page), "page \(page), \(note)")
        }
      }
      XCTAssertEqual(try system.processor.load(area[page] + ByteCount(UInt64(512))), mark, note)
      if let other { system.hide(other) }
      system.release(area)
      system.check(note)
      system.dropCached()
    }
  }

  private func cross(leaving free: UInt64, _ others: [(String, (Bed) -> Void)]) throws {
    let system = try TestSystem(runs: [(256, 160)], swap: 128)
    system.setTarget(10)
    system.set("vm.reserve.normal", 0)
    var (moments, granted, refused) = (0, 0, 0)
    for (name, other) in others {
      var n = 0
      while true {
        let bed = try Bed(system, leaving: free)
        let note = "\(name) at moment \(n), \(free) frames free"
        let first = UInt64(bed.run.first.rawValue)
        let wanted = request(8, low: first, high: first + 8)
        var happened = false
        var result = Result<FrameRun, ContiguousFailure>.failure(ContiguousFailure(.never))
        let faults = system.host.faults {
          happened = system.preempting(at: n, { other(bed) }, { result = system.ask(wanted) })
        }
        if let fault = faults.first { return XCTFail("\(fault.what): \(note)") }
        switch result {
        case .success: granted += 1
        case .failure(let failure):
          refused += 1
          XCTAssertNotEqual(failure.answer, .never, note)
          if failure.reason == .wired { XCTAssertTrue(bed.isWired, note) }
        }
        try bed.close(result, note)
        if !happened { break }
        n += 1
        moments += 1
        guard n < 2000 else { return XCTFail("moments without end, \(note)") }
      }
    }
    print("\(moments) moments, \(granted) granted, \(refused) refused")
    XCTAssertGreaterThan(moments, 100)
    XCTAssertGreaterThan(granted, 50)
  }

  private func everything() -> [(String, (Bed) -> Void)] {
    [
      ("nothing", { _ in }),
      ("write", { $0.write() }),
      ("wire", { $0.wire() }),
      ("hold", { $0.hold() }),
      ("launder", { $0.system.launderAll() }),
      ("daemon", { $0.system.paging.runDaemon() }),
      ("take frames", { $0.taken += $0.system.takeAll(leaving: 2) }),
      ("take and give back", { $0.system.dropCached() }),
      (
        "give frames back",
        {
          let some = $0.loaned.prefix(20)
          $0.loaned.removeFirst(min(20, $0.loaned.count))
          $0.system.giveBack(Array(some))
        }
      ),
      ("ask for a run", { $0.ask() }),
      (
        "take a range back",
        {
          // Unless a fault is in it, which would be waited for.
          guard let other = $0.other else { return }
          $0.other = nil
          $0.system.hide(other)
        }
      ),
      (
        "destroy another object",
        {
          guard let area = try? $0.system.area(3) else { return }
          try? $0.system.fill(area)
          $0.system.release(area)
        }
      ),
    ]
  }

  /// The last page is held, and becomes free at any moment: no run is abandoned that is wholly captured.
  func testARunWhoseLastPageBecomesFreeAtTheEndIsGranted() throws {
    let system = try TestSystem(runs: [(256, 160)], swap: 128)
    system.setTarget(10)
    system.set("vm.reserve.normal", 0)
    var (n, granted) = (0, 0)
    while true {
      let bed = try Bed(system, leaving: 3)
      let note = "moment \(n)"
      bed.hold()
      let frame = try XCTUnwrap(bed.held, note)
      let first = UInt64(bed.run.first.rawValue)
      let steps = Steps()
      var result = Result<FrameRun, ContiguousFailure>.failure(ContiguousFailure(.never))
      let happened = system.preempting(
        at: n,
        {
          bed.held = nil
          system.paging.unhold(frame)
          _ = system.paging.launder(outOf: FrameRun(first: frame, count: .one), .all, atMost: .one)
        }, { result = system.ask(request(8, low: first, high: first + 8), steps) })
      for case .abandoned(_, _, let blocker) in steps.list {
        XCTAssertNotEqual(blocker, .none, "nothing was in the way, \(note)")
      }
      if case .success = result { granted += 1 }
      try bed.close(result, note)
      if !happened { break }
      n += 1
    }
    XCTAssertGreaterThan(granted, 20)
  }

  func testARunIsMovedAwayFromWhileEverythingElseGoesOn() throws {
    try cross(leaving: 40, everything())
  }

  func testARunIsWrittenOutWhileEverythingElseGoesOn() throws {
    try cross(leaving: 3, everything())
  }
}
