import Foundation
import XCTest

/// `make debug`, in a scripted session: gdb's commands beside the console's answers at the same moment.
final class BootDebuggerTests: XCTestCase {
  private func session(_ commands: [String], processors: Int = 2, status: Int32 = 0) throws -> String {
    try XCTSkipUnless(FileManager.default.isExecutableFile(atPath: "/usr/bin/gdb"), "make debug installs gdb")
    let process = Process()
    let output = Pipe()
    process.executableURL = Boot.root.appendingPathComponent("Scripts/debug")
    process.currentDirectoryURL = Boot.root
    process.arguments = ["-batch"] + commands.flatMap { ["-ex", "echo [\($0)]\\n", "-ex", $0] }
    process.environment = [
      "PATH": ProcessInfo.processInfo.environment["PATH"] ?? "", "HOME": NSHomeDirectory(), "MEM": "64M",
      "SWAP": "0", "KERNEL": "pvh",
      "CPUS": "\(processors)",
    ]
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = output
    process.standardError = output
    try process.run()
    try? output.fileHandleForWriting.close()
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    XCTAssertEqual(process.terminationStatus, status, text)
    return text
  }

  /// The output of one command of a session.
  private func part(_ command: String, of text: String) throws -> [Substring] {
    let start = try XCTUnwrap(text.range(of: "[\(command)]\n"), text)
    let rest = text[start.upperBound...]
    return rest[..<(rest.range(of: "\n[")?.lowerBound ?? rest.endIndex)].split(separator: "\n")
  }

  /// The figure behind each name at the start of a line.
  private func figures(_ lines: [Substring]) -> [String: Int] {
    var figures: [String: Int] = [:]
    for line in lines where !line.hasPrefix("Thread") {
      let name = line.prefix { !$0.isNumber }.trimmingCharacters(in: .whitespaces)
      let digits = line.drop { !$0.isNumber }.prefix { $0.isNumber || $0 == "," }.filter(\.isNumber)
      if let figure = Int(digits) { figures[name] = figure }
    }
    return figures
  }

  func testFramesAndCachesAreTheConsoles() throws {
    let text = try session([
      "strata-console frames", "strata-frames", "strata-console kmem", "strata-kmem",
    ])
    let shown = figures(try part("strata-console frames", of: text))
    let asked = figures(try part("strata-frames", of: text))
    XCTAssertGreaterThan(shown.count, 8, text)
    XCTAssertNotNil(shown["all roles"], text)
    XCTAssertEqual(shown, asked, text)
    let cache = try XCTUnwrap(part("strata-kmem", of: text).first { $0.hasPrefix("thread") }, text)
    let fields = cache.split(separator: " ").prefix(4)
    XCTAssertTrue(
      try part("strata-console kmem", of: text).contains { $0.split(separator: " ").prefix(4) == fields },
      text)
  }

  func testThreadsBacktracesAndAnAddress() throws {
    let text = try session([
      "strata-console", "strata-threads", "strata-backtraces", "strata-whatis 0xffffffff80130000",
      "strata-whatis 16",
    ])
    let threads = try part("strata-threads", of: text)
    for name in ["console", "page daemon", "laundry"] {
      XCTAssertTrue(threads.contains { $0.contains(name) }, text)
    }
    let traces = try part("strata-backtraces", of: text)
    XCTAssertEqual(traces.filter { $0.hasPrefix("processor ") }, ["processor 0", "processor 1"], text)
    XCTAssertTrue(traces.contains { $0.contains("kernel_thread") || $0.contains("kernel_processor") }, text)
    let code = try part("strata-whatis 0xffffffff80130000", of: text)
    XCTAssertTrue(code.contains { $0.hasSuffix("the kernel's code") }, text)
    XCTAssertTrue(code.contains { $0.hasPrefix("role") && $0.hasSuffix("image") }, text)
    XCTAssertTrue(try part("strata-whatis 16", of: text).contains { $0.hasSuffix("none") }, text)
  }

  func testHelpListsTheCommandsOfStrata() throws {
    let text = try session(["help strata", "strata"], processors: 1)
    for command in ["help strata", "strata"] {
      let names = try part(command, of: text).filter { $0.hasPrefix("strata-") }.map {
        $0.prefix { $0 != " " }
      }
      XCTAssertEqual(
        names,
        [
          "strata-console", "strata-frames", "strata-kmem", "strata-threads", "strata-whatis",
          "strata-backtraces",
        ], text)
    }
  }

  func testBeforeTheBootThereIsAnAnswer() throws {
    let text = try session(["hbreak kernel_main", "continue", "strata-frames"], processors: 1, status: 1)
    XCTAssertTrue(text.contains("not up yet"), text)
  }
}
