// The benches of the kernel's console on a simulated machine, each on one of its own.

import Foundation
import KernelMemory
import MemoryPrimitives
import PhysicalMemory
import Workloads

final class SimulatedBench: BenchHost {
  private(set) var figures: [BenchFigure] = []
  /// Benches that could not be measured, and why.
  private(set) var leftOut: [(name: String, why: String)] = []
  private var verdict = DirtyPages.Verdict()
  private var fills: UInt64 = 0

  /// The benches whose names begin with `prefix`.
  static func benches(_ prefix: String) -> [KernelBench] {
    (0...KernelBench.last.rawValue).compactMap { KernelBench(rawValue: $0) }
      .filter { "\($0.name)".hasPrefix(prefix) }
  }

  /// Runs benches on machines of 1 GiB, with the trace at this path to replay.
  func run(_ benches: [KernelBench], trace path: String) throws {
    // Without a trace, a bench that replays it says so.
    let trace = (try? contents(of: path, limit: 1 << 30)) ?? Data()
    for bench in benches {
      let machine = try PagedMachine(memory: .gibibytes(1), swap: .gibibytes(3))
      do {
        try trace.withUnsafeBytes { bytes in
          try KernelBenches(
            machine.memory, machine.access, trace: bytes.isEmpty ? nil : bytes, for: self
          ).measure(bench)
        }
      } catch let failure as FillFailure {
        throw Complaint("\(bench.name): memory can't be filled: \(failure.error.description)", .unavailable)
      }
      withExtendedLifetime(machine) {}
    }
    if let first = verdict.first {
      throw Complaint(
        "\(counted(verdict.broken, "page")) did not keep its stamp, as at \(Line("\(first)").text)", .software
      )
    }
  }

  func measured(_ budget: Budget, _ figure: UInt64, goal: BudgetGoal) {
    figures.append(BenchFigure(budget, simulated: figure, goal: goal))
  }
  func leftOut(_ name: StaticString, _ why: Line) { leftOut.append(("\(name)", why.text)) }
  func prepared(_ name: StaticString, dirty pages: PageCount) {}
  func verified(_ verdict: DirtyPages.Verdict) { self.verdict.add(verdict) }

  func progress(_ what: StaticString, _ done: UInt64, of total: UInt64, _ unit: StaticString) -> Pace {
    Terminal.standard.progress("\(what)", done, of: total, "\(unit)")
    return .goOn
  }
  var pace: Pace { .goOn }
  var seed: UInt64 {
    fills += 1
    return fills
  }
}
