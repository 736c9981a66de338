import ContiguousMemory
import HostMachine
import KernelMemory
import KernelSpace
import Kmem
import MemoryPrimitives
import Paging
import PhysicalMemory
import TestSupport
import Vmem
import XCTest

/// Each layer counts and records the refusals of its own public calls, and no refusal twice.
final class RefusalTests: XCTestCase {
  /// The counters that the entries of the log are the sum of.
  private static let counters = [
    "vm.failures", "vm.run_failures", "vmem.failed", "vm.kernel.failures", "kmem.failed",
    "vm.paging.refused", "vm.contig.refused",
  ]

  private func counted(_ system: TestSystem) -> UInt64 {
    var sum: UInt64 = 0
    var found = 0
    for index in 0..<system.memory.statistics.count {
      let row = system.memory.statistics[index]
      guard Self.counters.contains(row.name.description) else { continue }
      found += 1
      sum += row.value
    }
    XCTAssertEqual(found, Self.counters.count)
    return sum
  }

  /// Runs `body`, which must be refused, and expects one entry of `kind` and one count for it.
  private func refuse(
    _ system: TestSystem, _ kind: RefusedRequest.Kind, _ requester: String, line: UInt = #line,
    _ body: () throws -> Void
  ) {
    let log = system.memory.failures
    let (entries, counts) = (log.count, counted(system))
    XCTAssertThrowsError(try body(), line: line)
    XCTAssertEqual(log.count, entries + 1, "entries", line: line)
    XCTAssertEqual(counted(system), counts + 1, "counts", line: line)
    var latest: RefusedRequest?
    log.forEach { if latest == nil { latest = $0 } }
    XCTAssertEqual(latest?.kind, kind, line: line)
    XCTAssertEqual(latest.map { text($0.requester) }, requester, line: line)
    XCTAssertEqual(latest?.free, system.physical.freeCount, line: line)
    XCTAssertEqual(
      latest.map { $0.reserved }, latest.map { system.physical.reserve(for: $0.priority) }, line: line)
    XCTAssertEqual(latest?.wasGranted, false, line: line)
  }

  private struct NoObject: Error {}

  func testEachKindOfRefusalIsRecordedOnceByTheLayerThatRefuses() throws {
    let system = try TestSystem(frames: 1024, swap: 64)
    let (physical, space, kmem, paging) = (system.physical, system.space, system.kmem, system.paging)
    let type = kmem.type(named: "test")
    let object = try paging.createObject("some", PageCount(8))
    let range = try paging.map(object, count: PageCount(8))
    let cache = kmem.lookUp(ByteCount(2048))!
    let frames = system.takeAll()
    let before = system.memory.failures.count
    refuse(system, .block, "wired") { _ = try physical.allocate(BlockOrder(0), role: .wired) }
    refuse(system, .block, "a test") {
      _ = try physical.allocate(BlockOrder(3), role: .wired, for: FrameOwner("a test"))
    }
    refuse(system, .block, "wired") { _ = try physical.allocate(BlockOrder(19), role: .wired) }
    refuse(system, .block, "wired") {
      _ = try physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt, waitUntil: Tick(0))
    }
    refuse(system, .block, "wired") {
      _ = try physical.allocate(BlockOrder(1), role: .wired, priority: .normal, waitUntil: Tick(0))
    }
    refuse(system, .frames, "wired") {
      var some = [FrameNumber](repeating: .none, count: 4)
      try some.withUnsafeMutableBufferPointer { try physical.allocate(into: $0, role: .wired) }
    }
    refuse(system, .frame, "wired") { try physical.allocate(frame: frames[0], role: .wired) }
    refuse(system, .run, "wired") { _ = try physical.allocate(run: PageCount(9), role: .wired) }
    refuse(system, .run, "wired") { _ = try physical.allocate(run: .zero, role: .wired) }
    refuse(system, .object, "test") {
      // More than any magazine holds.
      for _ in 0..<100 {
        guard cache.alloc(type: type) != nil else { throw NoObject() }
      }
    }
    refuse(system, .object, "test") {
      if kmem.alloc(.mebibytes(1), type: type) == nil { throw NoObject() }
    }
    refuse(system, .object, "huge") { _ = try kmem.createCache(name: "huge", size: .mebibytes(1)) }
    refuse(system, .space, "stack") { _ = try space.allocateStack(PageCount(4)) }
    refuse(system, .space, "wired, heap") { _ = try space.allocateWired(PageCount(4)) }
    refuse(system, .space, "device registers") {
      _ = try space.mapDevice(PhysicalAddress(1 << 40), .zero)
    }
    refuse(system, .segment, "kernel_va") { _ = try space.kernelArena.alloc(.zero) }
    refuse(system, .segment, "device_va") { _ = try space.deviceArena.alloc(ArenaSize(1 << 60)) }
    refuse(system, .pageable, "more") { _ = try paging.createObject("more", PageCount(5000)) }
    refuse(system, .pageable, "some") { _ = try paging.map(object, count: PageCount(9)) }
    refuse(system, .pageable, "some") { try paging.fault(range, .write) }
    refuse(system, .pageable, "some") { _ = try paging.wire(range, .one, holes: .forbidden) }
    refuse(system, .run, "contiguous") {
      _ = try system.contiguous.allocContig(ContiguousRequest(PageCount(4)))
    }
    refuse(system, .run, "test") { _ = try system.contiguous.contigmalloc(ByteCount(8192), type: type) }
    XCTAssertEqual(system.memory.failures.count, before + 23)
    system.giveBack(frames)
    system.check()
  }

  func testARefusalSaysWhatWasWaitedFor() throws {
    let system = try TestSystem(frames: 1024, swap: 64)
    let frames = system.takeAll()
    // A waiter of four frames sleeps; as its devices are run, another request is refused.
    nonisolated(unsafe) var isRefused = false
    system.host.runDevices = {
      guard !isRefused else { return false }
      isRefused = true
      XCTAssertNil(try? system.physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt))
      return false
    }
    XCTAssertThrowsError(
      try system.physical.allocate(BlockOrder(2), role: .wired, priority: .system, waitUntil: .never))
    XCTAssertTrue(isRefused)
    var entries: [RefusedRequest] = []
    system.memory.failures.forEach { entries.append($0) }
    XCTAssertEqual(entries[1].awaited, PageCount(4))
    XCTAssertEqual(entries[0].awaited, .zero)
    system.giveBack(frames)
    system.check()
  }
}

private func text(_ name: ShortName) -> String {
  String(decoding: (0..<name.count).map { name[$0] }, as: UTF8.self)
}
