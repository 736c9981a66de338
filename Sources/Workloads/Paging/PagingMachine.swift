// The machine under a paging history: a second instance over memory that the first one lends, with a swap disk
// in that memory, a clock that counts calls, a software processor, and interrupts.
//
// All upcalls of the core end here, so that kernel and host run the same code. A sleep runs the disk, which completes
// requests late, out of order, and with errors. A shootdown empties the processor's buffer. At each of these points an
// interrupt may occur, whose handler is that of the history.
//
// Layout of the memory loaned, from its start: the instance's own memory, then its swap disk.

import CPlatform
import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory

/// The sizes of a history's machine.
package struct PagingPlan: Sendable {
  package var seed: UInt64
  package var operations: UInt64
  /// The operations between two checks of all invariants of all layers; zero for a check at the end only.
  package var checkEvery: UInt64
  package var memory: ByteCount
  package var swap: ByteCount
  /// Whether the disk fails, tears and corrupts, and allocation points fail.
  package var faults: Faults

  /// Whether faults are injected.
  package enum Faults: UInt8, Sendable { case none, some }

  package init(
    seed: UInt64, operations: UInt64, checkEvery: UInt64 = 2000, memory: ByteCount = .mebibytes(6),
    swap: ByteCount = .mebibytes(24), faults: Faults = .some
  ) {
    self.seed = seed
    self.operations = operations
    self.checkEvery = checkEvery
    self.memory = memory
    self.swap = swap
    self.faults = faults
  }

  /// The plan of `selftest paging`, and of the test that compares it with the host.
  package static var standard: PagingPlan {
    PagingPlan(seed: 0x5041_4745_5253, operations: 20_000, checkEvery: 5000)
  }

  /// Memory to lend: in one run, aligned to 2 MiB.
  package var loaned: ByteCount { memory + swap }
}

/// The state behind the platform interface of a history's machine, reached through a context word.
struct PagingMachine {
  var outer: Machine
  var disk: FaultyDisk
  var buffer: TranslationBuffer
  var ticks: UInt64 = 0
  var random: SeededRandom
  /// The handler, called at points where an interrupt may occur.
  var interrupt: (@convention(c) (UnsafeMutableRawPointer) -> Void)?
  var interruptContext: UnsafeMutableRawPointer?
  var interrupts: UInt64 = 0
  var inInterrupt = false

  typealias Place = UnsafeMutablePointer<PagingMachine>

  private static func from(_ context: UnsafeMutableRawPointer?) -> Place {
    context.unsafelyUnwrapped.assumingMemoryBound(to: PagingMachine.self)
  }

  /// One point in five has an interrupt.
  static func mayInterrupt(_ machine: Place) {
    guard let handler = machine.pointee.interrupt, !machine.pointee.inInterrupt,
      let context = machine.pointee.interruptContext, machine.pointee.random.oneIn(5)
    else { return }
    machine.pointee.inInterrupt = true
    machine.pointee.interrupts += 1
    handler(context)
    machine.pointee.inInterrupt = false
  }

  static func upcalls(_ machine: Place) -> cp_upcalls {
    cp_upcalls(
      context: UnsafeMutableRawPointer(machine),
      report_fault: { context, report in
        let machine = PagingMachine.from(context)
        machine.pointee.outer.report(report.assumingMemoryBound(to: FaultReport.self).pointee)
      },
      read_tick: { context in
        let machine = PagingMachine.from(context)
        machine.pointee.ticks += 1
        return machine.pointee.ticks
      },
      shoot_down: { context, runs, count in
        let machine = PagingMachine.from(context)
        for i in 0..<Int(count) { machine.pointee.buffer.invalidate(runs[i].address, runs[i].count) }
        PagingMachine.mayInterrupt(machine)
      },
      run_on: { _, _, body, argument in withInterruptsOff { body(argument) } },
      sleep: { context, sequence, seen, deadline, _, _ in
        let machine = PagingMachine.from(context)
        while true {
          if UnsafeRawPointer(sequence).load(as: UInt64.self) != seen { return .woken }
          PagingMachine.mayInterrupt(machine)
          machine.pointee.ticks += 1
          if machine.pointee.disk.poll() { continue }
          if UnsafeRawPointer(sequence).load(as: UInt64.self) != seen { return .woken }
          if deadline == UInt64.max { return .never }
          if machine.pointee.ticks >= deadline { return .deadline }
        }
      },
      wake: { _, _ in }, start: nil, join: nil, confine: nil)
  }
}
