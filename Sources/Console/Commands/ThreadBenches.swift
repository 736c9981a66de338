// bench switch, shootdown, longest-off: the costs of threads and of several processors.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Synchronization
import Workloads

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

extension Shell {
  /// One thread wakes another and sleeps until that one wakes it: two switches a round.
  func benchSwitch(_ sheet: BenchSheet) {
    let rounds: UInt64 = 1000
    let bit = UInt64(1) << UInt64(cp_processor_index())
    let exchange = Exchange(memory.machine)
    let cycles = withUnsafePointer(to: exchange) { place -> UInt64? in
      guard
        let partner = memory.machine.start(
          "bench", .worker, on: bit, UnsafeMutableRawPointer(mutating: place),
          { $0.unsafelyUnwrapped.assumingMemoryBound(to: Exchange.self).pointee.answerAll() })
      else { return nil }
      let start = cp_cycles()
      for round in 1...rounds { place.pointee.ask(round) }
      let cycles = cp_cycles() &- start
      place.pointee.ask(Exchange.last)
      memory.machine.join(partner)
      return cycles
    }
    guard let cycles else { return sheet.leaveOut("switch", "there are no threads here") }
    sheet.add(.threadSwitch, cycles / (2 * rounds))
    if let view = state.pointee.host.executive {
      sheet.add(.interrupt, view.interruptCost)
    }
  }

  /// Shootdowns for each page that was unmapped: a range that is freed, and pages that the laundry frees, which lie
  /// anywhere.
  func benchShootdown(_ sheet: BenchSheet) {
    let name: StaticString = "shootdown"
    let count = PageCount(UInt64(1024))
    guard let before = statistic("machine.shootdowns") else {
      return sheet.leaveOut(name, "no counter of them exists here")
    }
    guard memory.paging.swap.figures.free >= count,
      physical.freeCount > memory.paging.freeTarget + count + count
    else { return sheet.leaveOut(name, "it takes \(count.bytes) of free memory, and as much of swap") }
    do throws(PagingError) {
      let object = try memory.paging.createObject(ShortName("bench"), count)
      defer { memory.paging.destroy(object) }
      let address = try memory.paging.map(object, count: count)
      var isMapped = true
      defer { if isMapped { memory.paging.unmap(address, count) } }
      // In an order that separates neighbours in the queue.
      for page in 0..<count.rawValue { try access.store(address + PageCount(page * 617 % 1024), page) }
      let filled = statistic("machine.shootdowns") ?? before
      let given = memory.paging.launder(.active, upTo: count, referenced: .launder).freed.rawValue
      let laundered = statistic("machine.shootdowns") ?? filled
      for page in 0..<count.rawValue { _ = try access.load(address + PageCount(page)) }
      let read = statistic("machine.shootdowns") ?? laundered
      memory.paging.unmap(address, count)
      isMapped = false
      let unmapped = statistic("machine.shootdowns") ?? read
      if given > 0 {
        sheet.add(.shootdownsLaundry, (laundered - filled) * 1000 / given)
      }
      sheet.add(.shootdownsUnmap, (unmapped - read) * 1000 / count.rawValue)
    } catch {
      sheet.leaveOut(name, "a page could not be brought in: \(error.description)")
    }
  }

  /// The longest intervals with interrupts off and with a spin lock held, as far as measured.
  func benchLongest(_ sheet: BenchSheet) {
    guard let off = statistic("machine.longest_off"), off > 0, let view = state.pointee.host.executive else {
      return sheet.leaveOut("longest-off", "nothing was measured: sysctl machine.measure=on")
    }
    sheet.add(.longestOff, off)
    var held: UInt64 = 0
    LockRank.forEach { rank, _ in
      let row = view.waits(for: rank)
      if rank.kind == .spin { held = max(held, row.longest_hold) }
    }
    sheet.add(.longestHeld, held)
  }

  private func statistic(_ name: StaticString) -> UInt64? { memory.statistics.value(of: name) }
}
