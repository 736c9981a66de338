import Foundation
import HostMachine
import MemoryPrimitives
import Paging
import PhysicalMemory
import Workloads
import XCTest

@testable import Console

/// Whether all of it fits a screen of 80 columns, in plain ASCII.
func assertFits(_ log: String, file: StaticString = #filePath, line: UInt = #line) {
  for text in log.split(separator: "\n") {
    XCTAssertLessThanOrEqual(text.utf8.count, 80, String(text), file: file, line: line)
    XCTAssertTrue(text.utf8.allSatisfy { $0 >= 0x20 && $0 < 0x7f }, String(text), file: file, line: line)
  }
}

/// dirty and verify.
final class DirtyCommandTests: XCTestCase {
  /// The first fill leaves slabs behind; each later one frees all its memory.
  private func warm(_ harness: ConsoleHarness) -> PageCount {
    harness.run("dirty 1M")
    harness.run("dirty free")
    return harness.physical.freeCount
  }

  func testAShareOfMemoryIsFilledAndEveryPageKeepsItsStamp() throws {
    let harness = ConsoleHarness(swap: .mebibytes(64))
    let before = warm(harness)
    let pages = harness.physical.total.rawValue * 60 / 100
    let log = harness.run("dirty 60%")
    XCTAssertNil(harness.outcome)
    XCTAssertTrue(log.hasPrefix("\(counted(pages)) pages, 38.2 MiB, each stamped: "), log)
    XCTAssertTrue(log.contains("Nothing was written. "), log)
    XCTAssertTrue(log.hasSuffix("frames are free. Type: contig 2M\n"), log)
    assertFits(log)
    XCTAssertEqual(harness.run("verify"), "\(counted(pages)) pages intact; 0 were read back from swap.\n")
    let row = try XCTUnwrap(rows(harness.run("verify -j")).first)
    XCTAssertEqual(row["kind"] as? String, "verify")
    XCTAssertEqual(row["intact"] as? Int, Int(pages))
    XCTAssertEqual(row["wrong"] as? Int, 0)
    XCTAssertTrue(harness.run("dirty free").hasPrefix("Freed \(counted(pages)) pages of 1 fill. "))
    XCTAssertEqual(harness.physical.freeCount, before)
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testWiredPagesAreNotReclaimed() throws {
    let harness = ConsoleHarness(swap: .mebibytes(64))
    harness.run("dirty 1M")
    let row = try XCTUnwrap(rows(harness.run("dirty 2M -j")).first)
    let address = try XCTUnwrap(row["address"] as? String)
    harness.run("wire \(address)+16K")
    let free = harness.physical.freeCount
    XCTAssertEqual(
      harness.run("dirty free"),
      "4 pages from \(address) on are wired: unwire them first.\n")
    XCTAssertEqual(harness.outcome, .failed)
    XCTAssertEqual(harness.physical.freeCount, free)
    harness.run("unwire \(address)+16K")
    XCTAssertNil(harness.outcome)
    XCTAssertTrue(harness.run("dirty free").hasPrefix("Freed 768 pages of 2 fills. "))
    XCTAssertNil(harness.memory.checkInvariants())
  }

  private func counted(_ count: UInt64) -> String { text("\(count: count)") }

  func testThePagesLieScatteredOverAllOfMemory() throws {
    let harness = ConsoleHarness(swap: .mebibytes(64))
    harness.run("dirty 60%")
    var pageblocks: [UInt64] = []
    harness.physical.forEachPageblock { if $0.absent == .zero { pageblocks.append($0.other.rawValue) } }
    // No 2 MiB that lie wholly in memory are without pages.
    XCTAssertGreaterThan(pageblocks.filter { $0 > 100 }.count, pageblocks.count - 3, "\(pageblocks)")
  }

  func testMoreThanMemoryGoesToSwapAndComesBack() throws {
    let harness = ConsoleHarness(swap: .mebibytes(96))
    let before = warm(harness)
    let row = try XCTUnwrap(rows(harness.run("dirty 150% -j")).first)
    XCTAssertEqual(row["kind"] as? String, "dirty")
    let pages = try XCTUnwrap(row["pages"] as? Int)
    XCTAssertEqual(pages, Int(harness.physical.total.rawValue * 150 / 100))
    let resident = try XCTUnwrap(row["resident"] as? Int)
    XCTAssertEqual(resident + (row["swapped"] as? Int ?? 0), pages)
    XCTAssertLessThan(resident, Int(harness.physical.total.rawValue))
    XCTAssertGreaterThan(row["written"] as? Int ?? 0, pages - resident - 1)
    let verdict = harness.run("verify")
    XCTAssertTrue(verdict.hasPrefix("\(counted(UInt64(pages))) pages intact; "), verdict)
    XCTAssertNil(harness.outcome)
    harness.run("dirty free")
    XCTAssertEqual(harness.physical.freeCount, before)
    XCTAssertEqual(harness.memory.paging.swap.figures.used, .zero)
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testAFillThatIsTooLargeKeepsThePagesThatFit() throws {
    let harness = ConsoleHarness()
    let before = warm(harness)
    let log = harness.run("dirty 120%")
    XCTAssertEqual(harness.outcome, .failed)
    XCTAssertTrue(log.hasPrefix("Page "), log)
    XCTAssertTrue(log.contains(" of 19,544: memory is full, but for the reserve of 255 frames.\n"), log)
    XCTAssertTrue(log.contains("\nThe pages that fit are filled, and stay; dirty free frees them.\n"), log)
    XCTAssertTrue(log.contains("! There is no swap to write to"), log)
    assertFits(log)
    // A few frames more than the reserve are left.
    XCTAssertLessThan(harness.physical.freeCount.rawValue, 255 + 80)
    XCTAssertTrue(harness.run("verify").contains(" pages intact; 0 were read back from swap."))
    XCTAssertNil(harness.outcome)
    harness.run("dirty free")
    XCTAssertEqual(harness.physical.freeCount, before)
    let told = rows(harness.run("dirty 120% -j"))
    XCTAssertEqual(told.map { $0["kind"] as? String }, ["error", "dirty"])
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testASecondFillEndsWhereMemoryDoes() throws {
    let harness = ConsoleHarness()
    harness.run("dirty 90%")
    let free = harness.physical.freeCount.rawValue
    let row = try XCTUnwrap(rows(harness.run("dirty 20% -j")).last)
    XCTAssertEqual(harness.outcome, .failed)
    // Memory that is carved out during a fill is used for its pages.
    XCTAssertGreaterThan(try XCTUnwrap(row["pages"] as? UInt64), free - 255 - 80)
    harness.run("verify")
    XCTAssertNil(harness.outcome)
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testAFullSwapDeviceIsReportedAndThePagesThatFitCanBeRead() throws {
    let harness = ConsoleHarness(swap: .mebibytes(8))
    let before = warm(harness)
    let log = harness.run("dirty 300%")
    XCTAssertEqual(harness.outcome, .failed)
    XCTAssertTrue(log.contains("! Memory and swap are full. Type: swap"), log)
    assertFits(log)
    let used = try XCTUnwrap(rows(harness.run("swap -j")).first?["pages"] as? Int)
    XCTAssertGreaterThan(used, 1900, "the next screen says the same")
    let verdict = harness.run("verify")
    XCTAssertNil(harness.outcome, verdict)
    XCTAssertFalse(verdict.contains(" 0 were read back"), verdict)
    harness.run("dirty free")
    XCTAssertEqual(harness.physical.freeCount, before)
    XCTAssertEqual(harness.memory.paging.swap.figures.used, .zero)
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testCtrlCKeepsThePagesThatAreFilled() throws {
    let harness = ConsoleHarness()
    let log = harness.converse("dirty 60%\r\u{03}")
    XCTAssertTrue(
      log.contains("Stopped; the pages filled so far stay.\n64 pages, 256 KiB, each stamped"), log)
    XCTAssertEqual(harness.run("verify"), "64 pages intact; 0 were read back from swap.\n")
    XCTAssertTrue(harness.run("dirty free").hasPrefix("Freed 64 pages of 1 fill."))
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testTheConsoleHoldsEightFillsAndNoMore() {
    let harness = ConsoleHarness()
    for _ in 0..<8 { harness.run("dirty 256K") }
    XCTAssertNil(harness.outcome)
    XCTAssertTrue(harness.run("dirty 256K").hasPrefix("8 fills are the most."))
    XCTAssertEqual(harness.outcome, .failed)
    XCTAssertEqual(harness.run("verify"), "512 pages intact; 0 were read back from swap.\n")
    XCTAssertTrue(harness.run("dirty free").hasPrefix("Freed 512 pages of 8 fills."))
    XCTAssertTrue(harness.run("dirty free").hasPrefix("Nothing is filled."))
  }

  func testAPageWithAWrongStampIsFoundAndNamed() throws {
    let harness = ConsoleHarness()
    let row = try XCTUnwrap(rows(harness.run("dirty 1M -j")).first)
    let digits = try XCTUnwrap(row["address"] as? String).dropFirst(2).replacingOccurrences(of: "_", with: "")
    let address = VirtualAddress(try XCTUnwrap(UInt64(digits, radix: 16)) + 5 * 4096)
    let word = try harness.terminal.processor!.load(address + ByteCount(UInt64(512)))
    try harness.terminal.processor!.store(address + ByteCount(UInt64(512)), word ^ 4)
    let log = harness.run("verify")
    XCTAssertEqual(harness.outcome, .failed)
    XCTAssertTrue(log.hasPrefix("255 pages intact;"), log)
    XCTAssertTrue(log.contains("! 1 page holds something else. Type: whatis \(text("\(address)"))"), log)
    harness.run("whatis \(text("\(address)"))")
    XCTAssertNil(harness.outcome)
  }

  /// Each word of a page counts, those between the stamps too.
  func testVerifyLooksAtEveryWord() throws {
    let harness = ConsoleHarness()
    let row = try XCTUnwrap(rows(harness.run("dirty 16K -j")).first)
    let digits = try XCTUnwrap(row["address"] as? String).dropFirst(2).replacingOccurrences(of: "_", with: "")
    let page = VirtualAddress(try XCTUnwrap(UInt64(digits, radix: 16)) + 2 * 4096)
    let processor = try XCTUnwrap(harness.terminal.processor)
    for i in 0..<512 {
      let place = page + ByteCount(i * 8)
      let word = try processor.load(place)
      try processor.store(place, word ^ 1 << UInt64(i % 64))
      XCTAssertTrue(harness.run("verify").hasPrefix("3 pages intact;"), "word \(i)")
      XCTAssertEqual(harness.outcome, .failed, "word \(i)")
      try processor.store(place, word)
    }
    XCTAssertEqual(harness.run("verify"), "4 pages intact; 0 were read back from swap.\n")
    XCTAssertNil(harness.outcome)
  }

  func testAPageThatSwapHasLostIsCountedAsUnreadable() throws {
    let harness = ConsoleHarness(swap: .mebibytes(64))
    harness.run("dirty 120%")
    XCTAssertNil(harness.outcome)
    harness.disk!.faults.failed = 1000
    let log = harness.run("verify")
    XCTAssertEqual(harness.outcome, .failed)
    XCTAssertTrue(log.contains(" can't be read. Type: whatis 0xffff_c"), log)
    assertFits(log)
    harness.disk!.faults.failed = 0
    harness.run("verify")
    XCTAssertNil(harness.outcome, "an error is not for good")
  }

  func testAnErrorPointsAtTheWordThatCannotBeUnderstood() {
    let harness = ConsoleHarness()
    XCTAssertTrue(harness.run("dirty").hasPrefix("How much? Usage: dirty SHARE | SIZE | free"))
    XCTAssertTrue(harness.run("dirty 0").contains("^ less than a page"))
    XCTAssertTrue(harness.run("dirty x%").contains("      ^ no number"))
    XCTAssertTrue(harness.run("dirty 2000%").contains("too large: 1000 % of memory are the most"))
    XCTAssertTrue(harness.run("dirty 16T").contains("      ^^^ too large: 1000 % of memory are the most"))
    XCTAssertTrue(harness.run("dirty -5").contains("      ^^ not understood here; usage: dirty SHARE"))
    XCTAssertTrue(harness.run("dirty 1M 2M").contains("usage: dirty SHARE | SIZE | free"))
    XCTAssertEqual(harness.outcome, .refused)
    XCTAssertEqual(harness.run("verify"), "There are no pages to verify. Type: dirty 60%\n")
  }
}
