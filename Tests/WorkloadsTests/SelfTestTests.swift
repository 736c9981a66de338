import HostMachine
import KernelMemory
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import XCTest

@testable import Workloads

/// The self-tests of a running system, on a machine of the host.
final class SelfTestTests: XCTestCase {
  private final class Recorder: SelfTestObserver {
    var checksums: [String: UInt64] = [:]
    var pace = Pace.goOn

    func ran(_ history: StaticString, _ outcome: HistoryOutcome) {
      checksums["\(history)"] = outcome.checksum
    }
    func ran(_ plan: ProcessorStressPlan, _ outcome: ProcessorStressOutcome) {}
    func progress(_ what: StaticString, _ done: UInt64, of total: UInt64, _ unit: StaticString) -> Pace {
      pace
    }
  }

  private func run(_ test: SelfTest, on system: TestSystem, _ observer: Recorder = Recorder())
    -> SelfTestOutcome
  {
    let place = UnsafeMutablePointer<SoftwareProcessor>.allocate(capacity: 1)
    defer { place.deallocate() }
    place.initialize(to: system.processor)
    let gate = InterruptGate(Unmanaged.passUnretained(system.host).toOpaque()) { host, body, argument in
      Unmanaged<SimulatedMachine>.fromOpaque(host!).takeUnretainedValue().interrupt(argument, body)
    }
    return SelfTests(system.memory, WordAccess(place), processors: 0, interrupts: gate).run(test, observer)
  }

  private func text(_ outcome: SelfTestOutcome) -> String {
    switch outcome {
    case .passed: "passed"
    case .broken(let what): "broken: \(what)"
    case .notBegun(let why): "not begun: \(why.string)"
    }
  }

  func testEachPassesAndFreesWhatItAllocates() throws {
    let system = try TestSystem(
      on: SimulatedMachine(memory: .mebibytes(256)), HostSystem.Options(), swap: 4096)
    for test in [SelfTest.invariants, .protection, .frames, .objects, .space, .windows, .history, .paging] {
      _ = run(test, on: system)
      let before = system.physical.freeCount
      XCTAssertEqual(text(run(test, on: system)), "passed", "\(test)")
      XCTAssertEqual(system.physical.freeCount, before, "\(test)")
    }
    XCTAssertEqual(text(run(.smp, on: system)), "not begun: there are no threads here")
  }

  func testHistoriesHaveTheChecksumsOfTheSameHistoriesAlone() throws {
    let observer = Recorder()
    let system = try TestSystem(memory: .mebibytes(256))
    XCTAssertEqual(text(run(.history, on: system, observer)), "passed")
    XCTAssertEqual(observer.checksums.count, HistoryKind.count)
    // One after the other on one machine, as the self-test runs them.
    let other = try TestSystem.standard()
    for number in 0..<HistoryKind.count {
      let kind = HistoryKind(rawValue: UInt8(number))!
      XCTAssertEqual(
        observer.checksums["\(kind.description)"], other.run(.standard(kind)).checksum,
        "\(kind)")
    }
  }

  func testOneThatIsStoppedRunsNoHistory() throws {
    let observer = Recorder()
    observer.pace = .stop
    let system = try TestSystem(memory: .mebibytes(256))
    let before = system.physical.freeCount
    _ = run(.history, on: system, observer)
    XCTAssertTrue(observer.checksums.isEmpty)
    XCTAssertEqual(system.physical.freeCount, before)
  }

  func testALackOfMemoryIsNoBrokenInvariant() throws {
    let system = try TestSystem(memory: .mebibytes(16))
    XCTAssertEqual(text(run(.history, on: system)), "not begun: no run of 64 MiB can be loaned here")
    XCTAssertEqual(text(run(.paging, on: system)), "not begun: no run of 30 MiB can be loaned here")
  }

  func testABrokenInvariantIsNamed() throws {
    let system = try TestSystem(memory: .mebibytes(64))
    let frame = try system.physical.allocate(BlockOrder(0), role: .wired, for: FrameOwner("test"))
    XCTAssertEqual(text(run(.objects, on: system)), "passed")
    // An object of the self-test's type that another caller still holds.
    let type = system.memory.kmem.type(named: ShortName("selftest"))
    let object = try XCTUnwrap(system.memory.kmem.alloc(.kibibytes(1), type: type))
    XCTAssertEqual(text(run(.objects, on: system)), "broken: objects did not come back")
    system.memory.kmem.free(object, size: .kibibytes(1), type: type)
    system.physical.free(frame, BlockOrder(0))
  }
}
