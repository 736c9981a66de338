import Foundation
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

  private func temporaryFolder() throws -> URL {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("strata-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    addTeardownBlock { try? FileManager.default.removeItem(at: folder) }
    return folder
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

  func testWithoutSwiftABuildSaysSo() throws {
    // A path with all that this machine has, but the compiler.
    let tools = try temporaryFolder()
    for folder in ["/usr/bin", "/bin"] {
      for name in try FileManager.default.contentsOfDirectory(atPath: folder) where !name.hasPrefix("swift") {
        try? FileManager.default.createSymbolicLink(
          atPath: tools.appendingPathComponent(name).path, withDestinationPath: "\(folder)/\(name)")
      }
    }
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
    let git = tree.appendingPathComponent("git")
    try Data("#!/bin/sh\necho \"git $*\" >> '\(tree.path)/git.log'\nexit 1\n".utf8).write(to: git)
    try files.setAttributes([.posixPermissions: 0o755], ofItemAtPath: git.path)
    let path = "\(tree.path):\(ProcessInfo.processInfo.environment["PATH"] ?? "")"
    let result = try Command(["Scripts/compile", "CPlatform"], ["PATH": path], in: tree).finish()
    XCTAssertEqual(result.status, 0, result.text)
    XCTAssertFalse(result.text.contains("etch"), result.text)
    let log = (try? String(contentsOf: tree.appendingPathComponent("git.log"), encoding: .utf8)) ?? ""
    XCTAssertFalse(log.contains("clone") || log.contains("fetch"), log)
    XCTAssertEqual(try Data(contentsOf: tree.appendingPathComponent("Package.resolved")), pins)
  }
}
