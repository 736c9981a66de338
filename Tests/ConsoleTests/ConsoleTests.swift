import Foundation
import MemoryPrimitives
import XCTest

@testable import Console

final class ConversationTests: XCTestCase {
  func testTheSizeIsAskedForOnceAndWhatIsTypedMeanwhileIsKept() {
    let harness = ConsoleHarness()
    harness.terminal.later = [
      (at: 0, bytes: Array("help ma".utf8)), (at: 20, bytes: Array("\u{1b}[30;100R".utf8)),
      (at: 30, bytes: Array("p\r".utf8)),
    ]
    let log = harness.converse("")
    XCTAssertTrue(log.hasPrefix("\u{1b}7\u{1b}[999;999H\u{1b}[6n\u{1b}8strata> help map\n"), log)
    XCTAssertEqual(harness.console.state.pointee.width, 100)
    XCTAssertEqual(harness.console.state.pointee.height, 30)
    XCTAssertTrue(log.contains("map [ADDRESS+SIZE]"))
    XCTAssertEqual(log.components(separatedBy: "[6n").count, 2)
  }

  func testATerminalThatNeverAnswersIs80By24AndGetsNoEscapes() {
    let harness = ConsoleHarness()
    let log = harness.converse("help\r")
    XCTAssertGreaterThanOrEqual(harness.terminal.milliseconds, 100)
    XCTAssertEqual(harness.console.state.pointee.width, 80)
    XCTAssertFalse(log.dropFirst(24).contains("\u{1b}"))
  }

  func testALateAnswerIsSwallowed() {
    let harness = ConsoleHarness()
    harness.terminal.later = [(at: 400, bytes: Array("hel\u{1b}[30;100Rp\r".utf8))]
    let log = harness.converse("")
    XCTAssertTrue(log.contains("Where did my memory go?"), log)
  }

  func testALongListingStopsAtEachScreenAndQEndsIt() {
    let harness = ConsoleHarness()
    for _ in 0..<60 {
      harness.statistics.add(Statistic("a.b", .events, .counter, "x", context: nil, read: { _ in 1 }))
    }
    var log = harness.converse("sysctl a\r\r q")
    XCTAssertEqual(log.components(separatedBy: "-- more --").count - 1, 3)
    // 23 lines, one more for Enter, 23 for Space, then q.
    XCTAssertEqual(log.components(separatedBy: "events").count - 1, 22 + 1 + 23)
    let again = ConsoleHarness()
    for _ in 0..<60 {
      again.statistics.add(Statistic("a.b", .events, .counter, "x", context: nil, read: { _ in 1 }))
    }
    log = again.converse("sysctl a\rhelp map\r")
    XCTAssertTrue(log.contains("map [ADDRESS+SIZE]"), "what was typed at -- more -- is the next command")
    XCTAssertEqual(again.run("sysctl a -j").split(separator: "\n").count, 60)
  }

  func testCtrlCEndsALineAndALongCommand() {
    let harness = ConsoleHarness()
    let log = harness.converse("frames\u{03}help map\r")
    XCTAssertTrue(log.contains("^C\nstrata> help map"))
    let other = ConsoleHarness()
    for _ in 0..<60 {
      other.statistics.add(Statistic("a.b", .events, .counter, "x", context: nil, read: { _ in 1 }))
    }
    XCTAssertTrue(other.converse("watch 1 help map\r").contains("any key stops"))
  }

  func testTabCompletesCommandsAndTunables() {
    let harness = ConsoleHarness()
    harness.statistics.add(
      Statistic("xy.contig.passes", .events, .tunable, "x", context: nil, read: { _ in 4 }))
    harness.statistics.add(
      Statistic("xy.contig.strategy", .events, .tunable, "x", context: nil, read: { _ in 4 }))
    let log = harness.converse("pag\t\u{15}sysctl xy.c\t\tp\t\u{15}sna\tx\r")
    XCTAssertTrue(log.contains("pagetable "))
    XCTAssertTrue(log.contains("xy.contig.passes  xy.contig.strategy\n"), log)
    XCTAssertTrue(log.contains(" counters as \"x\". Type: diff x"), log)
  }

  func testCtrlDSaysHowToLeave() {
    let harness = ConsoleHarness()
    XCTAssertTrue(harness.converse("\u{04}").contains("Type poweroff to leave"))
  }
}

final class ConsoleCommandTests: XCTestCase {
  func testAnUnknownCommandGetsAHint() {
    let harness = ConsoleHarness()
    XCTAssertEqual(harness.run("frame"), "No command \"frame\". Did you mean frames? (help lists all)\n")
    XCTAssertEqual(harness.outcome, .refused)
    XCTAssertEqual(
      harness.run("pagetabel"), "No command \"pagetabel\". Did you mean pagetable? (help lists all)\n")
    XCTAssertEqual(harness.run("xyzzy"), "No command \"xyzzy\". help lists all.\n")
    XCTAssertEqual(
      harness.run("xyzzy -j"),
      #"{"kind":"error","what":"No command \"xyzzy\". help lists all.","line":"xyzzy -j"}"# + "\n")
  }

  func testASurplusWordIsPointedAt() {
    let harness = ConsoleHarness()
    XCTAssertEqual(
      harness.run("panic now"),
      """
      panic now
            ^^^ not understood here; usage: panic

      """)
    XCTAssertEqual(harness.terminal.panics, 0)
    XCTAssertEqual(
      harness.run("help \"map"),
      """
      help "map
           ^ a quote is opened here and never closed

      """)
  }

  func testEachCommandHasHelpThatFitsTheScreenAndAnExampleOfItself() {
    let harness = ConsoleHarness()
    for i in 0..<Command.all.count {
      let command = Command.all[i]
      XCTAssertEqual(Int(command.verb.rawValue), i)
      let text = harness.run("help \(command.name)")
      for line in text.split(separator: "\n") { XCTAssertLessThanOrEqual(line.count, 80, String(line)) }
      XCTAssertTrue("\(command.example)".hasPrefix("\(command.name)"))
      XCTAssertTrue("\(command.usage)".hasPrefix("\(command.name)"))
      if command.verb != .help {
        XCTAssertTrue(harness.run("help").contains("\(command.name)"), "help does not name \(command.name)")
      }
    }
    for line in harness.run("help").split(separator: "\n") { XCTAssertLessThanOrEqual(line.count, 80) }
    XCTAssertEqual(harness.run("help -j").split(separator: "\n").count, Command.all.count)
  }

  func testRunListEchoesAndLeavesWithTheWorst() {
    let harness = ConsoleHarness()
    bytes("run=\"help map; nonsense; help buddy\"") { harness.console.serve(KernelCommandLine($0)) }
    XCTAssertEqual(harness.terminal.left, [1])
    let log = harness.terminal.taken()
    XCTAssertTrue(log.contains("strata> help map\nmap [ADDRESS+SIZE]"))
    XCTAssertTrue(log.contains("strata> help buddy\n"))
    XCTAssertFalse(log.contains("\u{1b}"))
    let fine = ConsoleHarness()
    bytes("run=\"help; poweroff; nonsense\"") { fine.console.serve(KernelCommandLine($0)) }
    XCTAssertEqual(fine.terminal.left, [0])
  }

  func testWhatTheCommandLineNamesIsSetAndATypoFailsTheRun() {
    let harness = ConsoleHarness()
    bytes("vm.nothing=3 run=help") { harness.console.serve(KernelCommandLine($0)) }
    XCTAssertEqual(harness.terminal.left, [1])
    XCTAssertTrue(harness.terminal.taken().contains("\"vm.nothing\", which is no tunable"))
  }

  func testFaultsAreAskedForByName() {
    let harness = ConsoleHarness()
    harness.run("fault stack-overflow")
    XCTAssertEqual(harness.terminal.provoked, [Shell.Fault.stackOverflow.rawValue])
    XCTAssertEqual(harness.outcome, .failed)
    XCTAssertTrue(harness.run("fault stakc").contains("^^^^^ no such fault"))
    XCTAssertEqual(harness.outcome, .refused)
  }
}

final class SysctlTests: XCTestCase {
  nonisolated(unsafe) static var passes: UInt64 = 4
  nonisolated(unsafe) static var strategy: UInt64 = 1

  func harness() -> ConsoleHarness {
    Self.passes = 4
    Self.strategy = 1
    let harness = ConsoleHarness()
    harness.statistics.add(
      Statistic(
        "xy.contig.passes", .events, .tunable, "how far a request may go, 1 to 4", context: nil,
        read: { _ in SysctlTests.passes },
        write: {
          guard $1 >= 1 && $1 <= 4 else { return .out_of_range }
          SysctlTests.passes = $1
          return .accepted
        }))
    harness.statistics.add(
      Statistic(
        "xy.contig.strategy", .choice, .tunable, "only the run, or launder and hope", choices: "old|new",
        context: nil, read: { _ in SysctlTests.strategy },
        write: {
          SysctlTests.strategy = $1
          return .accepted
        }))
    harness.statistics.add(
      Statistic("xy.contig.granted", .requests, .counter, "since boot", context: nil, read: { _ in 1234 }))
    harness.statistics.add(
      Statistic(
        "zs.requests", .requests, .counter, "since boot", context: nil, read: { _ in SysctlTests.passes }))
    return harness
  }

  func testATreeIsShownByItsBeginning() {
    let harness = harness()
    XCTAssertEqual(
      harness.run("sysctl xy.contig"),
      """
      name                value  unit      =  what it does
      xy.contig.passes        4  events    =  how far a request may go, 1 to 4
      xy.contig.strategy    new  old|new   =  only the run, or launder and hope
      xy.contig.granted   1,234  requests     since boot
      What has = can be set, as in: sysctl vm.contig.passes=4

      """)
    XCTAssertEqual(
      harness.run("sysctl zs.requests -j"),
      #"{"kind":"sysctl","name":"zs.requests","value":4,"unit":"requests","about":"since boot"}"# + "\n")
  }

  func testSettingSaysWhatItDidOrWhyNot() {
    let harness = harness()
    XCTAssertEqual(harness.run("sysctl xy.contig.passes=2"), "xy.contig.passes: 4 -> 2\n")
    XCTAssertEqual(
      harness.run("sysctl xy.contig.passes=9"),
      "9 is out of range: how far a request may go, 1 to 4. It stays 2.\n")
    XCTAssertEqual(
      harness.run("sysctl xy.contig.strategy=odl"),
      "No value \"odl\" for xy.contig.strategy: old|new. It stays new.\n")
    XCTAssertEqual(harness.run("sysctl xy.contig.strategy=old"), "xy.contig.strategy: new -> old\n")
    XCTAssertEqual(
      harness.run("sysctl xy.contig.granted=1"),
      "xy.contig.granted is read only: it tells what happened.\n")
    XCTAssertEqual(
      harness.run("sysctl xy.contig.pases"),
      "No tunable \"xy.contig.pases\". Did you mean xy.contig.passes?\n")
    XCTAssertEqual(
      harness.run("sysctl xy.contig.passes=2x"),
      """
      sysctl xy.contig.passes=2x
                               ^ no number: digits, with _ or , between them, or 0x and hex digits

      """.replacingOccurrences(of: " no number", with: "\nno number"))
  }

  func testDiffShowsWhatChanged() {
    let harness = harness()
    XCTAssertEqual(harness.run("diff"), "Nothing to compare with. Type: snapshot\n")
    harness.run("snapshot before")
    XCTAssertEqual(
      harness.run("diff"), "Nothing: all \(harness.statistics.count) counters are as they were.\n")
    Self.passes = 2000
    XCTAssertEqual(
      harness.run("diff before"),
      """
      counter           before    now  change
      xy.contig.passes       4  2,000  +1,996
      zs.requests            4  2,000  +1,996
      \(harness.statistics.count - 2) others are unchanged.

      """)
    Self.passes = 1
    XCTAssertTrue(harness.run("diff before -j").contains(#""change":-3"#))
    for name in ["a", "b", "c"] { harness.run("snapshot \(name)") }
    XCTAssertTrue(harness.run("snapshot d").contains("\"before\" made room for it"))
    XCTAssertTrue(harness.run("diff before").hasPrefix("No snapshot \"before\". The latest is \"d\"."))
  }
}

final class TableTests: XCTestCase {
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

  func testMoreRowsThanTheBufferHolds() {
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
    table.text("a very long name of a thing that nobody would want to read in full length")
    table.text("and what it does")
    table.end()
    table.finish()
    for line in harness.terminal.taken().split(separator: "\n") { XCTAssertLessThanOrEqual(line.count, 80) }
  }

  func testJSONEscapesWhateverATraceHolds() throws {
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

final class PictureTests: XCTestCase {
  func testLinesThatLookAlikeAreToldOnce() {
    let harness = ConsoleHarness()
    var picture = Picture(harness.console)
    for i in 0..<16 as Range<UInt64> {
      var cells = Picture.Cells(repeating: UInt8(ascii: "."))
      if i == 0 || i > 13 { cells[0] = UInt8(ascii: "M") }
      picture.add("\(hex: i << 24, digits: 8)", cells)
    }
    picture.finish()
    let dots = String(repeating: ".", count: 63)
    XCTAssertEqual(
      harness.terminal.taken(),
      """
      0x0000_0000 |M\(dots)|
      0x0100_0000 |.\(dots)|
      *           12 more lines like it
      0x0e00_0000 |M\(dots)|
      0x0f00_0000 |M\(dots)|

      """)
  }
}
