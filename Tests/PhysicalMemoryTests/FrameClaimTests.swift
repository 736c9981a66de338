import HostMachine
import MemoryPrimitives
import TestSupport
import XCTest

@testable import PhysicalMemory

/// A free claims each frame by compare-and-swap before it acquires the domain lock; another processor acts in between.
final class FrameClaimTests: XCTestCase {
  private func bed() throws -> (FrameAllocatorFixture, FrameRun) {
    let system = try FrameAllocatorFixture(frames: [(256, 600)])
    return (system, try system.memory.allocate(run: PageCount(UInt64(4)), role: .wired))
  }

  /// Carries `act` out, and `other` as soon as it has claimed frame `index` of the run.
  private func afterClaim(
    of index: UInt64, _ run: FrameRun, _ system: FrameAllocatorFixture, _ other: () -> Void, _ act: () -> Void
  ) {
    let record = system.memory.knownRecord(run.first + PageCount(index))
    var isDone = false
    withoutActuallyEscaping(other) { other in
      system.host.withClaims(
        .unlocked,
        handler: { word in
          guard word == record.busyAtomic, record.busyWord.isXbusy, !isDone else { return }
          isDone = true
          other()
        }, act)
    }
    XCTAssertTrue(isDone)
  }

  func testARunIsFreedInTheMiddleOfItsFree() throws {
    for index in 0..<4 as Range<UInt64> {
      let (system, run) = try bed()
      let memory = system.memory!
      let free = memory.freeCount
      let faults = system.host.faults {
        afterClaim(of: index, run, system, { memory.free(run) }, { memory.free(run) })
      }
      XCTAssertEqual(faults.map(\.kind), [.doubleFree])
      XCTAssertEqual(memory.freeCount, free + run.count)
      system.check()
    }
  }

  /// A part that another processor has freed before the claim comes to it: the claimed frames are as before.
  func testALaterFrameIsFreedInTheMiddleOfAFree() throws {
    let (system, run) = try bed()
    let memory = system.memory!
    let free = memory.freeCount
    let last = FrameRun(first: run.first + PageCount(UInt64(3)), count: .one)
    let faults = system.host.faults {
      afterClaim(of: 1, run, system, { memory.free(last) }, { memory.free(run) })
    }
    XCTAssertEqual(faults.map(\.kind), [.doubleFree])
    XCTAssertEqual(memory.freeCount, free + .one)
    memory.free(FrameRun(first: run.first, count: PageCount(UInt64(3))))
    XCTAssertEqual(memory.freeCount, free + run.count)
    system.check()
  }

  /// The run is isolated while it is being freed: all of it is captured.
  func testARunIsIsolatedInTheMiddleOfItsFree() throws {
    let (system, run) = try bed()
    let memory = system.memory!
    var isolation: TestIsolation?
    afterClaim(
      of: 1, run, system, { isolation = try? memory.isolated(run, priority: .normal) },
      { memory.free(run) })
    XCTAssertEqual(memory.capturedCount(isolation!), run.count)
    XCTAssertEqual(memory.finish(isolation!), run)
    system.check()
    memory.free(run)
    system.check()
  }

  /// A page is asked for again while it is freed: it is no longer its object's, or it is free and cached.
  func testAPageIsReactivatedInTheMiddleOfItsFree() throws {
    let model = try PageModel(FrameAllocatorFixture(frames: [(256, 900)]))
    let memory = model.memory
    let name = PageName(owner: 3, index: 77)
    try model.makePage(name)
    let frame = FrameNumber(UInt32(model.pages[name]!.frame))
    let record = memory.knownRecord(frame)
    record.busyWord = .xbusy
    var answer: Reactivation?
    afterClaim(
      of: 0, FrameRun(first: frame, count: .one), model.system,
      { answer = memory.reactivate(frame, owner: 3, index: 77, priority: .normal) },
      { memory.free(page: frame, .cached) })
    XCTAssertEqual(answer, .gone)
    XCTAssertEqual(memory.cachedCount, .one)
    XCTAssertEqual(memory.reactivate(frame, owner: 3, index: 77, priority: .normal), .taken)
    model.system.check()
  }
}
