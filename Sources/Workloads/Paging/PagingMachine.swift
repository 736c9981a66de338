// The machine under a paging history: a second instance over memory that the first one lends, with a swap disk
// in that memory, a clock that counts calls, a software processor, and interrupts.
//
// Whatever the core asks of an executive ends here, so that kernel and host run the same: a sleep runs the disk,
// which completes requests late, out of order and not always well; a shootdown empties the processor's buffer;
// and at each of these points an interrupt may come, whose handler is the history's.
//
// Layout of the memory loaned, from its start: the instance's own memory, then its swap disk.

import CPlatform
import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory

/// The sizes of a history's machine.
public struct PagingPlan: Sendable {
  public var seed: UInt64
  public var operations: UInt64
  /// All invariants of all layers are checked after each so many operations, and at the end.
  public var checkEvery: UInt64
  public var memory: ByteCount
  public var swap: ByteCount
  /// Whether the disk fails, tears and corrupts, and allocation points are made to fail.
  public var trouble: Troubles

  public enum Troubles: UInt8, Sendable { case none, some }

  public init(
    seed: UInt64, operations: UInt64, checkEvery: UInt64 = 2000, memory: ByteCount = .mebibytes(6),
    swap: ByteCount = .mebibytes(24), trouble: Troubles = .some
  ) {
    self.seed = seed
    self.operations = operations
    self.checkEvery = checkEvery
    self.memory = memory
    self.swap = swap
    self.trouble = trouble
  }

  /// What `selftest paging` runs, and the test that compares it with the host.
  public static var standard: PagingPlan {
    PagingPlan(seed: 0x5041_4745_5253, operations: 20_000, checkEvery: 5000)
  }

  /// Memory that is to be loaned: in one run, aligned to 2 MiB.
  public var loaned: ByteCount { memory + swap }
}

/// What the platform interface of a history's machine is about: in place, reached through a context word.
struct PagingMachine {
  var outer: Machine
  var disk: RamDisk
  var buffer: TranslationBuffer
  var ticks: UInt64 = 0
  var random: SeededRandom
  /// Called at points where an interrupt may come.
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
      tick: { context in
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
          if deadline == UInt64.max { return .nobody }
          if machine.pointee.ticks >= deadline { return .deadline }
        }
      },
      wake: { _, _ in }, start: nil, join: nil)
  }
}
