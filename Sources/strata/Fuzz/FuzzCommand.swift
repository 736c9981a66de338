// `strata fuzz`: random histories of pageable memory, seed after seed, each on a machine of its own.

import ArgumentParser
import Foundation
import HostMachine
import KernelMemory
import MemoryPrimitives
import Workloads

struct FuzzCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "fuzz",
    abstract: "Run random histories of pageable memory, seed after seed, until one fails.",
    discussion: """
      Each seed is a history of faults, writes, wires, holds, laundering, contiguous requests, errors of the \
      swap disk, failed allocations and interrupts, on a machine whose pageable memory is three times its RAM. \
      All invariants of all layers are checked as it goes, and every page against its stamp. A history that fails is \
      run again with a check after each operation, to find the operation that fails.

      Examples:
        strata fuzz --seeds 1000
        strata fuzz --first 4711 --seeds 1 --check 1   one seed again, in detail

      Exit status: 0 when all went well, 70 when a history failed.
      """)

  @Option(help: "How many seeds.")
  var seeds: UInt64 = 100

  @Option(help: "The first seed.")
  var first: UInt64 = 1

  @Option(help: "Operations of each history.")
  var operations: UInt64 = 3000

  @Option(help: "Check all invariants after each so many operations.")
  var check: UInt64 = 500

  @Option(help: "Memory of each machine, as in 6M; its swap is four times that.")
  var memory = Size(argument: "4M")!

  @Flag(name: [.customShort("j"), .long], help: "Print one row of JSON instead of a sentence.")
  var json = false

  @Flag(help: "Keep the disk sound and let no allocation fail.")
  var calm = false

  func validate() throws {
    if seeds == 0 { throw ValidationError("--seeds is 1 or more: no seed is no success") }
    if seeds - 1 > UInt64.max - first {
      throw ValidationError("--seeds \(seeds) from \(first) on go beyond the last seed, \(UInt64.max)")
    }
    if operations == 0 { throw ValidationError("--operations is 1 or more") }
    if check == 0 { throw ValidationError("--check is 1 or more") }
    if memory.bytes < .mebibytes(3) || memory.bytes > .gibibytes(1) {
      throw ValidationError("--memory is 3M to 1G")
    }
  }

  func run() throws {
    try complaining {
      Terminal.standard.beginProgress()
      var (done, refused): (UInt64, UInt64) = (0, 0)
      for index in 0..<seeds {
        let seed = first + index
        Terminal.standard.progress("fuzz", index, of: seeds, "\(grouped(done)) operations")
        let outcome = try history(seed, checkEvery: check)
        done += outcome.operations
        refused += outcome.refused
        if let broken = outcome.broken { throw try failure(of: seed, "\(broken)", outcome) }
      }
      Terminal.standard.clearProgress()
      if json {
        try printResult(row(seeds, done, refused))
      } else {
        try printResult(
          "\(counted(seeds, "seed")), \(counted(done, "operation")), \(grouped(refused)) refused: all went well."
        )
      }
    }
  }

  private func row(_ seeds: UInt64, _ done: UInt64, _ refused: UInt64, failed: UInt64? = nil) -> String {
    var row = JSONRow("fuzz")
    row.add("first", first)
    row.add("seeds", seeds)
    row.add("operations", done)
    row.add("refused", refused)
    row.add("failed_seed", failed)
    return row.text
  }

  /// Prints the failure of a seed, with the operation that fails. Answers the complaint that ends the run.
  private func failure(of seed: UInt64, _ broken: String, _ outcome: HistoryOutcome) throws -> Complaint {
    Terminal.standard.clearProgress()
    if json {
      try printResult(row(seed - first + 1, outcome.operations, outcome.refused, failed: seed))
    } else {
      try printResult("seed \(seed): \(broken), after \(counted(outcome.operations, "operation"))")
      let exact = try history(seed, checkEvery: 1)
      if let broken = exact.broken {
        try printResult("in detail: \(broken), after \(grouped(exact.operations))")
      }
    }
    return Complaint("seed \(seed) failed; again: strata fuzz --first \(seed) --seeds 1", .software)
  }

  private func history(_ seed: UInt64, checkEvery: UInt64) throws -> HistoryOutcome {
    let plan = PagingPlan(
      seed: seed, operations: operations, checkEvery: checkEvery, memory: memory.bytes,
      swap: ByteCount(memory.bytes.rawValue * 4), faults: calm ? .none : .some)
    try checkAddressSpace(plan.loaned)
    let host = SimulatedMachine(memory: plan.loaned)
    let workspace = ZeroedStorage(byteCount: Int(PagingHistory.workspace(plan).rawValue))
    return try withExtendedLifetime((host, workspace)) {
      try PagingHistory.run(
        plan, on: host.machine, loaned: host.machine.directMap.pointer(to: PhysicalAddress(0)),
        workspace: workspace.base)
    }
  }
}
