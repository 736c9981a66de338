import KernelMemory
import MemoryPrimitives
import TestSupport
import XCTest

/// The unit of each figure is the one of what its description counts.
final class StatisticUnitTests: XCTestCase {
  /// The first word of a description, and the units that are true then.
  private static let nouns: [String: Set<StatisticUnit>] = [
    "pages": [.pages], "frames": [.pages], "slots": [.pages], "steps": [.steps], "times": [.events],
    "faults": [.events], "runs": [.events, .requests], "requests": [.requests], "searches": [.events],
    "attempts": [.events], "ticks": [.ticks], "spans": [.events], "magazines": [.events],
    "arenas": [.objects], "tables": [.pages],
  ]

  func testTheUnitIsThatOfTheDescription() throws {
    let system = try TestSystem(frames: 1024, swap: 64)
    var checked = 0
    for index in 0..<system.memory.statistics.count {
      let row = system.memory.statistics[index]
      let (name, about) = (row.name.description, row.about.description)
      XCTAssertFalse(about.hasPrefix("that ") || about.hasPrefix("for "), "\(name): \(about)")
      if name.hasSuffix("steps") { XCTAssertEqual(row.unit, .steps, name) }
      if name.hasSuffix("failures") || name.hasSuffix("failed") && row.unit != .pages {
        XCTAssertTrue([.requests, .events].contains(row.unit), name)
      }
      guard let units = Self.nouns[String(about.prefix { $0 != " " && $0 != "," })] else { continue }
      checked += 1
      XCTAssertTrue(units.contains(row.unit), "\(name): \(about) in \(row.unit)")
    }
    XCTAssertGreaterThan(checked, 40)
  }
}
