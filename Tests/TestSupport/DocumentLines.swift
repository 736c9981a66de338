// The command lines that the documents show, for tests that hold them to be true.

import Foundation

/// Lines within the fences of README.md, of the articles and of the other documents.
package enum DocumentLines {
  /// The root of the repository.
  package static let root = URL(fileURLWithPath: #filePath).resolvingSymlinksInPath()
    .deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent()

  /// Each line, and the document that shows it.
  package static func all() throws -> [(line: String, document: String)] {
    let folders = ["Documentation", "Examples"]
    var documents = ["README.md", "CONTRIBUTING.md", "Sources/README.md", "Tests/README.md"]
    for folder in folders {
      let paths =
        FileManager.default.enumerator(atPath: root.appendingPathComponent(folder).path)?.allObjects
        as? [String]
      documents += (paths ?? []).filter { $0.hasSuffix(".md") }.map { "\(folder)/\($0)" }
    }
    return try documents.flatMap { document in
      let text = try String(contentsOf: root.appendingPathComponent(document), encoding: .utf8)
      var isFenced = false
      return text.split(separator: "\n", omittingEmptySubsequences: false).compactMap { line in
        if line.hasPrefix("```") { isFenced.toggle() }
        return isFenced && !line.hasPrefix("```") ? (String(line), document) : nil
      }
    }
  }
}
