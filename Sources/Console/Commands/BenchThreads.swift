// bench switch, shootdown, off: what threads and several processors cost.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Synchronization

/// A number that one thread sets and another answers, each asleep until the other has done its part.
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

extension Console {
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
    sheet.addInstructions("switch", cycles / (2 * rounds), goal: nil)
    if let view = state.pointee.host.executive {
      sheet.addInstructions("interrupt", view.interruptCost(view.context), goal: nil)
    }
  }

  /// Requests that every processor forget pages, for each page that was unmapped: a range taken back, and pages
  /// given up by the laundry, which lie anywhere.
  func benchShootdown(_ sheet: BenchSheet) {
    let name: StaticString = "shootdown"
    let count = PageCount(UInt64(1024))
    guard let before = row("machine.shootdowns") else {
      return sheet.leaveOut(name, "nothing counts them here")
    }
    guard memory.paging.swap.figures.free >= count,
      physical.freeCount > memory.paging.freeTarget + count + count
    else { return sheet.leaveOut(name, "it takes \(count.bytes) of free memory, and as much of swap") }
    do throws(PagingError) {
      let object = try memory.paging.createObject(Name("bench"), count)
      defer { memory.paging.destroy(object) }
      let address = try memory.paging.map(object, count: count)
      var isMapped = true
      defer { if isMapped { memory.paging.unmap(address, count) } }
      // In an order that leaves neighbours apart in the queue.
      for page in 0..<count.rawValue { try access.store(address + PageCount(page * 617 % 1024), page) }
      let filled = row("machine.shootdowns") ?? before
      let given = memory.paging.launder(.active, upTo: count, sparing: .nobody).freed.rawValue
      let laundered = row("machine.shootdowns") ?? filled
      for page in 0..<count.rawValue { _ = try access.load(address + PageCount(page)) }
      let read = row("machine.shootdowns") ?? laundered
      memory.paging.unmap(address, count)
      isMapped = false
      let unmapped = row("machine.shootdowns") ?? read
      if given > 0 {
        sheet.add(
          "shootdowns-laundry", (laundered - filled) * 1000 / given, goal: nil, .atMost, "a page", scale: 1000
        )
      }
      sheet.add(
        "shootdowns-unmap", (unmapped - read) * 1000 / count.rawValue, goal: nil, .atMost, "a page",
        scale: 1000)
    } catch {
      sheet.leaveOut(name, "a page could not be had: \(error.words)")
    }
  }

  /// The longest stretch with interrupts off since it is measured.
  func benchOff(_ sheet: BenchSheet) {
    guard let off = row("machine.longest_off"), off > 0 else {
      return sheet.leaveOut("longest-off", "nothing was measured: sysctl machine.measure=on")
    }
    sheet.addInstructions("longest-off", off, goal: 20_000)
  }

  /// The value of the statistic of this name, where there is one.
  private func row(_ name: StaticString) -> UInt64? {
    for i in 0..<memory.statistics.count where Name(memory.statistics[i].name) == Name(name) {
      return memory.statistics[i].value
    }
    return nil
  }
}
