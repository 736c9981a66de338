// A folder of a test's own, which goes when the test ends.

import Foundation
import XCTest

extension XCTestCase {
  /// Makes an empty folder that is removed at the end of the test, with all that lies in it then.
  package func temporaryFolder() throws -> URL {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("strata-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    addTeardownBlock { try? FileManager.default.removeItem(at: folder) }
    return folder
  }
}
