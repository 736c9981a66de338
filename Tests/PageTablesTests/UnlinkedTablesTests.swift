import CPlatform
import Foundation
import HostMachine
import MemoryPrimitives
import PageTables
import TestSupport
import Workloads
import XCTest

/// Processors over the tables of a `Bed`, on this thread: each remembers translations and tables until an
/// invalidation. `atInvalidation` runs before the first of them has carried one out, as another processor would;
/// `afterInvalidation` when all have, and the thread that asked for it does not know yet.
final class RememberingProcessors {
  let bed: PageTablesFixture
  let buffers: [TranslationBuffer]
  var atInvalidation: (() -> Void)?
  var afterInvalidation: (() -> Void)?
  private var isInside = false
  private let memory: [UnsafeMutableRawPointer]

  init(_ bed: PageTablesFixture, count: Int = 2) {
    self.bed = bed
    memory = (0..<count).map { _ in
      .allocate(byteCount: Int(TranslationBuffer.size.rawValue), alignment: 64)
    }
    buffers = memory.map { TranslationBuffer($0) }
    cp_processor().pointee.invalidate_context = Unmanaged.passUnretained(self).toOpaque()
    cp_processor().pointee.invalidate = { context, address in
      Unmanaged<RememberingProcessors>.fromOpaque(context!).takeUnretainedValue().invalidate(address)
    }
    bed.frames.atGive = { [unowned self] frame in
      XCTAssertFalse(
        buffers.contains { $0.caches(frame) }, "a table is free, and a processor still walks through it")
    }
  }

  deinit { memory.forEach { $0.deallocate() } }

  /// Ends the part of these processors, whose hooks may hold them.
  func end() {
    (atInvalidation, afterInvalidation) = (nil, nil)
    cp_processor().pointee.invalidate = nil
    bed.frames.atGive = nil
  }

  private func invalidate(_ address: UInt64) {
    if !isInside {
      isInside = true
      atInvalidation?()
      isInside = false
    }
    for buffer in buffers {
      if address == .max { buffer.invalidate(0, 1 << 52) } else { buffer.invalidate(address, 1) }
    }
    afterInvalidation?()
  }

  func reach(_ address: VirtualAddress, _ kind: AccessKind, by processor: Int = 0) -> FrameNumber? {
    buffers[processor].reach(address, kind, bed.tables)
  }

  /// Walks as a processor may at any time: it caches the tables on the way to an address, mapped or not, and does not
  /// fault.
  func walkAhead(_ address: VirtualAddress, by processor: Int) {
    _ = bed.tables.access(address, .read, caching: buffers[processor])
  }
}

/// Tables that leave the tree while processors remember the way through them (SDM vol. 3, 4.10.3, 4.10.4.4).
final class UnlinkedTablesTests: XCTestCase {
  func testATableIsFreedOnlyWhenNoProcessorCachesIt() throws {
    for levels in [PagingLevels.four, .five] {
      let bed = PageTablesFixture(levels: levels)
      let processors = RememberingProcessors(bed)
      defer { processors.end() }
      // Processors walk ahead whenever they like: nothing need be mapped at the end.
      let walkAhead = { for processor in [0, 1] { processors.walkAhead(va(7), by: processor) } }
      processors.atInvalidation = walkAhead
      processors.afterInvalidation = walkAhead
      try bed.tables.map(va(3), to: pa(50), count: PageCount(2), protection: .kernelData)
      XCTAssertEqual(processors.reach(va(3), .write), FrameNumber(50))
      bed.tables.unmap(va(3), count: PageCount(2)) { _, _ in
        for processor in [0, 1] { XCTAssertNil(processors.reach(va(4), .read, by: processor)) }
        walkAhead()
      }
      XCTAssertEqual(bed.frames.out.count, 1)
      try bed.tables.prepare(va(3), count: .one)
      XCTAssertNil(processors.reach(va(3), .read))
      bed.tables.unprepare(va(3), count: .one)
      XCTAssertEqual(bed.frames.out.count, 1)
      bed.check()
    }
  }

  private typealias Act = (name: String, pages: ClosedRange<UInt64>, body: (PageTablesFixture) throws -> Void)

  /// Operations of another processor while tables leave, and the pages that are mapped then to frames 1024 higher.
  private var acts: [Act] {
    [
      ("map a page", 4...4, { try $0.tables.map(va(4), to: pa(1028), count: .one, protection: .kernelData) }),
      (
        "map, unmap and map a page", 5...5,
        {
          try $0.tables.map(va(4), to: pa(90), count: .one, protection: .kernelData)
          $0.tables.unmap(va(4), count: .one)
          try $0.tables.map(va(5), to: pa(1029), count: .one, protection: .kernelData)
        }
      ),
      (
        "map a large leaf", 512...1023,
        {
          try $0.tables.map(
            va(512), to: pa(1536), count: PageCount(512), protection: .kernelData, leaves: .whole)
        }
      ),
      (
        "map a splittable leaf and unmap a part", 520...1023,
        {
          try $0.tables.map(
            va(512), to: pa(1536), count: PageCount(512), protection: .kernelData, leaves: .splittable)
          $0.tables.unmap(va(512), count: PageCount(8))
        }
      ),
      (
        "map beyond the next table", 300...1300,
        {
          try $0.tables.map(
            va(300), to: pa(1324), count: PageCount(1001), protection: .kernelData, leaves: .whole)
        }
      ),
      (
        "prepare and enter a page", 600...600,
        {
          try $0.tables.prepare(va(600), count: .one)
          $0.tables.enter(va(600), FrameNumber(1624), .kernelData)
        }
      ),
    ]
  }

  /// At each invalidation of an unmap another processor maps where tables leave: a processor that has not yet carried
  /// the invalidation out, and remembers the way through them, reaches what was mapped, and none is free too early.
  func testAMapWhereTablesLeaveIsSeenByProcessorsThatCacheThem() throws {
    for levels in [PagingLevels.four, .five] {
      for act in acts {
        // A page is not free before its unmapping has reclaimed it.
        var moment = act.pages.contains(514) || act.pages.lowerBound == 520 ? 1 : 0
        while true {
          let note = "\(act.name) at invalidation \(moment), \(levels)"
          let bed = PageTablesFixture(levels: levels)
          let processors = RememberingProcessors(bed)
          defer { processors.end() }
          // In the table of page 3 and in that of page 514.
          for page in [3, 514] as [UInt64] {
            try bed.tables.map(va(page), to: pa(70), count: .one, protection: .kernelData)
          }
          func remember() {
            for page in [3, 514] as [UInt64] { processors.walkAhead(va(page), by: 1) }
          }
          var seen = 0
          var hasActed = false
          processors.afterInvalidation = { remember() }
          processors.atInvalidation = {
            remember()
            if seen == moment && !hasActed {
              hasActed = true
              XCTAssertNil(bed.tables.checkInvariants(), note)
              try! act.body(bed)
              for page in act.pages {
                let frame = processors.reach(va(page), .write, by: 1)
                if frame != FrameNumber(UInt32(page) + 1024) {
                  XCTFail("page \(page) leads to \(String(describing: frame)), \(note)")
                  break
                }
              }
              bed.check(note)
            }
            seen += 1
          }
          remember()
          bed.tables.unmap(va(514), count: .one)
          bed.tables.unmap(va(3), count: .one)
          bed.check(note)
          processors.atInvalidation = { remember() }
          if hasActed {
            XCTAssertNil(processors.reach(va(3), .read, by: 1), note)
            for page in act.pages {
              XCTAssertEqual(processors.reach(va(page), .read, by: 1), FrameNumber(UInt32(page) + 1024), note)
              XCTAssertEqual(processors.reach(va(page), .read), FrameNumber(UInt32(page) + 1024), note)
            }
            if act.pages == 600...600 {
              _ = bed.tables.remove(va(600))
              bed.host.machine.shootDownAll()
              bed.tables.unprepare(va(600), count: .one)
            } else {
              let first = act.pages.lowerBound
              bed.tables.unmap(va(first), count: PageCount(act.pages.upperBound - first + 1))
            }
            bed.check(note)
          }
          XCTAssertEqual(bed.frames.out.count, 1, note)
          if !hasActed { break }
          moment += 1
        }
        XCTAssertGreaterThan(moment, 3, act.name)
      }
    }
  }

  /// A map that fails takes its tables out again, which another processor may have walked through.
  func testAMapThatFailsFreesItsTablesAfterAnInvalidation() throws {
    let bed = PageTablesFixture()
    let processors = RememberingProcessors(bed)
    defer { processors.end() }
    processors.atInvalidation = { processors.walkAhead(va(1), by: 1) }
    processors.afterInvalidation = { processors.walkAhead(va(1), by: 1) }
    bed.frames.limit = 5
    XCTAssertThrowsError(
      try bed.tables.map(va(0), to: pa(9), count: PageCount(1500), protection: .kernelData))
    XCTAssertEqual(bed.frames.out.count, 1)
    bed.check()
  }

  /// One thread has unlinked a table and begun its invalidation; another puts the table back, uses it and unlinks it
  /// again. The first must not free what now waits for the second one's invalidation.
  func testATableThatIsUnlinkedTwiceWaitsForTheSecondInvalidation() throws {
    final class Shared: @unchecked Sendable {
      let second = DispatchSemaphore(value: 0)
      let first = DispatchSemaphore(value: 0)
      var calls = [0, 0]
    }
    let bed = PageTablesFixture()
    let shared = Shared()
    // Only the lowest table leaves.
    try bed.tables.map(va(1024), to: pa(60), count: .one, protection: .kernelData)
    try bed.tables.map(va(3), to: pa(70), count: .one, protection: .kernelData)
    var found: [FrameNumber] = []
    bed.tables.forEachTable { if $1 == .pages { found.append($0) } }
    let table = found[0]
    bed.host.onThreads(2) { thread in
      cp_processor().pointee.invalidate_context = Unmanaged.passUnretained(shared).toOpaque()
      if thread == 0 {
        cp_processor().pointee.invalidate = { context, _ in
          let shared = Unmanaged<Shared>.fromOpaque(context!).takeUnretainedValue()
          shared.calls[0] += 1
          guard shared.calls[0] == 2 else { return }
          // Its table is unlinked. The other caller continues until it has unlinked the table too.
          shared.second.signal()
          shared.first.wait()
        }
        bed.tables.unmap(va(3), count: .one)
        XCTAssertTrue(
          bed.frames.out.contains(table.rawValue), "freed before the second invalidation was complete")
        shared.second.signal()
      } else {
        cp_processor().pointee.invalidate = { context, _ in
          let shared = Unmanaged<Shared>.fromOpaque(context!).takeUnretainedValue()
          shared.calls[1] += 1
          guard shared.calls[1] == 2 else { return }
          shared.first.signal()
          shared.second.wait()
        }
        shared.second.wait()
        try! bed.tables.map(va(4), to: pa(71), count: .one, protection: .kernelData)
        bed.tables.unmap(va(4), count: .one)
        XCTAssertFalse(bed.frames.out.contains(table.rawValue))
      }
      cp_processor().pointee.invalidate = nil
    }
    XCTAssertEqual(shared.calls, [2, 2])
    bed.check()
  }

  /// Two processors with ranges of their own, side by side in the same tables: each acts at the invalidations of the
  /// other, and both remember what they may.
  func testRandomHistoriesOfTwoProcessorsReachNoFreedFrame() throws {
    for seed in historySeeds(1, count: 4) {
      try run(seed: seed, levels: seed % 2 == 0 ? .five : .four, operations: 500)
    }
  }

  private struct Range {
    var first: UInt64
    var count: UInt64
    var frame: UInt64
  }

  private func run(seed: UInt64, levels: PagingLevels, operations: Int) throws {
    let bed = PageTablesFixture(levels: levels)
    let processors = RememberingProcessors(bed)
    defer { processors.end() }
    var random = SeededRandom(seed: seed)
    // 32 places of 128 pages, which belong to the processors in turn; and large leaves behind them.
    var ranges = [[Range?]](repeating: [Range?](repeating: nil, count: 32), count: 2)
    let base = kernelBase + 1 << 30 - 2048 << 12
    func at(_ page: UInt64) -> VirtualAddress { va(page, base: base) }
    func look(_ note: String) {
      for mine in [0, 1] {
        for case let range? in ranges[mine] where random.oneIn(4) {
          let page = random.below(range.count)
          for processor in [0, 1] {
            XCTAssertEqual(
              processors.reach(at(range.first + page), .write, by: processor)?.rawValue,
              UInt32(range.frame + page), note)
          }
        }
        // A neighbour that may be mapped or not: the processors walk ahead.
        for processor in [0, 1] { processors.walkAhead(at(random.below(4096)), by: processor) }
      }
    }
    func operate(_ mine: Int, _ note: String) throws {
      let place = random.below(16) * 2 + UInt64(mine)
      if let range = ranges[mine][Int(place)] {
        ranges[mine][Int(place)] = nil
        bed.tables.unmap(at(range.first), count: PageCount(range.count))
      } else {
        var range = Range(
          first: place * 128 + random.below(64), count: 1 + random.below(64), frame: 1024 + random.below(4096)
        )
        if place % 8 < 2 && random.oneIn(2) {
          range = Range(first: 4096 + place * 512, count: 512, frame: 512 * (2 + random.below(8)))
        }
        try bed.tables.map(
          at(range.first), to: pa(range.frame), count: PageCount(range.count), protection: .kernelData,
          leaves: .whole)
        ranges[mine][Int(place)] = range
      }
      look(note)
    }
    processors.afterInvalidation = {
      for processor in [0, 1] { processors.walkAhead(at(random.below(4096)), by: processor) }
    }
    var nested = 0
    for operation in 0..<operations {
      let note = "seed \(seed), operation \(operation)"
      let mine = Int(random.below(2))
      var isOver = false
      processors.atInvalidation = {
        guard !isOver, random.oneIn(3) else { return }
        isOver = random.oneIn(2)
        nested += 1
        try! operate(1 - mine, "\(note), within")
      }
      try operate(mine, note)
      bed.check(note)
    }
    XCTAssertGreaterThan(nested, 0)
    processors.end()
    for mine in [0, 1] {
      for case let range? in ranges[mine] {
        bed.tables.unmap(at(range.first), count: PageCount(range.count))
      }
    }
    XCTAssertEqual(bed.frames.out.count, 1)
    bed.check()
  }

  // MARK: Walks

  /// Every query of the tables, by its name.
  private var walks: [(String, (PageMap) -> Void)] {
    [
      ("translate", { _ = $0.translate(va(700)) }), ("isPrepared", { _ = $0.isPrepared(va(700)) }),
      ("mapping", { _ = $0.mapping(at: va(700)) }), ("walk", { $0.walk(va(700)) { _ in } }),
      ("range(at:)", { _ = $0.range(at: va(500)) }),
      ("range(containing:)", { _ = $0.range(containing: va(1400)) }),
      ("forEachRun", { $0.forEachRun { _ in } }), ("forEachTable", { $0.forEachTable { _, _ in } }),
      ("isAnyMapped", { _ = $0.isAnyMapped(va(0), count: PageCount(1 << 20)) }),
      ("mappedCount", { _ = $0.mappedCount(va(0), count: PageCount(4000)) }),
      ("preparedCount", { _ = $0.preparedCount(va(0), count: PageCount(4000)) }),
      ("firstWired", { _ = $0.firstWired(va(0), count: PageCount(4000)) }),
      ("checkInvariants", { _ = $0.checkInvariants() }), ("the proof", { _ = $0.proveWriteXorExecute() }),
    ]
  }

  /// Wherever a walk can be interrupted, another processor unmaps what it walks along, and the tables are used for
  /// something else: the walk holds no pointer into them. One that never lets an interrupt in holds no lock.
  func testTablesGoInTheMiddleOfAWalk() throws {
    for (name, walk) in walks {
      var moment = 0
      while true {
        let bed = PageTablesFixture()
        bed.frames.atGive = { frame in
          let words = bed.host.machine.directMap.pointer(to: frame).assumingMemoryBound(to: UInt64.self)
          // Entries that lead to memory that there is not.
          for word in 0..<512 { words[word] = 0x000f_ffff_ffff_f003 }
        }
        try bed.tables.map(
          va(500), to: pa(1000), count: PageCount(1000), protection: .kernelData, tag: RangeTag(rawValue: 2))
        try bed.tables.prepare(va(2000), count: PageCount(600))
        var (windows, isGone) = (0, false)
        bed.host.withInterrupts(
          seed: 0, oneIn: 1,
          handler: {
            windows += 1
            guard windows == moment + 1, !isGone else { return }
            isGone = true
            bed.tables.unmap(va(500), count: PageCount(1000))
            bed.tables.unprepare(va(2000), count: PageCount(600))
          }, { walk(bed.tables) })
        XCTAssertGreaterThan(windows, 0, "\(name) takes no lock")
        bed.frames.atGive = nil
        if !isGone { break }
        bed.check("\(name), moment \(moment)")
        XCTAssertEqual(bed.frames.out.count, 1)
        moment += 1
      }
      XCTAssertGreaterThan(moment, 0, name)
    }
  }

  // MARK: Faults

  func testAFaultIsClassifiedByTheTables() throws {
    let bed = PageTablesFixture()
    try bed.tables.prepare(va(0), count: PageCount(3))
    bed.tables.enter(va(1), FrameNumber(9), .kernelReadOnly)
    bed.tables.enter(va(2), FrameNumber(10), .kernelData)
    try bed.tables.map(
      va(512), to: pa(512), count: PageCount(512), protection: .kernelReadOnly, leaves: .whole)
    func verdicts(_ address: VirtualAddress) -> [FaultVerdict] {
      withInterruptsOff {
        [AccessKind.read, .write].map { bed.tables.verdict(onFault: address + ByteCount(5), $0) }
      }
    }
    XCTAssertEqual(verdicts(va(0)), [.pageable, .pageable])
    XCTAssertEqual(verdicts(va(1)), [.permitted, .pageable])
    XCTAssertEqual(verdicts(va(2)), [.permitted, .permitted])
    XCTAssertEqual(verdicts(va(3)), [.notPageable, .notPageable])
    XCTAssertEqual(verdicts(va(700)), [.permitted, .notPageable])
    XCTAssertEqual(verdicts(va(1 << 20)), [.notPageable, .notPageable])
    XCTAssertEqual(verdicts(VirtualAddress(1 << 62)), [.notPageable, .notPageable])
  }

  func testAMappingCountsItsWires() throws {
    let bed = PageTablesFixture()
    try bed.tables.prepare(va(0), count: PageCount(2))
    bed.tables.enter(va(0), FrameNumber(9), .kernelReadOnly)
    bed.tables.enter(va(1), FrameNumber(10), .kernelData)
    XCTAssertNil(bed.tables.removeWire(va(0)))
    XCTAssertNil(bed.tables.removeWire(va(5)))
    for count in 1...UInt32(PageMapping.maximumWires) {
      bed.tables.addWire(va(0))
      if count.nonzeroBitCount == 1 || count > 4090 {
        XCTAssertEqual(bed.tables.mapping(at: va(0))?.wires, count)
        bed.check()
      }
    }
    XCTAssertEqual(bed.tables.mapping(at: va(0))?.frame, FrameNumber(9))
    XCTAssertEqual(bed.tables.mapping(at: va(1))?.wires, 0)
    XCTAssertEqual(bed.tables.firstWired(va(0), count: PageCount(2)), va(0))
    XCTAssertNil(bed.tables.firstWired(va(1), count: PageCount(5000)))
    bed.tables.addWire(va(1))
    XCTAssertEqual(bed.tables.firstWired(va(1), count: PageCount(5000)), va(1))
    XCTAssertEqual(bed.tables.removeWire(va(1)), FrameNumber(10))
    // Neither rights nor a use change the count.
    XCTAssertEqual(bed.tables.enter(va(0), FrameNumber(9), .kernelData), .raised)
    // Nothing has invalidated it since.
    XCTAssertEqual(bed.tables.enter(va(0), FrameNumber(9), .kernelData), .raised)
    XCTAssertEqual(bed.tables.enter(va(0), FrameNumber(9), .kernelReadOnly), .none)
    XCTAssertTrue(bed.tables.testAndClearAccessed(va(0)))
    XCTAssertEqual(bed.tables.writeProtect(va(0))?.wires, 4095)
    XCTAssertNil(bed.tables.range(containing: va(0)))
    var runs = 0
    bed.tables.forEachRun { _ in runs += 1 }
    XCTAssertEqual(runs, 2)
    bed.check()
    for _ in 0..<4095 { XCTAssertEqual(bed.tables.removeWire(va(0)), FrameNumber(9)) }
    XCTAssertNil(bed.tables.removeWire(va(0)))
    XCTAssertEqual(bed.tables.mapping(at: va(0))?.wires, 0)
    bed.check()
  }
}
