// A stress of all layers by several processors at once: they exchange resources, remap addresses that others read,
// write out pages that others write to, and start threads that end.
//
// A worker is a thread, pinned to a processor where the machine can do so. Its turns are random, so that every
// mixture of these occurs:
//   1  It allocates a resource (ExchangedResources) and exchanges it for another worker's, which it checks and frees.
//      So memory is freed on a processor that did not allocate it.
//   2  It maps, unmaps and reuses an address that the others read all the time (SharedAddresses). No processor may see
//      an earlier page there.
//   3  It faults, reads and dirties pages of one object (SharedPages) that does not fit in memory, while others request
//      runs of frames, launder, wire and hold.
//   4  It stores, reads and frees objects of the compressed store (StoredObjects), while others compact it and
//      request runs that hold its pages.
//   5  It starts threads that do a little of (1) and end (TransientThreads).
//   5  It allocates objects below limits that change, and of a zone, and waits for other workers (BoundedObjects).
//
// HOW IT DETECTS A MISSING SHOOTDOWN. Every processor reads an address of (2) every few microseconds, so each caches
// its translation when it is unmapped. The worker that unmaps it announces so after every processor should have
// invalidated it, and overwrites the frame at once. A processor that has not invalidated it reads on without a fault,
// and finds a generation that is announced as gone, or no stamp at all. And the mapped resources of (1) and the pages
// of (3) lie at addresses that are reused all the time: a stale translation leads to another owner's stamps.
//
// Each turn checks its invariants. At the end everything is freed, all counts must be as before, and the invariants
// of every layer must hold. The first invariant that does not hold ends the stress. Then nothing more is freed, so
// that the broken state stays for inspection.
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
package struct ProcessorStress {
  struct State: ~Copyable {
    let plan: ProcessorStressPlan
    let memory: MemorySystem
    let access: WordAccess
    let resources: ExchangedResources
    let addresses: SharedAddresses
    let stored: StoredObjects
    let pages: SharedPages?
    let bounded: BoundedObjects
    /// By `BoundedObjects.Source`.
    let boundedInUse: InlineArray<3, Atomic<Int>> = .init { _ in Atomic(0) }
    let over = Atomic<Bool>(false)
    let running = Atomic<Int>(0)
    let transients = Atomic<UInt64>(0)
    /// Woken when a worker has ended.
    let ended = WaitQueue("the stress to end", .thread)
    let hasFailed = Atomic<Bool>(false)
    /// The thread that set `hasFailed` writes it; it is read after all threads have ended.
    let failure: UnsafeMutablePointer<StressFailure>
  }
  let state: UnsafeMutablePointer<State>

  var memory: MemorySystem { state.pointee.memory }
  var machine: Machine { state.pointee.memory.machine }
  var plan: ProcessorStressPlan { state.pointee.plan }
  var isOver: Bool { state.pointee.over.load(ordering: .acquiring) }
  var hasFailed: Bool { state.pointee.hasFailed.load(ordering: .acquiring) }

  /// Runs a stress to its end; the caller sleeps until then. Calls `progress` now and then with the ticks that have
  /// passed and the operations that are done. Throws when the stress can't begin.
  package static func run(
    _ plan: ProcessorStressPlan, on memory: MemorySystem, _ access: WordAccess,
    progress: (_ ticks: UInt64, _ operations: UInt64) -> Pace = { _, _ in .goOn }
  ) throws(StressError) -> ProcessorStressOutcome {
    // The first object makes paging allocate the table of object numbers, which it keeps.
    if let first = try? memory.paging.createObject(ShortName("stress"), .one) { memory.paging.destroy(first) }
    BoundedObjects.prepare(memory.kmem)
    // The store is compacted at the end, too.
    memory.compressed.store.compact()
    let before = UsageSnapshot(memory)
    let storage = try StressStorage(plan, memory)
    let stress: ProcessorStress
    do throws(StressError) {
      stress = try begin(plan, memory, access, storage)
    } catch {
      storage.free()
      throw error
    }
    var outcome = ProcessorStressOutcome()
    guard stress.work(storage, &outcome, progress) > 0 else {
      stress.end(storage)
      storage.free()
      throw .noThreads
    }
    if !stress.hasFailed {
      // The caller is the last worker.
      let last = StressWorker(storage.worker(plan.workers))
      stress.resources.freeAll(last)
      stress.addresses.removeAll(last)
      stress.stored.freeAll(last)
      stress.pages?.verifyAll(last)
    }
    if !stress.hasFailed {
      stress.end(storage)
      stress.compare(before, UsageSnapshot(memory, storage.run.count))
    }
    let hasFailed = stress.hasFailed
    outcome.failure = hasFailed ? stress.state.pointee.failure.pointee : nil
    if !hasFailed { storage.free() }
    return outcome
  }

  private static func begin(
    _ plan: ProcessorStressPlan, _ memory: MemorySystem, _ access: WordAccess, _ storage: StressStorage
  ) throws(StressError) -> ProcessorStress {
    let addresses = try SharedAddresses(memory, access, in: storage.addresses)
    do throws(StressError) {
      let resources = try ExchangedResources(memory, access, in: storage.resources)
      do throws(StressError) {
        let pages =
          plan.pages > .zero ? try SharedPages(memory, access, plan.pages, in: storage.pages) : nil
        let bounded: BoundedObjects
        do throws(StressError) {
          bounded = try BoundedObjects(memory.kmem, workers: plan.workers)
        } catch {
          pages?.end(memory)
          throw error
        }
        storage.state.initialize(
          to: State(
            plan: plan, memory: memory, access: access, resources: resources, addresses: addresses,
            stored: StoredObjects(memory, in: storage.stored),
            pages: pages, bounded: bounded, failure: storage.failure))
        let stress = ProcessorStress(state: storage.state)
        for number in 0...plan.workers { storage.prepare(number, for: stress) }
        return stress
      } catch {
        resources.end()
        throw error
      }
    } catch {
      addresses.end(memory)
      throw error
    }
  }

  var resources: ExchangedResources { state.pointee.resources }
  var addresses: SharedAddresses { state.pointee.addresses }
  var stored: StoredObjects { state.pointee.stored }
  var pages: SharedPages? { state.pointee.pages }
  var bounded: BoundedObjects { state.pointee.bounded }

  /// Changes the count of objects in use of a source with a bound; answers the new one.
  @discardableResult func count(_ source: BoundedObjects.Source, by change: Int) -> Int {
    state.pointee.boundedInUse[source.rawValue].add(change, ordering: .acquiringAndReleasing).newValue
  }

  /// Runs the workers until all have ended, and adds up their tallies. Returns the number of workers.
  private func work(
    _ storage: StressStorage, _ outcome: inout ProcessorStressOutcome,
    _ progress: (UInt64, UInt64) -> Pace
  ) -> Int {
    let start = machine.now.rawValue
    for number in 0..<plan.workers {
      storage.thread(number).pointee = StressWorker(storage.worker(number)).start()
    }
    while true {
      let ticket = state.pointee.ended.ticket()
      if state.pointee.running.load(ordering: .acquiring) == 0 { break }
      let now = machine.now.rawValue
      _ = state.pointee.ended.sleep(ticket, until: Tick(now + 50), on: machine)
      var operations: UInt64 = 0
      for number in 0..<plan.workers { operations &+= storage.operations(number).pointee.value }
      let passed = machine.now.rawValue - start
      if progress(min(passed, plan.ticks), operations) == .stop || passed >= plan.ticks { stop() }
    }
    var workers = 0
    for number in 0..<plan.workers {
      let worker = StressWorker(storage.worker(number))
      guard let thread = storage.thread(number).pointee else { continue }
      machine.join(thread)
      workers += 1
      outcome.add(worker.record.pointee.tally)
      outcome.operations += storage.operations(number).pointee.value
    }
    outcome.workers = UInt64(workers)
    outcome.visitors = state.pointee.transients.load(ordering: .acquiring)
    outcome.ticks = machine.now.rawValue - start
    return workers
  }

  func stop() { state.pointee.over.store(true, ordering: .releasing) }

  /// Records that an invariant does not hold, and ends the stress. The first record stays.
  func record(_ failure: StressFailure) {
    var failure = failure
    failure.processor = cp_processor_index()
    let isFirst = state.pointee.hasFailed.compareExchange(
      expected: false, desired: true, ordering: .acquiringAndReleasing
    ).exchanged
    if isFirst { state.pointee.failure.initialize(to: failure) }
    stop()
  }

  /// Ends all parts, which no thread uses any more.
  private func end(_ storage: StressStorage) {
    resources.end()
    addresses.end(memory)
    pages?.end(memory)
    bounded.end()
    memory.kmem.drain()
    memory.compressed.store.compact()
  }

  private func compare(_ before: UsageSnapshot, _ after: UsageSnapshot) {
    if let failure = before.difference(to: after) {
      record(failure)
    } else if let broken = memory.checkInvariants() {
      record(StressFailure(broken))
    }
  }
}
