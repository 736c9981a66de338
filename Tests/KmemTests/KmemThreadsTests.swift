// Threads at limits and in zones, beside changes of the limits and a thread that takes all memory.
//
// The clock stands still, and each wait has a deadline far away. If a thread is not served, the test lets the clock
// pass all deadlines, so a lost wake-up is a refusal that the test names.

import Foundation
import HostMachine
import MemoryPrimitives
import Synchronization
import TestSupport
import Workloads
import XCTest

@testable import Kmem
@testable import PhysicalMemory

final class KmemThreadsTests: XCTestCase {
  private static let distant = WaitPolicy.until(Tick(1_000_000))
  private static let size = ByteCount(256)
  /// A page, so that the zone has no free object beyond its demand when memory is gone.
  private static let zoneSize = ByteCount(4096)

  // MARK: The order of service

  /// The three sources that have limits.
  private enum Source: CaseIterable { case cache, type, zone }

  /// A source whose limit is some objects of `size` bytes.
  private struct Limited {
    let source: Source
    let kmem: KmemAllocator
    let plain: MemoryType
    let cache: ObjectCache
    let type: LimitedType

    init(_ source: Source, _ kmem: KmemAllocator) throws {
      self.source = source
      self.kmem = kmem
      plain = kmem.type(named: ShortName("test"))
      type = try kmem.limitedType(named: ShortName("limited"), limit: .zero)
      let name = ShortName("limited")
      cache =
        source == .zone
        ? try kmem.createZone(name: name, size: size, demand: 2, type: plain)
        : try kmem.createCache(name: name, size: size)
    }

    func setLimit(_ objects: Int) {
      if source == .type {
        type.limit = ByteCount(size.rawValue * UInt64(objects))
      } else {
        cache.setLimit(objects)
      }
    }

    func alloc(_ priority: AllocationPriority, _ wait: WaitPolicy) -> UnsafeMutableRawPointer? {
      source == .type
        ? kmem.alloc(size, type: type, priority: priority, wait: wait)
        : cache.alloc(type: plain, priority: priority, wait: wait)
    }

    func free(_ object: UnsafeMutableRawPointer) {
      if source == .type {
        kmem.free(object, size: size, type: type)
      } else {
        cache.free(object, type: plain)
      }
    }
  }

  /// A thread that waits, as the model has it.
  private struct Arrival {
    let thread: Int
    let priority: AllocationPriority
    let isPatient: Bool
  }

  /// The objects that threads got, in the order in which they got them.
  private final class Answers: @unchecked Sendable {
    private let lock = NSLock()
    private var served: [Int] = []
    private var refused: Set<Int> = []
    private var objects: [UnsafeMutableRawPointer] = []

    func record(_ thread: Int, _ object: UnsafeMutableRawPointer?) {
      lock.withLock {
        if let object {
          served.append(thread)
          objects.append(object)
        } else {
          refused.insert(thread)
        }
      }
    }
    func add(_ object: UnsafeMutableRawPointer) { lock.withLock { objects.append(object) } }
    func take() -> UnsafeMutableRawPointer? { lock.withLock { objects.popLast() } }
    var all: (served: [Int], refused: Set<Int>) { lock.withLock { (served, refused) } }
    var count: Int { lock.withLock { served.count + refused.count } }
  }

  /// Waits for a moment until something has happened. Answers whether it has.
  private static func soon(_ hasHappened: @escaping () -> Bool) -> Bool {
    let end = Date(timeIntervalSinceNow: 20)
    idle { hasHappened() || Date() > end }
    return hasHappened()
  }

  /// A free and a raised limit serve the waiter of the highest priority that came first. One whose deadline passes
  /// leaves the others their order.
  func testThreadsAtALimitAreServedByPriorityAndArrival() throws {
    for seed in historySeeds(11, count: 8) {
      // A thread that is not served takes its time, so the first one ends the test.
      for source in Source.allCases { guard try serveInOrder(source, seed) else { return } }
    }
  }

  /// Answers whether all were served in order.
  private func serveInOrder(_ source: Source, _ seed: UInt64) throws -> Bool {
    let rig = try KmemFixture(frames: 512, processors: 7)
    let host = rig.host
    let limited = try Limited(source, rig.kmem)
    var random = SeededRandom(seed: seed)
    let arrivals = (1...6).map {
      Arrival(thread: $0, priority: random.oneIn(2) ? .system : .normal, isPatient: !random.oneIn(4))
    }
    let raises = (0..<6).map { _ in random.oneIn(2) }
    let patient = arrivals.filter(\.isPatient)
    let expected = (patient.filter { $0.priority == .system } + patient.filter { $0.priority == .normal })
      .map(\.thread)
    let answers = Answers()
    limited.setLimit(3)
    for _ in 0..<3 { answers.add(try XCTUnwrap(limited.alloc(.normal, .forbidden))) }
    host.hasOtherThreads = true
    host.onThreads(7) { me in
      guard me == 0 else {
        let arrival = arrivals[me - 1]
        _ = Self.soon { host.sleeperCount == me - 1 }
        let wait = arrival.isPatient ? Self.distant : .until(Tick(50))
        answers.record(me, limited.alloc(arrival.priority, wait))
        return
      }
      var isInTime = Self.soon { host.sleeperCount == 6 }
      host.advance(ticks: 60)
      isInTime = Self.soon { answers.all.refused.count == 6 - expected.count } && isInTime
      var limit = 3
      for step in 0..<expected.count where isInTime {
        if raises[step] {
          limit += 1
          limited.setLimit(limit)
        } else if let object = answers.take() {
          limited.free(object)
        }
        isInTime = Self.soon { answers.count == 6 - expected.count + step + 1 }
      }
      if !isInTime { host.advance(ticks: 2_000_000) }
    }
    host.hasOtherThreads = false
    let all = answers.all
    let impatient = Set(arrivals.filter { !$0.isPatient }.map(\.thread))
    XCTAssertEqual(all.served, expected, "\(source), STRATA_SEED=\(seed)")
    XCTAssertEqual(all.refused, impatient, "\(source), STRATA_SEED=\(seed)")
    while let object = answers.take() { limited.free(object) }
    rig.kmem.destroy(limited.cache)
    rig.expectEmpty()
    return all.served == expected && all.refused == impatient
  }

  // MARK: All at once

  /// Objects of one source in the hands of threads, by the bytes that count for its limit.
  private final class Shared: @unchecked Sendable {
    let cache: ObjectCache
    let type: LimitedType
    let zone: ObjectCache
    let plain: MemoryType
    let objects = Atomic<Int>(0)
    let bytes = Atomic<Int>(0)
    let zoneObjects = Atomic<Int>(0)
    let progress = Atomic<Int>(0)
    let ended = Atomic<Int>(0)
    let granted = Atomic<Int>(0)
    private let lock = NSLock()
    private var mistakes: [String] = []

    init(_ kmem: KmemAllocator, demand: Int) throws {
      plain = kmem.type(named: ShortName("test"))
      cache = try kmem.createCache(name: ShortName("limited"), size: size)
      type = try kmem.limitedType(named: ShortName("limited"), limit: .zero)
      zone = try kmem.createZone(
        name: ShortName("zone"), size: zoneSize, demand: demand, type: plain)
    }

    func require(_ holds: Bool, _ mistake: @autoclosure () -> String) {
      if !holds { lock.withLock { mistakes.append(mistake()) } }
    }
    var allMistakes: [String] { lock.withLock { mistakes } }
  }

  private static let workers = 5
  /// The highest limits: fewer than there are threads, so that some wait.
  private static let mostObjects = 3
  private static let mostBytes = 1536

  /// Threads that wait for each other and for memory: each is served, no object has two owners, no limit is exceeded,
  /// and a request within a zone's demand succeeds at once.
  func testThreadsAtLimitsAndInAZoneAreAllServed() throws {
    for seed in historySeeds(23, count: 4) {
      // With a limit of its own, the zone may make requests within its demand wait.
      let zoneHasLimit = seed % 2 == 0
      let rig = try KmemFixture(frames: 400, processors: 2 + Self.workers)
      let (host, kmem, physical) = (rig.host, rig.kmem, rig.physical)
      let shared = try Shared(rig.kmem, demand: Self.workers)
      shared.cache.setLimit(Self.mostObjects)
      shared.type.limit = ByteCount(Self.mostBytes)
      if zoneHasLimit { shared.zone.setLimit(Self.mostObjects) }
      host.hasOtherThreads = true
      host.onThreads(2 + Self.workers) { me in
        switch me {
        case 0: Self.watch(shared, host)
        case 1: Self.takeAllMemory(physical, shared)
        default:
          var worker = Worker(kmem, shared, number: me, SeededRandom(seed: seed &+ UInt64(me) &* 77))
          for _ in 0..<400 {
            worker.work(zoneHasLimit)
            shared.progress.add(1, ordering: .relaxed)
          }
          worker.freeAllKept()
          shared.ended.add(1, ordering: .releasing)
        }
      }
      host.hasOtherThreads = false
      XCTAssertEqual(shared.allMistakes.prefix(3), [], "STRATA_SEED=\(seed)")
      XCTAssertGreaterThan(shared.granted.load(ordering: .relaxed), 1000)
      XCTAssertGreaterThan(try XCTUnwrap(rig.description(of: "limited")).waits, 0)
      XCTAssertGreaterThan(kmem.describe(shared.type.type).waits, 0)
      kmem.forEachZone { XCTAssertLessThan($0.lowWater, $0.demand, "memory was never gone") }
      XCTAssertNil(shared.cache.pointer?.lists.withLock { $0.waiters.first })
      XCTAssertEqual(shared.type.state.used.load(ordering: .relaxed), 0)
      kmem.destroy(shared.zone)
      kmem.destroy(shared.cache)
      rig.expectEmpty()
    }
  }

  /// Lets all deadlines pass when no thread gets on.
  private static func watch(_ shared: Shared, _ host: SimulatedMachine) {
    var (seen, last) = (0, Date())
    idle(500) {
      let progress = shared.progress.load(ordering: .relaxed)
      if progress != seen { (seen, last) = (progress, Date()) }
      if Date().timeIntervalSince(last) > 20 {
        shared.require(false, "a thread was not served")
        host.advance(ticks: 2_000_000)
        last = Date()
      }
      return shared.ended.load(ordering: .acquiring) == Self.workers
    }
  }

  /// Takes every free frame again and again, and frees all after a moment.
  private static func takeAllMemory(_ physical: FrameAllocator, _ shared: Shared) {
    var frames: [FrameNumber] = []
    while shared.ended.load(ordering: .acquiring) < Self.workers {
      while let frame = try? physical.allocate(BlockOrder(0), role: .wired, priority: .interrupt) {
        frames.append(frame)
      }
      let until = shared.progress.load(ordering: .relaxed) + 200
      let end = Date(timeIntervalSinceNow: 0.01)
      idle {
        shared.progress.load(ordering: .relaxed) >= until || Date() > end
          || shared.ended.load(ordering: .acquiring) == Self.workers
      }
      for frame in frames { physical.free(frame, BlockOrder(0)) }
      frames = []
      withInterruptsOff {}
      usleep(200)
    }
  }

  /// A thread that allocates. It has no object with a limit when it waits.
  private struct Worker {
    let kmem: KmemAllocator
    let shared: Shared
    let number: Int
    var random: SeededRandom
    /// Objects of the zone without a limit, and their stamps: more than the demand, over all workers.
    private var kept: [(object: UnsafeMutableRawPointer, stamp: UInt64)] = []
    private var turn: UInt64 = 0

    init(_ kmem: KmemAllocator, _ shared: Shared, number: Int, _ random: SeededRandom) {
      (self.kmem, self.shared, self.number, self.random) = (kmem, shared, number, random)
    }

    mutating func work(_ zoneHasLimit: Bool) {
      switch random.below(10) {
      case 0..<2:
        let priority: AllocationPriority = random.oneIn(2) ? .system : .normal
        let object = shared.cache.alloc(type: shared.plain, priority: priority, wait: distant)
        hold(object, 256, shared.objects, 1, atMost: mostObjects)
        if let object { shared.cache.free(object, type: shared.plain) }
      case 2..<4:
        let size = 8 << Int(random.below(7))
        let object = kmem.alloc(ByteCount(size), type: shared.type, wait: distant)
        hold(object, size, shared.bytes, size, atMost: mostBytes)
        if let object { kmem.free(object, size: ByteCount(size), type: shared.type) }
      case 4..<6: useZone(zoneHasLimit)
      case 6..<9: if !zoneHasLimit { keep() }
      default: changeLimit(zoneHasLimit)
      }
    }

    private mutating func useZone(_ zoneHasLimit: Bool) {
      // One that waits for memory ends the worker's turns for a while.
      let isDemand = !random.oneIn(zoneHasLimit ? 2 : 8)
      let object = shared.zone.alloc(
        type: shared.plain, priority: isDemand ? .system : .normal,
        wait: isDemand && !zoneHasLimit ? .forbidden : distant)
      let most = zoneHasLimit ? mostObjects : workers
      hold(object, Int(zoneSize.rawValue), shared.zoneObjects, 1, atMost: most)
      if let object { shared.zone.free(object, type: shared.plain) }
    }

    /// Keeps one more object if the zone has one beyond its demand, and frees all when there are some.
    private mutating func keep() {
      if kept.count == 6 { return freeAllKept() }
      guard let object = shared.zone.alloc(type: shared.plain) else { return }
      kept.append((object, nextStamp()))
      write(object, Int(zoneSize.rawValue), kept[kept.count - 1].stamp)
    }

    mutating func freeAllKept() {
      for (object, stamp) in kept {
        check(object, Int(zoneSize.rawValue), stamp)
        shared.zone.free(object, type: shared.plain)
      }
      kept = []
    }

    /// The largest request stays below the lowest limit.
    private mutating func changeLimit(_ zoneHasLimit: Bool) {
      let objects = 1 + Int(random.below(UInt64(mostObjects)))
      switch random.below(3) {
      case 0: shared.cache.setLimit(objects)
      case 1: shared.type.limit = ByteCount(512 * objects)
      default: if zoneHasLimit { shared.zone.setLimit(objects) }
      }
    }

    /// Counts an object and stamps it, and checks after a moment that no other thread has it.
    private mutating func hold(
      _ object: UnsafeMutableRawPointer?, _ size: Int, _ inUse: borrowing Atomic<Int>, _ amount: Int,
      atMost limit: Int
    ) {
      guard let object else { return shared.require(false, "a request of \(size) bytes was refused") }
      shared.granted.add(1, ordering: .relaxed)
      let now = inUse.add(amount, ordering: .relaxed).newValue
      shared.require(now <= limit, "\(now) in use of \(size) bytes, above the limit \(limit)")
      let stamp = nextStamp()
      write(object, size, stamp)
      withInterruptsOff {}
      if stamp % 8 == 0 { usleep(50) }
      check(object, size, stamp)
      inUse.subtract(amount, ordering: .relaxed)
    }

    private mutating func nextStamp() -> UInt64 {
      turn += 1
      return UInt64(number) << 32 | turn
    }

    private func write(_ object: UnsafeMutableRawPointer, _ size: Int, _ stamp: UInt64) {
      for at in stride(from: 0, to: size, by: 8) {
        object.storeBytes(of: stamp &+ UInt64(at), toByteOffset: at, as: UInt64.self)
      }
    }

    private func check(_ object: UnsafeMutableRawPointer, _ size: Int, _ stamp: UInt64) {
      for at in stride(from: 0, to: size, by: 8)
      where object.load(fromByteOffset: at, as: UInt64.self) != stamp &+ UInt64(at) {
        shared.require(false, "an object of \(size) bytes has two owners")
      }
    }
  }
}
