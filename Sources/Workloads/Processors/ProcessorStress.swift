// All layers at once, by several processors: what one processor hands to another, remaps under its eyes, writes out
// while it is being written to, or leaves to a thread that ends.
//
// A worker is a thread, pinned to a processor where that can be. It takes random turns, so that every mixture of
// these comes about:
//   1  it makes something (ExchangedThings) and puts it where others find it, in exchange for what lay there, which
//      it looks over and gives back: memory is freed where it was not allocated;
//   2  it maps, unmaps and reuses an address that the others read all the time (SharedAddresses): no processor may
//      see what was there before, however shortly ago;
//   3  it faults, reads and dirties pages of one object (SharedPages) that does not fit in memory, while others ask
//      for runs of frames, launder, wire and hold;
//   4  it starts threads that do a little of (1) and end (Visitors).
//
// WHY THIS FINDS A MISSING SHOOTDOWN. An address of (2) is read on every processor every few microseconds, so each
// has its translation when it is unmapped. Whoever unmaps it says so after every processor was to have forgotten
// it, and overwrites the frame at once. A processor that has not forgotten it reads on without a fault, and finds a
// generation that is known to be gone, or what is no stamp at all. And the mapped things of (1) and the pages of
// (3) lie at addresses that are used again and again: a stale translation leads to another owner's stamps.
//
// Invariants are checked where something is looked at; at the end everything is given back, all counts must be what they
// were, and the invariants of every layer must hold. The first invariant that does not hold ends the stress, and then nothing is
// given back any more: what is broken stays as it is.
//
// COST. A turn is some hundred to some ten thousand instructions. Memory: a record a worker, a word a slot, two words
// a shared page, in one run of frames.

import CPlatform
import Kmem
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Synchronization
import Vmem

/// A stress while it runs: a handle.
public struct ProcessorStress {
  struct State: ~Copyable {
    let plan: ProcessorStressPlan
    let memory: MemorySystem
    let access: WordAccess
    let things: ExchangedThings
    let addresses: SharedAddresses
    let pages: SharedPages?
    let over = Atomic<Bool>(false)
    let running = Atomic<Int>(0)
    let visitors = Atomic<UInt64>(0)
    /// Woken when a worker has ended.
    let ended = WaitQueue("the stress to end", .thread)
    let isTroubled = Atomic<Bool>(false)
    /// Whoever set `isTroubled` has written it; read when all threads are gone.
    let trouble: UnsafeMutablePointer<StressTrouble>
  }
  let state: UnsafeMutablePointer<State>

  var memory: MemorySystem { state.pointee.memory }
  var machine: Machine { state.pointee.memory.machine }
  var plan: ProcessorStressPlan { state.pointee.plan }
  var isOver: Bool { state.pointee.over.load(ordering: .acquiring) }
  var isTroubled: Bool { state.pointee.isTroubled.load(ordering: .acquiring) }

  /// Told now and then how many ticks have passed and how many operations were done; may end the stress.
  public enum GoOn: Sendable { case goOn, stop }

  /// Runs a stress to its end. The caller sleeps meanwhile. Throws when it can't begin.
  public static func run(
    _ plan: ProcessorStressPlan, on memory: MemorySystem, _ access: WordAccess,
    progress: (_ ticks: UInt64, _ operations: UInt64) -> GoOn = { _, _ in .goOn }
  ) throws(StressRefusal) -> ProcessorStressOutcome {
    // Paging keeps the table of its objects' numbers, which the first of them makes.
    if let first = try? memory.paging.createObject(Name("stress"), .one) { memory.paging.destroy(first) }
    let before = Holdings(memory)
    let room = try StressRoom(plan, memory)
    let stress: ProcessorStress
    do throws(StressRefusal) {
      stress = try begin(plan, memory, access, room)
    } catch {
      room.giveBack()
      throw error
    }
    var outcome = ProcessorStressOutcome()
    guard stress.work(room, &outcome, progress) > 0 else {
      stress.end(room)
      room.giveBack()
      throw .noThreads
    }
    if !stress.isTroubled {
      // The caller is the last worker.
      let last = StressWorker(room.worker(plan.workers))
      stress.things.giveBackAll(last)
      stress.addresses.removeAll(last)
      stress.pages?.verifyAll(last)
    }
    if !stress.isTroubled {
      stress.end(room)
      stress.compare(before, Holdings(memory, room.run.count))
    }
    let isTroubled = stress.isTroubled
    outcome.trouble = isTroubled ? stress.state.pointee.trouble.pointee : nil
    if !isTroubled { room.giveBack() }
    return outcome
  }

  private static func begin(
    _ plan: ProcessorStressPlan, _ memory: MemorySystem, _ access: WordAccess, _ room: StressRoom
  ) throws(StressRefusal) -> ProcessorStress {
    let addresses = try SharedAddresses(memory, access, in: room.addresses)
    do throws(StressRefusal) {
      let things = try ExchangedThings(memory, access, in: room.things)
      do throws(StressRefusal) {
        let pages =
          plan.pages > .zero ? try SharedPages(memory, access, plan.pages, in: room.pages) : nil
        room.state.initialize(
          to: State(
            plan: plan, memory: memory, access: access, things: things, addresses: addresses, pages: pages,
            trouble: room.trouble))
        let stress = ProcessorStress(state: room.state)
        for number in 0...plan.workers { room.prepare(number, for: stress) }
        return stress
      } catch {
        things.end()
        throw error
      }
    } catch {
      addresses.end(memory)
      throw error
    }
  }

  var things: ExchangedThings { state.pointee.things }
  var addresses: SharedAddresses { state.pointee.addresses }
  var pages: SharedPages? { state.pointee.pages }

  /// Runs the workers until all have ended, and adds up what they did. Answers how many there were.
  private func work(
    _ room: StressRoom, _ outcome: inout ProcessorStressOutcome,
    _ progress: (UInt64, UInt64) -> GoOn
  ) -> Int {
    let start = machine.now.rawValue
    for number in 0..<plan.workers {
      room.thread(number).pointee = StressWorker(room.worker(number)).start()
    }
    while true {
      let ticket = state.pointee.ended.ticket()
      if state.pointee.running.load(ordering: .acquiring) == 0 { break }
      let now = machine.now.rawValue
      _ = state.pointee.ended.sleep(ticket, until: Tick(now + 50), on: machine)
      var operations: UInt64 = 0
      for number in 0..<plan.workers { operations &+= room.operations(number).pointee.value }
      let passed = machine.now.rawValue - start
      if progress(min(passed, plan.ticks), operations) == .stop || passed >= plan.ticks { stop() }
    }
    var workers = 0
    for number in 0..<plan.workers {
      let worker = StressWorker(room.worker(number))
      guard let thread = room.thread(number).pointee else { continue }
      machine.join(thread)
      workers += 1
      outcome.add(worker.record.pointee.tally)
      outcome.operations += room.operations(number).pointee.value
    }
    outcome.workers = UInt64(workers)
    outcome.visitors = state.pointee.visitors.load(ordering: .acquiring)
    outcome.ticks = machine.now.rawValue - start
    return workers
  }

  func stop() { state.pointee.over.store(true, ordering: .releasing) }

  /// Notes that an invariant does not hold, and ends the stress. The first one stays.
  func note(_ trouble: StressTrouble) {
    var trouble = trouble
    trouble.processor = cp_processor_index()
    let isFirst = state.pointee.isTroubled.compareExchange(
      expected: false, desired: true, ordering: .acquiringAndReleasing
    ).exchanged
    if isFirst { state.pointee.trouble.initialize(to: trouble) }
    stop()
  }

  /// Ends all parts. Nothing of theirs is in use any more.
  private func end(_ room: StressRoom) {
    things.end()
    addresses.end(memory)
    pages?.end(memory)
    memory.kmem.drain()
  }

  private func compare(_ before: Holdings, _ after: Holdings) {
    if let trouble = before.difference(to: after) {
      note(trouble)
    } else if let broken = memory.checkInvariants() {
      note(StressTrouble(broken))
    }
  }
}
