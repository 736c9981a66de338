import XCTest

/// The packed sample, replayed in the kernel and on the host; and modules that are no trace.
final class ReplayTests: XCTestCase {
  func testSampleReplaysAndLosesNothing() throws {
    for loader in [Boot.Loader.pvh, .grub] {
      let log = try Boot(loader: loader, module: Boot.sample).run("replay -j", within: 120)
      XCTAssertEqual(log.status, Boot.Status.success, log.text)
      let row = try XCTUnwrap(log.rows("replay").last)
      XCTAssertEqual(row["lost"] as? Int, 0)
      XCTAssertEqual(row["skipped"] as? Int, 0)
    }
  }

  /// A module made from the sample by `change`, and what `replay` says of it.
  func replay(_ change: (Data) -> Data) throws -> Boot.Log {
    let file = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID().uuidString).trace")
    try change(try Data(contentsOf: Boot.sample)).write(to: file)
    defer { try? FileManager.default.removeItem(at: file) }
    return try Boot(module: file).run("replay")
  }

  func testTruncatedTraceIsRefusedInOneLine() throws {
    let log = try replay { $0.prefix($0.count / 2) }
    XCTAssertEqual(log.status, Boot.Status.failed, log.text)
  }

  func testGarbledTraceIsRefused() throws {
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

  func testNoModuleIsSaid() throws {
    let log = try Boot().run("replay")
    XCTAssertEqual(log.status, Boot.Status.failed, log.text)
  }

  func testTraceTooLargeForTheMachineIsSaid() throws {
    let log = try replay { data in
      var data = data
      data.append(contentsOf: [UInt8](repeating: 7, count: 4096))
      return data
    }
    XCTAssertEqual(log.status, Boot.Status.failed, log.text)
  }
}
