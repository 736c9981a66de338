// replay: the trace in the boot module, against the live allocators.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PhysicalMemory
import Workloads

extension CommandDescription {
  static var replay: CommandDescription {
    CommandDescription(
      name: "replay", usage: "replay [keep] [on=N]",
      about: """
        Runs the trace of a real kernel's allocations against the allocators.
        With keep, what the trace leaves alive stays alive. on=N splits it over
        N processors, each with a thread; events that the trace recorded in
        interrupts run in timer interrupts. Counts are the same; of what is live
        at once, the highest sample is printed.
        """,
      example: "replay", question: .trial,
      completion: .words("keep on="))
  }
}

extension Shell {
  /// The boot module's bytes, through the direct map.
  var module: UnsafeRawBufferPointer? {
    let boot = subject.pointee.boot
    guard boot.pointee.module_count > 0 else { return nil }
    let module = cp_boot_modules(boot)[0]
    let start = memory.machine.directMap.pointer(to: PhysicalAddress(module.base))
    return UnsafeRawBufferPointer(
      start: module.length == 0 ? nil : UnsafeRawPointer(start), count: Int(module.length))
  }

  /// Prints how to get a trace, behind a sentence on the error of this one.
  private func noTrace(_ sentence: Line) -> CommandError {
    let error = fail(sentence)
    print("Pack a trace (strata trace pack) and boot with make run TRACE=FILE.")
    return error
  }

  func replay(_ arguments: Arguments) throws(CommandError) {
    var rest = Replay.Rest.freed
    let split = try split(arguments)
    if let word = arguments.nextOfAnyForm() {
      guard word.bytes == "keep" else {
        throw arguments.notUnderstood(word)
      }
      rest = .kept
    }
    try arguments.end()
    guard let module else {
      _ = noTrace("There is no boot module to replay.")
      throw .unfit
    }
    let summary: ReplaySummary
    do throws(ReplayError) {
      summary = try run(module, split, rest)
    } catch {
      switch error {
      case .trace: throw noTrace(error.describe("The boot module"))
      case .machineTooSmall, .noRun, .tooFewProcessors, .noThread:
        _ = fail(error.describe("The boot module"))
        throw .unfit
      }
    }
    if isStopped("Stopped. What was live is freed; \(count: summary.lost) pages or objects are lost.") {
      printDone { report(summary) }
    } else {
      report(summary)
    }
    if !summary.succeeded { throw .failed }
  }

  private func report(_ summary: ReplaySummary) {
    if isJSON {
      summary.writeJSON(cycles: costUnit) { terminal.write($0) }
      newline()
    } else {
      summary.print(cycles: costUnit) { print($0) }
    }
  }

  /// The value of `on=N`; nil without it.
  private func split(_ arguments: Arguments) throws(CommandError) -> ReplaySplit? {
    guard let word = arguments.value(of: "on") else { return nil }
    let asked = try arguments.number(word)
    guard let view = state.pointee.host.executive else {
      throw refuse(word, "there are no threads here: replay without on=")
    }
    let there = UInt64(min(view.processorCount, ReplaySplit.mostWorkers))
    guard asked > 0 && asked <= there else {
      throw refuse(
        word, there == 1 ? "this machine has 1 processor" : "1 to \(count: there) processors are there")
    }
    return ReplaySplit(workers: Int(asked), interrupts: view.interrupts)
  }

  private func run(
    _ bytes: UnsafeRawBufferPointer, _ split: ReplaySplit?, _ rest: Replay.Rest
  ) throws(ReplayError) -> ReplaySummary {
    try Replay.whole(bytes, on: memory, split: split, rest: rest) {
      if shouldStop { return .stop }
      if drawsBar($0.events, of: $0.of) {
        progress(
          "replay", $0.events, of: $0.of,
          "\(count: $0.events) of \(count: $0.of) events   \(count: $0.liveObjects) live")
      }
      return .goOn
    }
  }

  /// The unit of the cycle counter.
  var costUnit: StaticString { CycleCounter.unit }
}
