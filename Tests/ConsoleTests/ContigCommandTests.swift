import ContiguousMemory
import Foundation
import HostMachine
import MemoryPrimitives
import Paging
import PhysicalMemory
import Workloads
import TestSupport
import XCTest

@testable import Console

/// contig, why and failures where memory is full of pages.
final class ContigCommandTests: XCTestCase {
  private func frames(_ harness: ConsoleHarness) -> UInt64 { harness.physical.freeCount.rawValue }

  func testAFreeRunIsGrantedListedAndFreed() throws {
    let harness = ConsoleHarness()
    harness.run("contig 4K")
    harness.run("contig free 1")
    let before = frames(harness)
    let text = harness.run("contig 2M align=2M")
    XCTAssertNil(harness.outcome)
    XCTAssertTrue(text.hasPrefix("Free as it is: 512 frames at 0x0"), text)
    XCTAssertTrue(text.contains("\nGranted: contig 2, frames "), text)
    XCTAssertTrue(text.hasSuffix("contig free 2 frees it.\n"), text)
    assertFits(text)
    let wide = try XCTUnwrap(rows(harness.run("contig 64K high=16M attr=wc type=dma zero -j")).last)
    XCTAssertEqual(wide["answer"] as? String, "granted")
    XCTAssertEqual(wide["cached"] as? String, "write-combining")
    XCTAssertEqual(wide["type"] as? String, "dma")
    XCTAssertEqual(wide["frames"] as? Int, 16)
    XCTAssertLessThan(try XCTUnwrap(wide["first_frame"] as? Int), 4096)
    XCTAssertTrue(harness.run("vmstat -m").contains("dma     1    64K"), harness.run("vmstat -m"))
    let list = harness.run("contig list")
    XCTAssertTrue(list.contains("write-combining"), list)
    XCTAssertTrue(list.hasPrefix(" id  frame  frames     asked  address"), list)
    XCTAssertTrue(list.hasSuffix("\nall            528  2.06 MiB\n"), list)
    assertFits(list)
    XCTAssertEqual(rows(harness.run("contig list -j")).map { $0["id"] as? Int }, [2, 3])
    XCTAssertTrue(harness.run("contig free 2").hasPrefix("Freed contig 2: 2 MiB, frames "))
    XCTAssertTrue(harness.run("contig free 2").contains("no such run; contig list shows them"))
    XCTAssertEqual(harness.outcome, .refused)
    XCTAssertTrue(harness.run("contig free all").hasPrefix("Freed 1 run, 64 KiB."))
    XCTAssertEqual(harness.run("contig list"), "None. As in: contig 2M align=2M\n")
    XCTAssertLessThanOrEqual(before - frames(harness), 1, "a row of counters for the new type stays")
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testOtherPagesMoveAndEachStepIsPrinted() throws {
    let harness = ConsoleHarness()
    harness.run("dirty 60%")
    let text = harness.run("contig -v 2M align=2M")
    XCTAssertNil(harness.outcome)
    assertFits(text)
    let lines = text.split(separator: "\n").map(String.init)
    XCTAssertTrue(lines[0].hasPrefix("Candidate 0x0"), text)
    let row = try XCTUnwrap(lines[0].firstMatch(of: /: the cheapest of (\d+) blocks\.$/), text)
    XCTAssertGreaterThan(try XCTUnwrap(Int(row.1)), 20)
    XCTAssertTrue(lines[1].contains(" of 512 frames in the way, "), text)
    XCTAssertTrue(lines[1].hasSuffix("A digit counts them in 8 frames."), text)
    let before = try XCTUnwrap(lines.first { $0.hasPrefix("before    ") })
    XCTAssertEqual(before.count, 74)
    let inTheWay = try XCTUnwrap(Int(lines[1].prefix(while: \.isNumber)))
    XCTAssertEqual(before.dropFirst(10).map { $0 == "." ? 0 : Int(String($0))! }.reduce(0, +), inTheWay)
    XCTAssertTrue(text.contains("\nrelocate  " + String(repeating: ".", count: 64) + "\n"), text)
    XCTAssertTrue(text.contains("\npass "), text)
    XCTAssertTrue(text.contains("\nall 512 frames        512  "), text)
    XCTAssertTrue(text.contains("\nGranted: contig 1, frames "), text)
    XCTAssertTrue(harness.run("verify").contains("pages intact; 0 were read back from swap."))
    XCTAssertNil(harness.outcome)
    // The figures of the rows add up to those of the whole.
    let told = rows(harness.run("contig 1M -v -j"))
    XCTAssertEqual(told.first?["kind"] as? String, "candidate")
    let passes = told.filter { $0["kind"] as? String == "pass" }
    let whole = try XCTUnwrap(told.last)
    XCTAssertEqual(whole["kind"] as? String, "contig")
    for (part, sum) in [("moved", "moved"), ("written", "written"), ("captured", "frames")] {
      XCTAssertEqual(
        passes.compactMap { $0[part] as? Int }.reduce(0, +), whole[sum] as? Int, "\(part): \(told)")
    }
    XCTAssertEqual((passes.first?["in_the_way"] as? String)?.count, 64)
    harness.run("contig free all")
    harness.run("dirty free")
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testOneMebibyteAndOneFrameAreDrawnToScale() throws {
    let harness = ConsoleHarness()
    harness.run("dirty 90%")
    for (size, width, legend) in [
      ("64K", 16, "in 1 frame."), ("1M", 64, "in 4 frames."),
      ("3M", 64, "in 12 frames, in ninths."),
    ] {
      let text = harness.run("contig -v \(size)")
      guard let line = text.split(separator: "\n").first(where: { $0.hasPrefix("before ") }) else { continue }
      XCTAssertEqual(line.count, 10 + width, text)
      XCTAssertTrue(text.contains(legend), text)
      assertFits(text)
    }
  }

  /// The forecast of `why` equals the outcome of `contig`.
  func testTheForecastOfWhyIsWhatContigDoes() throws {
    for (share, swap) in [("55%", 0), ("85%", 0), ("90%", 64), ("97%", 64), ("130%", 96)]
      as [(String, UInt64)]
    {
      let harness = ConsoleHarness(swap: swap == 0 ? nil : .mebibytes(swap))
      harness.run("dirty \(share)")
      XCTAssertNil(harness.outcome)
      for asked in [
        "2M align=2M", "64K", "4M", "512K high=16M", "2M", "1M align=1M low=20M", "8M", "20M", "2M align=2M",
        "48M", "64K high=16M boundary=64K",
      ] {
        let what = "\(asked) at \(share), swap \(swap)"
        let why = try XCTUnwrap(rows(harness.run("why \(asked) -j")).first)
        assertFits(harness.run("why \(asked)"))
        let contig = rows(harness.run("contig \(asked) -j"))
        let outcome = try XCTUnwrap(contig.last { $0["kind"] as? String == "contig" })
        let answer = why["answer"] as? String
        XCTAssertEqual(
          outcome["answer"] as? String, answer == "yes" ? "granted" : answer, "\(what): \(why) \(contig)")
        // Frames that the page daemon frees may lie anywhere.
        guard answer == "yes", why["to_fetch"] as? Int ?? 0 == 0 else { continue }
        XCTAssertEqual(outcome["moved"] as? Int, why["to_move"] as? Int ?? 0, "\(what): \(why) \(contig)")
        XCTAssertEqual(outcome["written"] as? Int, why["to_write"] as? Int ?? 0, "\(what): \(why) \(contig)")
        XCTAssertEqual(outcome["first_frame"] as? Int, why["first_frame"] as? Int, what)
        if let after = why["free_after"] as? Int, why["to_write"] as? Int == 0 {
          // The tables of the mapping come on top.
          XCTAssertEqual(Double(outcome["free"] as? Int ?? 0), Double(after), accuracy: 3, what)
        }
      }
      harness.run("verify")
      XCTAssertNil(harness.outcome)
      harness.run("contig free all")
      XCTAssertNil(harness.memory.checkInvariants())
    }
  }

  /// Dirty pages: their address and count.
  private func dirty(_ harness: ConsoleHarness, _ share: String) throws -> (
    start: VirtualAddress, count: UInt64
  ) {
    let row = try XCTUnwrap(rows(harness.run("dirty \(share) -j")).first)
    let digits = try XCTUnwrap(row["address"] as? String).dropFirst(2).replacingOccurrences(of: "_", with: "")
    return (
      VirtualAddress(try XCTUnwrap(UInt64(digits, radix: 16))), UInt64(try XCTUnwrap(row["pages"] as? Int))
    )
  }

  /// Wires or holds one page in each 2 MiB. Answers where the pages begin.
  private func pin(
    _ harness: ConsoleHarness, _ body: (VirtualAddress) throws -> Void
  ) throws -> VirtualAddress {
    let (start, count) = try dirty(harness, "80%")
    var pinned: Set<UInt32> = []
    for page in 0..<count {
      let address = start + PageCount(page)
      let place = try XCTUnwrap(harness.memory.pageTables.translate(address)).physical.frame
      guard pinned.insert(place.rawValue >> 9).inserted else { continue }
      try body(address)
    }
    return start
  }

  func testOneWiredPageInEachBlockIsNamedAndRefusedAgainAtOnce() throws {
    let harness = ConsoleHarness()
    let start = try pin(harness) { address in
      try harness.memory.paging.wire(address, .one, holes: .forbidden)
    }
    let why = harness.run("why 2M align=2M")
    XCTAssertTrue(why.hasPrefix("Not now: one wired page stands in the way. Nothing has been done.\n"), why)
    XCTAssertTrue(why.contains(", 1 can't move\n"), why)
    XCTAssertTrue(why.contains(": object 1 (dirty) page "), why)
    XCTAssertTrue(why.contains(", wired once\nlongest  "), why)
    XCTAssertTrue(why.contains("could be emptied as things are\n! "), why)
    XCTAssertTrue(why.contains("Type: whatis frame "), why)
    assertFits(why)
    let text = harness.run("contig 2M align=2M")
    XCTAssertEqual(harness.outcome, .failed)
    XCTAssertEqual(text, why)
    let told = ConsoleHarness()
    _ = try pin(told) { try told.memory.paging.wire($0, .one, holes: .forbidden) }
    let refused = try XCTUnwrap(
      rows(told.run("contig 2M align=2M -j")).first { $0["kind"] as? String == "contig" })
    XCTAssertEqual(refused["answer"] as? String, "not now")
    XCTAssertEqual(refused["blocked_by"] as? String, "wired")
    XCTAssertEqual(refused["role"] as? String, "pageable")
    XCTAssertEqual(refused["blocker_frames"] as? Int, 1)
    XCTAssertEqual(refused["repeated"] as? Bool, false)
    let again = harness.run("contig 2M align=2M")
    XCTAssertTrue(again.hasPrefix(why), again)
    XCTAssertTrue(again.contains("\nRefused from the cache, in "), again)
    XCTAssertTrue(again.hasSuffix(": no run has become free since.\n"), again)
    assertFits(again)
    let row = try XCTUnwrap(
      rows(harness.run("contig 2M align=2M -j")).first { $0["kind"] as? String == "contig" })
    XCTAssertEqual(row["repeated"] as? Bool, true)
    // Unwired, it is granted.
    let frame = try XCTUnwrap(row["blocker"] as? Int)
    harness.run("whatis frame \(frame)")
    XCTAssertNil(harness.outcome)
    let what = harness.physical.whatIs(FrameNumber(UInt32(frame)))
    harness.memory.paging.unwire(start + PageCount(what.index), .one)
    harness.run("contig 2M align=2M")
    XCTAssertNil(harness.outcome)
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testAHeldPageIsCalledHeld() throws {
    let harness = ConsoleHarness()
    var held: [FrameNumber] = []
    _ = try pin(harness) { address in held.append(try harness.memory.paging.hold(address, .read)) }
    let why = harness.run("why 2M align=2M")
    XCTAssertTrue(why.hasPrefix("Not now: 1 page is held at this moment. Nothing has been done.\n"), why)
    XCTAssertTrue(why.contains(", held\n"), why)
    assertFits(why)
    // The request may not sleep, so it moves nothing.
    let moved = harness.memory.contiguous.movedCount
    XCTAssertEqual(harness.run("contig 2M align=2M"), why)
    XCTAssertEqual(harness.outcome, .failed)
    XCTAssertEqual(harness.memory.contiguous.movedCount, moved)
    for frame in held { harness.memory.paging.unhold(frame) }
    harness.run("contig 2M align=2M")
    XCTAssertNil(harness.outcome)
    harness.run("verify")
    XCTAssertNil(harness.outcome)
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testTooMuchIsLaterAndTooFarIsOverBudget() throws {
    let harness = ConsoleHarness()
    harness.run("dirty 85%")
    let why = harness.run("why 32M")
    XCTAssertTrue(why.hasPrefix("Later: "), why)
    XCTAssertTrue(why.contains("! There is no swap to write to. Type: swap"), why)
    XCTAssertEqual(harness.run("contig 32M"), why)
    XCTAssertEqual(harness.outcome, .failed)
    assertFits(why)
    let swapping = ConsoleHarness(swap: .mebibytes(64))
    swapping.run("dirty 90%")
    let nowait = swapping.run("contig 32M nowait")
    XCTAssertEqual(swapping.outcome, .failed)
    XCTAssertTrue(nowait.hasPrefix("Not without waiting: "), nowait)
    XCTAssertTrue(nowait.contains(" pages would be left. Nothing has been done.\n"), nowait)
    XCTAssertTrue(nowait.hasSuffix("! A request that waits may have pages written. Type: why 32M\n"), nowait)
    XCTAssertEqual(swapping.run("why 32M nowait"), nowait)
    swapping.run("sysctl vm.contig.passes=2")
    let bound = swapping.run("why 32M")
    XCTAssertTrue(bound.hasPrefix("With vm.contig.passes=2, "), bound)
    XCTAssertTrue(bound.contains("! It may go further. Type: sysctl vm.contig.passes=4"), bound)
    XCTAssertEqual(swapping.run("contig 32M"), bound)
    swapping.run("sysctl vm.contig.passes=1")
    let first = swapping.run("contig 2M")
    XCTAssertTrue(first.hasPrefix("With vm.contig.passes=1, "), first)
    XCTAssertTrue(first.hasSuffix("\n! It may go further. Type: sysctl vm.contig.passes=4\n"), first)
    XCTAssertFalse(first.contains("longest"), first)
    XCTAssertEqual(swapping.run("why 2M"), first)
    swapping.run("sysctl vm.contig.passes=4")
    let granted = swapping.run("contig 32M")
    XCTAssertNil(swapping.outcome, granted)
    XCTAssertTrue(granted.contains("\nlaunder active "), granted)
    swapping.run("verify")
    XCTAssertNil(swapping.outcome)
    assertFits(nowait + bound + granted)
  }

  /// On any state of memory `why` and `contig` give the same answer, word for word: verdict, run, the owner of most
  /// frames in the way and their count, and the count of missing frames.
  func testWhyAndContigAnswerAlikeWordForWord() throws {
    var verdicts: [String: Int] = [:]
    let states: [(name: String, swap: UInt64?, lines: [String])] = [
      ("half", nil, ["dirty 50%"]), ("full, no swap", nil, ["dirty 93%"]),
      ("full", 64, ["dirty 105%"]), ("little swap", 2, ["dirty 95%"]),
      ("much is wired", nil, []),
      ("much is contiguous", 64, ["contig 20M", "contig 1M", "dirty 60%"]),
      ("no space for moving", 64, ["sysctl vm.contig.passes=2", "dirty 105%"]),
      ("free and cached only", nil, ["sysctl vm.contig.passes=1", "dirty 60%"]),
    ]
    for state in states {
      for pinning in [false, true] {
        let harness = ConsoleHarness(swap: state.swap.map { .mebibytes($0) })
        if pinning {
          _ = try pin(harness) { try harness.memory.paging.wire($0, .one, holes: .forbidden) }
        }
        for line in state.lines { harness.run(line) }
        if state.lines.isEmpty && !pinning {
          try harness.memory.paging.wire(dirty(harness, "30M").start, PageCount(7000), holes: .forbidden)
        }
        for asked in [
          "2M align=2M", "2M", "64K", "8M", "20M", "40M", "60M", "1G", "2M nowait", "30M nowait",
          "1M low=20M high=40M", "512K high=16M boundary=512K", "256K boundary=64K",
        ] {
          let what = "\(asked), \(state.name), pinned \(pinning)"
          verdicts[try assertWhyAndContigAnswerAlike(harness, asked, what), default: 0] += 1
        }
        harness.run("verify")
        XCTAssertNil(harness.memory.checkInvariants())
      }
    }
    for verdict in ["yes", "later", "not now", "over budget", "never on this machine"] {
      XCTAssertGreaterThan(verdicts[verdict] ?? 0, 2, "\(verdict): \(verdicts)")
    }
  }

  /// Runs `why` and `contig` for the same run, and compares them. Answers the verdict.
  private func assertWhyAndContigAnswerAlike(
    _ harness: ConsoleHarness, _ asked: String, _ what: String
  ) throws -> String {
    let figures = harness.memory.paging.figures
    let forecast = rows(harness.run("why \(asked) -j"))
    let why = harness.run("why \(asked)")
    assertFits(why)
    let contig = harness.run("contig \(asked)")
    assertFits(contig)
    let row = try XCTUnwrap(forecast.first { $0["kind"] as? String == "why" })
    let answer = try XCTUnwrap(row["answer"] as? String)
    guard answer != "yes" else {
      XCTAssertNil(harness.outcome, "\(what):\n\(why)\n\(contig)")
      XCTAssertTrue(why.hasPrefix("Yes: "), what)
      XCTAssertTrue(contig.contains("\nGranted: contig "), "\(what): \(contig)")
      let entry = try XCTUnwrap(rows(harness.run("contig list -j")).last)
      XCTAssertEqual(entry["first_frame"] as? Int, row["first_frame"] as? Int, what)
      harness.run("contig free \(entry["id"] as? Int ?? 0)")
      return answer
    }
    XCTAssertEqual(harness.outcome, .failed, what)
    let sameWords = contig.components(separatedBy: "\nRefused from the cache")[0]
    XCTAssertEqual(sameWords + (contig == sameWords ? "" : "\n"), why, what)
    XCTAssertEqual(harness.memory.paging.figures.moved, figures.moved, what)
    XCTAssertEqual(harness.memory.paging.figures.written, figures.written, what)
    // With `-j` the same.
    let again = rows(harness.run("contig \(asked) -j"))
    let refused = try XCTUnwrap(again.first { $0["kind"] as? String == "contig" })
    for key in [
      "answer", "at", "first_frame", "unmovable", "held_or_busy", "missing", "blocker", "blocker_frames",
      "reason", "role", "owner", "longest_at", "longest_frame", "longest_frames",
    ] { XCTAssertEqual("\(refused[key] ?? "-")", "\(row[key] ?? "-")", "\(key), \(what)") }
    let owners = { (list: [[String: Any]]) in
      list.filter { $0["kind"] as? String == "blocker" }.map { "\($0["owner"]!) \($0["frames"]!)" }
    }
    XCTAssertEqual(owners(again), owners(forecast), what)
    if answer == "later" || answer == "over budget" {
      XCTAssertGreaterThan(row["missing"] as? Int ?? 0, 0, what)
    }
    if answer == "not now" {
      XCTAssertTrue(why.contains("\nblocker  "), "\(what): \(why)")
      let frames = forecast.compactMap { $0["kind"] as? String == "blocker" ? $0["frames"] as? Int : nil }
      XCTAssertEqual(frames, frames.sorted(by: >), what)
      XCTAssertEqual(row["blocker_frames"] as? Int, frames.first, what)
    }
    return answer
  }

  /// The same while other requests empty runs: one that is large, or as many as there may be.
  func testWhyAndContigAnswerAlikeWhileRunsAreIsolated() throws {
    for firsts in [[4096], [3000, 5000, 9000, 13000]] as [[UInt32]] {
      for lines in [["dirty 60%"], ["dirty 105%"]] {
        let harness = ConsoleHarness(swap: .mebibytes(64))
        for line in lines { harness.run(line) }
        let count = PageCount(UInt64(firsts.count == 1 ? 8000 : 1))
        var isolations: [TestIsolation] = []
        for first in firsts {
          isolations.append(
            try harness.physical.isolated(
              FrameRun(first: FrameNumber(first), count: count), priority: .normal)
          )
        }
        var refused = 0
        for asked in ["2M align=2M", "2M", "64K", "8M", "40M", "2M nowait", "1M low=20M high=40M"] {
          let what = "\(asked), \(firsts), \(lines)"
          let why = harness.run("why \(asked)")
          let contig = harness.run("contig \(asked)")
          if why.hasPrefix("Yes: ") {
            XCTAssertTrue(contig.contains("Granted: contig "), "\(what):\n\(why)\n\(contig)")
            harness.run("contig free all")
            continue
          }
          refused += 1
          XCTAssertEqual(harness.outcome, .failed, what)
          // The runs that were tried come first.
          let sameWords = contig.components(separatedBy: "\nRefused from the cache")[0]
          let answer = sameWords + (contig == sameWords ? "" : "\n")
          XCTAssertTrue(answer.hasSuffix(why), "\(what):\n\(why)\n\(contig)")
          if answer != why { XCTAssertTrue(contig.hasPrefix("Candidate 0x"), what) }
        }
        if firsts.count == 4 { XCTAssertGreaterThan(refused, 2, "\(lines)") }
        for isolation in isolations { harness.physical.abandon(isolation) }
        harness.run("verify")
        XCTAssertNil(harness.memory.checkInvariants())
      }
    }
  }

  /// With the old strategy both print the same for a run that is free or can never be. Else `why` prints that contig
  /// does something else, or contig names `why`.
  func testWhyAndContigAgreeOnTheOldStrategy() throws {
    for lines in [["dirty 50%"], ["contig 20M", "dirty 93%"]] {
      let harness = ConsoleHarness()
      for line in lines { harness.run(line) }
      harness.run("sysctl vm.contig.strategy=old")
      for asked in ["64K", "2M", "8M", "40M", "1G", "256K boundary=64K", "30M nowait"] {
        let why = harness.run("why \(asked)")
        let contig = harness.run("contig \(asked)")
        let what = "\(asked), \(lines):\n\(why)\n\(contig)"
        if why.hasPrefix("Never: ") {
          XCTAssertEqual(contig, why, what)
        } else if why.contains(" free frames at ") {
          XCTAssertTrue(contig.contains("Granted: contig "), what)
        } else if why.hasPrefix("Not now: ") {
          XCTAssertTrue(contig.contains("Not now: laundering has freed no run"), what)
          XCTAssertTrue(contig.contains("! Type: why "), what)
        } else {
          XCTAssertTrue(why.hasSuffix("contig would launder whole queues instead.\n"), what)
        }
        harness.run("contig free all")
        if lines.count > 1 { harness.run("contig 20M") }
      }
    }
  }

  /// A request that fault injection refuses is reported so, with either strategy, and succeeds when it is repeated.
  func testFaultInjectionIsNamed() throws {
    let harness = ConsoleHarness()
    harness.run("contig 4K")
    for strategy in ["new", "old"] {
      harness.run("sysctl vm.contig.strategy=\(strategy)")
      let told = (0..<4).map { (points: Int64) in
        harness.host.failures.pointee.countdown = points
        let text = harness.run("contig 64K")
        harness.host.failures.pointee.countdown = -1
        return text
      }
      XCTAssertEqual(
        told.filter { $0 == "Later: fault injection has refused the request. Nothing has been done.\n" }
          .count,
        1, "\(told)")
      let rows = (0..<4).map { (points: Int64) in
        harness.host.failures.pointee.countdown = points
        let text = harness.run("contig 64K -j")
        harness.host.failures.pointee.countdown = -1
        return text
      }
      XCTAssertEqual(rows.filter { $0.contains("\"injected\":true") }.count, 1, "\(rows)")
      XCTAssertTrue(harness.run("contig 64K").contains("Granted: contig "))
    }
    XCTAssertNil(harness.memory.checkInvariants())
  }

  /// The owner of most frames in the way is named, and not that of the lowest ones.
  func testTheOwnerOfMostFramesIsNamed() throws {
    let harness = ConsoleHarness()
    harness.run("contig 40M type=dma")
    let why = harness.run("why 50M")
    XCTAssertTrue(why.hasPrefix("Not now: "), why)
    XCTAssertTrue(why.contains(" frames from frame ") && why.contains(" on: contig 1 (dma)\n"), why)
    // kmem may have a frame more by then, in the way as well.
    let named = try XCTUnwrap(why.split(separator: "\n").first { $0.hasSuffix(" on: contig 1 (dma)") })
    XCTAssertTrue(harness.run("contig 50M").contains("\n\(named)\n"))
    let row = try XCTUnwrap(rows(harness.run("contig 50M -j")).first { $0["kind"] as? String == "contig" })
    XCTAssertGreaterThan(try XCTUnwrap(row["blocker_frames"] as? Int), 5000)
    XCTAssertEqual(row["owner"] as? String, "contig 1 (dma)")
    assertFits(why)
  }

  func testThePagesOfARunAddUpWithEveryAnswer() throws {
    let harness = ConsoleHarness()
    harness.run("dirty 90%")
    harness.run("contig 1M")
    // Too few frames are free to isolate so much.
    for asked in ["why 20M", "why 40M", "why 50M", "why 2M align=2M", "why 30M nowait"] {
      let text = harness.run(asked)
      assertFits(text)
      guard let line = text.split(separator: "\n").first(where: { $0.contains(" to write, ") }) else {
        continue
      }
      let figures = line.replacingOccurrences(of: ",", with: "").split(separator: " ").compactMap { Int($0) }
      XCTAssertEqual(figures.dropFirst().reduce(0, +), figures.first, text)
    }
  }

  func testAnImpossibleRequestIsRefusedAndNothingIsDone() {
    let harness = ConsoleHarness()
    XCTAssertEqual(
      harness.run("contig 1G"), "Never: all memory of this machine is 63.6 MiB.\n")
    XCTAssertEqual(harness.outcome, .failed)
    XCTAssertTrue(harness.run("contig 256K boundary=64K").contains("crosses a multiple of 64 KiB"))
    XCTAssertEqual(rows(harness.run("contig 1G -j")).last?["answer"] as? String, "never on this machine")
  }

  func testTheOldStrategyLaundersWholeQueues() throws {
    let harness = ConsoleHarness(swap: .mebibytes(64))
    harness.run("dirty 80%")
    harness.run("sysctl vm.contig.strategy=old")
    XCTAssertTrue(harness.run("why 2M align=2M").contains("But vm.contig.strategy is old"))
    let text = harness.run("contig 2M align=2M -v")
    XCTAssertNil(harness.outcome)
    XCTAssertTrue(text.contains("\nlaunder all active "), text)
    XCTAssertTrue(text.contains("\nThen a run was free: 512 frames"), text)
    assertFits(text)
    harness.run("verify")
    XCTAssertNil(harness.outcome)
  }

  func testTheFailureLogCountsThePagesThatHadToMove() throws {
    let harness = ConsoleHarness()
    harness.run("dirty 80%")
    harness.run("contig 2M align=2M")
    harness.run("contig 1G type=huge")
    harness.run("contig 4M low=2M high=5M")
    let text = harness.run("failures")
    XCTAssertTrue(text.contains(" console 2 MiB align 2 MiB ") && text.contains(" yes, moved "), text)
    XCTAssertTrue(text.contains(" huge    1 GiB ") && text.contains(" never: more than all memory "), text)
    XCTAssertTrue(
      text.contains(" 4 MiB low 2 MiB high 5 MiB never: low to high is less "), text)
    XCTAssertTrue(text.contains(" 1 granted after moving or writing.\n"), text)
    assertFits(text)
    let told = rows(harness.run("failures -j"))
    let row = try XCTUnwrap(told.first { $0["granted"] as? Bool == true })
    XCTAssertGreaterThan(row["moved"] as? Int ?? 0, 100)
    XCTAssertEqual(row["written"] as? Int, 0)
    XCTAssertEqual(row["alignment"] as? Int, 2 << 20)
    XCTAssertEqual(told.first?["low"] as? String, "0x0000_0020_0000")
    // The frame in the way is named.
    let pinned = ConsoleHarness()
    _ = try pin(pinned) { try pinned.memory.paging.wire($0, .one, holes: .forbidden) }
    pinned.run("contig 2M align=2M")
    let blocker = try XCTUnwrap(rows(pinned.run("failures -j")).first?["blocker"] as? Int)
    XCTAssertTrue(pinned.run("failures").contains("  not now, frame \(blocker)  "), pinned.run("failures"))
  }

  func testAnErrorPointsAtTheWordThatCannotBeUnderstood() {
    let harness = ConsoleHarness()
    XCTAssertTrue(harness.run("contig").hasPrefix("How much? As in: contig 2M"))
    XCTAssertTrue(harness.run("contig 2M align=3M").contains("an alignment is a power of two: try 2M or 4M"))
    XCTAssertTrue(
      harness.run("contig 2M attr=xx").contains("               ^^ an attribute is uc, wc, wt or wb"))
    XCTAssertTrue(harness.run("contig 2M fast").contains("^^^^ not understood here; usage: help contig"))
    XCTAssertTrue(harness.run("contig 2M type=").contains("a type has a name"))
    XCTAssertTrue(harness.run("contig free").hasPrefix("A number is missing: contig list shows them;"))
    for (line, words) in [
      ("contig -1", "       ^^ not understood here"),
      ("contig free -1", "            ^^ not understood here"),
      ("contig list -v", "            ^^ not understood here"),
      ("contig free 1 -v", "              ^^ not understood here"),
      ("contig 2M attr=uc attr=wc", "attr is given twice"),
      ("contig 2M nowait nowait", "nowait is given twice"), ("contig 2M zero zero", "zero is given twice"),
    ] {
      let text = harness.run(line)
      XCTAssertTrue(text.contains(words), text)
      XCTAssertEqual(harness.outcome, .refused, line)
      assertFits(text)
    }
    XCTAssertTrue(harness.run("contig 0").contains("a run of no bytes is always granted"))
    XCTAssertEqual(harness.outcome, .refused)
    XCTAssertEqual(harness.run("contig list"), "None. As in: contig 2M align=2M\n")
    assertFits(harness.run("help contig"))
  }

  func testTheConsoleHoldsRunsUpToItsLimit() {
    let harness = ConsoleHarness()
    for _ in 0..<320 { harness.run("contig 4K") }
    XCTAssertNil(harness.outcome)
    XCTAssertTrue(harness.run("contig 4K").hasPrefix("320 runs are the most"))
    XCTAssertEqual(harness.outcome, .failed)
    // One from the middle: the others keep their numbers.
    harness.run("contig free 100")
    let ids = rows(harness.run("contig list -j")).compactMap { $0["id"] as? Int }
    XCTAssertEqual(ids, Array(1..<100) + Array(101...320))
    XCTAssertTrue(harness.run("contig free all").hasPrefix("Freed 319 runs, 1.25 MiB."))
    XCTAssertNil(harness.memory.checkInvariants())
  }
}
