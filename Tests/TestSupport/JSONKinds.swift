import Foundation
import XCTest

/// The keys of each kind of JSON row that a test has seen. Every row of a kind must have the same, in the same order.
package enum JSONKinds {
  nonisolated(unsafe) private static var keys: [String: [String]] = [:]

  /// The kinds of which a test has seen a row.
  package static var seen: Set<String> { Set(keys.keys) }

  /// The kinds that only the host tool prints.
  package static var ofTheTool: Set<String> {
    // Reading the document fills it.
    _ = documented
    return tool
  }
  nonisolated(unsafe) private static var tool: Set<String> = []

  /// The keys of each kind in Documentation/JSON.md.
  package static let documented: [String: [String]] = {
    let file = URL(fileURLWithPath: #filePath).resolvingSymlinksInPath().deletingLastPathComponent()
      .deletingLastPathComponent()
      .deletingLastPathComponent().appendingPathComponent("Documentation/JSON.md")
    var kinds: [String: [String]] = [:]
    for line in ((try? String(contentsOf: file, encoding: .utf8)) ?? "").split(separator: "\n") {
      let cells = line.split(separator: "|", omittingEmptySubsequences: false)
      guard cells.count == 6, cells[1].contains("`") else { continue }
      let names = cells[4].split(separator: " ").map { $0.filter { $0 != "`" } }
      let kind = cells[1].filter { $0 != "`" && $0 != " " }
      XCTAssertNil(kinds[kind], "Documentation/JSON.md lists \(kind) twice")
      kinds[kind] = ["kind"] + names
      if cells[2].hasPrefix(" `strata ") { tool.insert(kind) }
    }
    return kinds
  }()

  /// Checks each line of `text` that is a row; `line` is the command that printed it.
  package static func check(_ text: String, of line: String) {
    for row in text.split(separator: "\n") where row.hasPrefix("{\"kind\":") {
      let found = keys(of: row)
      guard let kind = kind(of: row) else {
        XCTFail("\(line) prints a row without a kind: \(row)")
        continue
      }
      if let known = keys[kind] {
        XCTAssertEqual(found, known, "of the kind \(kind), by \(line)")
      } else {
        keys[kind] = found
        XCTAssertEqual(documented[kind], found, "Documentation/JSON.md, kind \(kind), by \(line)")
      }
    }
  }

  private static func kind(of row: Substring) -> String? {
    let object = try? JSONSerialization.jsonObject(with: Data(row.utf8)) as? [String: Any]
    return object?["kind"] as? String
  }

  /// The keys of a row without nested objects, in their order.
  private static func keys(of row: Substring) -> [String] {
    var keys: [String] = []
    var word = ""
    var isQuoted = false
    var isEscaped = false
    var isKey = true
    for character in row {
      if isQuoted {
        if isEscaped {
          isEscaped = false
        } else if character == "\\" {
          isEscaped = true
          continue
        } else if character == "\"" {
          isQuoted = false
          if isKey { keys.append(word) }
          continue
        }
        word.append(character)
      } else if character == "\"" {
        (isQuoted, word) = (true, "")
      } else if character == ":" {
        isKey = false
      } else if character == "," {
        isKey = true
      }
    }
    return keys
  }
}
