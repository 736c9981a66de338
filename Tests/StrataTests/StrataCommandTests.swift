import ArgumentParser
import Foundation
import TestSupport
import XCTest

@testable import strata

/// The commands as a shell would run them, in this process: their output and exit status.
final class StrataCommandTests: XCTestCase {
  private var folder: URL!

  override func setUpWithError() throws { folder = try temporaryFolder() }

  private func path(_ name: String) -> String { folder.appendingPathComponent(name).path }

  private func write(_ name: String, _ data: Data) throws -> String {
    try data.write(to: folder.appendingPathComponent(name))
    return path(name)
  }

  /// The exit status of `strata` with these arguments.
  private func status(_ arguments: String...) -> Int32 {
    do {
      var command = try Strata.parseAsRoot(arguments)
      try command.run()
      return 0
    } catch {
      return Strata.exitCode(for: error).rawValue
    }
  }

  private static let lines = """
    # tracer: nop
          sh-175     [000] .....     8.990553: kmalloc: call_site=a+0x1/0x2 ptr=00000000bcebd58d bytes_req=72 bytes_alloc=96 gfp_flags=GFP_KERNEL|__GFP_ZERO node=-1 accounted=false
          sh-175     [001] ..s1.     8.990560: kfree: call_site=a+0x9/0x20 ptr=00000000bcebd58d
          sh-175     [001] ..s1.     8.990561: mm_page_alloc: page=0000000061d822d4 pfn=0x100946 order=1 migratetype=0 gfp_flags=GFP_KERNEL

    """

  private func compressed(_ text: String, _ tool: String) throws -> Data {
    let plain = try write("plain", Data(text.utf8))
    let process = Process()
    let output = Pipe()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = [tool, "-c", plain]
    process.standardOutput = output
    try process.run()
    let data = output.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    return data
  }

  func testPlainAndCompressedTextArePackedAlike() throws {
    let plain = try write("t.ftrace", Data(Self.lines.utf8))
    XCTAssertEqual(status("trace", "pack", plain, "-o", path("plain.trace"), "--title", "t"), 0)
    let expected = try Data(contentsOf: URL(fileURLWithPath: path("plain.trace")))
    XCTAssertEqual(try PackedTraceCopy([UInt8](expected)).counts.events, 3)
    for tool in ["gzip", "xz"] {
      let input = try write("t.\(tool)", compressed(Self.lines, tool))
      XCTAssertEqual(status("trace", "pack", input, "-o", path("\(tool).trace"), "--title", "t"), 0)
      XCTAssertEqual(try Data(contentsOf: URL(fileURLWithPath: path("\(tool).trace"))), expected)
    }
    XCTAssertEqual(status("replay", path("plain.trace"), "--memory", "16M"), 0)
    XCTAssertEqual(status("replay", path("plain.trace"), "-j"), 0)
  }

  func testBadTextEndsWithItsStatusAndLeavesNoFile() throws {
    let output = path("out.trace")
    let truncated = try compressed(String(repeating: Self.lines, count: 4000), "xz").dropLast(30)
    for (name, data) in [
      ("empty", Data()), ("comments", Data("# tracer: nop\n".utf8)), ("rubbish", Data("rubbish\n".utf8)),
      ("cut.xz", Data(truncated)), ("cut", Data("      sh-175     [000] .....     8.9: kfree: call_".utf8)),
    ] {
      XCTAssertEqual(status("trace", "pack", try write(name, data), "-o", output), 65, name)
    }
    XCTAssertEqual(status("trace", "pack", path("missing"), "-o", output), 66)
    XCTAssertEqual(status("trace", "pack", folder.path, "-o", output), 66)
    XCTAssertFalse(FileManager.default.fileExists(atPath: output))
    let good = try write("good", Data(Self.lines.utf8))
    XCTAssertEqual(status("trace", "pack", good, "-o", path("no/such/folder/out")), 73)
    XCTAssertEqual(status("trace", "pack", good), 64)
    XCTAssertEqual(status("trace", "pack", good, "-o", output, "--events", "0"), 64)
  }

  func testARecordingWithABrokenLineIsPackedWithoutIt() throws {
    let broken = "          sh-175     [001] ..s1.     8.9: kfree: call_si"
    // At the end, with the line feed that an editor or a shell appends, and without; and before all events.
    for (name, text) in [
      ("with", Self.lines + broken + "\n"), ("without", Self.lines + broken),
      ("first", broken + "\n" + Self.lines),
    ] {
      let recording = try write(name, Data(text.utf8))
      XCTAssertEqual(status("trace", "pack", recording, "-o", path("broken.trace")), 0, name)
      let packed = try Data(contentsOf: URL(fileURLWithPath: path("broken.trace")))
      XCTAssertEqual(try PackedTraceCopy([UInt8](packed)).counts.events, 3, name)
      XCTAssertEqual(status("replay", path("broken.trace"), "--memory", "16M"), 0, name)
    }
  }

  func testOtherFormsEndWithOneLine() throws {
    let output = path("out.trace")
    for (name, data) in [
      ("trace.dat", Data([0x17, 0x08, 0x44] + Array("tracing6\0".utf8))),
      ("perf.data", Data("PERFILE2\0".utf8)),
      ("graph", Data(" 24)   0.134 us    |  schedule();\n".utf8)),
      ("t.zst", Data([0x28, 0xb5, 0x2f, 0xfd, 1])),
      ("t.bz2", Data("BZh91AY&SY".utf8)),
      ("trace.dat.gz", try compressed("PERFILE2", "gzip")),
    ] {
      XCTAssertEqual(status("trace", "pack", try write(name, data), "-o", output), 65, name)
    }
    XCTAssertFalse(FileManager.default.fileExists(atPath: output))
  }

  func testBadTracesEndWithTheirStatus() throws {
    let good = try write("t.ftrace", Data(Self.lines.utf8))
    XCTAssertEqual(status("trace", "pack", good, "-o", path("t.trace")), 0)
    let trace = try Data(contentsOf: URL(fileURLWithPath: path("t.trace")))
    var garbled = trace
    garbled[garbled.count - 2] ^= 4
    for (name, data) in [
      ("empty", Data()), ("cut", trace.dropLast()), ("garbled", garbled), ("long", trace + [0]),
    ] {
      XCTAssertEqual(status("replay", try write(name, Data(data))), 65, name)
    }
    XCTAssertEqual(status("replay", path("missing")), 66)
    XCTAssertEqual(status("replay", folder.path), 66)
    XCTAssertEqual(status("replay", path("t.trace"), "--memory", "lots"), 64)
    XCTAssertEqual(status("replay", path("t.trace"), "--memory", "1M"), 69)
  }

  /// Each line that a document shows for a shell is one that the tool or the Makefile understands.
  func testTheLinesOfTheDocumentsAreUnderstood() throws {
    let makefile = try String(
      contentsOf: DocumentLines.root.appendingPathComponent("Makefile"), encoding: .utf8)
    var (tools, targets) = (0, 0)
    for (line, document) in try DocumentLines.all() {
      // Without a comment behind it, and without the variables before it.
      let words = line.split(separator: "#").first.map { $0.split(separator: " ").map(String.init) } ?? []
      let command = Array(words.drop { $0.contains("=") })
      if command.starts(with: ["swift", "run", "-c", "release", "strata"]) {
        tools += 1
        XCTAssertNoThrow(try Strata.parseAsRoot(Array(command.dropFirst(5))), "\(document): \(line)")
      } else if command.first == "make" {
        targets += 1
        for target in command.dropFirst() where !target.contains("=") {
          XCTAssertTrue(makefile.contains("\n\(target):"), "\(document): \(line)")
        }
      } else {
        // Variables alone set nothing that is used.
        XCTAssertFalse(words.first?.hasPrefix("FILTER=") == true && command.isEmpty, "\(document): \(line)")
      }
    }
    XCTAssertGreaterThan(tools, 3)
    XCTAssertGreaterThan(targets, 5)
  }

  func testSizesArePowersOf1024() {
    for (text, bytes) in [
      ("4096", 4096), ("64M", 64 << 20), ("1GiB", 1 << 30), ("2kb", 2048), ("1_024K", 1 << 20),
    ]
      as [(String, UInt64)]
    {
      XCTAssertEqual(Size(argument: text)?.bytes.rawValue, bytes, text)
    }
    for text in ["", "M", "-1", "0", "1X", "1.5G", "99999999999T"] {
      XCTAssertNil(Size(argument: text), text)
    }
  }
}
