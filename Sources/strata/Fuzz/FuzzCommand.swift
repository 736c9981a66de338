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
        strata fuzz --first 4711 --seeds 1 --check 1     one seed again, all invariants after each operation

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

  @Flag(help: "Keep the disk sound and let no allocation fail.")
  var calm = false

  func validate() throws {
    if memory.bytes < .mebibytes(3) || memory.bytes > .gibibytes(1) {
      throw ValidationError("--memory is 3M to 1G")
    }
  }

  func run() throws {
    try complaining {
      Terminal.standard.beginProgress()
      var (done, refused): (UInt64, UInt64) = (0, 0)
      for seed in first..<first + seeds {
        Terminal.standard.progress("fuzz", seed - first, of: seeds, "\(grouped(done)) operations")
        let outcome = try history(seed, checkEvery: check)
        done += outcome.operations
        refused += outcome.refused
        guard let broken = outcome.broken else { continue }
        Terminal.standard.clearProgress()
        print("seed \(seed): \(broken), after \(grouped(outcome.operations)) operations")
        let exact = try history(seed, checkEvery: 1)
        if let broken = exact.broken { print("in detail: \(broken), after \(grouped(exact.operations))") }
        throw Complaint("seed \(seed) failed; again: strata fuzz --first \(seed) --seeds 1", .software)
      }
      Terminal.standard.clearProgress()
      print(
        "\(grouped(seeds)) seeds, \(grouped(done)) operations, \(grouped(refused)) refused: all went well.")
    }
  }

  private func history(_ seed: UInt64, checkEvery: UInt64) throws -> HistoryOutcome {
    let plan = PagingPlan(
      seed: seed, operations: operations, checkEvery: checkEvery, memory: memory.bytes,
      swap: ByteCount(memory.bytes.rawValue * 4), faults: calm ? .none : .some)
    let host = SimulatedMachine(memory: plan.loaned)
    let size = Int(PagingHistory.workspace(plan).rawValue)
    let workspace = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 64)
    workspace.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    defer { workspace.deallocate() }
    return try withExtendedLifetime(host) {
      try PagingHistory.run(
        plan, on: host.machine, loaned: host.machine.directMap.pointer(to: PhysicalAddress(0)),
        workspace: workspace)
    }
  }
}
