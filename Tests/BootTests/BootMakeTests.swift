import Foundation
import TestSupport
import XCTest

/// `make` and its scripts, as a person calls them.
final class BootMakeTests: XCTestCase {
  struct Result {
    let text: String
    let status: Int32
    var lines: [Substring] { text.split(separator: "\n") }
  }

  /// A command that runs at the root of the tree, or of a copy of it, without what `make test` has set.
  private final class Command {
    private let process = Process()
    private let output = Pipe()

    init(_ words: [String], _ variables: [String: String] = [:], in folder: URL = Boot.root) throws {
      process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
      process.arguments = words
      process.currentDirectoryURL = folder
      let inherited = ["PATH", "HOME", "TMPDIR"].compactMap { name in
        ProcessInfo.processInfo.environment[name].map { (name, $0) }
      }
      process.environment = Dictionary(uniqueKeysWithValues: inherited).merging(variables) { $1 }
      process.standardInput = FileHandle.nullDevice
      process.standardOutput = output
      process.standardError = output
      try process.run()
      try? output.fileHandleForWriting.close()
    }

    func finish() -> Result {
      let data = output.fileHandleForReading.readDataToEndOfFile()
      process.waitUntilExit()
      let text = String(decoding: data, as: UTF8.self).replacingOccurrences(of: "\r", with: "")
      return Result(text: text, status: process.terminationStatus)
    }
  }

  func testTwoRunsAtOnceExecuteEachItsOwnCommand() throws {
    let commands = ["frames", "vmem", "buddy"]
    let runs = try commands.map {
      try Command(["Scripts/run"], ["ARGS": "run=\($0)", "MEM": "64M", "KERNEL": "grub"])
    }
    for (command, run) in zip(commands, runs) {
      let result = run.finish()
      XCTAssertEqual(result.status, 0, result.text)
      let echoed = result.lines.filter { $0.hasPrefix("strata> ") }
      XCTAssertEqual(echoed, ["strata> \(command)"], result.text)
    }
  }

  func testAMalformedVariableIsNamedBeforeAnythingIsBuilt() throws {
    let malformed = [
      "MEM=256": "MEM=256M", "MEM=lots": "MEM=256M", "MEM=0": "MEM=256M", "MEM=99T": "16 TiB",
      "SWAP=64": "SWAP=64M", "SWAP=-1": "SWAP=64M", "CPUS=two": "CPUS=4", "CPUS=0": "CPUS=4",
      "CPUS=256": "1 to 255", "KERNEL=uefi": "pvh", "TRACE=/no/such.trace": "strata trace pack",
    ]
    for (variable, advice) in malformed {
      for target in ["run", "iso"] {
        let result = try Command(["make", target, variable]).finish()
        XCTAssertNotEqual(result.status, 0, variable)
        // make adds a line of its own.
        XCTAssertEqual(result.lines.count, 2, result.text)
        XCTAssertTrue(result.text.hasPrefix(variable), result.text)
        XCTAssertTrue(result.text.contains(advice), result.text)
      }
    }
  }

  func testMakeAlonePrintsHelp() throws {
    let result = try Command(["make"]).finish()
    XCTAssertEqual(result.status, 0, result.text)
    XCTAssertEqual(result.text, try Command(["make", "help"]).finish().text)
    XCTAssertTrue(result.text.contains("make run "), result.text)
  }

  /// A folder with all programs of this machine, but those that begin so.
  private func programs(without left: [String]) throws -> URL {
    let programs = try temporaryFolder()
    for folder in ["/usr/bin", "/bin"] {
      for name in try FileManager.default.contentsOfDirectory(atPath: folder)
      where !left.contains(where: { name.hasPrefix($0) }) {
        try? FileManager.default.createSymbolicLink(
          atPath: programs.appendingPathComponent(name).path, withDestinationPath: "\(folder)/\(name)")
      }
    }
    return programs
  }

  private func writeScript(_ name: String, in folder: URL, _ lines: String) throws {
    let file = folder.appendingPathComponent(name)
    try Data("#!/bin/sh\n\(lines)\n".utf8).write(to: file)
    try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: file.path)
  }

  /// The debugger's tests are skipped without gdb, so `make test` installs it.
  func testMakeTestInstallsTheDebugger() throws {
    // Without swift, a run that installs nothing ends too.
    let programs = try programs(without: ["gdb", "apt-get", "sudo", "swift"])
    try writeScript("swiftc", in: programs, "exit 1")
    try writeScript("sudo", in: programs, "exec \"$@\"")
    try writeScript("apt-get", in: programs, "echo \"apt-get $*\"; exit 1")
    let result = try Command(["make", "test"], ["PATH": programs.path]).finish()
    XCTAssertNotEqual(result.status, 0, result.text)
    let line = try XCTUnwrap(result.lines.first, result.text)
    XCTAssertTrue(line.hasPrefix("Installing what is missing:"), result.text)
    XCTAssertTrue(line.split(separator: " ").contains("gdb"), result.text)
  }

  func testSkippedTestsAreNamedInTheLastLinesOfATestRun() throws {
    let tree = try temporaryFolder()
    try FileManager.default.copyItem(
      at: Boot.root.appendingPathComponent("Scripts"), to: tree.appendingPathComponent("Scripts"))
    let path = "\(tree.path):\(ProcessInfo.processInfo.environment["PATH"] ?? "")"
    let line = { (name: String, end: String) in "echo \"Test Case '\(name)' \(end) (0.1 seconds)\"" }
    let passed = line("A.testOne", "passed")
    for (skipped, last) in [
      ([], ["1 passed, 0 failed"]), (["A.testTwo"], ["1 skipped: A.testTwo", "1 passed, 0 failed"]),
      (["A.testTwo", "B.testOne"], ["2 skipped: A.testTwo B.testOne", "1 passed, 0 failed"]),
    ] {
      let lines = [passed] + skipped.map { line($0, "skipped") }
      try writeScript("swift", in: tree, lines.joined(separator: "\n"))
      let result = try Command(["Scripts/test"], ["PATH": path, "FILTER": "^[AB]"], in: tree).finish()
      XCTAssertEqual(result.status, 0, result.text)
      XCTAssertEqual(result.lines.suffix(last.count).map(String.init), last, result.text)
      XCTAssertEqual(result.lines.contains { $0.contains("skipped:") }, !skipped.isEmpty, result.text)
    }
  }

  func testWithoutSwiftABuildSaysSo() throws {
    let tools = try programs(without: ["swift"])
    for target in ["kernel", "run", "lint"] {
      let result = try Command(["make", target], ["PATH": tools.path]).finish()
      XCTAssertNotEqual(result.status, 0, result.text)
      XCTAssertEqual(result.lines.count, 2, result.text)
      XCTAssertTrue(result.text.hasPrefix("Strata needs the Swift 6.3 toolchain"), result.text)
    }
  }

  /// The pins of the host's tool are present, as after `swift run`, and every use of git fails.
  func testTheKernelsBuildFetchesNothing() throws {
    let tree = try temporaryFolder()
    let files = FileManager.default
    for name in ["Package.swift", "Sources", "toolset.json"] {
      try files.createSymbolicLink(
        at: tree.appendingPathComponent(name), withDestinationURL: Boot.root.appendingPathComponent(name))
    }
    try files.copyItem(
      at: Boot.root.appendingPathComponent("Scripts"), to: tree.appendingPathComponent("Scripts"))
    let none = #"{ "originHash" : "", "pins" : [], "version" : 3 }"#
    let pins =
      (try? Data(contentsOf: Boot.root.appendingPathComponent("Package.resolved"))) ?? Data(none.utf8)
    try pins.write(to: tree.appendingPathComponent("Package.resolved"))
    try writeScript("git", in: tree, "echo \"git $*\" >> '\(tree.path)/git.log'\nexit 1")
    let path = "\(tree.path):\(ProcessInfo.processInfo.environment["PATH"] ?? "")"
    let result = try Command(["Scripts/compile", "CPlatform"], ["PATH": path], in: tree).finish()
    XCTAssertEqual(result.status, 0, result.text)
    XCTAssertFalse(result.text.contains("etch"), result.text)
    let log = (try? String(contentsOf: tree.appendingPathComponent("git.log"), encoding: .utf8)) ?? ""
    XCTAssertFalse(log.contains("clone") || log.contains("fetch"), log)
    XCTAssertEqual(try Data(contentsOf: tree.appendingPathComponent("Package.resolved")), pins)
  }
}
