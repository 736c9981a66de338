// launder: writes dirty pages to swap, and prints the cost.

import CPlatform
import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory
import Workloads

extension CommandDescription {
  static var launder: CommandDescription {
    CommandDescription(
      name: "launder", usage: "launder [active|inactive|laundry|daemon] [SIZE]",
      about: """
        Writes dirty pages of a queue to swap and frees them, or runs the
        page daemon, and prints the cost.
        """,
      example: "launder active 1M", question: .trial,
      completion: .words("active inactive laundry daemon"))
  }
}

extension Shell {

  func launder(_ arguments: Arguments) throws(CommandError) {
    var queue = PageQueue.laundry
    var word = arguments.next()
    if let named = word, named.bytes == "daemon" {
      if let size = arguments.next() {
        throw refuse(size, "the daemon has its own target: sysctl vm.free_target=PAGES")
      }
      try arguments.end()
      runDaemon()
      return
    }
    var isNamed = false
    if let named = word, let asked = Self.laundered(named.bytes) {
      queue = asked
      isNamed = true
      word = arguments.next()
    }
    var limit: PageCount?
    if let word {
      guard word.bytes.count > 0, word.bytes[0] >= UInt8(ascii: "0"), word.bytes[0] <= UInt8(ascii: "9")
      else {
        throw refuse(
          word,
          isNamed
            ? "a size comes after the queue, as in: launder active 1M"
            : "no queue to launder: active, inactive, laundry, or daemon")
      }
      limit = try arguments.size(word).pagesRoundedUp
      guard limit != .zero else { throw refuse(word, "less than a page") }
    }
    try arguments.end()
    launder(queue, limit)
  }

  private static func laundered(_ name: Bytes) -> PageQueue? {
    if name == "active" { return .active }
    if name == "inactive" { return .inactive }
    return name == "laundry" ? .laundry : nil
  }

  private func launder(_ queue: PageQueue, _ limit: PageCount?) {
    let paging = memory.paging
    let queued = paging.count(queue)
    let asked = min(queued, limit ?? queued)
    if asked == .zero {
      if isJSON {
        report(LaunderOutcome(), queue, looked: .zero, cost: 0)
      } else {
        print("Nothing to do: there is no page in the queue \(queue.description). Type: \(elsewhere)")
      }
      return
    }
    var outcome = LaunderOutcome()
    var looked = PageCount.zero
    var cost: UInt64 = 0
    // A few pages at a time, so that Ctrl-C is seen.
    while looked < asked && pace("launder", looked.rawValue, of: asked.rawValue, "pages") == .goOn {
      let some = min(asked - looked, PageCount(UInt64(256)))
      let before = cp_cycles()
      // A request for the active queue launders pages in use, too.
      let came = paging.launder(queue, upTo: some, referenced: queue == .active ? .launder : .skip)
      cost &+= cp_cycles() &- before
      outcome = outcome + came
      looked = looked + some
    }
    if isStopped("Stopped. \(count: looked.rawValue) of \(count: asked.rawValue, "page") were looked at.") {
      printDone { report(outcome, queue, looked: looked, cost: cost) }
    } else {
      report(outcome, queue, looked: looked, cost: cost)
    }
  }

  /// The command to suggest when a queue is empty: one for a queue that is not.
  private var elsewhere: StaticString {
    if memory.paging.count(.laundry) > .zero { return "launder" }
    if memory.paging.count(.inactive) > .zero { return "launder inactive" }
    return memory.paging.count(.active) > .zero ? "launder active" : "queues"
  }

  private func report(_ outcome: LaunderOutcome, _ queue: PageQueue, looked: PageCount, cost: UInt64) {
    let free = physical.freeCount
    print(
      "\(count: looked.rawValue, "page") of the queue \(queue.description) looked at: \(outcome.freed.bytes) became free."
    )
    let table = table("launder")
    table.column("written", .figure)
    table.column("freed", .figure)
    table.column("redirtied", .figure)
    table.column("passed over", .figure)
    table.column("failed", .figure)
    table.column("unswappable", .figure)
    table.costColumns()
    table.column("queue", .text, for: .tools)
    table.column("looked at", .figure, for: .tools)
    table.begin()
    table.count(outcome.written.rawValue)
    table.count(outcome.freed.rawValue)
    table.count(outcome.redirtied.rawValue)
    table.count(outcome.passedOver.rawValue)
    table.count(outcome.failed.rawValue)
    table.count(outcome.unswappable.rawValue)
    table.cost(cost)
    table.text(queue.description)
    table.count(looked.rawValue)
    table.end()
    table.finish()
    printFree(free)
    if outcome.failed > .zero {
      print("! The device failed; pages that could not be written stay dirty. Type: swap")
    } else if outcome.unswappable > .zero {
      print("! There is no space in swap for \(count: outcome.unswappable.rawValue, "page"). Type: swap")
    }
  }

  private func runDaemon() {
    let before = cp_cycles()
    let outcome = memory.paging.runDaemon()
    let cost = cp_cycles() &- before
    printEnd("Stopped. The page daemon had ended its run by then.") { report(outcome, cost) }
  }

  private func report(_ outcome: DaemonOutcome, _ cost: UInt64) {
    let (free, target) = (physical.freeCount, memory.paging.freeTarget)
    let hasWork = outcome.freed > .zero || outcome.written > .zero || outcome.deactivated > .zero
    if !hasWork && free >= target && !isJSON {
      print(
        "The daemon has nothing to do: \(count: free.rawValue) frames are free, its target is \(count: target.rawValue)."
      )
      return
    }
    print("The page daemon freed \(outcome.freed.bytes).")
    let table = table("daemon")
    table.column("written", .figure)
    table.column("freed", .figure)
    table.column("made inactive", .figure)
    table.costColumns()
    table.begin()
    table.count(outcome.written.rawValue)
    table.count(outcome.freed.rawValue)
    table.count(outcome.deactivated.rawValue)
    table.cost(cost)
    table.end()
    table.finish()
    printFree(free)
    if free < target {
      print("! That is below its target of \(count: target.rawValue). Type: queues")
    }
  }

  private func printFree(_ free: PageCount) {
    print(
      "Free now: \(count: free.rawValue, "frame"), \(count: physical.cachedCount.rawValue) of them cached; a fault reactivates those."
    )
  }
}
