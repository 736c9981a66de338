// The storage of a stress: one run of frames, reached by the direct map.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory

/// The parts of that memory.
struct StressStorage {
  let run: FrameRun
  let state: UnsafeMutablePointer<ProcessorStress.State>
  let failure: UnsafeMutablePointer<StressFailure>
  let addresses: UnsafeMutableRawPointer
  let resources: UnsafeMutableRawPointer
  let stored: UnsafeMutableRawPointer
  let pages: UnsafeMutableRawPointer
  private let workers: UnsafeMutablePointer<StressWorker.Record>
  private let threads: UnsafeMutablePointer<ThreadHandle?>
  private let counters: UnsafeMutablePointer<Counter>
  private let seed: UInt64
  private let physical: FrameAllocator

  /// A line of the cache for each counter.
  private static var counterStride: Int { 8 }

  /// The offsets of the parts.
  private struct Parts {
    let state: Int
    let failure: Int
    let addresses: Int
    let resources: Int
    let stored: Int
    let workers: Int
    let threads: Int
    let counters: Int
    let pages: Int
    let size: ByteCount

    init(workers count: Int, pages pageCount: PageCount) {
      var layout = StorageLayout()
      state = layout.add(ProcessorStress.State.self)
      failure = layout.add(StressFailure.self)
      addresses = layout.add(SharedAddresses.size)
      resources = layout.add(ExchangedResources.size)
      stored = layout.add(StoredObjects.size)
      workers = layout.add(StressWorker.Record.self, count: count)
      threads = layout.add(ThreadHandle?.self, count: count)
      counters = layout.add(Counter.self, count: count * counterStride)
      pages = layout.add(SharedPages.size(pageCount))
      size = layout.size
    }
  }

  init(_ plan: ProcessorStressPlan, _ memory: MemorySystem) throws(StressError) {
    // One more worker: the caller frees everything at the end.
    let count = plan.workers + 1
    let parts = Parts(workers: count, pages: plan.pages)
    do throws(PhysicalMemoryError) {
      run = try memory.physical.allocate(
        run: parts.size.pagesRoundedUp, role: .wired,
        for: FrameOwner("stress, its storage"))
    } catch {
      throw .noMemory
    }
    let base = memory.machine.directMap.pointer(to: run.first)
    base.initializeMemory(as: UInt64.self, repeating: 0, count: Int(run.count.bytes.rawValue / 8))
    state = base.part(ProcessorStress.State.self, at: parts.state)
    failure = base.part(StressFailure.self, at: parts.failure)
    addresses = base + parts.addresses
    resources = base + parts.resources
    stored = base + parts.stored
    workers = base.part(StressWorker.Record.self, at: parts.workers, count: count)
    threads = base.part(ThreadHandle?.self, at: parts.threads, count: count)
    threads.initialize(repeating: nil, count: count)
    counters = base.part(Counter.self, at: parts.counters, count: count * Self.counterStride)
    pages = base + parts.pages
    seed = plan.seed
    physical = memory.physical
  }

  func free() { physical.free(run) }

  func worker(_ number: Int) -> UnsafeMutablePointer<StressWorker.Record> { workers + number }
  func thread(_ number: Int) -> UnsafeMutablePointer<ThreadHandle?> { threads + number }
  func operations(_ number: Int) -> UnsafeMutablePointer<Counter> { counters + number * Self.counterStride }

  /// Makes the record of a worker.
  func prepare(_ number: Int, for stress: ProcessorStress) {
    operations(number).initialize(to: Counter())
    worker(number).initialize(
      to: StressWorker.Record(
        stress: stress, number: number, operations: operations(number),
        random: SeededRandom(seed: seed &+ UInt64(number) &* 0x2545_f491_4f6c_dd1d)))
  }
}
