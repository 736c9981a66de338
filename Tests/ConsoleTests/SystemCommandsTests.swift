import Foundation
import HostMachine
import KernelMemory
import Kmem
import MemoryPrimitives
import PhysicalMemory
import Workloads
import XCTest

@testable import Console

/// The commands over a whole system.
final class SystemCommandsTests: XCTestCase {
  static let sample = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent().appendingPathComponent("Traces/linux-6.1-sample.trace")

  static let looking = [
    "memmap", "frames", "frames -a", "buddy", "map", "map 0x100000+2M", "pagetable",
    "pagetable 0xffff_c000_0000_0000",
    "vmem", "vmem kernel_va", "vmem heap_va", "kmem", "kmem -a", "vmstat -m", "vmstat -z", "whatis frame 300",
    "whatis frame 1", "whatis 0x10_0000", "whatis 0xffff_c000_0000_0000", "why 2M align=2M", "why 60M",
    "why 1G",
    "failures", "snapshot", "diff", "sysctl", "sysctl vmem", "selftest invariants", "help", "help why",
    "queues", "swap", "launder",
  ]

  /// Everything fits 80 columns and is plain ASCII; with `-j` every line is an object with its kind first.
  static func check(_ harness: ConsoleHarness, _ commands: [String] = looking) throws {
    for command in commands {
      let text = harness.run(command)
      XCTAssertNil(harness.outcome, command)
      XCTAssertFalse(text.isEmpty, command)
      for line in text.split(separator: "\n") {
        XCTAssertLessThanOrEqual(line.utf8.count, 80, "\(command): \(line)")
        XCTAssertTrue(line.utf8.allSatisfy { $0 >= 0x20 && $0 < 0x7f }, "\(command): \(line)")
      }
      let lines = harness.run(command + " -j").split(separator: "\n")
      if command != "failures" && command != "vmem heap_va" { XCTAssertFalse(lines.isEmpty, command) }
      for line in lines {
        XCTAssertTrue(line.hasPrefix("{\"kind\":\""), "\(command): \(line)")
        XCTAssertNotNil(try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any], "\(line)")
      }
    }
  }

  func testEveryCommandHasBothOutputs() throws {
    try Self.check(ConsoleHarness())
  }

  func testEveryCommandRunsAfterAReplayThatIsKept() throws {
    let harness = ConsoleHarness(trace: try Data(contentsOf: Self.sample))
    harness.run("snapshot before")
    XCTAssertTrue(harness.run("replay").hasSuffix("Everything is back at its starting counts.\n"))
    XCTAssertNil(harness.outcome)
    XCTAssertTrue(harness.run("diff before").contains("kmem.requests"))
    let row = try XCTUnwrap(rows(harness.run("replay keep -j")).first)
    XCTAssertEqual(row["lost"] as? Int, 0)
    XCTAssertEqual(row["left_objects"] as? Int, 1508)
    try Self.check(harness)
    let taken = rows(harness.run("memmap -j")).compactMap { $0["taken"] as? Int }.reduce(0, +)
    let roles = rows(harness.run("frames -j")).compactMap { $0["frames"] as? Int }.reduce(0, +)
    XCTAssertEqual(taken, roles)
  }

  func testCommandsThatOnlyShowAllocateNothing() throws {
    let harness = ConsoleHarness()
    let before = harness.physical.freeCount
    for command in Self.looking where !command.hasPrefix("selftest") { harness.run(command) }
    XCTAssertEqual(harness.physical.freeCount, before)
    XCTAssertEqual(harness.memory.kmem.requests, 0)
  }

  func testBadModulesAreRefusedInAFewLines() throws {
    let good = try Data(contentsOf: Self.sample)
    XCTAssertEqual(
      ConsoleHarness().run("replay"),
      "There is no boot module to replay.\nPack a trace (strata trace pack) and boot with make run TRACE=FILE.\n"
    )
    for bad in [
      good.prefix(good.count / 2), Data(), Data("this is not a trace\n".utf8), good + Data(count: 100),
    ] {
      let harness = ConsoleHarness(trace: Data(bad))
      let before = harness.physical.freeCount
      let text = harness.run("replay")
      XCTAssertEqual(harness.outcome, .failed)
      XCTAssertLessThanOrEqual(text.split(separator: "\n").count, 3, text)
      XCTAssertTrue(text.hasPrefix("The boot module "), text)
      XCTAssertEqual(rows(harness.run("replay -j")).first?["kind"] as? String, "error")
      XCTAssertEqual(harness.physical.freeCount, before)
    }
  }

  func testTheTourShowsEachLayerAndEndsWithARequestThatIsHard() throws {
    let harness = ConsoleHarness(trace: try Data(contentsOf: Self.sample))
    let text = harness.run("tour")
    XCTAssertNil(harness.outcome)
    for command in [
      "memmap", "frames", "map", "buddy", "pagetable", "vmem", "kmem", "why 2M align=2M", "replay",
      "dirty 60%", "contig -v 2M align=2M", "verify",
    ] {
      XCTAssertTrue(text.contains("strata> \(command)\n"), command)
    }
    XCTAssertTrue(text.contains("Everything is back at its starting counts."))
    XCTAssertTrue(text.contains("\nCandidate "), text)
    XCTAssertTrue(text.contains("Granted: contig 1, frames "), text)
    XCTAssertTrue(text.contains(" pages intact; 0 were read back from swap.\n"), text)
    assertFits(text)
    // Its memory is freed.
    XCTAssertEqual(harness.run("contig list"), "None. As in: contig 2M align=2M\n")
    XCTAssertEqual(harness.physical.count(.pageable), .zero)
    let free = harness.physical.freeCount
    harness.run("tour")
    XCTAssertEqual(harness.physical.freeCount, free)
    XCTAssertNil(harness.memory.checkInvariants())
    // With a disk, some pages must be written, and are read back.
    let swapping = ConsoleHarness(swap: .mebibytes(64))
    let full = swapping.run("tour")
    XCTAssertNil(swapping.outcome, full)
    XCTAssertTrue(full.contains("strata> dirty 120%\n"), full)
    XCTAssertTrue(full.contains("\nlaunder "), full)
    XCTAssertFalse(full.contains(" pages intact; 0 were read"), full)
    assertFits(full)
    // After a failure it does not go on.
    swapping.run("dirty 180%")
    XCTAssertNil(swapping.outcome)
    let short = swapping.run("tour")
    XCTAssertEqual(swapping.outcome, .failed)
    XCTAssertTrue(
      short.hasSuffix(
        "The tour ends here; its memory is freed.\n! Memory may be in use already. Type: dirty free\n"),
      short)
    XCTAssertFalse(short.contains("contig -v"), short)
    XCTAssertTrue(swapping.run("verify").contains(" pages intact; "))
    XCTAssertNil(swapping.outcome)
    // Without a trace it prints so, and the command does not fail.
    let bare = ConsoleHarness()
    XCTAssertTrue(bare.run("tour").contains("There is no boot module to replay."))
    XCTAssertNil(bare.outcome)
    // At a terminal it waits, and q ends it.
    let other = ConsoleHarness(trace: try Data(contentsOf: Self.sample))
    let log = other.converse("tour\r\r q")
    XCTAssertTrue(log.contains("-- 2 of"), log)
    XCTAssertFalse(log.contains("-- 6 of"))
  }

  func testTheWhatisCommandDescribesAnObjectLayerByLayer() throws {
    let harness = ConsoleHarness()
    let kmem = harness.memory.kmem
    kmem.setAudit(.on)
    let type = kmem.type(named: ShortName("test"))
    let object = try XCTUnwrap(kmem.alloc(ByteCount(UInt64(60)), type: type))
    let address = UInt64(UInt(bitPattern: object))
    let text = harness.run("whatis 0x\(String(address + 18, radix: 16))")
    XCTAssertTrue(text.hasPrefix("18 bytes into an object of 64 bytes, in use\n"), text)
    for fact in [
      "cache      kmem-64", "type test, 60 bytes requested", "role slab", "leaf of 2 MiB, read-write",
    ] {
      XCTAssertTrue(text.contains(fact), "no \(fact) in\n\(text)")
    }
    let row = try XCTUnwrap(rows(harness.run("whatis 0x\(String(address, radix: 16)) -j")).first)
    XCTAssertEqual(row["kind"] as? String, "kmem_object")
    XCTAssertEqual(row["asked_for"] as? Int, 60)
    kmem.free(object, size: ByteCount(UInt64(60)), type: type)
    XCTAssertTrue(harness.run("whatis 0x\(String(address, radix: 16))").contains("free in its slab"))
    XCTAssertTrue(harness.run("whatis 300").contains("a frame is: whatis frame 300"))
    XCTAssertTrue(harness.run("whatis 0x0080_0000_0000_0000").contains("bits 47 to 63"))
    XCTAssertTrue(harness.run("whatis frame 99999999").contains("no frame: the last one is 16383"))
  }

  func testTheKmemCommandNamesTheSourceOfSlabs() throws {
    let harness = ConsoleHarness()
    let jumbo = try harness.memory.kmem.createCache(
      name: ShortName("jumbo"), size: ByteCount(UInt64(9216)), source: .contiguous())
    let caches = rows(harness.run("kmem -a -j")).filter { $0["kind"] as? String == "cache" }
    func source(_ name: String) -> String? {
      caches.first { $0["cache"] as? String == name }?["source"] as? String
    }
    XCTAssertEqual(source("jumbo"), "contiguous")
    XCTAssertEqual(source("kmem-64"), "direct map")
    harness.memory.kmem.destroy(jumbo)
  }

  func testTheWhatisCommandNamesTheTypeOfContiguousMemory() throws {
    let harness = ConsoleHarness()
    harness.run("contig 64K")
    let row = try XCTUnwrap(rows(harness.run("contig 2M type=dma attr=wc -j")).last)
    let (address, frame) = (row["address"] as! String, row["first_frame"] as! Int)
    for (command, answer) in [
      ("whatis \(address)", "0 B into contig 2.\n"), ("whatis frame \(frame + 3)", "12 KiB into contig 2.\n"),
    ] {
      let text = harness.run(command)
      XCTAssertTrue(text.hasPrefix(answer), text)
      XCTAssertTrue(
        text.contains("  contig     2 at \(address)") && text.contains("2 MiB of type dma, write-combining"),
        text)
      assertFits(text)
    }
    // Without an address in the command, that of the direct map is printed.
    let mapping = harness.run("whatis frame \(frame)")
    XCTAssertTrue(mapping.contains("  mapping    direct map "), mapping)
    XCTAssertFalse(harness.run("whatis \(address)").contains("direct map"))
    let taken = try harness.physical.allocate(run: PageCount(UInt64(4)), role: .contiguous)
    XCTAssertTrue(
      harness.run("whatis frame \(taken.first.rawValue)").hasPrefix(
        "Contiguous memory that the console has not allocated."))
  }

  func testTheWhatisCommandDescribesARangeOfKernelSpace() throws {
    let harness = ConsoleHarness()
    let stack = try harness.memory.space.allocateStack(PageCount(UInt64(4)))
    XCTAssertTrue(harness.run("whatis \(text("\(stack.bottom)"))").contains("0 B into 16 KiB of stack"))
    XCTAssertTrue(harness.run("whatis \(text("\(stack.guardPage)"))").contains("a guard page"))
    XCTAssertTrue(harness.run("pagetable \(text("\(stack.bottom)"))").contains("whatis names the owner"))
    XCTAssertTrue(harness.run("pagetable \(text("\(stack.guardPage)"))").contains("Nothing is mapped there"))
    XCTAssertTrue(harness.run("vmem kernel_va").contains("stack"))
    // Inside a range, its start and the offset are named.
    let inside = "whatis \(text("\(VirtualAddress(stack.bottom.rawValue + 0x1234))"))"
    let said = harness.run(inside)
    XCTAssertTrue(said.contains("  range      \(text("\(stack.bottom)")) +0x1234  4 pages, stack\n"), said)
    XCTAssertTrue(
      said.contains("  segment    \(text("\(stack.guardPage)")) +0x2234  20 KiB of kernel_va, in use"), said)
    XCTAssertFalse(harness.run("whatis \(text("\(stack.bottom)"))").contains("\(text("\(stack.bottom)")) +"))
    let found = rows(harness.run(inside + " -j"))
    XCTAssertEqual(found.first { $0["kind"] as? String == "address_range" }?["offset"] as? Int, 0x1234)
    XCTAssertEqual(found.first { $0["kind"] as? String == "arena_segment" }?["offset"] as? Int, 0x2234)
    harness.run("dirty 1M")
    let page = harness.run(
      "whatis 0x\(String(harness.console.state.pointee.fills[0].address.rawValue + 0x1b123, radix: 16))")
    XCTAssertTrue(page.contains(" +0x1b123  256 pages, pageable, read-write\n"), page)
    for log in [said, page] {
      assertFits(log)
      // A label never touches what follows it.
      for line in log.split(separator: "\n").dropFirst() { XCTAssertTrue(line.hasPrefix("  "), String(line)) }
      XCTAssertFalse(log.contains("requested by") && !log.contains("requested by "), log)
    }
    harness.memory.space.freeStack(stack)
  }

  func testAPageWindowIsNamedOpenAndClosed() throws {
    let harness = ConsoleHarness()
    let base = "0xffff_f000_0000"
    let closed = harness.run("whatis \(base)_0000")
    XCTAssertTrue(
      closed.hasPrefix("An address of the first page of the page window of cpu 0 for threads: closed.\n"),
      closed)
    XCTAssertTrue(closed.contains("  mapping    none"), closed)
    XCTAssertTrue(harness.run("pagetable \(base)_1000").contains("not present: a page window, closed"))
    XCTAssertTrue(
      harness.run("whatis \(base)_5000").contains("the second page of the page window of cpu 0 for int"))
    XCTAssertTrue(
      harness.run("whatis \(base)_7fff").contains("an unmapped page behind the page window of cpu 0"))
    XCTAssertTrue(harness.run("whatis \(base)_8000").contains("no region of the kernel"))
    let mappings = rows(harness.run("pagetable -j")).count
    let frame = harness.memory.pageTables.root.frame
    let window = harness.memory.pageTables.windows.open(frame, frame, for: .read)
    let open = harness.run("whatis \(base)_1008")
    XCTAssertTrue(
      open.hasPrefix("An address of the second page of the page window of cpu 0 for threads: open.\n"), open)
    XCTAssertTrue(open.contains("leaf of 4 KiB, read-only"), open)
    XCTAssertTrue(open.contains("role page table"), open)
    let row = try XCTUnwrap(rows(harness.run("whatis \(base)_1008 -j")).first)
    XCTAssertEqual(row["kind"] as? String, "page_window")
    XCTAssertEqual(row["open"] as? Bool, true)
    XCTAssertEqual(row["depth"] as? String, "thread")
    XCTAssertTrue(harness.run("pagetable \(base)_1008").contains(", page window"))
    XCTAssertEqual(rows(harness.run("pagetable -j")).count, mappings + 2)
    window.close()
    XCTAssertEqual(rows(harness.run("pagetable -j")).count, mappings)
    // The tables of windows name their purpose.
    var tables = 0
    harness.memory.pageTables.forEachTable { table, _ in
      if harness.run("whatis frame \(table.rawValue)").contains("page windows") { tables += 1 }
    }
    XCTAssertEqual(tables, 3)
  }

  func testFaultsOfCallersAreReportedAndChangeNothing() throws {
    let harness = ConsoleHarness()
    for (kind, expected) in [
      ("double-free", FaultKind.doubleFree), ("wrong-size", .wrongSize), ("foreign-pointer", .foreignPointer),
      ("window-twice", .windowMisuse), ("window-sleep", .windowMisuse),
    ] {
      let faults = harness.host.faults { harness.run("fault \(kind)") }
      XCTAssertEqual(faults.map(\.kind), [expected])
      XCTAssertEqual(
        harness.outcome, .failed, "where a report returns, the command says that nothing stopped")
      XCTAssertNil(harness.memory.checkInvariants())
    }
    XCTAssertTrue(harness.terminal.triggered.isEmpty)
  }

  func testSelfTestPassesAndNamesItsTests() {
    let harness = ConsoleHarness(
      ranges: [(1 << 20, 255 << 20, 1)], memory: .mebibytes(256))
    XCTAssertTrue(harness.run("selftest").hasSuffix("8 passed, 0 failed\n"))
    XCTAssertEqual(rows(harness.run("selftest invariants -j")).first?["passed"] as? Bool, true)
    XCTAssertTrue(harness.run("selftest nothing").contains("no such test"))
    XCTAssertEqual(harness.outcome, .refused)
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testTheFailureLogNamesRequesterAndRequest() throws {
    let harness = ConsoleHarness()
    XCTAssertEqual(harness.run("failures"), "No request has been refused since boot.\n")
    XCTAssertThrowsError(
      try harness.physical.allocate(
        run: PageCount(UInt64(64)), where: RunConstraints(boundary: Alignment(64 << 10)), role: .wired))
    let type = harness.memory.kmem.type(named: ShortName("test"))
    while (try? harness.physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt)) != nil {}
    XCTAssertNil(harness.memory.kmem.alloc(ByteCount(UInt64(100)), type: type))
    XCTAssertThrowsError(try harness.memory.space.allocateStack(PageCount(UInt64(4))))
    let told = rows(harness.run("failures -j"))
    XCTAssertEqual(
      told.map { "\($0["requester"] ?? "") \($0["asked"] ?? "") \($0["bytes"] ?? 0) \($0["answer"] ?? "")" },
      [
        "stack kernel space 16384 no memory", "test object 100 no memory", "wired block 4096 shortage",
        "wired run 262144 never",
      ])
    XCTAssertEqual(told.map { $0["boundary"] as? Int }, [0, 0, 0, 65536])
    XCTAssertEqual(told.map { $0["priority"] as? String }, ["normal", "normal", "interrupt", "normal"])
    XCTAssertEqual(told.map { $0["granted"] as? Bool }, [false, false, false, false])
    XCTAssertTrue(told.allSatisfy { $0["high"] is NSNull && $0["blocker"] is NSNull })
    let log = harness.run("failures")
    for words in [
      "stack  kernel space of 16 KiB ", " block of 4 KiB, interrupt ",
      "  256 KiB boundary 64 KiB    never: past its boundary  ",
      "\n4 of 4 are kept, 64 at most: 4 failed, 0 granted after moving or writing.\n",
    ] { XCTAssertTrue(log.contains(words), "\(words): \(log)") }
    assertFits(log)
    for _ in 0..<100 { _ = try? harness.physical.allocate(BlockOrder(3), role: .wired) }
    XCTAssertEqual(rows(harness.run("failures -j")).count, 64)
    XCTAssertTrue(
      harness.run("failures").hasSuffix(
        "64 of 104 are kept, 64 at most: 64 failed, 0 granted after moving or writing.\n"))
    XCTAssertNil(harness.memory.checkInvariants())
  }

  /// Of a request with the largest sizes and limits no figure is lost, on a screen of 80 columns.
  func testTheFailureLogShowsTheLargestSizesWhole() {
    let harness = ConsoleHarness()
    var request = RefusedRequest(
      .pageable, ByteCount(UInt64(64) << 40 - 4096), priority: .interrupt,
      requester: ShortName("a_requester_of_thirty_one_bytes"), reason: "no memory")
    request.alignment = ByteCount(UInt64(32) << 40)
    request.boundary = ByteCount(UInt64(64) << 40)
    request.low = PhysicalAddress(0x1234_5678_9abc_d000)
    request.high = PhysicalAddress(0xffff_ffff_ffff_f000)
    request.blocker = FrameNumber(4_294_967_294)
    request.moved = PageCount(UInt64(4_294_967_294))
    request.written = PageCount(UInt64(4_294_967_293))
    harness.memory.machine.record(request)
    let log = harness.run("failures")
    assertFits(log)
    for figure in [
      "64.0 TiB", "align 32 TiB", "boundary 64 TiB", "low", "0x1234_5678_9abc_d000", "high",
      "0xffff_ffff_ffff_f000",
      "4294967294", "moved", "4,294,967,294", "wrote", "4,294,967,293", "interrupt",
    ] { XCTAssertTrue(log.contains(figure), "\(figure): \(log)") }
    XCTAssertFalse(log.contains("TiB.."), log)
    let row = rows(harness.run("failures -j")).first
    XCTAssertEqual(row?["requester"] as? String, "a_requester_of_thirty_one_bytes")
    XCTAssertEqual(row?["low"] as? String, "0x1234_5678_9abc_d000")
  }

  func testHistoriesEndWithTheChecksumsOfEveryMachine() throws {
    let harness = ConsoleHarness(ranges: [(1 << 20, 255 << 20, 1)], memory: .mebibytes(256))
    let told = rows(harness.run("selftest history -j")).compactMap { $0["checksum"] as? String }
    XCTAssertEqual(told.count, HistoryKind.count)
    let host = SimulatedMachine(memory: SeededHistory.memory)
    func block(_ size: ByteCount) -> UnsafeMutableRawPointer {
      let memory = UnsafeMutableRawPointer.allocate(byteCount: Int(size.rawValue), alignment: 64)
      memory.initializeMemory(as: UInt8.self, repeating: 0, count: Int(size.rawValue))
      return memory
    }
    let workspace = block(MemorySystem.workspaceSize(ranges: 1))
    let histories = block(SeededHistory.workspace)
    defer {
      workspace.deallocate()
      histories.deallocate()
    }
    let system = try SeededHistory.assemble(host.machine, workspace: workspace)
    for (i, checksum) in told.enumerated() {
      let kind = try XCTUnwrap(HistoryKind(rawValue: UInt8(i)))
      let outcome = SeededHistory.run(.standard(kind), on: system, workspace: histories)
      XCTAssertNil(outcome.broken)
      XCTAssertEqual(text("\(hex: outcome.checksum, digits: 16)"), checksum)
    }
    XCTAssertTrue(ConsoleHarness().run("selftest history").contains("no run of 64 MiB"))
  }

  func testTheBannerCountsTheMemoryThatStrataUses() throws {
    let harness = ConsoleHarness(trace: try Data(contentsOf: Self.sample))
    harness.converse("")
    let log = harness.banner
    XCTAssertTrue(log.contains("packed trace, 120,000 events"), log)
    XCTAssertTrue(log.contains("Strata took "), log)
    for line in log.split(separator: "\n") { XCTAssertLessThanOrEqual(line.count, 80, String(line)) }
  }
}
