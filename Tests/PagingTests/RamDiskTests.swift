import CPlatform
import HostMachine
import MemoryPrimitives
import PhysicalMemory
import Synchronization
import TestSupport
import Workloads
import XCTest

@testable import Paging

final class RamDiskTests: XCTestCase {
  func testSubmitCompletesNothingAndPollOneAtATime() throws {
    let bench = try SwapFixture(pages: 64)
    XCTAssertFalse(bench.disk.poll())
    let frames = try bench.frames(4)
    for (i, frame) in frames.enumerated() { bench.fill(frame, UInt64(i)) }
    let begun = (0..<4).map { bench.transfer(.write, UInt64($0 * 3), [frames[$0]])! }
    XCTAssertFalse(begun.contains { bench.transfers.isDone($0.value) })
    for i in 0..<4 {
      XCTAssertTrue(bench.disk.poll())
      XCTAssertEqual(begun.map { bench.transfers.isDone($0.value) }, (0..<4).map { $0 <= i })
    }
    XCTAssertFalse(bench.disk.poll())
    for i in 0..<4 {
      bench.transfers.end(begun[i].move())
      XCTAssertTrue(pageHolds(bench.diskPage(UInt64(i * 3)), UInt64(i)))
    }
    XCTAssertEqual(bench.disk.figures.writes, 4)
    XCTAssertEqual(bench.disk.figures.pages, 4)
    XCTAssertEqual(bench.disk.figures.failed, 0)
  }

  func testADiskInEightExtentsReadsAndWritesEachPage() throws {
    let bench = try SwapFixture(pages: 1)
    let sizes: [Int] = [3, 1, 40, 2, 7, 1, 1, 33]
    let total = sizes.reduce(0, +)
    let parts = sizes.map { UnsafeMutableRawPointer.allocate(byteCount: $0 << 12, alignment: 4096) }
    let memory = UnsafeMutableRawPointer.allocate(
      byteCount: Int(RamDisk.stateSize.rawValue), alignment: 64)
    defer { for pointer in parts + [memory] { pointer.deallocate() } }
    let extents = (0..<8).map { RamDisk.Extent(parts[$0], PageCount(sizes[$0])) }
    let disk = extents.withUnsafeBufferPointer {
      RamDisk.create(in: memory, ShortName("extents"), machine: bench.host.machine, over: $0)
    }
    XCTAssertEqual(disk.device.pageCount, PageCount(total))
    XCTAssertEqual(disk.device.name, ShortName("extents"))
    let polled = disk
    bench.host.runDevices = { polled.poll() }
    let frames = try bench.frames(32)
    func run(_ operation: cp_block_operation, _ first: Int, _ count: Int) -> Bool {
      frames[..<count].withUnsafeBufferPointer {
        let transfer = bench.transfers.begin(disk.device, operation, DevicePage(UInt64(first)), $0)!
        bench.transfers.wait(transfer)
        let hasFailed = bench.transfers.hasFailed(transfer)
        bench.transfers.end(transfer)
        return !hasFailed
      }
    }
    // In parts that lie across every border.
    for first in stride(from: 0, to: total, by: 19) {
      let count = min(19, total - first)
      for i in 0..<count { bench.fill(frames[i], UInt64(first + i)) }
      XCTAssertTrue(run(.write, first, count))
    }
    var page = 0
    for (part, size) in sizes.enumerated() {
      for i in 0..<size {
        XCTAssertTrue(
          pageHolds((parts[part] + i << 12).assumingMemoryBound(to: UInt64.self), UInt64(page)))
        page += 1
      }
    }
    for first in 0..<total {
      let count = min(32, total - first)
      XCTAssertTrue(run(.read, first, count))
      for i in 0..<count { XCTAssertTrue(bench.holds(frames[i], UInt64(first + i))) }
    }
    // Beyond the end nothing is touched.
    XCTAssertFalse(run(.read, total - 3, 4))
    XCTAssertFalse(run(.write, total, 1))
    XCTAssertFalse(run(.write, Int.max, 2))
  }

  func testARequestWithoutOrWithTooManyPagesFails() throws {
    let bench = try SwapFixture(pages: 64)
    var request = cp_block_request()
    request.operation = .read
    request.done = { context, _ in context!.assumingMemoryBound(to: Int.self).pointee += 1 }
    var done = 0
    withUnsafeMutablePointer(to: &done) { counter in
      withUnsafeMutablePointer(to: &request) { request in
        request.pointee.context = UnsafeMutableRawPointer(counter)
        for count in [0, 33, UInt32.max] {
          request.pointee.count = count
          request.pointee.failed = false
          bench.disk.device.submit(request)
          XCTAssertTrue(bench.disk.poll())
          XCTAssertTrue(request.pointee.failed)
        }
      }
    }
    XCTAssertEqual(done, 3)
    XCTAssertEqual(bench.disk.figures.failed, 3)
  }

  /// `done` may submit requests and poll.
  func testDoneMaySubmitAndPoll() throws {
    let bench = try SwapFixture(pages: 64)
    struct Chain {
      var disk: RamDisk
      var left: Int
      var polled: [Bool] = []
    }
    let chain = UnsafeMutablePointer<Chain>.allocate(capacity: 1)
    let requests = UnsafeMutablePointer<cp_block_request>.allocate(capacity: 1)
    chain.initialize(to: Chain(disk: bench.disk, left: 5))
    requests.initialize(to: cp_block_request())
    defer {
      chain.deinitialize(count: 1)
      chain.deallocate()
      requests.deallocate()
    }
    requests.pointee.operation = .write
    requests.pointee.count = 1
    cp_block_frames(requests)[0] = try bench.frame().rawValue
    requests.pointee.context = UnsafeMutableRawPointer(chain)
    requests.pointee.done = { context, request in
      let chain = context!.assumingMemoryBound(to: Chain.self)
      XCTAssertTrue(holdsNoSpinLock())
      chain.pointee.left -= 1
      guard chain.pointee.left > 0 else { return }
      request.pointee.first += 1
      let disk = chain.pointee.disk
      disk.device.submit(request)
      let answer = disk.poll()
      chain.pointee.polled.append(answer)
    }
    bench.disk.device.submit(requests)
    XCTAssertTrue(bench.disk.poll())
    XCTAssertEqual(chain.pointee.left, 0)
    XCTAssertEqual(chain.pointee.polled, [true, true, true, true])
    XCTAssertEqual(bench.disk.figures.writes, 5)
    XCTAssertFalse(bench.disk.poll())
  }

  /// All that is to be seen of a history of requests.
  private func history(_ faults: DeviceFaults, requests: Int = 400) throws -> (log: [UInt64], RamDiskFigures)
  {
    let bench = try SwapFixture(pages: 256, requests: 16)
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
      let operation: cp_block_operation = random.oneIn(2) ? .read : .write
      if operation == .write { bench.fill(frames[frame], UInt64(step)) }
      live.append((bench.transfer(operation, random.below(256), [frames[frame]])!, frame))
      for _ in 0..<random.below(3) { bench.disk.poll() }
    }
    while bench.disk.poll() {}
    for (transfer, _) in live { bench.transfers.end(transfer.move()) }
    for page in 0..<256 as Range<UInt64> {
      log.append(UInt64(Checksum.of(UnsafeMutableRawPointer(bench.diskPage(page)))))
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
  private func strikes(_ faults: DeviceFaults, _ body: (SwapFixture, [FrameNumber], UInt64) throws -> Void)
    throws
  {
    let bench = try SwapFixture(pages: 64)
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
    let bench = try SwapFixture(pages: 64)
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
    let bench = try SwapFixture(pages: 64)
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

  func testThreadsPollOneDisk() throws {
    let bench = try SwapFixture(pages: 256, requests: 16, processors: 3)
    let rounds = 400
    let frames = try bench.frames(48)
    bench.host.onThreads(3) { index in
      var random = SeededRandom(seed: UInt64(index))
      for round in 0..<rounds {
        let mine = Array(frames[index * 16..<index * 16 + 1 + Int(random.below(16))])
        let first = UInt64(index * 80) + random.below(48)
        for (i, frame) in mine.enumerated() { bench.fill(frame, UInt64(round * 1000 + i)) }
        XCTAssertTrue(bench.run(.write, first, mine))
        for frame in mine { bench.fill(frame, 1) }
        XCTAssertTrue(bench.run(.read, first, mine))
        for (i, frame) in mine.enumerated() { XCTAssertTrue(bench.holds(frame, UInt64(round * 1000 + i))) }
      }
    }
    XCTAssertEqual(bench.disk.figures.writes, UInt64(3 * rounds))
    XCTAssertFalse(bench.disk.poll())
  }
}
