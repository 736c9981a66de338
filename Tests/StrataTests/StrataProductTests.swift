import Foundation
import TestSupport
import XCTest

/// The tool as a process of its own: its standard output, its standard error and its exit status.
final class StrataProductTests: XCTestCase {
  private struct Outcome {
    var status: Int32
    var output: Data
    var errors: String
    var isSignalled: Bool

    var text: String { String(decoding: output, as: UTF8.self) }
    var rows: [[String: Any]] {
      text.split(separator: "\n").compactMap {
        (try? JSONSerialization.jsonObject(with: Data($0.utf8))) as? [String: Any]
      }
    }
  }

  private var folder: URL!
  private static let tool = URL(fileURLWithPath: ProcessInfo.processInfo.arguments[0])
    .resolvingSymlinksInPath().deletingLastPathComponent().appendingPathComponent("strata")

  override func setUpWithError() throws {
    guard FileManager.default.isExecutableFile(atPath: Self.tool.path) else {
      throw XCTSkip("\(Self.tool.path) was not built with the tests")
    }
    folder = try temporaryFolder()
  }

  private func path(_ name: String) -> String { folder.appendingPathComponent(name).path }

  /// Runs the tool. `file` takes standard output in place of a pipe.
  private func run(_ arguments: [String], input: Data = Data(), outputTo file: String? = nil) throws
    -> Outcome
  {
    let process = Process()
    process.executableURL = Self.tool
    process.arguments = arguments
    let (given, output, errors) = (path("input"), Pipe(), path("errors"))
    try input.write(to: URL(fileURLWithPath: given))
    XCTAssertTrue(FileManager.default.createFile(atPath: errors, contents: nil))
    process.standardInput = try FileHandle(forReadingFrom: URL(fileURLWithPath: given))
    process.standardOutput = try file.map { try FileHandle(forWritingTo: URL(fileURLWithPath: $0)) } ?? output
    process.standardError = try FileHandle(forWritingTo: URL(fileURLWithPath: errors))
    try process.run()
    if file != nil { try output.fileHandleForWriting.close() }
    let data = output.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    let outcome = Outcome(
      status: process.terminationStatus, output: data,
      errors: try String(contentsOfFile: errors, encoding: .utf8),
      isSignalled: process.terminationReason != .exit)
    for text in [outcome.text, outcome.errors] { JSONKinds.check(text, of: "strata \(arguments)") }
    return outcome
  }

  private func run(_ arguments: String..., input: Data = Data(), outputTo file: String? = nil) throws
    -> Outcome
  {
    try run(arguments, input: input, outputTo: file)
  }

  private static let lines = """
    # tracer: nop
          sh-175     [000] .....     8.990553: kmalloc: call_site=a+0x1/0x2 ptr=00000000bcebd58d bytes_req=72 bytes_alloc=96 gfp_flags=GFP_KERNEL|__GFP_ZERO node=-1 accounted=false
          sh-175     [001] ..s1.     8.990560: kfree: call_site=a+0x9/0x20 ptr=00000000bcebd58d
          sh-175     [001] ..s1.     8.990561: mm_page_alloc: page=0000000061d822d4 pfn=0x100946 order=1 migratetype=0 gfp_flags=GFP_KERNEL
          sh-175     [001] ..s1.     8.990562: kmem_cache_alloc: call_site=b+0x1/0x2 ptr=00000000bcebd58e bytes_req=192 bytes_alloc=192 gfp_flags=GFP_KERNEL
          sh-175     [001] ..s1.     8.990563: kmem_cache_free: call_site=b+0x1/0x2 ptr=00000000bcebd58e name=dentry

    """

  private func packed() throws -> Data {
    try run("trace", "pack", "-", "-o", "-", input: Data(Self.lines.utf8)).output
  }

  // MARK: Standard input and output

  func testAPipeLeadsFromTextToReplay() throws {
    let pack = try run("trace", "pack", "-", "-o", "-", input: Data(Self.lines.utf8))
    XCTAssertEqual(pack.status, 0, pack.errors)
    XCTAssertTrue(pack.output.starts(with: [0x89] + Array("STRATA".utf8)), "and nothing but the trace")
    XCTAssertTrue(pack.errors.contains("all events"), "the summary goes to standard error")
    let replay = try run("replay", "-", "-j", "--memory", "16M", input: pack.output)
    XCTAssertEqual(replay.status, 0, replay.errors)
    XCTAssertEqual(replay.rows.first?["kmalloc"] as? Int, 1)
    XCTAssertEqual(replay.errors, "")
  }

  func testATextWithoutAnyEventIsRefusedWithItsFirstMalformedLine() throws {
    let pack = try run("trace", "pack", "-", "-o", path("t.trace"), input: Data("# a\nrubbish\nmore\n".utf8))
    XCTAssertEqual(pack.status, 65)
    XCTAssertEqual(
      pack.errors,
      "strata: standard input: no allocation event in 3 lines; line 2 is no line of a recorder's text: "
        + "\"rubbish\"\n")
    XCTAssertFalse(FileManager.default.fileExists(atPath: path("t.trace")))
  }

  func testTheSummaryOfAFileGoesToStandardErrorToo() throws {
    let pack = try run("trace", "pack", "-", "-o", path("t.trace"), "-j", input: Data(Self.lines.utf8))
    XCTAssertEqual(pack.status, 0, pack.errors)
    XCTAssertEqual(pack.text, "")
    let row = try JSONSerialization.jsonObject(with: Data(pack.errors.utf8)) as? [String: Any]
    XCTAssertEqual(row?["kind"] as? String, "pack")
    XCTAssertEqual(try Data(contentsOf: URL(fileURLWithPath: path("t.trace"))), try packed())
  }

  func testAFullDiskIsAnError() throws {
    let trace = path("t.trace")
    try packed().write(to: URL(fileURLWithPath: trace))
    for arguments in [
      ["--version"], ["--help"], ["replay", "--help"], ["replay", trace, "--memory", "16M"],
      ["replay", trace, "--memory", "16M", "-j"], ["trace", "show", trace],
      ["trace", "pack", path("text"), "-o", "-"],
      ["fuzz", "--seeds", "1", "--operations", "10"], ["bench", "--from", path("rows")],
      ["study", "contig", "--memory", "8M", "--swap", "16M", "--runs", "1"], ["zs", path("text")],
      ["study", "zsmalloc", path("text"), "--objects", "16"],
    ] {
      try Data(Self.lines.utf8).write(to: URL(fileURLWithPath: path("text")))
      try Data().write(to: URL(fileURLWithPath: path("rows")))
      let outcome = try run(arguments, outputTo: "/dev/full")
      XCTAssertEqual(outcome.status, 74, "\(arguments): \(outcome.errors)")
      XCTAssertTrue(
        outcome.errors.hasSuffix("strata: standard output: No space left on device\n"), outcome.errors)
    }
    XCTAssertEqual(try run("trace", "pack", path("text"), "-o", "/dev/full").status, 74)
  }

  // MARK: Mistakes

  func testEachMistakeHasOneLineAndNoTrap() throws {
    let trace = path("t.trace")
    try packed().write(to: URL(fileURLWithPath: trace))
    let last = "\(UInt64.max)"
    for (arguments, status) in [
      (["nonsense"], 64), (["replay"], 64), (["replay", trace, "--memory", "99999999999999999999"], 64),
      (["replay", trace, "--processors", "0"], 64), (["replay", trace, "--memory", "65G"], 69),
      (["replay", trace, "--against", "nomalloc"], 64), (["replay", trace, "--against", ""], 64),
      (["replay", path("missing")], 66), (["replay", path("missing"), "--against", "glibc"], 66),
      (["replay", folder.path], 66), (["replay", "-"], 65), (["trace", "show", trace, "--first", "0"], 64),
      (["trace", "show", trace, "--first", "6"], 64), (["trace", "show", trace, "--count=-1"], 64),
      (["trace", "show", trace, "--rows=-1"], 64), (["trace", "show", path("missing")], 66),
      (["fuzz", "--seeds", "0"], 64), (["fuzz", "--operations", "0"], 64), (["fuzz", "--check", "0"], 64),
      (["fuzz", "--first", last, "--seeds", "2"], 64), (["fuzz", "--memory", "2M"], 64),
      (["bench", "--only", "nosuchrow"], 64), (["bench", "--from", path("missing")], 66),
      (["bench", "--only", "kmem-trace", "--trace", path("missing")], 66),
      (["study", "contig", "--runs=-1"], 64), (["study", "contig", "--runs", "0"], 64),
      (["study", "contig", "--size", "\(UInt64(1) << 63)"], 64), (["study", "contig", "--dirty", last], 64),
      (["study", "zsmalloc", path("missing")], 66), (["study", "zsmalloc", "--objects", "15"], 64),
      (["zs"], 64), (["zs", path("missing")], 66), (["zs", folder.path], 66), (["zs", "-"], 65),
      (["zs", trace, "--seed", "x"], 64),
    ] as [([String], Int32)] {
      let outcome = try run(arguments)
      XCTAssertEqual(outcome.status, status, "\(arguments): \(outcome.errors)")
      XCTAssertFalse(outcome.isSignalled, "\(arguments)")
      XCTAssertEqual(outcome.errors.filter { $0 == "\n" }.count, 1, "\(arguments): \(outcome.errors)")
      XCTAssertTrue(outcome.errors.hasPrefix("strata: "), outcome.errors)
      XCTAssertEqual(outcome.text, "", "\(arguments)")
    }
  }

  func testTheReasonIsGiven() throws {
    XCTAssertTrue(try run("replay", path("missing")).errors.contains("No such file or directory"))
    XCTAssertTrue(try run("trace", "pack", folder.path, "-o", "-").errors.contains("is a directory"))
    let missing = try run("replay", path("t.trace/below"))
    try packed().write(to: URL(fileURLWithPath: path("t.trace")))
    XCTAssertTrue(missing.errors.contains("No such file"), missing.errors)
    XCTAssertTrue(try run("replay", path("t.trace/below")).errors.contains("Not a directory"))
    let long = path(String(repeating: "x", count: 200))
    try Data("no trace".utf8).write(to: URL(fileURLWithPath: long))
    XCTAssertTrue(
      try run("replay", long).errors.contains("is no packed trace"), "a long name hides no reason")
  }

  func testAnInputThatNeverEndsIsRefused() throws {
    for arguments in [
      ["replay", "/dev/zero"], ["trace", "show", "/dev/urandom"], ["bench", "--from", "/dev/zero"],
    ] {
      let outcome = try run(arguments)
      XCTAssertEqual(outcome.status, 65, "\(arguments): \(outcome.errors)")
      XCTAssertEqual(outcome.errors.filter { $0 == "\n" }.count, 1, outcome.errors)
    }
    let endless = Data("# tracer: nop\n".utf8) + Data(repeating: UInt8(ascii: "y"), count: 3 << 20)
    let outcome = try run("trace", "pack", "-", "-o", path("out"), input: endless)
    XCTAssertEqual(outcome.status, 65)
    XCTAssertTrue(outcome.errors.contains("a line of more than 1 MiB"), outcome.errors)
  }

  func testAnEmptyNameAndAnEmptyFileAreNamed() throws {
    for arguments in [
      ["replay", ""], ["trace", "pack", "", "-o", "x"], ["trace", "pack", "-", "-o", ""], ["zs", ""],
    ] {
      let outcome = try run(arguments)
      XCTAssertEqual(outcome.status, 64, outcome.errors)
      XCTAssertTrue(outcome.errors.hasSuffix(" is empty\n"), outcome.errors)
    }
    let empty = try run("trace", "pack", "-", "-o", path("x"))
    XCTAssertEqual(empty.errors, "strata: standard input: is empty\n")
    XCTAssertEqual(empty.status, 65)
  }

  /// The recording is not read for an output that can't be written.
  func testAnOutputThatCannotBeIsRefusedFirst() throws {
    for (output, reason) in [
      (path("no/folder/x"), "No such file or directory"), (folder.path, "is a directory"),
    ] {
      let outcome = try run("trace", "pack", "-", "-o", output, input: Data("rubbish\n".utf8))
      XCTAssertEqual(outcome.status, 73, outcome.errors)
      XCTAssertTrue(outcome.errors.contains(reason), outcome.errors)
    }
  }

  /// A closed or full standard error loses the text, and nothing else.
  func testAClosedStandardErrorIsNoTrap() throws {
    try packed().write(to: URL(fileURLWithPath: path("t.trace")))
    for (line, status) in [
      ("replay missing 2>&-", 66), ("replay t.trace --memory 16M >/dev/null 2>&-", 0),
      ("nonsense 2>/dev/full", 64),
      ("replay missing 2>/dev/full", 66), ("trace pack t.trace -o x 2>&-", 65), ("--version >&- 2>&-", 74),
    ] as [(String, Int32)] {
      let shell = Process()
      shell.executableURL = URL(fileURLWithPath: "/bin/sh")
      shell.currentDirectoryURL = folder
      shell.arguments = ["-c", "'\(Self.tool.path)' \(line)"]
      try shell.run()
      shell.waitUntilExit()
      XCTAssertEqual(shell.terminationReason, .exit, line)
      XCTAssertEqual(shell.terminationStatus, status, line)
    }
  }

  // MARK: Commands

  func testAMistakePointsAtHelpThatThereIs() throws {
    for (arguments, help) in [
      (["nonsense"], "strata help"), (["trace", "nonsense"], "strata help trace"),
      (["fuzz", "extra"], "strata help fuzz"),
      (["trace", "show"], "strata help trace show"), (["study", "contig", "x"], "strata help study contig"),
      (["zs"], "strata help zs"),
    ] {
      let outcome = try run(arguments)
      XCTAssertTrue(outcome.errors.hasSuffix(" (\(help) says more)\n"), outcome.errors)
    }
  }

  func testNoExampleOfHelpIsBroken() throws {
    for command in [
      "", "trace", "trace pack", "trace show", "replay", "fuzz", "study", "study contig", "study zsmalloc",
      "zs",
      "bench",
    ] {
      let help = try run(command.split(separator: " ").map(String.init) + ["--help"])
      XCTAssertEqual(help.status, 0)
      var isInExamples = false
      for line in help.text.split(separator: "\n", omittingEmptySubsequences: false) {
        if isInExamples && !line.isEmpty {
          XCTAssertTrue(line.hasPrefix("  "), "\(command): the example is broken before \(line)")
        }
        if line == "Examples:" || line == "Start here:" {
          isInExamples = true
        } else if line.isEmpty {
          isInExamples = false
        }
      }
    }
  }

  func testTheVersionIsOneLine() throws {
    let outcome = try run("--version")
    XCTAssertEqual(outcome.status, 0)
    XCTAssertTrue(outcome.text.hasPrefix("strata "), outcome.text)
    XCTAssertEqual(outcome.text.filter { $0 == "\n" }.count, 1)
  }

  func testShowPrintsHeaderTablesAndTheEventsAskedFor() throws {
    let trace = try packed()
    let text = try run("trace", "show", "-", input: trace).text
    for part in [
      "5 events of 5 operations, on 2 processors; 1 line of the source left out", "2 objects, at most 1 live",
      "2 frames, at most 2 live",
      "dentry", "72 in 96", "zero  a+0x1/0x2", "order 1", "soft     mm_page_alloc", "object 1",
    ] {
      XCTAssertTrue(text.contains(part), part + "\n" + text)
    }
    let some = try run(
      "trace", "show", "-", "-j", "--first", "2", "--count", "2", "--rows", "1", input: trace
    ).rows
    XCTAssertEqual(
      some.map { $0["kind"] as? String },
      ["trace", "trace_cache", "trace_operation", "trace_event", "trace_event"])
    XCTAssertEqual(some.last?["number"] as? Int, 3)
    XCTAssertEqual(some.last?["order"] as? Int, 1)
    XCTAssertEqual(some.last?["context"] as? String, "soft")
    XCTAssertTrue(some.last?["site"] is NSNull)
    XCTAssertEqual(
      try run("trace", "show", "-", "-j", "--count", "0", "--rows", "0", input: trace).rows.count, 1)
  }

  func testShowShowsAGarbledTraceUpToTheDamage() throws {
    var trace = try packed()
    trace[trace.count - 2] = 0x7f
    let outcome = try run("trace", "show", "-", "-j", input: trace)
    XCTAssertEqual(outcome.status, 65)
    XCTAssertEqual(outcome.rows.filter { $0["kind"] as? String == "trace_event" }.count, 4)
    XCTAssertTrue(outcome.errors.contains("record 5 of 5"), outcome.errors)
  }

  func testFuzzReachesTheLastSeed() throws {
    let outcome = try run("fuzz", "--first", "\(UInt64.max - 1)", "--seeds", "2", "--operations", "10", "-j")
    XCTAssertEqual(outcome.status, 0, outcome.errors)
    XCTAssertEqual(outcome.rows.first?["seeds"] as? Int, 2)
    XCTAssertEqual(outcome.rows.first?["operations"] as? Int, 20)
  }

  func testAReplayAgainstAnotherAllocatorIsOneTable() throws {
    let trace = try packed()
    let rows = try run("replay", "-", "--against", "glibc", "-j", input: trace).rows
    XCTAssertEqual(rows.map { $0["allocator"] as? String }, ["strata", "glibc"])
    for row in rows {
      XCTAssertEqual(row["kind"] as? String, "against")
      XCTAssertGreaterThan(row["ns"] as? Double ?? 0, 0)
    }
    let table = try run("replay", "-", "--against", "glibc", input: trace)
    XCTAssertEqual(table.status, 0, table.errors)
    XCTAssertTrue(table.text.hasPrefix("allocator"), table.text)
    // Frames alone are nothing for malloc.
    let frames =
      "  sh-1 [000] 1.0: mm_page_alloc: page=01 pfn=16 order=0 migratetype=0 gfp_flags=GFP_KERNEL\n"
    let pages = try run("trace", "pack", "-", "-o", "-", input: Data(frames.utf8)).output
    let refused = try run("replay", "-", "--against", "glibc", input: pages)
    XCTAssertEqual(refused.status, 65)
    XCTAssertTrue(refused.errors.contains("no object of at most 4 KiB"), refused.errors)
    XCTAssertEqual(refused.errors.filter { $0 == "\n" }.count, 1, refused.errors)
  }

  func testStudiesPrintRowsOfJSON() throws {
    let outcome = try run(
      "study", "contig", "-j", "--memory", "16M", "--swap", "64M", "--runs", "2", "--size", "64K")
    XCTAssertEqual(outcome.status, 0, outcome.errors)
    XCTAssertEqual(outcome.rows.map { $0["strategy"] as? String }, ["old", "new"])
  }

  func testTheStudyOfZsmallocHasARowForEachLayoutAndSizes() throws {
    let text = Data(String(repeating: Self.lines, count: 100).utf8)
    let arguments = ["study", "zsmalloc", "-", "--objects", "64"]
    let outcome = try run(arguments + ["-j"], input: text)
    XCTAssertEqual(outcome.status, 0, outcome.errors)
    let layouts = ["strata", "linux-6.1", "linux-6.3", "joined", "zbud", "xvmalloc", "order-1"]
    XCTAssertEqual(outcome.rows.count, 4 * layouts.count)
    XCTAssertEqual(outcome.rows.prefix(layouts.count).map { $0["layout"] as? String }, layouts)
    XCTAssertEqual(
      Set(outcome.rows.compactMap { $0["sizes"] as? String }), ["pages", "uniform", "exponential", "bimodal"])
    for row in outcome.rows {
      XCTAssertTrue(0 < row["filled"] as? Double ?? 0 && row["filled"] as? Double ?? 2 <= 1, "\(row)")
      XCTAssertEqual(row["seed"] as? Int, 1)
    }
    // Input of zeroes has no compressed page.
    XCTAssertEqual(try run(arguments + ["-j"], input: Data(count: 8192)).rows.count, 3 * layouts.count)
    let tables = try run(arguments, input: text)
    XCTAssertEqual(tables.status, 0, tables.errors)
    for part in [
      "pages of standard input: ", "Seed 1.", "uniform, 1 to 4096 bytes: 64 objects", "order-1 blocks",
    ] {
      XCTAssertTrue(tables.text.contains(part), tables.text)
    }
    let blocks = tables.text.components(separatedBy: "\n\n")
    XCTAssertEqual(blocks.count, 6)
    XCTAssertLessThanOrEqual(blocks.last?.split(separator: "\n").count ?? 9, 6, "the verdict is short")
    XCTAssertEqual(try run(arguments, input: text).text, tables.text, "the same each time")
  }

  func testAFileIsPackedFromEachForm() throws {
    let text = Data(String(repeating: Self.lines, count: 9).utf8)
    try text.write(to: URL(fileURLWithPath: path("plain")))
    let plain = try run("zs", path("plain"), "-j")
    XCTAssertEqual(plain.status, 0, plain.errors)
    XCTAssertEqual(
      plain.rows.map { $0["step"] as? String }, ["stored", "compacted", "halved", "halved_compacted"])
    let pages = (text.count + 4095) / 4096
    XCTAssertEqual(plain.rows[0]["pages"] as? Int, pages)
    XCTAssertEqual(plain.rows[0]["padding_bytes"] as? Int, pages * 4096 - text.count)
    XCTAssertEqual(plain.rows[2]["pages"] as? Int, pages - pages / 2)
    for tool in ["gzip", "xz"] {
      let packer = Process()
      packer.executableURL = URL(fileURLWithPath: "/bin/sh")
      packer.arguments = ["-c", "\(tool) -c '\(path("plain"))' > '\(path(tool))'"]
      try packer.run()
      packer.waitUntilExit()
      let row = try run("zs", path(tool), "-j").rows.first
      XCTAssertEqual(row?["bytes"] as? Int, plain.rows[0]["bytes"] as? Int, tool)
    }
    let given = try run("zs", "-", input: text)
    XCTAssertEqual(given.status, 0, given.errors)
    XCTAssertTrue(given.text.hasPrefix("standard input: \(pages) pages\n"), given.text)
    XCTAssertTrue(given.text.contains(" short, and filled up with zeroes.\n"), given.text)
    XCTAssertTrue(
      given.text.hasSuffix("Each page was loaded again after each step, and is as it was. Seed 1.\n"))
    let whole = try run("zs", "-", input: Data(count: 4096))
    XCTAssertFalse(whole.text.contains("filled up"), whole.text)
    XCTAssertTrue(
      whole.text.contains("standard input: 1 page\n  0 compressed, 1 one repeated word, 0 incomp"), whole.text
    )
    let cut = try run(
      "zs", "-", input: Data(try Data(contentsOf: URL(fileURLWithPath: path("xz"))).dropLast(20)))
    XCTAssertEqual(cut.status, 65)
    XCTAssertTrue(cut.errors.hasPrefix("strata: standard input can't be decompressed: "), cut.errors)
  }

  func testTheSelfTestsOfTheKernelRunOnASimulatedMachine() throws {
    let outcome = try run("selftest", "space", "-j")
    XCTAssertEqual(outcome.status, 0, outcome.errors)
    XCTAssertEqual(outcome.rows.map { $0["kind"] as? String }, ["selftest"])
    XCTAssertEqual(outcome.rows.first?["passed"] as? Bool, true)
    let tooSmall = try run("selftest", "history", "--memory", "16M")
    XCTAssertEqual(tooSmall.status, 69)
    XCTAssertTrue(tooSmall.text.contains("left out: no run of 64 MiB can be loaned here"), tooSmall.text)
    let unknown = try run("selftest", "nothing")
    XCTAssertEqual(unknown.status, 64)
    XCTAssertTrue(unknown.errors.contains("invariants protection frames"), unknown.errors)
  }

  func testTheBenchesOfTheKernelRunOnASimulatedMachine() throws {
    let outcome = try run("bench", "--kernel", "--only", "contig-one", "-j")
    XCTAssertEqual(outcome.status, 0, outcome.errors)
    let rows = outcome.rows.filter { $0["kind"] as? String == "bench" }
    XCTAssertEqual(rows.count, 4)
    for row in rows { XCTAssertEqual(row["where"] as? String, "host") }
    let granted = try XCTUnwrap(rows.first { $0["name"] as? String == "contig-one-granted" })
    XCTAssertEqual(granted["figure"] as? Int, 1)
    XCTAssertEqual(granted["met"] as? Bool, true)
    // Cycles of this host are compared with no goal in instructions.
    let cycles = try XCTUnwrap(rows.first { $0["name"] as? String == "contig-one-instructions" })
    XCTAssertEqual(cycles["unit"] as? String, "cycles")
    XCTAssertTrue(cycles["goal"] is NSNull)
    XCTAssertEqual(try run("bench", "--kernel", "--only", "nothing").status, 64)
  }
}
