import Foundation
import XCTest

/// The rules of the house that a program can check: imports go down only, and Package.swift states each
/// target's dependencies and nothing more.
final class HouseTests: XCTestCase {
  let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()

  /// The modules as Sources/README.md lists them, bottom up.
  func floors() throws -> [String] {
    let text = try String(contentsOf: root.appendingPathComponent("Sources/README.md"), encoding: .utf8)
    let rows = text.split(separator: "\n").filter { $0.hasPrefix("| ") }.dropFirst(2)
    return rows.map { $0.split(separator: "|")[1].trimmingCharacters(in: .whitespaces) }
  }

  func sources(of module: String) throws -> [URL] {
    let folder = root.appendingPathComponent("Sources/\(module)")
    let all = FileManager.default.enumerator(at: folder, includingPropertiesForKeys: nil)
    return (all?.allObjects as? [URL] ?? []).filter { $0.pathExtension == "swift" }
  }

  func imports(of module: String) throws -> Set<String> {
    var found: Set<String> = []
    for file in try sources(of: module) {
      for line in try String(contentsOf: file, encoding: .utf8).split(separator: "\n") {
        let words = line.split(separator: " ").filter { !$0.hasPrefix("@") && $0 != "public" }
        if words.count == 2, words[0] == "import" { found.insert(String(words[1])) }
      }
    }
    return found
  }

  func testEveryFolderIsAFloor() throws {
    let folders = try FileManager.default.contentsOfDirectory(
      at: root.appendingPathComponent("Sources"), includingPropertiesForKeys: [.isDirectoryKey]
    ).filter { (try? $0.resourceValues(forKeys: [.isDirectoryKey]))?.isDirectory == true }
    XCTAssertEqual(Set(try floors()), Set(folders.map(\.lastPathComponent)))
  }

  func testImportsGoDownOnly() throws {
    let floors = try floors()
    XCTAssertGreaterThan(
      floors.count, 5, "Sources/README.md no longer lists the floors as this test reads them")
    for (position, module) in floors.enumerated() {
      for imported in try imports(of: module) {
        guard let below = floors.firstIndex(of: imported) else { continue }
        XCTAssertLessThan(below, position, "\(module) imports \(imported), which is not below it")
      }
    }
  }

  func testPackageStatesWhatIsImportedAndNothingMore() throws {
    let floors = Set(try floors())
    let package = try String(contentsOf: root.appendingPathComponent("Package.swift"), encoding: .utf8)
    for module in floors where module != "CPlatform" {
      let target = try Regex("\\.(target|executableTarget)\\(\\s*name: \"\(module)\"")
      guard let start = package.firstRange(of: target) else {
        XCTFail("Package.swift has no target \(module)")
        continue
      }
      let rest = package[start.upperBound...]
      guard let list = rest.firstRange(of: try Regex("dependencies: \\[[^\\]]*\\]")) else {
        XCTFail("\(module) states no dependencies")
        continue
      }
      let end = list.upperBound
      let quoted = rest[..<end].split(separator: "\"").map(String.init)
      let declared = Set(quoted).intersection(floors).subtracting([module])
      XCTAssertEqual(declared, try imports(of: module).intersection(floors), "of \(module)")
    }
  }

  func testTheCoreImportsNoLibraryOfTheHost() throws {
    let hostOnly: Set<String> = ["HostMachine", "strata"]
    for module in try floors() where !hostOnly.contains(module) {
      let foreign = try imports(of: module).subtracting(try floors()).subtracting([
        "Synchronization", "Builtin",
      ])
      XCTAssertEqual(foreign, [], "of \(module)")
    }
  }
}
