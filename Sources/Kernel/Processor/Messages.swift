// Requests of one processor to the others, which it waits for: to invalidate translations, to run a function.
//
// Each processor has a place for one message. It switches interrupts off, so that the place is its own, writes the
// message, sets a bit in `pending` for each receiver, and interrupts them. A receiver looks at all places, carries out
// each message that has its bit, and clears the bit; the sender waits until no bit is left. There is no lock and
// nothing to run out of.
//
// INVARIANTS
//   A sender holds no spin lock: a processor that waits for that lock would have interrupts off, and never answer.
//   A sender that waits looks at the places of the others itself, so that two may send to each other.
//   A function that runs on another processor sends no message.
//
// COST. For the sender about 150 instructions and the time until the slowest has answered, whatever the number of
// pages: `Invalidation` decides how they are invalidated. On one processor nothing is sent.

import CPlatform
import MemoryPrimitives
import Synchronization

enum Messages {
  private static var places: UnsafeMutablePointer<cp_message> { cp_messages(Image.storage) }
  private static func pending(_ index: Int) -> UnsafeMutablePointer<Atomic<UInt64>> {
    UnsafeMutableRawPointer(places + index).assumingMemoryBound(to: Atomic<UInt64>.self)
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
    post(Processors.onlineMask, runs, count, nil, nil) { invalidateHere(runs, count) }
    cp_interrupts_restore(interrupts)
  }

  /// Runs `body` on processor `index` with interrupts off; on one that never came up there is nothing to do it to.
  static func run(
    on index: Int, _ body: @convention(c) (UnsafeMutableRawPointer) -> Void,
    _ argument: UnsafeMutableRawPointer
  ) {
    let interrupts = cp_interrupts_disable()
    calls.add(1, ordering: .relaxed)
    if index == Int(cp_processor_index()) {
      body(argument)
    } else if Processors.onlineMask >> UInt64(index) & 1 != 0 {
      post(1 << UInt64(index), nil, 0, body, argument) {}
    }
    cp_interrupts_restore(interrupts)
  }

  /// Interrupts are off. `ownPart` runs on this processor while the others work.
  private static func post(
    _ targets: UInt64, _ runs: UnsafePointer<cp_page_run>?, _ count: Int,
    _ body: (@convention(c) (UnsafeMutableRawPointer) -> Void)?, _ argument: UnsafeMutableRawPointer?,
    _ ownPart: () -> Void
  ) {
    precondition(cp_held_rank() == 0, "a message to other processors with a spin lock held")
    let me = Int(cp_processor_index())
    let others = targets & ~(1 << UInt64(me))
    if others != 0 {
      precondition(pending(me).pointee.load(ordering: .relaxed) == 0, "a message from within a message")
      places[me].runs = runs
      places[me].count = UInt64(count)
      places[me].body = body
      places[me].argument = argument
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
      if let runs = places[index].runs { invalidateHere(runs, Int(places[index].count)) }
      if let body = places[index].body, let argument = places[index].argument { body(argument) }
      pending(index).pointee.bitwiseAnd(~bit, ordering: .acquiringAndReleasing)
    }
  }

  private static func invalidateHere(_ runs: UnsafePointer<cp_page_run>, _ count: Int) {
    Invalidation.carryOut(
      UnsafeBufferPointer(start: runs, count: count), invalidatePage: { cp_invalidate_page($0) },
      invalidateAll: { cp_invalidate_all() })
  }

  /// Adds the rows that tell how much was sent.
  static func register(in statistics: Statistics) {
    statistics.add(
      Statistic(
        "machine.shootdowns", .events, .counter, "requests that every processor forget pages", context: nil,
        read: { _ in Messages.shootdowns.load(ordering: .relaxed) }))
    statistics.add(
      Statistic(
        "machine.shootdown_pages", .pages, .counter, "pages forgotten, where not all were", context: nil,
        read: { _ in Messages.pages.load(ordering: .relaxed) }))
    statistics.add(
      Statistic(
        "machine.messages", .events, .counter, "interrupts sent to other processors and waited for",
        context: nil, read: { _ in Messages.sent.load(ordering: .relaxed) }))
  }
}
