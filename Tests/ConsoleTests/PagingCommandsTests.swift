import Foundation
import HostMachine
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Workloads
import XCTest

@testable import Console

/// The commands on pageable memory, over a system of 64 MiB with a swap disk.
final class PagingCommandsTests: XCTestCase {
  private func page(_ i: UInt64) -> PageCount { PageCount(i) }

  /// A disk on which nothing works.
  private static var failing: DeviceFaults {
    var faults = DeviceFaults(seed: 1)
    faults.failed = 1000
    return faults
  }

  private func sum(_ log: String, _ kind: String, _ key: String) -> Int {
    rows(log).filter { $0["kind"] as? String == kind }.compactMap { $0[key] as? Int }.reduce(0, +)
  }

  private func places(_ harness: ConsoleHarness, _ number: Int) -> [String: Int] {
    var places: [String: Int] = [:]
    for row in rows(harness.run("objects \(number) -j")) where row["kind"] as? String == "place" {
      places[row["place"] as! String] = row["pages"] as? Int
    }
    return places
  }

  // MARK: Text and JSON

  func testEveryPagingCommandHasBothOutputsAndAllocatesNothing() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    let all: [String] = [
      "queues", "swap", "frames", "map", "help", "help launder", "help wire", "selftest invariants",
    ]
    try SystemCommandsTests.check(harness, all)
    let space = try harness.space("test", 600)
    harness.run("launder active 512K")
    harness.run("wire \(space.at(300))+16K")
    let before = harness.physical.freeCount
    let cached = try XCTUnwrap(harness.frame(of: space, where: .cached))
    let resident = try XCTUnwrap(harness.frame(of: space, where: .resident))
    try SystemCommandsTests.check(
      harness,
      all + [
        "objects", "objects -a", "objects 1", "objects \(space.object.number)",
        "whatis frame \(cached.rawValue)",
        "whatis frame \(resident.rawValue)", "whatis \(space.at(0))", "whatis \(space.at(300))",
        "map 0x\(String(UInt64(resident.rawValue) << 12, radix: 16))+2M",
      ])
    XCTAssertEqual(harness.physical.freeCount, before)
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testRowsOfOneKindHaveTheSameKeysInEveryCommand() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    let space = try harness.space("test", 600)
    harness.run("launder active 512K")
    harness.run("contig 10000 type=dma")
    harness.run("contig 60M")
    let object = harness.memory.kmem.alloc(
      ByteCount(UInt64(60)), type: harness.memory.kmem.type(named: ShortName("test")))
    let entry = try XCTUnwrap(rows(harness.run("contig list -j")).first)
    XCTAssertEqual(entry["bytes"] as? Int, 10000)
    var shapes: [String: (keys: Set<String>, command: String)] = [:]
    for command in SystemCommandsTests.looking + [
      "objects", "objects 1", "whatis \(space.at(300))", "whatis frame \(entry["first_frame"]!)",
      "whatis \(entry["address"]!)", "whatis 0x\(String(UInt(bitPattern: object), radix: 16))", "contig list",
      "contig 4K", "contig free 2", "dirty 1M", "dirty free", "vmem heap_va", "pagetable -a",
    ] {
      for row in rows(harness.run(command + " -j")) {
        let kind = row["kind"] as! String
        for (key, value) in row where ["pages", "granted", "moved", "ranges"].contains(key) {
          XCTAssertTrue(value is NSNumber, "\(command): \(key) is \(value)")
        }
        // The count of sentences in an answer varies.
        if ["why", "contig"].contains(kind) { continue }
        let keys = Set(row.keys)
        guard let (others, other) = shapes[kind] else {
          shapes[kind] = (keys, command)
          continue
        }
        XCTAssertTrue(
          keys.isSubset(of: others) || others.isSubset(of: keys), "\(kind): \(command) and \(other)")
      }
    }
    XCTAssertGreaterThan(shapes.count, 25)
  }

  func testAPageableRangeIsARowOfThePageTable() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    let space = try harness.space("test", 600)
    let text = harness.run("pagetable")
    assertFits(text)
    let row = try XCTUnwrap(text.split(separator: "\n").first { $0.contains("pageable") }).description
    XCTAssertTrue(row.hasPrefix("\(space.at(0))  2.34 MiB  object 1"), text)
    XCTAssertTrue(text.contains("\nA pageable range counts the pages that are mapped now; -a"), text)
    XCTAssertLessThan(text.split(separator: "\n").count, 30)
    // All of it, row by row, adds up to the same.
    let bytes = sum(harness.run("pagetable -j"), "mapping", "bytes")
    let all = harness.run("pagetable -a -j")
    XCTAssertEqual(sum(all, "mapping", "bytes"), bytes)
    XCTAssertGreaterThan(rows(all).count, rows(harness.run("pagetable -j")).count)
    XCTAssertTrue(harness.run("pagetable -a").contains("\n\(space.at(0))  "))
  }

  // MARK: queues

  func testQueuesAddUpToAllPageablePages() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    XCTAssertEqual(
      harness.run("queues"),
      """
      queue        pages  size    watermark          frames
      active           0   0 B    free now           \(harness.free)
      inactive         0   0 B    cached among them       0
      laundry          0   0 B    target                407
      unswappable      0   0 B    daemon wakes at       367
      wired            0   0 B    minimum               255
      pageable         0   0 B    for page-out           63
      There is no pageable page yet. Type: dirty 10%

      """)
    let space = try harness.space("test", 600)
    harness.run("launder active 1M")
    harness.run("wire \(space.at(598))+8K")
    let text = harness.run("queues")
    XCTAssertTrue(text.contains("active         342  1.34 MiB"), text)
    XCTAssertTrue(text.contains("cached among them     256"), text)
    XCTAssertTrue(text.contains("wired            2     8 KiB"), text)
    XCTAssertTrue(text.contains("pageable       344  1.34 MiB"), text)
    XCTAssertFalse(text.contains("!"), text)
    let log = harness.run("queues -j")
    XCTAssertEqual(sum(log, "queue", "pages"), Int(harness.physical.count(.pageable).rawValue))
    XCTAssertEqual(rows(log).filter { $0["kind"] as? String == "watermark" }.count, 6)
    harness.run("unwire \(space.at(598))+8K")
    harness.run("launder active")
    XCTAssertTrue(harness.run("queues").hasSuffix("No page is in memory. Type: objects\n"))
  }

  func testQueuesCountThePagesThatTheDaemonCannotReclaim() throws {
    let harness = ConsoleHarness()
    _ = try harness.space("test", 100)
    let text = harness.run("launder active")
    XCTAssertTrue(text.contains("! There is no space in swap for 100 pages. Type: swap\n"), text)
    XCTAssertTrue(
      harness.run("queues").hasSuffix("! 100 dirty pages without a swap slot must stay. Type: swap\n"))
    XCTAssertTrue(
      harness.run("swap").hasPrefix("There is no swap device: a dirty page stays in memory"))
    XCTAssertNil(harness.outcome)
    XCTAssertEqual(sum(harness.run("queues -j"), "queue", "pages"), 100)
  }

  func testPagesInTransferAreCountedAndListed() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    let space = try harness.space("test", 100)
    let frame = try XCTUnwrap(harness.frame(of: space, where: .resident))
    let disk = try XCTUnwrap(harness.disk)
    nonisolated(unsafe) let unsafe = harness
    nonisolated(unsafe) var told: [String] = []
    harness.host.runDevices = {
      if told.isEmpty {
        for command in ["queues", "whatis frame \(frame.rawValue)", "map -j", "objects 1"] {
          told.append(unsafe.run(command))
        }
      }
      return disk.poll()
    }
    harness.memory.paging.launder(.active, upTo: page(64), referenced: .launder)
    guard told.count == 4 else { return XCTFail("no thread waited for the disk") }
    XCTAssertTrue(told[0].contains("busy            64  256 KiB"), told[0])
    XCTAssertTrue(told[0].contains("pageable       100  400 KiB\n"), told[0])
    XCTAssertTrue(told[1].contains("no queue: on its way"), told[1])
    XCTAssertTrue(told[1].contains("valid, clean"), told[1])
    XCTAssertTrue(told[1].contains("being written out"), told[1])
    XCTAssertEqual(sum(told[2], "map", "claimed"), 64)
    XCTAssertTrue(told[3].contains("36 dirty, 0 wired, 0 held, 64 busy. Copies in swap: 0."), told[3])
  }

  // MARK: objects

  func testObjectsShowWhereThePagesOfEachAre() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    XCTAssertEqual(harness.run("objects"), "There is no memory object yet. Type: dirty 10%\n")
    let large = try harness.space("large", 600)
    let small = try harness.space("small", 8, touched: 5)
    let second = try harness.memory.paging.map(
      large.object, from: page(100), count: page(50), protection: .kernelReadOnly)
    harness.run("launder active 1M")
    harness.run("wire \(small.at(0))+8K")
    XCTAssertEqual(
      harness.run("objects"),
      """
      object     name   kind       pages  in memory  cached  in swap  wired  ranges
      1          large  anonymous    600        344     256      256      0       2
      2          small  anonymous      8          5       0        0      2       1
      2 objects                      608        349     256      256      2       3
      A page may be both in memory and in swap. objects N describes one.

      """)
    XCTAssertEqual(
      harness.run("objects 1"),
      """
      Object 1 "large": anonymous, 600 pages, 2.34 MiB
      range                      size  maps pages  rights
      \(large.at(0))  2.34 MiB  0 to 599    read-write
      \(text("\(second)"))   200 KiB  100 to 149  read-only
      2 ranges               2.54 MiB
      place      pages      size   share
      in memory    344  1.34 MiB  57.3 %
      cached       256     1 MiB  42.7 %
      all pages    600  2.34 MiB   100 %
      In memory: 344 dirty, 0 wired, 0 held, 0 busy. Copies in swap: 256.

      """)
    for number in 1...2 {
      let log = harness.run("objects \(number) -j")
      XCTAssertEqual(sum(log, "place", "pages"), sum(log, "object", "pages"))
    }
    // A page that is not used for long is only in swap; a page that was never touched is nowhere.
    harness.takeAllCached()
    let log = harness.run("objects")
    XCTAssertTrue(log.contains("large  anonymous    600        344       0      256"), log)
    XCTAssertEqual(
      places(harness, 1),
      ["in memory": 344, "cached": 0, "in swap": 256, "on its device": 0, "never touched": 0])
    XCTAssertEqual(
      places(harness, 2), ["in memory": 5, "cached": 0, "in swap": 0, "on its device": 0, "never touched": 3])
    XCTAssertTrue(harness.run("objects 7").contains("no object has this number; objects lists them"))
    XCTAssertEqual(harness.outcome, .refused)
    XCTAssertTrue(harness.run("objects 99999999999").contains("no object has this number"))
    XCTAssertTrue(harness.run("objects small").contains("^"))
  }

  func testAnObjectOnADeviceIsShownAsOne() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    let paging = harness.memory.paging
    let object = try paging.createObject(
      ShortName("file"), on: try XCTUnwrap(harness.disk).device, from: page(1000), page(8))
    let address = try paging.map(object, count: page(8))
    _ = try harness.terminal.processor!.load(address)
    XCTAssertEqual(rows(harness.run("objects -j")).first?["backing"] as? String, "device")
    XCTAssertEqual(places(harness, 1)["on its device"], 7)
    XCTAssertFalse(harness.run("objects 1").contains("No range maps it."))
    XCTAssertTrue(harness.run("whatis \(text("\(address + page(1))"))").contains("on its device"))
    paging.unmap(address, page(8))
    XCTAssertTrue(harness.run("objects 1").contains("No range maps it.\n"))
    let frame = try XCTUnwrap(paging.describe(object, page: 0).frame)
    XCTAssertTrue(harness.run("whatis frame \(frame.rawValue)").contains("no range maps it"))
    paging.destroy(object)
  }

  // MARK: swap

  func testSwapShowsItsDeviceAndTheErrorsOfIt() throws {
    let harness = ConsoleHarness(swap: .mebibytes(2))
    let space = try harness.space("test", 600)
    harness.run("launder active 1M")
    XCTAssertEqual(
      harness.run("swap"),
      """
      tier   size  pages   held   free  bad slots
      ram   2 MiB    256  1 MiB  1 MiB          0
      Since boot: 256 pages written (8 requests of several pages), 0 read.

      """)
    harness.takeAllCached()
    harness.disk?.faults = Self.failing
    for i in 0..<600 where harness.place(space, UInt64(i)) == .swapped {
      XCTAssertThrowsError(try harness.terminal.processor!.load(space.address + page(UInt64(i))))
      break
    }
    var text = harness.run("launder active 64K")
    XCTAssertTrue(text.contains("! The device failed; pages that could not be written stay dirty."), text)
    harness.disk?.faults = DeviceFaults()
    text = harness.run("swap")
    XCTAssertTrue(
      text.contains("! 18 requests failed, 0 pages came back corrupt. Type: sysctl vm.swap\n"), text)
    XCTAssertTrue(text.contains("         16\n"), text)
    XCTAssertTrue(harness.run("sysctl vm.swap").contains("vm.swap.failures"))
    harness.run("launder active")
    XCTAssertTrue(harness.run("swap").contains("! Swap is full: dirty pages must stay in memory."))
    let row = try XCTUnwrap(rows(harness.run("swap -j")).first)
    XCTAssertEqual(row["slots"] as? Int, 512)
    XCTAssertEqual(row["bad_slots"] as? Int, 16)
    XCTAssertEqual(row["free_slots"] as? Int, 0)
    XCTAssertNil(harness.memory.checkInvariants())
  }

  // MARK: launder

  func testLaunderPrintsItsOutcome() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    XCTAssertEqual(
      harness.run("launder"), "Nothing to do: there is no page in the queue laundry. Type: queues\n")
    let space = try harness.space("test", 600)
    XCTAssertEqual(
      harness.run("launder"), "Nothing to do: there is no page in the queue laundry. Type: launder active\n")
    let before = harness.physical.freeCount
    let text = harness.run("launder active 1M")
    XCTAssertTrue(text.hasPrefix("256 pages of the queue active looked at: 1 MiB became free.\n"), text)
    XCTAssertTrue(text.contains("    256    256          0            0       0            0  "), text)
    XCTAssertTrue(
      text.hasSuffix(
        "Free now: \(harness.free) frames, 256 of them cached; a fault reactivates those.\n"), text)
    XCTAssertEqual(harness.physical.freeCount, before + page(256))
    var row = try XCTUnwrap(rows(harness.run("launder active -j")).first)
    XCTAssertEqual(row["looked_at"] as? Int, 344)
    XCTAssertEqual(row["written"] as? Int, 344)
    XCTAssertNotNil(row["cost"] as? Int)
    XCTAssertEqual(row["unit"] as? String, "cycles")
    XCTAssertEqual(harness.memory.paging.count(.active), .zero)
    for i in 0..<600 as Range<UInt64> {
      XCTAssertEqual(try harness.terminal.processor!.load(space.address + page(i)), i + 1)
    }
    // Pages that were just read are clean, and are freed without being written.
    row = try XCTUnwrap(rows(harness.run("launder active 400K -j")).first)
    XCTAssertEqual(row["written"] as? Int, 0)
    XCTAssertEqual(row["freed"] as? Int, 100)
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testLaunderRefusesArgumentsThatMeanNothing() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    for (line, words) in [
      ("launder everything", "no queue to launder: active, inactive, laundry, or daemon"),
      ("launder active 0", "               ^ less than a page"), ("launder 0", "        ^ less than a page"),
      ("launder active active", "               ^^^^^^ a size comes after the queue"),
      ("launder active x", "               ^ a size comes after the queue, as in: launder active 1M"),
      ("launder -1", "        ^^ not understood here; usage: help launder"),
      ("wire -1", "     ^^ not understood here"),
      ("unwire -1", "       ^^ not understood here"),
      ("launder active 1X", "no unit"),
      ("launder active 1M 2M", "not understood here"),
      ("launder daemon 1M", "the daemon has its own target"),
    ] {
      let said = harness.run(line)
      XCTAssertTrue(said.contains(words), said.debugDescription)
      XCTAssertEqual(harness.outcome, .refused, line)
    }
  }

  func testTheDaemonRunsToItsTarget() throws {
    let harness = ConsoleHarness(swap: .mebibytes(64))
    XCTAssertTrue(harness.run("launder daemon").hasPrefix("The daemon has nothing to do: "))
    _ = try harness.space("test", 12_000)
    XCTAssertNil(harness.outcome)
    harness.run("sysctl vm.free_target=6000")
    let text = harness.run("launder daemon")
    XCTAssertTrue(text.hasPrefix("The page daemon freed "), text)
    XCTAssertTrue(text.contains("made inactive"), text)
    XCTAssertFalse(text.contains("!"), text)
    XCTAssertGreaterThanOrEqual(harness.physical.freeCount, page(6000))
    // With swap full it can't.
    let bare = ConsoleHarness()
    _ = try bare.space("test", 12_000)
    bare.run("sysctl vm.free_target=6000")
    XCTAssertTrue(bare.run("launder daemon").hasSuffix("! That is below its target of 6,000. Type: queues\n"))
    XCTAssertEqual(rows(bare.run("launder daemon -j")).first?["freed"] as? Int, 0)
    XCTAssertNil(harness.memory.checkInvariants())
    XCTAssertNil(bare.memory.checkInvariants())
  }

  // MARK: wire

  func testWireAndUnwirePinPagesAndRefuseWrongRanges() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    let first = try harness.space("first", 8)
    let second = try harness.space("second", 8)
    XCTAssertEqual(second.address, first.address + page(8), "there is no hole between them")
    let third = try harness.space("third", 8)
    harness.memory.paging.unmap(second.address, page(8))

    XCTAssertEqual(
      harness.run("wire \(first.at(2))+16K"),
      "Wired 4 pages, 16 KiB, from \(first.at(2)) on.\n"
        + "Pageable pages wired now, each counted once: 4. Type: queues\n")
    XCTAssertNil(harness.outcome)
    // A range that begins within a page takes the whole page.
    let inside = text("\(first.address + page(2) + ByteCount(UInt64(100)))")
    XCTAssertTrue(harness.run("wire \(inside)+1").hasPrefix("Wired 1 page, 4 KiB, from \(first.at(2)) on."))
    XCTAssertEqual(harness.memory.paging.wiredCount, page(4))
    XCTAssertEqual(rows(harness.run("wire \(first.at(2))+1 -j")).first?["wired_pages"] as? Int, 4)

    // A hole, forbidden and allowed.
    XCTAssertTrue(
      harness.run("wire \(first.at(0))+96K").contains(
        "no pageable memory is at \(second.at(0)); holes passes over that"))
    XCTAssertEqual(harness.outcome, .refused)
    XCTAssertTrue(
      harness.run("wire \(second.at(4))+64K").contains("no pageable memory is at \(second.at(4));"))
    XCTAssertTrue(
      harness.run("wire \(third.at(7))+8K").contains(
        "no pageable memory is at \(text("\(third.address + page(8))"))"))
    XCTAssertEqual(harness.memory.paging.wiredCount, page(4))
    XCTAssertTrue(harness.run("wire \(first.at(6))+56K holes").hasPrefix("Wired 6 pages, 24 KiB"))
    XCTAssertEqual(harness.memory.paging.wiredCount, page(10))

    // Paging would report this as a bug of its caller.
    for (line, words) in [
      ("unwire \(first.at(0))+8K", "\(first.at(0)) is not wired; nothing was changed"),
      ("unwire \(third.at(2))+12K", "\(third.at(4)) is not wired"),
      ("unwire \(second.at(0))+4K", "no pageable memory is there"),
      ("unwire 0x10_0000+4K", "no pageable memory is there"),
      ("wire 0x10_0000+4K", "no pageable memory is there"),
      ("wire \(first.at(0))", "a range is ADDRESS+SIZE"),
      ("wire 0x10+0xffff_ffff_ffff_f000", "no range of addresses is so long"),
      ("wire \(first.at(0))+4K hole", "not understood here; usage: wire ADDRESS+SIZE [holes]"),
      ("wire", "A range is missing; usage"), ("unwire", "A range is missing; usage"),
    ] {
      XCTAssertTrue(harness.run(line).contains(words), "\(line): \(harness.run(line))")
      XCTAssertEqual(harness.outcome, .refused, line)
    }
    XCTAssertEqual(harness.memory.paging.wiredCount, page(10))
    // Wired three times, unwired three times.
    for _ in 0..<3 { XCTAssertTrue(harness.run("unwire \(first.at(2))+4K").hasPrefix("Unwired 1 page")) }
    XCTAssertTrue(harness.run("unwire \(first.at(2))+4K").contains("is not wired"))
    harness.run("unwire \(first.at(3))+12K")
    XCTAssertTrue(harness.run("unwire \(first.at(6))+56K").hasPrefix("Unwired 6 pages"))
    XCTAssertEqual(harness.memory.paging.wiredCount, .zero)
    XCTAssertNil(harness.memory.checkInvariants())
  }

  /// Another thread maps a range in the hole at any moment of the command: the command treats no page of it as wired.
  func testARangeThatIsMappedInAHoleDuringAnUnwireIsLeftAlone() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    let paging = harness.memory.paging
    let first = try harness.space("first", 8)
    let second = try harness.space("second", 8)
    let third = try harness.space("third", 8)
    paging.unmap(second.address, page(8))
    var (moments, unwired) = (0, 0)
    while true {
      XCTAssertTrue(harness.run("wire \(first.at(6))+56K holes").hasPrefix("Wired 6 pages"))
      var moment = 0
      var mapped: VirtualAddress?
      var answer = ""
      let faults = harness.host.faults {
        harness.host.withInterrupts(
          seed: 0, oneIn: 1,
          handler: {
            if moment == moments { mapped = try! paging.map(second.object, count: second.object.pageCount) }
            moment += 1
          }
        ) { answer = harness.run("unwire \(first.at(6))+56K") }
      }
      XCTAssertEqual(faults.count, 0, "\(faults.first.map { "\($0.what)" } ?? ""), moment \(moments)")
      if answer.hasPrefix("Unwired 6 pages") {
        unwired += 1
        XCTAssertEqual(paging.wiredCount, .zero)
      } else {
        XCTAssertTrue(answer.contains("\(second.at(0)) is not wired; nothing was changed"), answer)
        paging.unwire(first.address + page(6), page(2))
        paging.unwire(third.address, page(4))
      }
      guard let mapped else { break }
      XCTAssertEqual(mapped, second.address, "not in the hole")
      paging.unmap(mapped, page(8))
      moments += 1
    }
    XCTAssertGreaterThan(moments, 10)
    XCTAssertGreaterThan(unwired, 10)
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testAWireThatFailsSaysWhyAndLeavesNothingWired() throws {
    let harness = ConsoleHarness(swap: .mebibytes(64))
    let space = try harness.space("test", 600)
    harness.run("launder active")
    harness.takeAllCached()
    harness.disk?.faults = Self.failing
    XCTAssertEqual(
      harness.run("wire \(space.at(0))+64K"),
      "A page could not be brought in: its device failed. Nothing is wired.\n")
    XCTAssertEqual(harness.outcome, .failed)
    harness.disk?.faults = DeviceFaults()
    // More than there is.
    let large = try harness.memory.paging.createObject(ShortName("large"), page(20_000))
    let address = try harness.memory.paging.map(large, count: page(20_000))
    XCTAssertEqual(
      harness.run("wire \(text("\(address)"))+80000K"),
      "No frame is free for one of its pages. Nothing is wired.\n")
    XCTAssertEqual(harness.memory.paging.wiredCount, .zero)
    XCTAssertNil(harness.memory.checkInvariants())
  }

  // MARK: map

  func testAFrameOfTheMapShowsItsPage() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    let space = try harness.space("test", 8)
    let paging = harness.memory.paging
    harness.run("wire \(space.at(0))+4K")
    _ = try paging.hold(space.address + page(1), .read)
    func letter(_ frame: FrameNumber) -> Character {
      let log = harness.run("map 0x\(String(UInt64(frame.rawValue) << 12, radix: 16))+4K")
      let cells = log.split(separator: "|")[1]
      return cells[cells.index(cells.startIndex, offsetBy: 0)]
    }
    let frames = try (0..<8).map { try XCTUnwrap(paging.describe(space.object, page: UInt64($0)).frame) }
    XCTAssertEqual(frames.map(letter), ["W", "!", "d", "d", "d", "d", "d", "d"])
    // The first of the queue is held and passed over, the next one is freed.
    harness.run("launder active 8K")
    let given = frames.filter { letter($0) == "c" }
    XCTAssertEqual(given.count, 1)
    XCTAssertTrue(
      harness.run("whatis frame \(given[0].rawValue)").hasPrefix("Free memory, and a cached page: page "))
    paging.unhold(frames[1])
    harness.run("unwire \(space.at(0))+4K")
    XCTAssertEqual(letter(frames[1]), "d")
    // After a run of the daemon some are inactive, clean or dirty.
    let more = try harness.space("more", 14_000)
    harness.run("sysctl vm.free_target=3000")
    harness.run("launder daemon")
    var inactive: [FrameNumber] = []
    for index in 0..<14_000 as Range<UInt64> {
      let page = paging.describe(more.object, page: index)
      if page.place == .resident, page.queue != .active { inactive.append(page.frame!) }
    }
    XCTAssertEqual(letter(try XCTUnwrap(inactive.first)), "d")
    let log = harness.run("map -j")
    XCTAssertEqual(
      rows(log).filter { $0["role"] as? String == "pageable" }.compactMap { $0["frames"] as? Int }.reduce(
        0, +),
      Int(harness.physical.count(.pageable).rawValue))
    XCTAssertNil(harness.memory.checkInvariants())
  }

  func testLettersFollowTheHardestPage() {
    func letter(_ change: (inout FrameTally) -> Void) -> Character {
      var tally = FrameTally()
      change(&tally)
      return Character(UnicodeScalar(tally.letter))
    }
    XCTAssertEqual(letter { _ in }, "-")
    XCTAssertEqual(letter { $0.add(.free, self.page(3)) }, ".")
    func pages(_ count: UInt64, _ change: @escaping (inout FrameTally) -> Void) -> Character {
      letter {
        $0.add(.free, self.page(500))
        $0.add(.pageable, self.page(count))
        change(&$0)
      }
    }
    XCTAssertEqual(pages(1) { $0.active = 1 }, "a")
    XCTAssertEqual(pages(1) { ($0.active, $0.dirty) = (1, 1) }, "d")
    XCTAssertEqual(pages(1) { $0.inactive = 1 }, "i")
    XCTAssertEqual(pages(1) { ($0.inactive, $0.dirty) = (1, 1) }, "d")
    XCTAssertEqual(pages(10) { ($0.active, $0.dirty) = (10, 6) }, "d")
    XCTAssertEqual(pages(10) { ($0.active, $0.dirty) = (10, 5) }, "a")
    XCTAssertEqual(pages(10) { ($0.active, $0.inactive) = (4, 6) }, "i")
    XCTAssertEqual(pages(10) { ($0.active, $0.claimed) = (9, 1) }, "!")
    XCTAssertEqual(pages(10) { ($0.active, $0.claimed, $0.wired) = (8, 1, 1) }, "W")
    XCTAssertEqual(pages(10) { _ in }, "a", "pageblocks don't show queues")
    // The most frequent kind of unmovable frames decides the character; wired pages count as wired frames.
    XCTAssertEqual(
      letter {
        $0.add(.slab, self.page(3))
        $0.add(.wired, self.page(1))
        $0.wired = 1
        $0.add(.pageable, self.page(400))
      }, "S")
    XCTAssertEqual(
      letter {
        $0.add(.slab, self.page(2))
        $0.add(.wired, self.page(1))
        $0.add(.pageable, self.page(400))
        $0.wired = 2
      }, "W")
  }

  func testABlockOfALargeMapShowsTheCountsOfItsPageblocks() throws {
    // 3 GiB: a character is 4 MiB.
    let harness = ConsoleHarness(
      ranges: [(1 << 20, 3 << 30, 1)], memory: .mebibytes(3100), swap: .mebibytes(16))
    let space = try harness.space("test", 4000)
    let frame = try XCTUnwrap(harness.memory.paging.describe(space.object, page: 2000).frame)
    func line() -> Substring? {
      harness.run("map").split(separator: "\n").first { $0.contains("d") || $0.contains("W") }
    }
    XCTAssertTrue(harness.run("map").contains("a character is 4 MiB"))
    XCTAssertNotNil(harness.run("map").firstIndex(of: "d"))
    harness.run("wire \(space.at(2000))+4K")
    let start = UInt64(frame.rawValue) & ~1023
    XCTAssertEqual(harness.console.cell(start, 1024), UInt8(ascii: "W"))
    // Counting by pageblock and by page gives the same result.
    let total = harness.physical.total.rawValue
    for (first, count) in [(UInt64(0), total + 256), (start, 1024), (start - 100, 700)] {
      let pageblocks = harness.console.tally(first, count, by: .pageblocks)
      let pages = harness.console.tally(first, count, by: .pages)
      XCTAssertEqual(pageblocks.free, pages.free)
      XCTAssertEqual(pageblocks.unmovable, pages.unmovable)
      XCTAssertEqual(pageblocks.movable, pages.movable)
      XCTAssertEqual(pageblocks.wired, pages.wired)
    }
    let log = harness.run("map 0+3G")
    XCTAssertTrue(log.contains("\na character is 4 MiB, a line 256 MiB\n"), log)
    XCTAssertTrue(log.contains(" free, 3,999 can move, "), log)
    for line in log.split(separator: "\n") { XCTAssertLessThanOrEqual(line.count, 80, String(line)) }
  }

  // MARK: frames, whatis

  func testFramesCountCachedPages() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    XCTAssertFalse(harness.run("frames").contains("Cached"))
    _ = try harness.space("test", 600)
    harness.run("launder active 1M")
    let text = harness.run("frames")
    XCTAssertTrue(text.contains("pageable          344"), text)
    XCTAssertTrue(
      text.hasSuffix(
        "as memmap took them\nCached pages among the free ones: 256. A fault reactivates one without I/O.\n"),
      text)
    XCTAssertEqual(sum(harness.run("frames -j"), "frames", "frames"), Int(harness.physical.total.rawValue))
    XCTAssertEqual(sum(harness.run("frames -j"), "cached", "pages"), 256)
  }

  func testTheWhatisCommandDescribesAPageInEachPlace() throws {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    let space = try harness.space("test", 600, touched: 599)
    let paging = harness.memory.paging
    func whatis(_ index: UInt64) -> String { harness.run("whatis \(space.at(index))") }
    func has(_ text: String, _ facts: String..., line: UInt = #line) {
      for fact in facts { XCTAssertTrue(text.contains(fact), "no \(fact) in\n\(text)", line: line) }
    }
    // In memory, by its address and by its frame.
    let frame = try XCTUnwrap(paging.describe(space.object, page: 3).frame)
    let other = try paging.map(space.object, from: page(3), count: page(1), protection: .kernelReadOnly)
    has(
      whatis(3), "Pageable memory: page 3 of object 1 \"test\", in memory\n",
      "600 pages, pageable, read-write",
      "object     1 \"test\"", "page 3 of 600, anonymous", "queue      active", "valid, dirty",
      "shown at   \(text("\(other)"))  read-only, not mapped now", "frame      \(frame.rawValue) at",
      "could be moved")
    has(
      harness.run("whatis frame \(frame.rawValue)"),
      "Pageable memory: page 3 of object 1 \"test\", in memory\n",
      "shown at   \(space.at(3))  read-write, mapped for writing, accessed", "role pageable")
    has(
      harness.run("whatis \(text("\(space.address + page(3) + ByteCount(UInt64(18)))"))"),
      "18 bytes into page 3 of object 1 \"test\", in memory\n")
    harness.run("wire \(space.at(3))+4K")
    has(whatis(3), "no queue: wired", "wired 1, held 0      can't be moved")
    harness.run("unwire \(space.at(3))+4K")
    _ = try paging.hold(space.address + page(3), .read)
    has(whatis(3), "wired 0, held 1      can't be moved while it is held")
    paging.unhold(frame)
    // Cached.
    harness.run("launder active")
    has(
      whatis(3), "page 3 of object 1 \"test\", cached\n", "free to allocate; a fault reactivates it",
      "swap       slot ", "of ram", "mapping    none                 a page fault maps it", "role free")
    has(
      harness.run("whatis frame \(frame.rawValue)"),
      "Free memory, and a cached page: page 3 of object 1 \"test\".")
    let row = try XCTUnwrap(rows(harness.run("whatis frame \(frame.rawValue) -j")).first)
    XCTAssertEqual(row["kind"] as? String, "page")
    XCTAssertEqual(row["place"] as? String, "cached")
    XCTAssertEqual(row["page"] as? Int, 3)
    // Read again: a copy stays in swap until the page is written to.
    _ = try harness.terminal.processor!.load(space.address + page(3))
    has(whatis(3), "valid, clean", "a copy, equal to the page")
    // Only in swap, and nowhere at all.
    harness.run("launder active")
    harness.takeAllCached()
    has(whatis(3), "test\", in swap\n", "a fault reads it")
    has(whatis(599), "test\", never touched\n", "a fault fills a frame with zeroes")
    XCTAssertTrue(harness.run("whatis frame \(frame.rawValue)").hasPrefix("A frame with the role loaned"))
    // A page that several ranges map.
    for _ in 0..<6 { _ = try paging.map(space.object, count: page(600)) }
    has(whatis(3), "and in 3 other ranges; -a lists all")
    XCTAssertEqual(
      harness.run("whatis \(space.at(3)) -a").components(separatedBy: "shown at").count, 8)
    XCTAssertEqual(
      rows(harness.run("whatis \(space.at(3)) -j")).filter { $0["kind"] as? String == "shown" }.count, 8)
  }

  // MARK: selftest, banner, Tab

  func testTheHistoryOfPagesHasTheChecksumOfEveryMachine() throws {
    let harness = ConsoleHarness(ranges: [(1 << 20, 127 << 20, 1)], memory: .mebibytes(128))
    let log = rows(harness.run("selftest paging -j"))
    XCTAssertNil(harness.outcome)
    XCTAssertNil(harness.memory.checkInvariants())
    let told = try XCTUnwrap(log.first { $0["kind"] as? String == "history" })
    XCTAssertEqual(told["name"] as? String, "paging")
    let plan = PagingPlan.standard
    let host = SimulatedMachine(memory: plan.loaned)
    let workspace = UnsafeMutableRawPointer.allocate(
      byteCount: Int(PagingHistory.workspace(plan).rawValue), alignment: 64)
    workspace.initializeMemory(
      as: UInt8.self, repeating: 0, count: Int(PagingHistory.workspace(plan).rawValue))
    defer { workspace.deallocate() }
    let outcome = try PagingHistory.run(
      plan, on: host.machine, loaned: host.machine.directMap.pointer(to: PhysicalAddress(0)),
      workspace: workspace)
    XCTAssertEqual(told["checksum"] as? String, text("\(hex: outcome.checksum, digits: 16)"))
    // Nothing reads memory that it has not written: only a disk that loses a write shows the old contents.
    let other = SimulatedMachine(memory: plan.loaned)
    let loaned = other.machine.directMap.pointer(to: PhysicalAddress(0))
    loaned.initializeMemory(as: UInt8.self, repeating: 0xa5, count: Int(plan.memory.rawValue))
    workspace.initializeMemory(
      as: UInt8.self, repeating: 0, count: Int(PagingHistory.workspace(plan).rawValue))
    let second = try withExtendedLifetime(other) {
      try PagingHistory.run(plan, on: other.machine, loaned: loaned, workspace: workspace)
    }
    XCTAssertEqual(second.checksum, outcome.checksum)
    XCTAssertNil(second.broken)
    XCTAssertTrue(
      ConsoleHarness(ranges: [(1 << 20, 15 << 20, 1)], memory: .mebibytes(16))
        .run("selftest paging").contains("left out: no run of 30 MiB"))
  }

  func testTheBannerShowsSwap() {
    let harness = ConsoleHarness(swap: .mebibytes(16))
    harness.converse("")
    XCTAssertTrue(
      harness.banner.contains("\n  paging         swap of 16 MiB on ram, none used"), harness.banner)
    let bare = ConsoleHarness()
    bare.converse("")
    XCTAssertTrue(bare.banner.contains("no swap device: dirty pages stay in memory"), bare.banner)
  }

  func testTabCompletesArgumentsOfCommands() throws {
    for (typed, done) in [
      ("laun\tac\t", "launder active "), ("launder d\t", "launder daemon "), ("que\t", "queues "),
      ("wire x h\t", "wire x holes "), ("contig al\t", "contig align="), ("dirty f\t", "dirty free "),
      ("obj\t", "objects "), ("selftest pa\t", "selftest paging "),
    ] {
      let log = ConsoleHarness().converse(typed)
      XCTAssertTrue(log.contains("strata> \(done)"), "\(typed): \(log)")
    }
    let harness = ConsoleHarness()
    _ = try harness.space("test", 1)
    XCTAssertTrue(harness.converse("objects \t").contains("strata> objects 1 "))
  }
}

/// An object with a range that maps all of it.
struct TestSpace {
  let object: MemoryObject
  let address: VirtualAddress

  /// An address as a person types it.
  func at(_ page: UInt64) -> String { text("\(address + PageCount(page))") }
}

extension ConsoleHarness {
  /// An object of `count` pages; the first ones, or all, are written to.
  func space(_ name: StaticString, _ count: UInt64, touched: UInt64? = nil) throws -> TestSpace {
    let object = try memory.paging.createObject(ShortName(name), PageCount(count))
    let address = try memory.paging.map(object, count: PageCount(count))
    for i in 0..<(touched ?? count) { try terminal.processor!.store(address + PageCount(i), i + 1) }
    return TestSpace(object: object, address: address)
  }

  func place(_ space: TestSpace, _ index: UInt64) -> PageDescription.Place {
    memory.paging.facts(of: space.object, page: index).description.place
  }

  /// The frame of the first page in memory.
  func frame(of space: TestSpace, where wanted: PageDescription.Place) -> FrameNumber? {
    for index in 0..<space.object.pageCount.rawValue where place(space, index) == wanted {
      return memory.paging.describe(space.object, page: index).frame
    }
    return nil
  }

  /// Allocates frames until no free one holds a cached page.
  func takeAllCached() {
    while physical.cachedCount > .zero {
      guard (try? physical.allocate(BlockOrder(0), role: .loaned, priority: .interrupt)) != nil else {
        return
      }
    }
  }

  /// The count of free frames, as the console prints it.
  var free: String { text("\(count: physical.freeCount.rawValue)") }
}
