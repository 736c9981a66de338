import Foundation
import XCTest

/// A `package` type with functions that other modules inline must be `@usableFromInline`. Without it the compiler keeps
/// their bodies in their own module on the host, and says nothing.
final class InliningTests: XCTestCase {
  /// A declaration of a type, or an extension of one.
  private struct Scope {
    var name: String
    var indent: Int
  }

  func testEveryPackageTypeWithInlinedFunctionsIsUsableFromInline() throws {
    let tree = SourceTree.here
    // The kernel's and the tool's functions are not called from another module.
    for module in try tree.modules() where module != "Kernel" && module != "strata" {
      var hidden: [String: String] = [:]
      var inlined: [String: String] = [:]
      for file in try tree.swiftFiles(in: "Sources/\(module)") {
        scan(file, hidden: &hidden, inlined: &inlined)
      }
      for (type, function) in inlined {
        if let place = hidden[type] {
          XCTFail("\(place) is not @usableFromInline, but \(function) is inlined")
        }
      }
    }
  }

  /// Adds the package types that are hidden from inlining, and the types with a function for other modules to inline;
  /// each with a place in the sources.
  private func scan(
    _ file: SourceTree.File, hidden: inout [String: String], inlined: inout [String: String]
  ) {
    var scopes: [Scope] = []
    var isMarkedAbove = false
    for (number, line) in SwiftCode(file).lines.enumerated() {
      let text = line.trimmingCharacters(in: .whitespaces)
      guard !text.isEmpty else { continue }
      let indent = line.prefix { $0 == " " }.count
      while let last = scopes.last, indent <= last.indent, !")}{".contains(text.first!) {
        scopes.removeLast()
      }
      let words = text.split { !$0.isLetter && !$0.isNumber && !"@_.".contains($0) }.map(String.init)
      let place = "\(file.path):\(number + 1)"
      let isMarked = text.contains("@inlinable") || text.contains("@inline(always)") || isMarkedAbove
      isMarkedAbove = isMarked && !words.contains("package") && !words.contains("public")
      if let at = words.firstIndex(where: {
        ["struct", "enum", "class", "extension", "protocol"].contains($0)
      }),
        at + 1 < words.count, words[..<at].allSatisfy({ $0.hasPrefix("@") || Self.modifiers.contains($0) })
      {
        let name = (scopes.map(\.name) + [words[at + 1]]).joined(separator: ".")
        if words[..<at].contains("package"), words[at] != "extension", !words.contains("@usableFromInline") {
          hidden[name] = place
        }
        scopes.append(Scope(name: words[at + 1], indent: indent))
      } else if isMarked, words.contains("package") || words.contains("public") {
        inlined[scopes.map(\.name).joined(separator: ".")] = place
      }
    }
  }

  private static let modifiers: Set<String> = [
    "public", "package", "private", "fileprivate", "final", "indirect", "internal", "frozen", "unchecked",
  ]
}
