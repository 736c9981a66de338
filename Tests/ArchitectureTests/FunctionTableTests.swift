import Foundation
import XCTest

/// A table of functions has fields that are verbs, perhaps with their object, and its initialiser has a label of the
/// same name for each. A typed method of the table is all that a caller sees of one.
final class FunctionTableTests: XCTestCase {
  /// The verbs that the fields begin with. A new one needs a line here: look first whether an old one fits.
  private static let verbs: Set<String> = [
    "allocate", "compress", "confine", "construct", "count", "decompress", "describe", "destruct", "empty",
    "enter", "find", "free",
    "import",
    "interrupt",
    "invalidate", "join", "leave", "load", "measure", "read", "reclaim", "release", "remove", "report", "run",
    "set",
    "shoot", "sleep", "start", "stop", "store", "submit", "trigger", "wait", "wake", "write",
  ]
  /// A function that is handed over to be run once, as the work of a thread or of a message, is no service.
  private static let work = "body"

  private struct Name {
    var text: String
    var place: String
  }

  func testFieldsAreVerbs() throws {
    let fields = try swiftFields() + cFields()
    // Fewer means that this test no longer sees how they are declared.
    XCTAssertGreaterThan(fields.count, 40)
    for field in fields where !isVerb(field.text) {
      XCTFail("\(field.place): the function `\(field.text)` begins with no verb of this test's list")
    }
  }

  func testLabelsAreVerbs() throws {
    let functions = try functionTypes()
    var count = 0
    for file in try tablesFiles(functions) {
      for (number, line) in joinedLines(file).enumerated() where line.contains(": @escaping ") {
        for match in line.matches(of: /(\w+): @escaping (@convention\(c\)|[\w.]+)/) {
          let type = String(match.output.2)
          guard type.hasPrefix("@") || functions.contains(lastPart(type)) else { continue }
          count += 1
          if !isVerb(String(match.output.1)) {
            XCTFail("\(file.path):\(number + 1): the label `\(match.output.1)` begins with no verb")
          }
        }
      }
    }
    XCTAssertGreaterThan(count, 20)
  }

  func testAFieldHasTheNameOfItsLabel() throws {
    let fields = Set(try swiftFields().map(\.text)).subtracting([Self.work])
    for file in try tablesFiles(functionTypes()) {
      for (number, line) in SwiftCode(file).lines.enumerated() where line.contains(" = ") {
        guard let match = line.wholeMatch(of: /\s*(?:self\.)?(\w+) = (\w+)/),
          fields.contains(String(match.output.1))
        else { continue }
        XCTAssertEqual(match.output.1, match.output.2, "\(file.path):\(number + 1)")
      }
    }
  }

  private let tree = SourceTree.here

  private func isVerb(_ name: String) -> Bool {
    guard name != Self.work, let first = RatchetTests.splitIntoWords(name).first else { return true }
    return Self.verbs.contains(first)
  }

  private func lastPart(_ type: String) -> String { String(type.split(separator: ".").last ?? "") }

  /// The lines of a file, each with its successor where a declaration goes on there.
  private func joinedLines(_ file: SourceTree.File) -> [String] {
    let lines = SwiftCode(file).lines
    return lines.indices.map { index in
      let line = lines[index]
      guard line.hasSuffix(":") || line.hasSuffix("="), index + 1 < lines.count else { return line }
      return line + " " + lines[index + 1].trimmingCharacters(in: .whitespaces)
    }
  }

  /// The files that may declare a table: few of all, so that the test is quick.
  private func tablesFiles(_ functions: Set<String>) throws -> [SourceTree.File] {
    try tree.swiftFiles(in: "Sources").filter { file in
      file.lines.contains { line in
        line.contains("@convention(c)") || functions.contains { line.contains($0) }
      }
    }
  }

  /// The names that stand for the type of a C function.
  private func functionTypes() throws -> Set<String> {
    var names: Set<String> = []
    for file in try tablesFiles([]) {
      for line in joinedLines(file) where line.contains("typealias") {
        for match in line.matches(of: /typealias (\w+) = @convention\(c\)/) {
          names.insert(String(match.output.1))
        }
      }
    }
    return names
  }

  private func swiftFields() throws -> [Name] {
    let functions = try functionTypes()
    var fields: [Name] = []
    for file in try tablesFiles(functions) {
      for (number, line) in joinedLines(file).enumerated()
      where line.contains("let ") || line.contains("var ") {
        guard let match = line.firstMatch(of: /\b(?:let|var) (\w+): \(?(@convention\(c\)|[\w.]+)\)?\??/)
        else {
          continue
        }
        let type = String(match.output.2)
        guard type.hasPrefix("@") || functions.contains(lastPart(type)) else { continue }
        // A computed property is a supplier of the function, not a field of a table.
        if line.contains("{") { continue }
        fields.append(Name(text: String(match.output.1), place: "\(file.path):\(number + 1)"))
      }
    }
    return fields
  }

  private func cFields() throws -> [Name] {
    var fields: [Name] = []
    for file in try tree.allFiles() where file.path.hasPrefix("Sources/") && file.path.hasSuffix(".h") {
      for (number, line) in file.lines.enumerated() where line.contains("(*") {
        for match in line.matches(of: /\(\*(?:_Nullable |_Nonnull )?(\w+)\)\(/) {
          fields.append(Name(text: String(match.output.1), place: "\(file.path):\(number + 1)"))
        }
      }
    }
    return fields
  }
}
