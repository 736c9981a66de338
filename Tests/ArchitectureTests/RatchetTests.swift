import Foundation
import XCTest

/// Counts of breaches of the project's form. A count may only fall: each test has a limit, and a change that lowers a
/// count lowers its limit too.
///
/// Every place that counts is listed in `build/architecture/`, a file for each rule.
final class RatchetTests: XCTestCase {
  let tree = SourceTree.here

  /// One place that breaks a rule.
  struct Hit {
    var file: SourceTree.File
    var line: Int
    var text: String
    var description: String { "\(file.path):\(line + 1): \(text)" }
  }

  /// Compares the hits of a rule with the most that is let through, and lists them.
  func count(_ rule: String, _ hits: [Hit], atMost limit: Int, line: UInt = #line) throws {
    let folder = tree.root.appendingPathComponent("build/architecture")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    let list = hits.map(\.description).joined(separator: "\n")
    try (list + "\n").write(
      to: folder.appendingPathComponent(rule + ".txt"), atomically: true, encoding: .utf8)
    if hits.count > limit {
      let some = hits.suffix(12).map(\.description).joined(separator: "\n")
      XCTFail(
        "\(rule): \(hits.count), at most \(limit); all in build/architecture/\(rule).txt:\n\(some)",
        line: line)
    } else if hits.count < limit {
      print("\(rule): \(hits.count); lower the limit, which is \(limit)")
    }
  }

  // MARK: Language

  /// Words that the project does not use, for it has a standard term or a named actor in place of each. DESIGN.md's
  /// table of terms has more of them, but those are also words of the field.
  static let words: Set<String> = [
    "law", "laws", "floor", "floors", "seam", "seams", "house", "piece", "pieces", "stretch", "stretches",
    "spot", "spots", "glance", "glances", "hopeless", "patience", "whoever", "nobody", "somebody",
    "meanwhile", "alarm", "alarms", "tell", "tells", "hear", "hears", "heard", "room", "rooms", "trouble",
    "troubles",
  ]
  static let phrases = [
    "to be had", "in vain", "put by", "given up", "steps aside", "stands aside", "stand aside", "taken back",
  ]

  func testHomemadeWordsBecomeFewer() throws {
    var hits: [Hit] = []
    for file in try tree.allFiles() where !file.path.hasSuffix("RatchetTests.swift") {
      let path = Self.splitIntoWords(file.path).filter { Self.words.contains($0) }
      if !path.isEmpty { hits.append(Hit(file: file, line: 0, text: "the file's name")) }
      for (number, line) in file.lines.enumerated() {
        let words = Self.splitIntoWords(line)
        let joined = words.joined(separator: " ")
        let count =
          words.filter { Self.words.contains($0) }.count
          + Self.phrases.filter { " \(joined) ".contains(" \($0) ") }.count
        for _ in 0..<count {
          hits.append(Hit(file: file, line: number, text: line.trimmingCharacters(in: .whitespaces)))
        }
      }
    }
    try count("homemade-words", hits, atMost: Limits.homemadeWords)
  }

  /// The words of a line in lower case; an identifier is split at its capitals.
  static func splitIntoWords(_ line: String) -> [String] {
    var words: [String] = []
    var word: [UInt8] = []
    func finish() {
      if !word.isEmpty { words.append(String(decoding: word, as: UTF8.self)) }
      word = []
    }
    var wasCapital = false
    for byte in line.utf8 {
      let isCapital = byte >= 65 && byte <= 90
      if isCapital {
        if !wasCapital { finish() }
        word.append(byte + 32)
      } else if byte >= 97 && byte <= 122 {
        // The last capital of `PIC` in `PICTable` begins the next word.
        if wasCapital && word.count > 1 {
          let first = word.removeLast()
          finish()
          word.append(first)
        }
        word.append(byte)
      } else {
        finish()
      }
      wasCapital = isCapital
    }
    finish()
    return words
  }

  func testLongSentencesBecomeFewer() throws {
    var hits: [Hit] = []
    for file in try swiftFiles() {
      for sentence in file.commentSentences() where sentence.words.count > 30 {
        hits.append(
          Hit(file: file, line: sentence.line, text: "\(sentence.words.count) words: \(sentence.text)"))
      }
    }
    try count("long-sentences", hits, atMost: Limits.longSentences)
  }

  func testSentencesThatBeginWithWhoOrWhatBecomeFewer() throws {
    let nouns: Set<String> = ["who", "what", "whoever", "whatever", "whom", "whose"]
    var hits: [Hit] = []
    for file in try swiftFiles() {
      for sentence in file.commentSentences() where !sentence.text.hasSuffix("?") {
        guard let first = sentence.words.first else { continue }
        let word = first.lowercased().filter { $0.isLetter || $0 == "'" }
        if nouns.contains(word) { hits.append(Hit(file: file, line: sentence.line, text: sentence.text)) }
      }
    }
    try count("who-or-what", hits, atMost: Limits.whoOrWhat)
  }

  // MARK: Shape

  func testLongFunctionsBecomeFewer() throws {
    var hits: [Hit] = []
    for file in try swiftFiles() {
      for function in SwiftCode(file).functions() where function.length > 70 {
        hits.append(Hit(file: file, line: function.line, text: "\(function.length) lines"))
      }
    }
    try count("long-functions", hits, atMost: Limits.longFunctions)
  }

  func testUnlabelledParametersBecomeFewer() throws {
    var hits: [Hit] = []
    for file in try swiftFiles() {
      for function in SwiftCode(file).functions() {
        let bare = function.parameters.filter { $0.trimmingCharacters(in: .whitespaces).hasPrefix("_ ") }
        if bare.count > 4 {
          hits.append(Hit(file: file, line: function.line, text: "\(bare.count) unlabelled"))
        }
      }
    }
    try count("unlabelled-parameters", hits, atMost: Limits.unlabelledParameters)
  }

  func testUndocumentedPublicDeclarationsBecomeFewer() throws {
    var hits: [Hit] = []
    for file in try tree.swiftFiles(in: "Sources") {
      let code = SwiftCode(file).lines
      for (number, line) in code.enumerated() where Self.isPublicDeclaration(line) {
        var above = number - 1
        while above >= 0, code[above].trimmingCharacters(in: .whitespaces).hasPrefix("@") { above -= 1 }
        let before = above >= 0 ? file.lines[above].trimmingCharacters(in: .whitespaces) : ""
        if before.hasPrefix("///") { continue }
        hits.append(Hit(file: file, line: number, text: line.trimmingCharacters(in: .whitespaces)))
      }
    }
    try count("undocumented-public", hits, atMost: Limits.undocumentedPublic)
  }

  /// Whether a line declares something public that a reader would look up. An operator says what it does.
  private static func isPublicDeclaration(_ line: String) -> Bool {
    let words = line.split { $0 == " " || $0 == "(" || $0 == "<" }.map(String.init)
    guard let at = words.firstIndex(of: "public"), !words.contains("import") else { return false }
    guard words[..<at].allSatisfy({ $0.hasPrefix("@") || $0 == "inline" || $0.hasSuffix(")") }) else {
      return false
    }
    return !words.contains("static") || !words.contains("func")
      || line.range(of: "func [a-zA-Z`]", options: .regularExpression) != nil
  }

  func testModulesNamedLikeATypeBecomeFewer() throws {
    let kinds: Set<String> = ["struct", "enum", "class", "protocol", "actor"]
    var hits: [Hit] = []
    for module in try tree.modules() {
      for file in try tree.swiftFiles(in: "Sources/\(module)") {
        for (number, line) in SwiftCode(file).lines.enumerated() {
          let words = line.split { !$0.isLetter && !$0.isNumber && $0 != "_" }
          guard let at = words.firstIndex(where: { kinds.contains(String($0)) }), at + 1 < words.count,
            words[at + 1] == module
          else { continue }
          hits.append(Hit(file: file, line: number, text: "\(words[at]) \(module)"))
        }
      }
    }
    try count("module-named-like-type", hits, atMost: Limits.modulesNamedLikeAType)
  }

  func testFilesOfOneNameBecomeFewer() throws {
    var seen: [String: String] = [:]
    var hits: [Hit] = []
    for file in try swiftFiles() {
      if let other = seen[file.name] { hits.append(Hit(file: file, line: 0, text: "also \(other)")) }
      seen[file.name] = file.path
    }
    try count("files-of-one-name", hits, atMost: Limits.filesOfOneName)
  }

  func testTestClassesOfOneNameBecomeFewer() throws {
    var seen: [String: String] = [:]
    var hits: [Hit] = []
    for file in try tree.swiftFiles(in: "Tests") {
      for (number, line) in SwiftCode(file).lines.enumerated() {
        guard line.contains("class "), line.contains(": XCTestCase") || line.contains("Case {") else {
          continue
        }
        let name = line.split(separator: " ").drop { $0 != "class" }.dropFirst().first.map(String.init) ?? ""
        let key = name.filter { $0 != ":" }
        if let other = seen[key] {
          hits.append(Hit(file: file, line: number, text: "\(key), also in \(other)"))
        }
        seen[key] = file.path
      }
    }
    try count("test-classes-of-one-name", hits, atMost: Limits.testClassesOfOneName)
  }

  func testMainFilesWithoutHeadingsBecomeFewer() throws {
    let headings = ["STRUCTURES", "INVARIANTS", "LOCKS", "COST", "EXHAUSTION", "SOURCES"]
    // Modules without state of their own, and those outside of the core, need not have them.
    let exempt: Set<String> = ["CPlatform", "Workloads", "Console", "Kernel", "HostMachine", "strata"]
    var hits: [Hit] = []
    for module in try tree.modules() where !exempt.contains(module) {
      let files = try tree.swiftFiles(in: "Sources/\(module)")
      let hasMain = files.contains { file in
        headings.allSatisfy { heading in
          file.lines.contains { $0.hasPrefix("// " + heading) }
        }
      }
      if !hasMain, let first = files.first { hits.append(Hit(file: first, line: 0, text: module)) }
    }
    try count("main-file-headings", hits, atMost: Limits.mainFilesWithoutHeadings)
  }

  // MARK: Locks and memory

  func testLocksByHandBecomeFewer() throws {
    var hits: [Hit] = []
    for file in try tree.swiftFiles(in: "Sources") where file.module != "MemoryPrimitives" {
      for (number, line) in SwiftCode(file).lines.enumerated() {
        guard line.contains("lock()") || line.contains("unlock(") else { continue }
        guard line.range(of: "(\\b|un)lock\\(", options: .regularExpression) != nil else { continue }
        hits.append(Hit(file: file, line: number, text: line.trimmingCharacters(in: .whitespaces)))
      }
    }
    try count("locks-by-hand", hits, atMost: Limits.locksByHand)
  }

  /// Lines that reach memory by a pointer, for each module: they may not grow. The marks are those of the language.
  func testLinesThatNeedUnsafeDoNotGrow() throws {
    let marks = ["Unsafe", "unsafe", ".pointee", "bitPattern:", "fromByteOffset", "OpaquePointer"]
    for module in try tree.modules() where module != "CPlatform" {
      var hits: [Hit] = []
      for file in try tree.swiftFiles(in: "Sources/\(module)") {
        for (number, line) in SwiftCode(file).lines.enumerated()
        where marks.contains(where: { line.contains($0) }) {
          hits.append(Hit(file: file, line: number, text: line.trimmingCharacters(in: .whitespaces)))
        }
      }
      try count("unsafe-" + module, hits, atMost: Limits.unsafeLines[module] ?? 0)
    }
  }

  private func swiftFiles() throws -> [SourceTree.File] {
    try tree.swiftFiles(in: "Sources") + tree.swiftFiles(in: "Tests")
  }
}
