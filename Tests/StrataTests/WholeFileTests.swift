import Foundation
import TestSupport
import XCTest

@testable import strata

/// A file that the tool writes appears whole, and no other file of the folder changes.
final class WholeFileTests: XCTestCase {
  private var folder: URL!

  override func setUpWithError() throws { folder = try temporaryFolder() }

  private func path(_ name: String) -> String { folder.appendingPathComponent(name).path }

  private func names() throws -> [String] {
    try FileManager.default.contentsOfDirectory(atPath: folder.path).sorted()
  }

  func testWritingChangesNoOtherFile() throws {
    let part = Data("the user's own".utf8)
    try part.write(to: URL(fileURLWithPath: path("out.part")))
    for bytes in [[1, 2, 3], [4]] as [[UInt8]] {
      try write(bytes, to: path("out"))
      XCTAssertEqual(try Data(contentsOf: URL(fileURLWithPath: path("out"))), Data(bytes))
      XCTAssertEqual(try Data(contentsOf: URL(fileURLWithPath: path("out.part"))), part)
      XCTAssertEqual(try names(), ["out", "out.part"])
    }
  }

  func testAFileHasTheModeThatTheMaskGives() throws {
    for mask in [0o022, 0o077, 0o002] as [mode_t] {
      let before = umask(mask)
      defer { umask(before) }
      try write([1], to: path("out"))
      var status = stat()
      XCTAssertEqual(stat(path("out"), &status), 0)
      XCTAssertEqual(status.st_mode & 0o777, 0o666 & ~mask)
    }
  }

  func testAFailureLeavesNothingBehind() throws {
    try write([1], to: path("out"))
    // From here on, a file of this process may have 1000 bytes. Its output may be such a file, so nothing is printed.
    signal(SIGXFSZ, SIG_IGN)
    var before = rlimit()
    XCTAssertEqual(getrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &before), 0)
    var limit = rlimit(rlim_cur: 1000, rlim_max: before.rlim_max)
    XCTAssertEqual(setrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limit), 0)
    var complaint: (any Error)?
    do { try write([UInt8](repeating: 2, count: 5000), to: path("out")) } catch { complaint = error }
    XCTAssertEqual(setrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &before), 0)
    XCTAssertEqual((complaint as? Complaint)?.status, .ioError)
    XCTAssertEqual(try names(), ["out"])
    XCTAssertEqual(try Data(contentsOf: URL(fileURLWithPath: path("out"))), Data([1]))
  }

  func testTwoWritersAtOnceEachWriteTheirFileWhole() throws {
    let out = path("out")
    DispatchQueue.concurrentPerform(iterations: 2) { writer in
      let bytes = [UInt8](repeating: UInt8(writer), count: 1 << 20)
      for _ in 0..<50 {
        do { try write(bytes, to: out) } catch { XCTFail("\(error)") }
        let read = (try? Data(contentsOf: URL(fileURLWithPath: out))) ?? Data()
        XCTAssertEqual(read.count, 1 << 20)
        XCTAssertEqual(Set(read).count, 1)
      }
    }
    XCTAssertEqual(try names(), ["out"])
  }
}
