import BlockDevices
import CPlatform
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import Synchronization
import TestSupport
import XCTest

@testable import Workloads

final class FaultyDiskTests: XCTestCase {
  /// All that is to be seen of a history of requests.
  private func history(_ faults: DeviceFaults, requests: Int = 400) throws -> (
    log: [UInt64], FaultyDiskFigures
  ) {
    let bench = try DiskFixture(pages: 256, requests: 16)
    bench.disk.faults = faults
    var random = SeededRandom(seed: 5)
    let frames = try bench.frames(16)
    var log: [UInt64] = []
    var live: [(Kept<Transfer>, Int)] = []
    for step in 0..<requests {
      let frame = step % 16
      if live.count == 16 || live.contains(where: { $0.1 == frame }) {
        while !bench.transfers.isDone(live[0].0.value) { bench.disk.poll() }
      }
      // Note the order in which they are done.
      while let at = live.firstIndex(where: { bench.transfers.isDone($0.0.value) }) {
        let (transfer, frame) = live.remove(at: at)
        log.append(UInt64(frame) << 1 | (bench.transfers.hasFailed(transfer.value) ? 1 : 0))
        bench.transfers.end(transfer.move())
      }
      if live.contains(where: { $0.1 == frame }) { continue }
      let operation: DeviceOperation = random.oneIn(2) ? .read : .write
      if operation == .write { bench.fill(frames[frame], UInt64(step)) }
      live.append((bench.transfer(operation, random.below(256), [frames[frame]])!, frame))
      for _ in 0..<random.below(3) { bench.disk.poll() }
    }
    while bench.disk.poll() {}
    for (transfer, _) in live { bench.transfers.end(transfer.move()) }
    for page in 0..<256 as Range<UInt64> {
      let words = bench.diskPage(page)
      log.append((0..<512).reduce(0) { $0 &* 31 &+ words[$1] })
    }
    return (log, bench.disk.figures)
  }

  func testInjectedFaultsAreDecidedByTheirSeed() throws {
    let seed = historySeed(71)
    var faults = DeviceFaults(seed: seed)
    faults.failed = 100
    faults.torn = 100
    faults.corrupted = 100
    faults.delayed = 200
    faults.longestDelay = 7
    faults.reordered = 300
    faults.bad = 30
    let (first, figures) = try history(faults)
    let (again, _) = try history(faults)
    XCTAssertEqual(first, again)
    XCTAssertGreaterThan(figures.failed, 10)
    XCTAssertGreaterThan(figures.torn, 10)
    XCTAssertGreaterThan(figures.corrupted, 5)
    XCTAssertGreaterThan(figures.delayed, 10)
    XCTAssertGreaterThan(figures.reordered, 5)
    faults.seed = seed &+ 1
    XCTAssertNotEqual(first, try history(faults).log)
    let (_, quiet) = try history(DeviceFaults(seed: seed))
    XCTAssertEqual(
      [quiet.failed, quiet.torn, quiet.corrupted, quiet.delayed, quiet.reordered], [0, 0, 0, 0, 0])
  }

  /// Runs single requests until `count` of them showed `faults`, and looks at what came of each.
  private func strikes(_ faults: DeviceFaults, _ body: (DiskFixture, [FrameNumber], UInt64) throws -> Void)
    throws
  {
    let bench = try DiskFixture(pages: 64)
    bench.disk.faults = faults
    let frames = try bench.frames(8)
    for round in 0..<200 as Range<UInt64> {
      for i in 0..<8 { fillPage(bench.diskPage(UInt64(i) + 10), 1000) }
      for (i, frame) in frames.enumerated() { bench.fill(frame, round << 8 | UInt64(i)) }
      try body(bench, frames, round)
    }
  }

  func testATornWriteLeavesAPrefixAndSaysNothing() throws {
    var faults = DeviceFaults(seed: historySeed(72))
    faults.torn = 1000
    var whole = 0
    var parts = 0
    try strikes(faults) { bench, frames, round in
      XCTAssertTrue(bench.run(.write, 10, frames))
      var isOver = false
      for (i, frame) in frames.enumerated() {
        let (page, from) = (bench.diskPage(UInt64(i) + 10), bench.words(frame))
        let arrived = (0..<512).prefix { page[$0] == from[$0] }.count
        if arrived == 512 && !isOver {
          whole += 1
          continue
        }
        // The rest is what was there before.
        if arrived > 0 {
          XCTAssertFalse(isOver)
          parts += 1
        }
        isOver = true
        var before = SeededRandom(seed: 1000)
        for word in 0..<512 {
          let old = before.next()
          if word >= arrived { XCTAssertEqual(page[word], old) }
        }
      }
      XCTAssertTrue(isOver, "a torn write arrived as a whole, round \(round)")
    }
    XCTAssertGreaterThan(whole, 100)
    XCTAssertGreaterThan(parts, 100)
  }

  func testCorruptionFlipsOneBit() throws {
    var faults = DeviceFaults(seed: historySeed(73))
    faults.corrupted = 1000
    try strikes(faults) { bench, frames, round in
      let isWrite = round % 2 == 0
      XCTAssertTrue(bench.run(isWrite ? .write : .read, 10, frames))
      var flips = 0
      for (i, frame) in frames.enumerated() {
        let (page, memory) = (bench.diskPage(UInt64(i) + 10), bench.words(frame))
        for word in 0..<512 { flips += (page[word] ^ memory[word]).nonzeroBitCount }
        // The source of a read is unharmed.
        if isWrite {
          XCTAssertTrue(bench.holds(frame, round << 8 | UInt64(i)))
        } else {
          XCTAssertTrue(pageHolds(page, 1000))
        }
      }
      XCTAssertEqual(flips, 1)
    }
  }

  func testFailuresRetireBadPagesOnly() throws {
    let seed = historySeed(74)
    var faults = DeviceFaults(seed: seed)
    faults.failed = 1000
    try strikes(faults) { bench, frames, _ in
      XCTAssertFalse(bench.run(.write, 10, frames))
      XCTAssertFalse(bench.run(.read, 10, frames))
    }
    faults = DeviceFaults(seed: seed)
    faults.bad = 200
    let bench = try DiskFixture(pages: 64)
    bench.disk.faults = faults
    let frame = try bench.frame()
    var bad = 0
    for _ in 0..<2 {
      for page in 0..<64 as Range<UInt64> {
        let isBad = bench.disk.isBad(DevicePage(page))
        if isBad { bad += 1 }
        XCTAssertEqual(bench.run(.write, page, [frame]), !isBad)
        XCTAssertEqual(bench.run(.read, page, [frame]), !isBad)
      }
    }
    XCTAssertTrue((6...80).contains(bad), "\(bad)")
    bench.disk.faults = DeviceFaults()
    let frames = try bench.frames(8)
    bench.disk.spoil(DevicePage(12))
    XCTAssertTrue(bench.disk.isBad(DevicePage(12)))
    XCTAssertFalse(bench.run(.read, 10, frames))
    XCTAssertFalse(bench.run(.write, 5, frames))
    XCTAssertTrue(bench.run(.write, 4, frames))
    XCTAssertTrue(bench.run(.write, 13, frames))
    bench.disk.mend()
    XCTAssertTrue(bench.run(.read, 10, frames))
  }

  func testADelayedRequestIsNotDueBefore() throws {
    let bench = try DiskFixture(pages: 64)
    var faults = DeviceFaults(seed: historySeed(75))
    faults.delayed = 1000
    faults.longestDelay = 20
    bench.disk.faults = faults
    let frame = try bench.frame()
    var polls: Set<Int> = []
    for _ in 0..<300 {
      let transfer = bench.transfer(.write, 1, [frame])!
      var count = 0
      while !bench.transfers.isDone(transfer.value) {
        XCTAssertTrue(bench.disk.poll())
        count += 1
      }
      bench.transfers.end(transfer.move())
      polls.insert(count)
    }
    XCTAssertEqual(polls, Set(2...21))
    XCTAssertEqual(bench.disk.figures.delayed, 300)
    // A sleeper polls as often as it takes.
    XCTAssertTrue(bench.run(.read, 1, [frame]))
  }

  /// Requests that go on to the RAM disk, of several processors at once, come back to their owners.
  func testThreadsPollOneDiskThatDelays() throws {
    let bench = try DiskFixture(pages: 256, requests: 16, processors: 3)
    var faults = DeviceFaults(seed: historySeed(76))
    faults.reordered = 500
    faults.delayed = 300
    faults.longestDelay = 5
    bench.disk.faults = faults
    try bench.writeAndReadBack(threads: 3, rounds: 400)
    XCTAssertEqual(bench.disk.figures.writes, 3 * 400)
    XCTAssertFalse(bench.disk.poll())
    XCTAssertFalse(bench.ramDisk.poll())
  }

  func testARequestBeyondTheDiskFailsAndIsCounted() throws {
    let bench = try DiskFixture(pages: 64)
    let frames = try bench.frames(2)
    XCTAssertFalse(bench.run(.read, 63, frames))
    XCTAssertFalse(bench.run(.write, 64, [frames[0]]))
    bench.disk.spoil(DevicePage(1))
    XCTAssertFalse(bench.run(.write, .max, frames))
    XCTAssertTrue(bench.run(.write, 62, frames))
    let figures = bench.disk.figures
    XCTAssertEqual([figures.reads, figures.writes, figures.pages, figures.failed], [1, 3, 7, 3])
  }
}
