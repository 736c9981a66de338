// The cost of a switch between two threads: one wakes the other and sleeps until that one wakes it.

import CPlatform
import MemoryPrimitives
import Synchronization

/// Two threads on this processor, two switches a round.
package enum ThreadSwitch {
  /// Cycles of a switch; nil where there are no threads.
  package static func cycles(on machine: Machine, rounds: UInt64) -> UInt64? {
    let bit = UInt64(1) << UInt64(cp_processor_index())
    let exchange = Exchange(machine)
    let cycles = withUnsafePointer(to: exchange) { place -> UInt64? in
      guard
        let partner = machine.start(
          "bench", .worker, on: bit, UnsafeMutableRawPointer(mutating: place),
          { $0.unsafelyUnwrapped.assumingMemoryBound(to: Exchange.self).pointee.answerAll() })
      else { return nil }
      let start = cp_cycles()
      for round in 1...rounds { place.pointee.ask(round) }
      let cycles = cp_cycles() &- start
      place.pointee.ask(Exchange.last)
      machine.join(partner)
      return cycles
    }
    return cycles.map { $0 / (2 * rounds) }
  }
}

/// A number that one thread sets and another answers; each sleeps until the other has done its part.
private struct Exchange: ~Copyable {
  let machine: Machine
  let asked = Atomic<UInt64>(0)
  let answered = Atomic<UInt64>(0)
  let questions = WaitQueue("a question", .thread)
  let answers = WaitQueue("an answer", .thread)
  static var last: UInt64 { .max }

  init(_ machine: Machine) { self.machine = machine }

  borrowing func ask(_ number: UInt64) {
    asked.store(number, ordering: .releasing)
    questions.wake(on: machine)
    while true {
      let ticket = answers.ticket()
      if answered.load(ordering: .acquiring) == number { return }
      _ = answers.sleep(ticket, on: machine)
    }
  }

  borrowing func answerAll() {
    var done: UInt64 = 0
    while done != Self.last {
      let ticket = questions.ticket()
      let number = asked.load(ordering: .acquiring)
      if number == done {
        _ = questions.sleep(ticket, on: machine)
        continue
      }
      done = number
      answered.store(number, ordering: .releasing)
      answers.wake(on: machine)
    }
  }
}
