import Foundation
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import XCTest

@testable import Console

/// Documentation/JSON.md lists the kinds that the console and the host tool print, and no others.
final class JSONDocumentTests: XCTestCase {
  func testEachKindOfTheSourcesIsDocumentedAndNoOther() throws {
    let root = URL(fileURLWithPath: #filePath).resolvingSymlinksInPath().deletingLastPathComponent()
      .deletingLastPathComponent()
      .deletingLastPathComponent()
    var printed: Set<String> = ["wire", "unwire"]
    let calls = try Regex("(?:row|able|JSONRow|report|beside)\\(\"([a-z_]+)\"")
    // In plain quotes or with backslashes.
    let literals = try Regex(#"\{\\?"kind\\?":\\?"([a-z_]+)"#)
    for folder in ["Console", "Workloads", "strata"].map({ root.appendingPathComponent("Sources/\($0)") }) {
      for path in FileManager.default.enumerator(atPath: folder.path)?.allObjects as? [String] ?? []
      where path.hasSuffix(".swift") {
        let text = try String(contentsOf: folder.appendingPathComponent(path), encoding: .utf8)
        for pattern in [calls, literals] {
          for match in text.matches(of: pattern) {
            if let kind = match.output[1].substring { printed.insert(String(kind)) }
          }
        }
      }
    }
    XCTAssertGreaterThan(printed.count, 60)
    XCTAssertGreaterThan(JSONKinds.ofTheTool.count, 6)
    XCTAssertEqual(Set(JSONKinds.documented.keys), printed)
  }

  /// A cost is in the unit of the machine, which each row with one names. No key names a unit.
  func testARowWithACostHasItsUnit() {
    for (kind, keys) in JSONKinds.documented where !JSONKinds.ofTheTool.contains(kind) {
      let costs = keys.filter { $0 == "cost" || $0.hasSuffix("_cost") }
      XCTAssertTrue(costs.isEmpty || keys.contains("unit"), "\(kind): \(keys)")
      for key in keys {
        XCTAssertFalse(key.contains("cycles") || key.contains("instructions"), "\(kind): \(key)")
        let isDuration = ["longest_off", "longest_wait", "longest_hold"].contains { key.hasPrefix($0) }
        XCTAssertTrue(!isDuration || key.hasSuffix("_cost"), "\(kind): \(key)")
      }
    }
  }

  /// Kinds of rows that only a machine with processors of its own prints. The boots check their keys.
  private static let ofTheKernel: Set<String> = ["cpu", "lock", "thread", "ram_disk", "smp", "watchdog"]

  /// Each other kind is printed here once, so that the harness compares its keys with the document.
  func testAConsolePrintsEachKindWithTheKeysOfTheDocument() throws {
    let harness = ConsoleHarness(
      trace: try Data(contentsOf: SystemCommandsTests.sample), swap: .mebibytes(16))
    for line in [
      "help frames", "replay", "bench kmem", "selftest history", "selftest invariants", "memmap", "nonsense",
      "snapshot", "dirty 4M", "diff", "objects", "objects 1", "whatis 0xffff_c000_0000_0000+4K",
      "wire dirty+4K",
      "unwire dirty+4K", "verify", "queues", "launder active 64K", "launder daemon", "why 2M",
      "contig -v 2M align=2M",
      "contig list", "contig free all", "map", "kmem", "vmem", "vmem kernel_va", "vmstat -m", "vmstat -z",
      "vmstat", "vmstat -C", "zones", "zs pack", "zs", "zs compact",
      "buddy",
      "failures", "frames", "swap", "sysctl vm", "whatis frame 300", "whatis 0+4M", "whatis 0x7fff_f000",
      "pagetable", "pagetable 0xffff_8000_0010_0000", "whatis 0xffff_f000_0000_0000", "dirty free",
      "contig 64M", "bench contig",
      "contig 40M", "why 50M",
    ] { harness.run("\(line) -j") }
    let zspage = try XCTUnwrap(
      (0..<harness.physical.total.rawValue + 256).first {
        harness.physical.whatIs(FrameNumber(UInt32($0))).role == .zspage
      })
    harness.run("whatis 0x\(String(zspage << 12, radix: 16)) -j")
    harness.run("zs free -j")
    let object = try XCTUnwrap(
      harness.memory.kmem.alloc(ByteCount(64), type: harness.memory.kmem.type(named: ShortName("test"))))
    harness.run("whatis 0x\(String(UInt(bitPattern: object), radix: 16)) -j")
    harness.terminal.input = [0x03]
    // Ctrl-C is typed once the table has begun.
    harness.run("whatis 0+64M -j")
    let large = ConsoleHarness(ranges: [(1 << 20, 127 << 20, 1)], memory: .mebibytes(128))
    large.run("selftest history -j")
    // More places are left out than a list holds.
    let scattered: [(base: UInt64, length: UInt64, type: UInt32)] = (0..<40).map {
      (2 << 20 | $0 << 20 | 0x100, 1 << 19, 1)
    }
    ConsoleHarness(ranges: scattered + [(43 << 20, 20 << 20, 1)]).run("memmap -j")
    let missing = Set(JSONKinds.documented.keys).subtracting(JSONKinds.ofTheTool).subtracting(JSONKinds.seen)
    // A bench prints `broken` when pages have lost their contents; a replay prints `limit`, which its tests check.
    // Boots that ran before in this process have printed the kernel's.
    XCTAssertTrue(missing.isSubset(of: Self.ofTheKernel.union(["broken", "limit"])), "\(missing)")
  }
}
