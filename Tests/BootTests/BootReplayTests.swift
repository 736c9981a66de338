import XCTest

/// The packed sample, replayed in the kernel and on the host; and modules that are no trace.
final class BootReplayTests: XCTestCase {
  func testTheSampleReplaysAndLosesNothing() throws {
    for loader in [Boot.Loader.pvh, .grub] {
      let log = try Boot(loader: loader, module: Boot.sample).run("replay -j")
      XCTAssertEqual(log.status, Boot.Status.success, log.text)
      let row = try XCTUnwrap(log.rows("replay").last)
      XCTAssertEqual(row["lost"] as? Int, 0)
      XCTAssertEqual(row["skipped"] as? Int, 0)
    }
  }

  /// Split over all processors, it ends with the counts of one, and the trace's interrupts are interrupts.
  private func split(_ processors: Int) throws {
    let log = try Boot(processors: processors, module: Boot.sample).run(
      "replay -j; replay -j on=\(processors); cpus -j; replay on=\(processors); selftest invariants")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    // Neither the highest totals, nor costs, nor the split itself are the same.
    let rows = log.rows("replay").map { row in
      row.filter {
        !$0.key.hasPrefix("peak") && !$0.key.hasSuffix("cost") && !$0.key.hasPrefix("interrupt")
          && $0.key != "processors"
      } as NSDictionary
    }
    XCTAssertEqual(rows.count, 2, log.text)
    XCTAssertEqual(rows.first, rows.last, log.text)
    XCTAssertTrue(log.text.contains("6,945 events were done in "), log.text)
    XCTAssertEqual(log.rows("cpu").count, processors)
    for row in log.rows("cpu") { XCTAssertGreaterThan(try XCTUnwrap(row["switches"] as? Int), 0) }
  }

  func testAReplayRunsOnOneProcessorOfThreads() throws { try split(1) }
  func testAReplayRunsSplitOverTwoProcessors() throws { try split(2) }
  func testAReplayRunsSplitOverFourProcessors() throws { try split(4) }
  func testAReplayRunsSplitOverEightProcessors() throws { try split(8) }

  func testAReplayOnMoreProcessorsThanThereAreIsRefused() throws {
    let log = try Boot(processors: 2, module: Boot.sample).run("replay on=3; replay on=0; replay keep on=2")
    XCTAssertEqual(log.status, Boot.Status.failed, log.text)
    XCTAssertTrue(log.text.contains("^ 1 to 2 processors are there"), log.text)
    XCTAssertTrue(log.text.contains("were live and stay so."), log.text)
  }

  /// The output of `replay` on a module made from the sample by `change`.
  func replay(_ change: (Data) -> Data) throws -> Boot.Log {
    let file = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID().uuidString).trace")
    try change(try Data(contentsOf: Boot.sample)).write(to: file)
    defer { try? FileManager.default.removeItem(at: file) }
    return try Boot(module: file).run("replay")
  }

  func testATruncatedTraceIsRefusedInOneLine() throws {
    let log = try replay { $0.prefix($0.count / 2) }
    XCTAssertEqual(log.status, Boot.Status.failed, log.text)
  }

  func testAGarbledTraceIsRefused() throws {
    let log = try replay { data in
      var data = data
      for i in stride(from: 2000, to: data.count, by: 97) { data[i] ^= 0x5a }
      return data
    }
    XCTAssertEqual(log.status, Boot.Status.failed, log.text)
  }

  func testTextIsNoTrace() throws {
    let log = try replay { _ in Data("this is not a trace\n".utf8) }
    XCTAssertEqual(log.status, Boot.Status.failed, log.text)
  }

  func testAMissingModuleIsReported() throws {
    let log = try Boot().run("replay")
    XCTAssertEqual(log.status, Boot.Status.failed, log.text)
  }

  func testATraceThatIsTooLargeForTheMachineIsReported() throws {
    let log = try replay { data in
      var data = data
      data.append(contentsOf: [UInt8](repeating: 7, count: 4096))
      return data
    }
    XCTAssertEqual(log.status, Boot.Status.failed, log.text)
  }
}
