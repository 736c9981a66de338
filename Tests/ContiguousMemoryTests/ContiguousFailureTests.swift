import ContiguousMemory
import HostMachine
import KernelSpace
import Kmem
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import Paging

/// Each point that can run out of something, made to fail in turn, in every way of asking for contiguous memory; and
/// disks that fail while a run is emptied.
final class ContiguousFailureTests: XCTestCase {
  /// Asks, and gives back what it got; false when it was refused.
  private typealias Act = (TestSystem) -> (() -> Void)?

  private func acts(_ system: TestSystem) -> [(String, Act)] {
    let type = system.kmem.type(named: ShortName("test"))
    let wanted = request(48, aligned: 16)
    var acts: [(String, Act)] = []
    for priority in [AllocationPriority.normal, .system] {
      acts.append(
        (
          "pages, \(priority)",
          {
            var wanted = wanted
            wanted.priority = priority
            guard case .success(let run) = $0.ask(wanted) else { return nil }
            return { system.give(run) }
          }
        ))
    }
    for attribute in [CacheAttribute.writeBack, .uncached, .writeCombining] {
      acts.append(
        (
          "kmem \(attribute)",
          {
            guard let range = try? $0.contiguous.kmemAllocContig(wanted, attribute: attribute) else {
              return nil
            }
            return { system.contiguous.kmemFreeContig(range) }
          }
        ))
    }
    for strategy in [ContiguousStrategy.new, .old] {
      acts.append(
        (
          "contigmalloc \(strategy)",
          {
            system in
            system.contiguous.setStrategy(strategy)
            defer { system.contiguous.setStrategy(.new) }
            guard
              let range = try? system.contiguous.contigmalloc(
                .kibibytes(192), type: type, where: wanted.constraints, contents: .zero)
            else { return nil }
            return { system.contiguous.contigfree(range.address, size: .kibibytes(192), type: type) }
          }
        ))
    }
    return acts
  }

  /// A machine full of pages without a run of 48 among its free frames, and what stays once it was needed is there.
  private func make(_ isShort: Bool) throws -> (TestSystem, Area) {
    let system = try TestSystem()
    let type = system.kmem.type(named: ShortName("test"))
    for attribute in [CacheAttribute.writeBack, .uncached, .writeCombining] {
      system.contiguous.kmemFreeContig(
        try system.contiguous.kmemAllocContig(request(48, aligned: 16), attribute: attribute))
    }
    let small = try system.contiguous.contigmalloc(.kibibytes(192), type: type)
    system.contiguous.contigfree(small.address, size: .kibibytes(192), type: type)
    let reserve = system.physical.reserve(for: .normal).rawValue
    let area = try system.fillMemory(spare: isShort ? reserve + 24 : 220)
    if isShort { _ = system.takeAll(leaving: reserve + 12) }
    return (system, area)
  }

  func testEachPointThatFailsGivesEverythingBack() throws {
    var reached = [UInt64](repeating: 0, count: 8)
    var (refused, points) = (0, 0)
    for isShort in [false, true] {
      for number in 0..<7 {
        var nth: Int64 = 0
        while true {
          let (system, area) = try make(isShort)
          let (name, act) = acts(system)[number]
          let failures = system.host.failures
          let type = system.kmem.type(named: ShortName("test"))
          let before = system.picture()
          let known = system.kmem.describe(type)
          failures.pointee.hasFailed = false
          failures.pointee.countdown = nth
          let counts = failures.pointee.reached
          let giveBack = act(system)
          let hasFailed = failures.pointee.hasFailed
          failures.pointee.countdown = -1
          for i in 0..<8 { reached[i] += failures.pointee.reached[i] - counts[i] }
          let note = "\(name), short \(isShort), point \(nth)"
          system.check(note)
          if let giveBack {
            failures.pointee.countdown = 0
            giveBack()
            failures.pointee.countdown = -1
          } else {
            refused += 1
            XCTAssertEqual(system.kmem.describe(type).requests, known.requests, note)
          }
          XCTAssertEqual(system.kmem.describe(type).inUse, 0, note)
          system.check(note)
          // Pages may be elsewhere; nothing else is other than it was.
          let after = system.picture()
          for (role, count) in before.roles where role != .pageable {
            XCTAssertEqual(after.roles[role], count, "\(role.description), \(note)")
          }
          XCTAssertEqual(after.kmem, before.kmem, note)
          try system.verify(area, note)
          if !hasFailed { break }
          nth += 1
          points += 1
          guard nth < 400 else { return XCTFail("\(name) passes points without end") }
        }
      }
    }
    for point in [FailurePoint.physicalMemory, .pageTables, .vmem, .kernelSpace, .paging, .contiguous] {
      XCTAssertGreaterThan(reached[Int(point.rawValue)], 0, "\(point) was never reached")
    }
    XCTAssertGreaterThan(refused, 20)
    print("\(points) points failed in turn, \(refused) requests refused")
  }

  /// Writing a run out takes nothing; whatever would fail if it were asked for is not asked for.
  func testARunIsWrittenOutThoughNotOneFrameIsFree() throws {
    let system = try TestSystem()
    let area = try system.fillMemory(spare: 5)
    let taken = system.takeAll()
    system.set("vm.reserve.normal", 0)
    XCTAssertEqual(system.physical.freeCount, .zero)
    let low = UInt64(system.frame(area, area.count / 2).rawValue) & ~63
    let blocked = (low..<low + 64).contains {
      system.physical.whatIs(FrameNumber(UInt32($0))).role != .pageable
    }
    let wanted = blocked ? request(32) : request(64, low: low, high: low + 64)
    let steps = Steps()
    let run = try system.ask(wanted, steps).get()
    system.checkGranted(run, wanted)
    XCTAssertEqual(steps.written, run.count.rawValue, "\(steps.names)")
    XCTAssertEqual(steps.moved, 0)
    system.check()
    system.give(run)
    system.giveBack(taken)
    try system.verify(area)
  }

  /// A disk that fails everything, now and then, tears and corrupts: requests are granted or refused, stamps are right
  /// or an error, and nothing is left behind.
  func testRunsAreEmptiedOnADiskThatFails() throws {
    let seed = historySeed(41)
    for kind in 0..<4 {
      let system = try TestSystem(frames: 1024, swap: 8192)
      let area = try system.fillMemory(spare: system.physical.reserve(for: .normal).rawValue + 30)
      var faults = DeviceFaults(seed: seed)
      switch kind {
      case 0: faults.failed = 1000
      case 1: faults.failed = 200
      case 2:
        faults.failed = 100
        faults.delayed = 300
        faults.longestDelay = 9
        faults.reordered = 500
      default: faults.torn = 50
      }
      var (granted, refused) = (0, 0)
      var lost: Set<UInt64> = []
      for turn in 0..<40 {
        let note = "STRATA_SEED=\(seed), kind \(kind), turn \(turn)"
        system.disk.faults = faults
        faults.seed &+= 1
        let steps = Steps()
        switch system.ask(request(32, aligned: 32), steps) {
        case .success(let run):
          granted += 1
          system.give(run)
        case .failure(let failure):
          refused += 1
          XCTAssertTrue(
            failure.answer == .later || failure.answer == .notNow, "\(failure.description), \(note)")
        }
        system.disk.faults = DeviceFaults()
        system.check(note)
        XCTAssertEqual(system.physical.count(.contiguous), .zero, note)
        for page in 0..<area.count where !lost.contains(page) {
          do throws(PagingError) {
            let isRight = try system.holds(area, page, 1000 + page)
            XCTAssertTrue(isRight, "page \(page), \(note)")
            if turn % 4 == 0 { try system.write(area, page, 1000 + page) }
          } catch {
            XCTAssertEqual(error, .corrupt, note)
            XCTAssertEqual(kind, 3, note)
            lost.insert(page)
          }
        }
      }
      XCTAssertGreaterThan(kind == 0 ? refused : granted, 10, "kind \(kind)")
      system.check()
    }
  }
}
