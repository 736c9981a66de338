import Foundation
import XCTest

/// Imports go down only, and Package.swift states each
/// target's dependencies and nothing more.
final class LayeringTests: XCTestCase {
  let tree = SourceTree.here
  var root: URL { tree.root }

  func imports(of module: String) throws -> Set<String> {
    var found: Set<String> = []
    for file in try tree.swiftFiles(in: "Sources/\(module)") {
      for line in file.lines {
        let words = line.split(separator: " ").filter { !$0.hasPrefix("@") && $0 != "public" }
        if words.count == 2, words[0] == "import" { found.insert(String(words[1])) }
      }
    }
    return found
  }

  func testEveryFolderIsAModule() throws {
    let folders = try FileManager.default.contentsOfDirectory(
      at: root.appendingPathComponent("Sources"), includingPropertiesForKeys: [.isDirectoryKey]
    ).filter { (try? $0.resourceValues(forKeys: [.isDirectoryKey]))?.isDirectory == true }
    XCTAssertEqual(Set(try tree.modules()), Set(folders.map(\.lastPathComponent)))
  }

  func testImportsGoDownOnly() throws {
    let modules = try tree.modules()
    XCTAssertGreaterThan(
      modules.count, 5, "Sources/README.md no longer lists the modules as this test reads them")
    for (position, module) in modules.enumerated() {
      for imported in try imports(of: module) {
        guard let below = modules.firstIndex(of: imported) else { continue }
        XCTAssertLessThan(below, position, "\(module) imports \(imported), which is not below it")
      }
    }
  }

  func testThePackageStatesExactlyTheImports() throws {
    let modules = Set(try tree.modules())
    let package = try String(contentsOf: root.appendingPathComponent("Package.swift"), encoding: .utf8)
    for module in modules where module != "CPlatform" {
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
      let declared = Set(quoted).intersection(modules).subtracting([module])
      XCTAssertEqual(declared, try imports(of: module).intersection(modules), "of \(module)")
    }
  }

  func testTheCoreImportsNoLibraryOfTheHost() throws {
    let hostOnly: Set<String> = ["HostMachine", "strata"]
    for module in try tree.modules() where !hostOnly.contains(module) {
      let foreign = try imports(of: module).subtracting(try tree.modules()).subtracting([
        "Synchronization", "Builtin",
      ])
      XCTAssertEqual(foreign, [], "of \(module)")
    }
  }
}
