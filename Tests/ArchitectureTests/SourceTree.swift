import Foundation

/// The files of the project as text, and what a rule needs to know of them.
struct SourceTree {
  let root: URL

  /// The tree that this test was built from.
  static let here = SourceTree(
    root: URL(fileURLWithPath: #filePath).resolvingSymlinksInPath().deletingLastPathComponent()
      .deletingLastPathComponent()
      .deletingLastPathComponent())

  /// One file: its path below the root, and its lines.
  struct File {
    let path: String
    let lines: [String]

    var name: String { String(path.split(separator: "/").last ?? "") }
    /// `Kmem` of `Sources/Kmem/Cache.swift`.
    var module: String {
      let parts = path.split(separator: "/")
      return parts.count > 2 ? String(parts[1]) : ""
    }
    var isSwift: Bool { path.hasSuffix(".swift") }
  }

  /// The modules as Sources/README.md lists them, bottom up.
  func modules() throws -> [String] {
    let text = try String(contentsOf: root.appendingPathComponent("Sources/README.md"), encoding: .utf8)
    let rows = text.split(separator: "\n").filter { $0.hasPrefix("| ") }.dropFirst(2)
    return rows.map { $0.split(separator: "|")[1].trimmingCharacters(in: .whitespaces) }
  }

  /// The Swift files below `folder`, which is a path from the root.
  func swiftFiles(in folder: String) throws -> [File] {
    try files(in: folder) { $0.hasSuffix(".swift") }
  }

  /// The text files that people read: sources, tests, scripts, stubs, documents.
  func allFiles() throws -> [File] {
    let endings = [".swift", ".md", ".asm", ".h", ".cfg", ".ld", ".py"]
    var all: [File] = []
    for folder in ["Sources", "Tests", "boot", "Documentation"] {
      all += try files(in: folder) { path in endings.contains { path.hasSuffix($0) } }
    }
    all += try files(in: "Scripts") { _ in true }
    for name in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "Package.swift", "linker.ld"] {
      if let file = read(name) { all.append(file) }
    }
    return all
  }

  private func files(in folder: String, where isWanted: (String) -> Bool) throws -> [File] {
    let start = root.appendingPathComponent(folder)
    guard let paths = FileManager.default.enumerator(atPath: start.path)?.allObjects as? [String] else {
      return []
    }
    return paths.filter { isWanted($0) }.sorted().compactMap { read("\(folder)/\($0)") }
  }

  private func read(_ path: String) -> File? {
    let url = root.appendingPathComponent(path)
    guard let text = try? String(contentsOf: url, encoding: .utf8) else { return nil }
    return File(
      path: path, lines: text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init))
  }
}

/// The lines of a Swift file, each without what stands in comments and in quotes.
struct SwiftCode {
  let lines: [String]

  init(_ file: SourceTree.File) {
    var isInText = false
    lines = file.lines.map { line in
      var code: [UInt8] = []
      var isQuoted = false
      let bytes = Array(line.utf8)
      var at = 0
      while at < bytes.count {
        let rest = bytes[at...]
        if rest.starts(with: [34, 34, 34]) {
          isInText.toggle()
          at += 3
        } else if isInText {
          at += 1
        } else if isQuoted {
          if bytes[at] == 92 { at += 1 }
          if at < bytes.count && bytes[at] == 34 {
            isQuoted = false
            code.append(34)
          }
          at += 1
        } else if bytes[at] == 34 {
          isQuoted = true
          code.append(34)
          at += 1
        } else if rest.starts(with: [47, 47]) {
          break
        } else {
          code.append(bytes[at])
          at += 1
        }
      }
      return String(decoding: code, as: UTF8.self)
    }
  }

  /// A function, an initialiser or a subscript: where it begins, its parameters as written, and how many lines it has.
  struct Function {
    var line: Int
    var parameters: [String]
    var length: Int
  }

  /// The functions of the file, those inside of others too.
  func functions() -> [Function] {
    var found: [Function] = []
    for (number, line) in lines.enumerated() {
      guard let start = Self.functionStart(line) else { continue }
      found.append(function(at: number, start))
    }
    return found
  }

  /// Where the word `func`, `init` or `subscript` of a declaration stands in a line.
  private static func functionStart(_ line: String) -> String.Index? {
    for word in ["func ", "init(", "init?(", "init<", "subscript(", "deinit"] {
      guard let range = line.range(of: word) else { continue }
      let before = line[..<range.lowerBound]
      let isDeclared = before.allSatisfy {
        $0.isLetter || $0 == " " || $0 == "@" || $0 == "(" || $0 == ")" || $0 == "_"
      }
      let isPart = before.last.map { $0.isLetter || $0 == "_" } ?? false
      if isDeclared && !isPart { return range.lowerBound }
    }
    return nil
  }

  private func function(at first: Int, _ start: String.Index) -> Function {
    var (parameters, depth, braces, hasBegun, hasParameters) = ([String](), 0, 0, false, false)
    var parameter = ""
    var number = first
    while number < lines.count {
      let line = number == first ? lines[number][start...] : lines[number][...]
      for character in line {
        if hasParameters {
          if character == "{" { (braces, hasBegun) = (braces + 1, true) }
          if character == "}" { braces -= 1 }
          continue
        }
        if "([{".contains(character) { depth += 1 }
        if ")]}".contains(character) { depth -= 1 }
        if depth == 1 && (character == "," || (character == "(" && parameter.isEmpty)) {
          if character == "," { parameters.append(parameter) }
          parameter = ""
        } else if depth >= 1 {
          parameter.append(character)
        } else if character == ")" {
          if !parameter.trimmingCharacters(in: .whitespaces).isEmpty { parameters.append(parameter) }
          hasParameters = true
        } else if character == "{" || character == "}" {
          hasParameters = true
        }
      }
      if hasBegun && braces <= 0 { break }
      // A requirement of a protocol has no body.
      if hasParameters && !hasBegun && number > first + 12 {
        return Function(line: first, parameters: parameters, length: 1)
      }
      number += 1
    }
    return Function(line: first, parameters: parameters, length: number - first + 1)
  }
}
