import Foundation
import MemoryPrimitives
import XCTest

@testable import Console

final class ConsoleTableTests: XCTestCase {
  func testTheLargestStandsFirstSmallOnesAreGatheredAndTheTotalAddsUp() {
    let harness = ConsoleHarness()
    func fill() {
      let table = harness.console.table("cache", .largestFirst)
      table.column("cache", .text)
      table.column("frames", .sum)
      table.column("size", .sum, key: "bytes")
      table.column("share", .share)
      table.column("live", .ratio)
      for i in 0..<20 as Range<UInt64> {
        table.begin(weight: i * 100)
        table.text("c-\(i)")
        table.count(i * 100)
        table.size(ByteCount(i * 100 * 4096))
        table.share(i * 100, of: 19_000)
        table.share(i, of: 2 * i)
        table.end()
      }
      table.finish(total: "20 caches", note: "as memmap took them")
    }
    fill()
    XCTAssertEqual(
      harness.terminal.taken(),
      """
      cache      frames      size   share  live
      c-19        1,900  7.42 MiB  10.0 %  50 %
      c-18        1,800  7.03 MiB   9.5 %  50 %
      c-17        1,700  6.64 MiB   8.9 %  50 %
      c-16        1,600  6.25 MiB   8.4 %  50 %
      c-15        1,500  5.86 MiB   7.9 %  50 %
      c-14        1,400  5.47 MiB   7.4 %  50 %
      c-13        1,300  5.08 MiB   6.8 %  50 %
      c-12        1,200  4.69 MiB   6.3 %  50 %
      c-11        1,100  4.30 MiB   5.8 %  50 %
      c-10        1,000  3.91 MiB   5.3 %  50 %
      c-9           900  3.52 MiB   4.7 %  50 %
      c-8           800  3.13 MiB   4.2 %  50 %
      7 others    2,800  10.9 MiB  14.7 %  50 %
      20 caches  19,000  74.2 MiB   100 %  50 %  as memmap took them

      """)
    harness.console.state.pointee.json = true
    fill()
    let rows = harness.terminal.taken().split(separator: "\n")
    XCTAssertEqual(rows.count, 20)
    XCTAssertEqual(rows[3], #"{"kind":"cache","cache":"c-3","frames":300,"bytes":1228800}"#)
  }

  func testColumnsAreAsWideAsTheRowsThatAreShown() {
    let harness = ConsoleHarness()
    let table = harness.console.table("x", .largestFirst)
    table.column("name", .text)
    table.column("figure", .figure)
    for i in 0..<30 as Range<UInt64> {
      table.begin(weight: i * i * i * i * i)
      table.text("n")
      table.count(i * i * i * i * i)
      table.end()
    }
    table.finish()
    let widths = Set(harness.terminal.taken().split(separator: "\n").dropLast().map(\.count))
    XCTAssertEqual(widths.count, 1)
  }

  func testATableOfMoreRowsThanTheBufferHoldsIsSplit() {
    let harness = ConsoleHarness()
    for sorting in [Table.Sorting.asGiven, .largestFirst] {
      let table = harness.console.table("x", sorting)
      table.column("n", .figure)
      table.column("amount", .sum)
      for i in 1...1000 as ClosedRange<UInt64> {
        table.begin(weight: i * 7919 % 1009)
        table.count(i)
        table.count(i * 7919 % 1009)
        table.end()
      }
      table.finish(total: "all")
      let lines = harness.terminal.taken().split(separator: "\n").map(String.init)
      var sum: UInt64 = 0
      for line in lines.dropFirst().dropLast() {
        sum += UInt64(line.split(separator: " ").last!.replacingOccurrences(of: ",", with: ""))!
      }
      let expected = (1...1000 as ClosedRange<UInt64>).reduce(0) { $0 + $1 * 7919 % 1009 }
      XCTAssertEqual(sum, expected)
      XCTAssertEqual(lines.count, sorting == .asGiven ? 1002 : 15)
    }
  }

  func testAWideTableLosesTheEndsOfNames() {
    let harness = ConsoleHarness()
    let table = harness.console.table("x")
    table.column("name", .text)
    table.column("what it is", .text)
    table.begin()
    table.text("a very long name of a thing that no person would like to read in full length")
    table.text("and what it does")
    table.end()
    table.finish()
    for line in harness.terminal.taken().split(separator: "\n") { XCTAssertLessThanOrEqual(line.count, 80) }
  }

  /// Texts of a row that are more than a line of them are whole for a tool, and marked for a person where they are cut.
  func testNoTextOfARowIsCutForATool() throws {
    let harness = ConsoleHarness()
    let texts = ["a", "b", "c", "d"].map { String(repeating: $0, count: 150) }
    func fill() {
      let table = harness.console.table("x")
      for title in ["one", "two", "three", "four"] as [StaticString] { table.column(title, .text) }
      table.begin()
      for text in texts {
        var line = Line()
        for byte in text.utf8 { line.append(byte: byte) }
        table.text(line)
      }
      table.end()
      table.finish()
    }
    harness.console.state.pointee.json = true
    fill()
    let out = harness.terminal.taken()
    let object = try XCTUnwrap(try JSONSerialization.jsonObject(with: Data(out.utf8)) as? [String: String])
    XCTAssertEqual(["one", "two", "three", "four"].map { object[$0] }, texts)
    harness.console.state.pointee.json = false
    fill()
    let cells = harness.terminal.taken().split(separator: "\n")[1].split(separator: " ")
    XCTAssertEqual(cells.count, 3)
    for cell in cells { XCTAssertTrue(cell.hasSuffix(".."), "\(cell)") }
  }

  func testFiguresBehindLongTextsStayWhole() {
    let harness = ConsoleHarness()
    let table = harness.console.table("x")
    table.column("name", .text)
    table.column("address", .exact)
    table.begin()
    table.text(
      "a name of more than ninety bytes, which is what all texts of a row had to share until this was written"
    )
    table.text("\(VirtualAddress(0xffff_8000_0fc9_6c40))")
    table.end()
    table.finish()
    let lines = harness.terminal.taken().split(separator: "\n")
    XCTAssertTrue(lines[1].hasSuffix(".. 0xffff_8000_0fc9_6c40"), "\(lines[1])")
    XCTAssertEqual(lines[1].count, 80)
  }

  /// Words that are wider than their column go on below it, and a figure stays with its unit.
  func testFoldedWordsGoOnBelow() {
    let harness = ConsoleHarness()
    let table = harness.console.table("x")
    table.column("asked", .folded)
    table.column("answer", .folded)
    table.column("free", .figure)
    table.begin()
    table.text("pageable memory of 1.02 TiB low 16 TiB high 64 TiB align 1 TiB boundary 64 TiB")
    table.text("never: more than all memory, frame 4294967294, moved 1,048,576, wrote 1,048,576")
    table.size(.gibibytes(999))
    table.end()
    table.begin()
    table.text("4 KiB")
    table.text("no")
    table.size(.gibibytes(1))
    table.end()
    table.finish()
    XCTAssertEqual(
      harness.terminal.taken(),
      """
      asked                               answer                                  free
      pageable memory of 1.02 TiB         never: more than all memory,         999 GiB
      low 16 TiB high 64 TiB align 1 TiB  frame 4294967294, moved 1,048,576,
      boundary 64 TiB                     wrote 1,048,576
      4 KiB                               no                                     1 GiB

      """)
  }

  /// Rows of two kinds stand side by side for a person; a tool gets each as a row of its own.
  func testRowsOfTwoKindsStandSideBySide() {
    let harness = ConsoleHarness()
    func fill() {
      let table = harness.console.table("queue")
      table.column("queue", .text)
      table.column("pages", .figure)
      table.beside("watermark")
      table.column("watermark", .text)
      table.column("frames", .figure)
      for i in 0..<3 as Range<UInt64> {
        table.begin()
        table.part(for: i < 1 ? .everyone : .people)
        table.text(i < 1 ? "active" : "all")
        table.count(i)
        table.part(for: i < 2 ? .everyone : .people)
        if i < 2 { table.text("minimum") } else { table.empty() }
        if i < 2 { table.count(i + 10) } else { table.empty() }
        table.end()
      }
      table.finish()
    }
    fill()
    XCTAssertEqual(
      harness.terminal.taken(),
      """
      queue   pages  watermark  frames
      active      0  minimum        10
      all         1  minimum        11
      all         2

      """)
    harness.console.state.pointee.json = true
    fill()
    XCTAssertEqual(
      harness.terminal.taken(),
      """
      {"kind":"queue","queue":"active","pages":0}
      {"kind":"watermark","watermark":"minimum","frames":10}
      {"kind":"watermark","watermark":"minimum","frames":11}

      """)
  }

  func testJSONEscapesEveryByteOfATrace() throws {
    let harness = ConsoleHarness()
    harness.console.state.pointee.json = true
    var odd = Line("quote \" back \\ ")
    for byte in [0x0a, 0x09, 0x01, 0x7f, 0xff, 0xc3] as [UInt8] { odd.append(byte: byte) }
    harness.console.row("x") { row in
      row.field("text", text: odd)
      row.field("n", UInt64.max)
      row.none("nothing")
      row.field("is", truth: .yes)
      row.field("at", VirtualAddress(0xffff_8000_0fc9_6c40))
    }
    let out = harness.terminal.taken()
    let object = try XCTUnwrap(try JSONSerialization.jsonObject(with: Data(out.utf8)) as? [String: Any])
    XCTAssertEqual(object["text"] as? String, "quote \" back \\ \n\t\u{01}\u{7f}\u{ff}\u{c3}")
    XCTAssertEqual(object["at"] as? String, "0xffff_8000_0fc9_6c40")
    XCTAssertTrue(out.hasPrefix(#"{"kind":"x","#))
  }
}
