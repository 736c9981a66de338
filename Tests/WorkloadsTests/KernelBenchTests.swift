import HostMachine
import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory
import TestSupport
import XCTest

@testable import Workloads

/// The benches of a running system, for a host that records what it gets.
final class KernelBenchTests: XCTestCase {
  private final class Recorder: BenchHost {
    var figures: [Budget: UInt64] = [:]
    var goals: [Budget: BudgetGoal] = [:]
    var leftOut: [String: String] = [:]
    var verdict = DirtyPages.Verdict()
    var shown: [String: UInt64] = [:]
    var fills: UInt64 = 0
    /// The unit at whose progress the bench is stopped.
    var stopsAt: String?
    var pace = Pace.goOn

    func measured(_ budget: Budget, _ figure: UInt64, goal: BudgetGoal) {
      figures[budget] = figure
      goals[budget] = goal
    }
    func leftOut(_ name: StaticString, _ why: Line) { leftOut["\(name)"] = why.string }
    func prepared(_ name: StaticString, dirty pages: PageCount) { XCTAssertGreaterThan(pages, .zero) }
    func verified(_ verdict: DirtyPages.Verdict) { self.verdict.add(verdict) }
    func progress(_ what: StaticString, _ done: UInt64, of total: UInt64, _ unit: StaticString) -> Pace {
      XCTAssertLessThanOrEqual(done, total)
      shown["\(what)"] = done
      if "\(what)" == stopsAt { pace = .stop }
      return pace
    }
    var seed: UInt64 {
      fills += 1
      return fills
    }
  }

  /// The frames of a system that are free or hold spare tags, whose count varies.
  private func free(_ system: TestSystem) -> PageCount {
    system.physical.freeCount + system.physical.count(.tags)
  }

  private func run(
    _ bench: KernelBench, on system: TestSystem, _ host: Recorder = Recorder()
  ) throws -> Recorder {
    let place = UnsafeMutablePointer<SoftwareProcessor>.allocate(capacity: 1)
    defer { place.deallocate() }
    place.initialize(to: system.processor)
    try KernelBenches(system.memory, WordAccess(place), trace: nil, for: host).measure(bench)
    XCTAssertNil(system.memory.checkInvariants().map { "\($0)" }, "\(bench)")
    return host
  }

  private func system(hasSwap: Bool = true) throws -> TestSystem {
    try TestSystem(
      on: SimulatedMachine(memory: .mebibytes(64)), HostSystem.Options(), swap: 32768, attaches: hasSwap)
  }

  func testRunsAreFreedWhenTheirBenchEnds() throws {
    let system = try system()
    _ = try run(.contigOne, on: system)
    let before = free(system)
    for bench in [KernelBench.contig, .contigOne, .contigLow] {
      let host = try run(bench, on: system)
      XCTAssertEqual(free(system), before, "\(bench)")
      XCTAssertEqual(system.physical.count(.contiguous), .zero, "\(bench)")
      XCTAssertEqual(host.verdict.broken, 0)
      XCTAssertGreaterThan(host.verdict.intact, 0)
      if bench == .contig {
        // A machine of 64 MiB has space for 16 runs in half of its memory, and that becomes the goal.
        XCTAssertEqual(host.goals[.contigGranted], .atLeast(16))
        XCTAssertEqual(host.figures[.contigGranted], 16)
        XCTAssertEqual(host.shown["contig"], 16)
        XCTAssertEqual(host.fills, 2)
      }
    }
  }

  func testABenchThatIsStoppedFreesEverythingAndGivesNoFigure() throws {
    let system = try system()
    _ = try run(.contigOne, on: system)
    let before = free(system)
    for stop in ["dirty", "contig"] {
      let host = Recorder()
      host.stopsAt = stop
      _ = try run(.contig, on: system, host)
      XCTAssertEqual(host.figures, [:], stop)
      XCTAssertEqual(free(system), before, stop)
    }
    let host = Recorder()
    host.stopsAt = "dirty"
    _ = try run(.scan, on: system, host)
    XCTAssertNil(host.figures[.daemonScanned])
    XCTAssertEqual(host.shown["dirty"], 64, "pages are counted 64 at a time")
    XCTAssertEqual(free(system), before)
  }

  func testAMachineThatLacksSomethingSaysWhat() throws {
    let system = try system(hasSwap: false)
    for (bench, name, part) in [
      (KernelBench.contig, "contig", "it takes a swap device with"),
      (.contigBusy, "contig-busy", "no threads"),
      (.wired, "wired", "no boot module"), (.scan, "scan", "it takes a swap device with"),
      (.threadSwitch, "switch", "no threads"), (.longest, "longest-off", "nothing was measured"),
      (.boot, "boot", "no counter"), (.blocks, "fault-blocks", "64 MiB free"),
    ] {
      let host = try run(bench, on: system)
      XCTAssertTrue(host.leftOut[name]?.contains(part) ?? false, "\(name): \(host.leftOut)")
      XCTAssertTrue(host.figures.isEmpty, name)
    }
  }

  func testAFillThatEndsEarlySaysHowFarItCame() throws {
    let system = try system(hasSwap: false)
    let pages = system.physical.total
    do throws(FillFailure) {
      _ = try DirtyPages.fill(pages, seed: 1, on: system.memory, system.processor)
      XCTFail("as many pages as there are frames were filled")
    } catch {
      XCTAssertEqual(error.error, .noMemory)
      XCTAssertEqual(error.asked, pages)
      let fitting = try XCTUnwrap(error.fitting)
      XCTAssertLessThan(fitting, error.fitted)
      var fills = DirtyFills()
      let seeds = [fills.nextSeed(), fills.nextSeed()]
      XCTAssertNotEqual(seeds[0], seeds[1])
      fills.keep(try DirtyPages.fill(fitting, seed: seeds[1], on: system.memory, system.processor))
      XCTAssertEqual(fills.pages, fitting)
      XCTAssertEqual(fills[0].verify(system.processor).intact, fitting.rawValue)
      XCTAssertEqual(fills.release(system.memory), fitting)
      XCTAssertEqual(fills.count, 0)
    }
    XCTAssertNil(FillFailure(error: .inputOutput, fitted: 1000, asked: 2000).fitting)
    XCTAssertNil(FillFailure(error: .noMemory, fitted: 64, asked: 2000).fitting)
  }
}
