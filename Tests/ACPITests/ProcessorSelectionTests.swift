import ACPI
import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

/// Which processors a kernel starts, for tables of the kinds that firmware is known to leave.
final class ProcessorSelectionTests: XCTestCase {
  let memory = GuardedMemory(size: 16384)

  private func table(_ entries: [[UInt8]]) throws -> MADT {
    let madt = Listed.madt(entries)
    let set = TableSet(at: memory.size - TableSet(at: 0, madt: madt).bytes.count, madt: madt)
    memory.put(set.bytes, at: set.base)
    return try MADT(memory.tables(root: set.base))
  }

  private func select(
    _ entries: [[UInt8]], boot: UInt32 = 0, _ addressing: APICIdentity.Addressing = .xAPIC
  ) throws -> ProcessorSelection<64> {
    ProcessorSelection<64>(try table(entries), boot: APICIdentity(boot), reachedBy: addressing)
  }

  private func assert<let capacity: Int>(
    _ selection: ProcessorSelection<capacity>, _ identities: [UInt32], unreachable: Int = 0, surplus: Int = 0,
    flaw: ACPIError? = nil, line: UInt = #line
  ) {
    XCTAssertEqual((0..<selection.count).map { selection[$0].rawValue }, identities, line: line)
    XCTAssertEqual(selection.unreachableCount, unreachable, "out of reach", line: line)
    XCTAssertEqual(selection.surplusCount, surplus, "surplus", line: line)
    XCTAssertEqual(selection.flaw, flaw, line: line)
  }

  // MARK: The boot processor

  func testTheBootProcessorComesFirstWhereverItsEntryIs() throws {
    for boot: UInt32 in [0, 2, 4, 6] {
      let others = [0, 2, 4, 6].filter { $0 != boot }
      assert(try select([0, 2, 4, 6].map { Listed.local($0) }, boot: boot), [boot] + others)
    }
  }

  func testATableThatLeavesTheBootProcessorOutIsNotUsed() throws {
    let tables: [[[UInt8]]] = [
      [Listed.local(1), Listed.local(2)],
      [Listed.local(1), Listed.local2(300), Listed.local(0, flags: 0)],
      [Listed.local(1), Listed.local(0, flags: 2)],
      [Listed.local(1), [3, 0], Listed.local(0)],
      [[0, 0], Listed.local(0), Listed.local(1)],
      [Listed.ioAPIC],
      [],
    ]
    for entries in tables { assert(try select(entries), [0], flaw: .noBootProcessor) }
  }

  func testTheBootProcessorIsKeptThoughItComesAfterTheLastThatFits() throws {
    let entries = (1...70).map { Listed.local($0) } + [Listed.local(0)]
    assert(try select(entries), [0] + (1...63), surplus: 7)
    let boot = APICIdentity(0)
    assert(ProcessorSelection<1>(try table(entries), boot: boot, reachedBy: .xAPIC), [0], surplus: 70)
    assert(ProcessorSelection<2>(try table(entries), boot: boot, reachedBy: .xAPIC), [0, 1], surplus: 69)
    assert(ProcessorSelection<71>(try table(entries), boot: boot, reachedBy: .xAPIC), [0] + (1...70))
  }

  func testATableThatCantBeReadLeavesTheBootProcessor() {
    assert(ProcessorSelection<64>(only: APICIdentity(3), because: .badChecksum), [3], flaw: .badChecksum)
  }

  func testOfATableWithAMalformedEntryTheFirstPartIsUsed() throws {
    let entries = [Listed.local(1), Listed.local(0), [3, 0], Listed.local(2)]
    assert(try select(entries), [0, 1], flaw: .malformedEntry)
  }

  // MARK: Kinds of tables

  /// Eight processors, and eight entries more that all bear the same impossible identity.
  func testAnImpossibleIdentityThatIsRepeatedCountsForNoProcessor() throws {
    let sound: [UInt32] = [0, 2, 4, 6, 8, 10, 12, 14]
    let entries =
      sound.map { Listed.local(UInt8($0)) } + (0..<8).map { _ in Listed.local2(0x3c3d_3e3f) } + [
        Listed.ioAPIC
      ]
    assert(try select(entries), sound, unreachable: 1)
    assert(try select(entries, .x2APIC), sound + [0x3c3d_3e3f])
  }

  func testADisabledFirstEntryNamesNoProcessor() throws {
    assert(
      try select([Listed.local(255, flags: 0)] + (0..<32).map { Listed.local($0 * 2) }),
      (0..<32).map { $0 * 2 })
  }

  func testEntriesOfAllOnesThatFillATableNameNoProcessor() throws {
    let sound: [[UInt8]] = (0..<24).map { Listed.local($0) }
    assert(
      try select(
        sound + (0..<40).map { _ in Listed.local(255, flags: 0) }
          + (0..<60).map { _ in Listed.local2(.max, flags: 0) }),
      Array(0..<24))
  }

  func testEnabledEntriesOfAllOnesDoNotCount() throws {
    let entries = [Listed.local(0), Listed.local(1), Listed.local(255), Listed.local2(.max), Listed.ioAPIC]
    assert(try select(entries), [0, 1])
    assert(try select(entries, .x2APIC), [0, 1])
  }

  func testProcessorsThatAreNamedTwiceCountOnce() throws {
    let both = (0..<16).map { Listed.local($0) } + (0..<16).map { Listed.local2($0) }
    assert(try select(both), Array(0..<16))
    assert(try select(both, .x2APIC), Array(0..<16))
    assert(try select([0, 1, 0, 1, 1, 0].map { Listed.local($0) }, boot: 1), [1, 0])
  }

  func testAnXAPICReachesThoseThatOnlyAnX2APICEntryNames() throws {
    assert(try select([Listed.local2(0), Listed.local2(1), Listed.ioAPIC]), [0, 1])
    assert(try select([Listed.local2(0), Listed.local2(254), Listed.local2(255)]), [0, 254], unreachable: 1)
  }

  func testThreeHundredProcessorsAreSelected() throws {
    let entries =
      (0..<255).map { Listed.local(UInt8($0)) } + (255..<300).map { Listed.local2(UInt32($0)) } + [
        Listed.ioAPIC
      ]
    assert(try select(entries), Array(0..<64), unreachable: 45, surplus: 191)
    assert(try select(entries, .x2APIC), Array(0..<64), surplus: 236)
    assert(try select(entries, boot: 299, .x2APIC), [299] + (0..<63), surplus: 236)
  }

  func testOnlyEnabledProcessorsAreStarted() throws {
    assert(
      try select([
        Listed.local(0), Listed.local(1, flags: 2), Listed.local(2, flags: 3), Listed.local(3, flags: 0),
      ]),
      [0, 2])
  }

  // MARK: Any table

  /// A table of random entries against a plain model of what is chosen from it.
  func testRandomTablesNameNoProcessorTwice() throws {
    let seed = historySeed(64)
    var random = SeededRandom(seed: seed)
    for round in 0..<2000 {
      var entries: [[UInt8]] = []
      var enabled: [UInt32] = []
      for _ in 0..<Int.random(in: 0...20, using: &random) {
        let flags = UInt32.random(in: 0...3, using: &random)
        let identity: UInt32 = [0, 1, 2, 3, 254, 255, 256, 0xffff_fffe, .max].randomElement(using: &random)!
        let isNarrow = identity < 256 && Bool.random(using: &random)
        entries.append(
          isNarrow ? Listed.local(UInt8(identity), flags: flags) : Listed.local2(identity, flags: flags))
        guard flags & 1 != 0, identity != .max, !(isNarrow && identity == 255) else { continue }
        if !enabled.contains(identity) { enabled.append(identity) }
      }
      let boot = UInt32.random(in: 0...3, using: &random)
      let isWide = Bool.random(using: &random)
      let selection = ProcessorSelection<4>(
        try table(entries), boot: APICIdentity(boot), reachedBy: isWide ? .x2APIC : .xAPIC)
      let words = "STRATA_SEED=\(seed), round \(round)"
      let chosen = (0..<selection.count).map { selection[$0].rawValue }
      guard enabled.contains(boot) else {
        XCTAssertEqual(chosen, [boot], words)
        XCTAssertEqual(selection.flaw, .noBootProcessor, words)
        continue
      }
      let reached = enabled.filter { $0 != boot && (isWide || $0 < 255) }
      XCTAssertEqual(chosen, [boot] + reached.prefix(3), words)
      XCTAssertEqual(selection.surplusCount, max(0, reached.count - 3), words)
      XCTAssertEqual(selection.unreachableCount, enabled.count - reached.count - 1, words)
      XCTAssertNil(selection.flaw, words)
    }
  }
}
