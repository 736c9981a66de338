import TestSupport
import XCTest

final class LZ4FuzzTests: XCTestCase {
  /// A few seconds of what `make fuzz-lz4` does for minutes.
  func testTheFuzzerFindsNothingInSeconds() throws {
    let package = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let log = try temporaryFolder().appendingPathComponent("log")
    XCTAssertTrue(FileManager.default.createFile(atPath: log.path, contents: nil))
    let fuzzer = Process()
    fuzzer.executableURL = package.appendingPathComponent("Scripts/fuzz-lz4")
    fuzzer.arguments = ["5"]
    let output = try FileHandle(forWritingTo: log)
    fuzzer.standardOutput = output
    fuzzer.standardError = output
    try fuzzer.run()
    fuzzer.waitUntilExit()
    let text = try String(contentsOf: log, encoding: .utf8)
    XCTAssertEqual(fuzzer.terminationStatus, 0, String(text.suffix(4000)))
    XCTAssertTrue(text.contains("stat::number_of_executed_units"), String(text.suffix(4000)))
  }
}
