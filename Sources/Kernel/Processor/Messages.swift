// Synchronous requests of one processor to the others: to invalidate translations, or to run a function.
//
// Each processor has a slot for one message. The sender switches interrupts off, so that the slot is its own, writes
// the message, sets a bit in `pending` for each receiver, and interrupts the receivers. A receiver reads all slots,
// carries out each message that has its bit, and clears the bit. The sender waits until no bit is left. There is no
// lock, and no resource that can be exhausted.
//
// INVARIANTS
//   A sender holds no spin lock: a processor that waits for that lock would have interrupts off, and never answer.
//   A sender that waits serves the slots of the others, so that two processors may send to each other.
//   A function that runs on another processor sends no message.
//
// COST. The sender spends about 150 instructions and the time until the slowest receiver has answered, for any number
// of pages: `Invalidation` decides how they are invalidated. On one processor nothing is sent.

import CPlatform
import MemoryPrimitives
import Synchronization

enum Messages {
  /// A function that another processor runs.
  typealias Body = @convention(c) (UnsafeMutableRawPointer) -> Void

  private static var slots: UnsafeMutablePointer<cp_message> { cp_messages(Image.storage) }
  private static func pending(_ index: Int) -> UnsafeMutablePointer<Atomic<UInt64>> {
    UnsafeMutableRawPointer(slots + index).assumingMemoryBound(to: Atomic<UInt64>.self)
  }

  private static let shootdowns = Atomic<UInt64>(0)
  private static let pages = Atomic<UInt64>(0)
  private static let sent = Atomic<UInt64>(0)
  private static let calls = Atomic<UInt64>(0)

  /// Makes every processor invalidate `count` runs of pages.
  static func invalidate(_ runs: UnsafePointer<cp_page_run>, _ count: Int) {
    let interrupts = cp_interrupts_disable()
    shootdowns.add(1, ordering: .relaxed)
    for i in 0..<count where runs[i].count != CP_ALL_PAGES { pages.add(runs[i].count, ordering: .relaxed) }
    post(Message(targets: Processors.onlineMask, runs: runs, count: count)) { invalidateHere(runs, count) }
    cp_interrupts_restore(interrupts)
  }

  /// Runs `body` on processor `index` with interrupts off. Does nothing for a processor that never came up, because
  /// it has no state to act on.
  static func run(
    on index: Int, _ body: @escaping Body, _ argument: UnsafeMutableRawPointer
  ) {
    let interrupts = cp_interrupts_disable()
    calls.add(1, ordering: .relaxed)
    if index == Int(cp_processor_index()) {
      body(argument)
    } else if Processors.onlineMask >> UInt64(index) & 1 != 0 {
      post(Message(targets: 1 << UInt64(index), body: body, argument: argument)) {}
    }
    cp_interrupts_restore(interrupts)
  }

  /// Runs of pages to invalidate, or a function to run, and a bit for each processor that is to do it.
  private struct Message {
    var targets: UInt64
    var runs: UnsafePointer<cp_page_run>?
    var count = 0
    var body: Body?
    var argument: UnsafeMutableRawPointer?
  }

  /// Sends a message and waits until the receivers have carried it out. `ownPart` runs on this processor before the
  /// wait. Interrupts are off.
  private static func post(_ message: Message, _ ownPart: () -> Void) {
    precondition(cp_held_rank() == 0, "a message to other processors with a spin lock held")
    let me = Int(cp_processor_index())
    let others = message.targets & ~(1 << UInt64(me))
    if others != 0 {
      precondition(pending(me).pointee.load(ordering: .relaxed) == 0, "a message from within a message")
      slots[me].runs = message.runs
      slots[me].count = UInt64(message.count)
      slots[me].body = message.body
      slots[me].argument = message.argument
      pending(me).pointee.store(others, ordering: .sequentiallyConsistent)
      var left = others
      while left != 0 {
        LocalAPIC.send(LocalVector.message, to: Processors.block(left.trailingZeroBitCount).pointee.identity)
        left &= left - 1
        sent.add(1, ordering: .relaxed)
      }
    }
    ownPart()
    guard others != 0 else { return }
    Interrupts.measured {
      var spins: UInt32 = 0
      while pending(me).pointee.load(ordering: .acquiring) != 0 {
        serve()
        cp_pause(spins)
        spins &+= 1
      }
    }
  }

  /// Carries out the messages of the others to this processor. Interrupts are off.
  static func serve() {
    let me = Int(cp_processor_index())
    let bit = UInt64(1) << UInt64(me)
    for index in 0..<Processors.onlineCount where index != me {
      guard pending(index).pointee.load(ordering: .acquiring) & bit != 0 else { continue }
      if let runs = slots[index].runs { invalidateHere(runs, Int(slots[index].count)) }
      if let body = slots[index].body, let argument = slots[index].argument {
        // A thread that waits here for its own message may have a page window open.
        Interrupts.atInterruptDepth { body(argument) }
      }
      pending(index).pointee.bitwiseAnd(~bit, ordering: .acquiringAndReleasing)
    }
  }

  private static func invalidateHere(_ runs: UnsafePointer<cp_page_run>, _ count: Int) {
    Invalidation.carryOut(
      UnsafeBufferPointer(start: runs, count: count), invalidatePage: { cp_invalidate_page($0) },
      invalidateAll: { cp_invalidate_all() })
  }

  /// Adds the statistics of messages and shootdowns.
  static func register(in statistics: Statistics) {
    statistics.add(
      Statistic(
        "machine.shootdowns", .events, .counter, "requests that every processor invalidate pages",
        context: nil,
        read: { _ in Messages.shootdowns.load(ordering: .relaxed) }))
    statistics.add(
      Statistic(
        "machine.shootdown_pages", .pages, .counter, "pages invalidated one by one", context: nil,
        read: { _ in Messages.pages.load(ordering: .relaxed) }))
    statistics.add(
      Statistic(
        "machine.messages", .events, .counter, "interrupts sent to other processors that were waited for",
        context: nil, read: { _ in Messages.sent.load(ordering: .relaxed) }))
  }
}
