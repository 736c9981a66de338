// Assertions that several test targets share.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory
import XCTest

/// That `body` throws `expected`.
package func XCTAssertFails<E: Error & Equatable>(
  _ expected: E, _ note: String = "", file: StaticString = #filePath, line: UInt = #line,
  _ body: () throws -> Void
) {
  do {
    try body()
    XCTFail("nothing thrown \(note)", file: file, line: line)
  } catch {
    XCTAssertEqual(error as? E, expected, note, file: file, line: line)
  }
}

/// That two pictures are the same; shows where they differ.
package func XCTAssertSame(
  _ a: TestSystem.Picture, _ b: TestSystem.Picture, _ note: String = "", file: StaticString = #filePath,
  line: UInt = #line
) {
  guard a != b else { return }
  var text = note
  for (role, count) in a.roles where b.roles[role] != count {
    text += " \(role.description): \(count), not \(b.roles[role] ?? 0);"
  }
  func compare(_ what: String, _ a: [[UInt64]], _ b: [[UInt64]]) {
    if a.count != b.count { text += " \(what): \(a.count), not \(b.count);" }
    if let i = zip(a, b).enumerated().first(where: { $1.0 != $1.1 })?.offset {
      text += " \(what): \(a[i]), not \(b[i]), at \(i);"
    }
  }
  compare("queues", [a.queues], [b.queues])
  compare("counts", [a.counts], [b.counts])
  compare("pages", a.pages, b.pages)
  compare("ranges", a.ranges, b.ranges)
  if a.kmem != b.kmem { text += " kmem: \(a.kmem), not \(b.kmem)" }
  XCTFail("the pictures differ: \(text)", file: file, line: line)
}
