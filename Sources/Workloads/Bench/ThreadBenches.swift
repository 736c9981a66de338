// bench switch, shootdown, longest-off: the costs of threads and of several processors.

import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory

extension KernelBenches {
  /// A switch of threads, and an interrupt without work.
  func measureSwitch() {
    guard let cycles = ThreadSwitch.cycles(on: memory.machine, rounds: 1000) else {
      return host.leftOut("switch", "there are no threads here")
    }
    host.measured(.threadSwitch, cycles)
    if let cost = host.interruptCost { host.measured(.interrupt, cost) }
  }

  /// Shootdowns for each page that was unmapped: a range that is freed, and pages that the laundry frees, which lie
  /// anywhere.
  func measureShootdown() {
    let name: StaticString = "shootdown"
    let count = PageCount(UInt64(1024))
    guard let before = statistic("machine.shootdowns") else {
      return host.leftOut(name, "no counter of them exists here")
    }
    guard memory.paging.swap.figures.free >= count,
      physical.freeCount > memory.paging.freeTarget + count + count
    else { return host.leftOut(name, "it takes \(count.bytes) of free memory, and as much of swap") }
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
        host.measured(.shootdownsLaundry, (laundered - filled) * 1000 / given)
      }
      host.measured(.shootdownsUnmap, (unmapped - read) * 1000 / count.rawValue)
    } catch {
      host.leftOut(name, "a page could not be brought in: \(error.description)")
    }
  }

  /// The longest intervals with interrupts off and with a spin lock held, as far as measured.
  func measureLongest() {
    var held: UInt64?
    LockRank.forEach { rank, _ in
      guard rank.kind == .spin, let hold = host.longestHold(of: rank) else { return }
      held = max(held ?? 0, hold)
    }
    guard let off = statistic("machine.longest_off"), off > 0, let held else {
      return host.leftOut("longest-off", "nothing was measured: sysctl machine.measure=on")
    }
    host.measured(.longestOff, off)
    host.measured(.longestHeld, held)
  }
}
