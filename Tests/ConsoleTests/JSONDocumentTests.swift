import Foundation
import XCTest

/// Documentation/JSON.md lists the kinds that the console prints, and no others.
final class JSONDocumentTests: XCTestCase {
  func testEachKindOfTheSourcesIsDocumentedAndNoOther() throws {
    let root = URL(fileURLWithPath: #filePath).resolvingSymlinksInPath().deletingLastPathComponent()
      .deletingLastPathComponent()
      .deletingLastPathComponent()
    let folder = root.appendingPathComponent("Sources/Console")
    var printed: Set<String> = ["replay", "wire", "unwire"]
    let pattern = try Regex("(?:row|able)\\(\"([a-z_]+)\"")
    for path in FileManager.default.enumerator(atPath: folder.path)?.allObjects as? [String] ?? []
    where path.hasSuffix(".swift") {
      let text = try String(contentsOf: folder.appendingPathComponent(path), encoding: .utf8)
      for match in text.matches(of: pattern) {
        if let kind = match.output[1].substring { printed.insert(String(kind)) }
      }
    }
    XCTAssertGreaterThan(printed.count, 50)
    XCTAssertEqual(Set(JSONKinds.documented.keys), printed)
  }
}
