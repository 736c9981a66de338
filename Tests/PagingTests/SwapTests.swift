import CPlatform
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import Synchronization
import Workloads
import XCTest

@testable import Paging

final class ChecksumTests: XCTestCase {
  private let page = UnsafeMutablePointer<UInt64>.allocate(capacity: 512)
  deinit { page.deallocate() }

  private var sum: UInt32 { Checksum.of(UnsafeMutableRawPointer(page)) }

  func testZeroesHaveAChecksumAndSoHasEachPart() {
    page.initialize(repeating: 0, count: 512)
    let zero = sum
    XCTAssertNotEqual(zero, 0)
    fillPage(page, 5)
    var seen: Set<UInt32> = [zero]
    // Torn to zeroes after each word.
    for word in (0..<512).reversed() {
      XCTAssertTrue(seen.insert(sum).inserted)
      page[word] = 0
    }
    XCTAssertEqual(sum, zero)
  }

  func testEachBitAndEachPlaceCounts() {
    for stamp in 0..<3 as Range<UInt64> {
      if stamp == 0 { page.initialize(repeating: 0, count: 512) } else { fillPage(page, stamp) }
      var seen: Set<UInt32> = [sum]
      var collisions = 0
      for bit in 0..<512 * 64 {
        page[bit / 64] ^= 1 << UInt64(bit % 64)
        if !seen.insert(sum).inserted { collisions += 1 }
        page[bit / 64] ^= 1 << UInt64(bit % 64)
      }
      // 32 768 numbers of 32 bits: an eighth of a pair is to be expected.
      XCTAssertLessThan(collisions, 4)
    }
    fillPage(page, 9)
    let before = sum
    for _ in 0..<2 {
      for word in 0..<511 {
        swap(&page[word], &page[word + 1])
        XCTAssertNotEqual(sum, before)
        swap(&page[word], &page[word + 1])
      }
      XCTAssertEqual(sum, before)
    }
  }

  func testPairsOfBitsDoNotCancel() {
    var random = SeededRandom(seed: historySeed(91))
    for stamp in 0..<20 as Range<UInt64> {
      if stamp == 0 { page.initialize(repeating: 0, count: 512) } else { fillPage(page, stamp) }
      let before = sum
      for _ in 0..<5000 {
        // Often the same bit of two words, or of neighbours.
        let first = Int(random.below(512 * 64))
        let apart = [1, 63, 64, 65, 128, 4096, Int(random.below(512 * 64))][Int(random.below(7))]
        let second = (first + apart) % (512 * 64)
        if first == second { continue }
        for bit in [first, second] { page[bit / 64] ^= 1 << UInt64(bit % 64) }
        XCTAssertNotEqual(sum, before)
        for bit in [first, second] { page[bit / 64] ^= 1 << UInt64(bit % 64) }
      }
    }
  }
}

final class SwapSlotsTests: XCTestCase {
  /// A device of `total` slots, random takes and releases, against a list of what is free.
  private func run(_ bench: SwapBench, _ total: Int, seed: UInt64, steps: Int) throws {
    let words = try FrameArray<UInt64>(
      count: SwapSlots.wordCount(total), initial: 0, physical: bench.physical, machine: bench.host.machine)
    defer { words.free() }
    var slots = SwapSlots(words, total: total)
    XCTAssertTrue(slots.isSound)
    XCTAssertEqual(slots.status(of: SwapSlot(UInt32(total))), .beyond)
    XCTAssertEqual(slots.status(of: .none), .beyond)
    var random = SeededRandom(seed: seed)
    var free = [Bool](repeating: true, count: total)
    var bad = 0
    var used: [Int] = []
    var cursor = 0
    func length(_ at: Int, _ wanted: Int) -> Int {
      var end = at
      while end < total && end - at < wanted && free[end] { end += 1 }
      return end - at
    }
    for step in 0..<steps {
      let isFilling = step / 50 % 2 == 0
      if random.below(100) < (isFilling ? 70 : 30) {
        let wanted = 1 + Int(random.below(32))
        // Next fit: the first long enough from the cursor on, round the end; else the longest.
        var longest = 0
        for at in 0..<total where free[at] { longest = max(longest, length(at, wanted)) }
        let run = slots.take(upTo: wanted)
        guard let run else {
          XCTAssertEqual(longest, 0, "slots are free, but none was given")
          continue
        }
        let (first, count) = (Int(run.first.rawValue), Int(run.count.rawValue))
        XCTAssertEqual(length(first, 32) >= count, true)
        XCTAssertEqual(count, longest, "\(total) step \(step) seed \(seed)")
        if count == wanted {
          let expected =
            (cursor..<total).first { free[$0] && length($0, wanted) == wanted }
            ?? (0..<total).first { free[$0] && length($0, wanted) == wanted }
          XCTAssertEqual(first, expected, "\(total) step \(step) seed \(seed)")
        }
        for slot in first..<first + count {
          free[slot] = false
          used.append(slot)
          XCTAssertEqual(slots.status(of: SwapSlot(UInt32(slot))), .used)
        }
        cursor = (first + count) % total
      } else if !used.isEmpty {
        for _ in 0..<1 + random.below(20) where !used.isEmpty {
          let slot = used.remove(at: Int(random.below(UInt64(used.count))))
          if random.oneIn(50) {
            XCTAssertEqual(slots.retire(SwapSlot(UInt32(slot))), .used)
            XCTAssertEqual(slots.retire(SwapSlot(UInt32(slot))), .bad)
            XCTAssertEqual(slots.status(of: SwapSlot(UInt32(slot))), .bad)
            bad += 1
          } else {
            XCTAssertEqual(slots.release(SwapSlot(UInt32(slot))), .used)
            XCTAssertEqual(slots.release(SwapSlot(UInt32(slot))), .free)
            XCTAssertEqual(slots.status(of: SwapSlot(UInt32(slot))), .free)
            free[slot] = true
          }
        }
      }
      XCTAssertEqual([slots.used, slots.bad, slots.free], [used.count, bad, total - used.count - bad])
      if step % 10 == 0 { XCTAssertTrue(slots.isSound, "\(total) step \(step) seed \(seed)") }
    }
  }

  func testRandomHistoriesAgainstAModel() throws {
    let seed = historySeed(92)
    let bench = try SwapBench(pages: 1)
    // Up to 47 words: one search looks at all of them, at the cursor's twice.
    for (i, total) in [1, 2, 31, 63, 64, 65, 127, 128, 129, 1000, 3007, 3008].enumerated() {
      try run(bench, total, seed: seed &+ UInt64(i), steps: total > 500 ? 800 : 400)
    }
  }

  func testALargeFragmentedDeviceIsSearchedInBoundedSteps() throws {
    // Five levels would take 16 million words; four are enough to see that all of them work.
    let bench = try SwapBench(pages: 1, frames: 8192)
    for total in [64 * 64, 64 * 64 + 1, 64 * 64 * 64 + 3, 1 << 22 + 5] {
      let words = try FrameArray<UInt64>(
        count: SwapSlots.wordCount(total), initial: 0, physical: bench.physical, machine: bench.host.machine)
      defer { words.free() }
      var slots = SwapSlots(words, total: total)
      // Take everything: in order, in the longest runs.
      var next = 0
      while let run = slots.take(upTo: 32) {
        XCTAssertEqual(Int(run.first.rawValue), next)
        XCTAssertEqual(Int(run.count.rawValue), min(32, total - next))
        next += Int(run.count.rawValue)
      }
      XCTAssertEqual(next, total)
      XCTAssertEqual(slots.free, 0)
      XCTAssertTrue(slots.isSound)
      // One free slot anywhere is found at once; then every other one is free and no run is longer than 1.
      for slot in [0, total / 2, total - 1, 63, 64] {
        XCTAssertEqual(slots.release(SwapSlot(UInt32(slot))), .used)
        XCTAssertEqual(slots.take(upTo: 32), SlotRun(first: SwapSlot(UInt32(slot)), count: .one))
      }
      for slot in stride(from: 0, to: min(total, 100_000), by: 2) {
        _ = slots.release(SwapSlot(UInt32(slot)))
      }
      for _ in 0..<1000 { XCTAssertEqual(slots.take(upTo: 32)?.count, .one) }
      XCTAssertTrue(slots.isSound)
    }
  }
}

final class SwapTests: XCTestCase {
  func testAttachAndDetach() throws {
    let bench = try SwapBench(pages: 5000)
    let before = bench.physical.freeCount
    XCTAssertNil(bench.swap.reserve(upTo: .one))
    XCTAssertNil(bench.swap.device)
    XCTAssertPaging(.badConstraint) { () throws(PagingError) in try bench.swap.detach() }
    for _ in 0..<3 {
      try bench.swap.attach(bench.disk.device)
      XCTAssertEqual(bench.swap.device?.name, Name("ram"))
      XCTAssertPaging(.badConstraint) { () throws(PagingError) in try bench.swap.attach(bench.disk.device) }
      XCTAssertEqual(bench.swap.figures.total, PageCount(5000))
      XCTAssertEqual(bench.swap.figures.free, PageCount(5000))
      bench.check()
      let run = bench.swap.reserve(upTo: PageCount(100))!
      XCTAssertEqual(run.count, PageCount(32))
      XCTAssertPaging(.badConstraint) { () throws(PagingError) in try bench.swap.detach() }
      bench.swap.free(run)
      // A retired slot does not hold the device.
      bench.swap.retire(bench.swap.reserve(upTo: .one)!.first)
      XCTAssertEqual(bench.swap.figures.bad, .one)
      try bench.swap.detach()
      XCTAssertNil(bench.swap.device)
      XCTAssertEqual(bench.physical.freeCount, before)
      XCTAssertEqual(bench.physical.count(.paging), .zero)
      XCTAssertEqual(bench.swap.figures.total, .zero)
    }
    let nothing = BlockDevice(Name("none"), pages: .zero, nil, submit: { _, _ in })
    XCTAssertPaging(.badConstraint) { () throws(PagingError) in try bench.swap.attach(nothing) }
  }

  func testAnAttachThatFailsHalfWayKeepsNothing() throws {
    // Checksums of three levels, so that there are points of all kinds.
    let bench = try SwapBench(pages: 1, frames: 8192)
    let before = bench.physical.freeCount
    let device = BlockDevice(Name("large"), pages: PageCount(1 << 20 + 5), nil, submit: { _, _ in })
    var points = 0
    var at = 0
    while true {
      bench.host.failures.pointee.countdown = Int64(at)
      bench.host.failures.pointee.hasFailed = false
      do throws(PagingError) {
        try bench.swap.attach(device)
      } catch {
        XCTAssertEqual(error, .noMemory)
      }
      bench.host.failures.pointee.countdown = -1
      guard bench.host.failures.pointee.hasFailed else { break }
      XCTAssertEqual(bench.physical.freeCount, before, "\(at)")
      XCTAssertNil(bench.swap.reserve(upTo: .one))
      XCTAssertNil(bench.swap.device)
      points += 1
      at += at < 100 ? 1 : 61
    }
    XCTAssertGreaterThan(points, 120)
    print("Swap: \(points) allocation points made to fail")
    try bench.swap.detach()
    XCTAssertEqual(bench.physical.freeCount, before)
    bench.check()
  }

  func testAttachWithoutMemory() throws {
    let bench = try SwapBench(pages: 1, frames: 400)
    let before = bench.physical.freeCount
    let device = BlockDevice(Name("large"), pages: PageCount(1 << 20), nil, submit: { _, _ in })
    XCTAssertPaging(.noMemory) { () throws(PagingError) in try bench.swap.attach(device) }
    XCTAssertEqual(bench.physical.freeCount, before)
    try bench.swap.attach(bench.disk.device)
    try bench.swap.detach()
  }

  func testWhatIsWrittenComesBack() throws {
    let bench = try SwapBench(pages: 1000)
    try bench.swap.attach(bench.disk.device)
    let frames = try bench.frames(32)
    for (i, frame) in frames.enumerated() { bench.fill(frame, UInt64(i)) }
    let run = bench.swap.reserve(upTo: PageCount(32))!
    XCTAssertEqual(bench.write(frames, to: run), (0..<32).map { run.first + PageCount($0) })
    for (i, frame) in frames.enumerated().reversed() {
      bench.fill(frames[0], 99)
      try bench.swap.read(run.first + PageCount(i), into: frames[0])
      XCTAssertTrue(bench.holds(frames[0], UInt64(i)))
      _ = frame
    }
    let figures = bench.swap.figures
    XCTAssertEqual([figures.writes, figures.reads, figures.clusters], [32, 32, 1])
    XCTAssertEqual([figures.failures, figures.corrupt], [0, 0])
    // Reserved, but never written: not even what was there before.
    bench.swap.free(run)
    while let again = bench.swap.reserve(upTo: PageCount(32)), again.first != run.first {}
    XCTAssertPaging(.corrupt) { () throws(PagingError) in try bench.swap.read(run.first, into: frames[0]) }
  }

  func testAFailedClusterIsWrittenSinglyAndTheBadSlotRetired() throws {
    let bench = try SwapBench(pages: 1000)
    try bench.swap.attach(bench.disk.device)
    let frames = try bench.frames(32)
    for (i, frame) in frames.enumerated() { bench.fill(frame, UInt64(i)) }
    for bad in [[7], [0], [31], [3, 4, 30]] {
      bench.disk.mend()
      let before = bench.swap.figures
      let run = bench.swap.reserve(upTo: PageCount(32))!
      for i in bad { bench.disk.spoil(DevicePage(UInt64(run.first.rawValue) + UInt64(i))) }
      let write = bench.begin(frames, to: run)!
      XCTAssertFalse(bench.swap.isDone(write))
      let written = bench.swap.finishWrite(write)
      XCTAssertEqual(written.failedCount, PageCount(bad.count))
      for i in 0..<32 {
        XCTAssertEqual(written.slot(i), bad.contains(i) ? nil : run.first + PageCount(i))
      }
      let figures = bench.swap.figures
      XCTAssertEqual(figures.bad, before.bad + PageCount(bad.count))
      XCTAssertEqual(figures.used, before.used + PageCount(32 - bad.count))
      XCTAssertEqual(figures.failures, before.failures + 1 + UInt64(bad.count))
      XCTAssertEqual(figures.writes, before.writes + UInt64(32 - bad.count))
      XCTAssertEqual(bench.transfers.idleCount, 8)
      let frame = try bench.frame()
      for i in 0..<32 where !bad.contains(i) {
        try bench.swap.read(run.first + PageCount(i), into: frame)
        XCTAssertTrue(bench.holds(frame, UInt64(i)))
        bench.swap.free(run.first + PageCount(i))
      }
      bench.physical.free(frame, Order(0))
      for frame in frames { XCTAssertTrue(bench.holds(frame, UInt64(frames.firstIndex(of: frame)!))) }
    }
    bench.check()
    // What was retired is never given out again.
    var given = 0
    while let run = bench.swap.reserve(upTo: PageCount(32)) { given += Int(run.count.rawValue) }
    XCTAssertEqual(given, 1000 - 6)
  }

  func testASinglePageThatFails() throws {
    let bench = try SwapBench(pages: 10)
    try bench.swap.attach(bench.disk.device)
    let frame = try bench.frame()
    bench.fill(frame, 4)
    bench.disk.spoil(DevicePage(0))
    let run = bench.swap.reserve(upTo: .one)!
    XCTAssertEqual(bench.write([frame], to: run), [nil])
    XCTAssertEqual(bench.swap.figures.bad, .one)
    XCTAssertEqual(bench.swap.figures.failures, 1)
    XCTAssertEqual(bench.swap.figures.clusters, 0)
    bench.disk.spoil(DevicePage(1))
    let other = bench.swap.reserve(upTo: .one)!
    bench.disk.mend()
    XCTAssertEqual(bench.write([frame], to: other), [other.first])
    bench.disk.spoil(DevicePage(1))
    XCTAssertPaging(.inputOutput) { () throws(PagingError) in try bench.swap.read(other.first, into: frame) }
    bench.disk.mend()
    try bench.swap.read(other.first, into: frame)
    XCTAssertTrue(bench.holds(frame, 4))
  }

  func testTornFlippedAndLostWritesAreFound() throws {
    var kinds: [Trouble] = []
    for kind in 0..<2 {
      var trouble = Trouble(seed: historySeed(101 + UInt64(kind)))
      if kind == 0 { trouble.torn = 1000 } else { trouble.corrupted = 1000 }
      kinds.append(trouble)
    }
    for trouble in kinds {
      let bench = try SwapBench(pages: 500)
      try bench.swap.attach(bench.disk.device)
      let frames = try bench.frames(8)
      let target = try bench.frame()
      var corrupt = 0
      for round in 0..<200 as Range<UInt64> {
        let run = bench.swap.reserve(upTo: PageCount(8))!
        // What the device holds there from before is a page of the same kind.
        for (i, frame) in frames.enumerated() { bench.fill(frame, round << 8 | UInt64(i)) }
        bench.disk.trouble = Trouble()
        _ = bench.write(frames, to: run)
        bench.disk.trouble = trouble
        bench.disk.trouble.seed = trouble.seed &+ round
        for (i, frame) in frames.enumerated() { bench.fill(frame, 1 << 32 | round << 8 | UInt64(i)) }
        XCTAssertEqual(bench.write(frames, to: run).compactMap { $0 }.count, 8)
        bench.disk.trouble = Trouble()
        var broken = 0
        for i in 0..<8 {
          do throws(PagingError) {
            try bench.swap.read(run.first + PageCount(i), into: target)
            XCTAssertTrue(bench.holds(target, 1 << 32 | round << 8 | UInt64(i)))
          } catch {
            XCTAssertEqual(error, .corrupt)
            broken += 1
          }
        }
        XCTAssertGreaterThan(broken, 0, "round \(round)")
        corrupt += broken
        bench.swap.free(run)
      }
      XCTAssertEqual(bench.swap.figures.corrupt, UInt64(corrupt))
    }
  }

  func testExhaustion() throws {
    let bench = try SwapBench(pages: 77)
    try bench.swap.attach(bench.disk.device)
    var given: [SwapSlot] = []
    while let run = bench.swap.reserve(upTo: PageCount(10)) {
      for i in 0..<run.count.rawValue { given.append(run.first + PageCount(i)) }
    }
    XCTAssertEqual(Set(given.map(\.rawValue)), Set(0..<77))
    XCTAssertEqual(bench.swap.figures.free, .zero)
    XCTAssertNil(bench.swap.reserve(upTo: PageCount(32)))
    XCTAssertNil(bench.swap.reserve(upTo: .zero))
    bench.swap.free(SwapSlot(40))
    XCTAssertEqual(bench.swap.reserve(upTo: PageCount(32)), SlotRun(first: SwapSlot(40), count: .one))
    // All of it with the lock of an object held.
    let lock = SpinLock(.pagingObject)
    let interrupts = lock.lock()
    bench.swap.free(SwapSlot(3))
    XCTAssertEqual(bench.swap.reserve(upTo: .one)?.first, SwapSlot(3))
    bench.swap.retire(SwapSlot(3))
    XCTAssertEqual(bench.swap.figures.bad, .one)
    lock.unlock(interrupts)
    bench.check()
  }

  func testThePoolRunsDry() throws {
    let bench = try SwapBench(pages: 77, requests: 2)
    try bench.swap.attach(bench.disk.device)
    let frames = try bench.frames(3)
    let runs = frames.map { _ in bench.swap.reserve(upTo: .one)! }
    let first = bench.begin([frames[0]], to: runs[0])!
    let second = bench.begin([frames[1]], to: runs[1])!
    XCTAssertNil(bench.begin([frames[2]], to: runs[2]))
    XCTAssertNil(bench.swap.beginRead(runs[2].first, into: frames[2]))
    XCTAssertEqual(bench.swap.finishWrite(first).slot(0), runs[0].first)
    let read = bench.swap.beginRead(runs[0].first, into: frames[2])!
    XCTAssertFalse(bench.swap.isDone(read))
    try bench.swap.finishRead(read)
    XCTAssertEqual(bench.swap.finishWrite(second).failedCount, .zero)
  }

  func testBugsOfCallers() throws {
    let bench = try SwapBench(pages: 77)
    func kinds(_ body: () -> Void) -> [FaultKind] {
      let (used, bad) = (bench.swap.figures.used, bench.swap.figures.bad)
      let faults = bench.host.faults { body() }
      XCTAssertEqual(bench.swap.figures.used, used)
      XCTAssertEqual(bench.swap.figures.bad, bad)
      bench.check()
      return faults.map(\.kind)
    }
    XCTAssertEqual(kinds { bench.swap.free(SwapSlot(0)) }, [.foreignPointer])
    try bench.swap.attach(bench.disk.device)
    XCTAssertEqual(kinds { bench.swap.free(SwapSlot(0)) }, [.doubleFree])
    XCTAssertEqual(kinds { bench.swap.retire(SwapSlot(0)) }, [.doubleFree])
    XCTAssertEqual(kinds { bench.swap.free(SwapSlot(77)) }, [.foreignPointer])
    XCTAssertEqual(kinds { bench.swap.free(.none) }, [.foreignPointer])
    XCTAssertEqual(kinds { bench.swap.retire(.none) }, [.foreignPointer])
    let run = bench.swap.reserve(upTo: PageCount(3))!
    bench.swap.retire(run.first)
    XCTAssertEqual(kinds { bench.swap.retire(run.first) }, [.notAllocated])
    XCTAssertEqual(kinds { bench.swap.free(run.first) }, [.notAllocated])
    bench.swap.free(run.first + .one)
    XCTAssertEqual(kinds { bench.swap.free(run.first + .one) }, [.doubleFree])
    XCTAssertEqual(bench.swap.figures.used, .one)
  }

  func testStatistics() throws {
    let bench = try SwapBench(pages: 77)
    let memory = UnsafeMutableRawPointer.allocate(
      byteCount: Int(Statistics.size(capacity: 16).rawValue), alignment: 64)
    defer { memory.deallocate() }
    let statistics = Statistics(memory, capacity: 16)
    bench.swap.register(in: statistics)
    try bench.swap.attach(bench.disk.device)
    let frames = try bench.frames(3)
    bench.disk.spoil(DevicePage(1))
    let run = bench.swap.reserve(upTo: PageCount(3))!
    _ = bench.write(frames, to: run)
    bench.disk.mend()
    try bench.swap.read(run.first, into: frames[0])
    bench.diskPage(2)[100] ^= 1
    XCTAssertPaging(.corrupt) { () throws(PagingError) in
      try bench.swap.read(run.first + PageCount(2), into: frames[0])
    }
    var values: [String: UInt64] = [:]
    for i in 0..<statistics.count { values["\(statistics[i].name)"] = statistics[i].value }
    XCTAssertEqual(
      values,
      [
        "vm.swap.total": 77, "vm.swap.used": 2, "vm.swap.free": 74, "vm.swap.bad": 1, "vm.swap.writes": 2,
        "vm.swap.reads": 2, "vm.swap.clusters": 1, "vm.swap.failures": 2, "vm.swap.corrupt": 1,
      ])
  }
}

final class SwapHistoryTests: XCTestCase {
  /// One history: what is in which slot, and what is under way.
  private final class History {
    let bench: SwapBench
    var random: SeededRandom
    let before: PageCount
    let frames: [FrameNumber]
    var idle: [FrameNumber]
    /// Slots that were written: what is in them.
    var stamps: [UInt32: UInt64] = [:]
    /// Slots with a read or write under way.
    var busy: Set<UInt32> = []
    var retired = 0
    var writes: [(SwapWrite, [FrameNumber], [UInt64])] = []
    var reads: [(SwapRead, FrameNumber)] = []
    var nextStamp: UInt64
    var (good, lost, failedPages) = (0, 0, 0)
    let note: String

    init(seed: UInt64, pages: UInt64) throws {
      note = "seed \(seed)"
      bench = try SwapBench(pages: pages, requests: 6)
      random = SeededRandom(seed: seed)
      before = bench.physical.freeCount
      frames = try bench.frames(80)
      idle = frames
      nextStamp = seed << 20
      try bench.swap.attach(bench.disk.device)
    }

    func trouble() -> Trouble {
      var trouble = Trouble(seed: random.next())
      func rate(_ limit: UInt64) -> PerMille { random.oneIn(2) ? 0 : PerMille(UInt16(random.below(limit))) }
      trouble.failed = rate(200)
      trouble.torn = rate(200)
      trouble.corrupted = rate(200)
      trouble.delayed = rate(1001)
      trouble.longestDelay = UInt32(random.below(30))
      trouble.reordered = rate(1001)
      trouble.bad = rate(50)
      return random.oneIn(4) ? Trouble() : trouble
    }

    func beginWrite() {
      guard idle.count > 0, let run = bench.swap.reserve(upTo: PageCount(1 + random.below(32))) else {
        return
      }
      let count = min(idle.count, Int(run.count.rawValue))
      for i in count..<max(count, Int(run.count.rawValue)) { bench.swap.free(run.first + PageCount(i)) }
      let mine = (0..<count).map { _ in idle.remove(at: Int(random.below(UInt64(idle.count)))) }
      let given = mine.map { _ in
        nextStamp += 1
        return nextStamp
      }
      for (frame, stamp) in zip(mine, given) { bench.fill(frame, stamp) }
      let part = SlotRun(first: run.first, count: PageCount(count))
      for i in 0..<UInt32(count) {
        XCTAssertNil(stamps[run.first.rawValue + i], "a used slot was given out, \(note)")
        XCTAssertTrue(busy.insert(run.first.rawValue + i).inserted, "a busy slot was given out, \(note)")
      }
      guard let write = bench.begin(mine, to: part) else {
        XCTAssertEqual(bench.transfers.idleCount, 0)
        for i in 0..<UInt32(count) { busy.remove(run.first.rawValue + i) }
        bench.swap.free(part)
        idle += mine
        return
      }
      writes.append((write, mine, given))
    }

    func finishWrite() {
      guard !writes.isEmpty else { return }
      let (write, mine, given) = writes.remove(at: Int(random.below(UInt64(writes.count))))
      let written = bench.swap.finishWrite(write)
      for i in 0..<mine.count {
        let slot = write.run.first.rawValue + UInt32(i)
        busy.remove(slot)
        // A failed write loses nothing.
        XCTAssertTrue(bench.holds(mine[i], given[i]))
        if let at = written.slot(i) {
          XCTAssertEqual(at.rawValue, slot)
          stamps[slot] = given[i]
        } else {
          retired += 1
          failedPages += 1
        }
      }
      idle += mine
    }

    func someSlot() -> UInt32? {
      let all = stamps.keys.filter { !busy.contains($0) }.sorted()
      return all.isEmpty ? nil : all[Int(random.below(UInt64(all.count)))]
    }

    func beginRead() {
      guard let slot = someSlot(), let frame = idle.popLast() else { return }
      bench.fill(frame, 0)
      guard let read = bench.swap.beginRead(SwapSlot(slot), into: frame) else {
        idle.append(frame)
        return
      }
      busy.insert(slot)
      reads.append((read, frame))
    }

    func finishRead() {
      guard !reads.isEmpty else { return }
      let (read, frame) = reads.remove(at: Int(random.below(UInt64(reads.count))))
      let slot = read.slot.rawValue
      busy.remove(slot)
      idle.append(frame)
      do throws(PagingError) {
        try bench.swap.finishRead(read)
        XCTAssertTrue(bench.holds(frame, stamps[slot]!), "wrong data, \(note)")
        good += 1
      } catch {
        XCTAssertTrue(error == .inputOutput || error == .corrupt)
        lost += 1
        if random.oneIn(2) {
          stamps[slot] = nil
          if random.oneIn(2) {
            bench.swap.retire(SwapSlot(slot))
            retired += 1
          } else {
            bench.swap.free(SwapSlot(slot))
          }
        }
      }
    }

    func step() {
      switch random.below(12) {
      case 0, 1, 2: beginWrite()
      case 3, 4: finishWrite()
      case 5, 6: beginRead()
      case 7, 8: finishRead()
      case 9, 10:
        for _ in 0..<random.below(10) {
          guard let slot = someSlot() else { break }
          stamps[slot] = nil
          bench.swap.free(SwapSlot(slot))
        }
      default: if random.oneIn(5) { bench.disk.trouble = trouble() } else { bench.disk.poll() }
      }
      let figures = bench.swap.figures
      let writing = writes.reduce(0) { $0 + Int($1.0.run.count.rawValue) }
      XCTAssertEqual(figures.used, PageCount(stamps.count + writing), note)
      XCTAssertEqual(figures.bad, PageCount(retired), note)
      XCTAssertEqual(figures.free + figures.used + figures.bad, figures.total, note)
    }

    func end() throws {
      while !writes.isEmpty { finishWrite() }
      while !reads.isEmpty { finishRead() }
      XCTAssertEqual(bench.transfers.idleCount, 6)
      bench.check(note)
      for slot in stamps.keys { bench.swap.free(SwapSlot(slot)) }
      try bench.swap.detach()
      for frame in frames { bench.physical.free(frame, Order(0)) }
      XCTAssertEqual(bench.physical.freeCount, before, note)
      bench.check(note)
    }
  }

  func testRandomHistoriesWithEveryTrouble() throws {
    let seed = historySeed(111)
    var (good, lost, failed) = (0, 0, 0)
    for round in 0..<40 as Range<UInt64> {
      let history = try History(seed: seed &+ round, pages: round % 3 == 0 ? 100 : 700)
      for _ in 0..<600 { history.step() }
      good += history.good
      lost += history.lost
      failed += history.failedPages
      try history.end()
    }
    print("Swap: \(good) pages came back, \(lost) did not and said so, \(failed) writes failed")
    XCTAssertGreaterThan(good, 1000)
    XCTAssertGreaterThan(lost, 100)
    XCTAssertGreaterThan(failed, 100)
  }

  func testDelayAndDisorderLoseNothing() throws {
    let seed = historySeed(112)
    for round in 0..<10 as Range<UInt64> {
      let history = try History(seed: seed &+ round, pages: 400)
      for _ in 0..<600 {
        var trouble = Trouble(seed: history.random.next())
        trouble.delayed = 500
        trouble.longestDelay = 20
        trouble.reordered = 700
        history.bench.disk.trouble = trouble
        history.step()
      }
      XCTAssertEqual(history.lost + history.failedPages, 0, "seed \(seed &+ round)")
      try history.end()
    }
  }
}

final class SwapThreadsTests: XCTestCase {
  /// `workers` threads write, read and free slots of their own at once.
  private static func work(_ bench: SwapBench, _ index: Int, seed: UInt64, rounds: Int, frames: [FrameNumber])
  {
    var random = SeededRandom(seed: seed &+ UInt64(index))
    var live: [(SwapSlot, UInt64)] = []
    var stamp = UInt64(index) << 40
    let target = frames[8]
    for _ in 0..<rounds {
      if live.count < 60, !random.oneIn(3), let run = bench.swap.reserve(upTo: PageCount(1 + random.below(8)))
      {
        let mine = Array(frames[..<Int(run.count.rawValue)])
        for (i, frame) in mine.enumerated() { bench.fill(frame, stamp + UInt64(i)) }
        guard let write = bench.begin(mine, to: run) else {
          bench.swap.free(run)
          _ = bench.transfers.waitForAny()
          continue
        }
        let written = bench.swap.finishWrite(write)
        for i in 0..<mine.count {
          if let slot = written.slot(i) { live.append((slot, stamp + UInt64(i))) }
        }
        stamp += 8
      } else if !live.isEmpty {
        let at = Int(random.below(UInt64(live.count)))
        do throws(PagingError) {
          try bench.swap.read(live[at].0, into: target)
          XCTAssertTrue(bench.holds(target, live[at].1), "wrong data, seed \(seed)")
        } catch {
          XCTAssertTrue(error == .inputOutput || error == .corrupt)
        }
        let (slot, _) = live.remove(at: at)
        if random.oneIn(20) { bench.swap.retire(slot) } else { bench.swap.free(slot) }
      }
      if random.oneIn(50) { _ = bench.swap.figures }
    }
    for (slot, _) in live { bench.swap.free(slot) }
  }

  private func trouble(_ seed: UInt64) -> Trouble {
    var trouble = Trouble(seed: seed)
    trouble.failed = 30
    trouble.torn = 30
    trouble.corrupted = 30
    trouble.delayed = 200
    trouble.longestDelay = 10
    trouble.reordered = 200
    return trouble
  }

  func testTwoThreadsWhichRunTheDiskThemselves() throws {
    let seed = historySeed(121)
    let bench = try SwapBench(pages: 2000, processors: 2)
    try bench.swap.attach(bench.disk.device)
    bench.disk.trouble = trouble(seed)
    let frames = try (0..<2).map { _ in try bench.frames(9) }
    bench.host.onThreads(2) { Self.work(bench, $0, seed: seed, rounds: 1500, frames: frames[$0]) }
    XCTAssertEqual(bench.swap.figures.used, .zero)
    XCTAssertEqual(bench.transfers.idleCount, 8)
    bench.check()
    try bench.swap.detach()
  }

  func testThreadsWithADeviceOfItsOwnAndTooFewRequests() throws {
    let seed = historySeed(122)
    let bench = try SwapBench(pages: 2000, requests: 2, processors: 4)
    bench.host.runDevices = nil
    bench.host.hasOtherThreads = true
    try bench.swap.attach(bench.disk.device)
    bench.disk.trouble = trouble(seed)
    let frames = try (0..<3).map { _ in try bench.frames(9) }
    let left = Atomic<Int>(3)
    bench.host.onThreads(4) { index in
      if index == 3 {
        while left.load(ordering: .acquiring) > 0 { if !bench.disk.poll() { sched_yield() } }
        return
      }
      Self.work(bench, index, seed: seed, rounds: 600, frames: frames[index])
      left.subtract(1, ordering: .releasing)
    }
    XCTAssertEqual(bench.swap.figures.used, .zero)
    XCTAssertEqual(bench.transfers.idleCount, 2)
    bench.check()
    try bench.swap.detach()
  }
}

final class FileDiskTests: XCTestCase {
  private func withFile(_ body: (String) throws -> Void) throws {
    let path = FileManager.default.temporaryDirectory
      .appendingPathComponent(
        "strata-\(ProcessInfo.processInfo.processIdentifier)-\(UInt64.random(in: 0...UInt64.max))"
      )
      .path
    defer { unlink(path) }
    try body(path)
  }

  func testSwapOnAFile() throws {
    try withFile { path in
      let bench = try SwapBench(pages: 1)
      let file = try FileDisk(path: path, pages: PageCount(500), on: bench.host)
      XCTAssertFalse(file.poll())
      bench.host.runDevices = { file.poll() }
      try bench.swap.attach(file.device)
      let frames = try bench.frames(32)
      var runs: [SlotRun] = []
      for round in 0..<10 as Range<UInt64> {
        for (i, frame) in frames.enumerated() { bench.fill(frame, round << 8 | UInt64(i)) }
        let run = bench.swap.reserve(upTo: PageCount(32))!
        XCTAssertEqual(bench.write(frames, to: run).compactMap { $0 }.count, 32)
        runs.append(run)
      }
      for (round, run) in runs.enumerated().reversed() {
        for i in 0..<32 {
          try bench.swap.read(run.first + PageCount(i), into: frames[0])
          XCTAssertTrue(bench.holds(frames[0], UInt64(round) << 8 | UInt64(i)))
        }
      }
      // The file ends earlier than was written: what it lost is an error, and the rest is as before.
      XCTAssertEqual(truncate(path, 100 << 12 + 2048), 0)
      try bench.swap.read(SwapSlot(99), into: frames[0])
      XCTAssertTrue(bench.holds(frames[0], 3 << 8 | 3))
      for slot in [100, 101, 319] as [UInt32] {
        XCTAssertPaging(.inputOutput) { () throws(PagingError) in
          try bench.swap.read(SwapSlot(slot), into: frames[0])
        }
      }
      XCTAssertEqual(bench.swap.figures.failures, 3)
      for run in runs { bench.swap.free(run) }
      try bench.swap.detach()
      XCTAssertFalse(file.poll())
    }
  }

  func testWhatAFileCannotDoFails() throws {
    let bench = try SwapBench(pages: 1)
    XCTAssertThrowsError(try FileDisk(path: "/nowhere/at/all", pages: .one, on: bench.host))
    // A device that takes no write: every slot is retired, and nothing else happens.
    let full = try FileDisk(path: "/dev/full", pages: PageCount(64), on: bench.host)
    bench.host.runDevices = { full.poll() }
    try bench.swap.attach(full.device)
    let frames = try bench.frames(32)
    for (i, frame) in frames.enumerated() { bench.fill(frame, UInt64(i)) }
    let run = bench.swap.reserve(upTo: PageCount(32))!
    XCTAssertEqual(bench.write(frames, to: run), [SwapSlot?](repeating: nil, count: 32))
    XCTAssertEqual(bench.swap.figures.bad, PageCount(32))
    for (i, frame) in frames.enumerated() { XCTAssertTrue(bench.holds(frame, UInt64(i))) }
    try bench.swap.detach()
    // Beyond the device, whatever the file has.
    try withFile { path in
      let file = try FileDisk(path: path, pages: PageCount(4), on: bench.host)
      bench.host.runDevices = { file.poll() }
      for (first, isInside) in [(0, true), (3, true), (4, false), (Int.max >> 12, false)] {
        let transfer = [frames[0]].withUnsafeBufferPointer {
          bench.transfers.begin(file.device, .write, DevicePage(UInt64(first)), $0)!
        }
        bench.transfers.wait(transfer)
        XCTAssertEqual(bench.transfers.hasFailed(transfer), !isInside)
        bench.transfers.end(transfer)
      }
    }
  }
}
