// selftest history and paging: seeded histories on a second instance, in memory that this one loans to it. Their
// checksums equal those of the same code on the host.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory

extension SelfTests {
  /// Runs each layer's standard history on one instance.
  func testHistories<O: SelfTestObserver>(_ observer: O) -> SelfTestOutcome {
    let spaceSize = (MemorySystem.workspaceSize(ranges: 1).rawValue + 63) & ~63
    return loaning(SeededHistory.memory, storage: ByteCount(spaceSize) + SeededHistory.workspace) {
      (loaned, workspace) throws(AssemblyError) in
      var broken: StaticString?
      let base = UInt64(UInt(bitPattern: loaned))
      let system = try SeededHistory.assemble(
        memory.machine.loaning(DirectMap(base: base), processors: 1), workspace: workspace)
      for number in 0..<HistoryKind.count {
        guard let kind = HistoryKind(rawValue: UInt8(number)), observer.pace == .goOn else { break }
        let outcome = SeededHistory.run(.standard(kind), on: system, workspace: workspace + Int(spaceSize))
        observer.ran(kind.description, outcome)
        if let found = outcome.broken { broken = found }
      }
      return broken
    }
  }

  /// The same for pageable memory, on a machine of its own with a disk that injects faults.
  func testPaging<O: SelfTestObserver>(_ observer: O) -> SelfTestOutcome {
    let plan = PagingPlan.standard
    return loaning(plan.loaned, storage: PagingHistory.workspace(plan)) {
      (loaned, workspace) throws(AssemblyError) in
      let outcome = try PagingHistory.run(plan, on: memory.machine, loaned: loaned, workspace: workspace)
      observer.ran("paging", outcome)
      return outcome.broken
    }
  }

  /// Runs `body` with memory that this instance loans, and with zeroed storage for the records of a history; `body`
  /// describes what is wrong.
  func loaning(
    _ size: ByteCount, storage storageSize: ByteCount,
    _ body: (UnsafeMutableRawPointer, UnsafeMutableRawPointer) throws(AssemblyError) -> StaticString?
  ) -> SelfTestOutcome {
    let physical = memory.physical
    guard let longest = physical.longestFreeRun(), longest.count >= size.pagesRoundedUp else {
      return .notBegun("no run of \(size) can be loaned here")
    }
    let before = physical.freeCount
    let map = memory.machine.directMap
    let loaned: FrameRun
    let storage: FrameRun
    do throws(PhysicalMemoryError) {
      // Aligned, so that the page tables of a second instance use the same frames everywhere.
      loaned = try physical.allocateUnlogged(
        run: size.pagesRoundedUp,
        where: RunConstraints(alignment: Alignment(2 << 20).unsafelyUnwrapped, boundary: Alignment(1 << 30)),
        role: .loaned, for: FrameOwner("self-test, a second instance"))
    } catch {
      return .notBegun("no run of \(size) can be loaned here")
    }
    do throws(PhysicalMemoryError) {
      storage = try physical.allocate(
        run: storageSize.pagesRoundedUp, role: .wired, for: FrameOwner("self-test, records of a history"))
    } catch {
      physical.free(loaned)
      return .notBegun("no memory for the records of a history")
    }
    var flaw: StaticString?
    let workspace = map.pointer(to: storage.first)
    workspace.initializeMemory(as: UInt8.self, repeating: 0, count: Int(storage.count.bytes.rawValue))
    // The memory still holds old contents, so a disk in it that loses a write shows them.
    map.pointer(to: loaned.first).initializeMemory(
      as: UInt64.self, repeating: 0, count: Int(loaned.count.rawValue) * 512)
    do throws(AssemblyError) {
      // The second instance has one processor.
      flaw = try memory.machine.onFirstProcessor { () throws(AssemblyError) in
        try body(map.pointer(to: loaned.first), workspace)
      }
    } catch {
      flaw = "the second instance did not come up"
    }
    physical.free(storage)
    physical.free(loaned)
    if flaw == nil && physical.freeCount != before { flaw = "loaned frames did not come back" }
    return SelfTestOutcome(flaw)
  }
}
