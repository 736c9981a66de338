// The self-tests of a running system, by name. Each leaves memory unchanged, and checks that it has.

import KernelMemory
import MemoryPrimitives

/// A self-test.
package enum SelfTest: UInt8, Sendable {
  case invariants, protection, frames, objects, space, windows, threads, history, paging, smp, zs

  package static var last: Self { .zs }

  package var name: StaticString {
    switch self {
    case .invariants: "invariants"
    case .protection: "protection"
    case .frames: "frames"
    case .objects: "objects"
    case .space: "space"
    case .windows: "windows"
    case .threads: "threads"
    case .history: "history"
    case .paging: "paging"
    case .smp: "smp"
    case .zs: "zs"
    }
  }

  package var about: StaticString {
    switch self {
    case .invariants: "the invariants of every layer"
    case .protection: "no frame can be written and executed"
    case .frames: "blocks and runs are allocated, freed and joined"
    case .objects: "objects of all sizes don't overlap"
    case .space: "address, frames and mapping come and go together"
    case .windows: "every processor's page windows show its own frames"
    case .threads: "some start when no frame is free"
    case .history: "seeded histories, as the tests run them on the host"
    case .paging: "a seeded history of pages on three times the memory"
    case .smp: "all layers at once, on all processors"
    case .zs: "objects of the store are read while they are moved"
    }
  }
}

/// The end of a self-test.
package enum SelfTestOutcome: Sendable {
  case passed
  /// The invariant that does not hold.
  case broken(StaticString)
  /// Why the test could not begin: this machine lacks something. Nothing is broken.
  case notBegun(Line)

  init(_ broken: StaticString?) {
    if let broken { self = .broken(broken) } else { self = .passed }
  }
}

/// Gets what self-tests find besides their outcomes, and can end them.
package protocol SelfTestObserver {
  /// Takes the outcome of a seeded history.
  func ran(_ history: StaticString, _ outcome: HistoryOutcome)
  /// Takes the outcome of a stress of all processors.
  func ran(_ plan: ProcessorStressPlan, _ outcome: ProcessorStressOutcome)
  /// Shows progress.
  func progress(_ what: StaticString, _ done: UInt64, of total: UInt64, _ unit: StaticString) -> Pace
  /// Whether to go on, asked where nothing is to be shown.
  var pace: Pace { get }
}

/// The self-tests on one system.
package struct SelfTests {
  let memory: MemorySystem
  let access: WordAccess
  /// Processors that run threads; none where there are no threads.
  let processors: Int
  /// The way to an interrupt handler, if there is one.
  let interrupts: InterruptGate?
  /// The duration of the stress of all processors.
  let seconds: UInt64

  package init(
    _ memory: MemorySystem, _ access: WordAccess, processors: Int, interrupts: InterruptGate? = nil,
    seconds: UInt64 = 1
  ) {
    self.memory = memory
    self.access = access
    self.processors = processors
    self.interrupts = interrupts
    self.seconds = seconds
  }

  /// Runs one self-test.
  package func run<O: SelfTestObserver>(_ test: SelfTest, _ observer: O) -> SelfTestOutcome {
    switch test {
    case .invariants: SelfTestOutcome(memory.checkInvariants())
    case .protection:
      SelfTestOutcome(
        memory.pageTables.proveWriteXorExecute() == nil ? nil : "a frame can be written and executed")
    case .frames: testFrames()
    case .objects: testObjects()
    case .space: testSpace()
    case .windows: testWindows()
    case .threads: testThreads()
    case .history: testHistories(observer)
    case .paging: testPaging(observer)
    case .smp: testProcessors(.allLayers, observer)
    case .zs: testProcessors(.compressedStore, observer)
    }
  }
}
